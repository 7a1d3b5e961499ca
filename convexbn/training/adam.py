"""Full-batch Adam on the network's own objective: the baseline that the convex program is compared with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from convexbn.losses import Hinge, Huber, Logistic, Loss, Squared, get_loss
from convexbn.network import Network
from convexbn.validation import FloatArray, InputError, check_count, check_data, check_positive, check_targets
from convexbn.whitening import Whitening, whiten

# Directions q (starts, m, r), gains g, shifts a and outputs v (starts, m) of several networks at once.
Parameters = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

# The loss of predictions f (starts, n), summed over the samples; the limit of softplus keeps it exact to float64.
TORCH_LOSSES: dict[type[Any], Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    Squared: lambda loss, f, y: 0.5 * (f - y).square().sum(-1),
    Huber: lambda loss, f, y: torch.nn.functional.huber_loss(f, y.expand_as(f), reduction="none", delta=loss.delta).sum(-1),
    Logistic: lambda loss, f, y: torch.nn.functional.softplus(-y * f, threshold=40.0).sum(-1),
    Hinge: lambda loss, f, y: torch.relu(1.0 - y * f).sum(-1),
}


@dataclass(frozen=True)
class TrainingRun:
    """One start of a gradient method.

    Attributes
    ----------
    network : the best iterate
    history : (steps + 1,) the objective before each step and after the last, as the method itself computed it
    seconds : wall-clock time of all starts of the call together, which advance side by side
    """

    network: Network
    history: FloatArray
    seconds: float


def train_adam(
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    beta: float,
    loss: str | Loss = "squared",
    width: int = 100,
    starts: int = 1,
    steps: int = 1000,
    learning_rate: float = 0.1,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> list[TrainingRun]:
    """Descend from random starts on the non-convex problem

        min  L( sum_j (BN_{g_j,a_j}(X w_j))_+ v_j, y ) + (beta/2) sum_j ( g_j^2 + a_j^2 + v_j^2 ),

    L a sum over samples, BN over the full batch, divided by the l2 norm and without epsilon: what `fit_convex_bn` solves.
    Adam moves the w_j in the whitened coordinates q_j = Sigma V^T w_j, in which it does better than on standardised columns;
    there BN costs no pass over the samples, as ||Pi X w_j|| = ||q_j||. The learning rate falls to 0 by a half cosine.

    Parameters
    ----------
    X : (n, d) real numbers, n >= 2
    y : (n,) targets; -1 and +1 for logistic and hinge loss
    beta, loss : the objective's
    width : neurons m of each network
    starts : networks trained side by side, as one batch
    steps : gradient steps
    learning_rate : of Adam, relative to the size that the parameters have at the start; it needs no unit
    seed : of the starts
    device : where PyTorch computes
    dtype : torch.float64 (default) or another floating type to compute in

    Returns
    -------
    One `TrainingRun` a start. Judge its network by `Network.objective`.

    Raises
    ------
    InputError
        For unusable arguments, and for a loss without an entry in `TORCH_LOSSES`.

    Source: Kingma and Ba 2015 (Adam), Loshchilov and Hutter 2017 (the cosine).
    """
    data, the_loss = check_data(X), get_loss(loss)
    targets = the_loss.check(check_targets(y, len(data)))
    if type(the_loss) not in TORCH_LOSSES:
        raise InputError(f"loss = {the_loss.name!r} has no PyTorch form: add one to convexbn.training.adam.TORCH_LOSSES")
    for number, name in ((beta, "beta"), (learning_rate, "learning_rate")):
        check_positive(number, name)
    for count, name in ((width, "width"), (starts, "starts"), (steps, "steps")):
        check_count(count, name)
    whitening = whiten(data)
    size = math.sqrt((float(np.linalg.norm(targets)) or 1.0) / width)
    initial = _initial(starts, width, whitening.rank, check_count(seed, "seed", 0))
    place = torch.empty(0, device=device, dtype=torch.float64 if dtype is None else dtype)
    basis, responses = torch.as_tensor(whitening.basis).to(place), torch.as_tensor(targets).to(place)

    def objectives(parameters: Parameters) -> torch.Tensor:
        return network_objectives(parameters, basis, responses, the_loss, beta, size)

    unit = the_loss.value(np.zeros(len(targets)), targets) or 1.0
    best, history, seconds = _descend(objectives, tuple(p.to(place) for p in initial), steps, learning_rate, unit)
    return [TrainingRun(_network(whitening, [p[i] for p in best], size), history[i], seconds) for i in range(starts)]


def network_objectives(parameters: Parameters, basis: torch.Tensor, y: torch.Tensor, loss: Loss, beta: float, size: float) -> torch.Tensor:
    """The objective of each network, shape (starts,), whose gains, shifts and outputs are `size` times the parameters.

    BN of U q is g U q / ||q|| + a 1/sqrt(n) = U' (g q / ||q||; a), as the columns of the basis U' (n, r+1) are orthonormal.
    """
    q, g, a, v = parameters
    neurons = torch.cat([q * (g / q.norm(dim=-1)).unsqueeze(-1), a.unsqueeze(-1)], dim=-1)
    hidden = torch.relu(basis @ neurons.transpose(-1, -2))
    predictions = size**2 * (hidden @ v.unsqueeze(-1)).squeeze(-1)
    penalty = size**2 * (g.square() + a.square() + v.square()).sum(-1)
    return TORCH_LOSSES[type(loss)](loss, predictions, y) + 0.5 * beta * penalty


def _initial(starts: int, width: int, rank: int, seed: int) -> Parameters:
    """Gaussian directions, (g, a) on the unit half circle g >= 0, outputs of either sign: balanced, half of the samples active."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(starts, width, rank, generator=generator, dtype=torch.float64)
    angle = math.pi * (torch.rand(starts, width, generator=generator, dtype=torch.float64) - 0.5)
    signs = 1.0 - 2.0 * torch.randint(2, (starts, width), generator=generator).to(torch.float64)
    return q, torch.cos(angle), torch.sin(angle), signs


