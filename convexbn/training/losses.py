"""The losses in PyTorch, differentiable, for many networks at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convexbn.losses import Hinge, Huber, Logistic, Loss, Softmax, Squared
from convexbn.validation import InputError

# Of predictions f and targets y of one shape, entry by entry; the limit of softplus keeps it exact to float64. Softmax sums
# over its outputs itself.
TORCH_LOSSES: dict[type[Any], Callable[[Any, Tensor, Tensor], Tensor]] = {
    Squared: lambda loss, f, y: 0.5 * (f - y).square(),
    Huber: lambda loss, f, y: torch.nn.functional.huber_loss(f, y, reduction="none", delta=loss.delta),
    Logistic: lambda loss, f, y: torch.nn.functional.softplus(-y * f, threshold=40.0),
    Hinge: lambda loss, f, y: torch.relu(1.0 - y * f),
    Softmax: lambda loss, f, y: torch.logsumexp(f, dim=-1) - (y * f).sum(dim=-1),
}


def check_torch_loss(loss: Loss) -> None:
    """Refuse a loss without an entry in `TORCH_LOSSES`."""
    if type(loss) not in TORCH_LOSSES:
        raise InputError(f"loss = {loss.name!r} has no PyTorch form: add one to convexbn.training.losses.TORCH_LOSSES")


def torch_loss(loss: Loss, predictions: Tensor, targets: Tensor) -> Tensor:
    """L(f, y) of each network, shape (starts,), for predictions (starts, n) or (starts, n, C) and targets (n,) or (n, C)."""
    entries = TORCH_LOSSES[type(loss)](loss, predictions, targets.expand_as(predictions))
    return entries.flatten(start_dim=1).sum(dim=1)
