"""From candidates for the dual point to the best bound in the time given: every way to price, in the order of what wins most."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from convexbn.arrangements import Arrangements
from convexbn.dual import best_scale, dual_values
from convexbn.losses import Loss
from convexbn.network import Network, largest_worth
from convexbn.pricing import (
    BOX_COLUMNS,
    HULL_OUTPUTS,
    PRODUCT_SAMPLES,
    BoxSearch,
    FactoredTraining,
    JointTraining,
    MomentTraining,
    OnCPU,
    Price,
    RelaxedTraining,
    affordable,
    bound_by_tree,
    bound_over_outputs,
    fits_jointly,
    fits_moments,
    improve_dual,
    joint_size,
    known_price,
    moment_size,
    normalised,
    price_dual,
    price_everywhere,
    thorough_search,
    worths_of,
)
from convexbn.threads import LARGE
from convexbn.validation import FloatArray

# Branch and bound begins where the relaxation leaves a larger gap.
PROOF_GAP = 1e-3
HOPELESS_GAP = 0.1  # with many columns, for a better dual point
FAR_GAP = 0.1  # from the estimate, after half of the time that boxes have; from nearer by, the other half takes them further than moments
TREE_GAP = 0.01  # with many columns; beyond it products of samples win more than splitting the sphere
DUAL_STEPS = (100, 400)
HALVES = (2, 3)  # half the degree of moments
IDLE, PATIENCE = 0.02, 6  # a relaxed training ends after so many looks that cut the gap by less than that share
HASTY, CLOSE_GAP = 0.1, 0.02  # where a higher degree follows, at the first look that cuts it by less than the one, but from the other on
FEW_LOOKS = 2  # of a factored training, of which each is a descent
FINE = 0.2  # of the gap, for the price of several outputs when all else has been done
FIRST = 0.25  # of the time, or SHORT where that is more, at most, for the price of each candidate
# Seconds that it has anyway, so that a budget of 0 leaves the proof to the relaxation; no more with several outputs: other proofs win more.
SHORT = 1.0
STARTS, SEED = 2000, (1,)  # of the search that the estimate rests on, with one output


@dataclass(frozen=True)
class Bound:
    """The bound of one dual point v, with the scaled point and the price of v that scaled it."""

    proved: float
    v: FloatArray
    dual: FloatArray
    price: Price


class Training(Protocol):
    """The training problem in a relaxed form, with a dual point that gets better and the proof of its price."""

    @property
    def dual(self) -> FloatArray:
        """V, of the shape of y."""
        ...

    def advance(self, deadline: float) -> None:
        """Some iterations."""
        ...

    def price(self, v: FloatArray) -> float:
        """An upper bound on h(v)."""
        ...


class Judge:
    """Turns candidates for the dual point into bounds, and remembers the best bound and the best estimate on the way."""

    def __init__(
        self,
        basis: FloatArray,
        y: FloatArray,
        loss: Loss,
        beta: float,
        arrangements: Arrangements | None,
        network: Network,
        data: npt.ArrayLike,
        seconds: float,
        device: str = "cpu",
    ) -> None:
        self.deadline, self.device = time.perf_counter() + seconds, device
        self.factored = y.ndim == 1 and basis.size >= LARGE and np.isfinite(loss.smoothness)
        self.patience = max(SHORT, FIRST * seconds) if y.ndim == 1 and not self.factored else SHORT
        self.basis, self.y, self.loss, self.beta, self.arrangements = basis, y, loss, beta, arrangements
        self.network, self.pooling, self.activations = network, network.pooling, network.activations(data)
        self.neurons = basis.T @ network.hidden(data), network.outputs
        self.mass = network.balanced().penalty()
        self.best_estimate = -np.inf
        self.best: tuple[FloatArray, Price] | None = None
        self.found: Bound | None = None

    def prove(self, candidates: list[FloatArray], objective: float, *, interrupted: bool = False) -> tuple[Bound, bool]:
        """The best bound, and whether Ctrl-C ended the search for it or, where it is `interrupted`, came before; `best_estimate` beside it.

        Every bound holds whenever the search ends. Where there is none yet, it is that of the first candidate at the trivial price.
        """
        points = [-self.loss.project(-candidate, self.y) for candidate in candidates]
        try:
            if interrupted:
                raise KeyboardInterrupt
            for v in points:
                self.bound(v)
            if self.found is not None and not self.known(self.found.v):
                self.tightened(self.found, objective)
            self.best_estimate = self.estimate()
        except KeyboardInterrupt:
            interrupted = True
        return self.found or self.scaled(points[0], self._trivial(points[0])), interrupted

    def bound(self, v: FloatArray) -> Bound:
        """-L*(-t V) with t h(V) <= beta, and the estimate that goes with it."""
        price = price_dual(self.basis, self.pooling.spread(v), self.arrangements, seconds=self.patience)
        estimate = best_scale(dual_values(self.loss, self.y, v), self.beta, max(price.lower, self._own(v)))[1]
        if self.best is None or estimate > self.best_estimate:
            self.best_estimate, self.best = estimate, (v, price)
        return self.scaled(v, price)

    def scaled(self, v: FloatArray, price: Price) -> Bound:
        """The bound of v; the network's own neurons count in its price, so that the bound can't pass the network's objective."""
        price = replace(price, upper=max(price.upper, self._own(v)))
        scale, proved = best_scale(dual_values(self.loss, self.y, v), self.beta, price.upper)
        bound = Bound(proved, v, scale * v, price)
        self.found = bound if self.found is None else max(self.found, bound, key=lambda one: one.proved)
        return bound

    def _trivial(self, v: FloatArray) -> Price:
        """An interval that takes no search: ||V^T (U's)_+|| is at most the spectral norm of V, as U' has orthonormal columns."""
        upper = float(np.linalg.norm(self.pooling.spread(v), 2)) * (1.0 + 1e-12)
        return Price(upper, 0.0, np.zeros((1, self.basis.shape[1])), np.ones((1, v.size // len(v))))

    @property
    def left(self) -> float:
        """Seconds, not below 0."""
        return max(0.0, self.deadline - time.perf_counter())

    def tightened(self, found: Bound, objective: float) -> Bound:
        """The best bound of every method that applies, one after the other, as long as the gap is worth it and time is left."""
        for method in self._methods():
            if objective - found.proved <= PROOF_GAP * objective or self.left == 0.0:
                break
            found = max(found, method(found, objective), key=lambda bound: bound.proved)
        return found

    def _methods(self) -> list[Callable[[Bound, float], Bound]]:
        """What wins most comes first, by the number of outputs, of columns and of rows; the last uses up the time."""
        rows, width = self.basis.shape
        pooled, large = self.pooling.patches > 1, self.basis.size >= LARGE
        if self.y.ndim > 1:
            return [self._by_products] if self.y.shape[1] > HULL_OUTPUTS else [self._by_products, self._by_dual_points, self._by_outputs]
        if large:
            return [self._by_factors if self.factored else self._by_dual_points]
        if width <= BOX_COLUMNS and not pooled:
            return [self._by_boxes, self._by_dual_points]
        moments = fits_moments(rows, width, HALVES[0])
        first = [self._by_moments] if moments else [self._by_dual_points, self._by_products]
        if moments and not pooled and fits_jointly(rows, width):
            return [*first, self._by_joint_moments]
        return [*first, self._by_boxes if width <= BOX_COLUMNS else self._by_tree]

    def _by_dual_points(self, found: Bound, objective: float) -> Bound:
        """The best bound after better dual points: descent is noisy, so more steps from the best point so far, twice."""
        hopeless = HOPELESS_GAP if self.basis.shape[1] > BOX_COLUMNS else 1.0
        for steps in DUAL_STEPS:
            if self.left == 0.0:
                break
            found = max(found, self._better_dual(found, steps), key=lambda bound: bound.proved)
            gap = objective - found.proved
            if gap <= PROOF_GAP * objective or gap > hopeless * objective:
                break
        return found

    def _better_dual(self, found: Bound, steps: int) -> Bound:
        """The bound of a point that the relaxation likes better, half of the time for the point and half for its price."""
        directions, outputs = found.price.directions, found.price.outputs
        problem = self.basis, self.y, self.loss, self.beta
        v = improve_dual(*problem, found.dual, directions, outputs, self.mass, pooling=self.pooling, steps=steps, seconds=0.5 * self.left)
        return self.scaled(v, price_everywhere(self.basis, self.pooling.spread(v), seconds=self.left))

    def _by_products(self, found: Bound, objective: float) -> Bound:
        """The best bound of the training problem relaxed to doubly nonnegative matrices: for several outputs, or a large gap."""
        small = self.y.ndim == 1 and objective - found.proved <= TREE_GAP * objective
        if small or len(self.basis) > PRODUCT_SAMPLES or self.pooling.patches > 1:
            return found
        directions, outputs = self.neurons
        training = RelaxedTraining(self.basis, self.y, self.loss, self.beta, directions.T, outputs)
        return self._by_training(training, found, objective)

    def _by_moments(self, found: Bound, objective: float) -> Bound:
        """The best bound of the training problem relaxed to moments of degree 4, then of 6 from where these have come, for few columns.

        Where the matrix of degree 6 is larger than that of joint moments, these win more.
        """
        directions, outputs = self.neurons
        neurons = directions.T, outputs.reshape(len(outputs))
        rows, width = self.basis.shape
        most = joint_size(rows, width) if self.pooling.patches == 1 and fits_jointly(rows, width) else np.inf
        halves = [half for half in HALVES if half == HALVES[0] or (fits_moments(rows, width, half) and moment_size(width, half) <= most)]
        training = MomentTraining(self.basis, self.y, self.loss, self.beta, *neurons, half=halves[0], pooling=self.pooling)
        if len(halves) > 1:
            found = self._by_training(training, found, objective, patience=1, least=HASTY)
        if len(halves) == 1 or objective - found.proved <= CLOSE_GAP * objective:
            found = self._by_training(training, found, objective)
        for _ in halves[1:]:
            if objective - found.proved > PROOF_GAP * objective and self.left > 0.0:
                training = training.raised()
                found = self._by_training(training, found, objective)
        return found

    def _by_factors(self, found: Bound, objective: float) -> Bound:
        """The best bound of the training problem relaxed to second moments, for many samples."""
        directions, outputs = self.neurons
        neurons = directions.T, outputs.reshape(len(outputs))
        problem = self.basis, self.y, self.loss, self.beta
        training = FactoredTraining(*problem, *neurons, pooling=self.pooling, device=self.device)
        return self._by_training(training, found, objective, patience=FEW_LOOKS)

    def _by_joint_moments(self, found: Bound, objective: float) -> Bound:
        """The best bound of the training problem relaxed to joint moments, the tightest, which takes all of the time that it is given."""
        directions, outputs = self.neurons
        training = JointTraining(self.basis, self.y, self.loss, self.beta, directions.T, outputs.reshape(len(outputs)))
        return self._by_training(training, found, objective, patience=np.inf)

    def _by_training(self, training: Training, found: Bound, objective: float, *, patience: float = PATIENCE, least: float = IDLE) -> Bound:
        """The best bound on the way, until so many looks in turn have cut the gap by less than that share."""
        idle, best = 0, -np.inf
        while idle < patience and self.left > 0.0 and objective - found.proved > PROOF_GAP * objective:
            training.advance(self.deadline)
            v = -self.loss.project(-training.dual, self.y)
            better = self.scaled(v, replace(found.price, lower=0.0, upper=training.price(v)))
            idle = 0 if better.proved - best > least * (objective - better.proved) else idle + 1
            best = max(best, better.proved)
            found = max(found, better, key=lambda bound: bound.proved)
        return found

    def _by_boxes(self, found: Bound, objective: float) -> Bound:
        """Branch and bound on boxes, at the point with the best estimate: for few columns they come as near to it as time allows.

        Where half of the time leaves them far from it, moments come nearer in the rest, or in a part of it.
        """
        assert self.best is not None
        v, price = self.best
        rows = self.pooling.spread(v)
        searches = [BoxSearch(self.basis, side, price.lower, tolerance=0.5 * PROOF_GAP) for side in (rows, -rows)]

        def searched(seconds: float) -> Bound:
            try:
                with ThreadPoolExecutor(2) as threads:  # numpy lets go of the interpreter's lock: two cores share the two signs
                    try:
                        list(threads.map(lambda search: search.advance(seconds), searches))
                    except KeyboardInterrupt:  # it comes to this thread alone, which waits for the others
                        for search in searches:
                            search.stop()
                        raise
            finally:
                better = self.scaled(v, replace(price, upper=max(search.upper for search in searches)))
            return better

        found = max(found, searched(0.5 * self.left), key=lambda bound: bound.proved)
        near = self.best_estimate - found.proved <= FAR_GAP * objective
        if not near and self.pooling.patches == 1 and fits_moments(len(rows), self.basis.shape[1], HALVES[0]):
            found = self._by_moments(found, objective)
        if objective - found.proved > PROOF_GAP * objective and self.left > 0.0:
            found = max(found, searched(self.left), key=lambda bound: bound.proved)
        return found

    def _by_tree(self, found: Bound, objective: float) -> Bound:
        """Branch and bound on the sphere, at the point with the best bound, where the gap is small."""
        if objective - found.proved > TREE_GAP * objective:
            return found
        rows = self.pooling.spread(found.v)
        uppers = bound_by_tree(self.basis, rows, found.price, tolerance=0.5 * PROOF_GAP, seconds=self.left)
        return self._last(found.v, found.price, (replace(found.price, upper=upper) for upper in uppers))

    def _by_outputs(self, found: Bound, objective: float) -> Bound:
        """More cuts in the space of outputs, each as high as it has to be, at the point with the best estimate where boxes can do it."""
        assert self.best is not None
        v, price = self.best if self.basis.shape[1] <= BOX_COLUMNS else (found.v, found.price)
        rows, neurons = self.pooling.spread(v), (price.directions, price.outputs)
        prices = bound_over_outputs(self.basis, rows, *neurons, price.lower, tolerance=FINE * PROOF_GAP, seconds=self.left)
        return self._last(v, price, prices)

    def _last(self, v: FloatArray, price: Price, better: Iterator[Price]) -> Bound:
        """The bound of v at the last of ever better prices: where Ctrl-C comes, at the last that there is."""
        try:
            for price in better:  # noqa: B007
                pass
        finally:
            found = self.scaled(v, price)
        return found

    def estimate(self) -> float:
        """The best estimate, after one more search, which begins around the network's neurons too.

        For of all points that were priced the best one is that whose hardest neuron the searches missed by most.
        """
        assert self.best is not None
        v, price = self.best
        if self.known(v):
            return self.best_estimate
        rows, neurons = self.pooling.spread(v).reshape(len(self.basis), -1), normalised(self.neurons[0].T)
        starts = affordable(self.basis, STARTS // rows.shape[1])
        found = thorough_search(OnCPU(self.basis), self.basis, rows, neurons, starts, SEED)
        lower = max(price.lower, self._own(v), float(np.max(worths_of(self.basis, rows, found), initial=0.0)))
        return best_scale(dual_values(self.loss, self.y, v), self.beta, lower)[1]

    def known(self, v: FloatArray) -> bool:
        """Whether no search and no relaxation can add to what is known of the price of v."""
        return self.arrangements is not None or known_price(self.basis, self.pooling.spread(v)) is not None

    def _own(self, v: FloatArray) -> float:
        """The price as far as the network's own neurons know it."""
        return largest_worth(self.network, self.activations, v)
