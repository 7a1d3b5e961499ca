"""The blocks s_i and s_i' of a program over listed arrangements: their part in the predictions, and that part's adjoint."""

from __future__ import annotations

import numpy as np

from convexbn.pricing.cells import IntArray
from convexbn.pricing.projection import CHUNK, Cones
from convexbn.program import Program
from convexbn.validation import FloatArray, InputError

TIE = 1e-9  # of the length of a row: nearer to its hyperplane a direction may be on either side


class Blocks:
    """Block b < P is s_b, block P + b is s_b', which enters the predictions with a minus; both lie in the cone of arrangement b.

    Nothing as large as P n numbers is made beside the patterns themselves, one byte an entry: what needs the rows of many blocks goes
    through them in chunks.
    """

    def __init__(self, program: Program) -> None:
        if program.arrangements is None:
            raise InputError("arrangements are not listed in this program: enumerate or sample them for the solver 'active set'")
        self.basis, self.pooling = program.basis, program.pooling
        self.active = program.arrangements.active
        self.cones = Cones(self.basis, self.active)
        self.arrangements = len(self.active)
        self.chunk = max(1, CHUNK // len(self.basis))
        axes = np.concatenate([(2.0 * self.active[a : a + self.chunk] - 1.0) @ self.basis for a in range(0, self.arrangements, self.chunk)])
        self.axes = axes / np.maximum(np.linalg.norm(axes, axis=1, keepdims=True), 1e-300)

    def index(self, blocks: IntArray) -> IntArray:
        """The arrangements of blocks (m,)."""
        return blocks % self.arrangements

    def signs(self, blocks: IntArray) -> FloatArray:
        """How blocks (m,) enter the predictions: 1 or -1."""
        return np.where(blocks < self.arrangements, 1.0, -1.0)

    def features(self, index: IntArray, directions: FloatArray) -> FloatArray:
        """D_i U's, pooled, of directions (m, p) and the arrangements `index` (m,): (n, m)."""
        images = self.basis @ directions.T
        return self.pooling.pool(images * self.active[index].T)

    def predictions(self, blocks: IntArray, weights: FloatArray) -> FloatArray:
        """Their sum for weights (m, p), with signs: (n,)."""
        total = np.zeros(len(self.basis))
        for a in range(0, len(blocks), self.chunk):
            part = blocks[a : a + self.chunk]
            images = (self.signs(part)[:, None] * weights[a : a + self.chunk]) @ self.basis.T
            total += np.einsum("bn,bn->n", self.active[self.index(part)], images)
        return self.pooling.pool(total)

    def centres(self, v: FloatArray, index: IntArray) -> FloatArray:
        """U'^T D_i v for v (n,): (m, p), the adjoint of `predictions` but for the signs."""
        rows = self.pooling.spread(v)
        parts = [(self.active[index[a : a + self.chunk]] * rows) @ self.basis for a in range(0, len(index), self.chunk)]
        return np.concatenate(parts) if parts else np.zeros((0, self.basis.shape[1]))

    def homes(self, directions: FloatArray) -> IntArray:
        """For each direction (m, p) an arrangement whose cone it lies in, or -1 where the list has none."""
        found = []
        for image in directions @ self.cones.rows.T:
            clear = np.abs(image) > TIE * max(float(np.max(np.abs(image), initial=0.0)), 1e-300)
            strangers = np.any(self.active[:, clear] != (image[clear] > 0), axis=1)
            found.append(-1 if strangers.all() else int(np.argmin(strangers)))
        return np.array(found, dtype=np.int64)
