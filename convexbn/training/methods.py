"""Gradient methods as frozen records of their settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler

from convexbn.validation import InputError, check_count, check_positive


class Method(Protocol):
    """What `train_networks` and `train_model` ask of a gradient method."""

    @property
    def searches(self) -> bool:
        """Whether a step evaluates the objective at points of its own choice, as a line search does."""
        ...

    def optimiser(self, parameters: Iterable[Tensor]) -> Optimizer:
        """PyTorch's optimiser of these parameters."""
        ...

    def scheduler(self, optimiser: Optimizer, steps: int) -> LRScheduler:
        """The learning rate over so many steps."""
        ...


@dataclass(frozen=True)
class SGD:
    """Gradient steps with momentum; with batches of all samples it is gradient descent.

    Attributes
    ----------
    learning_rate : at the start
    momentum : in [0, 1)
    schedule : "cosine", down to 0 over the run by half a cosine, or "constant"
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    schedule: str = "cosine"
    searches = False

    def __post_init__(self) -> None:
        check_positive(self.learning_rate, "learning_rate")
        _check_schedule(self.schedule)
        if not 0.0 <= self.momentum < 1.0:
            raise InputError(f"momentum = {self.momentum} must be at least 0 and below 1")

    def optimiser(self, parameters: Iterable[Tensor]) -> Optimizer:
        """`torch.optim.SGD`."""
        return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=self.momentum)

    def scheduler(self, optimiser: Optimizer, steps: int) -> LRScheduler:
        """By `schedule`."""
        return _scheduler(self.schedule, optimiser, steps)


@dataclass(frozen=True)
class Adam:
    """Adam. Source: Kingma and Ba 2015; Loshchilov and Hutter 2017 for the cosine.

    Attributes
    ----------
    learning_rate : at the start
    schedule : "cosine", down to 0 over the run by half a cosine, or "constant"
    """

    learning_rate: float = 0.1
    schedule: str = "cosine"
    searches = False

    def __post_init__(self) -> None:
        check_positive(self.learning_rate, "learning_rate")
        _check_schedule(self.schedule)

    def optimiser(self, parameters: Iterable[Tensor]) -> Optimizer:
        """`torch.optim.Adam`."""
        return torch.optim.Adam(parameters, lr=self.learning_rate)

    def scheduler(self, optimiser: Optimizer, steps: int) -> LRScheduler:
        """By `schedule`."""
        return _scheduler(self.schedule, optimiser, steps)


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with a line search for the strong Wolfe conditions. Source: Liu and Nocedal 1989.

    Attributes
    ----------
    iterations : of each epoch; between epochs nothing is lost
    memory : pairs of steps and changes of the gradient that are remembered
    """

    iterations: int = 20
    memory: int = 20
    searches = True

    def __post_init__(self) -> None:
        check_count(self.iterations, "iterations")
        check_count(self.memory, "memory")

    def optimiser(self, parameters: Iterable[Tensor]) -> Optimizer:
        """`torch.optim.LBFGS`, its tolerances at rounding."""
        settings: dict[str, Any] = {"tolerance_grad": 1e-14, "tolerance_change": 1e-14, "line_search_fn": "strong_wolfe"}
        return torch.optim.LBFGS(parameters, max_iter=self.iterations, history_size=self.memory, **settings)

    def scheduler(self, optimiser: Optimizer, steps: int) -> LRScheduler:
        """A constant 1, as the line search finds the length of a step."""
        return _scheduler("constant", optimiser, steps)


def _check_schedule(schedule: str) -> None:
    if schedule not in ("cosine", "constant"):
        raise InputError(f"schedule = {schedule!r} is unknown: choose 'cosine' or 'constant'")


def _scheduler(schedule: str, optimiser: Optimizer, steps: int) -> LRScheduler:
    return CosineAnnealingLR(optimiser, max(1, steps)) if schedule == "cosine" else ConstantLR(optimiser, 1.0, 0)