def _descend(
    objectives: Callable[[Parameters], torch.Tensor], parameters: tuple[torch.Tensor, ...], steps: int, learning_rate: float, unit: float
) -> tuple[list[FloatArray], FloatArray, float]:
    """The parameters of each start's best iterate, the objectives, shape (starts, steps + 1), and the time in seconds.

    The starts don't meet: Adam works entry by entry, and the gradient of the sum is each start's own. Dividing by `unit` keeps
    gradients clear of Adam's epsilon.
    """
    q, g, a, v = (p.requires_grad_() for p in parameters)
    optimiser = torch.optim.Adam([q, g, a, v], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    start = time.perf_counter()  # not before: PyTorch's first optimiser takes a second to import its compiler
    kept = [p.detach().clone() for p in (q, g, a, v)]
    least = torch.full((len(q),), math.inf, dtype=q.dtype, device=q.device)
    history = []
    for step in range(steps + 1):
        values = objectives((q, g, a, v))
        present = values.detach()
        history.append(present)
        better = present < least
        least = torch.where(better, present, least)
        for best, p in zip(kept, (q, g, a, v), strict=True):
            best[better] = p.detach()[better]
        if step < steps:
            optimiser.zero_grad()
            (values.sum() / unit).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return [_array(p) for p in kept], _array(torch.stack(history, dim=1)), time.perf_counter() - start


def _array(tensor: torch.Tensor) -> FloatArray:
    return tensor.cpu().to(torch.float64).numpy()


def _network(whitening: Whitening, parameters: list[FloatArray], size: float) -> Network:
    """The parameters of one start as a network on the raw data; not rebalanced, so that its objective is the history's."""
    q, g, a, v = parameters
    weights = whitening.raw_weights(q / np.linalg.norm(q, axis=1, keepdims=True))
    return Network(weights, weights @ whitening.mean, np.ones(len(g)), size * g, size * a, size * v[:, None], whitening.samples)
