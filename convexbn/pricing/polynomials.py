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

    @cached_property
    def counts(self) -> FloatArray:
        """(N,) multinomial coefficients."""
        left = np.cumsum(self.exponents[:, ::-1], axis=1)[:, ::-1]
        binomials = np.array([[comb(i, j) for j in range(self.degree + 1)] for i in range(self.degree + 1)], dtype=np.float64)
        counts: FloatArray = np.prod(binomials[left, self.exponents], axis=1)
        return counts

    def at(self, points: FloatArray) -> FloatArray:
        """The scaled monomials (k, N) at points (k, width)."""
        values = np.broadcast_to(np.sqrt(self.counts), (len(points), len(self.counts))).copy()
        for column, powers in zip(points.T, self.exponents.T, strict=True):
            values *= (column[:, None] ** np.arange(self.degree + 1))[:, powers]
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

    def represented(self, polynomial: FloatArray) -> FloatArray:
        """A matrix A, (N, N), with phi^T A phi equal to the polynomial (count,)."""
        even, odd = polynomial[: self.top.size], polynomial[self.top.size :]
        width = len(self.parts[1].counts)
        return self._joined(self.top.matrix(even), self.mixed.matrix(0.5 * odd), np.zeros((width, width)))

    def _joined(self, top: FloatArray, mixed: FloatArray, bottom: FloatArray) -> FloatArray:
        return np.block([[top, mixed], [mixed.T, bottom]])

    def powers(self, rows: FloatArray) -> FloatArray:
        """(k, 2 half + 1, count): the polynomials (u^T s)^p, p = 0..2 half, for rows u (k, width)."""
        found = np.zeros((len(rows), 2 * self.half + 1, self.count))
        for p in range(2 * self.half + 1):
            part, first = Monomials(self.width, p).at(rows), 0 if p % 2 == 0 else self.top.size
            for degree in range(p, 2 * self.half - p % 2, 2):
                part = np.asarray(part @ Monomials(self.width, degree).raised())
            found[:, p, first : first + part.shape[1]] = part
        return found


class Lifted:
    """The samples as polynomials: t_i = u_i^T s in units in which it spreads by about 1/2 and never leaves [-reach, reach].

    Attributes
    ----------
    unit : (n,) t_i = unit_i tau_i
    rows : (n (2k+1), count) tau_i^p, p = 0..2k
    """

    def __init__(self, basis: FloatArray, half: int) -> None:
        self.half, self.reach = half, 0.5 * float(np.sqrt(basis.shape[1]))
        self.moments = SphereMoments(basis.shape[1], half)
        length = np.linalg.norm(basis, axis=1)
        self.unit = np.maximum(length * (1.0 + 1e-12), 1e-6 * float(np.max(length))) / self.reach
        self.rows = self.moments.powers(basis / self.unit[:, None]).reshape(-1, self.moments.count)

    @property
    def one(self) -> FloatArray:
        """The polynomial 1."""
        return np.asarray(self.rows[0])

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
        total = above.ravel() @ self.rows + moments.adjoint(gram)
        constant = float(total @ self.one / (self.one @ self.one))
        matrix = moments.represented(total - constant * self.one) - gram
        largest = max(0.0, float(np.linalg.eigvalsh(matrix)[-1]))
        terms = len(self.rows) + matrix.shape[0]
        size = float(np.abs(above).ravel() @ np.linalg.norm(self.rows, axis=1)) + matrix.shape[0] * float(np.linalg.norm(gram))
        return float(shift + constant + 2.0 * largest + 16.0 * terms * EPS * (size + abs(constant)))

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
