"""How many principal directions should a network with batch normalisation read? Truncation, chosen by cross-validation.

    OMP_NUM_THREADS=1 python examples/truncation.py [--quick] [--picture PATH]

Breast cancer, 569 samples with 30 standardised features, logistic loss. Whitened, a direction of tiny variance costs a network as
little as any other: read them all, and noise is fitted. For each rank k, globally optimal networks on the k leading directions
along a path of betas; five folds choose rank and beta. The chosen network still reads the 30 features as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import StratifiedKFold

from convexbn import ConvexBNClassifierCV, whiten

RANKS = (1, 2, 4, 7, 12, 20, 30)
BLUE, ORANGE, GREY = "#1f5fa8", "#c96a1b", "#444444"


def shares(X: np.ndarray) -> np.ndarray:
    """The share of the variance in the k leading directions, for each rank."""
    return np.array([whiten(X, rank=rank).energy for rank in RANKS])


def held_out(model: ConvexBNClassifierCV) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each rank the mean log loss of held-out samples at its best beta, its standard error, and that beta's index."""
    losses = -model.scores_
    best = losses.mean(axis=0).argmin(axis=1)
    chosen = losses[:, np.arange(len(RANKS)), best]
    return chosen.mean(axis=0), chosen.std(axis=0, ddof=1) / np.sqrt(len(chosen)), best


def print_table(model: ConvexBNClassifierCV, variance: np.ndarray) -> None:
    """A row for each rank."""
    table = Table(title="breast cancer, logistic loss, globally optimal networks on the k leading directions")
    for column in ("k", "variance", "best beta", "held-out log loss", "standard error"):
        table.add_column(column, justify="right")
    for rank, share, mean, error, best in zip(RANKS, variance, *held_out(model), strict=True):
        mark = " *" if rank == model.rank_ else ""
        table.add_row(str(rank), f"{100 * share:.2f} %", f"{model.betas_[best]:.3g}", f"{mean:.4f}{mark}", f"{error:.4f}")
    Console(width=100).print(table)
    print(f"all data, rank {model.rank_}: {model.fit_.certificate}")


def draw(model: ConvexBNClassifierCV, variance: np.ndarray, target: Path) -> None:
    """The variance that is left out, and the held-out loss, against the rank."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    left.plot(RANKS[:-1], 100 * (1.0 - variance[:-1]), "o-", color=GREY, ms=5, lw=1.2)
    left.set(yscale="log", xlabel="directions k", ylabel="variance left out, %", title="what truncation leaves out")
    mean, error, _ = held_out(model)
    right.errorbar(RANKS, mean, error, fmt="o-", color=BLUE, ms=5, lw=1.2, capsize=3, label="at the best beta, standard error over folds")
    chosen = RANKS.index(model.rank_)
    right.plot(model.rank_, mean[chosen], "o", color="white", mec=ORANGE, mew=1.8, ms=9, label="chosen")
    right.set(xlabel="directions k", ylabel="held-out log loss", title="what it wins: five-fold cross-validation")
    right.legend(frameon=False)
    for panel in (left, right):
        panel.grid(alpha=0.25, lw=0.5)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=140)
    plt.close(figure)


def main() -> None:
    """Cross-validation over ranks and betas, the table, and the picture where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds: a part of the data, few betas, two folds")
    parser.add_argument("--picture", type=Path, metavar="PATH")
    arguments = parser.parse_args()
    X, y = load_breast_cancer(return_X_y=True)
    X, y = (X[:80], y[:80]) if arguments.quick else (X, y)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    count, smallest, folds = (2, 0.3, 2) if arguments.quick else (4, 0.05, 5)
    splits = StratifiedKFold(folds, shuffle=True, random_state=0)
    model = ConvexBNClassifierCV(ranks=RANKS, betas=count, smallest=smallest, cv=splits).fit(X, y)
    print_table(model, shares(X))
    if arguments.picture:
        draw(model, shares(X), arguments.picture)


if __name__ == "__main__":
    main()
