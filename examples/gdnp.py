"""Learning a halfspace in normalised parameters: GDNP against gradient descent, Nesterov, batch and weight normalisation.

    OMP_NUM_THREADS=1 python examples/gdnp.py [--quick] [--picture PATH]

First the linear rate: over Gaussian data the direction takes the same steps with every activation, below the bound (1 - mu/L)^{2t}.
Then the risk on a Gaussian sample and on breast cancer (standardised), from the same starts. GDNP has no step to choose and
Nesterov's method takes 1 / smoothness; the others get the best step of a grid. GDNP needs a search for the length at every step,
some 50 passes over n numbers. At last the sigmoid, where a vanishing gradient is not a good minimum.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer

from convexbn.training.gdnp import GDNPRun, train_gdnp
from convexbn.training.halfspaces import EmpiricalHalfspaces, empirical_halfspaces, gaussian_halfspaces

TARGETS = (1e-4, 1e-8)
ROUNDING = 1e-12  # risks are compared down to here
# Colours that differ for every kind of sight, and lines.
STYLES = {
    "GDNP": ("#0072b2", "-"),
    "gradient descent": ("#000000", "--"),
    "Nesterov": ("#009e73", "-."),
    "batch normalisation": ("#d55e00", "-"),
    "weight normalisation": ("#cc79a7", (0, (5, 1))),
}
# A method takes the risk, the first weights, the number of steps and a step size relative to 1 / smoothness; it returns the iterates.
Method = Callable[[EmpiricalHalfspaces, np.ndarray, int, float], list[np.ndarray]]
# The step, the risks (starts, steps + 1) and the norms of the last gradients (starts,).
Result = tuple[str, np.ndarray, np.ndarray]


def gradient_descent(risk: EmpiricalHalfspaces, weights: np.ndarray, steps: int, size: float) -> list[np.ndarray]:
    """w - eta grad f(w)."""
    iterates = [weights]
    for _ in range(steps):
        iterates.append(iterates[-1] - size * unit_step(risk) * risk.gradient(iterates[-1]))
    return iterates


def nesterov(risk: EmpiricalHalfspaces, weights: np.ndarray, steps: int, size: float) -> list[np.ndarray]:
    """Gradient steps from w_t + (t - 1)/(t + 2) (w_t - w_{t-1})."""
    iterates, ahead = [weights], weights
    for t in range(1, steps + 1):
        iterates.append(ahead - size * unit_step(risk) * risk.gradient(ahead))
        ahead = iterates[-1] + (t - 1.0) / (t + 2.0) * (iterates[-1] - iterates[-2])
    return iterates


def normalised_descent(metric: Callable[[EmpiricalHalfspaces], np.ndarray]) -> Method:
    """One step of the direction w and the length g together, of the weights g w / sqrt(w^T M w)."""

    def run(risk: EmpiricalHalfspaces, weights: np.ndarray, steps: int, size: float) -> list[np.ndarray]:
        M, eta = metric(risk), size * unit_step(risk)
        g = np.sqrt(weights @ M @ weights)
        w, iterates = weights / g, [weights]
        for _ in range(steps):
            norm = np.sqrt(w @ M @ w)
            v = risk.gradient(g * w / norm)
            w, g = w - eta * g / norm * (v - (w @ v) / norm**2 * (M @ w)), g - eta * (w @ v) / norm
            iterates.append(g * w / np.sqrt(w @ M @ w))
        return iterates

    return run


def unit_step(risk: EmpiricalHalfspaces) -> float:
    """The inverse of the smoothness of f."""
    return 1.0 / (risk.activation.smoothness * risk.quotient.largest)


METHODS: dict[str, Method] = {
    "gradient descent": gradient_descent,
    "Nesterov": nesterov,
    "batch normalisation": normalised_descent(lambda risk: risk.quotient.covariance),
    "weight normalisation": normalised_descent(lambda risk: np.eye(len(risk.quotient.mean))),
}


def gaussian_moments(d: int, condition: float) -> tuple[np.ndarray, np.ndarray]:
    """S with eigenvalues from 1 / condition to 1 and u with u^T S^{-1} u = 0.49."""
    generator = np.random.default_rng(0)
    rotation = np.linalg.qr(generator.standard_normal((d, d)))[0]
    S = rotation * np.geomspace(1.0 / condition, 1.0, d) @ rotation.T
    v = generator.standard_normal(d)
    return S, S @ v * np.sqrt(0.49 / (v @ S @ v))


def gaussian_sample(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes N(+-u, S - u u^T), so that z = -y x is Gaussian."""
    S, u = gaussian_moments(d, 30.0)
    generator = np.random.default_rng(1)
    y = np.where(generator.random(n) < 0.5, -1.0, 1.0)
    return -y[:, None] * generator.multivariate_normal(u, S - np.outer(u, u), n), y


def breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    """Standardised features and labels -1 and +1."""
    X, y = load_breast_cancer(return_X_y=True)
    return (X - X.mean(axis=0)) / X.std(axis=0), 2.0 * y - 1.0


def value(risk: EmpiricalHalfspaces, weights: np.ndarray) -> float:
    """f(w)."""
    return float(np.mean(risk.activation.value(risk.rows @ weights)))


def optimum(risk: EmpiricalHalfspaces) -> float:
    """The least f of a convex risk, by a trust region method with the Hessian."""

    def hessian(w: np.ndarray) -> np.ndarray:
        return (risk.rows.T * risk.activation.curvature(risk.rows @ w)) @ risk.rows / len(risk.rows)

    start = np.zeros(risk.rows.shape[1])
    options = {"gtol": 1e-12, "maxiter": 500}
    return float(minimize(lambda w: value(risk, w), start, jac=risk.gradient, hess=hessian, method="trust-exact", options=options).fun)


def compare(risk: EmpiricalHalfspaces, steps: int, starts: int, grid: list[float]) -> dict[str, Result]:
    """Every method from the same starts; those with a step to choose at the one with the least median risk at the end."""
    runs = [train_gdnp(risk, steps=steps, seed=seed) for seed in range(starts)]
    first = [train_gdnp(risk, steps=0, seed=seed).weights for seed in range(starts)]
    last = np.array([np.linalg.norm(risk.gradient(run.weights)) for run in runs])
    results = {"GDNP": ("adaptive", np.array([run.values for run in runs]), last)}
    for name, method in METHODS.items():
        candidates = []
        for size in [1.0] if name == "Nesterov" else grid:
            iterates = [method(risk, weights, steps, size) for weights in first]
            risks = np.array([[value(risk, w) for w in path] for path in iterates])
            candidates.append((f"{size:g} / smoothness", risks, np.array([np.linalg.norm(risk.gradient(path[-1])) for path in iterates])))
        results[name] = min(candidates, key=lambda candidate: float(np.median(candidate[1][:, -1])))
    return results


def steps_to(gaps: np.ndarray, target: float) -> str:
    """How many steps the median of the gaps (starts, steps + 1) needs."""
    reached = np.flatnonzero(np.median(gaps, axis=0) <= target)
    return str(reached[0]) if len(reached) else f"> {gaps.shape[1] - 1}"


def print_rate(runs: dict[str, GDNPRun]) -> None:
    """The population: how fast directions and gradients converge."""
    table = Table(title="Gaussian data, infinitely many: the linear rate", title_justify="left")
    for column in ("activation", "slope of the gap's log, a step", "guaranteed", "gap at the end", "|gradient|^2", "length"):
        table.add_column(column, justify="right")
    for name, run in runs.items():
        steps = len(run.gaps) - 1
        seen, guaranteed = (np.log(series[-1] / series[0]) / steps for series in (run.gaps, run.bounds))
        length = f"{abs(run.length):.3f}" if not run.unbounded else "unbounded"
        table.add_row(name, f"{seen:.4f}", f"{guaranteed:.4f}", f"{run.gaps[-1]:.1e}", f"{run.gradients[-1]:.1e}", length)
    Console(width=110).print(table)


def print_softplus(name: str, risk: EmpiricalHalfspaces, results: dict[str, Result], least: float) -> None:
    """Steps to a gap and the gap at the end, medians over the starts."""
    table = Table(title=f"{name}, softplus: condition {risk.quotient.condition:.3g}, least risk {least:.6f}", title_justify="left")
    for column in ("method", "step", *(f"steps to {target:g}" for target in TARGETS), "gap at the end"):
        table.add_column(column, justify="right")
    for method, (step, risks, _) in results.items():
        gaps = risks - least
        table.add_row(method, step, *(steps_to(gaps, target) for target in TARGETS), f"{np.median(gaps[:, -1]):.1e}")
    Console(width=110).print(table)


def print_sigmoid(name: str, results: dict[str, Result]) -> None:
    """Risk and gradient at the end, medians over the starts."""
    table = Table(title=f"{name}, sigmoid: a small gradient is not a small risk", title_justify="left")
    for column in ("method", "step", "risk at the end", "|gradient| at the end"):
        table.add_column(column, justify="right")
    for method, (step, risks, gradients) in results.items():
        table.add_row(method, step, f"{np.median(risks[:, -1]):.4f}", f"{np.median(gradients):.1e}")
    Console(width=110).print(table)


