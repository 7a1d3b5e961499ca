"""Small models with normalised layers, their data in batches, and PyTorch's batch normalisation of all data as the truth about them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from convexbn.training.full_norm import FullNorm1d, FullNorm2d

SAMPLES, CLASSES = 24, 3


class Residual(nn.Module):
    """Two branches, each with a normalised layer, so that layers don't follow one another in a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()) for _ in range(2))
        self.last = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.first(x) + self.second(x.square()))


def dense() -> nn.Module:
    hidden = [nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, CLASSES))


def images() -> nn.Module:
    hidden = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4, eps=1e-3), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*hidden, nn.Linear(16, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, CLASSES))


def sequences() -> nn.Module:
    hidden = [nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.ReLU(), nn.Conv1d(3, 3, 2), nn.BatchNorm1d(3), nn.Flatten()]
    return nn.Sequential(*hidden, nn.Linear(9, CLASSES))


SHAPES = {dense: (6,), Residual: (6,), images: (1, 5, 5), sequences: (2, 5)}
every_model = pytest.mark.parametrize("make", list(SHAPES), ids=lambda make: make.__name__)


def problem(make, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A model with random gains and shifts in training mode, inputs whose mean depends on their class, and labels, in float64."""
    torch.manual_seed(seed)
    model = make().double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.affine:
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    y = torch.arange(SAMPLES) % CLASSES
    X = torch.randn(SAMPLES, *SHAPES[make]).double() + y.reshape(-1, *[1] * len(SHAPES[make])).double()
    return model, X, y


def split(X: Tensor, y: Tensor, parts: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(X[part], y[part]) for part in parts]


def by_class(y: Tensor) -> list[Tensor]:
    return [(y == k).nonzero()[:, 0] for k in range(CLASSES)]


def partitions(y: Tensor) -> dict[str, list[Tensor]]:
    return {
        "all": [torch.arange(SAMPLES)],
        "one sample": list(torch.arange(SAMPLES).split(1)),
        "one class": by_class(y),
        "ragged": list(torch.arange(SAMPLES).split([1, 2, 7, 14])),
        "ragged classes": [part for rows in by_class(y) for part in rows.split([1, 3, 4])],
    }


PARTITIONS = list(partitions(torch.arange(SAMPLES) % CLASSES))


def truth(model: nn.Module, X: Tensor, y: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of PyTorch's batch normalisation over all samples."""
    reference = copy.deepcopy(model).train()
    loss = cross_entropy(reference(X), y)
    loss.backward()
    return float(loss.detach()), {name: parameter.grad for name, parameter in reference.named_parameters()}


def relative_error(gradient: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert list(gradient) == list(other)
    one, two = (torch.cat([value.flatten() for value in values.values()]) for values in (gradient, other))
    return float((one - two).norm() / two.norm())


def set_momentum(model: nn.Module, momentum: float) -> nn.Module:
    for layer in model.modules():
        if isinstance(layer, FullNorm1d | FullNorm2d):
            layer.momentum = momentum
    return model
