"""Gradient methods on the network's own objective: what the convex program is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from convexbn.devices import check_device
from convexbn.losses import Loss, get_loss
from convexbn.network import Network
from convexbn.training.descent import Plan, descend
from convexbn.training.losses import check_torch_loss, torch_loss
from convexbn.training.methods import Adam, Method
from convexbn.validation import FloatArray, InputError, check_count, check_data, check_positive, check_targets
from convexbn.whitening import Whitening, whiten

# p (starts, m, r), gains and shifts (starts, m), outputs (starts, m) or (starts, m, C) of several networks at once.
Parameters = Sequence[Tensor]

COORDINATES = ("whitened", "raw")


@dataclass(frozen=True)
class TrainingRun:
    """One start of a gradient method.

    Attributes
    ----------
    network : the best iterate, by the loss on the validation set or else by the objective
    history : (epochs + 1,) the objective on all samples before each epoch and after the last, as the method itself computed it
    validation : (epochs + 1,) the mean loss on the validation set, or None
    snapshots : the networks at the epochs that were asked for, 0 being the start
    seconds : wall-clock time of all starts of the call together, which advance side by side
    """

    network: Network
    history: FloatArray
    validation: FloatArray | None
    snapshots: Mapping[int, Network]
    seconds: float


def train_networks(
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    beta: float,
    loss: str | Loss = "squared",
    width: int = 100,
    starts: int = 1,
    method: Method | None = None,
    epochs: int = 1000,
    batch_size: int | None = None,
    coordinates: str = "whitened",
    rank: float | None = None,
    validation: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    patience: int | None = None,
    snapshots: Sequence[int] = (),
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    verbose: bool = False,
) -> list[TrainingRun]:
    """Descend from random starts on the non-convex problem

        min  L( sum_j (BN_{g_j,a_j}(X w_j))_+ v_j^T, y ) + (beta/2) sum_j ( g_j^2 + a_j^2 + ||v_j||^2 ),

    L a sum over samples, BN divided by the l2 norm and without epsilon: with `batch_size=None` what `fit_convex_bn` solves. A batch
    B of b samples has statistics of its own, as in PyTorch, and its loss is weighted by n/b.

    Parameters
    ----------
    X : (n, d) real numbers, n >= 2
    y : (n,) targets, or (n, C); as in `fit_convex_bn`
    beta, loss : the objective's
    width : neurons m of each network
    starts : networks trained side by side, as one batch; one after the other where the method has a line search
    method : `Adam()` by default. Learning rates are relative to the size that the parameters have at the start and to the loss of
        the zero network; they need no unit
    epochs, batch_size, patience, verbose : of the `Plan`; an epoch of one batch is one step
    coordinates : "whitened" moves the q_j = Sigma V^T w_j, in which methods do better than on standardised columns; there BN over
        all samples costs no pass over them, as ||Pi X w_j|| = ||q_j||. "raw" moves the w_j themselves: a
        step then moves q_j along direction k by sigma_k^2 / (mean of sigma^2) times as much
    rank : principal directions that the networks read, as in `fit_convex_bn`
    validation : inputs (k, d) and targets whose loss, with the statistics of all training samples, chooses the iterate
    snapshots : epochs whose networks to return
    seed : of the starts and of the batches
    device : where PyTorch computes, such as "cuda"
    dtype : torch.float64 (default) or another floating type to compute in

    Returns
    -------
    One `TrainingRun` a start. Judge its network by `Network.objective`.

    Raises
    ------
    InputError
        For unusable arguments, and for a loss without an entry in `TORCH_LOSSES`.

    Source: Ergen et al. 2022 for the bias of descent in raw coordinates.
    """
    data, the_loss = check_data(X), get_loss(loss)
    targets = the_loss.check(check_targets(y, len(data)))
    check_torch_loss(the_loss)
    check_positive(beta, "beta")
    if coordinates not in COORDINATES:
        raise InputError(f"coordinates = {coordinates!r} is unknown: choose 'whitened' or 'raw'")
    plan = Plan(epochs, batch_size, patience, check_count(seed, "seed", 0), verbose)
    place = torch.empty(0, device=check_device(device), dtype=torch.float64 if dtype is None else dtype)
    if batch_size is not None and batch_size > len(data):
        raise InputError(f"batch_size = {batch_size} is larger than the {len(data)} samples of X: leave it out to take them all")
    # A rank, be it the full one, keeps the relative units of the columns, and so the directions and Sigma of X itself.
    whitening = whiten(data, rank=min(data.shape) if rank is None and coordinates == "raw" else rank)
    size = math.sqrt((float(np.linalg.norm(targets)) or 1.0) / check_count(width, "width"))
    problem = Problem(
        basis=torch.as_tensor(whitening.basis).to(place),
        targets=torch.as_tensor(targets).to(place),
        stretch=torch.as_tensor(stretch_of(whitening, coordinates)).to(place),
        loss=the_loss,
        beta=beta,
        size=size,
        unit=the_loss.value(np.zeros(targets.shape), targets) or 1.0,
    )
    held = None if validation is None else _held(whitening, the_loss, validation, place)
    initial = [p.to(place) for p in _initial(check_count(starts, "starts"), width, whitening.rank, targets.shape[1:], seed)]
    the_method = Adam() if method is None else method
    runs = []
    for group in torch.split(torch.arange(starts), 1 if the_method.searches else starts):
        trainee = _Networks(problem, [p[group] for p in initial], held, frozenset(snapshots))
        seconds = descend(trainee, the_method, plan)
        runs += trainee.runs(whitening, seconds)
    return runs


@dataclass(frozen=True)
class Problem:
    """The objective as a function of parameters p (starts, m, r), g, a (starts, m), v (starts, m) or (starts, m, C).

    The neurons have q = stretch * p, and gains, shifts and outputs `size` times the parameters.

    Attributes
    ----------
    basis : (n, r+1) U'
    targets : (n,) or (n, C)
    stretch : (r,) 1 in whitened coordinates
    loss, beta : the objective's
    size : in the unit of the square root of the targets, so that parameters start near 1
    unit : the loss of the zero network, which keeps gradients clear of Adam's epsilon
    """

    basis: Tensor
    targets: Tensor
    stretch: Tensor
    loss: Loss
    beta: float
    size: float
    unit: float

    def objectives(self, parameters: Parameters, rows: Tensor | None = None) -> Tensor:
        """The objective of each network, shape (starts,), or what the samples `rows` say of it."""
        _, g, a, v = parameters
        penalty = 0.5 * self.beta * self.size**2 * (g.square().sum(-1) + a.square().sum(-1) + v.square().flatten(1).sum(-1))
        if rows is None:
            return torch_loss(self.loss, self.predictions(parameters, self.basis), self.targets) + penalty
        targets = self.targets[rows]
        return len(self.basis) / len(rows) * torch_loss(self.loss, self.batch_predictions(parameters, rows), targets) + penalty

    def predictions(self, parameters: Parameters, basis: Tensor) -> Tensor:
        """Outputs with the statistics of all samples, shape (starts, k) or (starts, k, C), of whitened rows (k, r+1).

        BN of U q is g U q / ||q|| + a 1/sqrt(n) = U' (g q / ||q||; a), as the columns of U' are orthonormal.
        """
        p, g, a, v = parameters
        q = self.stretch * p
        neurons = torch.cat([q * (g / q.norm(dim=-1)).unsqueeze(-1), a.unsqueeze(-1)], dim=-1)
        return self._outputs(basis @ neurons.transpose(-1, -2), v)

    def batch_predictions(self, parameters: Parameters, rows: Tensor) -> Tensor:
        """Outputs of the samples `rows` with their own statistics: PyTorch's g/sqrt(n) (z - mean)/deviation + a/sqrt(n)."""
        p, g, a, v = parameters
        z = self.basis[rows, :-1] @ (self.stretch * p).transpose(-1, -2)
        centred = z - z.mean(dim=-2, keepdim=True)
        share = math.sqrt(len(rows) / len(self.basis))
        normalised = centred * (share * g / centred.norm(dim=-2)).unsqueeze(-2)
        return self._outputs(normalised + a.unsqueeze(-2) / math.sqrt(len(self.basis)), v)

    def _outputs(self, hidden: Tensor, v: Tensor) -> Tensor:
        outputs = self.size**2 * (torch.relu(hidden) @ (v if self.targets.dim() > 1 else v.unsqueeze(-1)))
        return outputs if self.targets.dim() > 1 else outputs.squeeze(-1)


