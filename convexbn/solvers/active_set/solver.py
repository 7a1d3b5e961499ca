"""The exact program over listed arrangements with their cones, by pricing, amplitudes and Newton's method on the blocks that count."""

from __future__ import annotations

import os
import time
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import numpy as np

from convexbn.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from convexbn.pricing.cells import IntArray
from convexbn.program import Program
from convexbn.progress import console
from convexbn.smoothing import Smoothed, smooth
from convexbn.solution import Round, Solution, Status
from convexbn.solvers.active_set.blocks import Blocks
from convexbn.solvers.active_set.proximal import ProximalPoint, SmoothLoss
from convexbn.solvers.amplitudes import fit_amplitudes
from convexbn.threads import few_threads
from convexbn.validation import FloatArray, check_count, check_positive

BATCH, FRESH = 256, 20  # blocks priced at a time; so many that come anew are enough for a round
SHORTER = 0.98  # of beta: what a projection known to be shorter costs is not worth knowing
FINE, ROUGH_ROUNDS = 1e-2, 12  # the gap below which Newton takes over, or the round
STEPS, SETTLED = 3, 1e-2  # proximal steps a round, at most; the relative move after which it is priced again
# sigma beta / ||s||, the length of a proximal step: at first, at most, and its growth while Newton's steps are full.
FIRST_STEP, LONGEST_STEP, GROWTH = 10.0, 1e6, 5.0
WIDTH = 0.03  # of smoothed kinks, in the unit of the predictions; the limit of the steps is the kink itself
ARRAYS = ("faces", "upper", "centres", "shift", "dual")  # of the state, beside the iterates
STALLED, LESS = 20, 0.95  # rounds without a gap that is less than that part of the one before


@dataclass(frozen=True)
class ActiveSet:
    """Solve the program over listed arrangements, cones included, without writing its matrix out:

        min  L( sum_i D_i U'(s_i - s_i'), y ) + beta sum_i ( ||s_i|| + ||s_i'|| )    s.t.  (2 D_i - I) U' s_i >= 0, same for s_i'.

    At the optimum few blocks s_i are not zero, and those lie on faces of a few dimensions of their cones. Each round (a) **prices**
    the blocks: the projection of +-U'^T D_i V on the cone, V = -grad L(f), longer than beta where a block violates the dual; any
    lengths bound the optimum from below; (b) while the gap is wide, solves for the **amplitudes** of the present directions and
    the projections, a lasso; (c) then takes **proximal** steps by Newton's method on the faces of the cones: quadratic convergence
    to the last digits. Every iterate lies in its cones, so the objective is that of a true network.

    The basis need not be orthonormal. One output; losses with kinks are smoothed, and the proximal steps take the smoothing
    away. Sources: column generation, with the semismooth Newton method (Li, Sun and Toh 2018) on group norms with cones; math in
    `docs/theory.md`, section 17.

    Attributes
    ----------
    tolerance : of the relative gap between objective and bound
    rounds : at most so many
    seconds : and at most for so long
    warm_start : directions (m, r+1) and outputs (m, 1) to begin with, as `convexbn.neurons_of` reads them from a network; neurons of
        arrangements that are not listed are left out
    checkpoint : a file to which the state is written after each round; a run that finds its own there goes on from it, and ends
        bit for bit as without the break. `rounds`, `seconds` and `verbose` may differ
    verbose : print a line a round
    """

    tolerance: float = 1e-7
    rounds: int = 200
    seconds: float = 3600.0
    warm_start: tuple[FloatArray, FloatArray] | None = None
    checkpoint: str | os.PathLike[str] | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        check_positive(self.tolerance, "tolerance")
        check_positive(self.seconds, "seconds")
        check_count(self.rounds, "rounds")

    def solve(self, program: Program) -> Solution:
        """The neurons, each in the cone of a listed arrangement, and the dual point of the bound; an interrupt returns the best so far.

        Raises
        ------
        InputError
            For a program whose arrangements are not listed.
        """
        with few_threads(program.basis.size):
            return self._solve(program)

    def _solve(self, program: Program) -> Solution:
        started = time.perf_counter()
        state = _State(program, self)
        start = time.perf_counter() - (state.trace[-1].seconds if state.trace else 0.0)
        status = Status.LIMIT
        try:
            while len(state.trace) < self.rounds and time.perf_counter() - start < self.seconds:
                state.round()
                state.trace.append(Round(state.lowest * state.unit**2, state.gap, len(state.best.blocks), time.perf_counter() - start))
                state.save()
                if self.verbose:
                    _print(len(state.trace), state.trace[-1])
                if state.gap <= self.tolerance or state.stalled >= STALLED:
                    status = Status.OPTIMAL if state.gap <= self.tolerance else Status.INACCURATE
                    break
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        directions, outputs = state.neurons(state.best)
        return Solution(
            directions,
            state.unit * outputs[:, None],
            status,
            "active set",
            dual=state.unit * state.dual,
            iterations=len(state.trace),
            solve_seconds=time.perf_counter() - started,
            trace=tuple(state.trace),
        )


