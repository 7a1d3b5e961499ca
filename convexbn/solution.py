"""What a solver is and what it returns: a status that carries advice, and the neurons."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from convexbn.program import Program
from convexbn.validation import ConvexBNError, FloatArray, InputError, real_array


class Status(enum.Enum):
    """How a solve ended; the value is the advice."""

    OPTIMAL = "solved to the solver's tolerance"
    INACCURATE = "solved to less than the solver's tolerance: read the certificate's gap; scale X or y, or try another solver"
    LIMIT = "stopped at a limit of iterations or time: raise it in the solver's options, or loosen its tolerances"
    NUMERICAL = "the solver broke down numerically: try CLARABEL, a larger beta, or data without nearly collinear columns"
    IMPOSSIBLE = "the solver calls the program infeasible or unbounded, which it never is: try another solver"
    INTERRUPTED = "interrupted: what is here is the best so far"

    @property
    def usable(self) -> bool:
        """Whether there are neurons worth judging."""
        return self in (Status.OPTIMAL, Status.INACCURATE, Status.INTERRUPTED)


class SolverError(ConvexBNError, RuntimeError):
    """A solve failed; `status` says how and what to try."""

    def __init__(self, message: str, status: Status = Status.NUMERICAL) -> None:
        super().__init__(message)
        self.status = status


class SolverUnavailable(SolverError):
    """A solver is not installed, has no licence, or can't take this kind of program."""


@dataclass(frozen=True)
class Round:
    """One round of an iterative solver: objective, estimated relative gap, number of neurons, seconds since the start."""

    objective: float
    gap: float
    neurons: int
    seconds: float


def relative_gap(objective: float, bound: float) -> float:
    """(objective - bound) / objective, not below 0; 0 for an objective of 0."""
    return max(0.0, objective - bound) / objective if objective > 0 else 0.0


@dataclass(frozen=True)
class Solution:
    """The neurons that a solver found: f = sum_j (U' s_j)_+ w_j^T with unit directions, at the penalty beta sum_j ||w_j||.

    Attributes
    ----------
    directions : (m, r+1) the s_j, of norm 1
    outputs : (m, C) the w_j, in the unit of the targets
    status : how the solve ended
    solver : who solved, for people to read
    dual : of the shape of y, the solver's dual point V, or None: a suggestion that the certificate checks and need not believe
    iterations : as the solver counts them
    compile_seconds : time spent on bringing the program into the solver's form
    solve_seconds : time spent in the solver
    trace : the rounds of an iterative solver
    """

    directions: FloatArray
    outputs: FloatArray
    status: Status
    solver: str
    dual: FloatArray | None = None
    iterations: int = 0
    compile_seconds: float = 0.0
    solve_seconds: float = 0.0
    trace: tuple[Round, ...] = ()


class Solver(Protocol):
    """A frozen record of settings with one method."""

    def solve(self, program: Program) -> Solution:
        """Solve the program, or raise `SolverError`."""
        ...


def starting_neurons(warm_start: tuple[FloatArray, FloatArray] | None, program: Program) -> tuple[FloatArray, FloatArray]:
    """The neurons (U' s_j)_+ w_j^T of a warm start with ||s_j|| = 1: directions (m, r+1) and outputs (m, C); none for None.

    A solver's penalty is the sum of the ||w_j||, so the lengths of other directions go to their outputs.

    Raises
    ------
    InputError
        For anything but a pair of arrays of numbers, of those shapes.
    """
    columns, count = program.basis.shape[1], 1 if program.y.ndim == 1 else program.y.shape[1]
    if warm_start is None:
        return np.zeros((0, columns)), np.zeros((0, count))
    if not isinstance(warm_start, (tuple, list)) or len(warm_start) != 2:
        raise InputError("warm_start is no pair (directions, outputs): pass neurons_of(whitening, network)")
    directions, outputs = (real_array(part, f"warm_start[{k}]") for k, part in enumerate(warm_start))
    if directions.shape != (len(outputs), columns) or outputs.shape != (len(directions), count):
        raise InputError(
            f"warm_start has arrays of shapes {directions.shape} and {outputs.shape}, not (m, {columns}) and (m, {count}): "
            "pass neurons_of(whitening, network), of this basis and these targets"
        )
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    alive = length[:, 0] > 0
    return directions[alive] / length[alive], outputs[alive] * length[alive]
