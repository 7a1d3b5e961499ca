from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from problems import (
    LOSSES,
    Problem,
    best_of_lbfgs,
    degenerate_problems,
    grid,
    objective_after,
    optimum_of,
    program_of,
    random_problem,
    random_problems,
)
from scipy.sparse import csr_array

from convexbn.losses import Huber, Logistic, Loss, Squared
from convexbn.pricing import price_arrangements
from convexbn.program import Program
from convexbn.solution import SolverError, SolverUnavailable, Status
from convexbn.solvers import Conic
from convexbn.validation import InputError

PROBLEMS = random_problems() + degenerate_problems()
each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)
SHAPES = [*random_problems(1), *degenerate_problems()]
each_shape = pytest.mark.parametrize("problem", SHAPES, ids=str)
each_small = pytest.mark.parametrize("problem", [problem for problem in SHAPES if len(problem.y) < 10], ids=str)  # SCS takes its time
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=str)


def objective_by(solver: Conic, problem: Problem, fraction: float = 0.1) -> tuple[float, Program]:
    """The raw objective of the network that comes back, and the program."""
    whitening, program = program_of(problem, fraction)
    return objective_after(solver.solve(program), whitening, problem, program.beta), program


@each_problem
def test_clarabel_network_attains_the_convex_optimum(problem: Problem):
    objective, program = objective_by(Conic(), problem)
    assert objective == pytest.approx(optimum_of(program), rel=1e-6, abs=1e-7)


@each_small
def test_scs_network_attains_the_convex_optimum(problem: Problem):
    objective, program = objective_by(Conic("SCS"), problem)
    assert objective == pytest.approx(optimum_of(program), rel=1e-4, abs=1e-6)


@each_problem
def test_dual_point_proves_the_optimum(problem: Problem):
    whitening, program = program_of(problem)
    solution = Conic().solve(program)
    v = -problem.loss.project(-solution.dual, problem.y)
    price = price_arrangements(program.basis, v, program.arrangements.active).upper
    bound = program.dual_objective(v * min(1.0, program.beta / price if price else 1.0))
    objective = objective_after(solution, whitening, problem, program.beta)
    assert bound <= objective
    assert bound == pytest.approx(objective, rel=1e-6, abs=1e-7)


@each_shape
def test_gradient_descent_never_gets_below(problem: Problem):
    objective, program = objective_by(Conic(), problem)
    width = min(len(problem.y) + 1, 8)
    reached = best_of_lbfgs(problem.X, problem.y, problem.loss, program.beta, width, starts=60, seed=1, iterations=300)
    assert reached >= objective - 1e-7 * max(objective, 1e-3)
    assert reached <= 1.05 * objective or problem.name == "zero targets"


@each_loss
@pytest.mark.parametrize("fraction", [1e-3, 0.5, 0.99, 1.01])
def test_clarabel_over_the_whole_range_of_beta(loss: Loss, fraction: float):
    problem = random_problem(loss, 7, 2, 11)
    objective, program = objective_by(Conic(), problem, fraction)
    assert objective == pytest.approx(optimum_of(program), rel=1e-6, abs=1e-7)
    assert (objective < loss.value(np.zeros(7), problem.y) * (1.0 - 1e-7)) is (fraction < 1.0)


