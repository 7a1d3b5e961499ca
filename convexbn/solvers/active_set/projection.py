"""Projections on the cones (2 D_i - I) U's >= 0 of listed arrangements, many at once, each begun from a face that is nearly right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from convexbn.pricing.cells import cone_multipliers
from convexbn.solvers.masked import MAX_MEMORY
from convexbn.validation import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    import torch

SLACK = 1e-11  # by so much a unit direction may leave the half-space of a unit row
NEGATIVE = 1e-13  # of the point's length: a multiplier above minus this counts as 0
NOTHING = 1e-13  # of the point's length: a shorter projection is 0
ROUNDS = 100  # far more than any projection needs; rounding could make one go round in circles
CHUNK = 2**23  # entries of the slacks that are computed at a time: 64 MiB
# Of an entry of a slack: itself, its sign, the bits on their way to it, and what looks for the least ones. Of p^2: the rows of a face.
SLACK_BYTES, WALL_BYTES = 64, 48


@dataclass(frozen=True, eq=False)
class HalfSpaces:
    """The half-spaces of all cones on the device of the products: their unit normals, and on which side of each a cone lies.

    Attributes
    ----------
    normals : (n + 1, p) tensor, the last one 0
    bits : (P, ceil((n + 1) / 8)) uint8 tensor on the same device, the patterns in the order of `numpy.packbits`
    signs : (256, 8) tensor, the bits of a byte as 1 and -1
    """

    normals: torch.Tensor
    bits: torch.Tensor
    signs: torch.Tensor

    def violated(self, index: IntArray, directions: FloatArray, faces: IntArray) -> tuple[IntArray, IntArray]:
        """Which of the unit directions (m, p) leave the cones `index` (m,), and there the p/2 rows that they break most, or -1.

        Both (k,) and (k, p/2). The rows of a direction's face (m, p) are what it was projected on: they don't count.
        """
        import torch

        device, count = self.normals.device, len(self.normals)
        slacks = torch.as_tensor(directions, device=device) @ self.normals.mT
        bits = torch.index_select(self.bits, 0, torch.as_tensor(index, device=device))
        signs = torch.index_select(self.signs, 0, bits.int().view(-1)).view(len(index), 8 * bits.shape[1])  # faster than indexing
        slacks.mul_(signs[:, :count]).scatter_(1, torch.as_tensor(faces % count, device=device), 0.0)
        leave = torch.nonzero(slacks.amin(1) < -SLACK)[:, 0]
        worst, rows = torch.topk(slacks[leave], min(max(1, directions.shape[1] // 2), count), dim=1, largest=False)
        return leave.cpu().numpy(), rows.masked_fill_(worst >= -SLACK, -1).cpu().numpy()


@dataclass(frozen=True, eq=False)
class Cones:
    """The cones K_i = { s : A_i s >= 0 }, A_i = (2 D_i - I) U' with rows of unit length, for arrangements i = 1..P of one basis (n, p).

    A **face** is what a projection leaves behind for the next one: the rows whose constraints have positive multipliers, as
    numbers (p,) filled up with -1; they are linearly independent. Cones of many samples are thin, and a projection lies on a face
    of a few dimensions, so its rows are nearly p in number, and nearly the same for a point nearby.

    What reads all rows of many cones is done on a device; the small problems on a few rows of one cone are solved on the host.

    Attributes
    ----------
    rows : (n + 1, p) the rows of U', of unit length; the last one is 0, the filling of a face
    active : (P, n) the patterns
    half_spaces : the same on the device
    max_memory : bytes for temporary arrays
    """

    rows: FloatArray
    active: BoolArray
    half_spaces: HalfSpaces
    max_memory: int = MAX_MEMORY

    def take(self, active: BoolArray) -> Cones:
        """The cones of other patterns (q, n) of the same basis."""
        bits = packed(active, self.half_spaces.normals.device)
        return replace(self, active=active, half_spaces=replace(self.half_spaces, bits=bits))

    def no_faces(self, count: int) -> IntArray:
        """Faces (count, p) without rows: the interior."""
        return np.full((count, self.rows.shape[1]), -1, dtype=np.int64)

    def project(self, index: IntArray, points: FloatArray, faces: IntArray, floor: float = 0.0) -> tuple[FloatArray, FloatArray, IntArray]:
        """The projections (m, p) of `points` (m, p) on the cones `index` (m,), their lengths (m,), and their faces (m, p).

        A projection that is known to be no longer than `floor` is not worked out: what comes back for it is the projection on a
        larger cone, with its length. Every length is ||c + A^T l|| for some l >= 0 and so an upper bound on that of the projection,
        to rounding.
        """
        rows, columns = self.rows.shape
        size = max(1, min(CHUNK // rows, self.max_memory // (SLACK_BYTES * rows + WALL_BYTES * columns**2)))
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
        open_ones, unsolved, rows = np.arange(len(index)), np.flatnonzero(~fits), faces[~fits]
        for _ in range(ROUNDS):
            if len(unsolved):
                projections[unsolved], faces[unsolved] = self._on_rows(index[unsolved], points[unsolved], rows)
                lengths[unsolved] = np.linalg.norm(projections[unsolved], axis=1)
            open_ones = open_ones[lengths[open_ones] > lowest[open_ones]]
            if not len(open_ones):
                break
            directions = projections[open_ones] / lengths[open_ones, None]
            leave, broken = self.half_spaces.violated(index[open_ones], directions, faces[open_ones])
            open_ones = unsolved = open_ones[leave]
            if not len(unsolved):
                break
            rows = np.concatenate([faces[unsolved], broken], axis=1)
        projections[lengths <= NOTHING * np.linalg.norm(points, axis=1)] = 0.0
        return projections, lengths, faces

    def _on_rows(self, index: IntArray, points: FloatArray, rows: IntArray) -> tuple[FloatArray, IntArray]:
        """The projections (m, p) on the cones of some rows (m, k) alone, -1 for none, and their faces (m, p)."""
        walls, multipliers = self._walls(index, rows), np.zeros(rows.shape)
        for k, real in enumerate(rows >= 0):
            multipliers[k, real] = cone_multipliers(walls[k, real], points[k])
        projections = points + (multipliers[:, None, :] @ walls)[:, 0]
        first = np.argsort(multipliers <= 0, axis=1, kind="stable")[:, : points.shape[1]]
        kept = np.where(np.take_along_axis(multipliers, first, 1) > 0, np.take_along_axis(rows, first, 1), -1)
        faces = self.no_faces(len(rows))
        faces[:, : kept.shape[1]] = kept
        return projections, faces

    def _walls(self, index: IntArray, rows: IntArray) -> FloatArray:
        """Those rows (m, k) of the A_i, (m, k, p); zeros for -1."""
        walls: FloatArray = self.rows[rows]
        walls *= np.where(self.active[index[:, None], rows], 1.0, -1.0)[:, :, None]
        return walls

    def _on_faces(self, index: IntArray, points: FloatArray, faces: IntArray) -> tuple[FloatArray, BoolArray]:
        """The projections on the linear hulls of the faces, all in one batch of small solves, and whether the multipliers are >= 0."""
        size = int(np.max(np.sum(faces >= 0, axis=1), initial=0))
        if not size:
            return points.copy(), np.ones(len(points), dtype=np.bool_)
        faces = faces[:, :size]
        walls = self._walls(index, faces)
        gram = walls @ walls.transpose(0, 2, 1)
        diagonal = np.arange(size)
        gram[:, diagonal, diagonal] += np.where(faces >= 0, 1e-15, 1.0)  # no exact zero pivots
        multipliers = -np.linalg.solve(gram, walls @ points[:, :, None])[:, :, 0]
        projections = points + (multipliers[:, None, :] @ walls)[:, 0]
        lengths = np.linalg.norm(points, axis=1)
        inside = np.max(np.abs(walls @ projections[:, :, None])[:, :, 0], axis=1) <= SLACK * np.maximum(lengths, 1e-300)
        return projections, inside & np.all(multipliers >= -NEGATIVE * lengths[:, None], axis=1)

    def hulls(self, faces: IntArray) -> list[FloatArray]:
        """Orthonormal bases (p, k) of the linear hulls of faces (m, p): the null spaces of their rows."""
        counts = np.sum(faces >= 0, axis=1)
        rows = self.rows[faces[:, : int(np.max(counts, initial=0))]]
        complete = np.linalg.qr(rows.transpose(0, 2, 1), mode="complete")[0]  # the zeros of the filling come last and turn nothing
        return [basis[:, count:] for basis, count in zip(complete, counts, strict=True)]


def cones_of(basis: FloatArray, active: BoolArray, *, device: str = "cpu", max_memory: int = MAX_MEMORY) -> Cones:
    """The cones of the patterns (P, n) of a basis (n, p)."""
    import torch

    norms = np.linalg.norm(basis, axis=1, keepdims=True)
    rows = np.vstack([basis / np.where(norms > 0, norms, 1.0), np.zeros(basis.shape[1])])
    normals = torch.as_tensor(rows, device=device)
    signs = 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1) - 1.0
    half_spaces = HalfSpaces(normals, packed(active, normals.device), torch.as_tensor(signs, device=device))
    return Cones(rows, active, half_spaces, max_memory)


def packed(active: BoolArray, device: torch.device) -> torch.Tensor:
    """Patterns (m, n) as `HalfSpaces` keeps them, with one more entry for the row of zeros."""
    import torch

    return torch.as_tensor(np.packbits(np.pad(active, ((0, 0), (0, 1))), axis=1), device=device)
