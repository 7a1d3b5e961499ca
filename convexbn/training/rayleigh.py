"""Least squares with batch normalisation as a Rayleigh quotient, and the descent on it that has a linear rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convexbn.validation import FloatArray, InputError, check_count, check_data, check_targets, real_array

# Eigenvalues below this fraction of the largest, times d, are rounding: float64 can't tell them from 0.
ROUNDING = 10.0 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class RayleighQuotient:
    """rho(w) = -(u^T w)^2 / (w^T S w): what is left of least squares when the length of the weights is optimal.

    With x of mean 0, S = E[x x^T], u = E[-y x] and the normalised weights g w / ||w||_S, ||w||_S = sqrt(w^T S w),

        min over g of E[(y - g x^T w / ||w||_S)^2]  =  E[y^2] + rho(w),

    least at w proportional to S^{-1} u, where rho* = -u^T S^{-1} u. Where S is singular, everything lives in its range:
    S^{-1} is the pseudo-inverse, mu the smallest positive eigenvalue. Made by `rayleigh_quotient` or `least_squares`.

    Attributes
    ----------
    covariance : (d, d) S, in (unit of x)^2
    mean : (d,) u, in the range of S, in (unit of x) (unit of y)
    eigenvalues : (r,) the positive ones of S, ascending: mu first, L last
    eigenvectors : (d, r) orthonormal columns

    Source: Kohler et al. 2019, section 3; the formulas are derived anew.
    """

    covariance: FloatArray
    mean: FloatArray
    eigenvalues: FloatArray
    eigenvectors: FloatArray

    @property
    def largest(self) -> float:
        """L, the largest eigenvalue of S."""
        return float(self.eigenvalues[-1])

    @property
    def condition(self) -> float:
        """L / mu, the effective condition number: of S on its range."""
        return self.largest / float(self.eigenvalues[0])

    @property
    def minimiser(self) -> FloatArray:
        """S^{-1} u, shape (d,): the direction of every best w."""
        return self.eigenvectors @ ((self.eigenvectors.T @ self.mean) / self.eigenvalues)

    @property
    def optimum(self) -> float:
        """rho* = -u^T S^{-1} u, in (unit of y)^2."""
        return -self.dual_square(self.mean)

    def norm(self, w: FloatArray) -> float:
        """||w||_S = sqrt(w^T S w), without the cancellation of a product with S."""
        return float(np.linalg.norm(np.sqrt(self.eigenvalues) * (self.eigenvectors.T @ w)))

    def dual_square(self, gradient: FloatArray) -> float:
        """v^T S^{-1} v of a gradient v (d,) in the range of S."""
        return float(np.sum((self.eigenvectors.T @ gradient) ** 2 / self.eigenvalues))

    def normalised(self, w: FloatArray) -> FloatArray:
        """The part of w (d,) in the range of S, scaled to ||w||_S = 1.

        Raises
        ------
        InputError
            Where w lies in the null space of S, which x never leaves 0 on.
        """
        inside = self.eigenvectors @ (self.eigenvectors.T @ w)
        length = self.norm(inside)
        if not length > 0.0:
            raise InputError("w has ||w||_S = 0, as x^T w is 0 for every sample: take another direction")
        unit: FloatArray = inside / length
        return unit

    def value(self, w: FloatArray) -> float:
        """rho(w)."""
        return -(float((self.mean @ w) / self.norm(w)) ** 2)

    def gap(self, w: FloatArray) -> float:
        """rho(w) - rho*, as the square of the S-norm of what S^{-1} u has outside of span(w): it stays exact far below 1e-16."""
        unit = w / self.norm(w)
        return self.norm(self.minimiser - float(self.mean @ unit) * unit) ** 2

    def gradient(self, w: FloatArray) -> FloatArray:
        """-(2 / w^T S w) ( (u^T w) u + rho(w) S w ), shape (d,); orthogonal to w, as the scale of w has no effect."""
        step: FloatArray = (float(self.mean @ w) * self.mean + self.value(w) * (self.covariance @ w)) * (-2.0 / self.norm(w) ** 2)
        return step

    def step(self, w: FloatArray) -> FloatArray:
        """w - eta grad rho(w) with eta = w^T S w / (2 L |rho(w)|), which is w - (S w - kappa u) / L with kappa = w^T S w / (u^T w).

        Raises
        ------
        InputError
            For w with u^T w = 0, where rho is largest and its gradient vanishes.
        """
        along = float(self.mean @ w)
        if along == 0.0:
            raise InputError("w has u^T w = 0, the maximum of rho, which descent can't leave: take another direction")
        moved: FloatArray = w - self.norm(w) ** 2 / (2.0 * self.largest * abs(self.value(w))) * self.gradient(w)
        return moved

    def bound(self, gap: float, steps: int) -> FloatArray:
        """(1 - mu/L)^{2t} gap for t = 0, ..., steps, shape (steps + 1,): what rho(w_t) - rho* can't pass from a start with this gap."""
        bounds: FloatArray = gap * np.power(1.0 - 1.0 / self.condition, 2.0 * np.arange(steps + 1, dtype=np.float64))
        return bounds