def dearest_neuron(basis: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The unit s with the largest |v^T (U's)_+| for r = 1, among the centres of all arcs and the ends of them: exact."""
    ends = np.concatenate([np.column_stack([-basis[:, 1], basis[:, 0]]), np.column_stack([basis[:, 1], -basis[:, 0]])])
    ends /= np.linalg.norm(ends, axis=1, keepdims=True)
    angles = np.sort(np.arctan2(ends[:, 1], ends[:, 0]))
    middles = (angles + np.append(angles[1:], angles[0] + 2.0 * np.pi)) / 2.0
    active = basis @ np.stack([np.cos(middles), np.sin(middles)]) > 0
    centres = (active * v[:, None]).T @ basis
    centres = centres[np.linalg.norm(centres, axis=1) > 0]
    candidates = np.concatenate([ends, centres, -centres])
    candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
    return candidates[np.argmax(np.abs(v @ np.maximum(basis @ candidates.T, 0.0)))]


@pytest.mark.parametrize("loss", [Squared(), Huber(50.0)], ids=str)
@pytest.mark.parametrize("name", ["CLARABEL", "SCS"])
@pytest.mark.parametrize("seed", range(4))
def test_a_problem_built_backwards_from_its_optimum(loss: Loss, name: str, seed: int):
    """Samples at -x and x and a dual point that is odd: the two mirrored neurons, of opposite signs, are the dearest ones."""
    generator = np.random.default_rng(seed)
    x, half = generator.uniform(0.1, 3.0, 5), generator.standard_normal(5)
    X, v = np.concatenate([-x, x])[:, None], np.concatenate([-half, half])
    basis = program_of(Problem("mirrored", X, v, loss))[0].basis
    s = dearest_neuron(basis, v)
    mirrored = s * [-1.0, 1.0]
    hidden = np.maximum(basis @ np.stack([s, mirrored], axis=1), 0.0)
    beta = abs(v @ hidden[:, 0])
    assert v @ hidden[:, 1] == pytest.approx(-(v @ hidden[:, 0]), rel=1e-12)
    outputs = np.sign(v @ hidden) * generator.uniform(1.0, 4.0, 2)
    problem = Problem("backwards", X, hidden @ outputs + v, loss)
    whitening, program = program_of(problem)
    solution = Conic(name).solve(Program(program.basis, problem.y, loss, beta, program.arrangements))
    objective = objective_after(solution, whitening, problem, beta)
    assert objective == pytest.approx(0.5 * v @ v + beta * np.abs(outputs).sum(), rel=1e-7 if name == "CLARABEL" else 1e-6)
    assert solution.dual == pytest.approx(v, abs=1e-4)


@pytest.mark.parametrize("unit", [1e-8, 1e8])
@pytest.mark.parametrize("loss", [Squared(), Huber(0.7)], ids=str)
def test_units_of_the_targets_scale_the_objective(loss: Loss, unit: float):
    problem = random_problem(loss, 8, 2, 5)
    objective, program = objective_by(Conic(), problem)
    scaled = Problem("scaled", problem.X, unit * problem.y, Huber(0.7 * unit) if isinstance(loss, Huber) else loss)
    whitening, _ = program_of(scaled)
    solution = Conic().solve(Program(program.basis, scaled.y, scaled.loss, unit * program.beta, program.arrangements))
    assert objective_after(solution, whitening, scaled, unit * program.beta) == pytest.approx(unit**2 * objective, rel=1e-8)


def test_names_are_read_in_any_case():
    assert Conic("clarabel") == Conic()
    assert Conic("scs").solve(program_of(random_problem(Squared(), 4, 1, 0))[1]).solver == "SCS"


@pytest.mark.parametrize("name", ["OSQP", "HIGHS", "SCIPY", "SIMPLEX"])
def test_solvers_without_second_order_cones_are_refused(name: str):
    with pytest.raises(SolverUnavailable, match=f"'{name}' is no second-order cone solver that CVXPY knows: use one of CLARABEL.*SCS"):
        Conic(name).solve(program_of(random_problem(Squared(), 4, 1, 0))[1])


@pytest.mark.parametrize("name", ["CLARABEL", "SCS", "MOSEK"])
def test_options_that_the_solver_does_not_know_are_refused(name: str):
    with pytest.raises(InputError, match=rf"options = \{{'patience': 3\}} were refused by {name}"):
        Conic(name, {"patience": 3}).solve(program_of(random_problem(Squared(), 4, 1, 0))[1])


def test_options_are_a_dictionary():
    with pytest.raises(InputError, match="options = 7 must be a dictionary"):
        Conic(options=7)


def test_a_loss_without_an_expression_is_named():
    @dataclass(frozen=True)
    class Quantile(Squared):
        name = "quantile"

    _, program = program_of(random_problem(Squared(), 4, 1, 0))
    with pytest.raises(SolverUnavailable, match=r"quantile loss has no CVXPY expression.*EXPRESSIONS"):
        Conic().solve(Program(program.basis, program.y, Quantile(), 1.0, program.arrangements))


def test_a_solver_that_cannot_take_the_loss_is_named(monkeypatch: pytest.MonkeyPatch):
    from cvxpy.reductions.solvers.defines import SOLVER_MAP_CONIC

    solver = type(SOLVER_MAP_CONIC["SCS"])
    monkeypatch.setattr(solver, "SUPPORTED_CONSTRAINTS", [kind for kind in solver.SUPPORTED_CONSTRAINTS if kind is not cp.ExpCone])
    assert Conic("SCS").solve(program_of(random_problem(Squared(), 4, 1, 0))[1]).status is Status.OPTIMAL
    with pytest.raises(SolverUnavailable, match=r"SCS can't take this program.*use CLARABEL or SCS"):
        Conic("SCS").solve(program_of(random_problem(Logistic(), 4, 1, 0))[1])


def test_the_iteration_limit_raises_with_its_advice():
    _, program = program_of(random_problem(Logistic(), 8, 2, 0))
    with pytest.raises(SolverError, match="CLARABEL: stopped at a limit of iterations or time: raise it") as caught:
        Conic(options={"max_iter": 3}).solve(program)
    assert caught.value.status is Status.LIMIT


def test_the_iteration_limit_returns_what_is_there_when_accepted():
    problem = random_problem(Logistic(), 8, 2, 0)
    whitening, program = program_of(problem)
    solution = Conic(options={"max_iter": 3}, accept=(Status.OPTIMAL, Status.LIMIT)).solve(program)
    assert (solution.status, solution.iterations) == (Status.LIMIT, 3)
    assert objective_after(solution, whitening, problem, program.beta) > optimum_of(program)


def test_a_strict_caller_gets_an_error_for_inaccurate_solutions():
    _, program = program_of(random_problem(Logistic(), 8, 2, 0))
    assert Conic("SCS", {"max_iters": 5}).solve(program).status is Status.INACCURATE
    with pytest.raises(SolverError, match="solved to less than the solver's tolerance") as caught:
        Conic("SCS", {"max_iters": 5}, accept=(Status.OPTIMAL,)).solve(program)
    assert caught.value.status is Status.INACCURATE


def clarabel_that_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    from cvxpy.reductions.solvers.conic_solvers.clarabel_conif import CLARABEL

    def solve_via_data(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(CLARABEL, "solve_via_data", solve_via_data)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("full")], ids=repr)
def test_errors_that_are_not_the_solver_s_propagate(monkeypatch: pytest.MonkeyPatch, error: BaseException):
    _, program = program_of(random_problem(Squared(), 4, 1, 0))
    clarabel_that_raises(monkeypatch, error)
    with pytest.raises(type(error)):
        Conic().solve(program)


def test_a_limit_of_the_caller_is_spent_once(monkeypatch: pytest.MonkeyPatch):
    from cvxpy.reductions.solvers.conic_solvers.clarabel_conif import CLARABEL

    solve_via_data, calls = CLARABEL.solve_via_data, []
    monkeypatch.setattr(CLARABEL, "solve_via_data", lambda *arguments: calls.append(1) or solve_via_data(*arguments))
    with pytest.raises(SolverError, match="limit"):
        Conic(options={"max_iter": 3}).solve(program_of(random_problem(Logistic(), 8, 2, 0))[1])
    assert len(calls) == 1


def test_a_solver_that_breaks_down_raises_with_advice(monkeypatch: pytest.MonkeyPatch):
    _, program = program_of(random_problem(Squared(), 4, 1, 0))
    clarabel_that_raises(monkeypatch, cp.error.SolverError("singular"))
    with pytest.raises(SolverError, match="broke down numerically: try") as caught:
        Conic().solve(program)
    assert caught.value.status is Status.NUMERICAL


def test_neurons_are_unit_directions_in_their_cells():
    _, program = program_of(Problem("grid", grid(3, 2), np.arange(9.0) % 4 - 1.5, Squared()))
    solution = Conic().solve(program)
    assert np.linalg.norm(solution.directions, axis=1) == pytest.approx(1.0, rel=1e-14)
    assert solution.outputs.shape == (len(solution.directions), 1)
    f = np.maximum(program.basis @ solution.directions.T, 0.0) @ solution.outputs[:, 0]
    assert program.y - f == pytest.approx(solution.dual, abs=1e-6)


@dataclass(frozen=True)
class Optimum:
    """What solves a MOSEK task: its value, its variables and the multipliers of its rows."""

    value: float
    x: np.ndarray
    multipliers: np.ndarray


def solve_task(path: str) -> Optimum:
    """Read a file with MOSEK's own reader, check that linear rows, bounds and simple cones are all that it holds, solve it by Clarabel."""
    mosek = pytest.importorskip("mosek")
    with mosek.Env() as env, env.Task() as task:
        task.readdata(path)
        assert task.getobjsense() == mosek.objsense.maximize
        parts = (task.getnumacc(), task.getnumbarvar(), task.getnumdjc(), task.getnumintvar(), task.getnumqobjnz(), task.getcfix())
        assert parts == (0, 0, 0, 0, 0, 0.0)
        x = cp.Variable(task.getnumvar())
        row, column, entry = task.getatrip()
        bounds, low, _ = task.getvarboundslice(0, task.getnumvar())
        kinds, right, _ = task.getconboundslice(0, task.getnumcon())
        assert set(kinds) == {mosek.boundkey.fx}
        assert set(bounds) <= {mosek.boundkey.fr, mosek.boundkey.lo}
        matrix = csr_array((entry, (row, column)), shape=(len(right), task.getnumvar()))
        bounded = np.flatnonzero(np.array(bounds) == mosek.boundkey.lo)
        link = matrix @ x == np.array(right)
        constraints = [link, x[bounded] >= np.array(low)[bounded]]
        for k in range(task.getnumcone()):
            kind, _, _, members = task.getcone(k)
            first, *rest = (x[int(member)] for member in members)
            quadratic = kind == mosek.conetype.quad
            assert quadratic or kind == mosek.conetype.dexp
            constraints.append(cp.SOC(first, cp.hstack(rest)) if quadratic else cp.ExpCone(rest[1] - rest[0], -rest[1], first))
        problem = cp.Problem(cp.Maximize(np.array(task.getc()) @ x), constraints)
    problem.solve(solver="CLARABEL", tol_gap_rel=1e-9, tol_gap_abs=1e-9)
    return Optimum(problem.value, x.value, link.dual_value)


@pytest.fixture
def without_licence(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    pytest.importorskip("mosek")
    monkeypatch.setenv("MOSEKLM_LICENSE_FILE", str(tmp_path / "no.lic"))


@pytest.mark.usefixtures("without_licence")
def test_mosek_without_a_licence_says_what_to_do():
    with pytest.raises(SolverUnavailable, match=r"(?s)MOSEK has no valid licence here .*: install one, or use solver='CLARABEL'"):
        Conic("MOSEK").solve(program_of(random_problem(Squared(), 5, 2, 0))[1])


def test_mosek_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cp, "installed_solvers", lambda: ["CLARABEL", "SCS", "OSQP"])
    with pytest.raises(SolverUnavailable, match=r"MOSEK is not installed: pip install 'convexbn\[mosek\]'.*or use one of CLARABEL, SCS"):
        Conic("MOSEK").solve(program_of(random_problem(Squared(), 5, 2, 0))[1])


@pytest.mark.usefixtures("without_licence")
@pytest.mark.parametrize("extension", ["task", "mps"])
@each_loss
def test_the_task_written_for_mosek_has_the_optimum_of_the_program(loss: Loss, extension: str, tmp_path: Any):
    problem = random_problem(loss, 6, 2, 13)
    objective, program = objective_by(Conic(), problem)
    path = str(tmp_path / f"program.{extension}")
    with pytest.raises(SolverUnavailable, match="licence"):
        Conic("MOSEK", {"save_file": path}).solve(program)
    assert solve_task(path).value * loss.scale(problem.y) ** 2 == pytest.approx(objective, rel=1e-6)


@pytest.fixture
def clarabel_inside_mosek(monkeypatch: pytest.MonkeyPatch, without_licence: None) -> None:
    """CVXPY's MOSEK interface, with the task that it writes to `save_file` solved by Clarabel in the place of the licensed optimiser."""
    mosek = pytest.importorskip("mosek")
    from cvxpy.reductions import solution
    from cvxpy.reductions.cone2cone import affine2direct as kinds
    from cvxpy.reductions.solvers.conic_solvers.mosek_conif import MOSEK

    write_and_fail = MOSEK.solve_via_data

    def solve_via_data(self: Any, data: Any, warm_start: bool, verbose: bool, options: Any, cache: Any = None) -> dict[str, Any]:
        path, sizes = options["save_file"], data["K_dir"]
        with pytest.raises(mosek.Error, match="license"):
            write_and_fail(self, data, warm_start, verbose, options, cache)
        optimum = solve_task(path)
        lengths = [sizes[kinds.FREE], sizes[kinds.NONNEG], *sizes[kinds.SOC], 3 * sizes[kinds.DUAL_EXP]]
        free, positive, *cones, exponential = np.split(optimum.x, np.cumsum(lengths)[:-1])
        parts = {kinds.FREE: free, kinds.NONNEG: positive, kinds.SOC: cones}
        if exponential.size:
            parts[kinds.DUAL_EXP] = exponential.reshape(-1, 3)[:, MOSEK.EXP_CONE_ORDER].ravel()
        return {"sol": solution.Solution("optimal", optimum.value, parts, {"eq_dual": optimum.multipliers}, {})}

    monkeypatch.setattr(MOSEK, "solve_via_data", solve_via_data)


@pytest.mark.usefixtures("clarabel_inside_mosek")
@each_loss
def test_the_way_back_from_the_task_of_mosek_attains_the_optimum(loss: Loss, tmp_path: Any):
    problem = random_problem(loss, 6, 2, 13)
    objective, program = objective_by(Conic(), problem)
    solver = Conic("MOSEK", {"save_file": str(tmp_path / "program.task")})
    solution = solver.solve(program)
    assert (solution.solver, solution.status) == ("MOSEK", Status.OPTIMAL)
    assert objective_by(solver, problem)[0] == pytest.approx(objective, rel=1e-6)
    assert solution.dual == pytest.approx(Conic().solve(program).dual, abs=1e-4)
