"""A proof over all arrangements by branch and bound on boxes: as tight as time allows, in few dimensions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convexbn.pricing.cells import trivial_bound
from convexbn.validation import FloatArray, IntArray

BATCH = 512  # boxes split at once: the images of both halves are a matrix of 2 BATCH x n, best in the cache
ROUND = 65_536  # the most that are taken out of the others at once, which copies these
FRONTIER = 1_000_000  # open boxes in memory; beyond that the newest are split first, which needs no more
BISECTIONS, NEAR = 12, 0.99  # from so much of the goal up: what is below it is done anyway
BENT_NORM = 0.25  # what T ||s|| bends beside the samples, for the choice of a cut; where no sample bends it is all there is
STRIDE = 0.7  # of the step that makes the concave terms tighter, in units in which a slope goes from 0 to 1
BOX_COLUMNS = 8  # the number of boxes grows exponentially with the columns of the basis: with more, other proofs are better


@dataclass(frozen=True)
class Boxes:
    """Open boxes on the surface of the cube [-1, 1]^(r+1).

    Attributes
    ----------
    centre, half : (N, r+1) centres and half-widths
    bound : (N,) on h in each
    side : (N,) the coordinate that the next cut goes across
    """

    centre: FloatArray
    half: FloatArray
    bound: FloatArray
    side: IntArray

    def __len__(self) -> int:
        return len(self.bound)

    def take(self, rows: np.ndarray | slice) -> Boxes:
        """The boxes of those rows."""
        return Boxes(self.centre[rows], self.half[rows], self.bound[rows], self.side[rows])

    @classmethod
    def joined(cls, parts: Sequence[Boxes]) -> Boxes:
        """All boxes of the parts."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("centre", "half", "bound", "side")))

    def halved(self) -> Boxes:
        """Both halves of each box."""
        rows = np.arange(len(self))
        half = self.half.copy()
        half[rows, self.side] *= 0.5
        step = np.zeros_like(half)
        step[rows, self.side] = half[rows, self.side]
        both = (np.concatenate([self.centre - step, self.centre + step]), np.concatenate([half, half]))
        return Boxes(*both, np.concatenate([self.bound, self.bound]), np.concatenate([self.side, self.side]))


def bound_by_boxes(basis: FloatArray, v: FloatArray, lower: float, *, tolerance: float, seconds: float) -> float:
    """A proved upper bound on max over ||s|| <= 1 of v^T (U's)_+, at most (1 + tolerance) `lower` if the time suffices: see `BoxSearch`."""
    return BoxSearch(basis, v, lower, tolerance=tolerance).advance(seconds)


