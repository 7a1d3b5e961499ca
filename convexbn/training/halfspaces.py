"""Learning halfspaces: the risk of one neuron with batch normalisation, over Gaussian data or over a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from convexbn.training.rayleigh import RayleighQuotient, rayleigh_quotient, second_moments
from convexbn.validation import FloatArray, InputError, check_data, check_targets

# Nodes of the trapezoidal rule for a standard normal variable: its tail beyond 9 weighs 2e-19. The rule converges geometrically for
# analytic functions, where Gauss-Hermite of 200 nodes misses the steep sigmoids of long weights.
REACH = 9.0
NODES = 6001


@dataclass(frozen=True)
class Activation:
    """A function phi of a margin with its first two derivatives, elementwise; `smoothness` is the supremum of |phi''|."""

    name: str
    value: Callable[[FloatArray], FloatArray]
    slope: Callable[[FloatArray], FloatArray]
    curvature: Callable[[FloatArray], FloatArray]
    smoothness: float


def _sigmoid_slope(t: FloatArray) -> FloatArray:
    probability: FloatArray = expit(t) * expit(-t)
    return probability


ACTIVATIONS = {
    activation.name: activation
    for activation in (
        Activation("softplus", lambda t: np.logaddexp(0.0, t), expit, _sigmoid_slope, 0.25),
        Activation("squared", lambda t: (1.0 + t) ** 2, lambda t: 2.0 * (1.0 + t), lambda t: np.full_like(t, 2.0), 2.0),
        Activation("sigmoid", expit, _sigmoid_slope, lambda t: _sigmoid_slope(t) * (1.0 - 2.0 * expit(t)), 0.09623),
        Activation(
            "squared sigmoid",
            lambda t: expit(t) ** 2,
            lambda t: 2.0 * expit(t) * _sigmoid_slope(t),
            lambda t: 2.0 * expit(t) * _sigmoid_slope(t) * (2.0 - 3.0 * expit(t)),
            0.15407,
        ),
    )
}


def get_activation(activation: str | Activation) -> Activation:
    """The activation of that name, or the activation itself.

    Raises
    ------
    InputError
        For a name that is not in `ACTIVATIONS`.
    """
    if isinstance(activation, Activation):
        return activation
    if activation not in ACTIVATIONS:
        raise InputError(f"activation = {activation!r} is unknown: take one of {', '.join(ACTIVATIONS)}, or pass an Activation")
    return ACTIVATIONS[activation]


class Line(Protocol):
    """The risk of the weights g w along a direction with ||w||_S = 1, as a function of the length g."""

    def value(self, length: float) -> float:
        """f(g w)."""
        ...

    def slope(self, length: float) -> float:
        """The derivative of f(g w) in g."""
        ...

    def factor(self, length: float) -> float:
        """c_1: the component of the gradient of f along u, the remainder being along S w."""
        ...


class Risk(Protocol):
    """A function f of the weights (d,) whose gradient is c_1 u + c_2 S w, exactly or nearly."""

    @property
    def quotient(self) -> RayleighQuotient:
        """S and u."""
        ...

    def line(self, direction: FloatArray) -> Line:
        """f along a direction (d,) with ||w||_S = 1."""
        ...

    def gradient(self, weights: FloatArray) -> FloatArray:
        """The gradient at the weights g w, shape (d,)."""
        ...


@dataclass(frozen=True)
class MarginLine:
    """f(g w) = sum_k p_k phi(g tau_k) of the margins tau_k = z_k^T w.

    Attributes
    ----------
    margins : (k,) tau, without unit
    probabilities : (k,) p, of sum 1
    along : u^T w, the mean of tau
    activation : phi
    """

    margins: FloatArray
    probabilities: FloatArray
    along: float
    activation: Activation

    def value(self, length: float) -> float:
        """E phi(g tau)."""
        return float(self.probabilities @ self.activation.value(length * self.margins))

    def slope(self, length: float) -> float:
        """E tau phi'(g tau)."""
        return float(self.probabilities @ (self.margins * self.activation.slope(length * self.margins)))

    def curvature(self, length: float) -> float:
        """c_2 = E phi''(g tau)."""
        return float(self.probabilities @ self.activation.curvature(length * self.margins))

    def factor(self, length: float) -> float:
        """c_1 = E phi'(g tau) - g (u^T w) E phi''(g tau).

        The second term has the u^T of the normalised weights g w, length included: with the raw w in its place the direction
        would not follow the Rayleigh quotient.
        """
        return float(self.probabilities @ self.activation.slope(length * self.margins)) - length * self.along * self.curvature(length)


