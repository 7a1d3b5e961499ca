"""Sliding Frank-Wolfe: the program over all arrangements, by pricing, amplitudes and descent on the neurons themselves."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace

from convexbn.checkpoint import fingerprint
from convexbn.devices import check_device
from convexbn.program import Program
from convexbn.progress import console
from convexbn.solution import Round, Solution, Status
from convexbn.solvers.rounds import FIRST_WIDTH, Rounds, TimeIsUpError
from convexbn.solvers.state import State
from convexbn.threads import few_threads
from convexbn.validation import FloatArray, InputError, check_count, check_positive


@dataclass(frozen=True)
class SlidingFrankWolfe:
    """Solve the program over ALL arrangements, without listing them, to an estimated relative gap.

        min  L( p (U'S)_+ W, y ) + beta sum_j ||s_j|| ||w_j||      over neurons S (m, r+1), W (m, C), of every width m

    with p the pooling of patches, the identity without them. Rounds of (a) pricing: many local searches for neurons with h(s) =
    ||V^T p (U's)_+|| > beta, V = -grad L; (b) amplitudes: with the directions fixed, a convex group lasso for W; (c) sliding:
    descent on S and W together, then merging and pruning. With one output and a smooth loss random directions slide to their places
    first; with one output and up to 32 columns, below a gap of two percent, climbs to exact local maxima of h take the place of (c).
    Before a gap is believed, one more search starts as often as all before it together. It is estimated, as searches may miss the
    maximum of h: `certify` proves what can be proved.

    Source: Denoyelle, Duval, Peyre and Soubies 2019 (sliding Frank-Wolfe), Bach 2017 (conditional gradient for networks).

    Attributes
    ----------
    tolerance : of the estimated relative gap
    rounds : at most so many
    seconds : and at most for so long, a tenth more with the last descent; something is always found first
    starts : of each pricing, random ones, with 20 samples a column or more every other one between neurons and samples instead; up to 4
        times as many where they find nothing; None: four a column, at least 64, and fewer on a large basis. As many begin around the
        present neurons. With several outputs as many as there are neurons, or more: random ones and between neurons, and twice as
        many around neurons, then around the best ends; the present neurons start too
    seed : of the starts
    warm_start : directions (m, r+1) and outputs (m, C) to begin with, as `convexbn.neurons_of` reads them from a network
    checkpoint : a file to which the state is written after each round; a run that finds its own there goes on from it, and ends
        bit for bit as without the break. `rounds`, `seconds` and `verbose` may differ
    precision : "float64", or "float32" for all descent until the last one, which is in float32 anyway while the gap is above 1e-3. So are
        searches; what they find is priced again in float64, as are bounds and certificates
    device : where searches and descent run: "cpu", by numpy, or "cuda", by PyTorch
    verbose : print a line a round
    """

    tolerance: float = 1e-5
    rounds: int = 200
    seconds: float = 60.0
    starts: int | None = None
    seed: int = 0
    warm_start: tuple[FloatArray, FloatArray] | None = None
    checkpoint: str | os.PathLike[str] | None = None
    precision: str = "float64"
    device: str = "cpu"
    verbose: bool = False

    def __post_init__(self) -> None:
        check_positive(self.tolerance, "tolerance")
        check_positive(self.seconds, "seconds")
        check_count(self.rounds, "rounds")
        check_count(1 if self.starts is None else self.starts, "starts")
        check_count(self.seed, "seed", 0)
        if self.precision not in ("float64", "float32"):
            raise InputError(f"precision = {self.precision!r} is unknown: choose 'float64' or 'float32'")
        if self.device != "cpu":  # for that one no PyTorch is needed
            check_device(self.device)

    def solve(self, program: Program) -> Solution:
        """The best neurons found, with the dual point of the best estimated bound; an interrupt returns what is there."""
        with few_threads(0):  # large bases are shared out to threads of our own, which don't wait for each other at each product
            return self._solve(program)

    def _solve(self, program: Program) -> Solution:
        start = time.perf_counter()
        state = State(program, FIRST_WIDTH, self.warm_start)
        unit, file = state.unit, self.checkpoint
        same = (self.tolerance, self.starts, self.seed, self.warm_start, self.precision, self.device, program.pooling)
        name = "" if file is None else fingerprint(program.basis, program.y, program.beta, program.loss, same)
        if file is not None:
            state.load(file, name)
        start -= state.trace[-1].seconds if state.trace else 0.0
        run, status = Rounds(state, self, start), Status.LIMIT

        def note() -> None:
            neurons = len(state.best.outputs)
            state.trace.append(Round(state.lowest * unit**2, state.gap, neurons, time.perf_counter() - start))
            if self.verbose:
                _print(len(state.trace), state.trace[-1])

        try:
            if not state.trace:
                run.begin()
            while not run.finished:
                run.round()
                note()
                if file is not None:
                    state.save(file, name)
            if state.gap <= self.tolerance:
                status = Status.OPTIMAL
            run.polish()
        except TimeIsUpError:
            note()
            run.polish()
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        trace = state.trace
        if trace:
            trace[-1] = replace(trace[-1], objective=state.lowest * unit**2, gap=state.gap, neurons=len(state.best.outputs))
        return Solution(
            state.best.directions,
            unit * state.best.outputs,
            status,
            "sliding Frank-Wolfe",
            dual=unit * (state.dual[:, 0] if program.y.ndim == 1 else state.dual),
            iterations=len(trace),
            solve_seconds=time.perf_counter() - start,
            trace=tuple(trace),
        )


def _print(number: int, entry: Round) -> None:
    console().print(
        f"convexbn: round {number}, objective {entry.objective:.8g}, estimated gap {entry.gap:.1e}, "
        f"{entry.neurons} neurons, {entry.seconds:.1f} s"
    )
