"""The state of a run of the active set: the iterate, the best so far, the bound, and what earlier rounds know of each block."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from convexbn.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from convexbn.losses import Loss, of_unit_size
from convexbn.program import Program
from convexbn.smoothing import Smoothed, smooth
from convexbn.solution import Round, relative_gap, starting_neurons
from convexbn.solvers.active_set.blocks import Blocks, blocks_of
from convexbn.solvers.active_set.proximal import ProximalPoint, SmoothLoss
from convexbn.solvers.amplitudes import fit_amplitudes
from convexbn.validation import FloatArray, IntArray

if TYPE_CHECKING:
    from convexbn.solvers.active_set.solver import ActiveSet

BATCH, FRESH = 256, 20  # blocks priced at a time; so many that come anew are enough for a round
SHORTER = 0.98  # of beta: what a projection known to be shorter costs is not worth knowing
FINE, ROUGH_ROUNDS = 1e-2, 12  # the gap below which Newton takes over, or the round
STEPS, SETTLED = 3, 1e-2  # proximal steps a round, at most; the relative move after which it is priced again
# sigma beta / ||s||, the length of a proximal step: at first, at most, and its growth while Newton's steps are full.
FIRST_STEP, LONGEST_STEP, GROWTH = 10.0, 1e6, 5.0
WIDTH = 0.03  # of smoothed kinks, in the unit of the predictions; the limit of the steps is the kink itself
ARRAYS = ("faces", "upper", "centres", "shift", "dual")  # of the state, beside the iterates
LESS = 0.95  # a round without a gap that is less than that part of the one before has won nothing


class Iterate(NamedTuple):
    """The blocks (m,) that are not zero, by their numbers, rising, and their weights (m, p), replaced together."""

    blocks: IntArray
    weights: FloatArray


class State:
    """The state, for targets of unit size. Blocks are told apart by `numbers`, the same in all processes.

    Of `blocks`, those whose arrangements this process has, it knows lengths, centres and faces. The iterate, the bound and all else
    is known to every process alike: they are few blocks.
    """

    def __init__(self, program: Program, settings: ActiveSet) -> None:
        self.settings, self.shards = settings, replace(settings.shards, device=settings.device)
        self.y, self.loss, self.beta, self.unit = of_unit_size(program.y, program.loss, program.beta)
        self.blocks = blocks_of(program, device=settings.device, max_memory=settings.max_memory)
        self.numbers, self.half = self._numbered()
        count = len(self.numbers)
        self.axes = self.blocks.axes()
        self.faces = self.blocks.cones.no_faces(count)
        self.upper = np.full(count, np.inf)
        self.centres = np.zeros((count, program.basis.shape[1]))
        self.shift = np.zeros_like(self.y)
        self.lowest = np.inf
        self._accept(self._warm_start(program))
        self.dual, self.bound = np.zeros_like(self.y), -self.loss.conjugate(np.zeros_like(self.y), self.y)
        self.sigma, self.stalled = 0.0, 0
        self.trace: list[Round] = []
        if settings.checkpoint is not None:
            patterns = np.packbits(self.blocks.cones.active, axis=1)
            same = (settings.tolerance, settings.warm_start)
            self.run = fingerprint(program.basis, program.y, program.beta, program.loss, program.pooling, patterns, same)
            self._load(load_checkpoint(settings.checkpoint, self.run))

    def _numbered(self) -> tuple[IntArray, int]:
        """The numbers (2 P,) of this process' blocks, every so-manieth of all, and the number of the first s_i'."""
        rank, size = self.shards.place
        count = self.blocks.arrangements
        half = size * int(np.max(self.shards.gather((np.array([count]),))[0]))
        numbers = rank + size * np.arange(count)
        return np.concatenate([numbers, half + numbers]), half

    def _warm_start(self, program: Program) -> Iterate:
        directions, outputs = starting_neurons(self.settings.warm_start, program)
        if not len(directions):
            return Iterate(np.zeros(0, dtype=np.int64), np.zeros((0, self.centres.shape[1])))
        homes = self.blocks.homes(directions)
        known = np.full(len(homes), np.iinfo(np.int64).max)
        known[homes >= 0] = self.numbers[homes[homes >= 0]]
        first = np.min(self.shards.gather((known[None],))[0], axis=0)
        return self._merged(np.where(first < self.half, first, -1), directions, outputs[:, 0] / self.unit)

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
        self.iterate, self.best = (Iterate(saved[f"{name}_blocks"], saved[f"{name}_weights"]) for name in ("iterate", "best"))
        self.predictions = self.predict(self.iterate)
        self.faces, self.upper, self.centres, self.shift, self.dual = (saved[name] for name in ARRAYS)
        self.lowest, self.bound, self.sigma = (float(saved[name]) for name in ("lowest", "bound", "sigma"))
        self.stalled = int(saved["stalled"])
        self.trace = [Round(objective, gap, int(neurons), seconds) for objective, gap, neurons, seconds in saved["trace"].tolist()]

    @property
    def smooth_loss(self) -> Loss:
        """The loss, or its envelope where it has kinks."""
        return smooth(self.loss, WIDTH, self.shift)

    @property
    def gap(self) -> float:
        """Of the best iterate to the bound, relative."""
        return relative_gap(self.lowest, self.bound)

    def neurons(self, iterate: Iterate) -> tuple[FloatArray, FloatArray]:
        """Unit directions (m, p) and outputs (m,)."""
        sizes = np.linalg.norm(iterate.weights, axis=1)
        return iterate.weights / sizes[:, None], np.where(iterate.blocks < self.half, sizes, -sizes)

    def predict(self, iterate: Iterate) -> FloatArray:
        """As a network: ReLU, not the arrangements that the blocks assume; every block lies in its cone, so they are the same."""
        return self.blocks.network(*self.neurons(iterate))

    def round(self) -> None:
        """Price; then, unless that ends the run, bring in what violates the dual."""
        before = self.gap
        fresh, projections, lengths = self.price()
        wide = self.gap > FINE and len(self.trace) < ROUGH_ROUNDS and not self.sigma and not self.stalled
        missing, wide = self.shards.agreed((self.gap > self.settings.tolerance, wide))
        if missing and wide:
            self.fit_amplitudes(fresh, projections / lengths[:, None])
        elif missing:
            self.approach(fresh)
        self.stalled = 0 if self.gap < LESS * before else self.stalled + 1

    def price(self) -> tuple[IntArray, FloatArray, FloatArray]:
        """The blocks that violate the dual at V, with their projections and lengths; and the bound, where it is the best so far.

        A block's length changes by no more than its centre moves. What that leaves open is worked out in batches, the present
        blocks first and then those that look best by their cone's axis, until enough are found: all of them, towards the end.
        """
        v = -self.smooth_loss.gradient(self.predictions, self.y)
        half = self.blocks.centres(v)
        centres = np.concatenate([half, -half])
        self.upper = np.minimum(np.linalg.norm(centres, axis=1), self.upper + np.linalg.norm(centres - self.centres, axis=1))
        self.centres = centres
        found = [(self.numbers[:0], centres[:0], self.upper[:0])]
        for batch in self._batches(np.sum(half * self.axes, axis=1)):
            some = np.flatnonzero(np.isin(self.numbers, batch))
            result = self.blocks.cones.project(self.blocks.index(some), centres[some], self.faces[some], SHORTER * self.beta)
            projections, self.upper[some], self.faces[some] = result
            dear = self.upper[some] > self.beta
            found.append((self.numbers[some[dear]], projections[dear], self.upper[some][dear]))
            fresh = sum(int(np.sum(~np.isin(part[0], self.iterate.blocks))) for part in found)
            if self.shards.total_over_arrangements(float(fresh)) >= FRESH:
                break
        self._believe(v, self._largest())
        blocks, projections, lengths = self._gathered(*(np.concatenate(part) for part in zip(*found, strict=True)))
        return blocks, projections, lengths

    def _batches(self, worths: FloatArray) -> list[IntArray]:
        """The numbers of the blocks that may be longer than beta, of all processes, in the order in which they are worked out."""
        numbers, uppers, values = self._gathered(self.numbers, self.upper, np.concatenate([worths, -worths]))
        order = np.lexsort((-values, ~np.isin(numbers, self.iterate.blocks)))
        order, size = order[uppers[order] > self.beta], min(BATCH, len(numbers) // 2)
        return [numbers[order[a : a + size]] for a in range(0, len(order), size)]

    def _gathered(self, numbers: IntArray, *arrays: Any) -> Any:
        """Numbers of blocks and what belongs to them, of all processes, by rising number."""
        together = self.shards.gather((numbers, *arrays))
        order = np.argsort(together[0])
        return tuple(array[order] for array in together)

    def _largest(self) -> float:
        """A bound on the price of the present dual point, over all processes."""
        import torch

        return self.shards.largest(torch.as_tensor(self.upper, device=self.settings.device))

    def _believe(self, v: FloatArray, price: float) -> None:
        """Keep the bound of V, whose price is at most `price`, where it is the best so far."""
        v = -self.loss.project(-v, self.y)
        scaled = v * min(1.0, self.beta / price) if price > 0 else v
        bound = -self.loss.conjugate(-scaled, self.y)
        if bound > self.bound:
            self.dual, self.bound = scaled, bound

    def _accept(self, iterate: Iterate) -> None:
        """Go on from there, and remember it where it is the best so far."""
        predictions = self.predict(iterate)
        objective = self.loss.value(predictions, self.y) + self.beta * float(np.sum(np.linalg.norm(iterate.weights, axis=1)))
        self.iterate, self.predictions = iterate, predictions
        if objective <= self.lowest:
            self.best, self.lowest = iterate, objective

    def _merged(self, numbers: IntArray, directions: FloatArray, outputs: FloatArray) -> Iterate:
        """The blocks of neurons, of arrangements `numbers` or -1: those of one cone and sign add up, to no more than they are together."""
        alive = (outputs != 0) & (numbers >= 0)
        blocks, place = np.unique(np.where(outputs > 0, numbers, numbers + self.half)[alive], return_inverse=True)
        weights = np.zeros((len(blocks), directions.shape[1]))
        np.add.at(weights, place, np.abs(outputs[alive, None]) * directions[alive])
        return Iterate(blocks, weights)

    def fit_amplitudes(self, fresh: IntArray, projections: FloatArray) -> None:
        """The best amplitudes of the present directions and the unit projections. A negative one is a neuron of the block's twin."""
        directions, outputs = self.neurons(self.iterate)
        numbers = np.concatenate([self.iterate.blocks, fresh]) % self.half
        directions = np.concatenate([directions, projections])
        outputs = np.concatenate([outputs, np.zeros(len(fresh))])[:, None]
        outputs = fit_amplitudes(self.blocks.activations(directions), self.y[:, None], outputs, self.beta, smooth(self.loss, WIDTH))[:, 0]
        self._accept(self.shards.agreed(self._merged(numbers, directions, outputs)))

    def approach(self, fresh: IntArray) -> None:
        """Proximal steps on the present blocks and the fresh ones, longer ones while they go well: every process takes them all."""
        chosen = np.union1d(self.iterate.blocks, fresh)
        mine = np.flatnonzero(np.isin(self.numbers, chosen))
        patterns = np.packbits(self.blocks.cones.active[self.blocks.index(mine)], axis=1)
        _, patterns, faces = self._gathered(self.numbers[mine], patterns, self.faces[mine])
        blocks = self.blocks.take(np.unpackbits(patterns, axis=1, count=self.blocks.cones.active.shape[1]).astype(np.bool_))
        weights = np.zeros((len(chosen), self.centres.shape[1]))
        weights[np.searchsorted(chosen, self.iterate.blocks)] = self.iterate.weights
        faces = self._steps(blocks, chosen, weights, faces)
        shared = self.iterate, self.predictions, self.best, self.lowest, self.shift, self.sigma, faces
        self.iterate, self.predictions, self.best, self.lowest, self.shift, self.sigma, faces = self.shards.agreed(shared)
        self.faces[mine] = faces[np.searchsorted(chosen, self.numbers[mine])]

    def _steps(self, blocks: Blocks, chosen: IntArray, weights: FloatArray, faces: IntArray) -> IntArray:
        """The steps on `blocks`, one for each of the chosen numbers, from weights (m, p) and faces (m, p); their faces after them."""
        local = np.arange(len(chosen)) + len(chosen) * (chosen >= self.half)
        predictions = blocks.predictions(local, weights)
        for _ in range(STEPS):
            unit = float(np.mean(np.linalg.norm(self.iterate.weights, axis=1))) / self.beta if len(self.iterate.blocks) else 1.0
            self.sigma = min(self.sigma or FIRST_STEP * unit, LONGEST_STEP * unit)
            envelope = self.smooth_loss
            found = ProximalPoint(blocks, SmoothLoss(envelope, self.y), local, weights, self.beta, self.sigma).solve(predictions, faces)
            self.sigma *= GROWTH if found.full else 0.5 if found.solved else 0.1
            if not found.solved:
                continue
            if isinstance(envelope, Smoothed):
                self.shift = envelope.next_shift(found.predictions, self.y)
            moved = float(np.linalg.norm(found.weights - weights))
            weights, predictions, faces = found[:3]
            alive = np.any(weights != 0, axis=1)
            self._accept(Iterate(chosen[alive], weights[alive]))
            if moved <= SETTLED * float(np.linalg.norm(weights)):
                break
        return faces
