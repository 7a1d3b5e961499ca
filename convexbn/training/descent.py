"""The loop that every gradient method here runs in: epochs, batches, the best iterate, early stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from convexbn.progress import progress_bar
from convexbn.training.methods import Method
from convexbn.validation import InputError, check_count


class Trainee(Protocol):
    """Networks that are trained side by side; numbers of theirs have shape (starts,).

    The starts don't meet: SGD and Adam work entry by entry, and the gradient of a sum over starts is each start's own.
    """

    samples: int

    def parameters(self) -> list[Tensor]:
        """What the method moves."""
        ...

    def objective(self, rows: Tensor | None) -> Tensor:
        """The objective on a batch, as an estimate of that on all samples; of all samples where `rows` is None."""
        ...

    def assess(self, values: Tensor | None) -> Tensor:
        """Write the history, and return what decides between iterates, the lower the better.

        `values` are the objectives on all samples where the loop has them.
        """
        ...

    def keep(self, better: Tensor) -> None:
        """Remember the present parameters of the starts where `better` is true."""
        ...


@dataclass(frozen=True)
class Plan:
    """How long to train, and on which batches.

    Attributes
    ----------
    epochs : passes over the samples
    batch_size : samples of a batch, all of about one size so that none is too small for batch normalisation; None takes all
    patience : epochs without a better iterate of any start after which to stop; None never stops early
    seed : of the batches
    verbose : show a progress bar
    """

    epochs: int
    batch_size: int | None = None
    patience: int | None = None
    seed: int = 0
    verbose: bool = False

    def __post_init__(self) -> None:
        check_count(self.epochs, "epochs")
        check_count(self.seed, "seed", 0)
        if self.batch_size is not None:
            check_count(self.batch_size, "batch_size", 2)
        if self.patience is not None:
            check_count(self.patience, "patience")

    def batches(self, samples: int) -> int:
        """How many batches an epoch has."""
        return 1 if self.batch_size is None else max(1, samples // self.batch_size)


def descend(trainee: Trainee, method: Method, plan: Plan) -> float:
    """Train, leaving the best iterates with the trainee, and return the time in seconds.

    Raises
    ------
    InputError
        For a line search on batches, as each of them has an objective of its own.
    """
    if method.searches and plan.batch_size is not None:
        raise InputError(f"batch_size = {plan.batch_size} doesn't go with a line search: leave it out, so that all samples are one batch")
    optimiser = method.optimiser(trainee.parameters())
    schedule = method.scheduler(optimiser, plan.epochs * plan.batches(trainee.samples))
    shuffle = torch.Generator().manual_seed(plan.seed)
    least, waited = torch.tensor(math.inf), 0
    start = time.perf_counter()  # not before: PyTorch's first optimiser takes a second to import its compiler
    with progress_bar("convexbn: training", plan.epochs, plan.verbose) as advance:
        for epoch in range(plan.epochs + 1):
            values = trainee.objective(None) if plan.batch_size is None else None
            score = trainee.assess(None if values is None else values.detach())
            least = least.to(score)
            better = score < least
            trainee.keep(better)
            least, waited = torch.where(better, score, least), 0 if bool(better.any()) else waited + 1
            if epoch == plan.epochs or (plan.patience is not None and waited >= plan.patience):
                break
            for rows in _batches(trainee.samples, plan, shuffle):
                _step(optimiser, trainee, rows, values, method.searches)
                schedule.step()
            advance(f"{float(least.min()):.5g}")
    return time.perf_counter() - start


def _batches(samples: int, plan: Plan, shuffle: torch.Generator) -> Iterable[Tensor | None]:
    """The rows of each batch of an epoch, in a new order; None is all of them."""
    if plan.batch_size is None:
        return (None,)
    return torch.tensor_split(torch.randperm(samples, generator=shuffle), plan.batches(samples))


def _step(optimiser: Optimizer, trainee: Trainee, rows: Tensor | None, values: Tensor | None, searches: bool) -> None:
    """One step; `values` are the objectives with their graph where they are known already."""

    def closure() -> float:
        optimiser.zero_grad()
        total = trainee.objective(rows).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach())

    if searches:
        optimiser.step(closure)
    else:
        optimiser.zero_grad()
        total = (trainee.objective(rows) if values is None else values).sum()
        total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