def rayleigh_quotient(covariance: npt.ArrayLike, mean: npt.ArrayLike) -> RayleighQuotient:
    """The quotient rho(w) = -(u^T w)^2 / (w^T S w) of S (d, d) and u (d,).

    Raises
    ------
    InputError
        For S that is not symmetric and positive semidefinite, and for u outside of its range, where rho has no minimum.
    """
    S, u = real_array(covariance, "covariance"), real_array(mean, "mean")
    if S.ndim != 2 or S.shape != (len(S), len(S)) or not len(S) or u.shape != (len(S),):
        raise InputError(f"covariance has shape {S.shape} and mean {u.shape}: pass (d, d) and (d,)")
    size = float(np.max(np.abs(S)))
    if size == 0.0 or float(np.max(np.abs(S - S.T))) > 1e-10 * size:
        raise InputError("covariance is zero or not symmetric: pass E[x x^T]")
    quotient = _decomposed(0.5 * (S + S.T), u)
    if float(np.linalg.norm(u - quotient.mean)) > 1e-6 * float(np.linalg.norm(u)):
        raise InputError("mean lies outside of the range of covariance, so rho has no minimum: take both from the same data")
    return quotient


def _decomposed(S: FloatArray, u: FloatArray) -> RayleighQuotient:
    """The quotient of a symmetric S, with the part of u in its range: what moments of the same data have outside of it is rounding."""
    values, vectors = np.linalg.eigh(S)
    rounding = ROUNDING * len(S) * float(values[-1])
    if values[0] < -rounding or not values[-1] > 0.0:
        raise InputError(f"covariance has the eigenvalue {values[0]:.1e}: pass a positive semidefinite matrix other than 0")
    basis = vectors[:, values > rounding]
    return RayleighQuotient(S, basis @ (basis.T @ u), values[values > rounding], basis)


def second_moments(rows: FloatArray) -> RayleighQuotient:
    """The quotient of u = mean of the rows z (n, d) and S = mean of z z^T."""
    return _decomposed(rows.T @ rows / len(rows), rows.mean(axis=0))


def least_squares(X: npt.ArrayLike, y: npt.ArrayLike) -> RayleighQuotient:
    """The quotient of least squares on data: S = (Pi X)^T (Pi X) / n and u = -(Pi X)^T y / n, Pi X the centred X.

    mean((y - mean(y))^2) + rho(w) is the least mean squared residual of a neuron with batch normalisation and an output bias.

    Parameters
    ----------
    X : (n, d) data
    y : (n,) targets

    Raises
    ------
    InputError
        For unusable arguments, and for X that is constant.
    """
    data = check_data(X)
    targets = check_targets(y, len(data))
    centred = data - data.mean(axis=0)
    return _decomposed(centred.T @ centred / len(data), -(centred.T @ targets) / len(data))


def rayleigh_descent(quotient: RayleighQuotient, start: npt.ArrayLike, steps: int) -> FloatArray:
    """Descend on rho by w <- w - eta grad rho(w), eta = w^T S w / (2 L |rho(w)|), with the linear rate

        rho(w_t) - rho*  <=  (1 - mu/L)^{2t} ( rho(w_0) - rho* ),

    mu and L the extreme positive eigenvalues of S. rho is not convex, and the rate is that of gradient descent on the convex
    least squares.

    Parameters
    ----------
    quotient : rho
    start : (d,) with u^T w_0 != 0
    steps : T

    Returns
    -------
    The iterates, shape (T + 1, d), each scaled to ||w||_S = 1, which changes nothing.

    Raises
    ------
    InputError
        For a start of another shape or with u^T w_0 = 0.

    Source: Kohler et al. 2019, theorem 1. Proof: w_+ - kappa v = (I - S/L)(w - kappa v) with v = S^{-1} u, and w - kappa v is
    S-orthogonal to w.
    """
    w = quotient.normalised(check_direction(quotient, start))
    iterates = [w]
    for _ in range(check_count(steps, "steps", 0)):
        w = quotient.normalised(quotient.step(w))
        iterates.append(w)
    return np.array(iterates)


def check_direction(quotient: RayleighQuotient, start: npt.ArrayLike) -> FloatArray:
    """`start` as a vector (d,) with u^T start != 0, or an `InputError`."""
    w = real_array(start, "start")
    if w.shape != quotient.mean.shape:
        raise InputError(f"start has shape {w.shape}, not {quotient.mean.shape}: pass one weight for each feature")
    if float(quotient.mean @ w) == 0.0:
        raise InputError("start has u^T w = 0, the maximum of rho, which descent can't leave: take another direction")
    return w
