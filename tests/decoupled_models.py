"""Small models with batch normalisation, and batches for them, for the tests of the optimiser and of the curvature."""

from __future__ import annotations

import torch
from torch import nn

TINY = 1e-30  # batch normalisation without epsilon, which PyTorch refuses


def multilayer(seed: int = 0, affine: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    norms = [nn.BatchNorm1d(width, eps=TINY, affine=affine) for width in (6, 5)]
    return nn.Sequential(nn.Linear(4, 6), norms[0], nn.Tanh(), nn.Linear(6, 5), norms[1], nn.Tanh(), nn.Linear(5, 2)).double()


class Convolutional(nn.Module):
    """Modules in another order than they are called in."""

    def __init__(self) -> None:
        super().__init__()
        self.second_norm, self.first_norm = nn.BatchNorm2d(4, eps=TINY), nn.BatchNorm2d(3, eps=TINY)
        self.head = nn.Linear(4, 2)
        self.second, self.first = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(1, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first_norm(self.first(x.reshape(-1, 1, 6, 6))))
        x = torch.tanh(self.second_norm(self.second(x)))
        return self.head(x.mean(dim=(2, 3)))


def convolutional(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Convolutional().double()


MODELS = {"multilayer": (multilayer, 4), "convolutional": (convolutional, 36)}


def batch(name: str, n: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, MODELS[name][1], generator=generator, dtype=torch.float64), torch.randint(2, (n,), generator=generator)
