"""Sliding Frank-Wolfe over all arrangements against adelie over a sample of them: time and objective, one thread each.

    python3.11 -m venv .venv-adelie
    .venv-adelie/bin/pip install -e . -r examples/benchmark/requirements.txt
    .venv-adelie/bin/python examples/benchmark/against_adelie.py [--case S|M] [--repeat 3]

adelie wants numpy 1, hence the environment of its own; without adelie its line says so. Squared loss on the data of
compile_time.py, beta 0.02 max_i ||U'^T D_i y|| over the sample, which is the beta_max of its program without the cones and what
solvers without them start from; with the cones the sample's beta_max is smaller, by 1.2 (S) and 1.6 (M). adelie has no batch
normalisation: it gets the whitened basis and the arrangements, and solves their group lasso with cones,

    min  1/(2n) ||sum_i D_i U'(s_i - s_i') - y||^2 + (beta/n) sum_i ( ||s_i|| + ||s_i'|| )    s.t. the cones,

which is the sampled program divided by n. Its iterate breaks the cones, so both methods are judged by the network that they
give, on the raw data; the iterate's own objective and its largest violation, relative to the largest |U's|, stand beside it.
The gap of both is to one and the same estimated bound over all arrangements, for which the certificate searches again: larger
than the gap that the solver stops at, where its search missed a neuron. Times are of the solvers, whatever they set up
included, without whitening and sampling; "overtaken" is the wall time of the first round of convexbn whose objective lies below
that of adelie's network. convexbn begins no round after a minute, even if its tolerance isn't met.
"""

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # read when numpy is imported

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from compile_time import problem
from rich.console import Console
from rich.table import Table

from convexbn import (
    Network,
    Program,
    SlidingFrankWolfe,
    Solution,
    Squared,
    Whitening,
    certify,
    recover,
    sample_arrangements,
    whiten,
)

CASES = {"S": (500, 10, 50), "M": (2000, 50, 200)}  # n, d, P
FRACTION = 0.02  # of the beta_max of the sample without cones
PATH = 20  # values of beta on adelie's way down: faster on M than a single one, no slower on S
COLUMNS = (
    "arrangements",
    "wall, s",
    "CPU, s",
    "neurons",
    "objective / n",
    "gap, estimated",
    "iterate / n",
    "violation",
    "CPU ratio",
    "objective ratio",
    "overtaken, s",
)


@dataclass(frozen=True)
class Case:
    """The raw data, their whitening, and the sampled program on them."""

    X: np.ndarray
    whitening: Whitening
    sampled: Program

    @property
    def full(self) -> Program:
        """The same over all arrangements."""
        return Program(self.sampled.basis, self.sampled.y, self.sampled.loss, self.sampled.beta, None)

    def objective(self, network: Network) -> float:
        """Of the network, on the raw data."""
        return network.objective(self.X, self.sampled.y, self.sampled.loss, self.sampled.beta)


def make_case(n: int, d: int, count: int) -> Case:
    """The problem of n samples and d features with `count` sampled arrangements."""
    X, y = problem(n, d)
    whitening = whiten(X)
    arrangements = sample_arrangements(whitening.basis, count)
    beta = FRACTION * float(np.max(np.linalg.norm((arrangements.active * y) @ whitening.basis, axis=1)))
    return Case(X, whitening, Program(whitening.basis, y, Squared(), beta, arrangements))


