"""The losses: convex functions L(f, y) = sum_i l(f_i, y_i) of the predictions, with what duality needs of each.

A sum over samples, never a mean: `docs/conventions.md` gives the scaling beside PyTorch's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from convexbn.validation import FloatArray, InputError, check_positive


class Loss(Protocol):
    """A convex loss L(f, y) = sum_i l(f_i, y_i); predictions f and targets y are float64 arrays of one shape.

    Everything else in the package meets a loss through these members alone, so a new loss is one class here and one
    line in the conic solver (`docs/add-a-loss.md`).
    """

    @property
    def name(self) -> str:
        """The word by which `fit_convex_bn(loss=...)` finds it."""
        ...

    @property
    def smoothness(self) -> float:
        """Lipschitz constant of the gradient in f; infinity where the loss has a kink."""
        ...

    def check(self, y: FloatArray) -> FloatArray:
        """Return the targets, or raise `InputError` where the loss can't use them."""
        ...

    def value(self, f: FloatArray, y: FloatArray) -> float:
        """L(f, y)."""
        ...

    def gradient(self, f: FloatArray, y: FloatArray) -> FloatArray:
        """A (sub)gradient of L in f, of the shape of f."""
        ...

    def conjugate(self, v: FloatArray, y: FloatArray) -> float:
        """L*(v) = sup_f <v, f> - L(f, y); infinity outside its domain."""
        ...

    def conjugate_gradient(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """The gradient of L* at v in its domain: an f that attains the supremum."""
        ...

    def project(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """The point nearest to v in the domain of the conjugate."""
        ...

    def prox(self, z: FloatArray, y: FloatArray, step: float) -> FloatArray:
        """The minimiser over f of L(f, y) + ||f - z||^2 / (2 step)."""
        ...

    def scale(self, y: FloatArray) -> float:
        """A natural unit of the predictions: solvers work on y / scale, so that their tolerances mean the same for all."""
        ...

    def rescaled(self, unit: float) -> Loss:
        """The loss l' with unit^2 l'(f / unit, y / unit) = l(f, y), for the unit that `scale` gave."""
        ...


def _sigmoid(z: FloatArray) -> FloatArray:
    """1 / (1 + exp(-z)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def _check_signs(y: FloatArray, name: str) -> FloatArray:
    labels = np.unique(y)
    if not np.isin(labels, (-1.0, 1.0)).all():
        raise InputError(
            f"y holds {labels[:4].tolist()}{'...' if len(labels) > 4 else ''}, but the {name} loss needs labels -1 and +1: "
            "map the two classes to them, or use ConvexBNClassifier, which does"
        )
    return y


@dataclass(frozen=True)
class Squared:
    """l(f, y) = (f - y)^2 / 2, with conjugate v^2/2 + v y."""

    name = "squared"
    smoothness = 1.0

    def check(self, y: FloatArray) -> FloatArray:
        """Every finite y will do."""
        return y

    def value(self, f: FloatArray, y: FloatArray) -> float:
        """||f - y||^2 / 2."""
        return 0.5 * float(np.sum((f - y) ** 2))

    def gradient(self, f: FloatArray, y: FloatArray) -> FloatArray:
        """f - y."""
        return f - y

    def conjugate(self, v: FloatArray, y: FloatArray) -> float:
        """||v||^2 / 2 + <v, y>."""
        return float(np.sum(v * (0.5 * v + y)))

    def conjugate_gradient(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """V + y."""
        return v + y

    def project(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """The domain is everything."""
        return v

    def prox(self, z: FloatArray, y: FloatArray, step: float) -> FloatArray:
        """(z + step y) / (1 + step)."""
        return (z + step * y) / (1.0 + step)

    def scale(self, y: FloatArray) -> float:
        """||y||, or 1 for y = 0."""
        return float(np.linalg.norm(y)) or 1.0

    def rescaled(self, unit: float) -> Squared:
        """Homogeneous of degree 2: unchanged."""
        return self


@dataclass(frozen=True)
class Huber:
    """l(f, y) = r^2/2 for |r| <= delta, else delta |r| - delta^2/2, with r = f - y; conjugate v^2/2 + v y on |v| <= delta."""

    delta: float = 1.0
    name = "huber"
    smoothness = 1.0

    def __post_init__(self) -> None:
        check_positive(self.delta, "delta")

    def check(self, y: FloatArray) -> FloatArray:
        """Every finite y will do."""
        return y

    def value(self, f: FloatArray, y: FloatArray) -> float:
        """The sum over samples."""
        size = np.abs(f - y)
        small = np.minimum(size, self.delta)
        return float(np.sum(small * (size - 0.5 * small)))

    def gradient(self, f: FloatArray, y: FloatArray) -> FloatArray:
        """f - y, clipped to [-delta, delta]."""
        return np.clip(f - y, -self.delta, self.delta)

    def conjugate(self, v: FloatArray, y: FloatArray) -> float:
        """||v||^2 / 2 + <v, y> where |v| <= delta."""
        if np.max(np.abs(v), initial=0.0) > self.delta:
            return float("inf")
        return float(np.sum(v * (0.5 * v + y)))

    def conjugate_gradient(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """V + y, inside the domain."""
        return v + y

    def project(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """Clip to [-delta, delta]."""
        return np.clip(v, -self.delta, self.delta)

    def prox(self, z: FloatArray, y: FloatArray, step: float) -> FloatArray:
        """A step towards y, by step/(1 + step) of the way and at most step delta."""
        way = (y - z) * (step / (1.0 + step))
        return z + np.clip(way, -step * self.delta, step * self.delta)

    def scale(self, y: FloatArray) -> float:
        """||y||, or 1 for y = 0."""
        return float(np.linalg.norm(y)) or 1.0

    def rescaled(self, unit: float) -> Huber:
        """The same with delta / unit."""
        return Huber(self.delta / unit)


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


LOSSES: dict[str, Loss] = {loss.name: loss for loss in (Squared(), Logistic(), Hinge(), Huber())}


def get_loss(loss: str | Loss) -> Loss:
    """The loss of that name, or the loss itself.

    Raises
    ------
    InputError
        For a name that no loss has.
    """
    if not isinstance(loss, str):
        if isinstance(loss, type) or not hasattr(loss, "prox"):
            names = ", ".join(LOSSES)
            raise InputError(f"loss = {loss!r} is neither a name ({names}) nor a Loss: pass one of the names, or Huber(delta=0.5)")
        return loss
    if loss not in LOSSES:
        raise InputError(f"loss = {loss!r} is unknown: choose one of {', '.join(LOSSES)}, or pass a Loss such as Huber(delta=0.5)")
    return LOSSES[loss]