class BoxSearch:
    """A proved upper bound on max over ||s|| <= 1 of v^T (U's)_+ that falls with time, down to (1 + tolerance) `lower`.

    The maximum is homogeneous, so it is taken of v^T (U's)_+ / ||s|| over the surface of a cube. In a box each t_i = u_i^T s has
    a range; v_i (t_i)_+ is at most its chord there for v_i > 0, and at most v_i a_i t_i, 0 <= a_i <= 1, for v_i < 0: a linear bound
    g^T s + d in all. For T >= 0 with g^T s + d <= T s^T o over the box, o any unit vector, the ratio is at most T; the smallest
    such T is found by bisection, with o the centre of the box. Where it leaves the box open, the slopes a_i are moved to where they
    cost less at the s that attains the bound, o to that s, and T is looked for again, which takes a third off what the bound is loose
    by. Boxes with T <= (1 + tolerance) `lower` are done, the worst others are halved, across the side along which the samples bend
    most. Both together need a third of the boxes that a cut across the longest side needs without them, in seven columns. The bound
    is the largest T left, valid whenever the search stops, and it can go on.

    Parameters
    ----------
    basis : (n, r+1) U'; the number of boxes grows exponentially in r, 7 columns are much already
    v : (n,) V, or -V
    lower : a value that is attained
    tolerance : relative, where to stop
    """

    def __init__(self, basis: FloatArray, v: FloatArray, lower: float, *, tolerance: float) -> None:
        width = basis.shape[1]
        self._samples = _Samples(basis, v, (1.0 + tolerance) * lower)
        self._done, self._stopped = 0.0, False
        identity = np.eye(width)
        faces = np.concatenate([identity, -identity])
        trivial = np.full(len(faces), trivial_bound(v))
        self._open = Boxes(faces, 1.0 - np.abs(faces), trivial, np.argmin(np.abs(faces), axis=1))

    def advance(self, seconds: float) -> float:
        """The bound after so many seconds more, or when it is good to the tolerance."""
        deadline = time.perf_counter() + seconds
        while len(self._open) and not self._late(deadline):
            self._halve_the_worst(deadline)
        return self.upper

    @property
    def upper(self) -> float:
        """The bound so far."""
        return max(self._done, float(np.max(self._open.bound, initial=0.0)))

    def stop(self) -> None:
        """End the search, which may run in another thread, as if its time were up."""
        self._stopped = True

    def _late(self, deadline: float) -> bool:
        return self._stopped or time.perf_counter() >= deadline

    def _halve_the_worst(self, deadline: float) -> None:
        """The worst of the open boxes are replaced by those of their halves that are not done."""
        boxes = self._open
        count = min(len(boxes), max(BATCH, min(len(boxes) // 2, ROUND)))
        full = len(boxes) > FRONTIER
        worst = np.arange(len(boxes) - count, len(boxes)) if full else np.argpartition(-boxes.bound, count - 1)[:count]
        rest = np.ones(len(boxes), dtype=np.bool_)
        rest[worst] = False
        chosen, parts = boxes.take(worst), [boxes.take(rest)]
        for first in range(0, count, BATCH):
            if self._late(deadline):
                parts.append(chosen.take(slice(first, None)))
                break
            children = self._samples.bounded(chosen.take(slice(first, first + BATCH)).halved())
            closed = children.bound <= self._samples.goal
            self._done = max(self._done, float(np.max(children.bound[closed], initial=0.0)))
            parts.append(children.take(~closed))
        self._open = Boxes.joined(parts)


class _Half:
    """The samples with v_i of one sign, and what they share with all boxes."""

    def __init__(self, basis: FloatArray, v: FloatArray) -> None:
        self.v, self.across, self.size = v, basis.T, np.abs(basis).T
        self.weighted = v[:, None] * basis
        self.bend = np.abs(self.weighted)

    def ranges(self, boxes: Boxes) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The middle of the range of each t_i in each box (N, k), how far the range reaches from it, and the share of it above 0."""
        middle, reach = boxes.centre @ self.across, boxes.half @ self.size
        share = middle / np.maximum(reach, 1e-300)
        share += 1.0
        share *= 0.5
        return middle, reach, np.clip(share, 0.0, 1.0, out=share)


class _Samples:
    """All samples, with v and the bound that is wanted."""

    def __init__(self, basis: FloatArray, v: FloatArray, goal: float) -> None:
        self.goal = goal
        self.rising, self.falling = (_Half(basis[where], v[where]) for where in (v > 0, v < 0))
        # Sums of n products of sizes |v_i| ||u_i|| ||s||, and of r+1 products after that: generous for the order of summation.
        size = float(np.abs(v) @ np.linalg.norm(basis, axis=1)) * np.sqrt(basis.shape[1])
        self.rounding = 8.0 * (len(v) + basis.shape[1]) * float(np.finfo(np.float64).eps) * size

    def bounded(self, boxes: Boxes) -> Boxes:
        """The boxes with their own bounds, which are never above those that they come with, and with their next cuts."""
        middle, reach, chord = self.rising.ranges(boxes)
        _, falling_reach, slope = self.falling.ranges(boxes)
        middle -= reach
        np.minimum(middle, 0.0, out=middle)
        middle *= chord
        offset = self.rounding - middle @ self.rising.v
        linear = chord @ self.rising.weighted
        bend = (chord * (1.0 - chord)) @ self.rising.bend + (slope * (1.0 - slope)) @ self.falling.bend
        bound = self._least(boxes, linear + slope @ self.falling.weighted, offset, _units(boxes.centre))
        open_boxes = np.flatnonzero(bound > self.goal)
        if len(open_boxes):
            some = Boxes(boxes.centre, boxes.half, bound, boxes.side).take(open_boxes)
            bound[open_boxes] = self._refined(some, linear[open_boxes], slope[open_boxes], falling_reach[open_boxes], offset[open_boxes])
        loose = (bend + BENT_NORM * bound[:, None] * boxes.half) * boxes.half
        return Boxes(boxes.centre, boxes.half, bound, np.argmax(loose, axis=1))

    def _refined(self, boxes: Boxes, linear: FloatArray, slope: FloatArray, reach: FloatArray, offset: FloatArray) -> FloatArray:
        """Bounds (N,) by slopes of falling samples that cost less at the point of the box where the bound is attained."""
        length = np.linalg.norm(boxes.centre, axis=1, keepdims=True)
        bound = np.maximum(boxes.bound, 1e-300)[:, None]
        uphill = (linear + slope @ self.falling.weighted) * (length / bound) - boxes.centre
        attained = boxes.centre + np.clip(uphill, -boxes.half, boxes.half)
        step = attained @ self.falling.across
        step *= STRIDE
        step /= np.maximum(reach, 1e-300)
        step += slope
        np.clip(step, 0.0, 1.0, out=step)
        return self._least(boxes, linear + step @ self.falling.weighted, offset, _units(attained))

    def _least(self, boxes: Boxes, linear: FloatArray, offset: FloatArray, outward: FloatArray) -> FloatArray:
        """The least T (N,) from the goal to the bounds with linear^T s + offset <= T outward^T s in each box, or little more."""
        low, high = np.minimum(NEAR * self.goal, boxes.bound), boxes.bound
        for _ in range(BISECTIONS):
            trial = 0.5 * (low + high)
            excess = linear - trial[:, None] * outward
            largest = np.einsum("ij,ij->i", excess, boxes.centre) + np.einsum("ij,ij->i", np.abs(excess), boxes.half) + offset
            good = largest <= 0.0
            low, high = np.where(good, low, trial), np.where(good, trial, high)
        return high


def _units(points: FloatArray) -> FloatArray:
    """The points (N, r+1), of which none is 0, divided by their norms."""
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True))