def solve_by_adelie(ad: ModuleType, program: Program) -> np.ndarray:
    """adelie's weights (2, P, r+1): groups s_1..s_P, s_1'..s_P', each with its cone (2 D_i - I) U's >= 0 as linear constraints."""
    active, (n, columns) = program.active, program.basis.shape
    features = ad.matrix.convex_relu(np.asfortranarray(program.basis), np.asfortranarray(active.T > 0), gated=False, n_threads=1)
    cones = [(2.0 * pattern - 1.0)[:, None] * program.basis for pattern in active] * 2
    state = ad.grpnet(
        features,
        ad.glm.gaussian(program.y),  # adelie's loss is a mean over samples, hence beta / n below
        constraints=[ad.constraint.linear(cone, np.zeros(n), np.full(n, np.inf)) for cone in cones],
        groups=columns * np.arange(len(cones)),
        penalty=np.ones(len(cones)),
        lmda_path=program.beta / n * np.geomspace(1.0 / FRACTION, 1.0, PATH),
        tol=1e-7,
        intercept=False,
        early_exit=False,
        progress_bar=False,
        n_threads=1,
    )
    if len(state.lmdas) < PATH:  # it only warns
        raise RuntimeError(f"stopped after {len(state.lmdas)} of {PATH} values of beta")
    weights: np.ndarray = state.betas[-1].toarray().reshape(2, len(active), columns)
    return weights


def network_of(weights: np.ndarray, whitening: Whitening) -> Network:
    """The network with a neuron for each s_i and s_i' that is not zero."""
    size = np.linalg.norm(weights, axis=-1)
    outputs = size * np.array([[1.0], [-1.0]])
    alive = size > 0
    return recover(whitening, weights[alive] / size[alive, None], outputs[alive, None])


def timed(solve: Callable[[Program], Any], program: Program, repeat: int) -> tuple[Any, float, float]:
    """The last answer of `repeat` runs, and the medians of their wall and CPU seconds."""
    seconds = []
    for _ in range(max(1, repeat)):
        wall, cpu = time.perf_counter(), time.process_time()
        answer = solve(program)
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    return answer, *np.median(seconds, axis=0)


def compare(name: str, case: Case, repeat: int, table: Table) -> None:
    """Add the line of each method."""
    n, program, sample = len(case.X), case.sampled, f"{len(case.sampled.active)} sampled"
    solution: Solution
    solution, wall, cpu = timed(SlidingFrankWolfe(tolerance=1e-4).solve, case.full, repeat)
    network = recover(case.whitening, solution.directions, solution.outputs)
    certificate = certify(case.X, program.y, network, beta=program.beta, dual=solution.dual, seconds=0.0)
    objective, bound = certificate.objective, certificate.estimate
    numbers = str(network.neurons), f"{objective / n:.6f}", f"{certificate.estimated_gap:.0e}"
    table.add_row(f"{name}: convexbn", "all", f"{wall:.1f}", f"{cpu:.1f}", *numbers, "", "", "1", "1")
    try:
        weights, adelie_wall, adelie_cpu = timed(partial(solve_by_adelie, import_module("adelie")), program, repeat)
    except Exception as error:  # whatever stops it, ours is told
        table.add_row(f"{name}: adelie failed: {error}", sample)
        return
    network = network_of(weights, case.whitening)
    value = case.objective(network)
    violation = program.violation(weights) / np.max(np.abs(weights @ program.basis.T))
    numbers = str(network.neurons), f"{value / n:.6f}", f"{(value - bound) / value:.0e}"
    iterate = f"{program.objective(weights) / n:.6f}", f"{violation:.0e}"
    ratios = f"{adelie_cpu / cpu:.2g}", f"{value / objective:.2f}"
    overtaken = next((f"{entry.seconds:.1f}" for entry in solution.trace if entry.objective < value), "never")
    table.add_row(f"{name}: adelie", sample, f"{adelie_wall:.1f}", f"{adelie_cpu:.1f}", *numbers, *iterate, *ratios, overtaken)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=list(CASES), help="S: n=500, d=10, 50 sampled; M: n=2000, d=50, 200 sampled; default both")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each method; times are medians")
    chosen = parser.parse_args()
    table = Table("problem", title="The network over all arrangements, and over a sample; ratios are to convexbn")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name in [chosen.case] if chosen.case else CASES:
        compare(name, make_case(*CASES[name]), chosen.repeat, table)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