@dataclass(frozen=True)
class GaussianHalfspaces:
    """f(w) = E phi(z^T w) for z ~ N(u, S - u u^T), z = -y x: a halfspace learnt from infinitely many samples.

    z^T w is normal with mean u^T w and variance w^T S w - (u^T w)^2, so every expectation is a one-dimensional integral. By
    Stein's identity the gradient is c_1 u + c_2 S w, c_1 = E phi' - (u^T w) E phi'', c_2 = E phi''; so every critical point is a
    multiple of S^{-1} u, whatever phi is. Made by `gaussian_halfspaces`.

    Source: Kohler et al. 2019, section 4; the formulas are derived anew.
    """

    quotient: RayleighQuotient
    activation: Activation

    def line(self, direction: FloatArray) -> MarginLine:
        """f along a direction (d,) with ||w||_S = 1."""
        along = float(self.quotient.mean @ direction)
        nodes, weights = normal_quadrature(NODES)
        return MarginLine(along + np.sqrt(max(0.0, 1.0 - along**2)) * nodes, weights, along, self.activation)

    def gradient(self, weights: FloatArray) -> FloatArray:
        """c_1 u + c_2 S w, shape (d,)."""
        length = self.quotient.norm(weights)
        line = self.line(self.quotient.normalised(weights))
        step: FloatArray = line.factor(length) * self.quotient.mean + line.curvature(length) * (self.quotient.covariance @ weights)
        return step


@dataclass(frozen=True)
class EmpiricalHalfspaces:
    """f(w) = (1/n) sum_i phi(z_i^T w), z_i = -y_i (x_i - mean of x): a halfspace learnt from a sample.

    Softplus makes it logistic regression, squared least squares of the labels, sigmoid the smooth count of errors. Made by
    `empirical_halfspaces`.

    Attributes
    ----------
    quotient : of S = (1/n) sum_i z_i z_i^T and u = (1/n) sum_i z_i
    activation : phi
    rows : (n, d) the z_i, in the unit of x
    """

    quotient: RayleighQuotient
    activation: Activation
    rows: FloatArray

    def line(self, direction: FloatArray) -> MarginLine:
        """f along a direction (d,) with ||w||_S = 1."""
        count = len(self.rows)
        return MarginLine(self.rows @ direction, np.full(count, 1.0 / count), float(self.quotient.mean @ direction), self.activation)

    def gradient(self, weights: FloatArray) -> FloatArray:
        """(1/n) sum_i phi'(z_i^T w) z_i, shape (d,)."""
        step: FloatArray = self.rows.T @ self.activation.slope(self.rows @ weights) / len(self.rows)
        return step


def normal_quadrature(nodes: int, reach: float = REACH) -> tuple[FloatArray, FloatArray]:
    """Nodes (k,) and probabilities (k,) of the trapezoidal rule for a standard normal variable on [-reach, reach]."""
    points = np.linspace(-reach, reach, nodes)
    density = np.exp(-0.5 * points**2)
    return points, density / density.sum()


def gaussian_halfspaces(covariance: npt.ArrayLike, mean: npt.ArrayLike, activation: str | Activation = "softplus") -> GaussianHalfspaces:
    """The risk over z ~ N(u, S - u u^T) of the second moments S (d, d) and the mean u (d,).

    Raises
    ------
    InputError
        For S and u that are no moments of a random vector: u^T S^{-1} u > 1, or what `rayleigh_quotient` refuses.
    """
    quotient = rayleigh_quotient(covariance, mean)
    if -quotient.optimum > 1.0 + 1e-12:
        raise InputError(f"mean has u^T S^-1 u = {-quotient.optimum:.3g} > 1, but S - u u^T is a covariance: shorten it")
    return GaussianHalfspaces(quotient, get_activation(activation))


def empirical_halfspaces(X: npt.ArrayLike, y: npt.ArrayLike, activation: str | Activation = "softplus") -> EmpiricalHalfspaces:
    """The risk over a sample: data X (n, d), which are centred as batch normalisation does, and labels y (n,), -1 and +1.

    Raises
    ------
    InputError
        For unusable data, other labels, and data without any correlation with the labels.
    """
    data = check_data(X)
    labels = check_targets(y, len(data))
    if not np.all(np.abs(labels) == 1.0):
        raise InputError("y has values other than -1 and +1: encode the two classes so, for instance np.where(y == 1, 1.0, -1.0)")
    rows = -labels[:, None] * (data - data.mean(axis=0))
    return EmpiricalHalfspaces(second_moments(rows), get_activation(activation), rows)
