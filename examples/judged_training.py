"""The problems of judged.py, each with its proof, and the gradient methods that are judged by it, with their seeds side by side."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_iris, make_moons
from torch import Tensor, nn

from convexbn import Fit, Network, beta_max, fit_convex_bn, from_torch
from convexbn.losses import Squared
from convexbn.training.decoupled import DecoupledSGD
from convexbn.training.full_norm import FullNorm1d, set_exact_statistics

WIDTH, SIZE, MOMENTUM, SHARE = 50, 8, 0.9, 0.1  # neurons, samples in a batch, of SGD, and of a batch in full normalisation's averages


@dataclass(frozen=True)
class Problem:
    """Data (n, d), targets (n,), and the convex program's answer."""

    name: str
    X: np.ndarray
    y: np.ndarray
    fit: Fit

    @property
    def beta(self) -> float:
        """The regularisation."""
        return self.fit.program.beta

    def excess(self, network: Network) -> float:
        """(objective - bound) / bound with full-batch statistics; infinite for a network that has diverged."""
        arrays = (network.weights, network.gain, network.shift, network.outputs)
        if not all(np.all(np.abs(array) < 1e100) for array in arrays):
            return np.inf
        return network.objective(self.X, self.y, Squared(), self.beta) / self.fit.certificate.bound - 1.0


@dataclass(frozen=True)
class Method:
    """How to train; its batches are "full", "shuffled" or "sorted"."""

    optimiser: str
    batches: str
    full_norm: bool = False


METHODS = {
    "SGD, full batch": Method("SGD", "full"),
    "DecoupledSGD, full batch": Method("DecoupledSGD", "full"),
    "Adam, full batch": Method("Adam", "full"),
    "SGD, shuffled batches": Method("SGD", "shuffled"),
    "SGD, sorted batches": Method("SGD", "sorted"),
    "full norm., shuffled": Method("SGD", "shuffled", full_norm=True),
    "full norm., sorted": Method("SGD", "sorted", full_norm=True),
}


@dataclass(frozen=True)
class Run:
    """One method at one rate: its networks side by side, and the excess (checkpoints, seeds) after `epochs` (checkpoints,)."""

    method: str
    rate: float
    model: nn.Sequential
    epochs: np.ndarray
    excess: np.ndarray


def problems(quick: bool) -> Iterator[Problem]:
    """Standardised features, and targets -1 and 1 or of variance 1."""
    X, kind = make_moons(50 if quick else 150, noise=0.2, random_state=0)
    yield problem("two moons", X, 2.0 * kind - 1.0, 0.1)
    if not quick:
        X, kind = load_iris(return_X_y=True)
        yield problem("iris, versicolor", X, np.where(kind == 1, 1.0, -1.0), 0.1)
        X, y = load_diabetes(return_X_y=True)
        X, y = X[::3, :4], y[::3]  # age, sex, body mass and blood pressure of every third patient
        yield problem("diabetes", X, (y - y.mean()) / y.std(), 0.2)


def problem(name: str, X: np.ndarray, y: np.ndarray, fraction: float) -> Problem:
    """With beta a fraction of beta_max, and as much time for the proof as it takes."""
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    fit = fit_convex_bn(X, y, beta=fraction * beta_max(X, y), proof_seconds=60.0)
    if fit.interrupted:
        raise KeyboardInterrupt
    return Problem(name, X, y, fit)


def networks(features: int, seeds: int, full_norm: bool) -> nn.Sequential:
    """One network a seed, side by side as groups of convolutions of length 1; each starts as PyTorch starts it alone."""
    layers = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        layers.append((nn.Linear(features, WIDTH, bias=False), nn.Linear(WIDTH, 1, bias=False)))
    model = nn.Sequential(
        nn.Conv1d(seeds * features, seeds * WIDTH, 1, groups=seeds, bias=False),
        FullNorm1d(seeds * WIDTH, momentum=SHARE) if full_norm else nn.BatchNorm1d(seeds * WIDTH),
        nn.ReLU(),
        nn.Conv1d(seeds * WIDTH, seeds, 1, groups=seeds, bias=False),
    )
    for place, part in ((0, 0), (3, 1)):
        model[place].weight.data = torch.cat([pair[part].weight.data for pair in layers]).unsqueeze(-1)
    return model.double()


def alone(model: nn.Sequential, seed: int) -> nn.Sequential:
    """The network of one seed as a plain PyTorch model."""
    rows = slice(seed * WIDTH, (seed + 1) * WIDTH)
    first, norm, last = model[0].weight.detach()[rows, :, 0], model[1], model[3].weight.detach()[seed, :, 0]
    plain = nn.Sequential(
        nn.Linear(first.shape[1], WIDTH, bias=False), nn.BatchNorm1d(WIDTH, norm.eps), nn.ReLU(), nn.Linear(WIDTH, 1, bias=False)
    ).double()
    values = (first, norm.weight.detach()[rows], norm.bias.detach()[rows], last.unsqueeze(0))
    for parameter, value in zip(plain.parameters(), values, strict=True):
        parameter.data = value.clone()
    return plain


