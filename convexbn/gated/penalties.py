"""The two penalties of a gated program: sum_i ||S_i||_F and sum_i ||S_i||_*, with what duality and first-order methods need of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from convexbn.validation import InputError

if TYPE_CHECKING:
    import torch

Slope = Callable[["torch.Tensor"], "torch.Tensor"]


class Penalty(Protocol):
    """A norm of each block S_i (r+1, C) of the weights (P, r+1, C); the penalty is their sum."""

    @property
    def name(self) -> str:
        """The word by which `fit_gated_bn(penalty=...)` finds it."""
        ...

    def norms(self, weights: torch.Tensor) -> torch.Tensor:
        """(P,) the norms of the blocks."""
        ...

    def dual_norms(self, gradient: torch.Tensor) -> torch.Tensor:
        """(P,) the dual norms of the blocks."""
        ...

    def prox(self, points: torch.Tensor, step: float) -> tuple[torch.Tensor, Slope]:
        """The minimisers of step ||S_i|| + ||S_i - Z_i||_F^2 / 2, and the derivative of Z -> S there as a linear map."""
        ...


@dataclass(frozen=True)
class GroupNorm:
    """||S_i||_F, whole arrangements in or out. For C > 1 it is no relaxation of weight decay: it is smaller than the nuclear norm."""

    name = "group"

    def norms(self, weights: torch.Tensor) -> torch.Tensor:
        """||S_i||_F."""
        import torch

        norms: torch.Tensor = torch.linalg.vector_norm(weights, dim=(1, 2))
        return norms

    def dual_norms(self, gradient: torch.Tensor) -> torch.Tensor:
        """Its own dual."""
        return self.norms(gradient)

    def prox(self, points: torch.Tensor, step: float) -> tuple[torch.Tensor, Slope]:
        """(1 - step / ||Z_i||)_+ Z_i, with the slope (1 - step / ||Z||) I + step Z Z^T / ||Z||^3 where that is not 0."""
        norms = self.norms(points)[:, None, None].clamp_min(step)
        shrink = (norms - step) / norms  # exactly 0 where it should be: step / norms is a product with a reciprocal

        def slope(change: torch.Tensor) -> torch.Tensor:
            twist = step / norms**3 * (norms > step)
            return shrink * change + twist * (points * change).sum((1, 2), keepdim=True) * points

        return shrink * points, slope


@dataclass(frozen=True)
class NuclearNorm:
    """||S_i||_*, the sum of singular values: the least sum_k ||h_k|| ||g_k|| over S_i = sum_k h_k g_k^T, weight decay without the cones.

    It is the relaxation of the network's own penalty: over all arrangements its optimum is a lower bound on the network's.
    """

    name = "nuclear"

    def norms(self, weights: torch.Tensor) -> torch.Tensor:
        """The sums of singular values."""
        import torch

        sums: torch.Tensor = torch.linalg.svdvals(weights).sum(1)
        return sums

    def dual_norms(self, gradient: torch.Tensor) -> torch.Tensor:
        """The largest singular values."""
        return _gram_roots(gradient)[0].amax(1)

    def prox(self, points: torch.Tensor, step: float) -> tuple[torch.Tensor, Slope]:
        """Singular values less `step`, not below 0; the slope is that of a spectral function, by divided differences."""
        import torch

        sigma, right = _gram_roots(points)
        kept = (sigma - step).clamp_min(0.0)
        floor = 1e-12 * sigma.amax(1, keepdim=True) + 1e-300
        share = kept / sigma.clamp_min(floor)
        left = points @ right / sigma.clamp_min(floor)[:, None, :]  # columns of singular value 0 meet only shares of 0
        sums = (kept[:, :, None] + kept[:, None, :]) / (sigma[:, :, None] + sigma[:, None, :]).clamp_min(floor[:, :, None])
        gaps = sigma[:, :, None] - sigma[:, None, :]
        equal = gaps.abs() <= 1e-7 * sigma.amax(1)[:, None, None]
        differences = (kept[:, :, None] - kept[:, None, :]) / gaps.masked_fill(equal, 1.0)
        differences = torch.where(equal, ((kept[:, :, None] > 0) & (kept[:, None, :] > 0)).to(gaps.dtype), differences)

        def slope(change: torch.Tensor) -> torch.Tensor:
            turned = change @ right
            inner = left.mT @ turned
            symmetric, skew = 0.5 * (inner + inner.mT), 0.5 * (inner - inner.mT)
            outside = (turned - left @ inner) * share[:, None, :]
            return (left @ (differences * symmetric + sums * skew) + outside) @ right.mT

        return (points @ right * share[:, None, :]) @ right.mT, slope


def _gram_roots(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values (P, C), rising, and right singular vectors (P, C, C) of blocks (P, r+1, C), by their Gram matrices.

    In float64 whatever the blocks are: the roots of a Gram matrix have half of its digits.
    """
    import torch

    wide = blocks.double()
    values, vectors = torch.linalg.eigh(wide.mT @ wide)
    return values.clamp_min(0.0).sqrt().to(blocks.dtype), vectors.to(blocks.dtype)


PENALTIES: dict[str, Penalty] = {penalty.name: penalty for penalty in (GroupNorm(), NuclearNorm())}


def get_penalty(penalty: str | Penalty) -> Penalty:
    """The penalty of that name, or the penalty itself.

    Raises
    ------
    InputError
        For a name that no penalty has.
    """
    if not isinstance(penalty, str):
        if isinstance(penalty, type) or not hasattr(penalty, "dual_norms"):
            raise InputError(f"penalty = {penalty!r} is neither 'group' nor 'nuclear' nor a penalty: pass one of the two words")
        return penalty
    if penalty not in PENALTIES:
        raise InputError(f"penalty = {penalty!r} is unknown: choose 'group' or 'nuclear'")
    return PENALTIES[penalty]
