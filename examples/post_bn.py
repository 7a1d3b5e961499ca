"""Batch normalisation after the ReLU, trained to its global optimum: against L-BFGS, and in closed form for n <= d.

    OMP_NUM_THREADS=1 python examples/post_bn.py [--quick] [--picture PATH]

Left: twenty-four samples with two features, one of them a bias. All arrangements of the raw data are listed, Clarabel solves the
program, and the bound is proved; L-BFGS trains the same network from many random starts. Right: the lower halves of twenty digits
from their upper halves, 32 pixels each. The optimum is the matrix of targets with its singular values reduced by beta, one neuron
for each that is left.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize
from sklearn.datasets import load_digits

from convexbn import PostFit, fit_post_bn

BLUE, ORANGE, GREY = "#1f5fa8", "#c96a1b", "#444444"
WIDTH = 20


def curve(samples: int) -> tuple[np.ndarray, np.ndarray]:
    """A bent and noisy function of one variable, with a column of ones for the bias."""
    generator = np.random.default_rng(0)
    x = np.sort(generator.uniform(-2.0, 2.0, samples))
    y = np.sin(3.0 * x) + 0.5 * np.abs(x) + 0.1 * generator.standard_normal(samples)
    return np.column_stack([x, np.ones(samples)]), y - y.mean()


def objective_of(parameters: torch.Tensor, X: torch.Tensor, y: torch.Tensor, beta: float) -> torch.Tensor:
    """||f(X) - y||^2/2 + (beta/2) sum_j (g_j^2 + a_j^2 + v_j^2) from the definition; parameters (d + 3, WIDTH)."""
    w, (g, a, v) = parameters[:-3], parameters[-3:]
    hidden = torch.relu(X @ w)
    hidden = hidden - hidden.mean(dim=0)
    hidden = g * hidden / hidden.norm(dim=0).clamp_min(1e-12) + a / len(X) ** 0.5
    return 0.5 * (hidden @ v - y).square().sum() + 0.5 * beta * (g.square() + a.square() + v.square()).sum()


def by_lbfgs(X: np.ndarray, y: np.ndarray, beta: float, starts: int) -> np.ndarray:
    """Where L-BFGS ends from random starts, sorted."""
    data, targets = torch.as_tensor(X), torch.as_tensor(y)

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.tensor(flat.reshape(X.shape[1] + 3, WIDTH), requires_grad=True)
        value = objective_of(parameters, data, targets, beta)
        value.backward()
        return value.item(), parameters.grad.numpy().ravel()

    ends = []
    for seed in range(starts):
        start = np.random.default_rng(seed).standard_normal((X.shape[1] + 3) * WIDTH)
        ends.append(minimize(evaluate, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "maxfun": 5000, "ftol": 1e-14}).fun)
    return np.sort(ends)


def digits(samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The upper halves of images, and their lower halves as targets."""
    images = load_digits().images[:samples]
    return images[:, :4].reshape(samples, -1), images[:, 4:].reshape(samples, -1)


def print_table(fit: PostFit, seconds: float, ends: np.ndarray, trained: float, wide: PostFit) -> None:
    """Objectives, bounds and CPU seconds."""
    table = Table(title="batch normalisation after the ReLU: CPU seconds, one thread")
    for column in ("", "objective", "above the bound", "neurons", "seconds"):
        table.add_column(column, justify="left" if not column else "right")
    bound = fit.certificate.bound

    def row(name: str, objective: float, below: float, neurons: int, time: float) -> None:
        table.add_row(name, f"{objective:.8f}", f"{objective / below - 1.0:.1e}", str(neurons), f"{time:.2f}")

    row(f"all {len(fit.arrangements or [])} arrangements", fit.certificate.objective, bound, fit.network.neurons, seconds)
    row(f"L-BFGS, best of {len(ends)} starts", ends[0], bound, WIDTH, trained)
    row(f"L-BFGS, median of {len(ends)}", float(np.median(ends)), bound, WIDTH, trained)
    row("n <= d, closed form", wide.certificate.objective, wide.certificate.bound, wide.network.neurons, sum(wide.seconds.values()))
    Console(width=100).print(table)


def draw(fit: PostFit, ends: np.ndarray, wide: PostFit, X: np.ndarray, Y: np.ndarray, target: Path) -> None:
    """The ends of L-BFGS above the proved bound, and the singular values of targets and predictions."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    draw_ends(left, fit, ends)
    before, after = (np.linalg.svd(matrix, compute_uv=False) for matrix in (Y, wide.predict(X)))
    number = np.arange(1, len(before) + 1)
    right.plot(number, before, "o-", color=GREY, ms=5, lw=1, label="of the targets")
    right.plot(number, after, "o-", color=BLUE, ms=5, lw=1, label="of the optimal network's outputs")
    right.plot(number, np.maximum(before - wide.beta, 0.0), "+", color=ORANGE, ms=11, label=r"targets less $\beta$, not below 0")
    right.set(xlabel="singular value", title="n = 20 half digits, d = 32: closed form", ylim=(0, None), xticks=(1, 5, 10, 15, 20))
    right.legend(frameon=False, loc="upper right")
    for panel in (left, right):
        panel.grid(alpha=0.25, lw=0.5)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=140)
    plt.close(figure)


def draw_ends(panel: Any, fit: PostFit, ends: np.ndarray) -> None:
    """L-BFGS's ends in order, with the optimum."""
    bound = fit.certificate.bound
    panel.plot(np.arange(1, len(ends) + 1), ends / bound - 1.0, "o", color=ORANGE, ms=4, label="L-BFGS, one dot a start, sorted")
    panel.axhline(fit.certificate.relative_gap, color=BLUE, lw=1.4, label="convex program")
    panel.set(xlabel="start", ylabel="objective above the proved bound, relative", yscale="log", ylim=(1e-10, 10.0))
    panel.set_title(f"n = {len(fit.certificate.dual)}, all arrangements of the data")
    panel.legend(frameon=False, loc="upper left")


def main() -> None:
    """Both optima, L-BFGS, the table, and the picture where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds: fewer samples and starts")
    parser.add_argument("--picture", type=Path, metavar="PATH")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    X, y = curve(10 if arguments.quick else 24)
    start = time.process_time()
    fit = fit_post_bn(X, y)
    seconds = time.process_time() - start
    start = time.process_time()
    ends = by_lbfgs(X, y, fit.beta, 4 if arguments.quick else 40)
    trained = time.process_time() - start
    wide_X, wide_Y = digits(20)
    wide = fit_post_bn(wide_X, wide_Y)
    print_table(fit, seconds, ends, trained, wide)
    if arguments.picture:
        draw(fit, ends, wide, wide_X, wide_Y, arguments.picture)


if __name__ == "__main__":
    main()
