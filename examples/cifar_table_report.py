"""The results of `cifar_table.py` as Markdown and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Record = Mapping[str, Any]  # table, name, samples, settings, trials, runs
BLUE, ORANGE = "#1f5fa8", "#c96a1b"


def spread(values: list[float], form: str) -> str:
    """The mean, and for several values the standard deviation over the seeds."""
    return f"{np.mean(values):{form}}" + (f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else "")


def markdown(records: list[Record], title: str, tests: int, machine: str) -> str:
    """A table for each heading, and what was chosen among what."""
    lines = [
        *(f"# {title}", ""),
        f"Accuracies are those of PyTorch models on {tests:,} test images, with the standard deviation over the seeds, which draw the",
        f"images too where they are a part. Times are in seconds, choices apart; {machine}.",
        "",
    ]
    for table in dict.fromkeys(record["table"] for record in records):
        lines += [
            f"## {table}",
            "",
            "| method | images | test accuracy | seeds | time | CPU time | objective | gap | settings |",
            "|" + "---|" * 9,
        ]
        lines += [line(record) for record in records if record["table"] == table] + [""]
    lines += ["## Choices", "", "Made on validation images, a part of the training images; then fitted on all.", ""]
    lines += [choices(record) for record in records if len(record["trials"]) > 1] + [""]
    return "\n".join(lines)


def line(record: Record) -> str:
    """A row of a table."""
    runs = record["runs"]
    column = {name: [run[name] for run in runs] for name in ("test", "seconds", "cpu", "objective", "bound")}
    objective = gap = ""
    if column["objective"][0] is not None:
        objective = spread(column["objective"], ".5g")
    if column["bound"][0] is not None:
        pairs = zip(column["objective"], column["bound"], strict=True)
        gap = f"{max((high - low) / high for high, low in pairs):.1e}, {runs[0]['evidence']}"
    accuracy = spread([100.0 * value for value in column["test"]], ".2f") + " %"
    times = spread(column["seconds"], ".0f"), spread(column["cpu"], ".0f")
    settings = ", ".join(f"{name} {value}" for name, value in record["settings"].items())
    if record["device"] != "cpu":
        settings += f", on {record['device']}"
    cells = record["name"], f"{record['samples']:,}", accuracy, str(len(runs)), *times, objective, gap, settings
    return "| " + " | ".join(cells) + " |"


def choices(record: Record) -> str:
    """The grid of a row with its validation accuracies."""
    tried = "; ".join(
        ", ".join(f"{k} {v}" for k, v in trial["settings"].items()) + f": {trial['validation']:.2%}" for trial in record["trials"]
    )
    seconds = sum(trial["cpu"] for trial in record["trials"])
    return f"- {record['table']}, {record['name']} ({record['trials'][0]['samples']:,} images, {seconds:.0f} s of CPU time): {tried}"


def draw(records: list[Record], title: str, target: Path) -> None:
    """Test accuracies, row by row, the convex ones in blue; bars for means, points for seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False})
    figure, axis = plt.subplots(figsize=(9, 0.36 * len(records) + 1.3), layout="constrained")
    for place, record in enumerate(reversed(records)):
        accuracies = [100.0 * run["test"] for run in record["runs"]]
        axis.barh(place, np.mean(accuracies), color=BLUE if record["convex"] else ORANGE, height=0.66, alpha=0.85)
        axis.plot(accuracies, [place] * len(accuracies), "|", color="black", ms=9)
        axis.text(max(accuracies) + 0.6, place, f"{np.mean(accuracies):.1f}", va="center", fontsize=8.5)
    axis.set_yticks(range(len(records)), [f"{record['name']}, {record['samples']:,} images" for record in reversed(records)])
    axis.set(xlabel="test accuracy in %", ylim=(-0.7, len(records) - 0.3))
    axis.set_title(f"{title}: blue convex, orange descent", loc="left", fontsize=10.5)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)
    plt.close(figure)
