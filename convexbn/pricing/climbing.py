"""Climbs from good directions to local maxima of the price, for many directions at once: where gradient steps jam, on facets."""

from __future__ import annotations

import numpy as np

from convexbn.pricing.local import normalised
from convexbn.validation import FloatArray

LOOKS = 2  # times that the nearest rows are chosen anew
NEAR = 32  # rows, and twice as many as there are columns
NUMBERS = 4_000_000  # of near rows, and of products with all rows, in memory at once
GAIN = 1e-8  # relative; a climb that wins less is over
RELEASE = 0.3  # of the worst excess of a multiplier: all facets above it are let go at once
TINY = 1e-12


def climb(basis: FloatArray, v: FloatArray, directions: FloatArray, *, steps: int = 30) -> FloatArray:
    """Walk from each direction to a local maximum of h(s) = ||V^T (U's)_+|| on the unit sphere, exact in its cell and on its facets.

    With u = V^T (U's)_+ / h(s) and c = V u, h is at least the sum of c_i (u_i^T s)_+, with equality at s. Where c_i < 0 the kink
    of row i is a ridge: local maxima sit on many such facets u_i^T s = 0 (some ten with 11 columns, some forty with 51), and
    gradient steps jam at the first, up to 1e-3 below the top. An active-set method maximises the sum less ||s||^2 / 2: on the
    facets that are held its maximum is the projection of the gradient; the walk there ends at the first ridge in its way, which
    is held from then on, and at a maximum the facets whose multipliers leave [c_i, 0] most are let go.

    A walk minds only the rows nearest to its start, and is kept if h grew with all rows minded; then the rows are chosen anew.

    Parameters
    ----------
    basis : (n, r+1) U'
    v : (n, C) the dual point V
    directions : (N, r+1), best from `local_search`
    steps : of each walk, which holds a facet more or lets some go in each

    Returns
    -------
    (N, r+1) of norm 1, none with a smaller h than where it began
    """
    near = min(NEAR + 2 * basis.shape[1], len(basis))
    batch = max(1, NUMBERS // max(near * basis.shape[1], len(basis)))
    parts = [_climb(basis, v, directions[k : k + batch], near, steps) for k in range(0, len(directions), batch)]
    return np.concatenate(parts) if parts else directions


def _climb(basis: FloatArray, v: FloatArray, directions: FloatArray, near: int, steps: int) -> FloatArray:
    best = normalised(directions)
    left = np.arange(len(best))
    pre = best @ basis.T
    worths = np.linalg.norm(np.maximum(pre, 0.0) @ v, axis=1)
    for _ in range(LOOKS):
        found = _Walk(basis, v, best[left], pre, near).run(steps)
        pre = found @ basis.T
        reached = np.linalg.norm(np.maximum(pre, 0.0) @ v, axis=1)
        better = reached > worths[left]
        best[left[better]] = found[better]
        more = reached > worths[left] * (1.0 + GAIN)
        worths[left] = np.maximum(reached, worths[left])
        left, pre = left[more], pre[more]
        if not len(left):
            break
    return best


class _Walk:
    """N walks side by side over the facets of their nearest K rows; the other rows keep their signs.

    s (N, r+1) and its products t (N, K) with the near rows (N, K, r+1); whether these are on, and held; the part of V^T D U'
    from far rows (N, r+1, C); the projection (N, r+1, r+1) on the directions that keep to the held facets.
    """

    def __init__(self, basis: FloatArray, v: FloatArray, s: FloatArray, pre: FloatArray, near: int) -> None:
        each = np.arange(len(s))[:, None]
        close = np.argpartition(np.abs(pre), near - 1, axis=1)[:, :near]
        on = pre > 0
        self.on = on[each, close]
        on[each, close] = False
        self.far = np.stack([(on * column) @ basis for column in v.T], axis=2)
        self.rows, self.v = basis[close], v[close]
        self.s, self.t = s, pre[each, close]
        self.size, u = self.height()
        self.s, self.t = self.s * self.size[:, None], self.t * self.size[:, None]
        self.held = (np.abs(self.t) <= TINY * self.size[:, None]) & (_times(self.v, u) < 0)
        self.held &= np.cumsum(self.held, axis=1) < s.shape[1]
        self.projection = self.projections(np.arange(len(s)))

    def run(self, steps: int) -> FloatArray:
        """The unit directions where the walks end."""
        ends = self.s.copy()
        alive = np.arange(len(ends))
        for _ in range(steps):
            over = self.step()
            ends[alive] = self.s
            if over.all():
                break
            if over.any():
                alive = alive[~over]
                self.keep(~over)
        return normalised(ends)

    def keep(self, which: np.ndarray) -> None:
        """Go on with some of the walks."""
        for name in ("on", "far", "rows", "v", "s", "t", "size", "held", "projection"):
            setattr(self, name, getattr(self, name)[which])

    def height(self) -> tuple[FloatArray, FloatArray]:
        """||V^T (U's)_+||, shape (N,), and its direction u (N, C)."""
        value = _times(self.far.transpose(0, 2, 1), self.s) + _times(self.v.transpose(0, 2, 1), np.where(self.on, self.t, 0.0))
        height = np.linalg.norm(value, axis=1)
        return height, value / np.where(height > 0, height, 1.0)[:, None]

    def step(self) -> np.ndarray:
        """Walk to the maximum on the held facets or to the first ridge before it; then hold that, or let some go. Which are over?"""
        each = np.arange(len(self.s))
        u = self.height()[1]
        c = _times(self.v, u)
        pull = _times(self.far, u) + _times(self.rows.transpose(0, 2, 1), np.where(self.on, c, 0.0))
        top = _times(self.projection, pull)
        t_top = _times(self.rows, top)
        ridge = ~self.held & (c < 0) & np.where(self.on, t_top < -TINY * self.size[:, None], t_top > TINY * self.size[:, None])
        share = np.where(ridge, self.t / np.where(ridge, self.t - t_top, 1.0), 2.0)
        first = np.argmin(share, axis=1)
        length = np.clip(share[each, first], 0.0, 1.0)[:, None]
        stopped = share[each, first] < 1.0
        moved = np.linalg.norm(top - self.s, axis=1)
        self.s = self.s + length * (top - self.s)
        self.t = self.t + length * (t_top - self.t)
        on = np.where(self.held | ridge, self.on, self.t > 0)
        crossed = np.any(on != self.on, axis=1)
        self.on = on
        full = self.hold(each[stopped], first[stopped])
        arrived = each[~stopped]
        freed = self.let_go(arrived, c, pull)
        over: np.ndarray = ~stopped & ~crossed & (moved <= GAIN * self.size)
        over[freed] = False
        over[full] = True
        return over

    def hold(self, walks: np.ndarray, near: np.ndarray) -> np.ndarray:
        """Hold one more facet in each of these walks; those whose held facets leave no way to move along it are returned."""
        row = self.rows[walks, near]
        left = _times(self.projection[walks], row)
        square = np.sum(left * row, axis=1)
        good = square > 1e-10 * np.sum(row**2, axis=1)
        stuck: np.ndarray = walks[~good]
        walks, near = walks[good], near[good]
        left = left[good] / np.sqrt(square[good])[:, None]
        self.projection[walks] -= left[:, :, None] * left[:, None, :]
        self.held[walks, near], self.t[walks, near] = True, 0.0
        return stuck

    def let_go(self, walks: np.ndarray, c: FloatArray, pull: FloatArray) -> np.ndarray:
        """At the maximum on the held facets let the worst go, each to the side of its multiplier; the walks where there are such."""
        walks = walks[self.held[walks].any(axis=1)]
        if not len(walks):
            return walks
        index, valid, rows = self.facets(walks)
        bound = np.where(valid, c[walks[:, None], index], 0.0)
        # The gradient holds c_i of the rows that are on: less that, the multiplier of a held row is in [c_i, 0] at a maximum.
        bare = pull[walks] - _times(rows.transpose(0, 2, 1), np.where(self.on[walks[:, None], index], bound, 0.0))
        multiplier = -np.linalg.solve(_gram(rows, valid), _times(rows, bare)[:, :, None])[:, :, 0]
        excess = np.where(valid, np.maximum(multiplier, bound - multiplier), -1.0)
        large = excess > np.maximum(GAIN * np.linalg.norm(pull[walks], axis=1), RELEASE * np.max(excess, axis=1))[:, None]
        which, entry = np.nonzero(large)
        freed, near, low = walks[which], index[which, entry], (multiplier < bound)[which, entry]
        self.held[freed, near], self.on[freed, near] = False, low
        self.t[freed, near] = np.where(low, 1.0, -1.0) * TINY * self.size[freed]
        freed = np.unique(freed)
        self.projection[freed] = self.projections(freed)
        return freed

    def facets(self, walks: np.ndarray) -> tuple[np.ndarray, np.ndarray, FloatArray]:
        """The held facets of some walks: their indices among the near rows, filled up to the largest number, and their rows."""
        count = max(1, int(self.held[walks].sum(axis=1).max(initial=1)))
        index = np.argsort(~self.held[walks], axis=1, kind="stable")[:, :count]
        valid = self.held[walks[:, None], index]
        return index, valid, np.where(valid[:, :, None], self.rows[walks[:, None], index], 0.0)

    def projections(self, walks: np.ndarray) -> FloatArray:
        """Of some walks, afresh."""
        _, valid, rows = self.facets(walks)
        projection: FloatArray = np.eye(self.s.shape[1]) - rows.transpose(0, 2, 1) @ np.linalg.solve(_gram(rows, valid), rows)
        return projection


def _gram(rows: FloatArray, valid: np.ndarray) -> FloatArray:
    """A A^T for each walk, with ones on the diagonal for rows that fill up, and a breath more for rows that are nearly dependent."""
    gram: FloatArray = rows @ rows.transpose(0, 2, 1)
    every = np.arange(gram.shape[1])
    scale = np.max(gram[:, every, every], axis=1, initial=0.0)[:, None]
    gram[:, every, every] += np.where(valid, TINY * scale, 1.0)
    return gram


def _times(matrices: FloatArray, vectors: FloatArray) -> FloatArray:
    """A matrix times a vector for each walk."""
    product: FloatArray = (matrices @ vectors[:, :, None])[:, :, 0]
    return product
