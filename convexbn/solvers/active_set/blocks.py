"""The blocks s_i and s_i' of a program over listed arrangements: their part in the predictions, and that part's adjoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from convexbn.patches import Pooling
from convexbn.program import Program
from convexbn.solvers.active_set.projection import Cones, cones_of, packed
from convexbn.solvers.masked import MAX_MEMORY, MaskedOperator, masked_operator
from convexbn.validation import BoolArray, FloatArray, InputError, IntArray

if TYPE_CHECKING:
    import torch

TIE = 1e-9  # of the length of a row: nearer to its hyperplane a direction may be on either side


@dataclass(frozen=True, eq=False)
class Blocks:
    """Block b < P is s_b, block P + b is s_b', which enters the predictions with a minus; both lie in the cone of arrangement b.

    Vectors come and go as numpy arrays; products with all samples are taken on the device of the operator, in tiles.

    Attributes
    ----------
    operator : sum_i D_i U' s_i and its adjoint, of the P arrangements
    cones : of the same arrangements
    pooling : from the rows of the basis to samples
    """

    operator: MaskedOperator
    cones: Cones
    pooling: Pooling

    @property
    def arrangements(self) -> int:
        """P."""
        return self.operator.count

    def take(self, active: BoolArray) -> Blocks:
        """The blocks of other arrangements, patterns (q, n), on the same basis."""
        operator = replace(self.operator, bits=_packed(active, self.operator.basis.device), count=len(active))
        return replace(self, operator=operator, cones=self.cones.take(active))

    def index(self, blocks: IntArray) -> IntArray:
        """The arrangements of blocks (m,)."""
        return blocks % self.arrangements

    def signs(self, blocks: IntArray) -> FloatArray:
        """How blocks (m,) enter the predictions: 1 or -1."""
        return np.where(blocks < self.arrangements, 1.0, -1.0)

    def predictions(self, blocks: IntArray, weights: FloatArray) -> FloatArray:
        """sum_b +- D_b U's_b, pooled, shape (n,), of weights (m, p)."""
        total = np.zeros((self.arrangements, weights.shape[1]))
        np.add.at(total, self.index(blocks), self.signs(blocks)[:, None] * weights)
        rows: FloatArray = self.operator.forward(self._tensor(total)[:, :, None])[:, 0].cpu().numpy()
        return self.pooling.pool(rows)

    def centres(self, v: FloatArray) -> FloatArray:
        """U'^T D_i v for v (n,): (P, p), the adjoint of `predictions` but for the signs."""
        rows = self._tensor(self.pooling.spread(v))
        found: FloatArray = self.operator.adjoint(rows[:, None])[:, :, 0].cpu().numpy()
        return found

    def axes(self) -> FloatArray:
        """(P, p) the sums of the rows of (2 D_i - I) U', of unit length: well inside of the cones."""
        rows = self._tensor(np.ones(len(self.operator.basis)))
        sums = 2.0 * self.operator.adjoint(rows[:, None])[:, :, 0] - self.operator.basis.sum(0)
        found: FloatArray = sums.cpu().numpy()
        axes: FloatArray = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-300)
        return axes

    def gram(self, index: IntArray, directions: FloatArray, bend: FloatArray) -> FloatArray:
        """G^T diag(bend) G, (k, k), G (n, k) the pooled D_i U's of directions (k, p) and the arrangements `index` (k,); bend (n,).

        G is made and used a tile of samples at a time.
        """
        import torch

        columns, place, bends = self._tensor(directions).mT, self._tensor(index), self._tensor(bend)
        result = columns.new_zeros((len(index), len(index)))
        for samples, rows in self._tiles(len(index)):
            masks = self.operator.masks(rows, slice(0, self.arrangements))
            images = (self.operator.basis[rows] @ columns).mul_(torch.index_select(masks, 1, place))
            if self.pooling.patches > 1:
                images = self.pooling.weight * images.view(-1, self.pooling.patches, len(index)).sum(1)
            result.addmm_(images.mT, bends[samples, None] * images)
        found: FloatArray = result.cpu().numpy()
        return found

    def activations(self, directions: FloatArray) -> FloatArray:
        """(U's)_+, pooled, of directions (m, p): (n, m), of a few neurons."""
        columns = self._tensor(directions).mT
        parts = [(self.operator.basis[rows] @ columns).clamp_min_(0.0).cpu().numpy() for _, rows in self._tiles(len(directions))]
        return self.pooling.pool(np.concatenate(parts))

    def network(self, directions: FloatArray, outputs: FloatArray) -> FloatArray:
        """sum_j (U's_j)_+ w_j, pooled, (n,): the predictions of neurons (m, p) and (m,), whatever arrangements they are of."""
        columns, weights = self._tensor(directions).mT, self._tensor(outputs)
        parts = [((self.operator.basis[rows] @ columns).clamp_min_(0.0) @ weights).cpu().numpy() for _, rows in self._tiles(len(outputs))]
        return self.pooling.pool(np.concatenate(parts))

    def homes(self, directions: FloatArray) -> IntArray:
        """For each direction (m, p) an arrangement whose cone it lies in, or -1 where the list has none."""
        found, half_spaces = [], self.cones.half_spaces
        for image in (half_spaces.normals[:-1] @ self._tensor(directions).mT).mT.cpu().numpy():
            clear = np.abs(image) > TIE * max(float(np.max(np.abs(image), initial=0.0)), 1e-300)
            known, wanted = packed(np.stack([clear, image > 0]), half_spaces.bits.device)
            fits = (((half_spaces.bits ^ wanted) & known) == 0).all(1)
            found.append(int(fits.int().argmax()) if bool(fits.any()) else -1)
        return np.array(found, dtype=np.int64)

    def _tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        import torch

        return torch.as_tensor(array, device=self.operator.basis.device)

    def _tiles(self, columns: int) -> Iterator[tuple[slice, slice]]:
        """Samples, and their rows of the basis, for some arrays of so many columns."""
        patches = self.pooling.patches
        rows = max(1, self.operator.rows_of(max(1, columns)) // patches)
        for i in range(0, len(self.operator.basis) // patches, rows):
            samples = slice(i, min(i + rows, len(self.operator.basis) // patches))
            yield samples, slice(samples.start * patches, samples.stop * patches)


def blocks_of(program: Program, *, device: str = "cpu", max_memory: int = MAX_MEMORY) -> Blocks:
    """The blocks of a program over listed arrangements.

    Raises
    ------
    InputError
        For a program whose arrangements are not listed, and too little memory.
    """
    if program.arrangements is None:
        raise InputError("arrangements are not listed in this program: enumerate or sample them for the solver 'active set'")
    active = program.arrangements.active
    operator = masked_operator(program.basis, active, device=device, max_memory=max_memory)
    return Blocks(operator, cones_of(program.basis, active, device=device, max_memory=max_memory), program.pooling)


def _packed(active: BoolArray, device: torch.device) -> torch.Tensor:
    """The masks (P, n) as `MaskedOperator` keeps them, those of a row next to each other."""
    import torch

    return torch.as_tensor(np.packbits(active.T, axis=1), device=device)
