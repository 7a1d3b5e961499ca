"""Gradient descent fits strong directions of the data first; the truncated convex program has that preference built in.

    OMP_NUM_THREADS=1 python examples/implicit_bias.py [--quick] [--picture PATH]

The same network, width 100, the same objective, the same rate: plain gradient descent on the raw weights w, where a step along the
k-th singular direction is sigma_k^2 / (mean of sigma^2) times as long, and on the whitened weights q = Sigma V^T w, where all
directions count the same. Beside them the convex program over all directions, and over the leading k, chosen on a quarter of the
training samples. Made data: 50 directions with sigma_k ~ 1/k, targets that depend on the leading four, and noise. Real data:
even or odd digit, 8 x 8 pixels. The targets are -1 and +1, or of variance 1; beta is 0.05 of the estimated beta_max.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from convexbn import Network, SlidingFrankWolfe, beta_max, fit_convex_bn, neurons_of, whiten
from convexbn.training import SGD, train_networks

WIDTH, RATE, FRACTION = 100, 10.0, 0.05
RANKS = 2, 4, 8, 16, 32
ORANGE, BLUE, GREY, GREEN = "#c96a1b", "#1f5fa8", "#444444", "#2a7f4f"


@dataclass(frozen=True)
class Task:
    """Centred targets and inputs to train on and to test with."""

    name: str
    X: np.ndarray
    y: np.ndarray
    test_X: np.ndarray
    test_y: np.ndarray

    def error(self, network: Network) -> float:
        """The mean squared error on the test samples, whose variance is about 1."""
        return float(np.mean((network.predict(self.test_X) - self.test_y) ** 2))


@dataclass(frozen=True)
class Result:
    """Networks of gradient descent by epoch, those of the two programs, and the chosen rank."""

    task: Task
    raw: Mapping[int, Network]
    whitened: Mapping[int, Network]
    full: Network
    truncated: Network
    rank: int


def tasks(samples: int, directions: int) -> list[Task]:
    """Made and real data."""
    random = np.random.default_rng(0)
    Z, W, v = random.standard_normal((samples + 2000, directions)), random.standard_normal((8, 4)), random.standard_normal(8)
    clean = np.maximum(Z[:, :4] @ W.T, 0.0) @ v
    noise = 0.5 * random.standard_normal(len(Z)) * (np.arange(len(Z)) < samples)
    X, kind = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    return [
        split("made data", Z / np.arange(1, directions + 1), (clean - clean.mean()) / clean.std() + noise, samples),
        split("digits, even or odd", X[order], np.where(kind[order] % 2 == 0, 1.0, -1.0), 2 * samples),
    ]


def split(name: str, X: np.ndarray, y: np.ndarray, samples: int) -> Task:
    """The first samples to train on, the others to test with."""
    mean = y[:samples].mean()
    return Task(name, X[:samples], y[:samples] - mean, X[samples:], y[samples:] - mean)


def program(X: np.ndarray, y: np.ndarray, rank: int | None) -> Network:
    """The convex program's network."""
    solver = SlidingFrankWolfe(tolerance=1e-3, seconds=30)
    return fit_convex_bn(X, y, beta=FRACTION * beta_max(X, y), rank=rank, solver=solver, proof_seconds=0.1).network


def chosen_rank(X: np.ndarray, y: np.ndarray) -> int:
    """The rank whose network, of three quarters of the samples, does best on the others."""
    part = 3 * len(X) // 4
    ranks = [rank for rank in RANKS if rank < X.shape[1]]
    errors = [np.mean((program(X[:part], y[:part], rank).predict(X[part:]) - y[part:]) ** 2) for rank in ranks]
    return ranks[int(np.argmin(errors))]


def solve(task: Task, epochs: int) -> Result:
    """All four ways."""
    shots = np.unique(np.geomspace(1, epochs, 60).astype(int)).tolist()
    descent: dict[str, Mapping[int, Network]] = {}
    for coordinates in ("raw", "whitened"):
        (run,) = train_networks(
            task.X,
            task.y,
            beta=FRACTION * beta_max(task.X, task.y),
            width=WIDTH,
            method=SGD(RATE, momentum=0.0, schedule="constant"),
            epochs=epochs,
            coordinates=coordinates,
            snapshots=shots,
        )
        descent[coordinates] = run.snapshots
    rank = chosen_rank(task.X, task.y)
    return Result(task, descent["raw"], descent["whitened"], program(task.X, task.y, None), program(task.X, task.y, rank), rank)


def energy(X: np.ndarray, network: Network) -> np.ndarray:
    """The share of each direction in the penalty: sum_j ||v_j|| s_jk^2 / ||s_j||, over its sum over the r directions."""
    directions, outputs = neurons_of(whiten(X, rank=min(X.shape)), network)
    share: np.ndarray = np.linalg.norm(outputs, axis=1) @ directions[:, :-1] ** 2
    return share / share.sum()


