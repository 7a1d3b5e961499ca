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
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.optimize import minimize

from convexbn import Network, certify, from_torch
from convexbn.network import neurons_of, recover
from judged_picture import draw, percent
from judged_training import METHODS, WIDTH, Problem, Run, alone, best_run, mean_gradient, networks, problems, seeds_of, train

RATES = (0.005, 0.02, 0.08, 0.3)
KICK = 1e-3
QUICK = ("Adam, full batch", "SGD, sorted batches", "full norm., sorted")


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
