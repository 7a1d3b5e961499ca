"""Time to accuracy over fixed arrangements: every solver on every problem, one thread, CPU seconds; a table and curves.

    python3.11 -m venv .venv-fixed
    .venv-fixed/bin/pip install -e '.[torch,plot]' -r examples/benchmark/fixed/requirements.txt
    .venv-fixed/bin/python examples/benchmark/fixed/run.py gated-S gated-S-bn gated-M-bn [--seconds 120] [--picture PATH] [--results PATH]

The objective is computed here, in float64, from the weights that a solver returns. Its error is relative to a lower bound that
convexbn proved to 1e-9, and for ReLU not below the violation of the cones. Each solver runs once for each effort, from coarse to fine,
always from the start, in a process of its own; a run that fails or that is not back in time is kept as what it is. Writing a matrix out
and compiling are not timed.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"))

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from objective import judge
from problems import PROBLEMS, problem_of
from relu_solvers import RELU_CONTENDERS, bounds_of
from rich.console import Console
from rich.table import Table
from solvers import CONTENDERS, Contender

ACCURACIES = (1e-2, 1e-3, 1e-4, 1e-6)
Results = dict[str, dict[str, dict[str, Any]]]


def contenders_of(key: str) -> dict[str, Contender]:
    """The solvers of that kind of problem."""
    return RELU_CONTENDERS if PROBLEMS[key][2] else CONTENDERS


def contend(key: str, name: str) -> None:
    """In the child process: print a line of JSON for each effort."""
    problem, contender = problem_of(key), contenders_of(key)[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a tolerance was not met: the objective tells
        prepared = contender.prepare(problem)
        for effort in contender.efforts:
            cpu = time.process_time()
            weights = contender.solve(problem, prepared, effort)
            cpu = time.process_time() - cpu
            verdict = judge(problem, weights)
            line = {"effort": effort, "cpu": cpu, "objective": verdict.objective, "violation": verdict.violation}
            print("\n" + json.dumps(line), flush=True)


def compete(key: str, name: str, seconds: float) -> dict[str, Any]:
    """In the parent: the runs of one solver on one problem, and how they ended."""
    reason = contenders_of(key)[name].takes(problem_of(key))
    if reason is not None:
        return {"runs": [], "end": reason}
    command = [sys.executable, __file__, "--child", key, name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=seconds)
        end = "done" if process.returncode == 0 else f"failed: {errors.strip().splitlines()[-1]}"
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        end = f"not back after {seconds:.0f} s"
    return {"runs": [json.loads(line) for line in output.splitlines() if line.startswith("{")], "end": end}


def reference_of(key: str) -> float:
    """A lower bound on the optimum, proved for the problem's arrangements, to 1e-9."""
    from convexbn import GatedProgram, GatedSolver, Squared

    problem = problem_of(key)
    if problem.cones:
        lower, upper = bounds_of(problem)
        print(f"{key}: the optimum is between {lower:.12g} and {upper:.12g}, proved")
        return lower
    program = GatedProgram(problem.basis, problem.gates, problem.y[:, None], Squared(), problem.beta)
    solution = GatedSolver(tolerance=1e-9, precision="float64", seconds=3600.0).solve(program)
    print(f"{key}: the optimum is between {solution.bound:.12g} and {solution.objective:.12g}, proved")
    return solution.bound


def first_below(runs: list[dict[str, float]], reference: float, accuracy: float) -> float | None:
    """The least CPU seconds of a run whose error is at most the accuracy."""
    found = [run["cpu"] for run in runs if error_of(run, reference) <= accuracy]
    return min(found, default=None)


def error_of(run: dict[str, float], reference: float) -> float:
    """The larger of the relative distance to the reference and the violation."""
    return max(abs(run["objective"] - reference) / reference, run["violation"])


def table_of(key: str, results: dict[str, dict[str, Any]], reference: float) -> Table:
    """CPU seconds to each accuracy."""
    table = Table("solver", title=f"{key}: CPU seconds to a relative error")
    for heading in (*(f"{accuracy:.0e}" for accuracy in ACCURACIES), "least error", "end"):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        times = [first_below(result["runs"], reference, accuracy) for accuracy in ACCURACIES]
        least = min((error_of(run, reference) for run in result["runs"]), default=None)
        cells = ["-" if value is None else f"{value:.3g}" for value in times]
        table.add_row(name, *cells, "-" if least is None else f"{least:.0e}", result["end"][:60])
    return table


def draw(results: Results, references: dict[str, float], path: Path) -> None:
    """Error against CPU seconds, a panel for each problem."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(len(results), 2)
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns + 1.6, 3.4 * rows), layout="constrained", squeeze=False, sharey=True)
    colours = dict(zip({**CONTENDERS, **RELU_CONTENDERS}, plt.get_cmap("tab10").colors, strict=False))
    lines = {}
    for panel, (key, solvers) in zip(axes.flat, results.items(), strict=False):
        for name, result in solvers.items():
            points = sorted((run["cpu"], max(error_of(run, references[key]), 1e-10)) for run in result["runs"])
            if points:
                ours = name.startswith("convexbn")
                (lines[name],) = panel.plot(*zip(*points, strict=True), "o-", ms=3, lw=2.2 if ours else 1.1, color=colours[name])
        panel.set(xscale="log", yscale="log", xlabel="CPU seconds, one thread", title=key)
        panel.axhline(1e-6, color="#bbbbbb", lw=0.8, zorder=0)
    for unused in axes.flat[len(results) :]:
        unused.remove()
    figure.legend(lines.values(), lines, loc="outside right center", frameon=False)
    figure.supylabel("relative error of the objective", fontsize="medium")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run, print, draw."""
    if sys.argv[1:2] == ["--child"]:
        contend(*sys.argv[2:4])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("problems", nargs="+", choices=list(PROBLEMS))
    parser.add_argument("--solvers", nargs="+", choices=[*CONTENDERS, *RELU_CONTENDERS], help="default: all")
    parser.add_argument("--seconds", type=float, default=120.0, help="for all runs of one solver on one problem")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--results", type=Path, help="a JSON file with every run")
    chosen = parser.parse_args()
    results: Results = {}
    references: dict[str, float] = {}
    for key in chosen.problems:
        references[key] = reference_of(key)
        wanted = [name for name in contenders_of(key) if not chosen.solvers or name in chosen.solvers]
        results[key] = {name: compete(key, name, chosen.seconds) for name in wanted}
        Console(width=130).print(table_of(key, results[key], references[key]))
    if chosen.results:
        chosen.results.write_text(json.dumps({"references": references, "results": results}, indent=1))
    if chosen.picture:
        draw(results, references, chosen.picture)


if __name__ == "__main__":
    main()
