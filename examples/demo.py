"""Two real data sets, trained to the global optimum, beside Adam on the very same objective.

    make demo        or        python examples/demo.py [--output FOLDER] [--quick]

Prints each fit, a table of objectives, and writes FOLDER/demo.png (FOLDER is `output` by default).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from convexbn import Evidence, Fit, fit_convex_bn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from convexbn.training import TrainingRun

OURS, ADAM, INK = "#1f5fa8", "#d98c3f", "#444444"


@dataclass(frozen=True)
class Task:
    """Data and a loss."""

    name: str
    X: np.ndarray
    y: np.ndarray
    loss: str


@dataclass(frozen=True)
class Effort:
    """How much of the data is used, and what Adam may spend: each rate trains all starts, and the best objective chooses the rate."""

    samples: int | None = None
    features: int | None = None
    rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    starts: int = 5
    steps: int = 1000
    width: int = 100


QUICK = Effort(samples=100, features=4, rates=(0.1, 0.3), starts=2, steps=150, width=50)


@dataclass(frozen=True)
class Comparison:
    """One task: our fit, Adam's runs at its best rate, their objectives on the raw data, and the time of all rates together."""

    task: Task
    fit: Fit
    runs: list[TrainingRun]
    objectives: np.ndarray
    rate: float
    tuning_seconds: float


def load(effort: Effort) -> list[Task]:
    """Diabetes, centred, as the networks have no output bias; breast cancer with labels -1 and +1. Features stay as they are."""
    from sklearn.datasets import load_breast_cancer, load_diabetes

    progress, disease = load_diabetes(return_X_y=True), load_breast_cancer(return_X_y=True)
    (X, y), (Z, labels) = ((X[: effort.samples, : effort.features], y[: effort.samples]) for X, y in (progress, disease))
    return [
        Task("Diabetes, squared loss", X, y - y.mean(), "squared"),
        Task("Breast cancer, logistic loss", Z, 2.0 * labels - 1.0, "logistic"),
    ]


def train(task: Task) -> Fit:
    """Fit with the defaults; a solver or a proof that was interrupted returns what it has, but here the user wants out."""
    fit = fit_convex_bn(task.X, task.y, loss=task.loss)
    if fit.interrupted:
        raise KeyboardInterrupt
    return fit


def compare(task: Task, fit: Fit, effort: Effort) -> Comparison:
    """Train with Adam for the same objective, and judge all networks by the same function."""
    from convexbn.training import Adam, train_networks

    beta, loss = fit.program.beta, fit.program.loss
    settings = {"beta": beta, "loss": loss, "width": effort.width, "starts": effort.starts, "epochs": effort.steps}
    trained = {rate: train_networks(task.X, task.y, method=Adam(rate), **settings) for rate in effort.rates}
    objectives = {rate: np.array([run.network.objective(task.X, task.y, loss, beta) for run in runs]) for rate, runs in trained.items()}
    rate = min(effort.rates, key=lambda rate: objectives[rate].min())
    return Comparison(task, fit, trained[rate], objectives[rate], rate, sum(runs[0].seconds for runs in trained.values()))


def export_error(fit: Fit, X: np.ndarray) -> float:
    """The largest difference between the exported PyTorch model, in eval() and in train(), and the network, relative to its outputs."""
    import torch

    model, expected = fit.to_torch(), fit.predict(X)
    rows = torch.as_tensor(X)
    with torch.no_grad():
        outputs = [mode(rows).numpy()[:, 0] for mode in (model.eval(), model.train())]
    return max(float(np.max(np.abs(output - expected))) for output in outputs) / float(np.max(np.abs(expected)))


def reference(fit: Fit) -> tuple[float, str]:
    """The tightest bound at hand and the word for what it rests on."""
    certificate = fit.certificate
    if certificate.evidence is Evidence.PROVED and certificate.estimate > certificate.bound:
        return certificate.estimate, "estimated"
    return certificate.bound, certificate.evidence.value


def excess(objective: float | np.ndarray, fit: Fit) -> np.ndarray:
    """How far objectives lie above that bound, in percent of it."""
    return 100.0 * (np.asarray(objective) / reference(fit)[0] - 1.0)


