"""The pricing of sliding Frank-Wolfe: how much is searched, from where, and on which device."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from convexbn.patches import Pooling
from convexbn.pricing import (
    LocalSearch,
    affordable,
    climb,
    directions_around,
    directions_between,
    directions_near,
    distinct,
    mixed_search,
    narrow,
    random_directions,
    thorough_search,
    worths_of,
)
from convexbn.pricing.local import OnCPU, normalised
from convexbn.pricing.thorough import APART, NARROW, PROMISING
from convexbn.validation import FloatArray

PER_COLUMN, FEWEST = 4, 64  # random starts; for a large basis fewer
MOST = 4  # times as many, before it is believed that there is nothing to find
FINE = 0.03, 0.0  # kinks of searches that begin at neurons
# Kinks of the others: of the directions that wide ones end at, the best half go on; h there tells already where it ends high. With
# more than FEW columns, steps between them have to be smaller, or searches jam.
WIDE, CLOSE, HALF = (1.0, 0.5, 0.2), (0.1, 0.03, 0.0), 2
WIDE_FINER, CLOSE_FINER, FEW = (1.0, 0.7, 0.5, 0.3, 0.2), (0.1, 0.05, 0.03, 0.0), 32
# With one output, hasty searches, while the gap is large, have few kinks; later ones begin half at random and half at these distances
# from neurons, where nearly all that is missing lies then, and go on with kinks that leave those distances be.
HASTY = (0.3, 0.1, 0.03)
DISTANCES, NEARBY = (0.2, 0.35, 0.5), (0.2, 0.1, 0.05, 0.02, 0.0)
# Climbs are for the last digits: neurons sit on so many facets then that searches end below them, and each has maxima beside it.
FEET = 40  # that climbs begin at, at most, in each batch of starts
THOROUGH = 2000  # starts, at least, of a thorough search; for a large basis fewer
# With several outputs high maxima come in families, often far from all neurons, and few starts end in one. But each end is near better
# ones: leaving the best again and again, as far as FAR, found forty times as many neurons in the time of searches from new starts.
SHORT, SHORTER = (0.3, 0.2, 0.1, 0.05, 0.0), (0.2, 0.1, 0.05, 0.0)  # kinks of half of the first searches, and of those that follow
# As many as a fourth of the starts, no two of them alike, have CHILDREN each, in FOLLOWING generations.
FAR, ALIKE = 0.8, 0.995
PARENTS, CHILDREN, FOLLOWING = 4, 2, 8


class Finds(NamedTuple):
    """Directions (N, r+1), and h of each (N,)."""

    directions: FloatArray
    worths: FloatArray


class Reach(enum.Enum):
    """Of a search: a quick one, a full one, or one that climbs to exact local maxima."""

    HASTY = enum.auto()
    FULL = enum.auto()
    SHARP = enum.auto()


class Search:
    """Searches for neurons with h(s) = ||V^T p (U's)_+|| > beta."""

    def __init__(self, basis: FloatArray, pooling: Pooling, beta: float, starts: int | None, seed: int, device: str) -> None:
        from convexbn.solvers.torch_search import OnDevice

        self.basis, self.pooling, self.beta, self.seed = basis, pooling, beta, seed
        self.starts = starts or affordable(basis, max(FEWEST, PER_COLUMN * basis.shape[1]))
        self.local: LocalSearch = OnCPU(basis) if device == "cpu" else OnDevice(basis, device)

    def __call__(
        self,
        v: FloatArray,
        neurons: FloatArray,
        known: FloatArray,
        enough: float,
        *,
        draw: int,
        reach: Reach,
        look_at_clock: Callable[[], None],
    ) -> Finds:
        """With one output search from random starts and around the neurons (m, r+1) until one is worth more than `enough`, of twice as many
        each time, by turns on rounded and on sharp kinks. Random starts find what is missing, the others what isn't quite in place.
        A search that climbs begins with the maxima above neurons and `known` directions (N, r+1).
        """
        rows = self.pooling.spread(v)
        if rows.shape[1] > 1:
            return self.in_families(rows, neurons, enough, (self.seed, draw), look_at_clock)
        if reach is Reach.HASTY:
            return self.hasty(rows, neurons, (self.seed, draw))
        if reach is Reach.SHARP:
            found = self.climbed(v, np.concatenate([neurons, known]), neurons[:0])
            return self.sharp(found, v, neurons, enough, (self.seed, draw), look_at_clock)
        parts, spent = [neurons], 0
        while spent < MOST * self.starts:
            look_at_clock()
            count, seed = max(spent, self.starts), (self.seed, draw, spent)
            starts = self.begin(neurons, count, seed)
            parts.append(self.local(rows, starts, NARROW) if spent == self.starts else self.in_stages(rows, starts))
            parts.append(self.local(rows, directions_near(neurons, count, DISTANCES, seed), NEARBY))
            spent += count
            if max(float(np.max(self.worths(rows, part), initial=0.0)) for part in parts[-2:]) > enough:
                break
        directions = np.concatenate(parts)
        return Finds(directions, self.worths(rows, directions))

    def sharp(
        self, found: Finds, v: FloatArray, neurons: FloatArray, enough: float, seed: tuple[int, ...], look_at_clock: Callable[[], None]
    ) -> Finds:
        """Add exact local maxima above where searches end, of twice as many starts each time, until one is worth more than `enough`."""
        rows, spent = self.pooling.spread(v), 0
        while spent < MOST * self.starts:
            look_at_clock()
            count = max(spent, self.starts)
            ends = mixed_search(self.local, rows, neurons, count, (*seed, spent))
            feet = distinct(ends, self.worths(rows, ends), cosine=APART, most=FEET, threshold=PROMISING * self.beta)
            found = self.climbed(v, ends[feet], found.directions)
            if float(np.max(found.worths, initial=0.0)) > enough:
                break
            spent += count
        return found

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
        return Finds(np.concatenate([near, ends]), np.concatenate([self.worths(rows, near), worths]))

    def hasty(self, rows: FloatArray, neurons: FloatArray, seed: tuple[int, ...]) -> Finds:
        """Directions that a short search finds, half from around the neurons."""
        half = -(-self.starts // 2)
        starts = np.concatenate([directions_near(neurons, half, DISTANCES, seed), self.begin(neurons, half, seed)])
        found = self.local(rows, starts, HASTY)
        return Finds(found, self.worths(rows, found))

    def climbed(self, v: FloatArray, feet: FloatArray, known: FloatArray) -> Finds:
        """The exact local maxima above these feet, without a search, and directions that are known."""
        rows = self.pooling.spread(v)
        tops = np.concatenate([climb(self.basis, rows, feet), known])
        return Finds(tops, self.worths(rows, tops))

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
        """Unit directions of a search that starts as often as all searches before it together.

        For a claim is made where a search finds nothing, and of many searches one finds nothing by chance.
        """
        count = max(affordable(self.basis, THOROUGH), self.starts * draw) if v.shape[1] == 1 else MOST * self.starts
        return thorough_search(self.local, self.basis, self.pooling.spread(v), neurons, count, (self.seed, draw, count))

    def worths(self, rows: FloatArray, directions: FloatArray) -> FloatArray:
        """h of each direction, for V on the rows of the basis."""
        return worths_of(self.basis, rows, directions)