class _Networks:
    """Several starts as a trainee."""

    def __init__(self, problem: Problem, initial: list[Tensor], held: tuple[Tensor, Tensor] | None, snapshots: frozenset[int]) -> None:
        self.problem, self.held, self.samples = problem, held, len(problem.basis)
        self.present = [p.clone().requires_grad_() for p in initial]
        self.best = [p.clone() for p in initial]
        self.history: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.wanted = snapshots
        self.snapshots: dict[int, list[Tensor]] = {}

    def parameters(self) -> list[Tensor]:
        return self.present

    def objective(self, rows: Tensor | None) -> Tensor:
        return self.problem.objectives(self.present, rows) / self.problem.unit

    def assess(self, values: Tensor | None) -> Tensor:
        if len(self.history) in self.wanted:
            self.snapshots[len(self.history)] = [p.detach().clone() for p in self.present]
        with torch.no_grad():
            self.history.append(self.problem.unit * (self.objective(None) if values is None else values))
            if self.held is None:
                return self.history[-1]
            basis, targets = self.held
            outputs = self.problem.predictions(self.present, basis)
            self.scores.append(torch_loss(self.problem.loss, outputs, targets) / len(basis))
            return self.scores[-1]

    def keep(self, better: Tensor) -> None:
        for best, p in zip(self.best, self.present, strict=True):
            best[better] = p.detach()[better]

    def runs(self, whitening: Whitening, seconds: float) -> list[TrainingRun]:
        history = _array(torch.stack(self.history, dim=1))
        scores = _array(torch.stack(self.scores, dim=1)) if self.scores else [None] * len(history)

        def network(parameters: list[Tensor], start: int) -> Network:
            return _network(whitening, self.problem, [p[start] for p in parameters])

        return [
            TrainingRun(
                network(self.best, start),
                history[start],
                scores[start],
                {epoch: network(kept, start) for epoch, kept in self.snapshots.items()},
                seconds,
            )
            for start in range(len(history))
        ]