def seeds_of(model: nn.Sequential) -> int:
    """How many networks stand side by side."""
    return model[3].out_channels


def judge(problem: Problem, model: nn.Sequential) -> np.ndarray:
    """The excess of each network, shape (seeds,)."""
    return np.array([problem.excess(from_torch(alone(model, seed), problem.X)) for seed in range(seeds_of(model))])


def orders(y: np.ndarray, kind: str, seeds: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """An epoch of batches as indices (seeds, samples), each seed with its own; sorted ones come in random order, ties broken anew."""
    if kind == "full":
        yield np.tile(np.arange(len(y)), (seeds, 1))
        return
    order = np.array([generator.permutation(len(y)) for _ in range(seeds)])
    if kind == "sorted":
        order = np.array([row[np.argsort(y[row], kind="stable")] for row in order])
    batches = np.array_split(order, -(-len(y) // SIZE), axis=1)
    yield from (batches[k] for k in generator.permutation(len(batches)))


def batch_of(problem: Problem, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Inputs (samples, seeds d, 1) and targets (samples, seeds, 1) of indices (seeds, samples)."""
    x = torch.as_tensor(problem.X[rows]).transpose(0, 1).flatten(1).unsqueeze(-1)
    return x, torch.as_tensor(problem.y[rows]).T.unsqueeze(-1)


def decays(problem: Problem) -> tuple[float, ...]:
    """The weight decay of each parameter: first layer, gains, shifts, last layer."""
    return 0.0, problem.beta, problem.beta, problem.beta / len(problem.y)


def mean_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """The mean over the samples of (f - y)^2 / 2, summed over the networks, whose gradients thereby are their own."""
    return 0.5 * (outputs - y).square().sum() / len(y)


def optimiser_of(name: str, model: nn.Sequential, rate: float) -> torch.optim.Optimizer:
    """By its name; weight decay is added to the gradients."""
    if name == "Adam":
        return torch.optim.Adam(model.parameters(), lr=rate)
    if name == "DecoupledSGD":
        return DecoupledSGD(model, rate, momentum=MOMENTUM)
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM)


def train(problem: Problem, name: str, model: nn.Sequential, rate: float, epochs: int, checkpoints: int = 30) -> Run:
    """Train the model in place for some epochs, and judge it now and then."""
    method, n, seeds = METHODS[name], len(problem.y), seeds_of(model)
    whole = batch_of(problem, np.tile(np.arange(n), (seeds, 1)))
    if method.full_norm:
        set_exact_statistics(model, [whole], mean_loss)
    optimiser = optimiser_of(method.optimiser, model, rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    times = np.unique(np.geomspace(epochs, 1, checkpoints).astype(int))
    generator, excess = np.random.default_rng(0), [judge(problem, model)]
    for epoch in range(1, epochs + 1):
        for rows in orders(problem.y, method.batches, seeds, generator):
            x, y = whole if method.batches == "full" else batch_of(problem, rows)
            optimiser.zero_grad()
            mean_loss(model(x), y).backward()
            for parameter, decay in zip(model.parameters(), decays(problem), strict=True):
                parameter.grad.add_(parameter.data, alpha=decay)
            optimiser.step()
        schedule.step()
        if epoch in times:
            excess.append(judge(problem, model))
    return Run(name, rate, model, np.concatenate([[0], times]), np.array(excess))


def best_run(problem: Problem, name: str, seeds: int, epochs: int, rates: tuple[float, ...]) -> Run:
    """The rate with the least median excess at the end."""
    runs = [train(problem, name, networks(problem.X.shape[1], seeds, METHODS[name].full_norm), rate, epochs) for rate in rates]
    return min(runs, key=lambda run: float(np.median(run.excess[-1])))


def mean_gradient(problem: Problem, run: Run, kind: str) -> np.ndarray:
    """The mean gradient over epochs of batches at the last weights, decay included, shape (seeds, parameters); "full" gives the true one.

    Those of the first layer are taken along unit weights, as its scale is free. Averages of full normalisation move on meanwhile.
    """
    model, n, epochs = copy.deepcopy(run.model), len(problem.y), 1 if kind == "full" else 50
    if kind == "full":
        model[1].momentum = 1.0  # in full normalisation the limit that is batch normalisation
    parameters, generator = list(model.parameters()), np.random.default_rng(1)
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for _ in range(epochs):
        for rows in orders(problem.y, kind, seeds_of(model), generator):
            x, y = batch_of(problem, rows)
            for total, part in zip(sums, torch.autograd.grad(mean_loss(model(x), y), parameters), strict=True):
                total.add_(part, alpha=len(x) / (n * epochs))
    for total, parameter, decay in zip(sums, parameters, decays(problem), strict=True):
        total.add_(parameter.data, alpha=decay)
    sums[0] *= model[0].weight.norm(dim=1, keepdim=True)
    return torch.cat([total.detach().reshape(seeds_of(model), -1) for total in sums], dim=1).numpy()
