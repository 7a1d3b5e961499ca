"""Pricing where h(V) is known: over listed arrangements, and in closed form at rank n - 1."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from convexbn.arrangements import TIE
from convexbn.validation import BoolArray, FloatArray, IntArray

RESIDUE = 1e-12  # of the length of c: what is left of it below that is rounding, and has no direction
SIFTINGS = 200  # far more than it takes


@dataclass(frozen=True)
class Price:
    """An interval around h(V) and the neurons at its lower end.

    Attributes
    ----------
    upper : proved, over the arrangements that were priced
    lower : ||V^T (U's)_+|| of the first neuron; as an estimate of h(V) it rests on the search that found it
    directions : (k, r+1) s of norm 1, or 0 where nothing has a price; the best first, then others that a better V has to mind
    outputs : (k, C) the unit w for which w^T V^T (U's)_+ is large; +1 or -1 for one output
    """

    upper: float
    lower: float
    directions: FloatArray
    outputs: FloatArray


def trivial_bound(v: FloatArray) -> float:
    """||(v)_+|| and a breath for rounding: v^T (U's)_+ is never more for a unit s, as U' has orthonormal columns."""
    return float(np.linalg.norm(np.maximum(v, 0.0))) * (1.0 + 1e-12)


def price_arrangements(basis: FloatArray, v: FloatArray, active: BoolArray, *, complete: bool = True) -> Price:
    """Bound |v^T D_i U's| over ||s|| <= 1 in the cones (2 D_i - I) U's >= 0 of the given arrangements.

    One cone and sign is a projection, max c^T s = min over l >= 0 of ||c + A^T l|| with c = +-U'^T D_i v and A = (2 D_i - I) U':
    a small non-negative least squares problem. Every l >= 0 gives a valid bound, so nothing rests on its accuracy, and a cone is left
    as soon as its bound is below that of another. In a complete list hyperplanes that meet within `TIE` count as one arrangement, at
    each of the r+1 steps down in dimension; letting the cones open by (r+1) TIE costs the margin (r+1) TIE sum (l + |v|) ||u||. For
    a sample the cones are what they are, and the margin covers the rounding of the sums: n eps in the place of (r+1) TIE.

    Parameters
    ----------
    basis : (n, r+1) U'
    v : (n,) the dual point V
    active : (P, n) the diagonals of the D_i
    complete : whether those that are missing from the list are meant as well, as far as ties hide them
    """
    angle = TIE * basis.shape[1] if complete else float(np.finfo(np.float64).eps) * len(basis)
    sizes = np.linalg.norm(basis, axis=1)
    centres = np.array([v[pattern] @ basis[pattern] for pattern in active]).reshape(len(active), basis.shape[1])
    length = np.linalg.norm(centres, axis=1)
    margin = angle * float(np.abs(v) @ sizes)
    best = Price(0.0, 0.0, np.zeros((1, basis.shape[1])), np.ones((1, 1)))
    for i in np.argsort(-length):
        if length[i] + margin <= best.upper:
            break
        cone = np.where(active[i], 1.0, -1.0)[:, None] * basis
        for sign in (1.0, -1.0):
            best = _dearer(best, _price_cone(basis, v, cone, sign * centres[i], sizes, angle, best.upper))
    return best


def _price_cone(
    basis: FloatArray, v: FloatArray, cone: FloatArray, centre: FloatArray, sizes: FloatArray, angle: float, enough: float
) -> Price:
    """The price of one cone, of rows of those sizes that open by the angle, or a bound of at most `enough` on it and no neuron.

    The penalties on the multipliers grow while the margin is what makes the bound loose.
    """
    upper, length = np.inf, float(np.linalg.norm(centre))
    fixed = angle * float(np.abs(v) @ sizes)
    for weight in (1.0, 1e1, 1e2, 1e3, 1e4):
        rows, multipliers = sifted_multipliers(cone, sizes, centre, weight * angle, enough - fixed)
        projection = centre + multipliers @ cone[rows]
        norm, margin = float(np.linalg.norm(projection)), fixed + angle * float(multipliers @ sizes[rows])
        if weight == 1.0:
            direction = projection / norm if norm > RESIDUE * length else np.zeros(len(centre))
        upper = min(upper, norm + margin)
        if upper <= enough:
            return Price(upper, 0.0, np.zeros((1, len(centre))), np.ones((1, 1)))
        if margin <= 1e-6 * length:
            break
    return _evaluated(basis, v, direction, upper)


def sifted_multipliers(cone: FloatArray, sizes: FloatArray, centre: FloatArray, angle: float, enough: float) -> tuple[IntArray, FloatArray]:
    """The rows that count for `cone_multipliers` of a cone of many rows, and their multipliers, both (k,); sizes (n,) are their norms.

    They are looked for among few rows at a time: those that had a part in the last projection, and up to p that are violated most.
    Every stage is a valid bound, and the first with ||c + A^T l|| + angle sizes^T l of at most `enough` is the last. All rows are
    read once a stage.
    """
    rows, multipliers = np.zeros(0, dtype=np.int64), np.zeros(0)
    most, scale = cone.shape[1], float(np.linalg.norm(centre))
    for _ in range(SIFTINGS):
        projection, drag = centre + multipliers @ cone[rows], angle * float(multipliers @ sizes[rows])
        if float(np.linalg.norm(projection)) + drag <= enough:
            break
        slack = cone @ projection
        slack[rows] = 0.0
        worse = np.flatnonzero(slack < -(1e-12 * scale + angle * drag) * sizes)
        if not len(worse):
            break
        if len(worse) > most:
            worse = worse[np.argpartition(slack[worse] / sizes[worse], most)[:most]]
        tried = np.concatenate([rows, worse])
        found = cone_multipliers(cone[tried], centre, angle * sizes[tried])
        rows, multipliers = tried[found > 0], found[found > 0]
    return rows, multipliers


def cone_multipliers(cone: FloatArray, centre: FloatArray, opening: FloatArray | None = None) -> FloatArray:
    """The l >= 0, shape (n,), with the least ||c + A^T l||, so that c + A^T l is the projection of c on { s : A s >= 0 }.

    With `opening` (n,) it is the least ||c + A^T l||^2 + (opening^T l)^2: the cone of a cell as thin as `TIE` has multipliers so
    large that the margin would drown the bound.

    scipy's nnls is fast and, where normals are parallel or nearly so, now and then returns multipliers that are not the best
    ones without a word (scipy's issue 25389). The conditions of optimality tell; where they don't hold, the slower bounded
    least squares take over, and the better of the two is kept. Either is a valid bound.
    """
    from scipy.optimize import lsq_linear, nnls

    matrix = cone.T if opening is None else np.vstack([cone.T, opening])
    target = -centre if opening is None else np.append(-centre, 0.0)
    try:
        multipliers = nnls(matrix, target)[0]
    except RuntimeError:  # out of iterations
        multipliers = np.zeros(len(cone))
    residual = matrix @ multipliers - target
    slope, scale = matrix.T @ residual, math.sqrt(float(centre @ centre))
    if slope.min(initial=0.0) >= -1e-9 * scale and abs(float(multipliers @ slope)) <= 1e-9 * scale**2:
        return multipliers
    slower = np.maximum(lsq_linear(matrix, target, bounds=(0.0, np.inf), method="bvls", tol=1e-14, max_iter=10 * len(cone)).x, 0.0)
    better = np.linalg.norm(matrix @ slower - target) < np.linalg.norm(residual)
    return slower if better else multipliers


def price_square(basis: FloatArray, v: FloatArray) -> Price:
    """h(V) = max(||V_+||, ||V_-||) in closed form, for a square basis (rank n-1): every pre-activation is within reach.

    The relative margin 1e-12 covers the rounding of the norms.
    """
    positive, negative = np.maximum(v, 0.0), np.maximum(-v, 0.0)
    target = positive if np.linalg.norm(positive) >= np.linalg.norm(negative) else negative
    norm = float(np.linalg.norm(target))
    direction = basis.T @ target / norm if norm > 0 else np.zeros(basis.shape[1])
    return _evaluated(basis, v, direction, norm * (1.0 + 1e-12))


def _evaluated(basis: FloatArray, v: FloatArray, direction: FloatArray, upper: float) -> Price:
    worth = float(v @ np.maximum(basis @ direction, 0.0))
    return Price(upper, abs(worth), direction[None], np.array([[-1.0 if worth < 0 else 1.0]]))


def _dearer(one: Price, other: Price) -> Price:
    """The union of two intervals: the larger upper bound, and the neuron with the larger worth."""
    winner = one if one.lower >= other.lower else other
    return replace(winner, upper=max(one.upper, other.upper))


def is_square(basis: FloatArray, v: FloatArray) -> bool:
    """Whether the centred data have rank n - 1 and v is one column, so that `price_square` holds."""
    return basis.shape[0] == basis.shape[1] and v.ndim == 1
