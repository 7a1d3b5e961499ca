"""The solver of gated programs: accelerated proximal gradient in a metric, over working sets, stopped by the duality gap."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np

from convexbn.gated.kernel import SAMPLES, fits_kernel
from convexbn.gated.program import GatedProgram
from convexbn.gated.run import Run
from convexbn.interrupts import held_interrupts
from convexbn.solution import Round, Status, relative_gap
from convexbn.validation import FloatArray, InputError, check_count, check_positive


@dataclass(frozen=True)
class GatedSolution:
    """Weights of a gated program with a bound on their distance to its optimum, both in float64.

    Attributes
    ----------
    weights : (P, r+1, C) the S_i
    objective : of the program at these weights
    bound : a lower bound on the program's optimum, from the dual point
    dual : (n, C) the feasible dual point of the bound
    status : how the solve ended
    iterations : proximal steps, or those of ADMM
    seconds : of the solve
    trace : the looks at the whole program: objective, relative gap, arrangements with weight, seconds
    """

    weights: FloatArray
    objective: float
    bound: float
    dual: FloatArray
    status: Status
    iterations: int
    seconds: float
    trace: tuple[Round, ...] = ()

    @property
    def relative_gap(self) -> float:
        """(objective - bound) / objective, not below 0."""
        return relative_gap(self.objective, self.bound)


@dataclass(frozen=True)
class GatedSolver:
    """Solve a gated program  min L( sum_i D_i U' S_i, Y ) + beta sum_i ||S_i||  to a relative duality gap.

    Accelerated proximal gradient steps (Nesterov 1983; Beck and Teboulle 2009) with restarts (O'Donoghue and Candes 2015), in a metric that
    takes the common part of all arrangements out of the step size (`convexbn.gated.metric`), on a working set of arrangements; those that
    are known to carry no weight at any optimum are left out for good (`convexbn.screening`). The gap is that of the whole program, in
    float64: V = -grad L, scaled by the exact maximum over all gates.

    Attributes
    ----------
    tolerance : of the relative gap
    iterations : at most so many steps
    seconds : and at most for so long
    method : "steps" as above; "kernel", ADMM with a Cholesky factor of an n x n kernel, exact also for losses with kinks
        (`convexbn.gated.kernel`); "auto" takes the kernel for up to 3000 samples on one processor
    precision : of the products: "float32", "float64", or "mixed", which goes over from one to the other at a gap of 1e-4. On a GPU
        PyTorch's own setting allows or forbids TF32. Objective and bound are in float64 whatever this is
    checkpoint : a file to which the state is written at each look at the gap; a run that finds its own there goes on from it
    verbose : show a bar with the gap and the time left
    """

    tolerance: float = 1e-4
    iterations: int = 10_000
    seconds: float = 600.0
    method: str = "auto"
    precision: str = "mixed"
    checkpoint: str | os.PathLike[str] | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        check_positive(self.tolerance, "tolerance")
        check_positive(self.seconds, "seconds")
        check_count(self.iterations, "iterations")
        if self.method not in ("auto", "steps", "kernel"):
            raise InputError(f"method = {self.method!r} is unknown: choose 'auto', 'steps' or 'kernel'")
        if self.precision not in ("float32", "float64", "mixed"):
            raise InputError(f"precision = {self.precision!r} is unknown: choose 'mixed', 'float64' or 'float32'")

    def solve(self, program: GatedProgram, start: FloatArray | None = None) -> GatedSolution:
        """The weights when the gap is reached; an interrupt returns what is there, with its gap. Of one of several processes it ends all,
        after the same step.

        Parameters
        ----------
        program : the program
        start : (P, r+1, C) weights to begin with, as from a larger beta; None begins with 0
        """
        with held_interrupts(not program.shards.alone) as interrupted:
            unit = _unit(program)
            scaled = program.rescaled(unit)
            run = Run(scaled, self, None if start is None else start / unit, interrupted)
            status = run.by_kernel() if self.takes_kernel(scaled) else run.by_steps()
        weights = unit * run.weights.cpu().numpy()
        trace = tuple(replace(entry, objective=entry.objective * unit**2) for entry in run.trace)
        objective, bound = run.objective * unit**2, run.bound * unit**2
        return GatedSolution(weights, objective, bound, unit * run.dual, status, run.iterations, run.elapsed(), trace)

    def takes_kernel(self, program: GatedProgram) -> bool:
        """Whether the kernel is the method for this program.

        Raises
        ------
        InputError
            Where it is asked for and can't be.
        """
        possible = fits_kernel(program) and self.precision != "float32"
        if self.method == "kernel" and not possible:
            raise InputError("method = 'kernel' needs one process, device='cpu', float64 and 24 n^2 bytes of max_memory: use 'steps'")
        return self.method == "kernel" or (self.method == "auto" and possible and len(program.y) <= SAMPLES)


def _unit(program: GatedProgram) -> float:
    """The unit of the targets of all samples, wherever they are: a loss that measures them does so by their norm."""
    if program.shards.samples is None:
        return program.loss.scale(program.y)
    return program.loss.scale(np.sqrt([program.shards.total_over_samples(float(np.sum(program.y**2)))]))
