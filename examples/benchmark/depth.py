"""The closed form against SGD and Adam on all layers, at depth 2, 3 and 5: one optimum for every depth.

    OMP_NUM_THREADS=1 python examples/benchmark/depth.py [--epochs 2000] [--picture output/depth.png]

50 digits with 64 pixels, one-hot squared loss, weight decay. The optimum is the same at every depth, and the network that attains
it is found in closed form: on the pixels at depth 2, on random layers beyond. Gradient methods train all layers in full batches,
width 100, as PyTorch initialises them, with the best of three learning rates each. Their objective includes the decay of the inner
normalisations, which costs nothing in the limit.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import nn

from convexbn import fit_convex_bn, random_layers
from convexbn.fit import Fit
from convexbn.training import SGD, Adam, ModelRun, train_model

WIDTH = 100
METHODS = {
    "SGD": [SGD(learning_rate=rate) for rate in (0.01, 0.03, 0.1)],
    "Adam": [Adam(learning_rate=rate) for rate in (0.003, 0.01, 0.03)],
}
NEAR = 0.01
COLOURS = {"SGD": "#7f7f7f", "Adam": "#d95f02", "closed form": "#1f5fbf"}


class Curve(NamedTuple):
    """What a method has reached, and after how many CPU seconds."""

    seconds: np.ndarray
    objective: np.ndarray


def fifty_digits() -> tuple[np.ndarray, np.ndarray]:
    """The first five images of each digit, (50, 64) with pixels in [0, 1], and one-hot rows."""
    pixels, digit = load_digits(return_X_y=True)
    chosen = np.concatenate([np.flatnonzero(digit == c)[:5] for c in range(10)])
    return pixels[chosen] / 16.0, np.eye(10)[digit[chosen]]


def closed_form(X: np.ndarray, Y: np.ndarray, depth: int) -> Fit:
    """The optimum at that depth: depth - 2 random layers below the last two."""
    features = random_layers(X, [WIDTH] * (depth - 2)) if depth > 2 else None
    return fit_convex_bn(X, Y, features=features, solver="closed form")


def network(depth: int) -> nn.Sequential:
    """depth - 1 hidden layers."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (64, *[WIDTH] * (depth - 2)):
        layers += [nn.Linear(inputs, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10, bias=False)).double()


def train(X: np.ndarray, Y: np.ndarray, beta: float, depth: int, name: str, epochs: int) -> ModelRun:
    """The run with the lowest end among the learning rates."""
    model = network(depth)
    runs = [train_model(model, X, Y, loss="squared", beta=beta, method=m, epochs=epochs, batch_size=None) for m in METHODS[name]]
    return min(runs, key=lambda run: float(np.nan_to_num(run.history[-1], nan=np.inf)))


def draw(curves: dict[int, dict[str, Curve]], target: Path) -> None:
    """A panel for each depth: objectives of training against time, and the optimum as a line from when it is known."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(1, len(curves), figsize=(10.5, 3.6), sharex=True, sharey=True, layout="constrained")
    for axes, (depth, methods) in zip(panels, curves.items(), strict=True):
        for name, (seconds, objective) in methods.items():
            line = {"linewidth": 2.0, "marker": "o", "markevery": [0]} if name == "closed form" else {"linewidth": 1.2}
            axes.plot(seconds, objective, color=COLOURS[name], label=name, **line)
        axes.set(xscale="log", yscale="log", title=f"depth {depth}", xlabel="CPU seconds")
    optimum = panels[0].get_lines()[0].get_ydata()[0]
    panels[0].set(ylabel="objective", ylim=(0.97 * optimum, 8 * optimum))
    ticks = [5, 6, 8, 10, 15, 20, 30]
    panels[0].set_yticks(ticks, map(str, ticks))
    panels[0].minorticks_off()
    panels[-1].legend(frameon=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)


def main() -> None:
    """A row for each depth and method, and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--picture", type=Path, default=Path("output/depth.png"))
    arguments = parser.parse_args()
    X, Y = fifty_digits()
    curves: dict[int, dict[str, Curve]] = {}
    table = Table(title="50 digits, ten classes: objective, and CPU seconds")
    for column in ("depth", "method", "objective", "above the optimum", "seconds", f"to within {NEAR:.0%}"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for depth in (2, 3, 5):
        begun = time.process_time()
        fit = closed_form(X, Y, depth)
        optimum = fit.certificate.objective
        gap = f"{fit.certificate.relative_gap:.0e}, proved"
        known = time.process_time() - begun
        table.add_row(str(depth), "closed form", f"{optimum:.6f}", gap, f"{known:.2f}", "")
        curves[depth] = {"closed form": Curve(np.array([known]), np.array([optimum]))}
        for name in METHODS:
            begun = time.process_time()
            run = train(X, Y, fit.program.beta, depth, name, arguments.epochs)
            seconds = (time.process_time() - begun) / len(METHODS[name])
            values = len(X) * run.history
            curves[depth][name] = Curve(seconds * np.arange(1, len(values) + 1) / len(values), values)
            near = np.flatnonzero(values <= (1.0 + NEAR) * optimum)
            reached = f"{seconds * near[0] / arguments.epochs:.2f}" if len(near) else "never"
            table.add_row(str(depth), name, f"{values[-1]:.6f}", f"{values[-1] / optimum - 1.0:.1e}", f"{seconds:.2f}", reached)
        last = max(curve.seconds[-1] for curve in curves[depth].values())
        curves[depth]["closed form"] = Curve(np.array([known, last]), np.array([optimum, optimum]))
    Console(width=100).print(table)
    draw(curves, arguments.picture)


if __name__ == "__main__":
    main()
