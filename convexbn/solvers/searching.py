"""The pricing of sliding Frank-Wolfe: how much is searched, from where, and on which device."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from convexbn.patches import Pooling
from convexbn.pricing import (
    affordable,
    blind,
    climb,
    directions_around,
    directions_between,
    distinct,
    evolve,
    local_search,
    narrow,
    random_directions,
)
from convexbn.pricing.local import SHARP, normalised
from convexbn.threads import LARGE
from convexbn.validation import FloatArray

PER_COLUMN, FEWEST = 4, 64  # random starts; for a large basis fewer
MOST = 4  # times as many, before it is believed that there is nothing to find
FINE, NARROW = (0.03, 0.0), 3 * SHARP  # kinks of searches that begin at neurons, and of those for narrow maxima
# Kinks of the others: of the directions that wide ones end at, the best half go on; h there tells already where it ends high. With
# more than FEW columns, steps between them have to be smaller, or searches jam.
WIDE, CLOSE, HALF = (1.0, 0.5, 0.2), (0.1, 0.03, 0.0), 2
WIDE_FINER, CLOSE_FINER, FEW = (1.0, 0.7, 0.5, 0.3, 0.2), (0.1, 0.05, 0.03, 0.0), 32
# With one output, hasty searches, while the gap is large, have few kinks; later ones begin half at random and half at these distances
# from neurons, where nearly all that is missing lies then, and go on with kinks that leave those distances be.
HASTY = (0.3, 0.1, 0.03)
DISTANCES, NEARBY = (0.2, 0.35, 0.5), (0.2, 0.1, 0.05, 0.02, 0.0)
# Climbs are for the last digits: neurons sit on so many facets then that searches end below them, and each has maxima beside it.
AROUND, BESIDE, CLOSEST = 6, (0.1, 0.2, 0.4, 0.8), (0.1, 0.03, 0.0)  # starts for each neuron, how far from it, and their kinks
FEET, APART, PROMISING = 100, 0.9999, 0.98  # at most so many, with smaller cosines, worth more than so much of beta
GENERATIONS, CLIMBS = 2, 32  # of a thorough search
# With several outputs high maxima come in families, often far from all neurons, and few starts end in one. But each end is near better
# ones: leaving the best again and again, as far as FAR, found forty times as many neurons in the time of searches from new starts.
SHORT, SHORTER = (0.3, 0.2, 0.1, 0.05, 0.0), (0.2, 0.1, 0.05, 0.0)  # kinks of half of the first searches, and of those that follow
# As many as a fourth of the starts, no two of them alike, have CHILDREN each, in FOLLOWING generations.
FAR, ALIKE = 0.8, 0.995
PARENTS, CHILDREN, FOLLOWING = 4, 2, 8
SINGLE: str = "float32"
BLOCK = 2**24  # numbers in memory at a time


class Finds(NamedTuple):
    """Directions (N, r+1), h of each (N,), and whether the search went as far as any does: not where maxima are narrow."""

    directions: FloatArray
    worths: FloatArray
    complete: bool


class Reach(enum.Enum):
    """Of a search: a quick one, a full one, or one that climbs to exact local maxima."""

    HASTY = enum.auto()
    FULL = enum.auto()
    SHARP = enum.auto()


class LocalSearch(Protocol):
    """From V on the rows of the basis and starts to local maxima of h, all in float64 outside."""

    def __call__(self, v: FloatArray, starts: FloatArray, widths: tuple[float, ...]) -> FloatArray:
        """Unit directions, in the order of the starts."""
        ...


class OnCPU:
    """`convexbn.pricing.local_search` in single precision, which is enough, as finds are priced again."""

    def __init__(self, basis: FloatArray) -> None:
        self.basis = basis.astype(SINGLE)

    def __call__(self, v: FloatArray, starts: FloatArray, widths: tuple[float, ...]) -> FloatArray:
        """Unit directions, in the order of the starts."""
        return local_search(self.basis, _rough(v), starts.astype(SINGLE), widths=widths)[0].astype(np.float64)


def _rough(v: FloatArray) -> FloatArray:
    """V in single precision, of unit size."""
    return (v / (np.max(np.abs(v), initial=0.0) or 1.0)).astype(SINGLE)


class Search:
    """Searches for neurons with h(s) = ||V^T p (U's)_+|| > beta."""

    def __init__(self, basis: FloatArray, pooling: Pooling, beta: float, starts: int | None, seed: int, device: str) -> None:
        from convexbn.solvers.torch_search import OnDevice

        self.basis, self.pooling, self.beta, self.seed = basis, pooling, beta, seed
        self.starts = starts or affordable(basis, max(FEWEST, PER_COLUMN * basis.shape[1]))
        self.local: LocalSearch = OnCPU(basis) if device == "cpu" else OnDevice(basis, device)

    def __call__(
        self, v: FloatArray, neurons: FloatArray, enough: float, *, draw: int, reach: Reach, look_at_clock: Callable[[], None]
    ) -> Finds:
        """With one output search from random starts and around the neurons (m, r+1) until one is worth more than `enough`, of twice as many
        each time, by turns on rounded and on sharp kinks. Random starts find what is missing, the others what isn't quite in place.
        """
        rows = self.pooling.spread(v)
        if rows.shape[1] > 1:
            return self.in_families(rows, neurons, enough, (self.seed, draw), look_at_clock)
        if reach is Reach.HASTY:
            return self.hasty(rows, neurons, (self.seed, draw))
        sharp, parts = reach is Reach.SHARP, [neurons]
        spent, complete = 0, True
        while complete and spent < MOST * self.starts:
            look_at_clock()
            count, seed = max(spent, self.starts), (self.seed, draw, spent)
            starts = self.begin(neurons, count, seed)
            parts.append(self.local(rows, starts, NARROW) if spent == self.starts else self.in_stages(rows, starts))
            if sharp:
                parts.append(self.local(rows, self.around(neurons, AROUND * len(neurons), BESIDE, seed), CLOSEST))
            else:
                parts.append(self.local(rows, self.around(neurons, count, DISTANCES, seed), NEARBY))
            spent += count
            complete = max(float(np.max(self.worths(rows, part), initial=0.0)) for part in parts[1:]) <= enough
        directions = np.concatenate(parts)
        if sharp:
            feet = distinct(directions, self.worths(rows, directions), cosine=APART, most=FEET, threshold=PROMISING * self.beta)
            complete = complete and not narrow(self.basis)
            return self.climbed(v, np.concatenate([neurons, directions[feet]]), directions[:0])._replace(complete=complete)
        return Finds(directions, self.worths(rows, directions), complete)

    def in_families(
        self, rows: FloatArray, neurons: FloatArray, enough: float, seed: tuple[int, ...], look_at_clock: Callable[[], None]
    ) -> Finds:
        """Search near the neurons, and at random and between pairs of neurons; then around the best ends of these, and again around
        the best of all, until every one of the best is worth more than `enough`.
        """
        starts = random_directions(max(self.starts, len(neurons)), self.basis.shape[1], seed)
        if len(neurons):
            one, other = neurons[np.random.default_rng(seed).integers(len(neurons), size=(2, len(starts[::2])))]
            starts[::2] = normalised(one + other)
        ends = np.concatenate([self.local(rows, starts[::2], SHORT), self.in_stages(rows, starts[1::2])])
        worths = self.worths(rows, ends)
        for generation in range(FOLLOWING):
            look_at_clock()
            best = distinct(ends, worths, cosine=ALIKE, most=-(-len(starts) // PARENTS))
            if not best or worths[best[-1]] > enough:
                break
            found = self.local(rows, directions_around(ends[best], CHILDREN, (FAR,), (*seed, generation)), SHORTER)
            ends, worths = np.concatenate([ends, found]), np.concatenate([worths, self.worths(rows, found)])
        near = self.local(rows, neurons, FINE)
        return Finds(np.concatenate([near, ends]), np.concatenate([self.worths(rows, near), worths]), False)

    def hasty(self, rows: FloatArray, neurons: FloatArray, seed: tuple[int, ...]) -> Finds:
        """Directions that a short search finds, half from around the neurons."""
        half = -(-self.starts // 2)
        starts = np.concatenate([self.around(neurons, half, DISTANCES, seed), self.begin(neurons, half, seed)])
        found = self.local(rows, starts, HASTY)
        return Finds(found, self.worths(rows, found), False)

    def around(self, neurons: FloatArray, count: int, distances: tuple[float, ...], seed: tuple[int, ...]) -> FloatArray:
        """Unit directions at these distances from random neurons, none without neurons."""
        chosen = np.random.default_rng(seed).integers(max(1, len(neurons)), size=min(count, count * len(neurons)))
        return directions_around(neurons[chosen], 1, distances, seed)

    def climbed(self, v: FloatArray, feet: FloatArray, known: FloatArray) -> Finds:
        """The exact local maxima above these feet, without a search, and directions that are known."""
        rows = self.pooling.spread(v)
        tops = np.concatenate([climb(self.basis, rows, feet), known])
        return Finds(tops, self.worths(rows, tops), False)

    def begin(self, neurons: FloatArray, count: int, seed: tuple[int, ...]) -> FloatArray:
        """Unit directions, random, and with many samples a column every other one between neurons and samples instead."""
        starts = random_directions(count, self.basis.shape[1], seed)
        if not narrow(self.basis):  # random starts find more narrow maxima
            starts[::2] = directions_between(neurons, self.basis, len(starts[::2]), seed)
        return starts

    def in_stages(self, rows: FloatArray, starts: FloatArray) -> FloatArray:
        """The unit directions where searches end, on kinks ever sharper; of those on wide kinks half are given up."""
        wide, close = (WIDE, CLOSE) if self.basis.shape[1] <= FEW else (WIDE_FINER, CLOSE_FINER)
        ends = self.local(rows, starts, wide)
        promising = np.argsort(-self.worths(rows, ends), kind="stable")[: -(-len(ends) // HALF)]
        return self.local(rows, ends[promising], close)

    def thorough(self, v: FloatArray, neurons: FloatArray, draw: int) -> FloatArray:
        """Unit directions that a search on sharp kinks finds, in generations, from many random starts and the neurons, and climbs.

        On few samples maxima are narrow, and this finds most of what the others miss; with many it finds less than they do.
        """
        starts, seed = MOST * self.starts, (self.seed, draw)
        begin = np.concatenate([self.begin(neurons, starts, seed), neurons]).astype(SINGLE)
        basis, rows = self.basis.astype(SINGLE), self.pooling.spread(v)
        found: FloatArray = evolve(basis, _rough(rows), begin, seed=seed, children=starts, generations=GENERATIONS)[0].astype(np.float64)
        if self.basis.size >= LARGE:  # a climb there is a least squares problem with all samples
            return found
        best = distinct(found, self.worths(rows, found), cosine=APART, most=CLIMBS, threshold=0.0)
        return np.concatenate([found, climb(self.basis, rows, np.concatenate([found[best], blind(self.basis, seed)]))])

    def worths(self, rows: FloatArray, directions: FloatArray) -> FloatArray:
        """h of each direction, for V on the rows of the basis."""
        parts = np.array_split(directions, 1 + directions.shape[0] * len(self.basis) // BLOCK)
        worths: FloatArray = np.concatenate([np.linalg.norm(rows.T @ np.maximum(self.basis @ part.T, 0.0), axis=0) for part in parts])
        return worths
