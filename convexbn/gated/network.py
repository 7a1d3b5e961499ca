"""The gated network as arrays: its forward pass on new points and its objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from convexbn.devices import need_torch
from convexbn.patches import Patches, pooling_of
from convexbn.validation import FloatArray, InputError, check_data
from convexbn.whitening import Whitening

if TYPE_CHECKING:
    import torch

    from convexbn.gated.module import GatedConvolution, GatedModule

TILE = 2**22  # entries of the images that are computed at once


@dataclass(frozen=True, eq=False)
class GatedNetwork:
    """f(x) = sum_i 1[phi(x)^T g_i >= 0] S_i^T phi(x), with phi(x) = [Sigma^{-1} V^T (x - mean); 1/sqrt(n)] of the training data.

    It is NOT a ReLU network: a gate opens by g_i, whatever S_i is. On the training data phi(X) = U', and f(X) = sum_i D_i U' S_i.
    With `patches` x runs over the patches of an image, and their values are averaged or summed.

    Attributes
    ----------
    whitening : of the training data
    gates : (P, r+1) the g_i
    weights : (P, r+1, C) the S_i, none of them 0
    patches : how images are cut into rows and pooled; None for data that are rows themselves
    """

    whitening: Whitening
    gates: FloatArray
    weights: FloatArray
    patches: Patches | None = None

    def __post_init__(self) -> None:
        if self.weights.shape[:2] != self.gates.shape or self.gates.shape[1] != self.whitening.rank + 1:
            raise InputError(
                f"gates of shape {self.gates.shape} and weights of shape {self.weights.shape} don't belong to a whitening of rank "
                f"{self.whitening.rank}: pass (P, {self.whitening.rank + 1}) and (P, {self.whitening.rank + 1}, C)"
            )

    def predict(self, X: npt.ArrayLike) -> FloatArray:
        """Outputs for the rows of X (k, d), or for images (k, c, h, w): shape (k,) for one output, else (k, C)."""
        if self.patches is None:
            values = self._of_rows(check_data(X, samples=1))
        else:
            values = np.concatenate([self._of_patches(rows) for rows in self.patches.blocks(X)])
        return values[:, 0] if values.shape[1] == 1 else values

    def _of_rows(self, X: FloatArray) -> FloatArray:
        """(k, C), a tile of rows at a time."""
        basis = self.whitening.transform(X)
        count, columns, outputs = self.weights.shape
        flat = self.weights.transpose(1, 0, 2).reshape(columns, count * outputs)
        values = np.zeros((len(basis), outputs))
        rows = max(1, TILE // max(1, count * outputs))
        for i in range(0, len(basis), rows):
            tile = basis[i : i + rows]
            images = (tile @ flat).reshape(len(tile), count, outputs)
            values[i : i + rows] = np.einsum("np,npc->nc", tile @ self.gates.T >= 0, images)
        return values

    def _of_patches(self, X: FloatArray) -> FloatArray:
        """(k, C) of the patches of k images: what the gates of an image let through adds up before it meets the weights."""
        pooling, (count, columns, outputs) = pooling_of(self.patches), self.weights.shape
        basis = self.whitening.transform(X).reshape(-1, pooling.patches, columns)
        values = np.zeros((len(basis), outputs))
        images = max(1, TILE // max(1, count * max(columns, pooling.patches)))
        for i in range(0, len(basis), images):
            tile = basis[i : i + images]
            open_gates = (tile @ self.gates.T >= 0).astype(np.float64)
            features = (open_gates.transpose(0, 2, 1) @ tile).reshape(len(tile), count * columns)
            values[i : i + images] = pooling.weight * features @ self.weights.reshape(count * columns, outputs)
        return values

    def to_torch(self, *, dtype: torch.dtype | None = None) -> GatedModule | GatedConvolution:
        """The same function as a small `torch.nn.Module`, on raw x, with parameters `weights` and fixed gates; float64 by default.

        Its `state_dict` loads into `GatedModule(features, columns, gates, outputs)` of those sizes; with patches the module is a
        `GatedConvolution`, which has one inside.
        """
        need_torch("to_torch")
        import torch

        from convexbn.gated.module import GatedConvolution, GatedModule

        count, columns, outputs = self.weights.shape
        whitening = self.whitening
        module = GatedModule(len(whitening.mean), columns, count, outputs).to(torch.float64 if dtype is None else dtype)
        project = whitening.components.T / whitening.singular_values[:, None] / whitening.scale
        constant = np.append(-project @ whitening.mean, 1.0 / np.sqrt(whitening.samples))
        values = {"whiten": np.vstack([project, np.zeros(len(whitening.mean))]), "constant": constant, "gates": self.gates}
        state = {name: torch.as_tensor(value) for name, value in {**values, "weights": self.weights}.items()}
        module.load_state_dict(state)
        if self.patches is None:
            return module
        return GatedConvolution(module, self.patches.size, self.patches.stride, self.patches.padding, self.patches.pooling)
