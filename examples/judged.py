"""How far from the global optimum do gradient methods end, and why? Training curves above a bound that is proved.

    OMP_NUM_THREADS=1 python examples/judged.py [--quick] [--picture PATH]

Three problems with few features, squared loss, where `fit_convex_bn` proves a bound to better than 0.1 %. On each, seven ways to train
Linear, BatchNorm1d, ReLU, Linear of width 50 on the same weight-decay objective: weight decay beta on the batch normalisation and
beta / n on the last layer of the mean loss (docs/conventions.md), float64, the same initial weights, epochs and grid of learning rates,
which fall to 0 by a half cosine. The rate with the least median objective at the end is taken. "Sorted" batches hold neighbours in the
order of the targets, or samples of one class. Every number is the excess (objective - bound) / bound of the network with the
statistics of the full batch, whatever the method itself minimises.

Then why each method ends there. From its last weights: as many epochs again, which help a method that is slow; with mini-batches as
many more at a tenth of the rate, which help against noise, and not against an objective that is another one; the mean gradient over
the method's batches beside the true one, much smaller where the method is done with an objective of its own; and L-BFGS on the full
batch, after a kick of 1e-3 that leaves saddle points, which helps whatever isn't a bad minimum.
"""

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.optimize import minimize
from sklearn.datasets import load_diabetes, load_iris, make_moons
from torch import Tensor, nn

from convexbn import Fit, Network, beta_max, certify, fit_convex_bn, from_torch
from convexbn.losses import Squared
from convexbn.network import neurons_of, recover
from convexbn.training.decoupled import DecoupledSGD
from convexbn.training.full_norm import FullNorm1d, set_exact_statistics

WIDTH, SIZE, MOMENTUM, SHARE = 50, 8, 0.9, 0.1  # neurons, samples in a batch, of SGD, and of a batch in full normalisation's averages
RATES = (0.005, 0.02, 0.08, 0.3)
KICK = 1e-3
BOTTOM, TOP = 3e-5, 50.0  # of the picture
# Colour, line and name in the picture.
STYLES = {
    "SGD, full batch": ("#000000", "-", "SGD"),
    "DecoupledSGD, full batch": ("#009e73", "-", "decoupled"),
    "Adam, full batch": ("#b5578f", "-", "Adam"),
    "SGD, shuffled batches": ("#d55e00", "-", "BN, shuffled"),
    "SGD, sorted batches": ("#d55e00", "--", "BN, sorted"),
    "full norm., shuffled": ("#0072b2", "-", "FN, shuffled"),
    "full norm., sorted": ("#0072b2", "--", "FN, sorted"),
}
Batches = list[tuple[Tensor, Tensor]]


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
QUICK = ("Adam, full batch", "SGD, sorted batches", "full norm., sorted")


@dataclass(frozen=True)
class Run:
    """One method at one rate: its networks side by side, and the excess (checkpoints, seeds) after `epochs` (checkpoints,)."""

    method: str
    rate: float
    model: nn.Sequential
    epochs: np.ndarray
    excess: np.ndarray


@dataclass(frozen=True)
class Finding:
    """Excesses (seeds,) at the end, after as many epochs again, and as many at a tenth of the rate, for mini-batches; after L-BFGS.

    `ratio` (seeds,) is the size of the mean gradient that the method follows, divided by that of the true one. The gap is that of the
    median network's own certificate, estimated; `neurons` (seeds,) have a share in the penalty.
    """

    run: Run
    end: np.ndarray
    ratio: np.ndarray
    again: np.ndarray
    slower: np.ndarray | None
    descended: np.ndarray
    gap: float
    neurons: np.ndarray


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
    return Problem(name, X, y, fit_convex_bn(X, y, beta=fraction * beta_max(X, y), proof_seconds=60.0))


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


def descend(problem: Problem, network: Network) -> Network:
    """L-BFGS from a kicked network, in the whitened coordinates where batch normalisation is a reparametrisation:

    min over S (m, r+1) and v (m,) of ||(U'S^T)_+ v - y||^2 / 2 + (beta/2) (||S||^2 + ||v||^2).
    """
    basis, generator = problem.fit.whitening.basis, np.random.default_rng(0)
    directions, outputs = neurons_of(problem.fit.whitening, network)
    size, columns = np.sqrt(np.abs(outputs)), basis.shape[1]
    start = np.zeros((WIDTH, columns + 1))
    start[: len(size)] = np.hstack([size * directions, np.sign(outputs) * size])
    unit = np.sqrt(np.linalg.norm(problem.y) / WIDTH)
    result = minimize(
        lambda p: value_and_gradient(p.reshape(WIDTH, -1), basis, problem.y, problem.beta),
        (start + KICK * unit * generator.standard_normal(start.shape)).ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 3000, "maxfun": 6000, "maxcor": 30, "ftol": 1e-13, "gtol": 1e-8},
    )
    end = result.x.reshape(WIDTH, -1)
    return recover(problem.fit.whitening, end[:, :-1], end[:, -1:])


