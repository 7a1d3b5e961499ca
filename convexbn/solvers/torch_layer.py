"""The network of the joint descent by PyTorch, on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from convexbn.patches import NO_POOLING, Pooling
from convexbn.validation import FloatArray

if TYPE_CHECKING:
    import torch

    from convexbn.solvers.descent import Respond

NUMBERS = 2**26  # activations at a time


class LayerOnDevice:
    """`convexbn.solvers.descent.LayerOnCPU`, step for step, on a device that PyTorch knows; losses stay on the host, in numpy."""

    def __init__(self, basis: FloatArray, device: str, pooling: Pooling = NO_POOLING) -> None:
        import torch

        self.basis, self.pooling = torch.as_tensor(basis, device=device), pooling

    @property
    def rows(self) -> int:
        """Of U'."""
        return len(self.basis)

    def slopes(self, inner: FloatArray, outer: FloatArray, kinks: FloatArray, respond: Respond) -> tuple[FloatArray, FloatArray]:
        """In blocks that fit the memory of the device: only predictions, errors and neurons travel."""
        import torch

        patches, weight = self.pooling.patches, self.pooling.weight
        columns, outputs, bend, rate = (self._there(array) for array in (inner.T, outer, kinks, 0.5 / kinks))
        inner_slope, outer_slope = torch.zeros_like(columns.T), torch.zeros_like(outputs)
        block = patches * max(1, NUMBERS // (len(inner) * patches))
        for first in range(0, self.rows, block):
            rows = self.basis[first : first + block]
            active = rows @ columns
            slope = (active * rate + 0.5).clamp(0.0, 1.0)
            active = torch.maximum(active, bend * slope * slope)
            pooled = weight * active.reshape(-1, patches, len(inner)).sum(dim=1) if patches > 1 else active
            samples = slice(first // patches, (first + block) // patches)
            error = self._there(respond(samples, _here(pooled @ outputs)))
            pull = error @ outputs.T
            slope *= (weight * pull).repeat_interleave(patches, dim=0) if patches > 1 else pull
            inner_slope += slope.T @ rows
            outer_slope += pooled.T @ error
        return _here(inner_slope), _here(outer_slope)

    def _there(self, array: FloatArray) -> torch.Tensor:
        import torch

        return torch.as_tensor(np.ascontiguousarray(array)).to(self.basis)


def _here(tensor: torch.Tensor) -> FloatArray:
    array: FloatArray = tensor.cpu().numpy().astype(np.float64)
    return array
