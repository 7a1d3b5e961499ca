"""Conic solvers through CVXPY; the only file that imports it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convexbn.losses import Hinge, Huber, Logistic, Squared, of_unit_size
from convexbn.losses.scaling import UnitProblem
from convexbn.program import Program
from convexbn.solution import Solution, SolverError, SolverUnavailable, Status
from convexbn.validation import FloatArray, InputError

# The loss as a CVXPY expression of the predictions f; `cp` is the module cvxpy.
EXPRESSIONS: dict[type[Any], Callable[[Any, Any, Any, FloatArray], Any]] = {
    Squared: lambda cp, loss, f, y: 0.5 * cp.sum_squares(f - y),
    Huber: lambda cp, loss, f, y: 0.5 * cp.sum(cp.huber(f - y, loss.delta)),
    Logistic: lambda cp, loss, f, y: cp.sum(cp.logistic(cp.multiply(-y, f))),
    Hinge: lambda cp, loss, f, y: cp.sum(cp.pos(1.0 - cp.multiply(y, f))),
}

# CVXPY's words for how a solve ended.
STATUSES = {
    "optimal": Status.OPTIMAL,
    "optimal_inaccurate": Status.INACCURATE,
    "user_limit": Status.LIMIT,
    "solver_error": Status.NUMERICAL,
    "infeasible": Status.IMPOSSIBLE,
    "infeasible_inaccurate": Status.IMPOSSIBLE,
    "unbounded": Status.IMPOSSIBLE,
    "unbounded_inaccurate": Status.IMPOSSIBLE,
    "infeasible_or_unbounded": Status.IMPOSSIBLE,
}

# Settings to try in turn, unless `options` says otherwise: a solver's own defaults are loose to certify by, but an
# interior-point method that is asked for more than float64 gives breaks down or ends inaccurate, on exponential cones first.
# No setting is always the best: of those that end, the neurons with the lowest objective are kept.
ATTEMPTS: dict[str, tuple[dict[str, Any], ...]] = {
    "CLARABEL": (
        {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10},
        {"max_step_fraction": 0.9},
        {"tol_gap_abs": 1e-7, "tol_gap_rel": 1e-7, "tol_feas": 1e-7},
    ),
    "SCS": ({"eps_abs": 1e-7, "eps_rel": 1e-7, "max_iters": 50_000},),
}

HOW_TO_INSTALL = {"MOSEK": "pip install 'convexbn[mosek]', and a licence from mosek.com"}


@dataclass(frozen=True)
class Conic:
    """Hand the program, with the given arrangements, to a second-order cone solver that CVXPY knows.

    Variables are s_i, s_i', their norms and the predictions; the cone constraints and the map to the predictions are written
    as sparse matrices here, since CVXPY's own compilation of them takes longer than solving. The program is solved for targets
    of unit size and scaled back. Ctrl-C leaves nothing to return and raises `KeyboardInterrupt`, but for SCS, which catches the signal and
    ends: CVXPY has the same word for that as for a breakdown.

    Attributes
    ----------
    name : CVXPY's name of the solver: CLARABEL (default), SCS, MOSEK, ECOS, QOCO, ...
    options : passed to `cvxpy.Problem.solve` as they are
    accept : the statuses that don't raise
    """

    name: str = "CLARABEL"
    options: Mapping[str, Any] = field(default_factory=dict)
    accept: tuple[Status, ...] = (Status.OPTIMAL, Status.INACCURATE)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InputError(f"name = {self.name!r} of the solver is no text: pass a name that CVXPY knows, such as 'CLARABEL'")
        object.__setattr__(self, "name", self.name.upper())
        if not isinstance(self.options, Mapping):
            raise InputError(f"options = {self.options!r} must be a dictionary of the solver's own settings")

    def solve(self, program: Program) -> Solution:
        """The neurons at the solver's optimum, with its dual point.

        Raises
        ------
        SolverUnavailable
            Where the solver is not installed, has no licence or can't take the loss.
        SolverError
            Where the solve ends with a status outside of `accept`.
        """
        import cvxpy as cp

        scaled = of_unit_size(program.y, program.loss, program.beta)
        unit = scaled.unit
        f, weights = cp.Variable(len(program.y)), cp.Variable(2 * len(program.active) * program.basis.shape[1])
        started = time.perf_counter()
        problem, link = _formulate(cp, program, scaled, f, weights)
        formulated = time.perf_counter() - started
        status, best = Status.NUMERICAL, None
        for status in self.attempts(problem):
            if weights.value is not None and status in self.accept:
                found = _neurons(unit * weights.value.reshape(-1, program.basis.shape[1]))
                dual = None if link.dual_value is None else unit * link.dual_value
                value = _objective(program, *found)
                best = (value, status, found, dual) if best is None or value < best[0] else best
        seconds = time.perf_counter() - started
        if best is None:
            raise SolverError(f"{self.name}: {status.value} (it said {problem.status!r})", status)
        _, status, (directions, outputs), dual = best
        compiled = formulated + float(problem.compilation_time or 0.0)
        return Solution(
            directions,
            outputs,
            status,
            self.name,
            dual=dual,
            iterations=int(problem.solver_stats.num_iters or 0),
            compile_seconds=compiled,
            solve_seconds=seconds - compiled,
        )

    def attempts(self, problem: Any) -> Iterator[Status]:
        """Solve a CVXPY problem with one setting after the other, as long as they break down or end inaccurate.

        Raises
        ------
        SolverUnavailable
            Where the solver is not installed, has no licence or can't take the problem.
        """
        import cvxpy as cp

        _check_installed(cp, self.name)
        for settings in ATTEMPTS.get(self.name, ({},)):
            status = self._attempt(cp, problem, {**settings, **self.options})
            yield status
            if status not in (Status.NUMERICAL, Status.INACCURATE):
                return

    def _attempt(self, cp: Any, problem: Any, settings: Mapping[str, Any]) -> Status:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # CVXPY warns of inaccuracy; the status and the certificate say it
                problem.solve(solver=self.name, **settings)
        except cp.error.SolverError as error:
            if "cannot" in str(error):  # handle this cone, solve this kind of problem: CVXPY's words before a solve begins
                raise SolverUnavailable(f"{self.name} can't take this program ({error}): use CLARABEL or SCS") from error
            return Status.NUMERICAL
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise InputError(f"options = {dict(self.options)} were refused by {self.name} ({error}): see its documentation") from error
        except Exception as error:
            if _is_licence_error(error):
                raise SolverUnavailable(
                    f"{self.name} has no valid licence here ({error}): install one, or use solver='CLARABEL', which needs none"
                ) from error
            raise
        return STATUSES.get(problem.status, Status.NUMERICAL)


def _is_licence_error(error: Exception) -> bool:
    """Solvers raise their own classes for a missing licence; all of them say the word."""
    words = f"{type(error).__name__} {error}".lower()
    return "licen" in words


def _check_installed(cp: Any, name: str) -> None:
    from cvxpy.reductions.solvers.defines import SOLVER_MAP_CONIC

    conic = sorted(n for n in cp.installed_solvers() if n in SOLVER_MAP_CONIC and cp.SOC in SOLVER_MAP_CONIC[n].SUPPORTED_CONSTRAINTS)
    if name in conic:
        return
    if name in SOLVER_MAP_CONIC and cp.SOC in SOLVER_MAP_CONIC[name].SUPPORTED_CONSTRAINTS:
        advice = HOW_TO_INSTALL.get(name, f"install it (see CVXPY's page on {name})")
        raise SolverUnavailable(f"{name} is not installed: {advice}; or use one of {', '.join(conic)}")
    raise SolverUnavailable(
        f"solver {name!r} is no second-order cone solver that CVXPY knows: use one of {', '.join(conic)}; or 'auto', "
        "'sliding', 'active set' or 'closed form'"
    )


def _formulate(cp: Any, program: Program, scaled: UnitProblem, f: Any, weights: Any) -> tuple[Any, Any]:
    """The CVXPY problem in its unit, and its constraint f = forward(weights), whose multiplier is minus the gradient of the loss."""
    forward, cones = conic_matrices(program)
    width = program.basis.shape[1]
    norms = cp.Variable(weights.size // width)
    link = f == forward @ weights
    constraints = [link, cones @ weights >= 0, cp.SOC(norms, cp.reshape(weights, (width, norms.size), order="F"), axis=0)]
    objective = loss_expression(cp, scaled, f) + scaled.beta * cp.sum(norms)
    return cp.Problem(cp.Minimize(objective), constraints), link


def loss_expression(cp: Any, scaled: UnitProblem, f: Any) -> Any:
    """L(f, y) of predictions f, a CVXPY variable.

    Raises
    ------
    SolverUnavailable
        For a loss that has no entry in `EXPRESSIONS`.
    """
    expression = EXPRESSIONS.get(type(scaled.loss))
    if expression is None:
        raise SolverUnavailable(f"the {scaled.loss.name} loss has no CVXPY expression: add one to convexbn.solvers.conic.EXPRESSIONS")
    return expression(cp, scaled.loss, f, scaled.y)


def conic_matrices(program: Program) -> tuple[Any, Any]:
    """The sparse matrices of `forward`, (n, 2P(r+1)), and of the cone constraints, (2nKP, 2P(r+1)), on weights in C order (2, P, r+1).

    Both are written column by column: column (i, k) of the first is D_i u_k, pooled over patches, of the second (2 D_i - I) u_k in
    block i.
    """
    from scipy import sparse

    rows, width = program.basis.shape
    active = program.active
    blocks = 2 * len(active)
    images = active[:, None, :] * program.basis.T
    columns = np.concatenate([images, -images]).reshape(blocks * width, rows)
    forward = sparse.csc_array(program.pooling.pool(columns.T))
    signed = (2.0 * active - 1.0)[:, None, :] * program.basis.T
    values = np.concatenate([signed, signed]).ravel()
    places = np.repeat(np.arange(blocks * rows).reshape(blocks, 1, rows), width, axis=1).ravel()
    starts = np.arange(blocks * width + 1) * rows
    cones = sparse.csc_array((values, places, starts), shape=(blocks * rows, blocks * width))
    return forward, cones


def _objective(program: Program, directions: FloatArray, outputs: FloatArray) -> float:
    """The objective of the neurons as a network: ReLU, not the arrangements that the solver assumed."""
    predictions = program.pooling.pool(np.maximum(program.basis @ directions.T, 0.0)) @ outputs[:, 0]
    return program.loss.value(predictions, program.y) + program.beta * float(np.sum(np.abs(outputs)))


def _neurons(weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Unit directions and outputs of the blocks (2P, r+1); the second half enters the predictions with a minus."""
    size = np.linalg.norm(weights, axis=1)
    signs = np.repeat([1.0, -1.0], len(weights) // 2)
    alive = size > 0
    return weights[alive] / size[alive, None], (signs * size)[alive, None]
