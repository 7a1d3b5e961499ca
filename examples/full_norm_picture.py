"""The picture of full_norm.py: test error and error of the gradient against the size of the batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from full_norm_networks import CLASSES, METHODS, has_statistics

if TYPE_CHECKING:
    from full_norm import Row

# Colours that differ for every kind of sight, and markers.
STYLES = dict(zip(METHODS, (("#0072b2", "o"), ("#56b4e9", "D"), ("#d55e00", "s"), ("#cc79a7", "^"), ("#009e73", "v")), strict=True))
CHANCE = 100.0 * (1.0 - 1.0 / CLASSES)
TICKS = (0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90)


def draw(rows: list[Row], title: str, share: float, small_share: float, path: Path) -> None:
    """Test error above gradient error, a column of panels for each number of classes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    classes, sizes = sorted({row.classes for row in rows}), sorted({row.size for row in rows})
    plt.rcParams.update({"font.size": 11.5, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, len(classes), figsize=(12, 7.6), sharex=True, sharey="row", layout="constrained", squeeze=False)
    for column, number in enumerate(classes):
        upper, lower = axes[:, column]
        for k, method in enumerate(METHODS):
            mine = [row for row in rows if row.method == method and (row.classes == number or row.size == 1)]
            places = [sizes.index(row.size) + 0.06 * (k - 2) for row in mine]  # side by side, so that ranges don't hide each other
            draw_errors(upper, places, mine)
            draw_gradients(lower, places, mine, f"full normalisation with a = {small_share} in place of {share}")
        upper.set_title("one class in a batch" if number == 1 else f"up to {number} classes in a batch", fontsize=12)
        lower.set_xlabel("samples in a batch")
        lower.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    finish(axes, rows)
    figure.suptitle(f"{title}: what batches of few samples or classes do", fontsize=13, weight="bold")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def draw_errors(panel: Any, places: list[float], rows: list[Row]) -> None:
    """Test errors of one method, means with the range of the seeds."""
    colour, marker = STYLES[rows[0].method]
    errors = [max(100.0 - row.test, 0.25) for row in rows]
    ranges = [[row.best - row.test for row in rows], [row.test - row.worst for row in rows]]
    width = 2.6 if rows[0].method == METHODS[0] else 1.6
    panel.errorbar(places, errors, ranges, color=colour, marker=marker, ms=6, lw=width, elinewidth=1.2)


def draw_gradients(panel: Any, places: list[float], rows: list[Row], small: str) -> None:
    """Relative errors of one method's gradient; without bias it has only its name in the legend."""
    method = rows[0].method
    colour, marker = STYLES[method]
    style = {"color": colour, "marker": marker, "ms": 6}
    if not has_statistics(method):
        panel.plot([], [], **style, lw=1.6, label=f"{method} (no bias)")
        return
    panel.plot(places, [row.error for row in rows], **style, lw=2.6 if method == METHODS[0] else 1.6, label=method)
    if rows[0].small_share_error is not None:
        panel.plot(places, [row.small_share_error for row in rows], **style, lw=1.6, ls="--", mfc="white", label=small)


def finish(axes: Any, rows: list[Row]) -> None:
    """Scales, and the lines of chance and of an error as large as the gradient."""
    least, most = min(100.0 - row.best for row in rows), max(100.0 - row.worst for row in rows)
    least = max(least, 0.25)
    ticks = [tick for tick in TICKS if 0.8 * least <= tick <= 1.05 * most and (least > 30.0 or tick not in (30, 40, 60, 70, 80))]
    for panels, line, word in ((axes[0], CHANCE, "chance"), (axes[1], 1.0, "as large as the gradient")):
        for panel in panels:
            panel.axhline(line, color="#777777", lw=1, ls=":")
            panel.set_yscale("log")
            panel.grid(axis="y", color="#e6e6e6", lw=0.8)
            panel.set_axisbelow(True)
        panels[-1].annotate(
            word, (1, line), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", fontsize=9.5
        )
    axes[0, 0].set_yticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes[0, 0].minorticks_off()
    axes[0, 0].set_ylim(0.85 * least, 1.15 * max(most, CHANCE))
    axes[0, 0].set_ylabel("test error")
    axes[1, 0].set_yticks([0.01, 0.1, 1.0, 10.0], ["1 %", "10 %", "100 %", "1000 %"])
    axes[1, 0].set_ylabel("error of the mean gradient")