def stretch_of(whitening: Whitening, coordinates: str) -> FloatArray:
    """q / p along each direction, shape (r,): 1, or Sigma over its root mean square, so that the q start equally long."""
    sigma = whitening.singular_values
    return sigma / np.sqrt(np.mean(sigma**2)) if coordinates == "raw" else np.ones(len(sigma))


def _held(whitening: Whitening, loss: Loss, validation: tuple[npt.ArrayLike, npt.ArrayLike], place: Tensor) -> tuple[Tensor, Tensor]:
    basis = whitening.transform(validation[0])
    targets = loss.check(check_targets(validation[1], len(basis)))
    return torch.as_tensor(basis).to(place), torch.as_tensor(targets).to(place)


def _initial(starts: int, width: int, rank: int, outputs: tuple[int, ...], seed: int) -> list[Tensor]:
    """Gaussian directions, (g, a) on the unit half circle g >= 0, unit outputs: balanced, half of the samples active."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(starts, width, rank, generator=generator, dtype=torch.float64)
    angle = math.pi * (torch.rand(starts, width, generator=generator, dtype=torch.float64) - 0.5)
    v = torch.randn(starts, width, *outputs, generator=generator, dtype=torch.float64)
    size = v.norm(dim=-1, keepdim=True) if outputs else v.abs()
    return [p, torch.cos(angle), torch.sin(angle), v / size]


def _array(tensor: Tensor) -> FloatArray:
    array: FloatArray = tensor.detach().cpu().to(torch.float64).numpy()
    return array


def _network(whitening: Whitening, problem: Problem, parameters: list[Tensor]) -> Network:
    """The parameters of one start as a network on the raw data; not rebalanced, so that its objective is the history's."""
    p, g, a, v = (_array(parameter) for parameter in parameters)
    q = p * _array(problem.stretch)
    weights = whitening.raw_weights(q / np.linalg.norm(q, axis=1, keepdims=True))
    size = problem.size
    return Network(weights, weights @ whitening.mean, np.ones(len(g)), size * g, size * a, size * v.reshape(len(g), -1), whitening.samples)
