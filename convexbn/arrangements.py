"""Arrangements: the sign patterns 1[U's >= 0] that hyperplanes through the rows of the basis cut out of the space of neurons."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from convexbn.validation import BoolArray, FloatArray, InputError, check_count

SignArray = npt.NDArray[np.int8]
Rows = TypeVar("Rows", BoolArray, SignArray)

# Unit normals that differ by less meet as one hyperplane; certificates pay for it by the margin that pricing adds.
TIE = 1e-9


@dataclass(frozen=True, eq=False)
class Arrangements:
    """A set of sign patterns D_i = diag(1[U's >= 0]) of one basis: all of them, or a sample.

    Attributes
    ----------
    active : (P, n) bool, row i the diagonal of D_i; no two rows are equal
    complete : whether these are all the arrangements of the basis
    possible : the number of all arrangements where `complete`, else Cover's upper bound on it
    seed : the seed of a sample, None otherwise
    basis : (n, r+1) U', whose patterns they are; None where nobody knows, and then they prove nothing about all arrangements
    remark : what was special about the data, for people to read
    """

    active: BoolArray
    complete: bool
    possible: int
    seed: int | None = None
    basis: FloatArray | None = field(default=None, repr=False)
    remark: str = field(default="", compare=False)

    def __len__(self) -> int:
        return len(self.active)

    def fits(self, basis: FloatArray) -> bool:
        """Whether `basis`, of orthonormal columns, spans the space that the patterns were made for, to 1e-6: then they are its own."""
        if self.basis is None or basis.shape != self.basis.shape:
            return False
        return bool(np.max(np.abs(basis - self.basis @ (self.basis.T @ basis))) <= 1e-6)

    def __str__(self) -> str:
        remark = f" ({self.remark})" if self.remark else ""
        if self.complete:
            return f"all {len(self)} arrangements{remark}"
        return f"a sample of {len(self)} out of at most {_readable(self.possible)} arrangements{remark}"


def _readable(number: int) -> str:
    """The number itself, or its power of ten: Cover's bound outgrows float64."""
    digits = str(number)
    return digits if len(digits) <= 7 else f"{digits[0]}.{digits[1]}e{len(digits) - 1}"


def _distinct(rows: Rows) -> Rows:
    """The rows without repetition, first occurrences in their order."""
    compact = np.ascontiguousarray(np.packbits(rows, axis=1) if rows.dtype == np.bool_ else rows)
    _, first = np.unique(compact.view(np.dtype((np.void, compact.shape[1]))).ravel(), return_index=True)
    return rows[np.sort(first)]


def count_arrangements(samples: int, rank: int) -> int:
    """Cover's count 2 sum_{k=0}^{r} C(n-1, k) of the arrangements of n rows in general position, centred rank r.

    For data with duplicates or ties it is an upper bound; `len(enumerate_arrangements(basis))` is the count itself.
    Source: Cover 1965; for d = 1 it is 2n.
    """
    n, r = check_count(samples, "samples"), check_count(rank, "rank", 0)
    return 2 * sum(math.comb(n - 1, k) for k in range(r + 1))


def sample_arrangements(basis: FloatArray, count: int, *, seed: int = 0) -> Arrangements:
    """At most `count` distinct arrangements 1[U's >= 0] of independent Gaussian s: a sample, thin cells are rarely hit.

    Parameters
    ----------
    basis : (n, r+1) U'
    count : how many to look for; fewer come back where 20 `count` draws show no more
    seed : of numpy's default generator; the same seed gives the same arrangements
    """
    count = check_count(count, "count")
    generator = np.random.default_rng(check_count(seed, "seed", 0))
    active: BoolArray = np.zeros((0, len(basis)), dtype=np.bool_)
    possible = count_arrangements(len(basis), basis.shape[1] - 1)
    width = min(count, max(1_000, 20 * possible))  # of a count beyond all there are no memory is taken
    for _ in range(20):
        draws = basis @ generator.standard_normal((basis.shape[1], width))
        active = _distinct(np.concatenate([active, draws.T >= 0]))[:count]
        if len(active) == count:
            break
    return Arrangements(active, complete=False, possible=possible, seed=seed, basis=basis, remark=f"Gaussian, seed {seed}")


def enumerate_arrangements(basis: FloatArray, *, limit: int = 100_000) -> Arrangements:
    """Every arrangement 1[U's >= 0], s generic: the full-dimensional cells, whose closures cover the whole space.

    A cell has a facet, and the facets on a hyperplane are the cells of the arrangement restricted to it: so the cells are
    found by recursion on the dimension, each facet giving the two cells beside it. Nothing is assumed about general
    position: normals that are parallel inside a flat are merged there, which is what duplicate rows, ties and collinear
    data amount to. Hyperplanes that meet within the angle 1e-9 are taken to meet.

    Rejected: random sampling until nothing new appears (misses thin cells), and null vectors of all r-subsets of rows with
    free signs on the subset (right in general position only).

    Parameters
    ----------
    basis : (n, r+1) U', full column rank
    limit : refuse where Cover's bound for the distinct rows exceeds it

    Raises
    ------
    InputError
        Where there may be more than `limit` arrangements.
    """
    normals = basis / np.linalg.norm(basis, axis=1, keepdims=True)
    owner = _merge_equal(normals)
    distinct = normals[np.unique(owner)]
    bound = count_arrangements(len(distinct), basis.shape[1] - 1)
    if bound > limit:
        raise InputError(
            f"arrangements: there may be {_readable(bound)} of them, more than the limit of {limit}: sample them (arrangements=100), "
            "use fewer samples or features, or raise the limit"
        )
    signs = _cells(distinct, np.eye(basis.shape[1]), {})
    position = np.searchsorted(np.unique(owner), owner)
    active = _distinct(signs[:, position] > 0)
    remarks = []
    if len(distinct) < len(normals):
        remarks.append(f"{len(distinct)} distinct rows of {len(normals)}")
    if len(active) < bound:
        remarks.append(f"ties: {bound} in general position")
    return Arrangements(active, complete=True, possible=len(active), basis=basis, remark=", ".join(remarks))


def _merge_equal(normals: FloatArray) -> npt.NDArray[np.int64]:
    """For each row the index of the first row that equals it within `TIE`; rows have a common positive last column."""
    owner = np.arange(len(normals))
    for i in range(len(normals)):
        if owner[i] == i:
            same = np.linalg.norm(normals[i:] - normals[i], axis=1) <= TIE
            owner[i:][same & (owner[i:] > i)] = i
    return owner


def _cells(normals: FloatArray, flat: FloatArray, known: dict[bytes, SignArray]) -> SignArray:
    """Sign vectors, shape (cells, n), of the arrangement restricted to a flat; zero where a hyperplane contains the flat.

    `flat` is an orthonormal basis of it, shape (r+1, k). `known` remembers flats by the hyperplanes that contain them: a flat
    is reached once for each order of the hyperplanes through it.
    """
    inside = normals @ flat
    length = np.linalg.norm(inside, axis=1)
    key = np.packbits(length > TIE).tobytes()
    if key not in known:
        walls = _walls(inside, length)
        if len(walls) == flat.shape[1]:  # independent normals: every sign vector occurs
            cells = np.zeros((1, len(normals)), dtype=np.int8)
            for _, side in walls:
                cells = np.concatenate([cells + side, cells - side])
        else:
            facets = [(_cells(normals, flat @ _complement(normal), known), side) for normal, side in walls]
            cells = _distinct(np.concatenate([part for cell, side in facets for part in (cell + side, cell - side)]))
        known[key] = cells
    return known[key]


def _walls(inside: FloatArray, length: FloatArray) -> list[tuple[FloatArray, SignArray]]:
    """The distinct hyperplanes in a flat: a unit normal, shape (k,), and the side, in {-1, 0, 1}, that each row's normal points to."""
    free = length > TIE
    unit = inside / np.where(free, length, 1.0)[:, None]
    walls, left = [], free.copy()
    while left.any():
        normal = unit[np.argmax(left)]
        cosine = unit @ normal
        same = free & (np.linalg.norm(unit - cosine[:, None] * normal, axis=1) <= TIE)
        left &= ~same
        walls.append((normal, np.where(same, np.sign(cosine), 0).astype(np.int8)))
    return walls


def _complement(normal: FloatArray) -> FloatArray:
    """Orthonormal basis of the complement of a unit vector in R^k, shape (k, k-1): columns of a Householder reflection."""
    k = len(normal)
    reflector = normal.copy()
    reflector[0] += 1.0 if normal[0] >= 0 else -1.0
    reflection = np.eye(k) - np.outer(reflector, reflector) * (2.0 / (reflector @ reflector))
    return reflection[:, 1:]
