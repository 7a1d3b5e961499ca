"""Losses for classes: logistic and hinge for labels -1 and +1, softmax cross-entropy for any number of classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexbn.validation import FloatArray, InputError

# Rows of float64 probabilities sum to 1 to within rounding only; the nearest exact row moves the conjugate by less than that of its sum.
SIMPLEX_ROUNDING = 1e-13


def _sigmoid(z: FloatArray) -> FloatArray:
    """1 / (1 + exp(-z)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def _log_sum(f: FloatArray) -> tuple[FloatArray, FloatArray]:
    """log sum_c exp f_c of each row, shape (n,), and softmax(f). On small arrays scipy's checks take longer than these sums."""
    largest = np.max(f, axis=1, keepdims=True)
    powers = np.exp(f - largest)
    total = np.sum(powers, axis=1, keepdims=True)
    return (largest + np.log(total))[:, 0], powers / total


def _check_signs(y: FloatArray, name: str) -> FloatArray:
    labels = np.unique(y)
    if not np.isin(labels, (-1.0, 1.0)).all():
        raise InputError(
            f"y holds {labels[:4].tolist()}{'...' if len(labels) > 4 else ''}, but the {name} loss needs labels -1 and +1: "
            "map the two classes to them, or use ConvexBNClassifier, which does"
        )
    return y


@dataclass(frozen=True)
class Logistic:
    """l(f, y) = log(1 + exp(-y f)), y in {-1, +1}; conjugate t log t + (1 - t) log(1 - t) with t = -v y in [0, 1]."""

    name = "logistic"
    smoothness = 0.25

    def check(self, y: FloatArray) -> FloatArray:
        """Labels -1 and +1."""
        return _check_signs(y, self.name)

    def value(self, f: FloatArray, y: FloatArray) -> float:
        """The sum over samples."""
        return float(np.sum(np.logaddexp(0.0, -y * f)))

    def gradient(self, f: FloatArray, y: FloatArray) -> FloatArray:
        """-y / (1 + exp(y f))."""
        return -y * _sigmoid(-y * f)

    def conjugate(self, v: FloatArray, y: FloatArray) -> float:
        """Minus the entropy of t = -v y, where 0 <= t <= 1."""
        t = -v * y
        if np.min(t, initial=0.0) < 0.0 or np.max(t, initial=0.0) > 1.0:
            return float("inf")
        from scipy.special import xlog1py, xlogy

        return float(np.sum(xlogy(t, t) + xlog1py(1.0 - t, -t)))

    def conjugate_gradient(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """y log((1 - t) / t), the log-odds, cut off at 1e-12 from the ends of the domain, where they are infinite."""
        t = np.clip(-v * y, 1e-12, 1.0 - 1e-12)
        return y * np.log((1.0 - t) / t)

    def project(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """Clip t = -v y to [0, 1]."""
        return -y * np.clip(-v * y, 0.0, 1.0)

    def prox(self, z: FloatArray, y: FloatArray, step: float) -> FloatArray:
        """y u with u = y z + t, where t > 0 solves log t + log(1 + exp(y z + t)) = log step.

        In q = log t the equation is convex and increasing, so Newton's method from t = step descends to the root, for steps of
        any size; in t itself it loses all digits for large ones.
        """
        start, target = y * z, np.log(step)
        q = np.full(np.shape(start), target)
        for _ in range(1000):
            t = np.exp(q)
            change = (q + np.logaddexp(0.0, start + t) - target) / (1.0 + _sigmoid(start + t) * t)
            q = q - change
            if np.all(np.abs(change) <= 1e-15 * (1.0 + abs(target) + np.abs(start))):
                break
        moved: FloatArray = y * (start + np.exp(q))
        return moved

    def scale(self, y: FloatArray) -> float:
        """Predictions are log-odds: 1."""
        return 1.0

    def rescaled(self, unit: float) -> Logistic:
        """The unit is 1."""
        return self


@dataclass(frozen=True)
class Hinge:
    """l(f, y) = max(0, 1 - y f), y in {-1, +1}; conjugate v y on -1 <= v y <= 0."""

    name = "hinge"
    smoothness = float("inf")

    def check(self, y: FloatArray) -> FloatArray:
        """Labels -1 and +1."""
        return _check_signs(y, self.name)

    def value(self, f: FloatArray, y: FloatArray) -> float:
        """The sum over samples."""
        return float(np.sum(np.maximum(0.0, 1.0 - y * f)))

    def gradient(self, f: FloatArray, y: FloatArray) -> FloatArray:
        """-y where y f < 1, else 0."""
        return np.where(y * f < 1.0, -y, 0.0)

    def conjugate(self, v: FloatArray, y: FloatArray) -> float:
        """<v, y> where -1 <= v y <= 0."""
        t = -v * y
        if np.min(t, initial=0.0) < 0.0 or np.max(t, initial=0.0) > 1.0:
            return float("inf")
        return -float(np.sum(t))

    def conjugate_gradient(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """The margin, f = y."""
        return y

    def project(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """Clip t = -v y to [0, 1]."""
        return -y * np.clip(-v * y, 0.0, 1.0)

    def prox(self, z: FloatArray, y: FloatArray, step: float) -> FloatArray:
        """A step towards the margin, at most of length step."""
        return z + y * np.clip(1.0 - y * z, 0.0, step)

    def scale(self, y: FloatArray) -> float:
        """Predictions are margins: 1."""
        return 1.0

    def rescaled(self, unit: float) -> Hinge:
        """The unit is 1."""
        return self


@dataclass(frozen=True)
class Softmax:
    """l(f, y) = log sum_c exp f_c - <y, f>, the cross-entropy of softmax(f) for y in the simplex, one-hot as a rule; (n, C) arrays.

    Its conjugate is sum_c p_c log p_c with p = v + y in the simplex, infinity elsewhere.
    """

    name = "softmax"
    smoothness = 0.5

    def check(self, y: FloatArray) -> FloatArray:
        """Rows of probabilities, shape (n, C) with C >= 2."""
        if y.ndim != 2:
            raise InputError(
                "y has one column, but the softmax loss needs one column for each class: "
                "pass np.eye(C)[labels], or use ConvexBNClassifier, which does"
            )
        if float(np.min(y)) < 0.0 or not np.allclose(y.sum(axis=1), 1.0, rtol=0.0, atol=1e-9):
            raise InputError(
                "y has rows that are no probabilities: for the softmax loss they must be at least 0 and sum to 1, "
                "pass np.eye(C)[labels] for one-hot rows"
            )
        rows: FloatArray = y / y.sum(axis=1, keepdims=True)
        return rows

    def value(self, f: FloatArray, y: FloatArray) -> float:
        """The sum over samples."""
        return float(np.sum(_log_sum(f)[0]) - np.sum(y * f))

    def gradient(self, f: FloatArray, y: FloatArray) -> FloatArray:
        """softmax(f) - y."""
        return _log_sum(f)[1] - y

    def conjugate(self, v: FloatArray, y: FloatArray) -> float:
        """Minus the entropy of p = v + y, where its rows are probabilities to within rounding."""
        from scipy.special import xlogy

        p = v + y
        if np.min(p) < -SIMPLEX_ROUNDING or np.max(np.abs(p.sum(axis=1) - 1.0)) > SIMPLEX_ROUNDING * p.shape[1]:
            return float("inf")
        p = np.maximum(p, 0.0)
        return float(np.sum(xlogy(p, p)))

    def conjugate_gradient(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """log p, cut off at p = 1e-12."""
        return np.log(np.maximum(v + y, 1e-12))

    def project(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """The rows of v + y projected on the simplex, less y."""
        p = v + y
        p = p - np.max(p, axis=1, keepdims=True)  # which the projection doesn't notice, but huge entries would lose the 1
        falling = -np.sort(-p, axis=1)
        excess = (np.cumsum(falling, axis=1) - 1.0) / np.arange(1, p.shape[1] + 1)
        last = np.sum(falling > excess, axis=1) - 1
        projected = np.maximum(p - excess[np.arange(len(p)), last][:, None], 0.0)
        nearest: FloatArray = projected / projected.sum(axis=1, keepdims=True) - y
        return nearest

    def prox(self, z: FloatArray, y: FloatArray, step: float) -> FloatArray:
        """f = z + step (y - p), p = softmax(f), by Newton's method with halved steps on the strongly convex objective.

        The Hessian I / step + diag(p) - p p^T is inverted by the formula of Sherman and Morrison.
        """
        centre = z + step * y

        def objective(f: FloatArray) -> FloatArray:
            values: FloatArray = _log_sum(f)[0] + np.sum((f - centre) ** 2, axis=1) / (2.0 * step)
            return values

        f = centre - step * _log_sum(z)[1]
        value = objective(f)
        for _ in range(200):
            p = _log_sum(f)[1]
            slope = p + (f - centre) / step
            diagonal = 1.0 / (p + 1.0 / step)
            inverse = diagonal * slope
            share = diagonal * p
            full = inverse + share * (np.sum(p * inverse, axis=1) / (1.0 - np.sum(p * share, axis=1)))[:, None]
            length = np.ones(len(f))
            trial = f - full
            for _ in range(40):
                worse = objective(trial) > value + 1e-15 * np.abs(value)
                if not worse.any():
                    break
                length = np.where(worse, 0.5 * length, length)
                trial = f - length[:, None] * full
            f, value = trial, objective(trial)
            if np.max(np.abs(full)) <= 1e-14 * (1.0 + np.max(np.abs(f))):
                break
        return f

    def scale(self, y: FloatArray) -> float:
        """Predictions are log-odds: 1."""
        return 1.0

    def rescaled(self, unit: float) -> Softmax:
        """The unit is 1."""
        return self
