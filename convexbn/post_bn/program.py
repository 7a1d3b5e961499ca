"""The program of batch normalisation after the ReLU as data: the arrangements of X itself, each with the factors of Pi D_i X."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from convexbn.arrangements import Arrangements, count_arrangements, enumerate_arrangements, sample_arrangements
from convexbn.validation import FloatArray, InputError
from convexbn.whitening import check_exponents, powers_of_two

# Singular values below this fraction of the largest one of X are rounding.
TOLERANCE = 1e-10

# Neurons that a bound is about have ||Pi (X w)_+|| >= VISIBLE ||X w||: others drown in the rounding of their own mean.
VISIBLE = 1e-6


@dataclass(frozen=True)
class Span:
    """The column space of the raw data, X = U Sigma V^T diag(scale): no centring, as the ReLU comes first.

    Attributes
    ----------
    basis : (n, r) U
    weights : (r, d) maps s to the w with X w = U s, by rows
    dropped : the number of directions of X that are more than rounding and less than the tolerance: no neuron here reads them
    """

    basis: FloatArray
    weights: FloatArray
    dropped: int = 0

    @property
    def full(self) -> bool:
        """Whether X has full row rank, so that every vector is some X w."""
        return len(self.basis) == len(self.weights)


def span_of(data: FloatArray) -> Span:
    """Factor the raw data (n, d), columns divided by powers of two near their size.

    Raises
    ------
    InputError
        Where X is zero, and for columns of a size for which float64 can't hold weights.
    """
    size = np.max(np.abs(data), axis=0)
    check_exponents(np.frexp(size)[1])
    scale = powers_of_two(size)
    left, values, right = np.linalg.svd(data / scale, full_matrices=False)
    if values[0] == 0.0:
        raise InputError("X is zero everywhere, so no neuron sees anything: pass data that vary")
    rank = int(np.sum(values > TOLERANCE * values[0]))
    rounding = 4.0 * max(data.shape) * float(np.finfo(np.float64).eps)
    return Span(left[:, :rank], right[:rank] / values[:rank, None] / scale, int(np.sum(values[rank:] > rounding * values[0])))


def arrangements_of(basis: FloatArray, *, limit: int = 0, sample: int = 0, seed: int = 0) -> Arrangements:
    """The patterns 1[x_i^T w > 0] of the rows of X, all of them or a sample; rows that are zero are never active.

    Parameters
    ----------
    basis : (n, r) U of X
    limit : refuse to list more than so many, by Cover's bound
    sample : how many to draw instead, if not 0
    seed : of the sample
    """
    seen = np.linalg.norm(basis, axis=1) > TOLERANCE
    found = sample_arrangements(basis[seen], sample, seed=seed) if sample else enumerate_arrangements(basis[seen], limit=limit)
    active = np.zeros((len(found), len(basis)), dtype=np.bool_)
    active[:, seen] = found.active
    return replace(found, active=active, basis=basis)


def count_of(basis: FloatArray) -> int:
    """Cover's bound on the number of arrangements of the rows of X: 2 sum_{k=0}^{r-1} C(n-1, k)."""
    return count_arrangements(len(basis), basis.shape[1] - 1)


