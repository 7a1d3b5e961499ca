"""The linear map of a fixed set of arrangements, sum_i D_i U' S_i, and its adjoint: matrix products with masks, nothing written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from convexbn.validation import BoolArray, FloatArray, InputError, check_count

if TYPE_CHECKING:
    import torch

MAX_MEMORY = 2**30  # bytes
# Entries of a tile: what stays in a processor's cache, and what keeps a GPU busy; columns of its matrix product.
CPU_TILE, GPU_TILE = 2**20, 2**26
COLUMNS = 640


@dataclass(frozen=True, eq=False)
class MaskedOperator:
    """A S = sum_i D_i U' S_i for P fixed arrangements, and A^T R = (U'^T D_i R)_i, on any device that PyTorch knows.

    Written out, A has n P (r+1) entries; here it is the basis and n P bits. A product takes 2 n P (r+1) C multiplications, as
    matrix products on tiles of samples and arrangements. Every block D_i U' has norm at most 1, because U'^T U' = I.

    Attributes
    ----------
    basis : (n, r+1) tensor, U'; its dtype and device are those of all products
    bits : (n, ceil(P / 8)) uint8 tensor on the same device, the masks of a sample in the order of `numpy.packbits`
    count : P
    max_memory : bytes for the masks and for the temporary arrays of a product, beyond basis, arguments and results
    """

    basis: torch.Tensor
    bits: torch.Tensor
    count: int
    max_memory: int = MAX_MEMORY

    def __post_init__(self) -> None:
        check_count(self.max_memory, "max_memory")
        self.tile(1)

    @cached_property
    def _expanded(self) -> torch.Tensor | None:
        """All masks as numbers, where there is room to make them once and not in every product."""
        size = len(self.basis) * 8 * self.bits.shape[1] * self.basis.element_size()
        return self._expand(slice(None), slice(None)) if 4 * size <= self.max_memory else None

    @property
    def norm(self) -> float:
        """A bound on the norm of each block."""
        return 1.0

    @property
    def stored(self) -> int:
        """Bytes of the masks."""
        wide = 0 if self._expanded is None else self._expanded.numel() * self._expanded.element_size()
        return self.bits.numel() + wide

    def tile(self, outputs: int) -> tuple[int, int]:
        """How many samples and how many arrangements (a multiple of 8) a tile has for C outputs.

        Raises
        ------
        InputError
            Where one sample and eight arrangements don't fit into `max_memory`.
        """
        size, columns = self.basis.element_size(), self.basis.shape[1]
        arrangements = 8 * max(1, min(COLUMNS // (8 * outputs), self.bits.shape[1]))
        fixed = self.stored + 3 * columns * arrangements * outputs * size
        row = arrangements * (outputs + 4) * size  # the products, the masks, and the bytes on their way to be masks
        rows = min((self.max_memory - fixed) // row, self._preferred // (arrangements * outputs) + 1, len(self.basis))
        if rows < 1:
            need = fixed + row
            raise InputError(f"max_memory = {self.max_memory} is too small for one tile of a product: allow at least {need} bytes")
        return rows, arrangements

    def rows_of(self, columns: int) -> int:
        """How many samples a tile of so many columns has, for products with other matrices: a few arrays of that size fit."""
        room = (self.max_memory - self.stored) // (4 * self.basis.element_size())
        return max(1, min(room, self._preferred) // columns)

    @property
    def _preferred(self) -> int:
        return CPU_TILE if self.basis.device.type == "cpu" else GPU_TILE

    def memory(self, outputs: int) -> int:
        """Bytes that the masks and the temporary arrays of a product take at most, for C outputs."""
        rows, arrangements = self.tile(outputs)
        return self.stored + arrangements * (3 * self.basis.shape[1] * outputs + rows * (outputs + 4)) * self.basis.element_size()

    def masks(self, samples: slice, arrangements: slice) -> torch.Tensor:
        """(samples, arrangements) the diagonals of the D_i as 0 and 1 in the basis' dtype; slices begin at multiples of 8."""
        if self._expanded is not None:
            return self._expanded[samples, arrangements]
        return self._expand(samples, arrangements)

    def _expand(self, samples: slice, arrangements: slice) -> torch.Tensor:
        start, stop, _ = arrangements.indices(self.count)
        return expanded(self.bits[samples, start // 8 : -(-stop // 8)], stop - start, self.basis.dtype)

    def _tiles(self, outputs: int) -> Iterator[tuple[slice, slice]]:
        rows, arrangements = self.tile(outputs)
        for j in range(0, self.count, arrangements):
            for i in range(0, len(self.basis), rows):
                yield slice(i, min(i + rows, len(self.basis))), slice(j, min(j + arrangements, self.count))

    def forward(self, weights: torch.Tensor) -> torch.Tensor:
        """sum_i D_i U' S_i, shape (n, C), of `weights` (P, r+1, C)."""
        outputs = weights.shape[2]
        result = self.basis.new_zeros((len(self.basis), outputs))
        last, columns = slice(0, 0), weights[:0]
        for samples, arrangements in self._tiles(outputs):
            if arrangements != last:
                last, columns = arrangements, weights[arrangements].permute(1, 2, 0).flatten(1)
            result[samples] += self._sum_of_images(samples, arrangements, columns, outputs)
        return result

    def _sum_of_images(self, samples: slice, arrangements: slice, columns: torch.Tensor, outputs: int) -> torch.Tensor:
        """One tile of `forward`, with the weights of its arrangements as `columns` (r+1, C p)."""
        images = (self.basis[samples] @ columns).view(-1, outputs, columns.shape[1] // outputs)
        return images.mul_(self.masks(samples, arrangements).unsqueeze(1)).sum(2)

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """U'^T D_i R for all i, shape (P, r+1, C), of `residual` (n, C)."""
        result = self.basis.new_empty((self.count, self.basis.shape[1], residual.shape[1]))
        for samples, arrangements in self._tiles(residual.shape[1]):
            if samples.start == 0:
                result[arrangements] = self._part(samples, arrangements, residual)
            else:
                result[arrangements] += self._part(samples, arrangements, residual)
        return result

    def _part(self, samples: slice, arrangements: slice, residual: torch.Tensor) -> torch.Tensor:
        """One tile of `adjoint`, shape (p, r+1, C)."""
        masked = residual[samples].unsqueeze(2) * self.masks(samples, arrangements).unsqueeze(1)
        part = self.basis[samples].T @ masked.flatten(1)
        return part.view(-1, *masked.shape[1:]).permute(2, 0, 1)

    def total(self) -> torch.Tensor:
        """sum_i D_i U', shape (n, r+1): what weights that all arrangements share see."""
        import torch

        rows = self.tile(1)[0]
        counts = [self.masks(slice(i, i + rows), slice(0, self.count)).sum(1) for i in range(0, len(self.basis), rows)]
        return self.basis * torch.cat(counts)[:, None]

    def kernel(self) -> torch.Tensor:
        """A A^T = (U'U'^T) o (D^T D), entry by entry, shape (n, n), in the basis' dtype."""
        masks = self._expand(slice(None), slice(0, self.count)).float()
        return (self.basis @ self.basis.mT).mul_(masks @ masks.mT)  # whole numbers, exact in float32

    def written_out(self) -> torch.Tensor:
        """A itself, (n, P (r+1)), for what is small enough to write it out."""
        masks = self.masks(slice(None), slice(0, self.count))
        return (masks[:, :, None] * self.basis[:, None, :]).flatten(1)

    def take(self, arrangements: torch.Tensor) -> MaskedOperator:
        """The operator of a subset of the arrangements, `arrangements` their indices (q,) in rising order."""
        bits = bits_taken(self.bits, self.count, arrangements, 8 * self.tile(1)[0])
        return replace(self, bits=bits, count=len(arrangements))

    def to(self, dtype: torch.dtype) -> MaskedOperator:
        """The same operator in another floating type."""
        return replace(self, basis=self.basis.to(dtype))


def expanded(bits: torch.Tensor, count: int, dtype: torch.dtype) -> torch.Tensor:
    """(n, P) the masks of `bits` (n, ceil(P / 8)) as 0 and 1."""
    import torch

    table = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    values = torch.as_tensor(table, dtype=dtype, device=bits.device)
    return values[bits.long()].flatten(1)[:, :count]


def bits_taken(bits: torch.Tensor, count: int, arrangements: torch.Tensor, rows: int) -> torch.Tensor:
    """The bits of a subset of P = `count` arrangements, worked out so many rows at a time."""
    import torch

    parts = [expanded(bits[i : i + rows], count, torch.uint8)[:, arrangements] for i in range(0, len(bits), rows)]
    return torch.cat([_packed(masks) for masks in parts])


def _packed(masks: torch.Tensor) -> torch.Tensor:
    """The bits of `masks` (n, P) of 0 and 1, shape (n, ceil(P / 8)), in the order of `numpy.packbits`."""
    import torch

    missing = -masks.shape[1] % 8
    padded = torch.nn.functional.pad(masks, (0, missing)).view(len(masks), (masks.shape[1] + missing) // 8, 8)
    powers = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=masks.device)
    packed: torch.Tensor = (padded * powers).sum(2, dtype=torch.uint8)
    return packed


def masked_operator(
    basis: FloatArray,
    active: BoolArray,
    *,
    precision: str = "float64",
    device: str | torch.device = "cpu",
    max_memory: int = MAX_MEMORY,
) -> MaskedOperator:
    """The operator of the arrangements `active` (P, n) on the basis U' (n, r+1).

    Parameters
    ----------
    precision : "float64" or "float32", of the products
    device : where they are taken, "cpu" or "cuda"
    max_memory : bytes beyond basis, arguments and results

    Raises
    ------
    InputError
        For patterns of other samples, an unknown precision, and too little memory.
    """
    import torch

    if active.ndim != 2 or active.shape[1] != len(basis):
        raise InputError(f"active has shape {active.shape}, not (P, {len(basis)}): pass one pattern of all rows for each arrangement")
    if precision not in ("float64", "float32"):
        raise InputError(f"precision = {precision!r} is unknown: choose 'float64' or 'float32'")
    bits = torch.as_tensor(np.packbits(active.T, axis=1), device=device)
    tensor = torch.as_tensor(basis, dtype=getattr(torch, precision), device=device)
    return MaskedOperator(tensor, bits, len(active), max_memory)


def gated_patterns(basis: FloatArray, gates: FloatArray) -> BoolArray:
    """(P, n) the patterns 1[U' g_i >= 0] of the gates (P, r+1), in float64 whatever the solver's precision is."""
    rows = max(1, 2**22 // max(1, len(gates)))
    patterns = np.empty((len(gates), len(basis)), dtype=np.bool_)
    for i in range(0, len(basis), rows):
        patterns[:, i : i + rows] = gates @ basis[i : i + rows].T >= 0
    return patterns


def gated_bits(basis: FloatArray, gates: FloatArray) -> npt.NDArray[np.uint8]:
    """(n, ceil(P / 8)) the same patterns as bits, those of a row next to each other, as operators keep them; never all of them as bytes."""
    rows = max(1, 2**22 // max(1, len(gates)))
    parts = [np.packbits((gates @ basis[i : i + rows].T >= 0).T, axis=1) for i in range(0, len(basis), rows)]
    return np.concatenate(parts)
