"""A proof over all arrangements for many samples: the whole training problem, relaxed to neurons with a vector for each pre-activation."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from convexbn.losses import Loss, of_unit_size
from convexbn.patches import NO_POOLING, Pooling
from convexbn.pricing.cells import trivial_bound
from convexbn.pricing.moments import SIGNS, unit_neurons
from convexbn.pricing.nonnegative import mass_near
from convexbn.pricing.products import Products
from convexbn.pricing.relaxation import STEPS_OF_LARGE, Relaxation, stop_at
from convexbn.threads import side_by_side
from convexbn.validation import FloatArray

COLUMNS = 20  # of a factor: on 50,000 samples and 200 features prices end at 1.027 beta with 10, at 1.016 with 16
WIDTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # of the kinks, in the unit mass ||u_i|| / sqrt(r+1), the root mean square of t_i
STEPS = 150  # of descent between two looks at the bound
EVALUATIONS = 1.2  # of the objective in a step
OFFSET, DEAD = 0.1, 1e-3  # of the mass, at random, so that no neuron begins at 0, a saddle; and so little that it is begun again
POLISH = (0.003, 0.001)  # temperatures of the last descent, on all multipliers
FLAT = 1e6  # steps of a proximal map from which it ends where a loss is least


class _Neuron(NamedTuple):
    """A relaxed neuron: its pre-activations T = U's (n, k), their sizes q_i = ||T_i||^2, its length ||s||, mean and rounded kinks.

    mean m_i = ||s|| T_i1; root, straight and apart are sqrt(x^2 + width_i^2) for x = ||s|| ||T_i||, m_i and q_i / h_i - straight_i.
    """

    t: FloatArray
    length: float
    square: FloatArray
    mean: FloatArray
    root: FloatArray
    straight: FloatArray
    apart: FloatArray
    share: FloatArray

    @property
    def upper(self) -> FloatArray:
        """The most that E (t_i)_+ can be, (n,)."""
        return 0.5 * (self.mean + self.root)


class FactoredTraining:
    """The training problem with one output relaxed to second moments of its neurons: dual points, with proofs of their bounds.

    A network is two measures on the unit sphere, of the neurons with positive and with negative output. Of each the relaxation of
    `Relaxation` keeps the mass mu, m = E s and S = E s s^T, tr S = mu, and lets each sample choose, with h_i = ||u_i||,

        max(u_i^T S u_i / h_i, |u_i^T m|)  <=  E |t_i|  <=  sqrt(mu u_i^T S u_i).

    With [[mu, m^T], [m, S]] = B B^T (Burer and Monteiro 2003), turned so that the first row of B is (sqrt(mu), 0, ..., 0), the rest
    of B is a matrix s with ||s||^2 = mu and no constraint is left: a neuron whose pre-activations T = U's are vectors, with

        (m_i + max(||T_i||^2 / h_i, |m_i|)) / 2  <=  E (t_i)_+  <=  (m_i + ||s|| ||T_i||) / 2,        m_i = ||s|| T_i1.

    f_i = E_+ (t_i)_+ - E_- (t_i)_+ is what suits the loss best in its interval, and the penalty is beta (||s_+||^2 + ||s_-||^2). With
    kinks rounded, at falling widths, that is descent in 2 (r+1) k numbers, whose gradient takes four products with U' and no
    eigen-decomposition: at 50,000 samples and 200 features a tenth of what descent on V and multipliers takes, and it ends nearer
    to the optimum. It is not convex for k columns, but nothing rests on that: slopes of the rounded kinks are multipliers,
    v_i = minus the gradient of the loss the dual point, and `Relaxation.value` makes a proof of them, in float64.

    Parameters
    ----------
    basis : (n, r+1) U', or (n K, r+1) with K patches
    y, loss, beta, pooling : the program's, y of shape (n,); a loss without kinks
    directions, outputs : (m, r+1) and (m,) the neurons of a good network; none will do
    device : where products with U' run: "cpu", by numpy, or what PyTorch knows
    """

    def __init__(
        self,
        basis: FloatArray,
        y: FloatArray,
        loss: Loss,
        beta: float,
        directions: FloatArray,
        outputs: FloatArray,
        *,
        pooling: Pooling = NO_POOLING,
        device: str = "cpu",
    ) -> None:
        self.y, self.loss, self.beta, self.unit = of_unit_size(y, loss, beta)
        self.pooling, self.relaxation, self.products = pooling, Relaxation(basis), Products(basis, device)
        self.height = self.relaxation.height
        s, w = unit_neurons(directions, outputs / self.unit)
        self.mass = mass_near(float(np.sum(np.abs(w))), self.y, self.loss, self.beta)
        self.stage = 0
        self.factors = np.stack([_factor(s, np.maximum(sign * w, 0.0)) + noise for sign, noise in zip(SIGNS, self._noise(), strict=True)])
        self.width = self._width()
        self.entries = basis.size

    def advance(self, deadline: float) -> None:
        """Descent at the next width, until `time.perf_counter` reaches the deadline, or shorter to leave time for the widths to come."""
        from scipy.optimize import minimize

        self.width = self._width()
        self.stage += 1
        dead = np.sum(self.factors**2, axis=(1, 2)) < DEAD * self.mass
        self.factors = self.factors + np.where(dead[:, None, None], self._noise(), 0.0)
        unit = self.loss.value(np.zeros_like(self.y), self.y) or 1.0
        with side_by_side(self.entries) as mapped:

            def objective(point: FloatArray) -> tuple[float, FloatArray]:
                value, slope = self.objective(point.reshape(self.factors.shape), mapped)
                return value / unit, slope.ravel() / unit

            start, begun = self.factors.ravel(), time.perf_counter()
            objective(start)
            every = (1 + max(0, len(WIDTHS) - self.stage)) * EVALUATIONS * (time.perf_counter() - begun)  # a step at each width
            steps = int(np.clip((deadline - begun) / max(every, 1e-9), 1, STEPS))
            options: Any = {"maxiter": steps, "maxfun": 2 * steps, "maxcor": 20, "ftol": 1e-10, "gtol": 1e-13}
            found = minimize(objective, start, method="L-BFGS-B", jac=True, options=options, callback=stop_at(deadline))
        self.factors = np.asarray(found.x).reshape(self.factors.shape)

    def _width(self) -> FloatArray:
        return np.asarray(self.mass * WIDTHS[min(self.stage, len(WIDTHS) - 1)] / np.sqrt(len(self.factors[0])) * self.height)

    def _noise(self) -> FloatArray:
        noise = np.random.default_rng(self.stage).standard_normal((2, self.products.basis.shape[1], COLUMNS))
        return np.asarray(noise * np.sqrt(OFFSET * self.mass / noise[0].size))

    def objective(self, factors: FloatArray, mapped: Callable[..., Any] = map) -> tuple[float, FloatArray]:
        """The relaxed objective at factors (2, r+1, k), with kinks rounded, and its gradient."""
        neurons = list(mapped(self._neuron, factors))
        outputs, v = self._outputs(neurons)
        rows = self.pooling.spread(v)
        # Raising E (t_i)_+ by one lowers the loss by v_i in a positive neuron: the upper end counts where v_i > 0, else the lower.
        slopes = list(mapped(self._slope, factors, neurons, (-sign * rows for sign in SIGNS)))
        value = self.loss.value(outputs, self.y) + self.beta * float(np.sum(factors**2))
        return value, np.stack(slopes) + 2.0 * self.beta * factors

    def _neuron(self, s: FloatArray) -> _Neuron:
        t, length = self.products.images(s), float(np.linalg.norm(s))
        square, mean, spread = np.einsum("ik,ik->i", t, t), length * t[:, 0], self.width**2
        straight = np.sqrt(mean**2 + spread)
        ahead = square / self.height - straight
        apart = np.sqrt(ahead**2 + spread)
        return _Neuron(t, length, square, mean, np.sqrt(length**2 * square + spread), straight, apart, 0.5 * (1.0 + ahead / apart))

    def _lower(self, neuron: _Neuron) -> FloatArray:
        """The least that E (t_i)_+ can be, (n,)."""
        return 0.5 * (neuron.mean + 0.5 * (neuron.square / self.height + neuron.straight + neuron.apart))

    def _outputs(self, neurons: list[_Neuron]) -> tuple[FloatArray, FloatArray]:
        """The f_i in their intervals where the loss is least, and V."""
        positive, negative = neurons
        high = self.pooling.pool(positive.upper - self._lower(negative))
        low = self.pooling.pool(self._lower(positive) - negative.upper)
        pull, push = self.loss.gradient(high, self.y), self.loss.gradient(low, self.y)
        inside = (pull >= 0) & (push <= 0)
        outputs = np.where(pull < 0, high, low)
        outputs[inside] = np.clip(self.loss.prox(outputs[inside], self.y[inside], FLAT), low[inside], high[inside])
        return outputs, np.where(inside, 0.0, np.where(pull < 0, -pull, -push))

    def _slope(self, s: FloatArray, neuron: _Neuron, by_feature: FloatArray) -> FloatArray:
        """The gradient in s, (r+1, k), for derivatives (n,) in E (t_i)_+: those below 0 act on its upper end, the others on its lower."""
        upper, lower = np.minimum(by_feature, 0.0), np.maximum(by_feature, 0.0)
        by_mean = 0.5 * (upper + lower + lower * (1.0 - neuron.share) * neuron.mean / neuron.straight)
        by_root = 0.5 * upper / neuron.root
        by_square = 0.5 * by_root * neuron.length**2 + 0.5 * lower * neuron.share / self.height
        by_t = 2.0 * by_square[:, None] * neuron.t
        by_t[:, 0] += by_mean * neuron.length
        by_length = float(by_mean @ neuron.t[:, 0]) + neuron.length * float(by_root @ neuron.square)
        return self.products.adjoint(by_t) + by_length / max(neuron.length, 1e-300) * s

    @property
    def dual(self) -> FloatArray:
        """The dual point V, of the shape of y: minus the gradient of the loss at f."""
        return np.asarray(self.unit * self._outputs([self._neuron(s) for s in self.factors])[1])

    def price(self, v: FloatArray) -> float:
        """A proved upper bound on h(v), v (n,) best `dual`, by the present multipliers."""
        return self._larger(v, ())

    def polished(self, v: FloatArray, deadline: float) -> float:
        """The same after descent on all multipliers, each of both signs until `time.perf_counter` reaches the deadline."""
        return self._larger(v, POLISH, deadline)

    def _larger(self, v: FloatArray, temperatures: tuple[float, ...], deadline: float = np.inf) -> float:
        rows = self.pooling.spread(v / self.unit)
        with side_by_side(self.entries) as mapped:
            side = partial(self._side, temperatures=temperatures, deadline=deadline)
            return self.unit * float(max(mapped(side, SIGNS[:, None] * rows, map(self._neuron, self.factors))))

    def _side(self, v: FloatArray, neuron: _Neuron, temperatures: tuple[float, ...], deadline: float) -> float:
        """The bound for one sign, never above ||(v)_+||: slopes of the rounded kinks are the multipliers a, k and c of `Relaxation`."""
        limits = self.relaxation.limits
        a = np.log(np.maximum(neuron.root / max(neuron.length**2, 1e-300), 1e-300))
        x = np.concatenate([a, neuron.share, neuron.mean / neuron.straight, [0.0]])
        x = self.relaxation.shifted(v, np.clip(x, limits.lb, limits.ub))
        best = min(self.relaxation.value(v, x), trivial_bound(v))
        for temperature in temperatures:
            if time.perf_counter() < deadline:
                x = self.relaxation.descend(v, x, temperature, self.beta, STEPS_OF_LARGE, deadline)
                best = min(best, self.relaxation.value(v, x))
        return best


def _factor(directions: FloatArray, masses: FloatArray) -> FloatArray:
    """s (r+1, k) of neurons with those unit directions and masses, as far as k columns go.

    B has the columns sqrt(mass_j) (1, s_j); a reflection takes its first row to the first axis.
    """
    factor = np.zeros((directions.shape[1], COLUMNS))
    roots = np.sqrt(masses[masses > 0])
    if len(roots):
        normal = roots / np.linalg.norm(roots) - np.eye(1, len(roots))[0]
        turned = directions[masses > 0].T * roots
        turned -= 2.0 * np.outer(turned @ normal, normal) / max(float(normal @ normal), 1e-300)
        columns, sizes, _ = np.linalg.svd(turned[:, 1:], full_matrices=False)
        kept = np.concatenate([turned[:, :1], columns * sizes], axis=1)[:, :COLUMNS]
        factor[:, : kept.shape[1]] = kept
    return factor
