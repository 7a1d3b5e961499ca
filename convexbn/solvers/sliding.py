"""Sliding Frank-Wolfe: the program over all arrangements, by pricing, amplitudes and descent on the neurons themselves."""

from __future__ import annotations

import os
import time
from dataclasses import astuple, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from convexbn.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from convexbn.losses import Loss
from convexbn.network import merge, merge_cells
from convexbn.pricing import climb, directions_around, distinct, evolve, local_search, random_directions
from convexbn.program import Program
from convexbn.progress import console
from convexbn.smoothing import smooth
from convexbn.solution import Round, Solution, Status
from convexbn.solvers.amplitudes import fit_amplitudes
from convexbn.solvers.descent import slide
from convexbn.threads import few_threads
from convexbn.validation import FloatArray, InputError, check_count, check_positive

# A loss with kinks is replaced by its envelope of this width, in the unit of the predictions; multipliers take the smoothing away.
ENVELOPE = 0.3
# The width of the smoothed kinks of ReLU follows the gap, as WIDTH_PER_GAP times its relative
# size, from FIRST_WIDTH down to LAST_WIDTH: descent on sharper kinks than the gap asks for jams on the first kink it meets.
FIRST_WIDTH, WIDTH_PER_GAP, LAST_WIDTH = 0.3, 5.0, 1e-4
SETTLED = 1e-7  # what climbs at the end must gain
POLISH, POLISHED = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8), 1e-3  # at the end, down to that part of the tolerance
# New neurons are taken from the best of the search; two with a larger cosine count as one.
COSINE = 0.99
NEW = 64
ACCURACY = 0.1  # of the amplitudes, of the gap
STALLED, SHRINK = 0.9, 0.5  # a round that leaves so much of the gap shrinks the width by so much
PRICINGS = 3  # rounds of pricing and amplitudes before each slide
POOL = 500  # directions that are remembered, and priced again without a search
CORRECTIONS = 5  # amplitude solves with neurons out of the pool before the next search
GENERATIONS = 2  # of each search
# Below the gap SHARP neurons sit on so many facets of their cells that descent jams, and every maximum of the price that matters lies
# beside a neuron: from then on searches are around the neurons, and climb to exact maxima, and all that nearly matter come in at once.
SHARP, AROUND, RANDOM = 0.005, 4, 32  # starts around each neuron, and random ones
COLUMNS = 32  # with more, neurons have many dimensions left on their facets, and descent moves them further than climbs
DISTANCES, FAR = (0.1, 0.2, 0.4, 0.8), (0.4, 0.8)  # from the neurons, and from them where the gap is to be believed
SHORT = 8  # steps of a local search before a climb
SHARP_COSINE = 0.9999  # of two starts that count as one
FEET = 400  # climbs
PROMISING = 0.98  # of beta, a worth that may climb to beta
SINGLE: str = "float32"  # of searches
CONFIRM = 16  # times as many starts before the gap is believed, and four times as many climbs


