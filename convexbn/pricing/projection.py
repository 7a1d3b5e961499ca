"""Projections on the cones (2 D_i - I) U's >= 0 of listed arrangements, many at once, each begun from a face that is nearly right."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from convexbn.pricing.cells import IntArray, cone_multipliers
from convexbn.validation import BoolArray, FloatArray

SLACK = 1e-11  # by so much a unit direction may leave the half-space of a unit row
NEGATIVE = 1e-13  # of the point's length: a multiplier above minus this counts as 0
NOTHING = 1e-13  # of the point's length: a shorter projection is 0
ROUNDS = 100  # far more than any projection needs; rounding could make one go round in circles
CHUNK = 2**23  # entries of the slacks that are computed at a time: 64 MiB


class Cones:
    """The cones K_i = { s : A_i s >= 0 }, A_i = (2 D_i - I) U' with rows of unit length, for arrangements i = 1..P of one basis (n, p).

    A **face** is what a projection leaves behind for the next one: the rows whose constraints have positive multipliers, as
    numbers (p,) filled up with -1; they are linearly independent. Cones of many samples are thin, and a projection lies on a face
    of a few dimensions, so its rows are nearly p in number, and nearly the same for a point nearby.
    """

    def __init__(self, basis: FloatArray, active: BoolArray) -> None:
        norms = np.linalg.norm(basis, axis=1, keepdims=True)
        self.rows = basis / np.where(norms > 0, norms, 1.0)
        self.padded = np.vstack([self.rows, np.zeros(basis.shape[1])])  # row -1 is the filling of a face
        self.signs = np.where(active, 1, -1).astype(np.int8)

    def no_faces(self, count: int) -> IntArray:
        """Faces (count, p) without rows: the interior."""
        return np.full((count, self.rows.shape[1]), -1, dtype=np.int64)

    def project(self, index: IntArray, points: FloatArray, faces: IntArray, floor: float = 0.0) -> tuple[FloatArray, FloatArray, IntArray]:
        """The projections (m, p) of `points` (m, p) on the cones `index` (m,), their lengths (m,), and their faces (m, p).

        A projection that is known to be no longer than `floor` is not worked out: what comes back for it is the projection on a
        larger cone, with its length. Every length is ||c + A^T l|| for some l >= 0 and so an upper bound on that of the projection,
        to rounding.
        """
        size = max(1, CHUNK // len(self.rows))
        parts = [self._project(index[a : a + size], points[a : a + size], faces[a : a + size], floor) for a in range(0, len(index), size)]
        if not parts:
            return points, np.zeros(0), faces
        projections, lengths, following = (np.concatenate(part) for part in zip(*parts, strict=True))
        return projections, lengths, following

    def _project(self, index: IntArray, points: FloatArray, faces: IntArray, floor: float) -> tuple[FloatArray, FloatArray, IntArray]:
        """Project on the cone of the face's rows alone, add rows that are violated, and so on; a face that fits costs one solve."""
        projections, fits = self._on_faces(index, points, faces)
        faces, lengths = faces.copy(), np.linalg.norm(projections, axis=1)
        lowest = np.maximum(floor, NOTHING * np.linalg.norm(points, axis=1))
        candidates = {k: faces[k][faces[k] >= 0] for k in np.flatnonzero(~fits)}
        open_ones = np.arange(len(index))
        for _ in range(ROUNDS):
            for k, rows in candidates.items():
                cone = self._signed(index[k], rows)
                multipliers = cone_multipliers(cone, points[k])
                positive = multipliers > 0
                faces[k] = -1
                kept = rows[positive][: faces.shape[1]]
                faces[k, : len(kept)] = kept
                projections[k] = points[k] + multipliers[positive] @ cone[positive]
                lengths[k] = np.linalg.norm(projections[k])
            open_ones = open_ones[lengths[open_ones] > lowest[open_ones]]
            directions = projections[open_ones] / lengths[open_ones, None]
            candidates = {open_ones[j]: rows for j, rows in self._violated(index[open_ones], directions, faces[open_ones])}
            open_ones = np.array(list(candidates), dtype=np.int64)
            if not candidates:
                break
        projections[lengths <= NOTHING * np.linalg.norm(points, axis=1)] = 0.0
        return projections, lengths, faces

    def _signed(self, i: int, rows: IntArray) -> FloatArray:
        """Those rows of A_i."""
        signed: FloatArray = self.signs[i, rows][:, None] * self.rows[rows]
        return signed

    def _on_faces(self, index: IntArray, points: FloatArray, faces: IntArray) -> tuple[FloatArray, BoolArray]:
        """The projections on the linear hulls of the faces, all in one batch of small solves, and whether the multipliers are >= 0."""
        size = int(np.max(np.sum(faces >= 0, axis=1), initial=0))
        if not size:
            return points.copy(), np.ones(len(points), dtype=np.bool_)
        faces = faces[:, :size]
        walls = self.padded[faces] * self.signs[index[:, None], faces][:, :, None]
        gram = walls @ walls.transpose(0, 2, 1)
        diagonal = np.arange(size)
        gram[:, diagonal, diagonal] += np.where(faces >= 0, 1e-15, 1.0)  # no exact zero pivots
        multipliers = -np.linalg.solve(gram, walls @ points[:, :, None])[:, :, 0]
        projections = points + (multipliers[:, None, :] @ walls)[:, 0]
        lengths = np.linalg.norm(points, axis=1)
        inside = np.max(np.abs(walls @ projections[:, :, None])[:, :, 0], axis=1) <= SLACK * np.maximum(lengths, 1e-300)
        return projections, inside & np.all(multipliers >= -NEGATIVE * lengths[:, None], axis=1)

    def _violated(self, index: IntArray, directions: FloatArray, faces: IntArray) -> Iterator[tuple[int, IntArray]]:
        """For each cone that its unit direction leaves: its place in `index`, and its face's rows with the p/2 that are violated most."""
        slacks = directions @ self.rows.T
        slacks *= self.signs[index]
        most = max(1, self.rows.shape[1] // 2)
        for j in np.flatnonzero(np.min(slacks, axis=1, initial=0.0) < -SLACK):
            known = faces[j][faces[j] >= 0]
            slacks[j, known] = 0.0  # rounding: they are what it was projected on
            rows = np.flatnonzero(slacks[j] < -SLACK)
            if len(rows):
                worst = rows[np.argpartition(slacks[j, rows], most)[:most]] if len(rows) > most else rows
                yield int(j), np.concatenate([known, worst])

    def hull(self, i: int, face: IntArray) -> FloatArray:
        """An orthonormal basis (p, k) of the linear hull of a face of the cone i: the null space of its rows."""
        rows = face[face >= 0]
        if not len(rows):
            return np.eye(self.rows.shape[1])
        complete: FloatArray = np.linalg.qr(self.rows[rows].T, mode="complete")[0]
        return complete[:, len(rows) :]
