"""The linear map of fixed arrangements on pooled rows, p sum_i D_i U' S_i, and its adjoint, by way of the features of each image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from convexbn.patches import Pooling
from convexbn.solvers.masked import COLUMNS, CPU_TILE, GPU_TILE, MAX_MEMORY, MaskedOperator, bits_taken, expanded
from convexbn.validation import InputError, check_count

if TYPE_CHECKING:
    import torch

FEW = 32  # rows of a sample times outputs: with so few a processor multiplies each row faster than it writes features and reads them again


@dataclass(frozen=True, eq=False)
class PooledOperator:
    """A S = p sum_i D_i U' S_i for P fixed arrangements of n K rows, and A^T R = (U'^T D_i p^T R)_i; p sums or averages K rows.

    The features of an image are p D_i U' for all i, P (r+1) numbers: the masks of its patches times their rows, 2 K P (r+1)
    multiplications, whatever the number of outputs. They are a product of its own with weights or residuals, and are kept where all of
    them fit into half of `max_memory`: they are K times fewer than D_i U' has entries. Else they are made again in each product, a few
    images at a time; or, with few rows for each sample, such as an image and its mirror image, and few outputs, they are never made: the
    product is that of all rows. Every block p D_i U' has norm at most ||p||, because U'^T U' = I.

    Attributes
    ----------
    basis : (n K, r+1) tensor, U'; its dtype and device are those of all products
    bits : (n K, ceil(P / 8)) uint8 tensor on the same device, the masks of a row in the order of `numpy.packbits`
    count : P
    pooling : p
    max_memory : bytes for the features and for the temporary arrays of a product, beyond basis, masks, arguments and results
    """

    basis: torch.Tensor
    bits: torch.Tensor
    count: int
    pooling: Pooling
    max_memory: int = MAX_MEMORY

    def __post_init__(self) -> None:
        check_count(self.max_memory, "max_memory")
        self.tile()

    @property
    def norm(self) -> float:
        """A bound on the norm of each block."""
        return self.pooling.norm

    @property
    def samples(self) -> int:
        """n, the number of images."""
        return len(self.basis) // self.pooling.patches

    @property
    def keeps(self) -> bool:
        """Whether the features of all images are kept."""
        return 2 * self.samples * self._width * self.basis.element_size() <= self.max_memory

    @property
    def _width(self) -> int:
        """The number of features of an image."""
        return self.count * self.basis.shape[1]

    def by_rows(self, outputs: int) -> bool:
        """Whether a product with so many outputs is one of all rows, pooled afterwards."""
        room = 4 * outputs * len(self.basis) + 8 * COLUMNS * (self.basis.shape[1] + 5)  # half of it for the masked product
        few = self.pooling.patches * outputs <= FEW
        return few and not self.keeps and room * self.basis.element_size() <= self.max_memory

    @cached_property
    def _of_rows(self) -> MaskedOperator:
        """The same without pooling."""
        return MaskedOperator(self.basis, self.bits, self.count, self.max_memory // 2 + self.bits.numel())

    def tile(self) -> int:
        """How many images are worked on at a time.

        Raises
        ------
        InputError
            Where one doesn't fit into `max_memory`.
        """
        size, patches = self.basis.element_size(), self.pooling.patches
        each = 8 * self.bits.shape[1] * patches * (size + 1) + 2 * self._width * size  # masks, the bytes on their way to be masks, features
        preferred = (CPU_TILE if self.basis.device.type == "cpu" else GPU_TILE) // max(1, self._width, self.count * patches) + 1
        images = min(self.max_memory // (2 * each), preferred, self.samples)
        if images < 1:
            raise InputError(f"max_memory = {self.max_memory} is too small for one image: allow at least {2 * each} bytes")
        return images

    def _tiles(self) -> Iterator[slice]:
        images = self.tile()
        return (slice(i, min(i + images, self.samples)) for i in range(0, self.samples, images))

    def masks(self, samples: slice) -> torch.Tensor:
        """(images, K, P) the diagonals of the D_i as 0 and 1 in the basis' dtype."""
        rows = slice(samples.start * self.pooling.patches, samples.stop * self.pooling.patches)
        return expanded(self.bits[rows], self.count, self.basis.dtype).view(-1, self.pooling.patches, self.count)

    def features(self, samples: slice) -> torch.Tensor:
        """(images, P (r+1)) the rows of A, written out."""
        return self._all_features[samples] if self.keeps else self._features(samples)

    def _features(self, samples: slice) -> torch.Tensor:
        basis = self.basis.view(self.samples, self.pooling.patches, -1)[samples]
        return (self.masks(samples).mT @ basis).mul_(self.pooling.weight).flatten(1)

    @cached_property
    def _all_features(self) -> torch.Tensor:
        features = self.basis.new_empty((self.samples, self._width))
        for samples in self._tiles():
            features[samples] = self._features(samples)
        return features

    def forward(self, weights: torch.Tensor) -> torch.Tensor:
        """p sum_i D_i U' S_i, shape (n, C), of `weights` (P, r+1, C)."""
        if self.by_rows(weights.shape[2]):
            images = self._of_rows.forward(weights).view(self.samples, self.pooling.patches, -1)
            return self.pooling.weight * images.sum(1)
        columns = weights.reshape(self._width, weights.shape[2]).mT.contiguous()
        result = self.basis.new_empty((len(columns), self.samples))
        for samples in (slice(0, self.samples),) if self.keeps else self._tiles():
            result[:, samples] = columns @ self.features(samples).mT
        return result.mT.contiguous()

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """U'^T D_i p^T R for all i, shape (P, r+1, C), of `residual` (n, C)."""
        if self.by_rows(residual.shape[1]):
            return self._of_rows.adjoint((self.pooling.weight * residual).repeat_interleave(self.pooling.patches, dim=0))
        rows = residual.mT.contiguous()  # BLAS is three to ten times slower on the transposed product
        result = self.basis.new_zeros((len(rows), self._width))
        for samples in (slice(0, self.samples),) if self.keeps else self._tiles():
            result.addmm_(rows[:, samples], self.features(samples))
        return result.mT.contiguous().view(self.count, self.basis.shape[1], len(rows))

    def total(self) -> torch.Tensor:
        """p sum_i D_i U', shape (n, r+1): what weights that all arrangements share see."""
        result = self.basis.new_empty((self.samples, self.basis.shape[1]))
        for samples in self._tiles():
            result[samples] = self.features(samples).view(-1, self.count, self.basis.shape[1]).sum(1)
        return result

    def kernel(self) -> torch.Tensor:
        """A A^T, shape (n, n), in the basis' dtype."""
        kernel = self.basis.new_empty((self.samples, self.samples))
        for rows in self._tiles():
            some = self.features(rows)
            for columns in self._tiles():
                kernel[rows, columns] = some @ self.features(columns).mT
        return kernel

    def written_out(self) -> torch.Tensor:
        """A itself, (n, P (r+1)), for what is small enough to write it out."""
        return self.features(slice(0, self.samples))

    def take(self, arrangements: torch.Tensor) -> PooledOperator:
        """The operator of a subset of the arrangements, `arrangements` their indices (q,) in rising order."""
        bits = bits_taken(self.bits, self.count, arrangements, self.tile() * self.pooling.patches)
        return replace(self, bits=bits, count=len(arrangements))

    def to(self, dtype: torch.dtype) -> PooledOperator:
        """The same operator in another floating type."""
        return replace(self, basis=self.basis.to(dtype))


Operator = MaskedOperator | PooledOperator
