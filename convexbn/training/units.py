"""GDNP for a network with one hidden layer over Gaussian data: one hidden unit after the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convexbn.training.gdnp import GDNPRun, train_gdnp
from convexbn.training.halfspaces import Activation, gaussian_halfspaces, get_activation, normal_quadrature
from convexbn.training.rayleigh import RayleighQuotient
from convexbn.validation import FloatArray, InputError, check_count, real_array

# The quadrature in each of two dimensions: the tail beyond 7.5 weighs 6e-14, and the spacing resolves tanh of lengths up to 16.
NODES, REACH = 201, 7.5


def _slope(tanh: FloatArray) -> FloatArray:
    """The derivative of tanh where it has this value."""
    return 1.0 - tanh**2


@dataclass(frozen=True)
class GaussianNetwork:
    """f(W) = E loss(F(z)), F(z) = sum_i theta_i tanh(z^T w_i), z = -y x ~ N(u, S - u u^T), the theta_i fixed.

    tanh is odd, so that -y F(x) = F(z). With t_i = z^T w_i the gradients are

        grad_i = alpha_i u + (S - u u^T) sum_j B_ij w_j,      alpha_i = theta_i E[loss'(F) tanh'(t_i)],
        B_ij = theta_i theta_j E[loss''(F) tanh'(t_i) tanh'(t_j)] + [i = j] theta_i E[loss'(F) tanh''(t_i)],

    so with an invertible B every w_i of a critical point is a multiple c_i S^{-1} u: Gaussian data make the first layer of rank
    one. Made by `gaussian_network`.

    Attributes
    ----------
    quotient : of S and u
    theta : (m,) output weights
    loss : of -y F; softplus for logistic regression

    Source: Kohler et al. 2019, section 5; the formulas are derived anew.
    """

    quotient: RayleighQuotient
    theta: FloatArray
    loss: Activation

    def value(self, weights: FloatArray) -> float:
        """f(W), weights (m, d) in one plane; see `gradients`."""
        hidden, probabilities = self._hidden(weights)
        return float(np.sum(probabilities * self.loss.value(np.tensordot(self.theta, hidden, 1))))

    def gradients(self, weights: FloatArray) -> FloatArray:
        """The gradients in the w_i, shape (m, d), by quadrature in two dimensions.

        Raises
        ------
        InputError
            For weights whose z^T w_i vary in more than two dimensions.
        """
        hidden, probabilities = self._hidden(weights)
        F = np.tensordot(self.theta, hidden, 1)
        slopes = self.theta[:, None, None] * _slope(hidden)
        first, second = probabilities * self.loss.slope(F), probabilities * self.loss.curvature(F)
        alpha = np.tensordot(slopes, first, 2)
        B = np.tensordot(slopes * second, slopes, ([1, 2], [1, 2])) + np.diag(np.tensordot(-2.0 * hidden * slopes, first, 2))
        S, u = self.quotient.covariance, self.quotient.mean
        mixed = B @ weights
        step: FloatArray = np.outer(alpha - mixed @ u, u) + mixed @ S
        return step

    def unit(self, index: int, positions: FloatArray) -> UnitRisk:
        """f as a function of one w_i, the others being c_j S^{-1} u with these positions c (m,)."""
        return UnitRisk(self, index, positions)

    def _hidden(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The tanh(t_i) on a grid, shape (m, k, k), and its probabilities (k, k)."""
        means = weights @ self.quotient.mean
        covariance = weights @ self.quotient.covariance @ weights.T - np.outer(means, means)
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = np.append(values, [0.0, 0.0])[::-1][2:], vectors[:, ::-1]
        if len(values) > 2 and values[2] > 1e-12 * max(values[0], 1e-300):
            raise InputError("weights span more than two dimensions, beyond the quadrature: put all but one of the units on S^{-1} u")
        loadings = (vectors * np.sqrt(np.maximum(values, 0.0)))[:, :2]
        nodes, p = normal_quadrature(NODES, REACH)
        first = loadings[:, 0]
        second = loadings[:, 1] if loadings.shape[1] > 1 else np.zeros_like(first)
        margins = means[:, None, None] + first[:, None, None] * nodes[:, None] + second[:, None, None] * nodes
        return np.tanh(margins), np.outer(p, p)


@dataclass(frozen=True)
class UnitRisk:
    """The risk of one hidden unit, the others on the line of S^{-1} u: a halfspace with another scalar c_1, so GDNP applies.

    With a = u^T w and b = u^T S^{-1} u, z^T w = (a/b) z^T S^{-1} u + z^T r with an r that u is orthogonal to; the two terms are
    independent, and the other units depend on the first alone.

    Attributes
    ----------
    network : the whole
    index : i of the unit
    positions : (m,) the c_j of the others; the i-th is not read
    """

    network: GaussianNetwork
    index: int
    positions: FloatArray

    @property
    def quotient(self) -> RayleighQuotient:
        """S and u."""
        return self.network.quotient

    def line(self, direction: FloatArray) -> UnitLine:
        """f along a direction (d,) with ||w||_S = 1."""
        along, strength = float(self.quotient.mean @ direction), -self.quotient.optimum
        nodes, probabilities = normal_quadrature(NODES, REACH)
        shared = strength + np.sqrt(max(0.0, strength * (1.0 - strength))) * nodes
        own = np.sqrt(max(0.0, 1.0 - along**2 / strength)) * nodes
        others = np.arange(len(self.positions)) != self.index
        theta, positions = self.network.theta[others], self.positions[others]
        hidden = np.tanh(np.outer(shared, positions))
        return UnitLine(
            margins=(along / strength) * shared[:, None] + own,
            probabilities=probabilities,
            rest=(hidden @ theta)[:, None],
            pull=(1.0 - strength) * (_slope(hidden) @ (theta * positions))[:, None],
            theta=float(self.network.theta[self.index]),
            along=along,
            loss=self.network.loss,
        )

    def gradient(self, weights: FloatArray) -> FloatArray:
        """c_1 u + B_ii S w, shape (d,)."""
        length = self.quotient.norm(weights)
        line = self.line(self.quotient.normalised(weights))
        step: FloatArray = line.factor(length) * self.quotient.mean + line.own(length) * (self.quotient.covariance @ weights)
        return step


@dataclass(frozen=True)
class UnitLine:
    """f along a direction w of one unit: expectations over a grid (k, k) of z^T S^{-1} u and of what z^T w has besides.

    Attributes
    ----------
    margins : (k, k) tau = z^T w
    probabilities : (k,) of either dimension
    rest : (k, 1) the sum of the other units' outputs
    pull : (k, 1) (1 - u^T S^{-1} u) sum_j theta_j c_j tanh'(t_j) over the other units
    theta : the unit's output weight
    along : u^T w
    loss : of the network
    """

    margins: FloatArray
    probabilities: FloatArray
    rest: FloatArray
    pull: FloatArray
    theta: float
    along: float
    loss: Activation

    def value(self, length: float) -> float:
        """E loss(F)."""
        return self._mean(self.loss.value(self._output(self._tanh(length))))

    def slope(self, length: float) -> float:
        """E loss'(F) theta tanh'(g tau) tau."""
        tanh = self._tanh(length)
        return self.theta * self._mean(self.loss.slope(self._output(tanh)) * _slope(tanh) * self.margins)

    def factor(self, length: float) -> float:
        """c_1 = alpha_i - B_ii u^T (g w) + sum_{j != i} B_ij c_j (1 - u^T S^{-1} u)."""
        tanh = self._tanh(length)
        F, slope = self._output(tanh), self.theta * _slope(tanh)
        return self._mean(self.loss.slope(F) * slope + self.loss.curvature(F) * slope * self.pull) - self.own(length) * length * self.along

    def own(self, length: float) -> float:
        """B_ii."""
        tanh = self._tanh(length)
        F, slope = self._output(tanh), self.theta * _slope(tanh)
        return self._mean(self.loss.curvature(F) * slope**2 - 2.0 * self.loss.slope(F) * tanh * slope)

    def _tanh(self, length: float) -> FloatArray:
        return np.tanh(length * self.margins)

    def _output(self, tanh: FloatArray) -> FloatArray:
        return self.rest + self.theta * tanh

    def _mean(self, grid: FloatArray) -> float:
        return float(self.probabilities @ grid @ self.probabilities)


@dataclass(frozen=True)
class UnitsRun:
    """A run of GDNP unit by unit.

    Attributes
    ----------
    positions : (m,) c_i: the units end as c_i S^{-1} u
    weights : (m, d) the normalised weights c_i S^{-1} u
    values : (sweeps m + 1,) the risk of all units at 0, and after each unit
    gradients : (m,) v^T S^{-1} v of each unit's gradient v at the end
    runs : for each sweep the run of each unit; later sweeps move lengths only
    """

    positions: FloatArray
    weights: FloatArray
    values: FloatArray
    gradients: FloatArray
    runs: tuple[tuple[GDNPRun, ...], ...]


def train_units(
    network: GaussianNetwork, *, steps: int = 100, sweeps: int = 1, halvings: int = 35, largest_length: float = 16.0, seed: int = 0
) -> UnitsRun:
    """Minimise f(W) from W = 0 by GDNP on one unit after the other, the others fixed.

    Each unit's direction converges to that of S^{-1} u with the rate (1 - mu/L)^{2t}, and is put there when its turn ends; how
    far it was, the run's `gaps` say. A unit's gradient doesn't stay 0 while later units move: take further sweeps, of one step
    in the lengths, for a joint critical point. The best length grows like 1 / theta; where it passes `largest_length`, beyond
    which the quadrature would not resolve tanh, the runs say so.

    Parameters
    ----------
    network : made by `gaussian_network`
    steps : of the direction of each unit, in the first sweep
    sweeps : over all units
    halvings, largest_length : of the search for a length, as in `train_gdnp`
    seed : of the units' starts

    Raises
    ------
    InputError
        For unusable arguments.

    Source: Kohler et al. 2019, algorithm 2 and theorem 3; the formulas are derived anew.
    """
    check_count(steps, "steps", 0)
    check_count(sweeps, "sweeps")
    target, units = network.quotient.minimiser, len(network.theta)
    generator = np.random.default_rng(check_count(seed, "seed", 0))
    starts = generator.standard_normal((units, len(target)))
    positions, values, sweeps_made = np.zeros(units), [network.value(np.zeros((units, len(target))))], []
    for sweep in range(sweeps):
        runs = []
        for i in range(units):
            start, count = (starts[i], steps) if sweep == 0 else (target, 0)
            run = train_gdnp(network.unit(i, positions), start=start, steps=count, halvings=halvings, largest_length=largest_length)
            positions = _placed(positions, i, network.quotient, run)
            values.append(network.value(np.outer(positions, target)))
            runs.append(run)
        sweeps_made.append(tuple(runs))
    weights = np.outer(positions, target)
    gradients = np.array([network.quotient.dual_square(v) for v in network.gradients(weights)])
    return UnitsRun(positions, weights, np.array(values), gradients, tuple(sweeps_made))


def _placed(positions: FloatArray, index: int, quotient: RayleighQuotient, run: GDNPRun) -> FloatArray:
    """The positions with that of the unit: its length along S^{-1} u."""
    sign = np.sign(quotient.mean @ run.direction)
    placed = positions.copy()
    placed[index] = sign * run.length / np.sqrt(-quotient.optimum)
    return placed


def gaussian_network(
    covariance: npt.ArrayLike, mean: npt.ArrayLike, theta: npt.ArrayLike, loss: str | Activation = "softplus"
) -> GaussianNetwork:
    """The network of output weights theta (m,) over z ~ N(u, S - u u^T), S (d, d) and u (d,) its second moments and mean.

    Raises
    ------
    InputError
        For S and u that `gaussian_halfspaces` refuses, u = 0, and theta that is no vector.
    """
    halfspaces = gaussian_halfspaces(covariance, mean, get_activation(loss))
    outputs = real_array(theta, "theta")
    if outputs.ndim != 1 or not len(outputs):
        raise InputError(f"theta has shape {outputs.shape}: pass one output weight for each hidden unit")
    if halfspaces.quotient.optimum == 0.0:
        raise InputError("mean is 0, so no direction is better than another: pass data that correlate with their labels")
    return GaussianNetwork(halfspaces.quotient, outputs, halfspaces.activation)
