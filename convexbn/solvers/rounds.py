"""The rounds of sliding Frank-Wolfe on a state: slides, searches, amplitudes, and the last descent."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from convexbn.network import merge, merge_cells
from convexbn.pricing import affordable, distinct, random_directions
from convexbn.pricing.local import SINGLE
from convexbn.solvers.amplitudes import fit_amplitudes
from convexbn.solvers.descent import Layer, LayerOnCPU, slide
from convexbn.solvers.searching import Finds, Reach, Search
from convexbn.solvers.state import Neurons, State
from convexbn.validation import FloatArray

if TYPE_CHECKING:
    from convexbn.solvers.sliding import SlidingFrankWolfe

# The width of the smoothed kinks of ReLU follows the gap, as a multiple of its relative size, from FIRST_WIDTH down to LAST_WIDTH:
# descent on sharper kinks than the gap asks for jams on the first kink it meets.
FIRST_WIDTH, LAST_WIDTH = 0.3, 1e-4
STALLED, SHRINK = 0.9, 0.5  # a round that leaves so much of the gap shrinks the width by so much
ROUGH = 1e-3  # gap above which descent is in single precision: its rounding is far below the gap, and it takes half the time
# With one output and a smooth loss: directions a column to begin with, at most so many, and how they fall.
RANDOM, AT_MOST, FALL = 6, 400, (0.3, 0.1)
HASTY = 0.02  # gap down to which searches are hasty, and one is enough before each slide
COSINE = 0.99  # from which two new neurons count as one
CORRECTIONS = 3  # amplitude solves before the next search, the later ones with neurons out of the pool
# Below the gap SHARP neurons sit on so many facets of their cells that descent jams: searches then climb to exact maxima, and all
# that nearly matter come in at once. With more COLUMNS neurons have many dimensions left on their facets, and descent is better.
SHARP, COLUMNS = 0.02, 32
KEPT = 100  # maxima that searches begin with, worth more than beta (1 - sqrt(gap)): what V can bring above beta on its way to the optimum
FACETS = 1.0 - 1e-9  # cosine from which two maxima are one
# The last digits: climbs as long as they gain something, then descent on ever sharper kinks, down to a part of the tolerance.
POLISH, POLISHED, SETTLED = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8), 1e-3, 1e-7
LAST_ACCURACY = 0.05  # of the amplitudes, of the gap
DONE = 0.1  # of the tolerance: below that there are no digits left that anybody asked for
PATIENCE = 1.1  # times the seconds, polish included


class Effort(NamedTuple):
    """How many steps a slide takes; how many pricings come before each, and how many new neurons at most; how many directions are
    remembered, and priced again without a search; and the accuracy of the amplitudes and the width of kinks, of the gap.
    """

    steps: int
    pricings: int
    new: int
    pool: int
    accuracy: float
    width: float


# With one output short slides are enough, as neurons are to be near their places when the next come, not in them; a loss with kinks
# needs more, for its multipliers. With several outputs there are more neurons, each search is longer, and amplitudes take seconds; the
# gap, which few neurons hold up then, is far above what the network lacks, and a width for it leaves much of that to the last descent.
ONE, KINKED, SEVERAL = Effort(20, 2, 64, 500, 0.1, 5.0), Effort(100, 3, 64, 500, 0.1, 5.0), Effort(100, 2, 500, 3000, 0.3, 0.3)


class TimeIsUpError(Exception):
    """In the middle of a round."""


class Rounds:
    """The rounds on a state."""

    def __init__(self, state: State, settings: SlidingFrankWolfe, start: float) -> None:
        self.state, self.settings = state, settings
        self.single = state.y.shape[1] == 1
        self.quick = self.single and bool(np.isfinite(state.loss.smoothness))
        self.effort = ONE if self.quick else KINKED if self.single else SEVERAL
        self.deadline = start + settings.seconds
        self.last = start + PATIENCE * settings.seconds
        self.layer, self.rough = self.layer_of(settings.precision), self.layer_of(SINGLE)
        self.search = Search(state.basis, state.pooling, state.beta, settings.starts, settings.seed, settings.device)

    def layer_of(self, precision: str) -> Layer:
        """The network that descends, in float64 or float32, on the device."""
        from convexbn.solvers.torch_layer import LayerOnDevice

        basis, pooling, device = self.state.basis.astype(precision), self.state.pooling, self.settings.device
        return LayerOnCPU(basis, pooling) if device == "cpu" else LayerOnDevice(basis, device, pooling)

    @property
    def finished(self) -> bool:
        """Whether the gap is within the tolerance, or rounds or time are used up."""
        state, settings = self.state, self.settings
        used = len(state.trace) >= settings.rounds or time.perf_counter() > self.deadline
        return bool(state.trace) and (state.gap <= settings.tolerance or used)

    @property
    def sharp(self) -> bool:
        """Whether searches climb."""
        state = self.state
        suited = self.single and state.basis.shape[1] <= COLUMNS
        return suited and state.gap <= SHARP and len(state.neurons.outputs) > 0

    @property
    def reach(self) -> Reach:
        """Of the next search."""
        if self.sharp:
            return Reach.SHARP
        return Reach.HASTY if self.quick and self.state.gap > HASTY else Reach.FULL

    def look_at_clock(self) -> None:
        """Break the round off where time is up and there is something to return, priced once."""
        priced = np.isfinite(self.state.bound) or self.state.draws > 1
        if priced and len(self.state.best.outputs) and time.perf_counter() > self.deadline:
            raise TimeIsUpError

    def begin(self) -> None:
        """Let random directions fall to where neurons are wanted, in a tenth of the time that searches would take."""
        state, columns = self.state, self.state.basis.shape[1]
        if not self.quick or len(state.neurons.outputs):
            return
        self.add(random_directions(affordable(state.basis, min(AT_MOST, RANDOM * columns)), columns, (self.settings.seed,)))
        for state.width in FALL:
            self.slide()

    def round(self) -> None:
        """Slide, then price and insert a few times.

        The first round prices first: neurons of a warm start are not to be slid on kinks wider than their gap.
        """
        state, tolerance = self.state, self.settings.tolerance
        if state.trace and not self.sharp:
            self.slide()
        before = state.gap
        state.width = max(LAST_WIDTH, min(state.width, self.effort.width * state.gap))
        for _ in range(1 if self.reach is Reach.HASTY else self.effort.pricings):
            v = state.gradient()
            finds = self.price(v)
            if state.gap <= tolerance:
                break
            self.insert(finds)
            state.multiply()
        if state.gap <= tolerance:
            self.confirm()
        if state.gap > STALLED * before:
            state.width = max(LAST_WIDTH, SHRINK * state.width)

    def price(self, v: FloatArray, known: FloatArray | None = None) -> Finds:
        """Search at V, among known directions too, and keep V where its estimated bound is the best so far."""
        state = self.state
        state.draws += 1
        enough = state.beta * (1.0 + 0.5 * max(self.settings.tolerance, 0.1 * state.gap))
        finds = self.search(
            v, state.neurons.directions, state.pool, enough, draw=state.draws, reach=self.reach, look_at_clock=self.look_at_clock
        )
        if known is not None:
            worths = self.search.worths(state.pooling.spread(v), known)
            finds = Finds(np.concatenate([finds.directions, known]), np.concatenate([finds.worths, worths]))
        state.believe(v, float(np.max(finds.worths, initial=0.0)))
        return finds

    def confirm(self) -> None:
        """Search again at the best dual point, among all that is known too, before its bound is believed."""
        state = self.state
        claimed, state.bound = state.bound, -np.inf
        try:
            thorough = self.search.thorough(state.dual, state.best.directions, state.draws)
            finds = self.price(state.dual, np.concatenate([state.pool, state.best.directions, thorough]))
        except (KeyboardInterrupt, TimeIsUpError):
            state.bound = claimed  # an estimate like those of the rounds before
            raise
        if state.gap > self.settings.tolerance:
            self.insert(finds)

    def insert(self, finds: Finds) -> None:
        """Add the best distinct directions, solve for all amplitudes, and drop those that get none; then the same out of the pool.

        The pool holds what was found before: where V comes to violate h <= beta at one of them again, it costs no search.
        """
        state, (found, worths) = self.state, finds
        if self.sharp:
            kept = distinct(found, worths, cosine=FACETS, most=KEPT, threshold=state.beta * (1.0 - np.sqrt(state.gap)))
            state.pool = found[kept]
            return self.add(state.pool[worths[kept] > state.beta * (1.0 - state.gap)])
        kept = distinct(found, worths, cosine=COSINE, most=self.effort.new, threshold=0.5 * state.beta)
        state.pool = np.concatenate([found[kept], state.pool])[: self.effort.pool]
        for _ in range(CORRECTIONS):
            highest = float(np.max(worths, initial=0.0))
            threshold = state.beta + 0.1 * max(0.0, highest - state.beta)
            self.add(found[distinct(found, worths, cosine=COSINE, most=self.effort.new, threshold=threshold)])
            found, worths = state.pool, self.search.worths(state.pooling.spread(state.gradient()), state.pool)
            if float(np.max(worths, initial=0.0)) <= state.beta * (1.0 + 0.1 * state.gap):
                break

    def add(self, directions: FloatArray) -> None:
        """Solve for the amplitudes of the present neurons and of these ones, in time."""
        self.look_at_clock()
        self.solve(directions, self.effort.accuracy)

    def solve(self, directions: FloatArray, accuracy: float) -> None:
        """The same, whatever the time, to a share of the gap."""
        state = self.state
        outputs = np.concatenate([state.neurons.outputs, np.zeros((len(directions), state.y.shape[1]))])
        directions = np.concatenate([state.neurons.directions, directions])
        tolerance = max(1e-7, accuracy * state.gap)
        outputs = fit_amplitudes(state.features(directions), state.y, outputs, state.beta, state.smooth_loss, tolerance=tolerance)
        neurons = Neurons(directions, outputs).take(np.linalg.norm(outputs, axis=1) > 0)
        state.accept(Neurons(*merge_cells(state.basis, *neurons)) if self.sharp else neurons)

    def slide(self) -> None:
        """Descend on directions and outputs together, then merge neurons as far as that costs little of the gap."""
        state = self.state
        if not len(state.neurons.outputs):
            return
        before = state.objective(state.neurons, state.smooth_loss)
        layer = self.rough if state.gap > ROUGH else self.layer
        moved = self.slid(layer, state.neurons, self.effort.steps, self.deadline)
        if state.objective(moved, state.smooth_loss) > before + state.width * abs(before):
            moved = state.neurons
        allowed = state.objective(moved) * (1.0 + 0.02 * max(1e-6, state.gap))
        for angle in (0.2, 0.05, 0.01, 1e-4):
            merged = Neurons(*merge(*moved, angle=angle, smallest=1e-8))
            if state.objective(merged) <= allowed:
                return state.accept(merged)
        return state.accept(moved)

    def slid(self, layer: Layer, neurons: Neurons, steps: int, deadline: float) -> Neurons:
        """The neurons after descent on kinks of the present width."""
        state = self.state
        problem = state.y, *neurons, state.beta, state.smooth_loss, state.width
        return Neurons(*slide(layer, *problem, steps=steps, deadline=deadline))

    def polish(self) -> None:
        """The last digits, which rounds don't pay for: climbs while they gain, then descent with ever sharper kinks."""
        state = self.state
        if state.gap <= DONE * self.settings.tolerance:
            return
        state.neurons, self.deadline = state.best, self.last
        with suppress(TimeIsUpError):
            while self.sharp:
                before = state.lowest
                self.insert(self.search.climbed(state.gradient(), state.neurons.directions, state.pool))
                if state.lowest > before * (1.0 - SETTLED):
                    break
        exact = self.layer if self.settings.precision == "float64" else self.layer_of("float64")
        for width in POLISH:
            if not len(state.best.outputs) or width < POLISHED * self.settings.tolerance or time.perf_counter() > self.last:
                break
            if self.sharp and width > state.gap:  # descent on such kinks undoes what climbs have won
                continue
            state.width = width
            state.accept(self.slid(exact, state.best, 300, self.last))
            if not self.single:  # else the own neurons of the network break h(V) <= beta at its residual, which makes a bad dual point
                self.solve(state.pool[:0], LAST_ACCURACY)
            state.multiply()
        if state.lowest < state.bound:  # no bound then: a search had missed the hardest neuron
            state.neurons, state.bound = state.best, -np.inf
            with suppress(TimeIsUpError):
                self.price(state.gradient())
