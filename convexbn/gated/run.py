"""One solve of a gated program: the state of either method, working sets, screening, and what is known of the whole program."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from convexbn.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from convexbn.gated.descent import FIRST_WIDTH, Descent
from convexbn.gated.kernel import KERNEL_CHECK, KernelIterate
from convexbn.gated.program import GatedProgram
from convexbn.progress import gap_bar
from convexbn.screening import MARGIN, safe_radius
from convexbn.smoothing import smooth
from convexbn.solution import Round, Status, relative_gap
from convexbn.validation import FloatArray

if TYPE_CHECKING:
    import torch

    from convexbn.gated.solver import GatedSolver

CHECK = 5  # steps between looks at the gap of the working set
NEAR = 0.8  # of beta: arrangements that are worth as much are kept in the working set
WORTH_A_CHANGE = 0.7  # the working set shrinks when it would to that share, and so does the program by what is screened
SWITCH = 1e-4  # relative gap at which "mixed" goes over to float64
PATIENCE = 40  # looks without progress, before float32 is called exhausted


class Run:
    """The weights, the bound, and the program without the arrangements that are known to carry no weight at any optimum.

    `kept` are the numbers of the others in the `whole` program; the run ends with a look at all of that, so that its bound rests on no
    screening. `interrupted` tells of a Ctrl-C in this process that was held back: then all processes stop after the same step.
    """

    def __init__(
        self, program: GatedProgram, settings: GatedSolver, start: FloatArray | None, interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        import torch

        self.whole = self.program = program
        self.interrupted, self.late = interrupted, False
        self.settings, self.start, self.may_screen, self.most = settings, start, True, settings.iterations
        self.dtype = torch.float64 if settings.precision == "float64" else torch.float32
        self.gates = torch.as_tensor(program.gates, device=program.device)
        self.kept = torch.arange(len(self.gates), device=program.device)
        shape = (*program.gates.shape, program.y.shape[1])
        self.weights = torch.zeros(shape, dtype=torch.float64, device=program.device)
        if start is not None:
            self.weights = torch.as_tensor(start, dtype=torch.float64, device=program.device)
        self.dual, self.objective, self.bound = np.zeros_like(program.y), np.inf, -np.inf
        self.iterations, self.before, self.started = 0, 0.0, time.perf_counter()
        self.trace: list[Round] = []
        self.reached, self.stalled = np.inf, False
        self.worths = self.look(FIRST_WIDTH)

    def by_kernel(self) -> Status:
        """Iterations of ADMM until the gap is reached, or a limit."""
        settings, iterate = self.settings, KernelIterate(self.program, self.weights)
        saved, status = self.resume("kernel"), Status.LIMIT
        if saved is not None:
            iterate.restore(saved)
        with gap_bar(settings.tolerance, shown=settings.verbose) as show:
            try:
                while self.gap > settings.tolerance and not self.exhausted():
                    for _ in range(min(KERNEL_CHECK, self.most - iterate.iterations)):
                        iterate.step()
                    self.iterations, gap = iterate.iterations, iterate.gap()
                    show(gap)
                    if gap <= settings.tolerance:
                        self.weights = iterate.weights
                        self.look_at(iterate.dual())
                    self.late = self.elapsed() > settings.seconds
                    self.save(iterate)
            except KeyboardInterrupt:
                status = Status.INTERRUPTED
        self.weights = iterate.weights
        if self.gap > settings.tolerance:
            self.look_at(iterate.dual())
        return Status.OPTIMAL if self.gap <= settings.tolerance else status

    def by_steps(self) -> Status:
        """Proximal steps until the gap is reached, or a limit; the whole program has the last word."""
        saved = self.resume("steps")
        if saved is None:
            self.begin(self.worths, FIRST_WIDTH)
        else:
            self.descent = self.descend(self.tensor(saved["chosen"]), FIRST_WIDTH)
            self.descent.restore(saved)
        status = self.finish()
        if self.program.total < self.whole.total:
            self.widen()
            status = status if status is Status.INTERRUPTED else self.finish()
        return status

    def tensor(self, array: Any) -> torch.Tensor:
        """On the device of the program."""
        import torch

        return torch.as_tensor(array, device=self.program.device)

    def elapsed(self) -> float:
        """Seconds since the start, those before a break included."""
        return self.before + time.perf_counter() - self.started

    @property
    def gap(self) -> float:
        """Relative, of the whole program."""
        return relative_gap(self.objective, self.bound)

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
        self.sphere = scale * worths, safe_radius(program.loss, self.objective - bound)
        alive = program.shards.count((self.weights != 0).any(2).any(1))
        self.trace.append(Round(self.objective, self.gap, alive, self.elapsed()))
        return worths

    def choose(self, worths: torch.Tensor) -> torch.Tensor:
        """(q,) the arrangements to work on: those with weight, and those that are worth nearly beta or more."""
        import torch

        alive = (self.weights != 0).any(2).any(1)
        return torch.nonzero(alive | (worths >= NEAR * self.program.beta))[:, 0]

    def possible(self) -> torch.Tensor:
        """(P,) which arrangements may carry weight at an optimum, as far as the last look knows."""
        prices, radius = self.sphere
        return prices + radius * self.program.reach >= (1.0 - MARGIN) * self.program.beta

    def screens(self) -> bool:
        """Whether so many can not that the program goes on without them."""
        few = 0 < self.program.shards.count(self.possible()) <= WORTH_A_CHANGE * self.program.total
        return few and self.may_screen and self.gap > self.settings.tolerance

    def begin(self, worths: torch.Tensor, width: float) -> None:
        """A new descent, on what the arrangements are worth, without those that can carry no weight."""
        if self.screens():
            left = self.possible()
            self.go_on_with(self.whole.take(self.kept[left]), self.kept[left], self.weights[left])
            worths = worths[left]
        self.descent = self.descend(self.choose(worths), width)

    def go_on_with(self, program: GatedProgram, kept: torch.Tensor, weights: torch.Tensor) -> None:
        """Another part of the whole program; all at once, so that an interrupt finds them in step."""
        gates = self.tensor(program.gates)
        self.program, self.kept, self.gates, self.weights = program, kept, gates, weights

    def widen(self) -> None:
        """Back to the whole program: its bound rests on no screening."""
        weights = self.weights.new_zeros((len(self.whole.gates), *self.weights.shape[1:]))
        weights[self.kept] = self.weights
        self.go_on_with(self.whole, self.tensor(range(len(weights))), weights)
        self.bound, self.may_screen = -np.inf, False
        worths = self.look_at(self.dual)
        if self.gap > self.settings.tolerance:
            self.begin(worths, self.descent.width)

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
                    self.advance(show)
                    self.take_stock()
            except KeyboardInterrupt:
                self.collect()
                self.look(self.descent.width)
                return Status.INTERRUPTED
        return Status.OPTIMAL if self.gap <= self.settings.tolerance else Status.LIMIT

    def exhausted(self) -> bool:
        """Whether steps or time are used up, as all processes know."""
        return self.late or self.iterations >= self.most

    def target(self) -> float:
        """The gap of the working set at which to look at the whole program: what is wanted in the end, where nearly all carry weight.

        Else a tenth of the last one: then the working set may shrink, or something outside be missing.
        """
        narrow = self.dtype.itemsize < 8 and self.settings.precision == "mixed"
        goal = 0.7 * max(self.settings.tolerance, SWITCH if narrow else 0.0)
        full = self.descent.alive > WORTH_A_CHANGE * self.program.total
        return min(goal if full else max(goal, 0.1 * self.gap), 0.5 * self.reached)

    def advance(self, show: Callable[[float], None]) -> None:
        """Steps until the gap over the working set is the target, or nothing more is won."""
        best, waited = np.inf, 0
        while not self.exhausted():
            steps = min(CHECK, self.most - self.iterations)
            for _ in range(steps):
                self.step()
            gap = self.descent.gap()
            show(gap)
            best, waited = (gap, 0) if gap < 0.9 * best else (best, waited + 1)
            if gap <= self.target() or waited > PATIENCE:
                break
            self.save(self.descent)
        self.reached, self.stalled = best, waited > PATIENCE

    def step(self) -> None:
        """One step; with it the processes tell each other of interrupts and of time that is used up."""
        interrupted, late = self.descent.step(self.interrupted(), self.elapsed() > self.settings.seconds)
        self.iterations, self.late = self.iterations + 1, late > 0
        if interrupted:
            raise KeyboardInterrupt

    def collect(self) -> None:
        """Bring the weights of the working set home, unless they are, as a descent on another part of the program is about to begin."""
        if self.descent.program is not self.program:
            return
        self.weights = self.weights.clone()
        self.weights[self.descent.chosen] = self.descent.state.weights.double()

    def take_stock(self) -> None:
        """Look at the whole program; change the working set or the precision where that is called for."""
        import torch

        self.collect()
        worths, width = self.look(self.descent.width), self.descent.width
        narrow = self.dtype.itemsize < 8
        if narrow and self.settings.precision == "mixed" and (self.gap <= SWITCH or self.stalled):
            self.dtype = torch.float64
            self.begin(worths, width)
        elif narrow and self.stalled:
            self.most = self.iterations
        elif self.screens():
            self.begin(worths, width)
        else:
            self.revise(self.choose(worths))
        self.save(self.descent)

    def revise(self, chosen: torch.Tensor) -> None:
        """Another working set, where something outside of the present one is missing, or much of it is idle."""
        import torch

        count = self.program.shards.count
        missing = count(torch.isin(chosen, self.descent.chosen, invert=True))
        if missing or count(chosen >= 0) < WORTH_A_CHANGE * count(self.descent.chosen >= 0):
            self.descent = self.descend(chosen, self.descent.width)

    def save(self, method: Descent | KernelIterate) -> None:
        """Write the checkpoint, where there is to be one."""
        import torch

        if self.settings.checkpoint is None:
            return
        numbers = {"objective": self.objective, "bound": self.bound, "iterations": self.iterations, "seconds": self.elapsed()}
        arrays = {"weights": self.weights.cpu().numpy(), "kept": self.kept.cpu().numpy(), "dual": self.dual}
        inner = {f"method_{name}": value for name, value in method.saved().items()}
        save_checkpoint(self.settings.checkpoint, self.name, {**numbers, **arrays, "wide": self.dtype == torch.float64, **inner})

    def resume(self, method: str) -> dict[str, Any] | None:
        """Take up a checkpoint of that method, where there is one; what comes back is the method's own state."""
        import torch

        if self.settings.checkpoint is None:
            return None
        program = self.program
        same = method, self.settings.tolerance, self.settings.precision, self.start, program.pooling
        self.name = fingerprint(program.basis, program.gates, program.y, program.beta, program.loss, program.penalty, same)
        state = load_checkpoint(self.settings.checkpoint, self.name)
        if state is None:
            return None
        self.dtype = torch.float64 if state["wide"] else torch.float32
        kept = self.tensor(state["kept"])
        part = self.whole.take(kept) if len(kept) < self.whole.total else self.whole
        self.go_on_with(part, kept, self.tensor(state["weights"]))
        self.dual, self.objective, self.bound = state["dual"], float(state["objective"]), float(state["bound"])
        self.iterations, self.before = int(state["iterations"]), float(state["seconds"])
        return {name.removeprefix("method_"): value for name, value in state.items() if name.startswith("method_")}
