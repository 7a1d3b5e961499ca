"""Products of a basis with some columns, by numpy or on a device of PyTorch: all that a proof needs of one."""

from __future__ import annotations

import numpy as np

from convexbn.threads import LARGE
from convexbn.validation import AnyFloats, FloatArray


class Products:
    """U' s and U'^T g, in float32 where U' is large: good enough to look for multipliers; a bound is always evaluated in float64."""

    def __init__(self, basis: FloatArray, device: str = "cpu") -> None:
        self.device = device
        self.basis: AnyFloats = basis.astype(np.float32) if basis.size >= LARGE else basis
        if device != "cpu":
            import torch

            self.on_device = torch.as_tensor(self.basis, device=device)

    def images(self, s: FloatArray) -> AnyFloats:
        """U' s, shape (n, k), for s (r+1, k)."""
        return self._product(s, transposed=False)

    def adjoint(self, g: AnyFloats) -> AnyFloats:
        """U'^T g, shape (r+1, k), for g (n, k)."""
        return self._product(g, transposed=True)

    def _product(self, other: AnyFloats, *, transposed: bool) -> AnyFloats:
        narrow = other.astype(self.basis.dtype, copy=False)
        if self.device == "cpu":
            return np.asarray((self.basis.T if transposed else self.basis) @ narrow)
        import torch

        matrix = self.on_device.T if transposed else self.on_device
        return np.asarray((matrix @ torch.as_tensor(narrow, device=self.device)).cpu().numpy())