def draw_rate(panel: Any, runs: dict[str, GDNPRun]) -> None:
    """Gap of the direction, its bound, and the squared gradients, each with its name at its end."""
    first = next(iter(runs.values()))
    end = len(first.gaps) - 1
    shades = ("#0072b2", "#5b8fc7", "#56b4e9", "#4a6c8c")
    curves = [(f"{name} $f$", run.gradients, "-", shade) for (name, run), shade in zip(runs.items(), shades, strict=True)]
    curves += [(r"$\rho(w_t)-\rho^*$", first.gaps, "-", "black"), ("its bound", first.bounds, ":", "black")]
    last = np.inf
    for name, values, style, colour in sorted(curves, key=lambda curve: -curve[1][-1]):
        panel.semilogy(values, style, color=colour, lw=1.8)
        last = min(values[-1], last / 10.0)  # labels keep their distance
        panel.annotate(name, (1.02 * end, last), va="center", fontsize=10, color=colour)
    panel.set_title("Gaussian data: $\\|\\nabla f\\|^2$ in blue, one rate for every $f$", loc="left", fontsize=11)
    panel.set_xlim(right=1.45 * end)
    panel.set_xticks(np.linspace(0, end, 6).astype(int))
    panel.set_ylabel(r"$\|\nabla f\|^2$, $\rho(w_t)-\rho^*$")


def draw_methods(panel: Any, label: str, curves: dict[str, np.ndarray]) -> None:
    """Medians over the starts (starts, steps + 1), with their range."""
    for name, values in curves.items():
        colour, dashes = STYLES[name]
        front = name == "GDNP"
        panel.semilogy(np.median(values, axis=0), color=colour, ls=dashes, lw=2.6 if front else 1.6, label=name, zorder=3 if front else 2)
        if label != "risk":  # the sigmoid's starts end in different places, and their range would fill the panel
            panel.fill_between(np.arange(values.shape[1]), values.min(axis=0), values.max(axis=0), color=colour, alpha=0.13, lw=0)
    panel.set_ylabel(label)


def draw(runs: dict[str, GDNPRun], panels: list[tuple[str, str, dict[str, np.ndarray]]], path: Path) -> None:
    """The rate, and three comparisons."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    plt.rcParams.update({"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, 2, figsize=(11.5, 8.6), layout="constrained")
    draw_rate(axes[0, 0], runs)
    for panel, (title, label, curves) in zip(axes.flat[1:], panels, strict=True):
        draw_methods(panel, label, curves)
        panel.set_title(title, loc="left", fontsize=11)
    for panel in axes[1]:
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
    axes[0, 1].set_ylim(bottom=ROUNDING)
    for panel in axes.flat:
        panel.set_xlabel("step")
        panel.grid(alpha=0.25, lw=0.5)
    figure.suptitle("GDNP keeps its rate without a step to choose, but tuned descent is as fast", fontsize=13, weight="bold")
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=len(STYLES), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Print the tables, and draw the picture where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds: fewer steps, starts and step sizes")
    parser.add_argument("--picture", type=Path, metavar="PATH")
    arguments = parser.parse_args()
    steps, starts, grid = (40, 1, [2.0, 8.0]) if arguments.quick else (400, 5, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])

    moments = gaussian_moments(20, 20.0)
    activations = ("softplus", "squared", "squared sigmoid", "sigmoid")
    runs = {name: train_gdnp(gaussian_halfspaces(*moments, name), steps=40 if arguments.quick else 150) for name in activations}
    print_rate(runs)

    data = {"Gaussian sample": gaussian_sample(1000, 50), "breast cancer": breast_cancer()}
    panels = []
    for name, (X, y) in data.items():
        risk = empirical_halfspaces(X, y)
        results, least = compare(risk, steps, starts, grid), optimum(risk)
        print_softplus(name, risk, results, least)
        curves = {method: np.maximum(risks - least, 0.1 * ROUNDING) for method, (_, risks, _) in results.items()}
        panels.append((f"{name}, softplus", "risk above the least", curves))
    risk = empirical_halfspaces(*data["breast cancer"], "sigmoid")
    results = compare(risk, steps, starts, grid)
    print_sigmoid("breast cancer", results)
    searches = [train_gdnp(risk, steps=steps, seed=seed).unbounded for seed in range(starts)]
    print(f"GDNP found no bounded length in {sum(searches)} of {starts * (steps + 1)} searches.")
    panels.append(("breast cancer, sigmoid", "risk", {method: risks for method, (_, risks, _) in results.items()}))
    if arguments.picture:
        draw(runs, panels, arguments.picture)


if __name__ == "__main__":
    main()
