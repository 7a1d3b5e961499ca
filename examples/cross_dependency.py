"""How strongly the layers of a deep network depend on each other while it trains, with and without batch normalisation.

    OMP_NUM_THREADS=1 python examples/cross_dependency.py [--quick] [--picture PATH]

Six hidden layers of 50 tanh units on 600 of scikit-learn's digits, full-batch gradient descent. For the middle weight W_4 and every
W_i the Frobenius norm of d^2 loss / dW_4 dW_i is estimated when the loss first falls below 2, 1, 0.5, ...: at equal loss, as the two
networks learn at different speeds. Weights before batch normalisation can be rescaled without any effect, and the norms with them;
so the product with ||W_4|| ||W_i|| is shown as well, which doesn't depend on that.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import nn

from convexbn.training.curvature import cross_dependency

LAYERS, CENTRE = 7, 3  # linear layers, and the index of the middle one
NAMES = ["$W_1$, of the inputs", *(f"$W_{i}$" for i in range(2, 7)), "$W_7$, of the outputs"]
KINDS = {"without": "without normalisation", "with": "with batch normalisation"}


def network(normalised: bool, width: int, seed: int) -> nn.Sequential:
    """64 inputs, six hidden layers, 10 outputs."""
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for i in range(LAYERS - 1):
        modules.append(nn.Linear(64 if i == 0 else width, width, dtype=torch.float64))
        modules += [nn.BatchNorm1d(width, dtype=torch.float64)] if normalised else []
        modules.append(nn.Tanh())
    model = nn.Sequential(*modules, nn.Linear(width, 10, dtype=torch.float64))
    for module in model:
        if isinstance(module, nn.Linear):  # the start that suits tanh, without which the network without normalisation hardly learns
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def digits(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels in [0, 1], centred, and classes."""
    X, y = load_digits(return_X_y=True)
    X = X[:samples] / 16.0
    return torch.as_tensor(X - X.mean(axis=0)), torch.as_tensor(y[:samples])


def trace(model: nn.Sequential, data: tuple[torch.Tensor, torch.Tensor], losses: list[float], rate: float, probes: int) -> np.ndarray:
    """The norms, shape (2, losses, layers), plain and times ||W_4|| ||W_i||, at the first step with each loss or less."""
    weights = [module.weight for module in model if isinstance(module, nn.Linear)]
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    rows: list[list[np.ndarray]] = []
    for _ in range(20_000):
        loss = nn.functional.cross_entropy(model(data[0]), data[1])
        while len(rows) < len(losses) and loss.item() <= losses[len(rows)]:
            norms = cross_dependency(loss, weights[CENTRE], weights, probes=probes)
            sizes = np.array([weight.detach().norm().item() for weight in weights])
            rows.append([norms, norms * sizes[CENTRE] * sizes])
        if len(rows) == len(losses):
            return np.array(rows).transpose(1, 0, 2)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    raise RuntimeError("the network didn't learn")


def print_table(title: str, losses: list[float], values: dict[str, np.ndarray]) -> None:
    """Norms of either network, a row for each loss."""
    table = Table(title=title, title_justify="left")
    for column in ("network", "loss", *(f"W_{i + 1}" for i in range(LAYERS))):
        table.add_column(column, justify="right")
    for kind, rows in values.items():
        for loss, row in zip(losses, rows, strict=True):
            table.add_row(kind, f"{loss:g}", *(f"{value:.2f}" for value in row))
        table.add_section()
    Console(width=100).print(table)


def draw(losses: list[float], results: dict[str, np.ndarray], path: Path) -> None:
    """Norms against the loss, one line a layer, for either network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, 2, figsize=(11.5, 8.6), layout="constrained", sharex=True, sharey="row")
    colours = plt.get_cmap("coolwarm")(np.linspace(0.0, 1.0, LAYERS))
    colours[CENTRE] = (0.15, 0.15, 0.15, 1.0)
    for column, kind in enumerate(results):
        for row in range(2):
            draw_panel(axes[row, column], losses, results[kind][:, row], colours)
        axes[0, column].set_title(KINDS[kind], loc="left", fontsize=12)
        axes[1, column].set_xlabel("loss, falling as training goes on")
    axes[0, 0].set_ylabel(r"$\|\partial^2 f/\partial W_4\partial W_i\|$")
    axes[1, 0].set_ylabel(r"$\|W_4\|\,\|W_i\|\,\|\partial^2 f/\partial W_4\partial W_i\|$, free of scale")
    axes[0, 0].invert_xaxis()
    figure.suptitle("With batch normalisation dependencies of layers begin higher and fall faster", fontsize=13, weight="bold")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=LAYERS, frameon=False, columnspacing=1.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_panel(panel: Any, losses: list[float], values: np.ndarray, colours: np.ndarray) -> None:
    """Medians over the seeds, shape (seeds, losses, layers), with their range."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    for i in range(LAYERS):
        panel.loglog(losses, np.median(values[..., i], axis=0), color=colours[i], lw=1.8, marker="o", ms=3, label=NAMES[i])
        panel.fill_between(losses, values[..., i].min(axis=0), values[..., i].max(axis=0), color=colours[i], alpha=0.1, lw=0)
    panel.set_xticks(losses, [f"{loss:g}" for loss in losses])
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.minorticks_off()
    panel.grid(alpha=0.25, lw=0.5)


def main() -> None:
    """Train either network from several seeds, print the medians, and draw the picture where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds: small networks, one seed")
    parser.add_argument("--picture", type=Path, metavar="PATH")
    arguments = parser.parse_args()
    width, samples, seeds, probes = (12, 120, 1, 4) if arguments.quick else (50, 600, 3, 12)
    losses = [2.0, 1.0] if arguments.quick else [2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02]
    data = digits(samples)
    results = {
        kind: np.array([trace(network(kind == "with", width, seed), data, losses, 0.1, probes) for seed in range(seeds)]) for kind in KINDS
    }
    medians = {kind: np.median(values, axis=0) for kind, values in results.items()}
    print_table("||d^2 loss / dW_4 dW_i||", losses, {kind: values[0] for kind, values in medians.items()})
    print_table("the same times ||W_4|| ||W_i||", losses, {kind: values[1] for kind, values in medians.items()})
    if arguments.picture:
        draw(losses, results, arguments.picture)


if __name__ == "__main__":
    main()
