"""Neural collapse is what the global optimum looks like: exact at the optimum of a deep network, slow in its training.

    OMP_NUM_THREADS=1 python examples/neural_collapse.py [--quick] [--picture PATH]

100 digits, 10 of each class, one-hot squared loss. Two random layers with batch normalisation give features of rank n - 1: the last
two layers are then optimal in closed form, and no depth and no training of all layers does better. Beside it Adam trains all three
hidden layers on the same objective.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from convexbn import NeuralCollapse, fit_convex_bn, neural_collapse, random_layers
from convexbn.fit import Fit
from convexbn.training import Adam, train_model

BLUE, GREY, ORANGE = "#1f5fa8", "#444444", "#c96a1b"
CLASSES = 10


def balanced_digits(each: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of each digit, (n, 64) with pixels in [0, 1], and their digits."""
    pixels, digit = load_digits(return_X_y=True)
    chosen = np.concatenate([np.flatnonzero(digit == c)[:each] for c in range(CLASSES)])
    return pixels[chosen] / 16.0, digit[chosen]


def deep_network(width: int) -> nn.Sequential:
    """Three hidden layers, as PyTorch initialises them."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (64, width, width):
        layers += [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES, bias=False)).double()


def hidden(model: nn.Sequential, X: np.ndarray) -> np.ndarray:
    """What the last layer reads, with the statistics of all samples."""
    with torch.no_grad():
        activations: np.ndarray = model[:-1].train()(torch.as_tensor(X)).numpy()
    return activations


def train(X: np.ndarray, labels: np.ndarray, beta: float, width: int, stops: list[int]) -> list[tuple[int, float, NeuralCollapse]]:
    """Adam on all layers in full batches, its rate falling to 0 before each stop; there the objective and the collapse so far."""
    model, done, seen = deep_network(width), 0, []
    for stop in stops:
        method = Adam(learning_rate=0.01)
        run = train_model(model, X, np.eye(CLASSES)[labels], loss="squared", beta=beta, method=method, epochs=stop - done, batch_size=None)
        model, done = run.model, stop
        seen.append((stop, len(X) * float(run.history[-1]), neural_collapse(hidden(model, X), labels)))
        print(f"Adam, step {stop:5d}: objective {seen[-1][1]:.4f}, {seen[-1][2]}")
    return seen


def draw(seen: list[tuple[int, float, NeuralCollapse]], optimum: NeuralCollapse, raw: NeuralCollapse, fit: Fit, target: Path) -> None:
    """The objective and both signs of collapse along training, and the angles between the class means, before and after."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(10.5, 6.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    objective, signs = above.subplots(1, 2)
    steps = [step for step, _, _ in seen]
    lowest = fit.certificate.objective
    objective.plot(steps, [value / lowest - 1.0 for _, value, _ in seen], "o-", color=ORANGE, ms=4, label="Adam, all layers")
    objective.set(
        xscale="log", yscale="log", xlabel="step", ylabel="objective / optimum - 1", title="no training ends below the closed form"
    )
    signs.plot(steps, [found.within for _, _, found in seen], "o-", color=ORANGE, ms=4, label="within-class variability")
    signs.plot(steps, [found.angles for _, _, found in seen], "s--", color=ORANGE, ms=4, label="angles between class means")
    signs.axhline(max(optimum.within, optimum.angles), color=BLUE, label="both, at the optimum, are rounding")
    signs.set(xscale="log", yscale="log", xlabel="step", ylabel="distance from collapse", title="collapse is where it is going")
    for axes in (objective, signs):
        axes.legend(frameon=False)
    titles = ("pixels", f"Adam, step {steps[-1]}", "the optimum: a simplex")
    for axes, found, title in zip(below.subplots(1, 3), (raw, seen[-1][2], optimum), titles, strict=True):
        image = axes.imshow(found.cosines, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set(xticks=range(CLASSES), yticks=range(CLASSES), title=title)
    below.colorbar(image, ax=below.axes, label="cosine between class means")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)


def main() -> None:
    """Solve in closed form, train all layers, measure both, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 images of each class and a short training")
    parser.add_argument("--picture", type=Path, default=Path("output/neural_collapse.png"))
    arguments = parser.parse_args()
    each, width = (5, 100) if arguments.quick else (10, 200)
    X, labels = balanced_digits(each)
    layers = random_layers(X, [width, width])
    fit = fit_convex_bn(X, np.eye(CLASSES)[labels], features=layers)
    print(fit)
    with torch.no_grad():
        optimum = neural_collapse(fit.network.activations(layers(torch.as_tensor(X)).numpy()), labels)
    print(f"the optimum: objective {fit.certificate.objective:.4f}, {optimum}")
    seen = train(X, labels, fit.program.beta, width, [3, 30] if arguments.quick else [3, 10, 30, 100, 300, 1000, 3000])
    draw(seen, optimum, neural_collapse(X, labels), fit, arguments.picture)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
