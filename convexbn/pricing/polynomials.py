"""Polynomials on the sphere: an upper bound on h(V) from polynomials above the ReLU and from a sum of squares."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from math import comb
from typing import Any

import numpy as np

from convexbn.validation import FloatArray, IntArray

PIECES = 256  # of an interval on which a polynomial is bounded from below
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Monomials:
    """The monomials s^a of one degree in `width` variables, scaled by the root of the multinomial coefficient.

    So scaled they are the distinct entries of the tensor s x s x ... x s, and <m(u), m(s)> = (u^T s)^degree.
    """

    width: int
    degree: int

    @cached_property
    def exponents(self) -> IntArray:
        """(N, width)."""
        chosen = list(combinations_with_replacement(range(self.width), self.degree))
        exponents = np.zeros((len(chosen), self.width), dtype=np.int64)
        for place in range(self.degree):
            exponents[np.arange(len(chosen)), [choice[place] for choice in chosen]] += 1
        return exponents

    @property
    def size(self) -> int:
        """N, also 0 for the degree -1."""
        return comb(self.width + self.degree - 1, self.degree) if self.degree >= 0 else 0

    @cached_property
    def counts(self) -> FloatArray:
        """(N,) multinomial coefficients."""
        left = np.cumsum(self.exponents[:, ::-1], axis=1)[:, ::-1]
        binomials = np.array([[comb(i, j) for j in range(self.degree + 1)] for i in range(self.degree + 1)], dtype=np.float64)
        counts: FloatArray = np.prod(binomials[left, self.exponents], axis=1)
        return counts

    def at(self, points: FloatArray) -> FloatArray:
        """The scaled monomials (k, N) at points (k, width)."""
        values = np.ones((len(points), 1))
        for degree in range(1, self.degree + 1):
            # In the order of the exponents those that begin with a variable are it, times the last ones of one degree less.
            last = [comb(self.width - first + degree - 2, degree - 1) for first in range(self.width)]
            values = np.concatenate([points[:, [i]] * values[:, values.shape[1] - last[i] :] for i in range(self.width)], axis=1)
        values *= np.sqrt(self.counts)
        return values

    def places(self, exponents: IntArray) -> IntArray:
        """Where each row of exponents (k, width) stands."""
        base = np.random.default_rng(0).integers(1, 2**40, size=self.width)
        keys = self.exponents @ base
        order = np.argsort(keys)
        places: IntArray = order[np.clip(np.searchsorted(keys[order], exponents @ base), 0, len(keys) - 1)]
        assert np.array_equal(self.exponents[places], exponents)  # two keys could agree by chance
        return places

    def raised(self) -> Any:
        """The sparse matrix E with E m(s) of degree + 2 equal to ||s||^2 m(s) of this one."""
        from scipy.sparse import csr_matrix

        above = Monomials(self.width, self.degree + 2)
        rows = np.tile(np.arange(len(self.counts)), self.width)
        columns = np.concatenate([above.places(self.exponents + square) for square in 2 * np.eye(self.width, dtype=np.int64)])
        weights = np.sqrt(self.counts[rows] / above.counts[columns])
        return csr_matrix((weights, (rows, columns)), shape=(len(self.counts), len(above.counts)))


class _Block:
    """A block of products of two lists of monomials, entry by entry a moment of the degree of both together."""

    def __init__(self, one: Monomials, other: Monomials) -> None:
        both = Monomials(one.width, one.degree + other.degree)
        self.shape, self.size = (len(one.counts), len(other.counts)), len(both.counts)
        self.places = both.places((one.exponents[:, None] + other.exponents[None]).reshape(-1, one.width))
        self.weights = np.sqrt(np.outer(one.counts, other.counts).ravel() / both.counts[self.places])

    def matrix(self, moments: FloatArray) -> FloatArray:
        return (self.weights * moments[self.places]).reshape(self.shape)

    def adjoint(self, matrix: FloatArray) -> FloatArray:
        """Also a left inverse: the weights of a moment have squares that sum to 1."""
        return np.bincount(self.places, self.weights * matrix.ravel(), minlength=self.size).astype(np.float64)


class SphereMoments:
    """Moments of directions on the unit sphere in R^width, of the degrees 2k and 2k-1, which hold all lower ones as 1 = ||s||^2.

    The moment matrix is that of phi(s) = (m_k(s), m_{k-1}(s)), of size N, whose two parts have norm 1 each.
    """

    def __init__(self, width: int, half: int) -> None:
        high, low = Monomials(width, half), Monomials(width, half - 1)
        self.width, self.half, self.parts = width, half, (high, low)
        self.top, self.mixed, self.bottom = _Block(high, high), _Block(high, low), _Block(low, low)
        self.lowered = Monomials(width, 2 * half - 2).raised()
        self.count = self.top.size + self.mixed.size
        self.split = len(high.counts)

    def features(self, directions: FloatArray) -> FloatArray:
        """phi of unit directions (k, width), shape (k, N)."""
        return np.concatenate([part.at(directions) for part in self.parts], axis=1)

    def matrix(self, moments: FloatArray) -> FloatArray:
        """(N, N) from moments (count,)."""
        even, odd = moments[: self.top.size], moments[self.top.size :]
        return self._joined(self.top.matrix(even), self.mixed.matrix(odd), self.bottom.matrix(self.lowered @ even))

    def adjoint(self, matrix: FloatArray) -> FloatArray:
        """The polynomial phi^T A phi of a symmetric matrix, as its coefficients (count,)."""
        k = self.split
        even = self.top.adjoint(matrix[:k, :k]) + self.lowered.T @ self.bottom.adjoint(matrix[k:, k:])
        return np.concatenate([even, 2.0 * self.mixed.adjoint(matrix[:k, k:])])

    def read(self, matrix: FloatArray) -> FloatArray:
        """The moments (count,) in a matrix (N, N): the mean where it says something twice."""
        k = self.split
        return np.concatenate([self.top.adjoint(matrix[:k, :k]), self.mixed.adjoint(matrix[:k, k:])])

    def completed(self, lower: FloatArray, guess: FloatArray) -> FloatArray:
        """The moments (count,) nearest to a guess that have the given ones of 2 degrees less."""
        from scipy.sparse.linalg import spsolve

        parts, size, odd = [], self.lowered.shape[0], Monomials(self.width, 2 * self.half - 3).raised()
        pairs = ((self.lowered, lower[:size], guess[: self.top.size]), (odd, lower[size:], guess[self.top.size :]))
        for raising, wanted, part in pairs:
            parts.append(part + raising.T @ spsolve((raising @ raising.T).tocsc(), wanted - raising @ part))
        return np.concatenate(parts)

    def embedded(self, matrix: FloatArray) -> FloatArray:
        """The matrix A', (N, N), with phi^T A' phi equal to the same of a matrix A with the phi of one degree less."""
        raising = Monomials(self.width, self.half - 2).raised()
        k = len(self.parts[1].counts)
        return self._joined(raising.T @ (raising.T @ matrix[k:, k:]).T, raising.T @ matrix[k:, :k], matrix[:k, :k])

    def represented(self, polynomial: FloatArray) -> FloatArray:
        """A matrix A, (N, N), with phi^T A phi equal to the polynomial (count,)."""
        even, odd = polynomial[: self.top.size], polynomial[self.top.size :]
        width = len(self.parts[1].counts)
        return self._joined(self.top.matrix(even), self.mixed.matrix(0.5 * odd), np.zeros((width, width)))

    def _joined(self, top: FloatArray, mixed: FloatArray, bottom: FloatArray) -> FloatArray:
        return np.block([[top, mixed], [mixed.T, bottom]])


class Lifted:
    """The samples as polynomials: t_i = u_i^T s in units in which it spreads by about 1/2 and never leaves [-reach, reach].

    Of tau_i^p = <m_p(u_i), m_p(s)> only the scaled monomials of degree p are held; where it is read from moments of a higher degree,
    these are lowered first, which is the same for all samples: with ten features and k = 3 a sixth of the numbers.

    Attributes
    ----------
    unit : (n,) t_i = unit_i tau_i
    tables : for p = 0..2k the m_p(u_i) / unit_i^p, (n, N_p)
    raises : for p = 0..2k-2 the sparse matrices from moments of degree p + 2 to those of degree p
    """

    def __init__(self, basis: FloatArray, half: int) -> None:
        self.half, self.reach = half, 0.5 * float(np.sqrt(basis.shape[1]))
        self.moments = SphereMoments(basis.shape[1], half)
        length = np.linalg.norm(basis, axis=1)
        self.unit = np.maximum(length * (1.0 + 1e-12), 1e-6 * float(np.max(length))) / self.reach
        degrees = [Monomials(basis.shape[1], p) for p in range(2 * half + 1)]
        self.tables = [degree.at(basis / self.unit[:, None]) for degree in degrees]
        self.raises = [degree.raised() for degree in degrees[:-2]]

    @cached_property
    def one(self) -> FloatArray:
        """The polynomial 1, (count,)."""
        parts = [np.zeros((1, table.shape[1])) for table in self.tables]
        parts[0][:] = 1.0
        return np.asarray(self.joined(parts)[0])

    def lowered(self, moments: FloatArray) -> list[FloatArray]:
        """The moments (k, N_p) of each degree p = 0..2 half in moments (k, count)."""
        parts = [moments[:, self.moments.top.size :], moments[:, : self.moments.top.size]]
        for raising in reversed(self.raises):
            parts.insert(0, np.asarray((raising @ parts[1].T).T))
        return parts

    def joined(self, parts: list[FloatArray]) -> FloatArray:
        """The sum of homogeneous polynomials (k, N_p), p = 0..2 half, as coefficients (k, count): the adjoint of `lowered`."""
        raised = list(parts)
        for p, raising in enumerate(self.raises):
            raised[p + 2] = raised[p + 2] + (raising.T @ raised[p].T).T
        return np.concatenate([raised[-1], raised[-2]], axis=1)

    def powers(self, moments: FloatArray) -> FloatArray:
        """E tau_i^p, (k, n, 2 half + 1), of moments (k, count)."""
        return np.stack([part @ table.T for part, table in zip(self.lowered(moments), self.tables, strict=True)], axis=-1)

    def polynomials(self, above: FloatArray) -> FloatArray:
        """sum_ip above_ip tau_i^p, coefficients (k, count), for (k, n, 2 half + 1): the adjoint of `powers`."""
        return self.joined([above[:, :, p] @ table for p, table in enumerate(self.tables)])

    def rows(self, even: int, odd: int, some: slice = slice(None)) -> FloatArray:
        """(k, P, N): the powers tau_i^p up to an even and an odd degree as polynomials of these degrees, for some samples."""
        found, sizes = [], [Monomials(self.moments.width, degree).size for degree in (even, odd)]
        for p in (p for p in range(max(even, odd) + 1) if p <= (odd if p % 2 else even)):
            part = self.tables[p][some]
            for lower in range(p, odd if p % 2 else even, 2):
                part = part @ self.raises[lower]
            found.append(np.pad(part, ((0, 0), (sizes[0], 0) if p % 2 else (0, sizes[1]))))
        return np.stack(found, axis=1)

    def bound(self, v: FloatArray, above: FloatArray, gram: FloatArray) -> float:
        """A proved upper bound on max over ||s|| = 1 of v^T (U's)_+, from polynomials q_i in tau_i and a matrix A >= 0.

        Shifted by a constant c_i, q_i + c_i >= v_i (t_i)_+ for all |tau_i| <= reach: c_i is read from the Bernstein coefficients
        of q_i - v_i t_i to the right of 0 and of q_i to the left, on many pieces of both. Then

            v^T (U's)_+ <= sum_i c_i + g + phi^T (R - A) phi <= sum_i c_i + g + 2 max(0, lambda_max(R - A)),

        where g + phi^T R phi = sum_i q_i + phi^T A phi, g a number. It holds for any q and A; what float64 may have lost is added.

        Parameters
        ----------
        v : (n,)
        above : (n, 2k+1) the coefficients of the q_i
        gram : (N, N) symmetric
        """
        moments = self.moments
        right = above.copy()
        right[:, 1] -= v * self.unit
        mirrored = above * (-1.0) ** np.arange(above.shape[1])
        shift = -float(np.sum(np.minimum(self._least(right), self._least(mirrored))))
        total = self.polynomials(above[None])[0] + moments.adjoint(gram)
        constant = float(total @ self.one / (self.one @ self.one))
        matrix = moments.represented(total - constant * self.one) - gram
        largest = max(0.0, float(np.linalg.eigvalsh(matrix)[-1]))
        terms = above.size + matrix.shape[0]
        size = float(np.sum(np.abs(above) * self._sizes)) + matrix.shape[0] * float(np.linalg.norm(gram))
        return float(shift + constant + 2.0 * largest + 16.0 * terms * EPS * (size + abs(constant)))

    @cached_property
    def _sizes(self) -> FloatArray:
        """At least the norm of the coefficients of each tau_i^p, (n, 2 half + 1): to multiply by ||s||^2, of norm sqrt(r+1), multiplies
        by no more than that.
        """
        width, top = self.moments.width, 2 * self.half
        return np.stack([width ** (0.5 * ((top - p) // 2)) * np.linalg.norm(table, axis=1) for p, table in enumerate(self.tables)], axis=1)

    def _least(self, polynomials: FloatArray) -> FloatArray:
        """A lower bound (n,) on each polynomial (n, 2k+1) over [0, reach]: the least of its Bernstein coefficients on any piece."""
        powers = self.reach ** np.arange(polynomials.shape[1])
        size = np.sum(np.abs(polynomials * powers), axis=1)
        least = np.min((polynomials * powers) @ self._bernstein, axis=1)
        return np.asarray(least - 64.0 * len(powers) ** 2 * EPS * size)

    @cached_property
    def _bernstein(self) -> FloatArray:
        """(2k+1, PIECES (2k+1)) from the coefficients of a polynomial on [0, 1] to its Bernstein coefficients on each piece."""
        degree = 2 * self.half
        orders = range(degree + 1)
        # x = first + y / PIECES, 0 <= y <= 1: powers of x in powers of y, and those in Bernstein polynomials.
        shifted = np.array(
            [[[comb(i, j) * (piece / PIECES) ** max(0, i - j) / PIECES**j for j in orders] for i in orders] for piece in range(PIECES)]
        )
        bernstein = np.array([[comb(b, j) / comb(degree, j) for b in orders] for j in orders])
        return np.concatenate(list(shifted @ bernstein), axis=1)
