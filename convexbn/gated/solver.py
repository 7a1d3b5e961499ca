"""The solver of gated programs: accelerated proximal gradient in a metric, over working sets, stopped by the duality gap."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from convexbn.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from convexbn.gated.descent import FIRST_WIDTH, Descent
from convexbn.gated.kernel import KERNEL_CHECK, SAMPLES, KernelIterate, fits_kernel
from convexbn.gated.program import GatedProgram
from convexbn.progress import gap_bar
from convexbn.smoothing import smooth
from convexbn.solution import Round, Status
from convexbn.validation import FloatArray, InputError, check_count, check_positive

if TYPE_CHECKING:
    import torch

CHECK = 5  # steps between looks at the gap of the working set
NEAR = 0.8  # of beta: arrangements that are worth as much are kept in the working set
WORTH_A_CHANGE = 0.7  # the working set shrinks when it would to that share
SWITCH = 1e-4  # relative gap at which "mixed" goes over to float64
PATIENCE = 40  # looks without progress, before float32 is called exhausted


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
    iterations : proximal steps
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
    def gap(self) -> float:
        """Objective minus bound, not below 0."""
        return max(0.0, self.objective - self.bound)

    @property
    def relative_gap(self) -> float:
        """gap / objective; 0 for an objective of 0."""
        return self.gap / self.objective if self.objective > 0 else 0.0


@dataclass(frozen=True)
class GatedSolver:
    """Solve a gated program  min L( sum_i D_i U' S_i, Y ) + beta sum_i ||S_i||  to a relative duality gap.

    Accelerated proximal gradient steps (Nesterov 1983; Beck and Teboulle 2009) with restarts (O'Donoghue and Candes 2015), in a metric that
    takes the common part of all arrangements out of the step size (`convexbn.gated.metric`), on a working set of arrangements. The gap
    is that of the whole program, in float64: V = -grad L, scaled by the exact maximum over all gates.

    Attributes
    ----------
    tolerance : of the relative gap
    iterations : at most so many steps
    seconds : and at most for so long
    method : "steps" as above; "kernel", ADMM with a Cholesky factor of an n x n kernel, exact also for losses with kinks
        (`convexbn.gated.kernel`); "auto" takes the kernel for up to 3000 samples on one processor, where no checkpoint is asked for
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
        """The weights when the gap is reached; an interrupt returns what is there, with its gap.

        Parameters
        ----------
        program : the program
        start : (P, r+1, C) weights to begin with, as from a larger beta; None begins with 0
        """
        unit = _unit(program)
        scaled = program.rescaled(unit)
        run = _Run(scaled, self, None if start is None else start / unit)
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
        possible = fits_kernel(program) and self.checkpoint is None and self.precision != "float32"
        if self.method == "kernel" and not possible:
            raise InputError(
                "method = 'kernel' needs one process, device='cpu', no checkpoint, float64 and 24 n^2 bytes of max_memory: use 'steps'"
            )
        return self.method == "kernel" or (self.method == "auto" and possible and len(program.y) <= SAMPLES)


def _unit(program: GatedProgram) -> float:
    """The unit of the targets of all samples, wherever they are: a loss that measures them does so by their norm."""
    if program.shards.samples is None:
        return program.loss.scale(program.y)
    return program.loss.scale(np.sqrt([program.shards.total_over_samples(float(np.sum(program.y**2)))]))


def _single() -> torch.dtype:
    """float32, without PyTorch at import."""
    import torch

    return torch.float32


class _Run:
    """One solve: the descent on the working set, the weights of all arrangements, and what is known of the whole program."""

    def __init__(self, program: GatedProgram, settings: GatedSolver, start: FloatArray | None) -> None:
        import torch

        self.program, self.settings = program, settings
        self.start = start
        self.dtype = torch.float64 if settings.precision == "float64" else torch.float32
        self.gates = torch.as_tensor(program.gates, device=program.device)
        shape = (*program.gates.shape, program.y.shape[1])
        self.weights = torch.zeros(shape, dtype=torch.float64, device=program.device)
        if start is not None:
            self.weights = torch.as_tensor(start, dtype=torch.float64, device=program.device)
        self.dual, self.objective, self.bound = np.zeros_like(program.y), np.inf, -np.inf
        self.iterations, self.before, self.begin = 0, 0.0, time.perf_counter()
        self.trace: list[Round] = []
        self.reached, self.stalled = np.inf, False
        self.worths = self.look(FIRST_WIDTH)

    def by_kernel(self) -> Status:
        """Iterations of ADMM until the gap is reached, or a limit."""
        settings, iterate = self.settings, KernelIterate(self.program, self.weights)
        status = Status.LIMIT
        with gap_bar(settings.tolerance, shown=settings.verbose) as show:
            try:
                while self.gap > settings.tolerance and not self.exhausted():
                    for _ in range(KERNEL_CHECK):
                        iterate.step()
                    self.iterations, gap = iterate.iterations, iterate.gap()
                    show(gap)
                    if gap <= settings.tolerance:
                        self.weights = iterate.weights
                        self.look_at(iterate.dual())
            except KeyboardInterrupt:
                status = Status.INTERRUPTED
        self.weights = iterate.weights
        if self.gap > settings.tolerance:
            self.look_at(iterate.dual())
        return Status.OPTIMAL if self.gap <= settings.tolerance else status

    def by_steps(self) -> Status:
        """Proximal steps until the gap is reached, or a limit."""
        settings, program = self.settings, self.program
        self.descent = self.descend(self.choose(self.worths), FIRST_WIDTH)
        if settings.checkpoint is not None:
            same = settings.tolerance, settings.precision, self.start, program.pooling
            self.name = fingerprint(program.basis, program.gates, program.y, program.beta, program.loss, program.penalty, same)
            self.load(load_checkpoint(settings.checkpoint, self.name))
        return self.finish()

    def elapsed(self) -> float:
        """Seconds since the start, those before a break included."""
        return self.before + time.perf_counter() - self.begin

    @property
    def gap(self) -> float:
        """Relative, of the whole program."""
        return (self.objective - self.bound) / self.objective if self.objective > 0 else 0.0

    def look(self, width: float) -> torch.Tensor:
        """Objective and bound of the whole program at the weights, in float64; (P,) what the arrangements are worth.

        The dual point is minus the gradient of the loss with its kinks smoothed to `width`: at a kink the gradient itself says little.
        """
        program = self.program
        predictions = program.predictions(self.weights)
        return self.look_at(-program.loss.project(smooth(program.loss, width).gradient(predictions, program.y), program.y), predictions)

    def look_at(self, v: FloatArray, predictions: FloatArray | None = None) -> torch.Tensor:
        """The same with another dual point V, in the domain of the conjugate."""
        program = self.program
        worths = program.worths(v)
        bound, scale = program.bound(v, program.shards.largest(worths))
        self.objective = program.objective(self.weights, predictions)
        if bound > self.bound:
            self.bound, self.dual = bound, scale * v
        alive = program.shards.count((self.weights != 0).any(2).any(1))
        self.trace.append(Round(self.objective, self.gap, alive, self.elapsed()))
        return worths

    def choose(self, worths: torch.Tensor) -> torch.Tensor:
        """(q,) the arrangements to work on: those with weight, and those that are worth nearly beta or more."""
        import torch

        alive = (self.weights != 0).any(2).any(1)
        return torch.nonzero(alive | (worths >= NEAR * self.program.beta))[:, 0]

    def descend(self, chosen: torch.Tensor, width: float) -> Descent:
        """A descent over those arrangements in the present precision, from the present weights."""
        count = self.program.shards.count(chosen >= 0)
        if not count or count > WORTH_A_CHANGE * self.program.total:
            chosen = chosen.new_tensor(range(len(self.weights)))
        operator = self.program.operator if len(chosen) == len(self.weights) else self.program.operator.take(chosen)
        if operator.basis.dtype != self.dtype:
            operator = operator.to(self.dtype)
        return Descent(self.program, operator, chosen, self.gates[chosen], self.weights[chosen], width)

    def finish(self) -> Status:
        """Steps until the gap is reached, or a limit."""
        with gap_bar(self.settings.tolerance, shown=self.settings.verbose) as show:
            try:
                while self.gap > self.settings.tolerance and not self.exhausted():
                    self.advance(self.target(), show)
                    self.take_stock()
            except KeyboardInterrupt:
                self.collect()
                self.look(self.descent.width)
                return Status.INTERRUPTED
        return Status.OPTIMAL if self.gap <= self.settings.tolerance else Status.LIMIT

    def exhausted(self) -> bool:
        """Whether steps or time are used up; all processes decide alike."""
        shards = self.program.shards
        late = shards.total_over_arrangements(shards.total_over_samples(float(self.elapsed() > self.settings.seconds)))
        return self.iterations >= self.settings.iterations or late > 0

    def target(self) -> float:
        """The gap of the working set at which to look at the whole program: a tenth of the last one, or what is wanted in the end."""
        narrow = self.dtype == _single() and self.settings.precision == "mixed"
        goal = 0.7 * max(self.settings.tolerance, SWITCH if narrow else 0.0)
        complete = self.program.shards.count(self.descent.chosen >= 0) == self.program.total
        return min(goal if complete else max(goal, 0.1 * self.gap), 0.5 * self.reached)

    def advance(self, target: float, show: Callable[[float], None]) -> None:
        """Steps until the gap over the working set is `target`, or nothing more is won."""
        best, waited = np.inf, 0
        while not self.exhausted():
            for _ in range(CHECK):
                self.descent.step()
            self.iterations += CHECK
            gap = self.descent.gap()
            show(gap)
            best, waited = (gap, 0) if gap < 0.9 * best else (best, waited + 1)
            if gap <= target or waited > PATIENCE:
                break
            self.save()
        self.reached, self.stalled = best, waited > PATIENCE

    def collect(self) -> None:
        """Bring the weights of the working set home."""
        self.weights = self.weights.clone()
        self.weights[self.descent.chosen] = self.descent.state.weights.double()

    def take_stock(self) -> None:
        """Look at the whole program; change the working set or the precision where that is called for."""
        import torch

        self.collect()
        chosen = self.choose(self.look(self.descent.width))
        narrow = self.dtype == _single()
        if narrow and self.settings.precision == "mixed" and (self.gap <= SWITCH or self.stalled):
            self.dtype = torch.float64
            self.descent = self.descend(chosen, self.descent.width)
        elif narrow and self.stalled:
            self.settings = replace(self.settings, iterations=self.iterations)
        else:
            self.revise(chosen)
        self.save()

    def revise(self, chosen: torch.Tensor) -> None:
        """Another working set, where something outside of the present one is missing, or much of it is idle."""
        import torch

        count = self.program.shards.count
        missing = count(torch.isin(chosen, self.descent.chosen, invert=True))
        if missing or count(chosen >= 0) < WORTH_A_CHANGE * count(self.descent.chosen >= 0):
            self.descent = self.descend(chosen, self.descent.width)

    def save(self) -> None:
        """Write the checkpoint, where there is to be one."""
        if self.settings.checkpoint is None:
            return
        numbers = {"objective": self.objective, "bound": self.bound, "iterations": self.iterations, "seconds": self.elapsed()}
        arrays = {"weights": self.weights.cpu().numpy(), "dual": self.dual, "wide": str(self.dtype).endswith("64")}
        descent = {f"descent_{name}": value for name, value in self.descent.saved().items()}
        save_checkpoint(self.settings.checkpoint, self.name, {**numbers, **arrays, **descent})

    def load(self, state: dict[str, Any] | None) -> None:
        """Take up a checkpoint."""
        import torch

        if state is None:
            return
        self.dtype = torch.float64 if state["wide"] else torch.float32
        self.weights = torch.as_tensor(state["weights"], device=self.program.device)
        self.dual, self.objective, self.bound = state["dual"], float(state["objective"]), float(state["bound"])
        self.iterations, self.before = int(state["iterations"]), float(state["seconds"])
        self.descent = self.descend(torch.as_tensor(state["descent_chosen"], device=self.program.device), FIRST_WIDTH)
        self.descent.restore({name.removeprefix("descent_"): value for name, value in state.items() if name.startswith("descent_")})