def show(console: Console, comparison: Comparison, effort: Effort) -> None:
    """Print the table of one task."""
    fit, objectives = comparison.fit, comparison.objectives
    level, word = reference(fit)
    table = Table("", "objective", f"above the bound ({word})", "time", "neurons")
    for column in table.columns[1:]:
        column.justify = "right"
    rows = [
        ("convexbn", fit.certificate.objective, sum(fit.seconds.values()), fit.network.neurons),
        (f"Adam, best of {effort.starts} starts", objectives.min(), comparison.runs[0].seconds, effort.width),
        (f"Adam, worst of {effort.starts} starts", objectives.max(), comparison.runs[0].seconds, effort.width),
    ]
    for name, objective, seconds, neurons in rows:
        table.add_row(name, f"{objective:.8g}", f"{float(excess(objective, fit)):.4f} %", f"{seconds:.1f} s", str(neurons))
    table.add_section()
    for name, bound in {f"bound ({word})": level, f"bound ({fit.certificate.evidence.value})": fit.certificate.bound}.items():
        table.add_row(name, f"{bound:.8g}", f"{float(excess(bound, fit)):.4f} %", "", "")
    console.print(table)
    rates = ", ".join(f"{rate:g}" for rate in effort.rates)
    console.print(
        f"Adam: {effort.steps} steps, all starts side by side; learning rate {comparison.rate:g}, the best of {rates}, "
        f"which took {comparison.tuning_seconds:.1f} s together.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"PyTorch export: outputs agree to {export_error(fit, comparison.task.X):.0e} of the largest.", highlight=False)


def picture(comparisons: list[Comparison], path: Path) -> None:
    """Objective against time, in percent above the tightest bound."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK}):
        figure, axes = plt.subplots(1, len(comparisons), figsize=(11, 4.6), layout="constrained", squeeze=False)
        for panel, comparison in zip(axes[0], comparisons, strict=True):
            draw(panel, comparison)
        axes[0, 0].set_ylabel("objective above the bound (%)")
        entries = {label: handle for panel in axes[0] for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)
        plt.close(figure)


def draw(panel: Axes, comparison: Comparison) -> None:
    """One task: Adam's best objective so far from each start, ours, and the tightest bound; the proved one where it is another."""
    fit, runs = comparison.fit, comparison.runs
    total = sum(fit.seconds.values())
    end = 1.03 * max(total, runs[0].seconds)
    for i, run in enumerate(runs):
        times, best = np.linspace(0.0, run.seconds, len(run.history)), np.minimum.accumulate(run.history)
        label = None if i else f"Adam, best so far of each of {len(runs)} starts"
        panel.plot(times, excess(best, fit), color=ADAM, lw=1.1, alpha=0.8, label=label)
    before = fit.seconds["whiten"] + fit.seconds["arrange"]
    times = np.array([before + entry.seconds for entry in fit.solution.trace] + [total, end])
    values = np.array([entry.objective for entry in fit.solution.trace] + 2 * [fit.certificate.objective])
    panel.plot(times, excess(np.minimum.accumulate(values), fit), color=OURS, lw=2.2, label="convexbn")
    ours = float(excess(fit.certificate.objective, fit))
    panel.plot(total, ours, "o", color=OURS, ms=6)
    heights = [0.0, ours, *excess(comparison.objectives, fit)]
    low, span = min(heights), max(heights) - min(heights)
    panel.set(xlim=(0.0, end), ylim=(low - 0.12 * span, max(heights) + 0.9 * span), xlabel="time (seconds)")
    panel.axhspan(low - span, 0.0, color=INK, alpha=0.12, lw=0)
    panel.axhline(0.0, color=INK, lw=1.2, ls="--", label=f"bound ({reference(fit)[1]})")
    proved = float(excess(fit.certificate.bound, fit))
    if proved < 0.0:
        note = f"the {fit.certificate.evidence.value} bound is {-proved:.2g} % below"
        panel.text(0.99 * end, low - 0.06 * span, note, ha="right", va="center", fontsize=9, color=INK)
    panel.set_title(comparison.task.name, loc="left", fontsize=11.5, fontweight="bold")


def main(arguments: list[str] | None = None) -> None:
    """Run both tasks."""
    parser = argparse.ArgumentParser(description="Two real data sets, trained to the global optimum, beside Adam.")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder of the picture (default: output)")
    parser.add_argument("--quick", action="store_true", help="100 samples, 4 features and a small budget for Adam, for tests")
    chosen = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 100)
    effort = QUICK if chosen.quick else Effort()
    comparisons = []
    for task in load(effort):
        console.print(f"\n[bold]{task.name}[/bold]")
        fit = train(task)
        console.print(str(fit), markup=False, highlight=False, soft_wrap=True)
        comparisons.append(compare(task, fit, effort))
        show(console, comparisons[-1], effort)
    picture(comparisons, chosen.output / "demo.png")
    console.print(f"\nPicture: {chosen.output / 'demo.png'}", highlight=False)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\ndemo: interrupted, no picture was written", file=sys.stderr)
        sys.exit(130)
