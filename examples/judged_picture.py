"""The picture of judged.py: training curves above the proved bound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from judged_training import SIZE, Problem

if TYPE_CHECKING:
    from judged import Finding

BOTTOM, TOP = 3e-5, 50.0
TICKS = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
EXCESS = "objective above the proved bound"
BAND = "#e9e2c8"
# Colour, line and name in the picture.
STYLES = {
    "SGD, full batch": ("#000000", "-", "SGD"),
    "DecoupledSGD, full batch": ("#009e73", "-", "decoupled"),
    "Adam, full batch": ("#b5578f", "-", "Adam"),
    "SGD, shuffled batches": ("#d55e00", "-", "BN, shuffled"),
    "SGD, sorted batches": ("#d55e00", "--", "BN, sorted"),
    "full norm., shuffled": ("#0072b2", "-", "FN, shuffled"),
    "full norm., sorted": ("#0072b2", "--", "FN, sorted"),
}

# Marker, its size and whether it is filled, for where a method ends and where it comes to from there.
FURTHER = {
    "end": ("o", 8, True),
    "as many epochs again": ("o", 8, False),
    "at a tenth of the rate": ("D", 6.5, False),
    "L-BFGS on the full batch": ("v", 8, True),
}


def percent(value: float) -> str:
    """Two digits."""
    return f"{100.0 * value:.2g} %" if abs(value) < 0.995 else f"{100.0 * value:.0f} %"


def spread(heights: list[float], distance: float) -> list[float]:
    """Heights that keep their order and at least the distance, moved as little as pushing neighbours apart needs."""
    order = np.argsort(heights)
    placed = np.array(heights, dtype=float)[order]
    for _ in range(200):
        for k in range(len(placed) - 1):
            missing = distance - (placed[k + 1] - placed[k])
            if missing > 0:
                placed[k] -= 0.5 * missing
                placed[k + 1] += 0.5 * missing
    result = np.empty(len(placed))
    result[order] = placed
    return list(result)


def draw_problem(panel: Any, problem: Problem, findings: list[Finding]) -> None:
    """Medians over the seeds with their range, each with its name at its end, above the proved gap of the convex program."""
    certificate = problem.fit.certificate
    gap = certificate.objective / certificate.bound - 1.0
    last = [float(np.median(finding.end)) for finding in findings]
    labels = np.exp(spread([float(np.log(value)) for value in last], 0.066 * np.log(TOP / BOTTOM)))
    for finding, value, height in zip(findings, last, labels, strict=True):
        run = finding.run
        colour, dashes, name = STYLES[run.method]
        times, values = run.epochs[1:], np.maximum(run.excess[1:], BOTTOM)
        panel.plot(times, np.median(values, axis=1), color=colour, ls=dashes, lw=1.9)
        panel.fill_between(times, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.16, lw=0)
        end, right = times[-1], 1.45 * times[-1]
        panel.plot([1.06 * end, 0.93 * right], [value, height], color=colour, lw=0.7, clip_on=False)
        panel.annotate(f"{name}  {percent(value)}", (right, height), va="center", fontsize=11, color=colour, annotation_clip=False)
    panel.axhspan(BOTTOM, gap, color=BAND, lw=0)
    panel.axhline(gap, color="#8a7530", lw=1.4)
    style = {"ha": "left", "fontsize": 10.5, "color": "#6b5a20"}
    panel.text(1.1, 1.12 * gap, f"convex program: at most {percent(gap)}, {certificate.evidence.value}", va="bottom", **style)
    panel.text(1.1, 0.88 * gap, "the optimum lies in this band", va="top", **style)
    panel.set(xscale="log", yscale="log", xlabel="epoch")
    panel.set_xticks([1, 10, 100], ["1", "10", "100"])
    panel.set_yticks(TICKS, map(percent, TICKS))
    panel.set(xlim=(1, findings[0].run.epochs[-1]), ylim=(BOTTOM, TOP))
    panel.set_title(f"{problem.name}  (n = {len(problem.y)}, d = {problem.X.shape[1]})", loc="left", fontsize=12.5)
    panel.grid(axis="y", color="#e6e6e6", lw=0.8)


def draw_reasons(panel: Any, problem: Problem, findings: list[Finding]) -> None:
    """What moves each method's end: the medians of further runs from there, on one line a method."""
    certificate = problem.fit.certificate
    for height, finding in enumerate(reversed(findings)):
        colour, _, name = STYLES[finding.run.method]
        panel.text(-0.02, height, name, color=colour, ha="right", va="center", fontsize=11, transform=panel.get_yaxis_transform())
        values = [finding.end, finding.again, finding.slower, finding.descended]
        places = {label: float(np.median(value)) for label, value in zip(FURTHER, values, strict=True) if value is not None}
        panel.plot([min(places.values()), max(places.values())], [height, height], color=colour, lw=1.0, alpha=0.5, zorder=1)
        for label, place in places.items():
            marker, size, filled = FURTHER[label]
            panel.plot(place, height, marker=marker, ms=size, color=colour, mfc=colour if filled else "none", mew=1.5, ls="")
    for label, (marker, size, filled) in FURTHER.items():
        panel.plot([], [], marker=marker, ms=size, color="#444444", mfc="#444444" if filled else "none", mew=1.5, ls="", label=label)
    panel.axvspan(BOTTOM, certificate.objective / certificate.bound - 1.0, color=BAND, lw=0)
    panel.set(xscale="log", xlabel=EXCESS)
    panel.set_xticks(TICKS[:5], map(percent, TICKS[:5]))
    panel.set_yticks([])
    panel.set(xlim=(BOTTOM, 2.0), ylim=(-0.6, 1.45 * len(findings)))
    panel.set_title(f"{problem.name}: what moves them from there", loc="left", fontsize=12.5)
    panel.legend(loc="upper center", fontsize=10.5, frameon=False, handletextpad=0.3, labelspacing=0.3)
    panel.grid(axis="x", color="#e6e6e6", lw=0.8)


def draw(panels: list[tuple[Problem, list[Finding]]], rates: int, path: Path) -> None:
    """A panel for each problem, and one that explains the one in the middle."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    rows = (len(panels) + 2) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(13.2, 5.2 * rows + 0.8), squeeze=False)
    for panel, (the_problem, findings) in zip(axes.flat, panels, strict=False):
        draw_problem(panel, the_problem, findings)
    for panel in axes[:, 0]:
        panel.set_ylabel(EXCESS)
    draw_reasons(axes.flat[len(panels)], *panels[len(panels) // 2])
    for panel in axes.flat:
        panel.minorticks_off()
        panel.set_axisbelow(True)
    seeds, top = len(panels[0][1][0].end), 1.0 - 1.55 / (5.2 * rows + 0.8)
    words = {the_problem.fit.certificate.evidence.value for the_problem, _ in panels}
    figure.suptitle("How far above the global optimum do gradient methods end?", x=0.012, y=0.99, ha="left", fontsize=16, weight="bold")
    caption = (
        f"(objective - bound) / bound with full-batch statistics. The bound is {' / '.join(sorted(words))}: no network of this form, "
        f"of any width, lies below it.\n"
        f"Median and range of {seeds} seeds, best of {rates} learning rates. BN, FN: batch and full normalisation, batches of {SIZE} "
        f"samples,\nshuffled or sorted by target; the others take the full batch."
    )
    figure.text(0.012, 1.0 - 0.45 / (5.2 * rows + 0.8), caption, va="top", fontsize=11, color="#444444")
    figure.subplots_adjust(left=0.072, right=0.865, top=top, bottom=0.6 / (5.2 * rows + 0.8), wspace=0.86, hspace=0.28)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
