"""One layer of convolution on digits: the global optimum beside what Adam reaches on the same network and objective.

    OMP_NUM_THREADS=1 python examples/convolution.py [--quick] [--picture PATH]

150 images of a 3 or an 8, 3x3 patches, batch normalisation over all patches, average pooling, logistic loss with weight decay.
Adam trains the exported architecture in PyTorch, width 30, with three learning rates and some starts each; every end point is
read back and judged by the network's own objective, as ours is.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import nn

from convexbn import Network, Patches, fit_convex_bn, from_torch
from convexbn.fit import Fit
from convexbn.training import Adam, ModelRun, train_model

BLUE, GREY, ORANGE = "#1f5fa8", "#444444", "#c96a1b"
WIDTH, RATES = 30, (0.3, 0.1, 0.03)
GEOMETRY = {"kernel_size": 3, "stride": 2, "padding": 1}


def threes_and_eights() -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 1, 8, 8) with pixels in [0, 1], and +1 for a 3, -1 for an 8."""
    pixels, digit = load_digits(return_X_y=True)
    chosen = (digit == 3) | (digit == 8)
    return pixels[chosen].reshape(-1, 1, 8, 8) / 16.0, np.where(digit[chosen] == 3, 1.0, -1.0)


def module(seed: int) -> nn.Sequential:
    """The architecture as PyTorch initialises it."""
    torch.manual_seed(seed)
    layers = (nn.Conv2d(1, WIDTH, bias=False, **GEOMETRY), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1, bias=False)).double()


def train(X: np.ndarray, y: np.ndarray, beta: float, starts: int, epochs: int) -> list[tuple[ModelRun, Network]]:
    """Full-batch Adam from each start with each rate, and the network that it ends at, normalisation balanced."""
    settings = [(Adam(learning_rate=rate), module(seed)) for rate in RATES for seed in range(starts)]
    runs = [train_model(start, X, y, loss="logistic", beta=beta, method=m, epochs=epochs, batch_size=None) for m, start in settings]
    return [(run, from_torch(run.model, X).balanced()) for run in runs]


def print_table(fit: Fit, adam: np.ndarray) -> None:
    """Objectives, all of networks and from the raw images."""
    table = Table(title="3 or 8, 3x3 patches: logistic loss and weight decay")
    for column in ("network", "objective", "neurons"):
        table.add_column(column, justify="left" if column == "network" else "right")
    certificate = fit.certificate
    table.add_row("convexbn", f"{certificate.objective:.6f}", str(fit.network.neurons))
    table.add_row("optimum (estimated)", f"{certificate.estimate:.6f}", "")
    table.add_row("optimum (proved: at least)", f"{certificate.bound:.6f}", "")
    table.add_row(f"Adam, best of {len(adam)}", f"{adam.min():.6f}", str(WIDTH))
    table.add_row(f"Adam, median of {len(adam)}", f"{np.median(adam):.6f}", str(WIDTH))
    Console(width=100).print(table)


def draw(fit: Fit, runs: list[tuple[ModelRun, Network]], samples: int, target: Path) -> None:
    """Adam's objectives against the optimum, and the filters of the optimal network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (curves, filters) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for number, (run, _) in enumerate(runs):
        curves.plot(samples * run.history, color=ORANGE, lw=0.8, alpha=0.6, label="" if number else "Adam, every start and rate")
    curves.axhline(fit.certificate.objective, color=BLUE, lw=1.6, label=f"convexbn: {fit.certificate.objective:.4f}")
    low = fit.certificate.objective
    curves.set(xscale="log", xlabel="step", ylabel="objective", ylim=(0.9 * low, 3.0 * low), title="the same network, the same objective")
    curves.legend(frameon=False, loc="upper right")
    filters.imshow(mosaic(fit), cmap="RdBu_r", vmin=-1, vmax=1)
    filters.set_title("filters at the optimum: for a 3 above, for an 8 below")
    filters.axis("off")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)


def mosaic(fit: Fit) -> np.ndarray:
    """The filters times gain, each divided by its largest weight, in rows by the sign of the output and by its size."""
    network = fit.network
    outputs = network.outputs[:, 0]
    rows = [np.flatnonzero(sign * outputs > 0) for sign in (1.0, -1.0)]
    longest = max(map(len, rows))
    image = np.full((8, 4 * longest), np.nan)
    for line, members in enumerate(rows):
        for place, j in enumerate(members[np.argsort(-np.abs(outputs[members]))]):
            weights = network.weights[j].reshape(3, 3)
            image[4 * line : 4 * line + 3, 4 * place : 4 * place + 3] = weights / np.max(np.abs(weights))
    return image[:7, :-1]


def main() -> None:
    """Solve, train, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="30 images and a short training")
    parser.add_argument("--picture", type=Path, default=Path("output/convolution.png"))
    arguments = parser.parse_args()
    X, y = threes_and_eights()
    X, y = (X[:30], y[:30]) if arguments.quick else (X[:150], y[:150])
    fit = fit_convex_bn(X, y, loss="logistic", patches=Patches(3, stride=2, padding=1), proof_seconds=0.1 if arguments.quick else 5.0)
    print(fit)
    runs = train(X, y, fit.program.beta, *((1, 20) if arguments.quick else (3, 1000)))
    adam = np.array([network.objective(X, y, fit.program.loss, fit.program.beta) for _, network in runs])
    print_table(fit, adam)
    draw(fit, runs, len(y), arguments.picture)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
