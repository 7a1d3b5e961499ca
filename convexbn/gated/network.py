"""The gated network as arrays: its forward pass on new points and its objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from convexbn.validation import FloatArray, InputError, check_data
from convexbn.whitening import Whitening

if TYPE_CHECKING:
    import torch

    from convexbn.gated.module import GatedModule

TILE = 2**22  # entries of the images that are computed at once


@dataclass(frozen=True, eq=False)
class GatedNetwork:
    """f(x) = sum_i 1[phi(x)^T g_i >= 0] S_i^T phi(x), with phi(x) = [Sigma^{-1} V^T (x - mean); 1/sqrt(n)] of the training data.

    It is NOT a ReLU network: a gate opens by g_i, whatever S_i is. On the training data phi(X) = U', and f(X) = sum_i D_i U' S_i.

    Attributes
    ----------
    whitening : of the training data
    gates : (P, r+1) the g_i
    weights : (P, r+1, C) the S_i, none of them 0
    """

    whitening: Whitening
    gates: FloatArray
    weights: FloatArray

    def __post_init__(self) -> None:
        if self.weights.shape[:2] != self.gates.shape or self.gates.shape[1] != self.whitening.rank + 1:
            raise InputError(
                f"gates of shape {self.gates.shape} and weights of shape {self.weights.shape} don't belong to a whitening of rank "
                f"{self.whitening.rank}: pass (P, {self.whitening.rank + 1}) and (P, {self.whitening.rank + 1}, C)"
            )

    def predict(self, X: npt.ArrayLike) -> FloatArray:
        """Outputs for the rows of X (k, d): shape (k,) for one output, else (k, C)."""
        basis = self.whitening.transform(check_data(X, samples=1))
        count, columns, outputs = self.weights.shape
        flat = self.weights.transpose(1, 0, 2).reshape(columns, count * outputs)
        values = np.zeros((len(basis), outputs))
        rows = max(1, TILE // max(1, count * outputs))
        for i in range(0, len(basis), rows):
            tile = basis[i : i + rows]
            images = (tile @ flat).reshape(len(tile), count, outputs)
            values[i : i + rows] = np.einsum("np,npc->nc", tile @ self.gates.T >= 0, images)
        return values[:, 0] if outputs == 1 else values

    def to_torch(self, *, dtype: torch.dtype | None = None) -> GatedModule:
        """The same function as a small `torch.nn.Module`, on raw x, with parameters `weights` and fixed gates; float64 by default.

        Its `state_dict` loads into `GatedModule(features, columns, gates, outputs)` of those sizes.
        """
        import torch

        from convexbn.gated.module import GatedModule

        count, columns, outputs = self.weights.shape
        whitening = self.whitening
        module = GatedModule(len(whitening.mean), columns, count, outputs).to(torch.float64 if dtype is None else dtype)
        project = whitening.components.T / whitening.singular_values[:, None] / whitening.scale
        constant = np.append(-project @ whitening.mean, 1.0 / np.sqrt(whitening.samples))
        values = {"whiten": np.vstack([project, np.zeros(len(whitening.mean))]), "constant": constant, "gates": self.gates}
        state = {name: torch.as_tensor(value) for name, value in {**values, "weights": self.weights}.items()}
        module.load_state_dict(state)
        return module