def print_table(results: list[Result]) -> None:
    """Test errors, and how much of the penalty lies in the leading directions."""
    table = Table(title="mean squared error on the test samples")
    for column in ("data", "method", "best epoch", "best", "last", "share of the leading 4"):
        table.add_column(column)
    for result in results:
        for name, networks in (("descent, raw", result.raw), ("descent, whitened", result.whitened)):
            errors = {epoch: result.task.error(network) for epoch, network in networks.items()}
            best, last = min(errors, key=lambda epoch: errors[epoch]), max(errors)
            share = energy(result.task.X, networks[last])[:4].sum()
            table.add_row(result.task.name, name, str(best), f"{errors[best]:.3f}", f"{errors[last]:.3f}", f"{share:.0%}")
        for name, network in (("convex", result.full), (f"convex, rank {result.rank}", result.truncated)):
            share = energy(result.task.X, network)[:4].sum()
            table.add_row(result.task.name, name, "", "", f"{result.task.error(network):.3f}", f"{share:.0%}")
    Console(width=110).print(table)


def draw(results: list[Result], target: Path) -> None:
    """A row for each data set: energy over time on raw and whitened weights, that of the programs, the test errors."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False})
    ratios = 1.25, 1.25, 0.35, 1.6
    figure, rows = plt.subplots(len(results), 4, figsize=(13, 3.4 * len(results)), layout="constrained", width_ratios=ratios, squeeze=False)
    for axes, result in zip(rows, results, strict=True):
        for axis, networks, title in zip(axes, (result.raw, result.whitened), ("raw weights", "whitened weights"), strict=False):
            draw_energy(axis, list(networks), [energy(result.task.X, network) for network in networks.values()])
            axis.set_title(f"descent on {title}", loc="left", fontsize=9.5)
        axes[0].set_ylabel(f"{result.task.name}\nsingular direction, strong to weak")
        shown = draw_strips(axes[2], [energy(result.task.X, network) for network in (result.truncated, result.full)], result.rank)
        draw_errors(axes[3], result)
        figure.colorbar(shown, ax=axes[2], fraction=0.25, label="log10 of the share of the penalty")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)
    plt.close(figure)


SCALE = {"cmap": "magma_r", "vmin": -3.5, "vmax": -0.5}  # of the decimal logarithm of a share


def logarithm(shares: list[np.ndarray]) -> np.ndarray:
    """Directions as rows, the least first; nothing at all is shown as 1e-6."""
    logarithms: np.ndarray = np.log10(np.maximum(np.array(shares).T, 1e-6))
    return logarithms


def draw_energy(axis: Any, epochs: list[int], shares: list[np.ndarray]) -> None:
    """A column for each epoch."""
    axis.pcolormesh(epochs, np.arange(1, len(shares[0]) + 1), logarithm(shares), shading="nearest", **SCALE)
    axis.set(xscale="log", xlabel="epoch")
    axis.invert_yaxis()


def draw_strips(axis: Any, shares: list[np.ndarray], rank: int) -> Any:
    """A column for each of the two programs."""
    shown = axis.pcolormesh([0, 1], np.arange(1, len(shares[0]) + 1), logarithm(shares), shading="nearest", **SCALE)
    axis.set_xticks([0, 1], [f"rank {rank}", "all"])
    axis.set_title("convex", loc="left", fontsize=9.5)
    axis.invert_yaxis()
    return shown


def draw_errors(axis: Any, result: Result) -> None:
    """Over time for descent, as lines for the programs."""
    for networks, colour, label in ((result.raw, ORANGE, "descent, raw"), (result.whitened, BLUE, "descent, whitened")):
        axis.plot(list(networks), [result.task.error(network) for network in networks.values()], color=colour, label=label)
    axis.axhline(result.task.error(result.full), color=GREY, ls=(0, (4, 3)), lw=1.2, label="convex, all directions")
    axis.axhline(result.task.error(result.truncated), color=GREEN, lw=1.6, label=f"convex, rank {result.rank} by validation")
    axis.set(xscale="log", yscale="log", xlabel="epoch", yticks=(0.05, 0.1, 0.2, 0.5, 1.0), yticklabels=("0.05", "0.1", "0.2", "0.5", "1"))
    axis.yaxis.minorticks_off()
    axis.set_title("mean squared error, test", loc="left", fontsize=9.5)
    axis.grid(alpha=0.25, lw=0.5)
    axis.legend(frameon=False, fontsize=8.5, loc="lower left", bbox_to_anchor=(0.0, 0.06))


def main() -> None:
    """Both tasks, the table, and the picture where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds: fewer samples and epochs, made data alone")
    parser.add_argument("--picture", type=Path, metavar="PATH")
    arguments = parser.parse_args()
    samples, directions, epochs, count = (40, 6, 30, 1) if arguments.quick else (200, 50, 3000, 2)
    results = [solve(task, epochs) for task in tasks(samples, directions)[:count]]
    print_table(results)
    if arguments.picture:
        draw(results, arguments.picture)


if __name__ == "__main__":
    main()
