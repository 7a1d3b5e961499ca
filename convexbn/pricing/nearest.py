"""The linear least squares problem of moments: those that are consistent and nearest to what is wanted of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from convexbn.pricing.polynomials import Lifted, Monomials
from convexbn.validation import FloatArray

ENTRIES = 10_000_000  # of the samples' polynomials at a time
Solver = Callable[[FloatArray], FloatArray]


def normal_equations(lifted: Lifted, blocks: FloatArray) -> Solver:
    """x -> x H^-1, x (k, count), H = D + R^T B R: D the moment matrix without its lower corner, R that corner and the samples' powers.

    B is 1 for the corner and the blocks (n, 2 half + 1, 2 half + 1) for the samples. The smaller one of two matrices is inverted: H, or
    one of the size of what the samples read.
    """
    size = normal_size(len(blocks), lifted.moments.width, lifted.half)
    return _by_moments(lifted, blocks) if lifted.moments.count == size else _by_samples(lifted, blocks)


def normal_size(rows: int, width: int, half: int) -> int:
    """The rows of the matrix that `normal_equations` inverts."""
    sizes = [Monomials(width, degree).size for degree in range(2 * half + 1)]
    whole, outer = _levels(sizes, rows)
    return min(sum(sizes[-2:]), sum(sizes[p] for p in whole) + len(outer) * rows)


def _levels(sizes: list[int], rows: int) -> tuple[list[int], list[int]]:
    """The even and the odd degree up to which samples read no less than all moments, and the powers beyond."""
    whole = [max(p for p in range(first, len(sizes), 2) if p == first or sizes[p] <= rows) for first in (0, 1)]
    return whole, [p for p in range(len(sizes)) if p > whole[p % 2]]


def _by_moments(lifted: Lifted, blocks: FloatArray) -> Solver:
    """By a factor of H."""
    from scipy.linalg import cho_factor, cho_solve

    moments, top = lifted.moments, 2 * lifted.half
    whole = np.diag(np.where(np.arange(moments.count) < moments.top.size, 1.0, 2.0))
    whole[: moments.top.size, : moments.top.size] += (moments.lowered.T @ moments.lowered).toarray()
    step = max(1, ENTRIES // ((top + 1) * moments.count))
    for first in range(0, len(blocks), step):
        some = slice(first, first + step)
        rows = lifted.rows(top, top - 1, some)
        whole += rows.reshape(-1, moments.count).T @ (blocks[some] @ rows).reshape(-1, moments.count)
    factor = cho_factor(whole)
    return lambda x: np.asarray(cho_solve(factor, x.T, check_finite=False).T)


def _by_samples(lifted: Lifted, blocks: FloatArray) -> Solver:
    """By what the samples read, L x: H = M + L^T G L, where M is 1 + E^T E on even moments, E the lower corner, and on odd ones 2.

    H^-1 = M^-1 - M^-1 L^T W L M^-1 with W = (1 + G K)^-1 G and K = L M^-1 L^T, and M^-1 = 1 - E^T (1 + E E^T)^-1 E on even moments
    (Woodbury, twice).
    """
    from scipy.sparse import identity
    from scipy.sparse.linalg import splu

    reader, lowered, size = _Reader(lifted), lifted.moments.lowered, lifted.moments.top.size
    # Sparse, and nearly diagonal: it joins monomials whose exponents differ by squares.
    corner = splu((identity(lowered.shape[0]) + lowered @ lowered.T).tocsc()).solve
    gram = reader.gathered(blocks)
    whole = gram @ reader.products(corner)
    whole[np.diag_indices(len(whole))] += 1.0
    inner = np.linalg.solve(whole, gram)
    inner = 0.5 * (inner + inner.T)

    def plain(x: FloatArray) -> FloatArray:
        found = 0.5 * x
        found[:, :size] = x[:, :size] - (lowered.T @ corner(lowered @ x[:, :size].T)).T
        return found

    def solve(x: FloatArray) -> FloatArray:
        first = plain(x)
        return first - plain(reader.adjoint(reader.read(first) @ inner))

    return solve


class _Reader:
    """L: from moments x (k, count) to (k, m), those of an even and an odd degree, and of each sample the powers beyond.

    Attributes
    ----------
    whole, outer : these degrees and powers
    places : where each of them stands among the m
    """

    def __init__(self, lifted: Lifted) -> None:
        sizes = [table.shape[1] for table in lifted.tables]
        self.lifted, self.samples = lifted, len(lifted.unit)
        self.whole, self.outer = _levels(sizes, self.samples)
        ends = np.cumsum([0, *(sizes[p] for p in self.whole), *(self.samples for _ in self.outer)])
        self.places = [slice(first, last) for first, last in itertools.pairwise(ends)]

    def read(self, x: FloatArray) -> FloatArray:
        """L x."""
        parts, tables = self.lifted.lowered(x), self.lifted.tables
        return np.concatenate([*(parts[p] for p in self.whole), *(parts[p] @ tables[p].T for p in self.outer)], axis=1)

    def adjoint(self, c: FloatArray) -> FloatArray:
        """L^T c, (k, count), for c (k, m)."""
        parts = [np.zeros((len(c), table.shape[1])) for table in self.lifted.tables]
        for p, place in zip((*self.whole, *self.outer), self.places, strict=True):
            parts[p] = c[:, place] if p in self.whole else c[:, place] @ self.lifted.tables[p]
        return self.lifted.joined(parts)

    def products(self, corner: Solver) -> FloatArray:
        """K, (m, m), with (1 + E E^T)^-1 of the lower corner E."""
        top, found = 2 * self.lifted.half, np.zeros((self.places[-1].stop, self.places[-1].stop))
        for parity in (0, 1):
            rows, where = [], []
            for p, place in zip((*self.whole, *self.outer), self.places, strict=True):
                if p % 2 == parity:
                    part = np.eye(place.stop - place.start) if p in self.whole else self.lifted.tables[p]
                    for raising in self.lifted.raises[p : top - 1 : 2]:
                        part = part @ raising
                    rows.append(part)
                    where.append(np.arange(place.start, place.stop))
            read, among = np.concatenate(rows), np.concatenate(where)
            product = read @ read.T
            if parity == 0:
                lowered = self.lifted.moments.lowered @ read.T
                product -= lowered.T @ corner(lowered)
            found[np.ix_(among, among)] = product if parity == 0 else 0.5 * product
        return found

    def gathered(self, blocks: FloatArray) -> FloatArray:
        """G, (m, m): the blocks of the samples (n, 2 half + 1, 2 half + 1) on what each reads of L x."""
        core = self.lifted.rows(self.whole[0], self.whole[1])
        inner = [p for p in range(blocks.shape[1]) if p not in self.outer]
        count, places = core.shape[2], dict(zip(self.outer, self.places[2:], strict=True))
        found = np.zeros((self.places[-1].stop, self.places[-1].stop))
        weighted = blocks[:, inner][:, :, inner] @ core
        found[:count, :count] = core.reshape(-1, count).T @ weighted.reshape(-1, count)
        for p, place in places.items():
            found[:count, place] = np.einsum("npc,np->cn", core, blocks[:, inner, p])
            found[place, :count] = found[:count, place].T
            for q, other in places.items():
                found[place, other] = np.diag(blocks[:, p, q])
        return found
