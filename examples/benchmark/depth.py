"""The closed form against SGD and Adam on all layers, at depth 2, 3 and 5: one optimum for every depth.

    OMP_NUM_THREADS=1 python examples/benchmark/depth.py [--epochs 2000]

50 digits with 64 pixels, one-hot squared loss, weight decay. The optimum is the same at every depth, and the network that attains
it is found in closed form: on the pixels at depth 2, on random layers beyond. Gradient methods train all layers in full batches,
width 100, as PyTorch initialises them, with the best of three learning rates each. Their objective includes the decay of the inner
normalisations, which costs nothing in the limit.
"""

import argparse
import time

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


def main() -> None:
    """A row for each depth and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2000)
    arguments = parser.parse_args()
    X, Y = fifty_digits()
    table = Table(title="50 digits, ten classes: objective, and CPU seconds")
    for column in ("depth", "method", "objective", "above the optimum", "seconds", f"to within {NEAR:.0%}"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for depth in (2, 3, 5):
        begun = time.process_time()
        fit = closed_form(X, Y, depth)
        optimum = fit.certificate.objective
        gap = f"{fit.certificate.relative_gap:.0e}, proved"
        table.add_row(str(depth), "closed form", f"{optimum:.6f}", gap, f"{time.process_time() - begun:.2f}", "")
        for name in METHODS:
            begun = time.process_time()
            run = train(X, Y, fit.program.beta, depth, name, arguments.epochs)
            seconds = (time.process_time() - begun) / len(METHODS[name])
            values = len(X) * run.history
            near = np.flatnonzero(values <= (1.0 + NEAR) * optimum)
            reached = f"{seconds * near[0] / arguments.epochs:.2f}" if len(near) else "never"
            table.add_row(str(depth), name, f"{values[-1]:.6f}", f"{values[-1] / optimum - 1.0:.1e}", f"{seconds:.2f}", reached)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
