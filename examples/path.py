"""From the zero network to overfitting: the regularisation path of breast cancer, with what is proved and what generalises.

    OMP_NUM_THREADS=1 python examples/path.py [--quick] [--picture PATH]

Logistic loss, 569 samples, 30 features. Each point is the global optimum at its beta, solved from the point before; the bound
beside it is proved over all networks of every width. Five-fold cross-validation along the same betas says which one to take.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import StratifiedKFold

from convexbn.estimators import ConvexBNClassifierCV
from convexbn.path import Path as RegularisationPath
from convexbn.path import fit_path

BLUE, GREY, ORANGE = "#1f5fa8", "#444444", "#c96a1b"


def print_table(path: RegularisationPath, model: ConvexBNClassifierCV) -> None:
    """A row for each beta."""
    table = Table(title="breast cancer, logistic loss")
    for column in ("beta / beta_max", "objective", "bound, proved", "gap, proved", "gap, estimated", "neurons", "held-out log loss"):
        table.add_column(column, justify="right")
    for fit, score in zip(path.fits, model.scores_.mean(axis=0), strict=True):
        certificate = fit.certificate
        numbers = (
            f"{certificate.objective:.6g}",
            f"{certificate.bound:.6g}",
            f"{certificate.relative_gap:.1e}",
            f"{certificate.estimated_gap:.1e}",
        )
        mark = " *" if fit.program.beta == model.beta_ else ""
        table.add_row(f"{fit.program.beta / path.beta_max:.4f}", *numbers, str(fit.network.neurons), f"{-score:.4f}{mark}")
    Console(width=110).print(table)


def draw(path: RegularisationPath, model: ConvexBNClassifierCV, target: Path) -> None:
    """Objective with its bound, neurons, and the cross-validated loss, above each other, with one axis of betas."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(3, 1, figsize=(8.2, 8.6), sharex=True, layout="constrained", height_ratios=(1.5, 0.8, 1.2))
    path.plot((axes[0], axes[1]))
    axes[1].set_xlabel("")
    draw_scores(axes[2], path, model)
    titles = (
        "the objective and how far below it the optimum can be",
        "its neurons",
        "the loss of held-out samples, five folds",
    )
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title, loc="left", fontsize=10.5)
        panel.axvline(model.beta_ / path.beta_max, color=ORANGE, lw=1, ls=(0, (4, 3)))
        panel.grid(alpha=0.25, lw=0.5)
    axes[2].set_xlabel(r"$\beta\,/\,\beta_{\max}$")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=140)
    plt.close(figure)


def draw_scores(panel: Any, path: RegularisationPath, model: ConvexBNClassifierCV) -> None:
    """The mean log loss of held-out samples, with its standard error over the folds."""
    ticks = 0.1, 0.2, 0.3, 0.5, 0.7
    fractions, losses = model.betas_ / path.beta_max, -model.scores_
    mean, error = losses.mean(axis=0), losses.std(axis=0, ddof=1) / np.sqrt(len(losses))
    panel.fill_between(fractions, mean - error, mean + error, color=ORANGE, alpha=0.18, lw=0, label="standard error")
    panel.plot(fractions, mean, "o-", color=ORANGE, ms=4, lw=1.2, label="mean")
    panel.plot(model.beta_ / path.beta_max, mean.min(), "o", color="white", mec=ORANGE, mew=1.6, ms=8, label="the chosen beta")
    panel.set(ylabel="log loss", yscale="log", yticks=ticks, yticklabels=[f"{tick:g}" for tick in ticks])
    panel.yaxis.minorticks_off()
    panel.legend(frameon=False, loc="lower right")


def main() -> None:
    """The path, the cross-validation along its betas, the table, and the picture where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds: a part of the data, few betas, two folds")
    parser.add_argument("--picture", type=Path, metavar="PATH")
    arguments = parser.parse_args()
    X, y = load_breast_cancer(return_X_y=True)
    X, y = (X[:120, :6], y[:120]) if arguments.quick else (X, y)
    count, smallest, folds = (4, 0.1, 2) if arguments.quick else (8, 0.01, 5)
    path = fit_path(X, np.where(y == 1, 1.0, -1.0), betas=count, smallest=smallest, loss="logistic")
    splits = StratifiedKFold(folds, shuffle=True, random_state=0)
    model = ConvexBNClassifierCV(betas=path.betas, cv=splits).fit(X, y)
    print_table(path, model)
    if arguments.picture:
        draw(path, model, arguments.picture)


if __name__ == "__main__":
    main()
