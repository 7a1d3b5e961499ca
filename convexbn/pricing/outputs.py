"""A proof over all arrangements for several outputs: relaxations in many output directions, joined by convexity."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from convexbn.pricing.boxes import BOX_COLUMNS, bound_by_boxes
from convexbn.pricing.cells import Price
from convexbn.pricing.local import SHARP, distinct, local_search, normalised
from convexbn.pricing.relaxation import Relaxation
from convexbn.validation import FloatArray, IntArray

SEVERAL = 8  # cuts between two looks at the vertices
DISTINCT = 0.97  # the largest cosine between two of them
FLATTEST = 0.05  # the least height of a cut, as a fraction of h: lower ones make vertices of the dual polytope run away
JOGGLE = 1e-6  # relative; heights are raised by up to this much, so that no more than C cuts meet in a vertex
BOX_SECONDS = 2.0  # for branch and bound at a cut that the relaxation leaves too high
HULL_OUTPUTS = 5  # beyond so many, and beyond so many vertices, the convex hull takes too long
VERTICES = 200_000


def bound_over_outputs(
    basis: FloatArray,
    v: FloatArray,
    directions: FloatArray,
    outputs: FloatArray,
    lower: float,
    *,
    tolerance: float = 3e-4,
    seconds: float = 2.0,
) -> Iterator[Price]:
    """Ever smaller proved upper bounds on h(V) = max over ||s|| <= 1 of ||V^T (U's)_+||, V (n, C), to `tolerance` if time suffices.

    The vectors y = V^T (U's)_+ fill a set Y in R^C, and h(V) is the largest norm in it. For a unit w a scalar relaxation R(V w)
    bounds w^T y over Y, so Y lies in the polytope { y : w_k^T y <= R_k } of any number of cuts w_k, and h(V) is at most the
    largest norm of its vertices. The next cuts are made at the vertices that stand out furthest, w = y / ||y||.

    Vertices come from a convex hull in floating point (the dual polytope, with vertices w_k / R_k), which is believed only where
    it holds up: see `_covers`.

    Parameters
    ----------
    basis : (n, r+1) U'
    v : (n, C) the dual point V
    directions, outputs : (K, r+1) good neurons and the unit (K, C) w that they answer
    lower : a value that is attained
    tolerance, seconds : when to stop

    Yields
    ------
    The interval after each look at the vertices, with the cuts that hold the largest norm down and the neurons that come near them.
    """
    trivial = float(np.linalg.norm(v, 2)) * (1.0 + 1e-12)
    if lower <= 0.0 or v.shape[1] > HULL_OUTPUTS:
        yield Price(max(lower, trivial), lower, directions, outputs)
        return
    deadline = time.perf_counter() + seconds
    cuts = _Cuts(basis, v, directions, (1.0 + tolerance) * lower, deadline)
    identity = np.eye(v.shape[1])
    for w in np.concatenate([identity, -identity, -np.ones((1, v.shape[1])) / np.sqrt(v.shape[1])]):
        cuts.add(w)
    wanted = list(outputs)
    upper = trivial
    while True:
        simplices = cuts.simplices()
        corners = cuts.corners(simplices)
        norms = np.linalg.norm(corners, axis=1)
        reached = cuts.reached(simplices, corners)
        if reached > 0.5 and _covers(cuts.points, simplices):  # below, the corners are nothing but rounding
            upper = min(upper, float(np.max(norms)) / reached * (1.0 + 1e-12))
        yield Price(max(upper, lower), lower, *cuts.hottest(lower))
        if upper <= cuts.goal or time.perf_counter() > deadline or len(simplices) > VERTICES:
            break
        furthest = np.argsort(-norms)[: 100 * SEVERAL]
        units = normalised(corners[furthest])
        new = [units[j] for j in distinct(units, norms[furthest], cosine=DISTINCT, most=SEVERAL)]
        for w in wanted[:SEVERAL] or new:
            if time.perf_counter() < deadline:
                cuts.add(w)
        wanted = wanted[SEVERAL:]


class _Cuts:
    """Half-spaces w_k^T y <= R_k around Y, with the neuron found for each."""

    def __init__(self, basis: FloatArray, v: FloatArray, directions: FloatArray, goal: float, deadline: float) -> None:
        self.basis, self.v, self.goal, self.deadline = basis, v, goal, deadline
        self.pool = directions
        self.relaxation = Relaxation(basis)
        self.joggle = np.random.default_rng(0)
        self.outputs: list[FloatArray] = []
        self.heights: list[float] = []
        self.directions: list[FloatArray] = []

    def add(self, w: FloatArray) -> None:
        """Cut at the relaxation's bound on w^T y, and past the deadline at ||(V w)_+||, which costs nothing, as ||(U's)_+|| <= 1."""
        column = self.v @ w
        worths = np.maximum(self.basis @ self.pool.T, 0.0).T @ column
        found, values = local_search(self.basis, column[:, None], self.pool[np.argsort(-worths)[:4]], widths=SHARP, steps=24)
        direction = found[int(np.argmax(values))]
        if not np.any(np.all(self.pool == direction, axis=1)):
            self.pool = np.concatenate([self.pool, direction[None]])
        height = self.relaxation.bound(column, direction, enough=self.goal, seconds=self.deadline - time.perf_counter())
        worth, left = float(np.max(values)), self.deadline - time.perf_counter()
        if left > 0 and height > self.goal and self.basis.shape[1] <= BOX_COLUMNS:
            tolerance = max(0.0, 0.9 * (self.goal / worth - 1.0)) if worth > 0 else 0.0
            seconds = min(left, BOX_SECONDS)
            height = min(height, bound_by_boxes(self.basis, column, worth, tolerance=tolerance, seconds=seconds))
        raised = max(height, FLATTEST * self.goal) * (1.0 + JOGGLE * self.joggle.random())
        self.outputs.append(w)
        self.heights.append(raised)
        self.directions.append(direction)

    @property
    def points(self) -> FloatArray:
        """(K, C) w_k / R_k, the vertices of the dual polytope."""
        return np.asarray(np.array(self.outputs) / np.array(self.heights)[:, None])

    def simplices(self) -> IntArray:
        """(N, C) the facets of the hull of the points; each is a vertex of the polytope around Y."""
        from scipy.spatial import ConvexHull

        facets: IntArray = ConvexHull(self.points, qhull_options="Qt Q12").simplices.astype(np.intp)
        return facets

    def corners(self, simplices: IntArray) -> FloatArray:
        """(N, C) the y with w_k^T y = R_k for the cuts k of each simplex."""
        right = np.ones((*simplices.shape, 1))
        return np.asarray(np.linalg.solve(self.points[simplices], right)[..., 0])

    def reached(self, simplices: IntArray, corners: FloatArray) -> float:
        """The least w_k^T y / R_k of corners y and their cuts k: 1 without rounding, and divided by, on the safe side with it."""
        return float(np.min(np.einsum("nkc,nc->nk", self.points[simplices], corners)))

    def hottest(self, lower: float) -> tuple[FloatArray, FloatArray]:
        """Directions and outputs of the cuts that are nearly as high as h or higher, at most 3 C + 4 of them, the highest first."""
        heights = np.array(self.heights)
        highest = np.argsort(-heights)[: 3 * self.v.shape[1] + 4]
        order = [k for k in highest if heights[k] > 0.97 * lower] or highest[:1].tolist()
        return np.array(self.directions)[order], np.array(self.outputs)[order]


def _covers(points: FloatArray, simplices: IntArray) -> bool:
    """Whether the cones over the simplices cover R^C, so that max over Y of ||y|| is at most the largest norm of a corner.

    In the cone of a simplex w = sum l_k w_k, l >= 0, and w^T y <= sum l_k R_k = w^T corner. The cones cover where the simplices
    form a closed surface around 0 without folds: each ridge lies in exactly two simplices, and their other points lie on
    opposite sides of the hyperplane through ridge and 0. Determinants within rounding of 0 count as no.
    """
    outputs = simplices.shape[1]
    if not len(simplices):
        return False
    ordered = np.sort(simplices, axis=1)
    scaled = points / np.linalg.norm(points, axis=1, keepdims=True)
    volume = np.linalg.det(scaled[ordered])
    if np.any(np.abs(volume) <= 1e-13):
        return False
    ridges = np.concatenate([np.delete(ordered, k, axis=1) for k in range(outputs)])
    # Moving point k of an ordered simplex to the front takes k swaps: the sign of the side on which it lies.
    sides = np.concatenate([np.sign(volume) * (-1.0) ** k for k in range(outputs)])
    _, place, number = np.unique(ridges, axis=0, return_inverse=True, return_counts=True)
    balance = np.bincount(place.ravel(), weights=sides, minlength=len(number))
    return bool(np.all(number == 2) and np.all(balance == 0.0))