@dataclass(frozen=True)
class SlidingFrankWolfe:
    """Solve the program over ALL arrangements, without listing them, to an estimated relative gap.

        min  L( p (U'S)_+ W, y ) + beta sum_j ||s_j|| ||w_j||      over neurons S (m, r+1), W (m, C), of every width m

    with p the pooling of patches, the identity without them. Rounds of (a) pricing: many local searches for neurons with h(s) =
    ||V^T p (U's)_+|| > beta, V = -grad L; (b) amplitudes: with the directions fixed, a convex group lasso for W; (c) sliding:
    descent on S and W together, then merging and pruning. With one output and up to 32 columns, below a gap of half
    a percent, climbs to exact local maxima of h around the neurons take the place of (a) and (c). The gap is estimated, as the
    searches may miss the maximum of h: `certify` proves what can be proved.

    Source: Denoyelle, Duval, Peyre and Soubies 2019 (sliding Frank-Wolfe), Bach 2017 (conditional gradient for networks).

    Attributes
    ----------
    tolerance : of the estimated relative gap
    rounds : at most so many
    seconds : and at most for so long
    starts : random starts of each pricing; the present neurons start too
    seed : of the starts
    warm_start : directions (m, r+1) and outputs (m, C) to begin with, as `convexbn.neurons_of` reads them from a network
    checkpoint : a file to which the state is written after each round; a run that finds its own there goes on from it, and ends
        bit for bit as without the break. `rounds`, `seconds` and `verbose` may differ
    precision : "float64", or "float32" for descent until the last one. Searches are in float32 anyway, and what they find is priced
        again in float64, as are bounds and certificates
    verbose : print a line a round
    """

    tolerance: float = 1e-5
    rounds: int = 60
    seconds: float = 60.0
    starts: int = 64
    seed: int = 0
    warm_start: tuple[FloatArray, FloatArray] | None = None
    checkpoint: str | os.PathLike[str] | None = None
    precision: str = "float64"
    verbose: bool = False

    def __post_init__(self) -> None:
        check_positive(self.tolerance, "tolerance")
        check_positive(self.seconds, "seconds")
        check_count(self.rounds, "rounds")
        check_count(self.starts, "starts")
        check_count(self.seed, "seed", 0)
        if self.precision not in ("float64", "float32"):
            raise InputError(f"precision = {self.precision!r} is unknown: choose 'float64' or 'float32'")

    def solve(self, program: Program) -> Solution:
        """The best neurons found, with the dual point of the best estimated bound; an interrupt returns what is there."""
        with few_threads(program.basis.size):
            return self._solve(program)

    def _solve(self, program: Program) -> Solution:
        unit = program.loss.scale(program.y)
        state = _State(program, unit, self)
        status = Status.LIMIT
        start = time.perf_counter() - (state.trace[-1].seconds if state.trace else 0.0)
        try:
            while not state.finished and not (state.trace and state.trace[-1].seconds > self.seconds):
                objective, gap = state.round()
                state.trace.append(Round(objective * unit**2, gap, len(state.best.outputs), time.perf_counter() - start))
                state.save()
                if self.verbose:
                    _print(len(state.trace), state.trace[-1])
            if state.gap <= self.tolerance:
                status = Status.OPTIMAL
            state.polish(start + 1.1 * self.seconds)
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        trace = state.trace
        if trace:
            trace[-1] = replace(trace[-1], objective=state.lowest * unit**2, gap=state.gap, neurons=len(state.best.outputs))
        return Solution(
            state.best.directions,
            unit * state.best.outputs,
            status,
            "sliding Frank-Wolfe",
            dual=unit * (state.dual[:, 0] if program.y.ndim == 1 else state.dual),
            iterations=len(trace),
            solve_seconds=time.perf_counter() - start,
            trace=tuple(trace),
        )


class _Neurons(NamedTuple):
    """Directions (m, r+1) and outputs (m, C), replaced together: an interrupt never finds one without the other."""

    directions: FloatArray
    outputs: FloatArray

    def take(self, rows: np.ndarray) -> _Neurons:
        return _Neurons(self.directions[rows], self.outputs[rows])


