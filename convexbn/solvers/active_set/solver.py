"""The exact program over listed arrangements with their cones, by pricing, amplitudes and Newton's method on the blocks that count."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from convexbn.devices import check_device, need_torch
from convexbn.interrupts import held_interrupts
from convexbn.program import Program
from convexbn.progress import console
from convexbn.shards import Shards
from convexbn.solution import Round, Solution, Status
from convexbn.solvers.active_set.state import State
from convexbn.solvers.masked import MAX_MEMORY
from convexbn.threads import few_threads
from convexbn.validation import FloatArray, InputError, check_count, check_positive

STALLED = 20  # rounds that win nothing: then the gap is what rounding allows


@dataclass(frozen=True)
class ActiveSet:
    """Solve the program over listed arrangements, cones included, without writing its matrix out:

        min  L( sum_i D_i U'(s_i - s_i'), y ) + beta sum_i ( ||s_i|| + ||s_i'|| )    s.t.  (2 D_i - I) U' s_i >= 0, same for s_i'.

    At the optimum few blocks s_i are not zero, and those lie on faces of a few dimensions of their cones. Each round (a) **prices**
    the blocks: the projection of +-U'^T D_i V on the cone, V = -grad L(f), longer than beta where a block violates the dual; any
    lengths bound the optimum from below; (b) while the gap is wide, solves for the **amplitudes** of the present directions and
    the projections, a lasso; (c) then takes **proximal** steps by Newton's method on the faces of the cones: quadratic convergence
    to the last digits. Every iterate lies in its cones, so the objective is that of a true network.

    Products with all samples are taken by PyTorch, in tiles, on the device; projections solve small problems on the host. Under
    `torchrun` every process passes the program of its own part of the arrangements, and all get the solution of the whole
    (`docs/scale.md`).

    The basis need not be orthonormal. One output; losses with kinks are smoothed, and the proximal steps take the smoothing
    away. Sources: column generation, with the semismooth Newton method (Li, Sun and Toh 2018) on group norms with cones; math in
    `docs/theory.md`, section 17.

    Attributes
    ----------
    tolerance : of the relative gap between objective and bound
    rounds : at most so many
    seconds : and at most for so long
    warm_start : directions (m, r+1) and outputs (m, 1) to begin with, as `convexbn.neurons_of` reads them from a network; neurons of
        arrangements that are not listed are left out
    device : where products are taken, "cpu" or "cuda"
    max_memory : bytes for masks and temporary arrays, beyond basis and arrangements
    shards : which part of the arrangements this process has; samples are not spread
    checkpoint : a file to which the state is written after each round; a run that finds its own there goes on from it, and ends
        bit for bit as without the break. `rounds`, `seconds` and `verbose` may differ; each of several processes has a file of its own
    verbose : print a line a round
    """

    tolerance: float = 1e-7
    rounds: int = 200
    seconds: float = 3600.0
    warm_start: tuple[FloatArray, FloatArray] | None = None
    device: str = "cpu"
    max_memory: int = MAX_MEMORY
    shards: Shards = field(default_factory=Shards)
    checkpoint: str | os.PathLike[str] | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        check_positive(self.tolerance, "tolerance")
        check_positive(self.seconds, "seconds")
        check_count(self.rounds, "rounds")
        check_count(self.max_memory, "max_memory")
        check_device(self.device)
        if self.shards.samples is not None:
            raise InputError("shards spread samples, but the active set needs all of them in each process: spread arrangements instead")

    def solve(self, program: Program) -> Solution:
        """The neurons, each in the cone of a listed arrangement, and the dual point of the bound; an interrupt returns the best so far.

        Of one of several processes it ends all, after the same round.

        Raises
        ------
        InputError
            For a program whose arrangements are not listed, too little memory, and where PyTorch is missing.
        """
        need_torch("this solver", "choose solver='CLARABEL', which is slower")
        with few_threads(program.basis.size):
            return self._solve(program)

    def _solve(self, program: Program) -> Solution:
        started = time.perf_counter()
        with held_interrupts(not self.shards.alone) as interrupted:
            state = State(program, self)
            start = time.perf_counter() - (state.trace[-1].seconds if state.trace else 0.0)
            status = Status.LIMIT
            try:
                while status is Status.LIMIT and self._goes_on(state, time.perf_counter() - start, interrupted()):
                    state.round()
                    state.trace.append(Round(state.lowest * state.unit**2, state.gap, len(state.best.blocks), time.perf_counter() - start))
                    state.save()
                    if self.verbose:
                        _print(len(state.trace), state.trace[-1])
                    if state.shards.each_over_arrangements(state.gap <= self.tolerance or state.stalled >= STALLED).any():
                        status = Status.OPTIMAL if state.gap <= self.tolerance else Status.INACCURATE
            except KeyboardInterrupt:
                status = Status.INTERRUPTED
        directions, outputs = state.neurons(state.best)
        return Solution(
            directions,
            state.unit * outputs[:, None],
            status,
            "active set",
            dual=state.unit * state.dual,
            iterations=len(state.trace),
            solve_seconds=time.perf_counter() - started,
            trace=tuple(state.trace),
        )

    def _goes_on(self, state: State, seconds: float, interrupted: bool) -> bool:
        """Whether rounds and time are left, in all processes; an interrupt in one of them interrupts them all."""
        used = len(state.trace) >= self.rounds or seconds >= self.seconds
        uses, interrupts = state.shards.each_over_arrangements(used, interrupted).T
        if interrupts.any():
            raise KeyboardInterrupt
        return not uses.any()


def _print(number: int, entry: Round) -> None:
    console().print(
        f"convexbn: round {number}, objective {entry.objective:.8g}, gap {entry.gap:.1e}, {entry.neurons} neurons, {entry.seconds:.1f} s"
    )
