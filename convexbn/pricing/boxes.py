"""A proof over all arrangements by branch and bound on boxes: as tight as time allows, in few dimensions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convexbn.validation import FloatArray

BATCH = 256  # boxes split at once: the images of both halves are a matrix of 2 BATCH x n, best in the cache
ROUND = 65_536  # the most that are taken out of the others at once, which copies these
FRONTIER = 1_000_000  # open boxes in memory; beyond that the newest are split first, which needs no more
BISECTIONS = 12
BOX_COLUMNS = 8  # the number of boxes grows exponentially with the columns of the basis: with more, other proofs are better


@dataclass(frozen=True)
class Boxes:
    """Open boxes on the surface of the cube [-1, 1]^(r+1): centres and half-widths (N, r+1), and a bound (N,) on h in each."""

    centre: FloatArray
    half: FloatArray
    bound: FloatArray

    def __len__(self) -> int:
        return len(self.bound)

    def take(self, rows: np.ndarray | slice) -> Boxes:
        """The boxes of those rows."""
        return Boxes(self.centre[rows], self.half[rows], self.bound[rows])

    @classmethod
    def joined(cls, parts: Sequence[Boxes]) -> Boxes:
        """All boxes of the parts."""
        centre, half, bound = (np.concatenate([getattr(part, name) for part in parts]) for name in ("centre", "half", "bound"))
        return cls(centre, half, bound)

    def halved(self) -> Boxes:
        """Both halves of each box, cut across its longest side."""
        rows, side = np.arange(len(self)), np.argmax(self.half, axis=1)
        half = self.half.copy()
        half[rows, side] *= 0.5
        step = np.zeros_like(half)
        step[rows, side] = half[rows, side]
        both = (np.concatenate([self.centre - step, self.centre + step]), np.concatenate([half, half]))
        return Boxes(*both, np.concatenate([self.bound, self.bound]))


def bound_by_boxes(basis: FloatArray, v: FloatArray, lower: float, *, tolerance: float, seconds: float) -> float:
    """A proved upper bound on max over ||s|| <= 1 of v^T (U's)_+, at most (1 + tolerance) `lower` if the time suffices.

    The maximum is homogeneous, so it is taken of v^T (U's)_+ / ||s|| over the surface of a cube. In a box each t_i = u_i^T s has
    a range; v_i (t_i)_+ is at most its chord there for v_i > 0, and at most v_i a t_i, 0 <= a <= 1, for v_i < 0: a linear bound
    g^T s + d in all. For T >= 0 with g^T s + d <= T s^T c / ||c|| over the box, c its centre, the ratio is at most T; the
    smallest such T is found by bisection. Boxes with T <= (1 + tolerance) `lower` are done, the worst others are halved. The
    answer is the largest T left, valid whenever the search stops.

    Parameters
    ----------
    basis : (n, r+1) U'; the number of boxes grows exponentially in r, 7 columns are much already
    v : (n,) V, or -V
    lower : a value that is attained
    tolerance, seconds : when to stop
    """
    deadline = time.perf_counter() + seconds
    width = basis.shape[1]
    goal = (1.0 + tolerance) * lower
    done = 0.0
    identity = np.eye(width)
    faces = np.concatenate([identity, -identity])
    trivial = float(np.linalg.norm(np.maximum(v, 0.0))) * (1.0 + 1e-12)
    open_boxes = Boxes(faces, 1.0 - np.abs(faces), np.full(len(faces), trivial))
    while len(open_boxes) and time.perf_counter() < deadline:
        count = min(len(open_boxes), max(BATCH, min(len(open_boxes) // 2, ROUND)))
        full = len(open_boxes) > FRONTIER
        worst = np.arange(len(open_boxes) - count, len(open_boxes)) if full else np.argpartition(-open_boxes.bound, count - 1)[:count]
        rest = np.ones(len(open_boxes), dtype=np.bool_)
        rest[worst] = False
        chosen, parts = open_boxes.take(worst), [open_boxes.take(rest)]
        for first in range(0, count, BATCH):
            if time.perf_counter() >= deadline:
                parts.append(chosen.take(slice(first, None)))
                break
            children = _bounded(basis, v, chosen.take(slice(first, first + BATCH)).halved())
            closed = children.bound <= goal
            done = max(done, float(np.max(children.bound[closed], initial=0.0)))
            parts.append(children.take(~closed))
        open_boxes = Boxes.joined(parts)
    return max(done, float(np.max(open_boxes.bound, initial=0.0)))


def _bounded(basis: FloatArray, v: FloatArray, boxes: Boxes) -> Boxes:
    """The boxes with their own bounds, which are never above those that they come with."""
    middle = boxes.centre @ basis.T
    reach = boxes.half @ np.abs(basis).T
    share = middle / np.maximum(reach, 1e-300)  # of the range [middle - reach, middle + reach] that is positive
    share += 1.0
    share *= 0.5
    np.clip(share, 0.0, 1.0, out=share)
    linear = share @ (v[:, None] * basis)
    middle -= reach
    np.minimum(middle, 0.0, out=middle)
    middle *= share
    offset = -(middle @ np.maximum(v, 0.0))
    length = np.linalg.norm(boxes.centre, axis=1, keepdims=True)
    outward = boxes.centre / length
    # Sums of n products of sizes |v_i| ||u_i|| ||s||, and of r+1 products after that: generous for the order of summation.
    size = float(np.abs(v) @ np.linalg.norm(basis, axis=1)) * np.sqrt(basis.shape[1])
    rounding = 8.0 * (len(v) + basis.shape[1]) * float(np.finfo(np.float64).eps) * size

    def fits(bound: FloatArray) -> np.ndarray:
        excess = linear - bound[:, None] * outward
        largest = np.sum(excess * boxes.centre, axis=1) + np.sum(np.abs(excess) * boxes.half, axis=1) + offset
        return np.asarray(largest + rounding <= 0.0)

    low_bound, high_bound = np.zeros(len(boxes)), boxes.bound
    for _ in range(BISECTIONS):
        trial = 0.5 * (low_bound + high_bound)
        good = fits(trial)
        low_bound, high_bound = np.where(good, low_bound, trial), np.where(good, trial, high_bound)
    return Boxes(boxes.centre, boxes.half, high_bound)
