"""The pricing of sliding Frank-Wolfe: how much is searched, from where, and on which device."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from convexbn.patches import Pooling
from convexbn.pricing import (
    LocalSearch,
    OnCPU,
    affordable,
    climb,
    directions_between,
    directions_near,
    distinct,
    mixed_search,
    narrow,
    random_directions,
    search_families,
    search_in_stages,
    thorough_search,
    worths_of,
)
from convexbn.pricing.families import AROUND, SHORT
from convexbn.pricing.thorough import APART, NARROW, PROMISING
from convexbn.validation import FloatArray

PER_COLUMN, FEWEST = 4, 64  # random starts; for a large basis fewer
MOST = 4  # times as many, before it is believed that there is nothing to find
FINE = 0.03, 0.0  # kinks of searches that begin at neurons
# With one output, hasty searches, while the gap is large, have few kinks, and begin half at random and half at these distances from
# neurons. Of later ones up to four fifths begin AROUND neurons, where most of what is missing lies then: at n = 2000, r = 50 and a gap
# of 1e-3 starts so far away led to five times as many maxima a second as nearer ones, and to ten times as many as random ones.
HASTY, DISTANCES = (0.3, 0.1, 0.03), (0.2, 0.35, 0.5)
NEAR = 4  # of them for each at random, where there are enough neurons
# Climbs are for the last digits: neurons sit on so many facets then that searches end below them, and each has maxima beside it.
FEET = 40  # that climbs begin at, at most, in each batch of starts
THOROUGH = 2000  # starts, at least, of a thorough search; for a large basis fewer


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
        parts = [neurons]
        for spent, count in self.batches():
            look_at_clock()
            seed = (self.seed, draw, spent)
            starts = self.begin(neurons, count, seed)
            sharp = spent == self.starts
            parts.append(self.local(rows, starts, NARROW) if sharp else search_in_stages(self.local, self.basis, rows, starts))
            around = max(count, NEAR * min(count, len(neurons)))
            parts.append(self.local(rows, directions_near(neurons, around, AROUND, seed), SHORT))
            if max(float(np.max(self.worths(rows, part), initial=0.0)) for part in parts[-2:]) > enough:
                break
        directions = np.concatenate(parts)
        return Finds(directions, self.worths(rows, directions))

    def sharp(
        self, found: Finds, v: FloatArray, neurons: FloatArray, enough: float, seed: tuple[int, ...], look_at_clock: Callable[[], None]
    ) -> Finds:
        """Add exact local maxima above where searches end, of twice as many starts each time, until one is worth more than `enough`."""
        rows = self.pooling.spread(v)
        for spent, count in self.batches():
            look_at_clock()
            ends = mixed_search(self.local, rows, neurons, count, (*seed, spent))
            feet = distinct(ends, self.worths(rows, ends), cosine=APART, most=FEET, threshold=PROMISING * self.beta)
            found = self.climbed(v, ends[feet], found.directions)
            if float(np.max(found.worths, initial=0.0)) > enough:
                break
        return found

    def batches(self) -> Iterator[tuple[int, int]]:
        """How many starts were spent before, and how many come next, as many as all before, until there were MOST times as many."""
        spent = 0
        while spent < MOST * self.starts:
            count = max(spent, self.starts)
            yield spent, count
            spent += count

    def in_families(
        self, rows: FloatArray, neurons: FloatArray, enough: float, seed: tuple[int, ...], look_at_clock: Callable[[], None]
    ) -> Finds:
        """Search from neurons, and for families of maxima until every one of the best is worth more than `enough`."""
        count = max(self.starts, len(neurons))
        ends, worths = search_families(self.local, self.basis, rows, neurons, count, seed, enough=enough, pause=look_at_clock)
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

    def thorough(self, v: FloatArray, neurons: FloatArray, draw: int) -> FloatArray:
        """Unit directions of a search that starts as often as all searches before it together.

        For a claim is made where a search finds nothing, and of many searches one finds nothing by chance.
        """
        count = max(affordable(self.basis, THOROUGH), self.starts * draw) if v.shape[1] == 1 else MOST * self.starts
        return thorough_search(self.local, self.basis, self.pooling.spread(v), neurons, count, (self.seed, draw, count))

    def worths(self, rows: FloatArray, directions: FloatArray) -> FloatArray:
        """h of each direction, for V on the rows of the basis."""
        return worths_of(self.basis, rows, directions)
