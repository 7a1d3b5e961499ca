"""Local search for neurons by PyTorch, on a GPU: many directions at once are products of matrices, for which it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from convexbn.pricing.local import GROWTH, MOMENTUM, SHRINK
from convexbn.validation import FloatArray

if TYPE_CHECKING:
    import torch

NUMBERS = 2**26  # products of rows with directions at a time


class OnDevice:
    """`convexbn.pricing.local_search`, step for step, on a device that PyTorch knows; float32 unless said."""

    def __init__(self, basis: FloatArray, device: str, dtype: str = "float32") -> None:
        import torch

        self.basis = torch.as_tensor(basis, dtype=getattr(torch, dtype), device=device)

    def __call__(self, v: FloatArray, starts: FloatArray, widths: tuple[float, ...], steps: int = 8) -> FloatArray:
        """Unit directions (N, r+1), in the order of the starts, for V (n, C) on the rows of the basis."""
        import torch

        unit = np.max(np.abs(v), initial=0.0) or 1.0
        pull, begin = (torch.as_tensor(array).to(self.basis) for array in (v / unit, starts))
        parts = torch.split(torch.nn.functional.normalize(begin), max(16, NUMBERS // len(self.basis)))
        return torch.cat([self._ascend(pull, part, widths, steps) for part in parts]).cpu().numpy().astype(np.float64)

    def _ascend(self, v: torch.Tensor, directions: torch.Tensor, widths: tuple[float, ...], steps: int) -> torch.Tensor:
        import torch

        step = torch.ones_like(directions[:, :1])
        for width in widths:
            worths, uphill = self._look(v, directions, width)
            drift = torch.zeros_like(directions)
            for _ in range(steps):
                trial = torch.nn.functional.normalize(directions + step * (uphill - directions) + MOMENTUM * drift)
                trial_worths, trial_uphill = self._look(v, trial, width)
                better = (trial_worths > worths)[:, None]
                drift = torch.where(better, trial - directions, torch.zeros_like(drift))
                directions, uphill = torch.where(better, trial, directions), torch.where(better, trial_uphill, uphill)
                worths = torch.maximum(trial_worths, worths)
                step = torch.where(better, (GROWTH * step).clamp(max=1.0), SHRINK * step)
        return directions

    def _look(self, v: torch.Tensor, directions: torch.Tensor, width: float) -> tuple[torch.Tensor, torch.Tensor]:
        """h of unit directions, with kinks so wide, and its unit gradients."""
        import torch

        active = self.basis @ directions.T
        if width:
            half = width / len(self.basis) ** 0.5
            slope = (active * (0.5 / half) + 0.5).clamp(0.0, 1.0)
            active = torch.maximum(active, half * slope * slope)
        else:
            slope = (active > 0).to(active)
            active = active * slope
        values = v.T @ active
        units = torch.nn.functional.normalize(values, dim=0)
        return torch.linalg.vector_norm(values, dim=0), torch.nn.functional.normalize(((v @ units) * slope).T @ self.basis)