def value_and_gradient(neurons: np.ndarray, basis: np.ndarray, y: np.ndarray, beta: float) -> tuple[float, np.ndarray]:
    """The objective of neurons (m, r+2), each a direction and an output, and its gradient, flat."""
    S, v = neurons[:, :-1], neurons[:, -1]
    hidden = np.maximum(basis @ S.T, 0.0)
    residual = hidden @ v - y
    of_S = ((hidden > 0) * residual[:, None] * v).T @ basis
    gradient = np.column_stack([of_S, hidden.T @ residual]) + beta * neurons
    return 0.5 * float(residual @ residual) + 0.5 * beta * float(np.sum(neurons**2)), gradient.ravel()


def alive(network: Network) -> int:
    """Neurons with at least 1e-3 of the largest one's share in the penalty."""
    strength = np.hypot(network.gain, network.shift) * np.linalg.norm(network.outputs, axis=1)
    return int(np.sum(strength > 1e-3 * np.max(strength))) if np.max(strength) > 1e-12 else 0


def explain(problem: Problem, run: Run, epochs: int) -> Finding:
    """Every measurement of one method's end."""
    method, end = METHODS[run.method], run.excess[-1]
    ends = [from_torch(alone(run.model, seed), problem.X) for seed in range(seeds_of(run.model))]
    own, true = (np.linalg.norm(mean_gradient(problem, run, kind), axis=1) for kind in (method.batches, "full"))
    middle = ends[int(np.argsort(end)[len(end) // 2])]
    gap = certify(problem.X, problem.y, middle, beta=problem.beta, seconds=0.1).estimated_gap
    descended = np.array([problem.excess(descend(problem, network)) for network in ends])
    # Last, as they move the model.
    again = train(problem, run.method, run.model, run.rate, epochs, checkpoints=1).excess[-1]
    slower = train(problem, run.method, run.model, 0.1 * run.rate, epochs, checkpoints=1).excess[-1] if method.batches != "full" else None
    return Finding(run, end, own / true, again, slower, descended, gap, np.array([alive(network) for network in ends]))


def from_the_start(problem: Problem, seeds: int) -> list[float]:
    """The excess of L-BFGS alone: what the landscape does to a fast method."""
    model = networks(problem.X.shape[1], seeds, full_norm=False)
    starts = [from_torch(alone(model, seed), problem.X) for seed in range(seeds)]
    return [problem.excess(descend(problem, network)) for network in starts]


def percent(value: float) -> str:
    """Two digits."""
    return f"{100.0 * value:.2g} %" if abs(value) < 0.995 else f"{100.0 * value:.0f} %"


def table_of(problem: Problem, findings: list[Finding]) -> Table:
    """Medians over the seeds unless a column says otherwise."""
    certificate = problem.fit.certificate
    n, d = problem.X.shape
    fitted = percent(certificate.objective / certificate.bound - 1.0)
    title = (
        f"{problem.name}: n = {n}, d = {d}, beta {problem.beta:.4g}\nbound {certificate.bound:.6f}, {certificate.evidence.value}; "
        f"convex program {certificate.objective:.6f}, at most {fitted} above"
    )
    table = Table(title=title, title_justify="left")
    for column in ("method", "rate", "end", "worst", "again", "rate / 10", "gradient", "L-BFGS", "worst", "own gap", "neurons"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for finding in findings:
        end, again, descended = (
            (percent(float(np.median(values))), percent(float(np.max(values))))
            for values in (finding.end, finding.again, finding.descended)
        )
        ratio, last = f"{np.median(finding.ratio):.2f}", (percent(finding.gap), f"{np.median(finding.neurons):.0f}")
        slower = "" if finding.slower is None else percent(float(np.median(finding.slower)))
        table.add_row(finding.run.method, f"{finding.run.rate:g}", *end, again[0], slower, ratio, *descended, *last)
    return table


def spread(heights: list[float], distance: float) -> list[float]:
    """Heights that keep their order and at least the distance, moved as little as pushing neighbours apart needs."""
    order = np.argsort(heights)
    placed = np.array(heights, dtype=float)[order]
    for _ in range(200):
        for k in range(len(placed) - 1):
            missing = distance - (placed[k + 1] - placed[k])
            if missing > 0:
                placed[k] -= 0.5 * missing
                placed[k + 1] += 0.5 * missing
    result = np.empty(len(placed))
    result[order] = placed
    return list(result)


def draw_problem(panel: Any, problem: Problem, findings: list[Finding]) -> None:
    """Medians over the seeds with their range, each with its name at its end, above the proved gap of the convex program."""
    certificate = problem.fit.certificate
    gap = certificate.objective / certificate.bound - 1.0
    last = [float(np.median(finding.end)) for finding in findings]
    labels = np.exp(spread([float(np.log(value)) for value in last], 0.062 * np.log(TOP / BOTTOM)))
    for finding, value, height in zip(findings, last, labels, strict=True):
        run = finding.run
        colour, dashes, name = STYLES[run.method]
        times, values = run.epochs[1:], np.maximum(run.excess[1:], BOTTOM)
        panel.plot(times, np.median(values, axis=1), color=colour, ls=dashes, lw=1.9)
        panel.fill_between(times, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.16, lw=0)
        end, right = times[-1], 1.45 * times[-1]
        panel.plot([1.06 * end, 0.93 * right], [value, height], color=colour, lw=0.7, clip_on=False)
        panel.annotate(f"{name}  {percent(value)}", (right, height), va="center", fontsize=10, color=colour, annotation_clip=False)
    panel.axhspan(BOTTOM, gap, color="#e9e2c8", lw=0)
    panel.axhline(gap, color="#8a7530", lw=1.4)
    style = {"ha": "left", "fontsize": 10, "color": "#6b5a20"}
    panel.text(1.1, 1.12 * gap, f"convex program: at most {percent(gap)}, {certificate.evidence.value}", va="bottom", **style)
    panel.text(1.1, 0.88 * gap, "the optimum lies in this band", va="top", **style)
    panel.set_xlim(1, findings[0].run.epochs[-1])
    panel.set_title(f"{problem.name}  (n = {len(problem.y)}, d = {problem.X.shape[1]})", loc="left", fontsize=12)


def draw(panels: list[tuple[Problem, list[Finding]]], rates: int, path: Path) -> None:
    """One panel a problem."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * max(len(panels), 2), 6.0), sharey=True, squeeze=False)
    for panel, (the_problem, findings) in zip(axes[0], panels, strict=True):
        draw_problem(panel, the_problem, findings)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_ylim(BOTTOM, TOP)
        panel.set_xticks([1, 10, 100], ["1", "10", "100"])
        panel.set_yticks([1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0], ["0.01 %", "0.1 %", "1 %", "10 %", "100 %", "1000 %"])
        panel.minorticks_off()
        panel.grid(axis="y", color="#e6e6e6", lw=0.8)
        panel.set_axisbelow(True)
        panel.set_xlabel("epoch")
    axes[0, 0].set_ylabel("objective above the proved bound")
    seeds = len(panels[0][1][0].end)
    words = {the_problem.fit.certificate.evidence.value for the_problem, _ in panels}
    figure.suptitle("How far above the global optimum do gradient methods end?", x=0.012, ha="left", fontsize=15, weight="bold")
    caption = (
        f"(objective - bound) / bound with full-batch statistics. The bound is {' / '.join(sorted(words))}: no network of this form, "
        f"of any width, lies below it.\n"
        f"Median and range of {seeds} seeds, best of {rates} learning rates. BN, FN: batch and full normalisation, batches of {SIZE} "
        f"samples, shuffled or sorted by target; the others take the full batch."
    )
    figure.text(0.012, 0.93, caption, va="top", fontsize=10.5, color="#444444")
    figure.subplots_adjust(left=0.058, right=0.888, top=0.81, bottom=0.09, wspace=0.58)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main() -> None:
    """Train, judge, explain."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds: one problem, three methods, one rate, few epochs and seeds")
    parser.add_argument("--picture", type=Path, metavar="PATH", help="where to write a picture")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds, epochs, rates = (2, 10, (0.1,)) if arguments.quick else (3, 200, RATES)
    names = [name for name in METHODS if not arguments.quick or name in QUICK]
    start, panels = time.perf_counter(), []
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        for the_problem in problems(arguments.quick):
            findings = []
            for name in progress.track(names, description=the_problem.name):
                with np.errstate(all="ignore"):  # networks that diverge
                    run = best_run(the_problem, name, seeds, epochs, rates)
                findings.append(explain(the_problem, run, epochs))
            panels.append((the_problem, findings))
            Console(width=150).print(table_of(the_problem, findings))
            print(f"L-BFGS from the initial weights: {', '.join(map(percent, from_the_start(the_problem, seeds)))}\n")
    print("end, again, rate / 10, L-BFGS: (objective - bound) / bound with full-batch statistics, median over seeds. gradient: size of")
    print("the mean one over the method's batches, divided by the true one's. own gap: of the median network's own certificate, estimated.")
    print(f"{seeds} seeds, {epochs} epochs, {time.perf_counter() - start:.0f} s, {torch.get_num_threads()} thread")
    if arguments.picture:
        draw(panels, len(rates), arguments.picture)
        print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