class _State:
    """The neurons of a run, the best of them so far, and the best dual point, for targets of unit size."""

    def __init__(self, program: Program, unit: float, settings: SlidingFrankWolfe) -> None:
        self.exact = program.basis
        self.basis, self.single = program.basis.astype(settings.precision), program.basis.astype(SINGLE)
        self.y = program.y.reshape(len(program.y), -1) / unit
        self.pooling = program.pooling
        self.loss: Loss = program.loss.rescaled(unit)
        self.beta = program.beta / unit
        self.settings = settings
        self.neurons = _Neurons(np.zeros((0, self.basis.shape[1])), np.zeros((0, self.y.shape[1])))
        if settings.warm_start is not None:
            self.neurons = _Neurons(settings.warm_start[0], settings.warm_start[1] / unit)
        self.best, self.lowest = self.neurons, self.objective(self.neurons)
        self.dual = -self.loss.gradient(np.zeros_like(self.y), self.y)
        self.bound = -np.inf
        self.pool = np.zeros((0, self.basis.shape[1]))
        self.shift = np.zeros_like(self.y)
        self.draws, self.width = 0, FIRST_WIDTH
        self.trace: list[Round] = []
        if settings.checkpoint is not None:
            same = (settings.tolerance, settings.starts, settings.seed, settings.warm_start, settings.precision, program.pooling)
            self.run = fingerprint(program.basis, program.y, program.beta, program.loss, same)
            self.load(load_checkpoint(settings.checkpoint, self.run))

    def save(self) -> None:
        """Write the checkpoint, where there is to be one."""
        if self.settings.checkpoint is not None:
            arrays = {"neurons": self.neurons, "best": self.best}
            halves = {f"{name}_{half}": array for name, pair in arrays.items() for half, array in pair._asdict().items()}
            numbers = {"lowest": self.lowest, "bound": self.bound, "draws": self.draws, "width": self.width}
            trace = np.array([astuple(entry) for entry in self.trace])
            save_checkpoint(
                self.settings.checkpoint,
                self.run,
                {**halves, **numbers, "dual": self.dual, "pool": self.pool, "shift": self.shift, "trace": trace},
            )

    def load(self, saved: dict[str, Any] | None) -> None:
        """Go on from a checkpoint."""
        if saved is not None:
            self.neurons, self.best = (_Neurons(saved[f"{name}_directions"], saved[f"{name}_outputs"]) for name in ("neurons", "best"))
            self.lowest, self.bound, self.width = (float(saved[name]) for name in ("lowest", "bound", "width"))
            self.draws, self.dual, self.pool, self.shift = int(saved["draws"]), saved["dual"], saved["pool"], saved["shift"]
            self.trace = [Round(objective, gap, int(neurons), seconds) for objective, gap, neurons, seconds in saved["trace"].tolist()]

    @property
    def finished(self) -> bool:
        """Whether the gap is within the tolerance, or the rounds are used up."""
        return bool(self.trace) and (self.gap <= self.settings.tolerance or len(self.trace) >= self.settings.rounds)

    def round(self) -> tuple[float, float]:
        """Slide, then price and insert a few times; the best objective and its estimated relative gap.

        The first round prices first: neurons of a warm start are not to be slid on kinks wider than their gap.
        """
        if self.trace and not self.sharp:
            self.slide(self.width)
        before = self.gap
        self.width = max(LAST_WIDTH, min(self.width, WIDTH_PER_GAP * self.gap))
        for _ in range(PRICINGS):
            found, worths = self.price()
            if self.gap <= self.settings.tolerance:
                break
            self.insert(found, worths)
            self.multiply()
        if self.gap <= self.settings.tolerance:
            self.confirm()
        if self.gap > STALLED * before:
            self.width = max(LAST_WIDTH, SHRINK * self.width)
        return self.lowest, self.gap

    @property
    def sharp(self) -> bool:
        """Whether searches stay around the neurons, and climb."""
        suited = self.y.shape[1] == 1 and self.basis.shape[1] <= COLUMNS
        return suited and self.gap <= SHARP and len(self.neurons.outputs) > 0

    def predictions(self, neurons: _Neurons) -> FloatArray:
        values: FloatArray = self.features(neurons.directions) @ neurons.outputs
        return values

    def features(self, directions: FloatArray) -> FloatArray:
        """p (U'S)_+, shape (n, m)."""
        return self.pooling.pool(np.maximum(self.exact @ directions.T, 0.0))

    def worths(self, v: FloatArray, directions: FloatArray) -> FloatArray:
        """h of each direction, shape (m,)."""
        worths: FloatArray = np.linalg.norm(v.T @ self.features(directions), axis=0)
        return worths

    def objective(self, neurons: _Neurons, loss: Loss | None = None) -> float:
        """With the loss itself, or with another one."""
        value = (loss or self.loss).value(self.predictions(neurons), self.y)
        return value + self.beta * float(np.linalg.norm(neurons.outputs, axis=1).sum())

    def accept(self, neurons: _Neurons) -> None:
        """Go on from these neurons, and remember them where they are the best so far."""
        objective = self.objective(neurons)
        self.neurons = neurons
        if objective <= self.lowest:
            self.best, self.lowest = neurons, objective

    @property
    def gap(self) -> float:
        """Estimated, of the best neurons."""
        return max(0.0, self.lowest - self.bound) / self.lowest if self.lowest > 0 else 0.0

    @property
    def smooth_loss(self) -> Loss:
        """The loss, or its envelope where it has kinks."""
        return smooth(self.loss, ENVELOPE, self.shift)

    def gradient(self) -> FloatArray:
        """V = -grad L at the present predictions."""
        return -self.smooth_loss.gradient(self.predictions(self.neurons), self.y)

    def multiply(self) -> None:
        """A step of the method of multipliers: at the optimum of a loss with kinks its envelope is shifted by its own gradient."""
        if not np.isfinite(self.loss.smoothness):
            self.shift = -ENVELOPE * self.gradient()

    def price(self) -> tuple[FloatArray, FloatArray]:
        """Search at the present V, and keep V where its estimated bound is the best so far."""
        v = self.gradient()
        found, worths = self.climbed(v) if self.sharp else self.search(v)
        self.believe(v, float(np.max(worths, initial=0.0)))
        return found, worths

    def search(self, v: FloatArray, effort: int = 1) -> tuple[FloatArray, FloatArray]:
        """Directions with a large h, and h of each: from random starts and the neurons, and between and around the best found."""
        self.draws += 1
        seed, starts = (self.settings.seed, self.draws), effort * self.settings.starts
        known = np.concatenate([random_directions(starts, self.basis.shape[1], seed), self.neurons.directions])
        found = evolve(*self.rough(v), known.astype(SINGLE), seed=seed, children=starts, generations=GENERATIONS)[0]
        return found.astype(np.float64), self.worths(v, found)

    def rough(self, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The basis and V on its rows, in single precision: enough for searches, whose finds are priced again."""
        rows = self.pooling.spread(v)
        return self.single, (rows / (np.max(np.abs(rows)) or 1.0)).astype(SINGLE)

    def climbed(self, v: FloatArray, effort: int = 1, distances: tuple[float, ...] = DISTANCES) -> tuple[FloatArray, FloatArray]:
        """Local maxima of h around the neurons, and h of each."""
        self.draws += 1
        seed, inputs = (self.settings.seed, self.draws), self.basis.shape[1]
        near = directions_around(self.neurons.directions, effort * AROUND, distances, (*seed, 0))
        far = random_directions(effort * RANDOM, inputs, (*seed, 1))
        starts = np.concatenate([self.pool, near, far]).astype(SINGLE)
        found = local_search(*self.rough(v), starts, steps=SHORT)[0].astype(np.float64)
        most = int(np.sqrt(effort)) * FEET // v.shape[1]
        feet = distinct(found, self.worths(v, found), cosine=SHARP_COSINE, most=most, threshold=PROMISING * self.beta)
        found = climb(self.exact, self.pooling.spread(v), np.concatenate([self.neurons.directions, found[feet]]))
        return found, self.worths(v, found)

    def believe(self, v: FloatArray, worth: float) -> None:
        """Keep V and the bound that it has if `worth` is h(V), where that is the best so far."""
        t = min(1.0, self.beta / worth) if worth > 0 else 1.0
        bound = -self.loss.conjugate(-t * v, self.y)
        if bound > self.bound:
            self.bound, self.dual = bound, v

    def confirm(self) -> None:
        """Search again around the best neurons, with more starts, before the bound of the best dual point is believed."""
        v, known, self.bound = self.dual, [self.climbed(self.dual, CONFIRM, FAR)[0], self.pool, self.best.directions], -np.inf
        if not self.sharp:
            known += [self.search(v, CONFIRM)[0]]
        found = np.concatenate(known)
        worths = self.worths(v, found)
        self.believe(v, float(np.max(worths, initial=0.0)))
        if self.gap > self.settings.tolerance:
            self.insert(found, worths)

    def insert(self, found: FloatArray, worths: FloatArray) -> None:
        """Add the best distinct directions, solve for all amplitudes, and drop those that get none; then the same out of the pool.

        The pool holds what was found before: where V comes to violate h <= beta at one of them again, it costs no search.
        """
        if self.sharp:
            kept = distinct(found, worths, cosine=SHARP_COSINE, most=POOL, threshold=PROMISING * self.beta)
            self.pool = found[kept]
            return self.add(found, worths)
        kept = distinct(found, worths, cosine=COSINE, most=NEW, threshold=0.5 * self.beta)
        self.pool = np.concatenate([found[kept], self.pool])[:POOL]
        for _ in range(CORRECTIONS):
            self.add(found, worths)
            found = self.pool
            worths = self.worths(self.gradient(), found)
            if float(np.max(worths, initial=0.0)) <= self.beta * (1.0 + 0.1 * self.gap):
                break

    def add(self, found: FloatArray, worths: FloatArray) -> None:
        """Solve for the amplitudes of the present neurons and of the best distinct ones among those found."""
        if self.sharp:
            chosen = distinct(found, worths, cosine=1.0 - 1e-9, most=FEET, threshold=self.beta * (1.0 - self.gap))
        else:
            threshold = self.beta + 0.1 * max(0.0, float(np.max(worths, initial=0.0)) - self.beta)
            chosen = distinct(found, worths, cosine=COSINE, most=NEW, threshold=threshold)
        directions = np.concatenate([self.neurons.directions, found[chosen]])
        outputs = np.concatenate([self.neurons.outputs, np.zeros((len(chosen), self.y.shape[1]))])
        accuracy = max(1e-7, ACCURACY * self.gap)
        outputs = fit_amplitudes(self.features(directions), self.y, outputs, self.beta, self.smooth_loss, tolerance=accuracy)
        neurons = _Neurons(directions, outputs).take(np.linalg.norm(outputs, axis=1) > 0)
        self.accept(_Neurons(*merge_cells(self.exact, *neurons)) if self.sharp else neurons)

    def polish(self, deadline: float) -> None:
        """The last digits, which rounds don't pay for: climbs while they gain, then descent with ever sharper kinks."""
        self.neurons = self.best
        while self.sharp and time.perf_counter() < deadline:
            before = self.lowest
            self.insert(*self.price())
            if self.lowest > before * (1.0 - SETTLED):
                break
        for width in POLISH:
            if len(self.best.outputs) and width >= POLISHED * self.settings.tolerance and time.perf_counter() < deadline:
                self.accept(self.slid(self.exact, self.best, width, steps=300))
                self.multiply()

    def slid(self, basis: FloatArray, neurons: _Neurons, width: float, *, steps: int = 100) -> _Neurons:
        """The neurons after descent on kinks of that width."""
        loss = self.smooth_loss
        return _Neurons(*slide(basis, self.y, *neurons, self.beta, loss, width, pooling=self.pooling, steps=steps))

    def slide(self, width: float) -> None:
        """Descend on directions and outputs together, then merge neurons as far as that costs little of the gap."""
        if not len(self.neurons.outputs):
            return
        before = self.objective(self.neurons, self.smooth_loss)
        moved = self.slid(self.basis, self.neurons, width)
        if self.objective(moved, self.smooth_loss) > before + width * abs(before):
            moved = self.neurons
        allowed = self.objective(moved) * (1.0 + 0.02 * max(1e-6, min(1.0, self.gap)))
        for angle in (0.2, 0.05, 0.01, 1e-4):
            merged = _Neurons(*merge(*moved, angle=angle, smallest=1e-8))
            if self.objective(merged) <= allowed:
                return self.accept(merged)
        return self.accept(moved)


def _print(number: int, entry: Round) -> None:
    console().print(
        f"convexbn: round {number}, objective {entry.objective:.8g}, estimated gap {entry.gap:.1e}, "
        f"{entry.neurons} neurons, {entry.seconds:.1f} s"
    )