@dataclass(frozen=True)
class Cell:
    """One arrangement D, with Pi D U = P diag(S) Q^T on the basis U of X.

    Neurons s of the cell, E U s >= 0 with E = 2 D - I, have the normalised hidden column P q / ||q||, q = S Q^T s, and are s =
    Q S^{-1} q + N z for any z, N the null space of Pi D U.

    Attributes
    ----------
    hidden : (n, k) P
    visible : (k, r) S Q^T, which maps s to q
    cone : (n, r) E U
    cone_of_q : (n, k) E U Q S^{-1}
    cone_of_z : (n, r-k) E U N
    """

    hidden: FloatArray
    visible: FloatArray
    cone: FloatArray
    cone_of_q: FloatArray
    cone_of_z: FloatArray

    def price(self, v: FloatArray) -> float:
        """A bound on |v^T P q| over q of norm 1 in the cone, for neurons that are `VISIBLE`.

        Weak duality: for l >= 0, c^T q <= (c + cone_of_q^T l)^T q + (cone_of_z^T l)^T z, with c = +-P^T v. The multipliers make the
        second term vanish up to rounding, and ||z|| <= ||q|| / VISIBLE.
        """
        c = self.hidden.T @ v
        return max((self._price_of(sign * c) for sign in (1.0, -1.0)), default=0.0) if len(c) else 0.0

    def _price_of(self, c: FloatArray) -> float:
        """The best of the bounds that no multipliers, and heavier and heavier weights on the equations, give."""
        bounds = [float(np.linalg.norm(c))]
        for weight in (1e2, 1e5) if len(self.cone_of_z.T) else (1.0,):
            multipliers = _multipliers(self.cone_of_q, weight * self.cone_of_z, c)
            for trial in (multipliers, self._upon(multipliers > 0, c)):
                leak = float(np.linalg.norm(self.cone_of_z.T @ trial)) / VISIBLE
                bounds.append(float(np.linalg.norm(c + self.cone_of_q.T @ trial)) + leak)
        return min(bounds)

    def _upon(self, support: np.ndarray, c: FloatArray) -> FloatArray:
        """The multipliers on a support, with the equations exact: least squares within their null space, made >= 0."""
        from scipy.linalg import null_space

        multipliers = np.zeros(len(support))
        free = null_space(self.cone_of_z[support].T) if self.cone_of_z.shape[1] else np.eye(int(support.sum()))
        if free.shape[1]:
            multipliers[support] = free @ np.linalg.lstsq(self.cone_of_q[support].T @ free, -c, rcond=None)[0]
        return np.maximum(multipliers, 0.0)


def _multipliers(cone_of_q: FloatArray, cone_of_z: FloatArray, c: FloatArray) -> FloatArray:
    """Non-negative least squares; whatever it returns is only a trial."""
    from scipy.optimize import nnls

    try:
        return nnls(np.column_stack([cone_of_q, cone_of_z]).T, np.append(-c, np.zeros(cone_of_z.shape[1])))[0]
    except RuntimeError:  # out of iterations
        return np.zeros(len(cone_of_q))


def cell_of(basis: FloatArray, active: np.ndarray) -> Cell:
    """Factor Pi D U for one arrangement (n,)."""
    masked = active[:, None] * basis
    left, values, right = np.linalg.svd(masked - masked.mean(axis=0))
    rank = int(np.sum(values > TOLERANCE))
    cone = np.where(active, 1.0, -1.0)[:, None] * basis
    seen, unseen = right[:rank], right[rank:]
    return Cell(left[:, :rank], values[:rank, None] * seen, cone, cone @ seen.T / values[:rank], cone @ unseen.T)


@dataclass(frozen=True)
class Reach:
    """The normalised hidden columns that neurons reach: all centred unit vectors where X has full row rank, else those of its cells.

    Attributes
    ----------
    span : of the data
    arrangements : of X, that are listed; None at full row rank
    cells : one for each
    """

    span: Span
    arrangements: Arrangements | None
    cells: tuple[Cell, ...]

    def price(self, v: FloatArray) -> float:
        """An upper bound on h(V), V of shape (n,), or (n, C) at full row rank: h(V)^2 = max over u of ||V^T [u, 1/sqrt(n)]||^2."""
        if self.arrangements is None:
            return float(np.linalg.norm(v.reshape(len(v), -1), 2)) * (1.0 + 1e-12)
        return float(np.hypot(max(cell.price(v) for cell in self.cells), np.sum(v) / np.sqrt(len(v))))

    def __str__(self) -> str:
        if self.arrangements is None:
            return "all arrangements, in closed form (full row rank)"
        dropped = f" that don't read the {self.span.dropped} nearly collinear direction(s) of X, and" if self.span.dropped else ""
        return f"{self.arrangements} of X and the network's own neurons, for neurons{dropped} with ||Pi (Xw)_+|| >= {VISIBLE:g} ||Xw||"


def reach_of(span: Span, arrangements: Arrangements | None) -> Reach:
    """With the cells of the arrangements factored."""
    cells = () if arrangements is None else tuple(cell_of(span.basis, row) for row in arrangements.active)
    return Reach(span, arrangements, cells)