class _Iterate(NamedTuple):
    """The blocks (m,) that are not zero, rising, and their weights (m, p), replaced together."""

    blocks: IntArray
    weights: FloatArray


class _State:
    """The iterate of a run, the best so far, the bound, and what earlier rounds know of each block, for targets of unit size."""

    def __init__(self, program: Program, settings: ActiveSet) -> None:
        self.settings = settings
        self.unit = program.loss.scale(program.y)
        self.y, self.beta = program.y / self.unit, program.beta / self.unit
        self.loss = program.loss.rescaled(self.unit)
        self.smooth = smooth(self.loss, WIDTH)
        self.blocks = Blocks(program)
        count = 2 * self.blocks.arrangements
        self.faces = self.blocks.cones.no_faces(count)
        self.upper = np.full(count, np.inf)
        self.centres = np.zeros((count, program.basis.shape[1]))
        self.shift = np.zeros_like(self.y)
        self.iterate = self._warm_start()
        self.best, self.lowest = self.iterate, self.objective(self.iterate)
        self.dual, self.bound = np.zeros_like(self.y), -self.loss.conjugate(np.zeros_like(self.y), self.y)
        self.sigma, self.stalled = 0.0, 0
        self.trace: list[Round] = []
        if settings.checkpoint is not None:
            patterns = np.packbits(self.blocks.active, axis=1)
            same = (settings.tolerance, settings.warm_start)
            self.run = fingerprint(program.basis, program.y, program.beta, program.loss, program.pooling, patterns, same)
            self._load(load_checkpoint(settings.checkpoint, self.run))

    def _warm_start(self) -> _Iterate:
        empty = _Iterate(np.zeros(0, dtype=np.int64), np.zeros((0, self.centres.shape[1])))
        if self.settings.warm_start is None or not len(self.settings.warm_start[0]):
            return empty
        directions, outputs = self.settings.warm_start
        return self._merged(self.blocks.homes(directions), directions, outputs[:, 0] / self.unit)

    def save(self) -> None:
        """Write the checkpoint, where there is to be one."""
        if self.settings.checkpoint is None:
            return
        pairs = {f"{name}_{half}": array for name in ("iterate", "best") for half, array in getattr(self, name)._asdict().items()}
        known = {name: getattr(self, name) for name in (*ARRAYS, "lowest", "bound", "sigma", "stalled")}
        save_checkpoint(self.settings.checkpoint, self.run, {**pairs, **known, "trace": np.array([astuple(entry) for entry in self.trace])})

    def _load(self, saved: dict[str, Any] | None) -> None:
        """Go on from a checkpoint."""
        if saved is None:
            return
        self.iterate, self.best = (_Iterate(saved[f"{name}_blocks"], saved[f"{name}_weights"]) for name in ("iterate", "best"))
        self.faces, self.upper, self.centres, self.shift, self.dual = (saved[name] for name in ARRAYS)
        self.lowest, self.bound, self.sigma = (float(saved[name]) for name in ("lowest", "bound", "sigma"))
        self.stalled = int(saved["stalled"])
        self.trace = [Round(objective, gap, int(neurons), seconds) for objective, gap, neurons, seconds in saved["trace"].tolist()]

    @property
    def gap(self) -> float:
        """Of the best iterate to the bound, relative."""
        return max(0.0, self.lowest - self.bound) / self.lowest if self.lowest > 0 else 0.0

    def neurons(self, iterate: _Iterate) -> tuple[FloatArray, FloatArray]:
        """Unit directions (m, p) and outputs (m,)."""
        sizes = np.linalg.norm(iterate.weights, axis=1)
        return iterate.weights / sizes[:, None], self.blocks.signs(iterate.blocks) * sizes

    def objective(self, iterate: _Iterate) -> float:
        """As a network: ReLU, not the arrangements that the blocks assume."""
        directions, outputs = self.neurons(iterate)
        f = self.blocks.pooling.pool(np.maximum(self.blocks.basis @ directions.T, 0.0)) @ outputs
        return self.loss.value(f, self.y) + self.beta * float(np.sum(np.abs(outputs)))

    def round(self) -> None:
        """Price; then, unless that ends the run, bring in what violates the dual."""
        before = self.gap
        fresh, projections, lengths = self.price()
        if self.gap > self.settings.tolerance:
            if self.gap > FINE and len(self.trace) < ROUGH_ROUNDS and not self.sigma and not self.stalled:
                self.fit_amplitudes(fresh, projections / lengths[:, None])
            else:
                self.approach(fresh)
        self.stalled = 0 if self.gap < LESS * before else self.stalled + 1

    def price(self) -> tuple[IntArray, FloatArray, FloatArray]:
        """The blocks that violate the dual at V, with their projections and lengths; and the bound, where it is the best so far.

        A block's length changes by no more than its centre moves. What that leaves open is worked out in batches, the present
        blocks first and then those that look best by their cone's axis, until enough are found: all of them, towards the end.
        """
        target = SmoothLoss(self.smooth, self.y, self.shift)
        v = -target.gradient(self.blocks.predictions(*self.iterate))
        half = self.blocks.centres(v, np.arange(self.blocks.arrangements))
        centres = np.concatenate([half, -half])
        self.upper = np.minimum(np.linalg.norm(centres, axis=1), self.upper + np.linalg.norm(centres - self.centres, axis=1))
        self.centres = centres
        worths = np.sum(half * self.blocks.axes, axis=1)
        present = np.isin(np.arange(len(self.upper)), self.iterate.blocks)
        order = np.lexsort((-np.concatenate([worths, -worths]), ~present))
        order = order[self.upper[order] > self.beta]
        found, fresh, batch = [], 0, min(BATCH, self.blocks.arrangements)
        for a in range(0, len(order), batch):
            some = order[a : a + batch]
            result = self.blocks.cones.project(self.blocks.index(some), centres[some], self.faces[some], SHORTER * self.beta)
            projections, self.upper[some], self.faces[some] = result
            dear = self.upper[some] > self.beta
            found.append((some[dear], projections[dear], self.upper[some][dear]))
            fresh += int(np.sum(dear & ~present[some]))
            if fresh >= FRESH:
                break
        self._believe(v, float(np.max(self.upper, initial=0.0)))
        if not found:
            return np.zeros(0, dtype=np.int64), centres[:0], np.zeros(0)
        blocks, projections, lengths = (np.concatenate(part) for part in zip(*found, strict=True))
        return blocks, projections, lengths

    def _believe(self, v: FloatArray, price: float) -> None:
        """Keep the bound of V, whose price is at most `price`, where it is the best so far."""
        v = -self.loss.project(-v, self.y)
        scaled = v * min(1.0, self.beta / price) if price > 0 else v
        bound = -self.loss.conjugate(-scaled, self.y)
        if bound > self.bound:
            self.dual, self.bound = scaled, bound

    def _accept(self, iterate: _Iterate) -> None:
        """Go on from there, and remember it where it is the best so far."""
        objective = self.objective(iterate)
        self.iterate = iterate
        if objective <= self.lowest:
            self.best, self.lowest = iterate, objective

    def _merged(self, index: IntArray, directions: FloatArray, outputs: FloatArray) -> _Iterate:
        """The blocks of neurons: those of one cone and sign add up, and their sum is no longer than they are together."""
        alive = (outputs != 0) & (index >= 0)
        blocks, place = np.unique(np.where(outputs > 0, index, index + self.blocks.arrangements)[alive], return_inverse=True)
        weights = np.zeros((len(blocks), directions.shape[1]))
        np.add.at(weights, place, np.abs(outputs[alive, None]) * directions[alive])
        return _Iterate(blocks, weights)

    def fit_amplitudes(self, fresh: IntArray, projections: FloatArray) -> None:
        """The best amplitudes of the present directions and the unit projections. A negative one is a neuron of the block's twin."""
        directions, outputs = self.neurons(self.iterate)
        index = self.blocks.index(np.concatenate([self.iterate.blocks, fresh]))
        directions = np.concatenate([directions, projections])
        outputs = np.concatenate([outputs, np.zeros(len(fresh))])[:, None]
        features = self.blocks.features(index, directions)
        outputs = fit_amplitudes(features, self.y[:, None], outputs, self.beta, self.smooth)[:, 0]
        self._accept(self._merged(index, directions, outputs))

    def approach(self, fresh: IntArray) -> None:
        """Proximal steps on the present blocks and the fresh ones, longer ones while they go well."""
        chosen = np.union1d(self.iterate.blocks, fresh)
        weights = np.zeros((len(chosen), self.centres.shape[1]))
        weights[np.searchsorted(chosen, self.iterate.blocks)] = self.iterate.weights
        predictions, faces = self.blocks.predictions(chosen, weights), self.faces[chosen]
        for _ in range(STEPS):
            unit = float(np.mean(np.linalg.norm(self.iterate.weights, axis=1))) / self.beta if len(self.iterate.blocks) else 1.0
            self.sigma = min(self.sigma or FIRST_STEP * unit, LONGEST_STEP * unit)
            target = SmoothLoss(self.smooth, self.y, self.shift)
            step = ProximalPoint(self.blocks, target, chosen, weights, self.beta, self.sigma)
            found = step.solve(predictions, faces)
            self.sigma *= GROWTH if found.full else 0.5 if found.solved else 0.1
            if not found.solved:
                continue
            if isinstance(self.smooth, Smoothed):
                self.shift = self.smooth.width * target.gradient(found.predictions)
            moved = float(np.linalg.norm(found.weights - weights))
            weights, predictions, faces = found[:3]
            alive = np.any(weights != 0, axis=1)
            self._accept(_Iterate(chosen[alive], weights[alive]))
            if moved <= SETTLED * float(np.linalg.norm(weights)):
                break
        self.faces[chosen] = faces


def _print(number: int, entry: Round) -> None:
    console().print(
        f"convexbn: round {number}, objective {entry.objective:.8g}, gap {entry.gap:.1e}, {entry.neurons} neurons, {entry.seconds:.1f} s"
    )
