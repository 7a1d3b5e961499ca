"""The linear least squares problem of moments: those that are consistent and nearest to what is wanted of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from convexbn.pricing.polynomials import Lifted, Monomials
from convexbn.validation import FloatArray

ENTRIES = 10_000_000  # of the samples' polynomials at a time


def normal_equations(lifted: Lifted, blocks: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """x -> x H^-1, x (k, count), H = D + R^T B R: D the moment matrix without its lower corner, R that corner and the samples' powers.

    B is 1 for the corner and the blocks (n, 2 half + 1, 2 half + 1) for the samples. The smaller one of two matrices is inverted: H, or
    one of the size of what R reads.
    """
    size = normal_size(len(blocks), lifted.moments.width, lifted.half)
    return _by_moments(lifted, blocks) if lifted.moments.count == size else _by_samples(lifted, blocks)


def normal_size(rows: int, width: int, half: int) -> int:
    """The rows of the matrix that `normal_equations` inverts."""
    sizes = [Monomials(width, degree).size for degree in range(2 * half - 3, 2 * half + 1)]
    return min(sum(sizes[2:]), sum(sizes[:2]) + 2 * rows)


def _weights(lifted: Lifted) -> FloatArray:
    """The diagonal of D: an odd moment stands in the matrix twice."""
    return np.where(np.arange(lifted.moments.count) < lifted.moments.top.size, 1.0, 2.0)


def _by_moments(lifted: Lifted, blocks: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """By a factor of H."""
    from scipy.linalg import cho_factor, cho_solve

    moments, top = lifted.moments, 2 * lifted.half
    whole = np.diag(_weights(lifted))
    whole[: moments.top.size, : moments.top.size] += (moments.lowered.T @ moments.lowered).toarray()
    step = max(1, ENTRIES // ((top + 1) * moments.count))
    for first in range(0, len(blocks), step):
        some = slice(first, first + step)
        rows = lifted.rows(top, top - 1, some)
        whole += rows.reshape(-1, moments.count).T @ (blocks[some] @ rows).reshape(-1, moments.count)
    factor = cho_factor(whole)
    return lambda x: np.asarray(cho_solve(factor, x.T, check_finite=False).T)


def _by_samples(lifted: Lifted, blocks: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """By what R reads, L x: the moments of degrees 2k-2 and 2k-3, which hold all lower powers, and the two highest powers of each sample.

    H = D + L^T G L, and H^-1 = D^-1 - D^-1 L^T W L D^-1 with W = (1 + G K)^-1 G and K = L D^-1 L^T (Woodbury).
    """
    reader, weights = _Reader(lifted), _weights(lifted)
    gram = reader.gathered(lifted, blocks)
    whole = gram @ reader.products()
    whole[np.diag_indices(len(whole))] += 1.0
    inner = np.linalg.solve(whole, gram)
    inner = 0.5 * (inner + inner.T)

    def solve(x: FloatArray) -> FloatArray:
        scaled = x / weights
        return np.asarray(scaled - reader.adjoint(reader.read(scaled) @ inner) / weights)

    return solve


class _Reader:
    """L: moments x (k, count) to (k, m), their even and odd ones lowered by 2, then E tau_i^2k and E tau_i^(2k-1).

    `even` and `odd` are pairs of what reads the even moments, of degree 2k, and the odd ones: a sparse matrix and a table.
    """

    def __init__(self, lifted: Lifted) -> None:
        from scipy.sparse import csr_matrix

        self.count = lifted.moments.top.size
        low = lifted.raises[-2] if lifted.half > 1 else csr_matrix((0, lifted.moments.width))
        self.even, self.odd = (lifted.raises[-1], lifted.tables[-1]), (low, lifted.tables[-2])
        ends = np.cumsum([0, self.even[0].shape[0], low.shape[0], len(lifted.unit), len(lifted.unit)])
        self.places = [slice(first, last) for first, last in itertools.pairwise(ends)]
        self.size = int(ends[-1])

    def read(self, x: FloatArray) -> FloatArray:
        """L x."""
        even, odd = x[:, : self.count], x[:, self.count :]
        lowered = (self.even[0] @ even.T).T, (self.odd[0] @ odd.T).T
        return np.concatenate([*lowered, even @ self.even[1].T, odd @ self.odd[1].T], axis=1)

    def adjoint(self, c: FloatArray) -> FloatArray:
        """L^T c, (k, count), for c (k, m)."""
        even, odd, high, low = (c[:, place] for place in self.places)
        both = (self.even[0].T @ even.T).T + high @ self.even[1], (self.odd[0].T @ odd.T).T + low @ self.odd[1]
        return np.concatenate(both, axis=1)

    def products(self) -> FloatArray:
        """K, (m, m)."""
        found = np.zeros((self.size, self.size))
        for (sparse, table), first, second, weight in ((self.even, 0, 2, 1.0), (self.odd, 1, 3, 0.5)):
            one, other = self.places[first], self.places[second]
            found[one, one] = weight * (sparse @ sparse.T).toarray()
            found[one, other] = np.asarray(weight * (sparse @ table.T))
            found[other, one] = found[one, other].T
            found[other, other] = weight * (table @ table.T)
        return found

    def gathered(self, lifted: Lifted, blocks: FloatArray) -> FloatArray:
        """G, (m, m): the blocks of the samples (n, 2k+1, 2k+1) on what each reads of L x, and 1 for the lower corner."""
        top = 2 * lifted.half
        core = lifted.rows(top - 2, top - 3)
        inner, (corner, _, high, low) = core.shape[2], self.places
        found = np.zeros((self.size, self.size))
        found[:inner, :inner] = core.reshape(-1, inner).T @ (blocks[:, :-2, :-2] @ core).reshape(-1, inner)
        found[corner, corner] += np.eye(corner.stop)
        for p, place in ((top, high), (top - 1, low)):
            found[:inner, place] = np.einsum("npc,np->cn", core, blocks[:, :-2, p])
            found[place, :inner] = found[:inner, place].T
            for q, other in ((top, high), (top - 1, low)):
                found[place, other] = np.diag(blocks[:, p, q])
        return found
