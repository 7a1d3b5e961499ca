"""A proof over all arrangements for many samples: the whole training problem, relaxed to neurons with a vector for each pre-activation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from convexbn.losses import Loss, of_unit_size
from convexbn.patches import NO_POOLING, Pooling
from convexbn.pricing.cells import trivial_bound
from convexbn.pricing.moments import SIGNS, unit_neurons
from convexbn.pricing.nonnegative import mass_near
from convexbn.pricing.products import Products
from convexbn.pricing.relaxation import Relaxation, stop_at
from convexbn.threads import side_by_side
from convexbn.validation import AnyFloats, FloatArray

WIDTHS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # of the kinks, in the unit mass ||u_i|| / sqrt(r+1), the root mean square of t_i
COLUMNS = (20, 40, 60, 80, 100)  # of a factor at each width: on 50,000 samples and 200 features 24 end at 1.15 beta, 40 at 1.08
STEPS = 60  # of descent between two looks at the bound
EVALUATIONS = 1.2  # of the objective in a step
OFFSET, DEAD = 0.1, 1e-3  # of the mass, at random, so that no neuron begins at 0, a saddle; and so little that it is begun again
GROWTH = 0.01  # of a neuron's own mass, at random, in its new columns
FLAT = 1e6  # steps of a proximal map from which it ends where a loss is least


class _Neuron(NamedTuple):
    """A relaxed neuron: its pre-activations T = U's (n, k), their sizes q_i = ||T_i||^2, its length ||s||, mean and rounded kinks.

    mean m_i = ||s|| T_i1; turned T s^T s; root, straight, bent and apart are sqrt(x^2 + width_i^2) for x = ||s|| ||T_i||, m_i,
    ||s T_i|| and bent_i - straight_i.
    """

    t: AnyFloats
    turned: AnyFloats
    length: float
    square: FloatArray
    mean: FloatArray
    root: FloatArray
    straight: FloatArray
    bent: FloatArray
    apart: FloatArray
    share: FloatArray

    @property
    def upper(self) -> FloatArray:
        """The most that E (t_i)_+ can be, (n,)."""
        return 0.5 * (self.mean + self.root)


class FactoredTraining:
    """The training problem with one output relaxed to second moments of its neurons: dual points, with proofs of their bounds.

    A network is two measures on the unit sphere, of the neurons with positive and with negative output. Of each the relaxation of
    `Relaxation` keeps the mass mu, m = E s and S = E s s^T, tr S = mu, and lets each sample choose

        max(||S u_i||, |u_i^T m|)  <=  E |t_i|  <=  sqrt(mu u_i^T S u_i).

    With [[mu, m^T], [m, S]] = B B^T (Burer and Monteiro 2003), turned so that the first row of B is (sqrt(mu), 0, ..., 0), the rest
    of B is a matrix s with ||s||^2 = mu and no constraint is left: a neuron whose pre-activations T = U's are vectors, with

        (m_i + max(||s T_i||, |m_i|)) / 2  <=  E (t_i)_+  <=  (m_i + ||s|| ||T_i||) / 2,        m_i = ||s|| T_i1.

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
        self.factors = np.stack([_factor(s, np.maximum(sign * w, 0.0), self._columns()) for sign in SIGNS])
        self.factors += self._noise(self.factors.shape, OFFSET * self.mass)
        self.width = self._width()
        self.entries = basis.size

    def advance(self, deadline: float) -> None:
        """Descent at the next width, until `time.perf_counter` reaches the deadline, or shorter to leave time for the widths to come."""
        from scipy.optimize import minimize

        self.width = self._width()
        self.stage += 1
        self._widen()
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

    def _columns(self) -> int:
        return min(int(self.products.basis.shape[1]) + 1, COLUMNS[min(self.stage, len(COLUMNS) - 1)])

    def _widen(self) -> None:
        """More columns, a little off zero, where descent would not move; and a neuron that has died begins again."""
        masses = np.sum(self.factors**2, axis=(1, 2), keepdims=True)
        more = self._columns() - self.factors.shape[2]
        alive = self.factors + np.where(masses < DEAD * self.mass, self._noise(self.factors.shape, OFFSET * self.mass), 0.0)
        self.factors = np.concatenate([alive, self._noise((*masses.shape[:1], alive.shape[1], more), GROWTH * masses)], axis=2)

    def _noise(self, shape: tuple[int, ...], mass: FloatArray | float) -> FloatArray:
        """Two factors of so much mass."""
        noise = np.random.default_rng(self.stage).standard_normal(shape)
        return np.asarray(noise * np.sqrt(mass / max(1, noise[0].size)))

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
        turned = t @ (s.T @ s).astype(t.dtype)
        square, turns = (np.einsum("ik,ik->i", other, t).astype(np.float64) for other in (t, turned))
        mean, spread = length * t[:, 0].astype(np.float64), self.width**2
        root, straight, bent = (np.sqrt(x + spread) for x in (length**2 * square, mean**2, np.maximum(turns, 0.0)))
        apart = np.sqrt((bent - straight) ** 2 + spread)
        share = 0.5 * (1.0 + (bent - straight) / apart)
        return _Neuron(t, turned, length, square, mean, root, straight, bent, apart, share)

    def _lower(self, neuron: _Neuron) -> FloatArray:
        """The least that E (t_i)_+ can be, (n,)."""
        return 0.5 * (neuron.mean + 0.5 * (neuron.bent + neuron.straight + neuron.apart))

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
        by_turns = 0.25 * lower * neuron.share / neuron.bent
        narrow, turning = ((factor.astype(neuron.t.dtype))[:, None] for factor in (by_root * neuron.length**2, 2.0 * by_turns))
        by_t = narrow * neuron.t + turning * neuron.turned
        by_t[:, 0] += (by_mean * neuron.length).astype(by_t.dtype)
        by_gram = neuron.t.T @ (turning * neuron.t)
        by_length = float(by_mean @ neuron.t[:, 0]) + neuron.length * float(by_root @ neuron.square)
        return self.products.adjoint(by_t) + s @ by_gram + by_length / max(neuron.length, 1e-300) * s

    @property
    def dual(self) -> FloatArray:
        """The dual point V, of the shape of y: minus the gradient of the loss at f."""
        return np.asarray(self.unit * self._outputs([self._neuron(s) for s in self.factors])[1])

    def price(self, v: FloatArray) -> float:
        """A proved upper bound on h(v), v (n,) best `dual`, by the present multipliers."""
        rows = self.pooling.spread(v / self.unit)
        with side_by_side(self.entries) as mapped:
            return self.unit * float(max(mapped(self._side, SIGNS[:, None] * rows, self.factors)))

    def _side(self, v: FloatArray, s: FloatArray) -> float:
        """The bound for one sign, never above ||(v)_+||: slopes of the rounded kinks are the multipliers a, g, k and c of `Relaxation`."""
        neuron = self._neuron(s)
        if neuron.length**2 < DEAD * self.mass:  # no multipliers are left of it
            uphill = self.relaxation.basis.T @ np.maximum(v, 0.0)
            return self.relaxation.bound(v, uphill / max(float(np.linalg.norm(uphill)), 1e-300), enough=self.beta)
        relaxation = replace(self.relaxation, toward=neuron.t @ s.T)
        limits = relaxation.limits
        a = np.log(np.maximum(neuron.root / max(neuron.length**2, 1e-300), 1e-300))
        x = np.concatenate([a, neuron.share, neuron.mean / neuron.straight, [0.0]])
        x = relaxation.shifted(v, np.clip(x, limits.lb, limits.ub))
        return min(relaxation.value(v, x), trivial_bound(v))


def _factor(directions: FloatArray, masses: FloatArray, count: int) -> FloatArray:
    """s (r+1, k), k = `count`, of neurons with those unit directions and masses, as far as k columns go.

    B has the columns sqrt(mass_j) (1, s_j); a reflection takes its first row to the first axis.
    """
    factor = np.zeros((directions.shape[1], count))
    roots = np.sqrt(masses[masses > 0])
    if len(roots):
        normal = roots / np.linalg.norm(roots) - np.eye(1, len(roots))[0]
        turned = directions[masses > 0].T * roots
        turned -= 2.0 * np.outer(turned @ normal, normal) / max(float(normal @ normal), 1e-300)
        columns, sizes, _ = np.linalg.svd(turned[:, 1:], full_matrices=False)
        kept = np.concatenate([turned[:, :1], columns * sizes], axis=1)[:, :count]
        factor[:, : kept.shape[1]] = kept
    return factor
