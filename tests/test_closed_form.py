from __future__ import annotations

import numpy as np
import pytest
from conic_references import optimum_with_outputs
from problems import LOSSES, Problem, best_of_lbfgs, degenerate_data, grid, objective_after, program_of, random_problem, targets_for, wide

from convexbn.arrangements import enumerate_arrangements
from convexbn.fit import fit_convex_bn
from convexbn.losses import Hinge, Huber, Logistic, Loss, Softmax, Squared
from convexbn.network import recover
from convexbn.program import Program
from convexbn.solution import Solution, SolverUnavailable, Status
from convexbn.solvers import ClosedForm, Conic
from convexbn.whitening import Whitening, whiten

SQUARE = {
    "two samples": degenerate_data()["two samples"],
    "more features than samples": degenerate_data()["more features than samples"],
    "triangle of integers": np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
    "six of seven vertices": np.vstack([np.zeros(5), np.eye(5)]),
    "tied columns": np.repeat(grid(2, 2)[:3], 2, axis=1),
}
each_square = pytest.mark.parametrize("X", SQUARE.values(), ids=list(SQUARE))
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=str)
fractions = pytest.mark.parametrize("fraction", [0.01, 0.3, 0.95])


def solved(problem: Problem, fraction: float = 0.1) -> tuple[Solution, Whitening, Program, float]:
    """The solution, its program and the objective of the recovered network on the raw data."""
    whitening, program = program_of(problem, fraction)
    solution = ClosedForm().solve(program)
    return solution, whitening, program, objective_after(solution, whitening, problem, program.beta)


def halves(y: np.ndarray) -> list[np.ndarray]:
    return [np.maximum(y, 0.0), np.maximum(-y, 0.0)]


def squared_optimum(y: np.ndarray, beta: float) -> float:
    """p* of section 8 for the squared loss: a sum over y_+ and y_-."""
    sizes = [np.linalg.norm(half) for half in halves(y)]
    return sum(beta * size - beta**2 / 2 if size > beta else size**2 / 2 for size in sizes)


@each_square
@each_loss
@fractions
def test_agrees_with_the_conic_solver_on_all_arrangements(X: np.ndarray, loss: Loss, fraction: float):
    problem = Problem("square", X, targets_for(loss, len(X), 1), loss)
    _, whitening, program, objective = solved(problem, fraction)
    assert len(program.arrangements) == 2 ** len(X)
    conic = objective_after(Conic().solve(program), whitening, problem, program.beta)
    assert objective == pytest.approx(conic, rel=1e-6)
    assert objective <= conic * (1.0 + 1e-9)


@each_square
@each_loss
@fractions
def test_its_dual_point_proves_it(X: np.ndarray, loss: Loss, fraction: float):
    solution, _, program, objective = solved(Problem("square", X, targets_for(loss, len(X), 2), loss), fraction)
    assert max(np.linalg.norm(half) for half in halves(solution.dual)) <= program.beta * (1.0 + 1e-9)
    inside = -loss.project(-solution.dual, program.y)
    assert inside == pytest.approx(solution.dual, abs=1e-12)
    assert program.dual_objective(inside) == pytest.approx(objective, rel=1e-9)


@each_square
@fractions
@pytest.mark.parametrize("targets", ["both signs", "one sign", "constant", "nearly one sign"])
def test_squared_loss_has_the_explicit_optimum(X: np.ndarray, fraction: float, targets: str):
    y = 2.0 * np.random.default_rng(5).standard_normal(len(X))
    y = {"both signs": y, "one sign": -np.abs(y), "constant": np.full(len(X), 3.0), "nearly one sign": np.append(np.abs(y[1:]), -1e-3)}[
        targets
    ]
    _, _, program, objective = solved(Problem("square", X, y, Squared()), fraction)
    assert objective == pytest.approx(squared_optimum(y, program.beta), rel=1e-10)


def test_squared_loss_has_the_explicit_network():
    problem = random_problem(Squared(), 5, 8, 3)
    solution, whitening, program, _ = solved(problem)
    network = recover(whitening, solution.directions, solution.outputs)
    for half, output, w, gain, shift in zip(halves(problem.y), network.outputs, network.weights, network.gain, network.shift, strict=True):
        size, centred = np.linalg.norm(half), half - half.mean()
        strength = np.sqrt(size - program.beta)
        pre = problem.X @ w
        assert pre - pre.mean() == pytest.approx(centred * np.linalg.norm(pre - pre.mean()) / np.linalg.norm(centred), abs=1e-10)
        assert abs(output[0]) == pytest.approx(strength, rel=1e-10)
        assert [gain, shift] == pytest.approx(strength * np.array([np.linalg.norm(centred), half.sum() / np.sqrt(5)]) / size, rel=1e-10)


@pytest.mark.parametrize("constant", [4.0, -4.0])
def test_constant_targets_need_the_shift_alone(constant: float):
    solution, _, program, objective = solved(Problem("constant", wide(4), np.full(4, constant), Squared()))
    assert solution.directions == pytest.approx(np.array([[0.0, 0.0, 0.0, 0.0, 1.0]])[:, -4:], abs=1e-14)
    assert solution.outputs == pytest.approx(np.array([[np.sign(constant) * (8.0 - program.beta)]]), rel=1e-12)
    assert objective == pytest.approx(8.0 * program.beta - program.beta**2 / 2, rel=1e-12)


def test_targets_of_one_sign_need_one_neuron():
    solution, *_ = solved(Problem("one sign", wide(5), np.arange(5.0), Squared()))
    assert solution.outputs.shape == (1, 1)
    assert solution.outputs[0, 0] > 0.0


@each_loss
@pytest.mark.parametrize("excess", [1.0 + 1e-9, 2.0, 1e6])
def test_beta_above_its_maximum_gives_the_zero_network(loss: Loss, excess: float):
    problem = random_problem(loss, 5, 7, 4)
    solution, _, program, objective = solved(problem, excess)
    assert solution.directions.shape == (0, 5)
    assert solution.outputs.shape == (0, 1)
    assert objective == pytest.approx(loss.value(np.zeros(5), problem.y), rel=1e-15)
    assert program.dual_objective(solution.dual) == pytest.approx(objective, rel=1e-15)


@each_loss
def test_beta_below_its_maximum_gives_a_neuron(loss: Loss):
    problem = random_problem(loss, 5, 7, 4)
    solution, _, _, objective = solved(problem, 1.0 - 1e-4)
    assert solution.outputs.shape == (1, 1)
    assert objective < loss.value(np.zeros(5), problem.y)


@pytest.mark.parametrize("labels", [[1, 1, -1, 1, -1], [1, 1, 1, 1, 1], [-1, -1, -1, -1, 1]], ids=str)
@fractions
def test_hinge_loss_is_paid_off_in_full(labels: list[int], fraction: float):
    y = np.array(labels, dtype=float)
    _, _, program, objective = solved(Problem("labels", wide(5), y, Hinge()), fraction)
    counts = [np.sum(half) for half in halves(y)]
    expected = sum(program.beta * np.sqrt(count) if np.sqrt(count) > program.beta else count for count in counts)
    assert objective == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("labels", [[1, 1, -1, 1, -1], [1, 1, 1, 1, 1]], ids=str)
@pytest.mark.parametrize("beta", [1e-13, 1e-8, 1e-3, 0.1, 0.5])
def test_logistic_loss_has_one_margin_a_class(labels: list[int], beta: float):
    """A class of k samples has the margin c with k / (1 + exp(c)) = beta sqrt(k)."""
    y = np.array(labels, dtype=float)
    _, program = program_of(Problem("labels", wide(5), y, Logistic()))
    solution = ClosedForm().solve(Program(program.basis, y, Logistic(), beta, None))
    counts = [np.sum(half) for half in halves(y) if half.any()]
    expected = [np.sqrt(count) * np.log(np.sqrt(count) / beta - 1.0) for count in counts]
    assert np.abs(solution.outputs[:, 0]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("width", "ratio"), [(1.01, 1.0), (100.0, 1.0), (0.5, 0.7)])
def test_huber_loss_with_small_residuals_is_the_squared_loss(width: float, ratio: float):
    problem = random_problem(Squared(), 5, 6, 8)
    _, whitening, program, objective = solved(problem)
    largest_residual = max(program.beta * half.max() / np.linalg.norm(half) for half in halves(problem.y))
    huber = Huber(width * largest_residual)
    solution = ClosedForm().solve(Program(program.basis, problem.y, huber, program.beta, None))
    robust = objective_after(solution, whitening, Problem("robust", problem.X, problem.y, huber), program.beta)
    assert robust / objective == pytest.approx(ratio, rel=1e-10 if ratio == 1.0 else 0.1)


@pytest.mark.parametrize("unit", [1e-120, 1e-9, 1.0, 1e9, 1e120])
def test_units_of_the_targets_scale_the_network(unit: float):
    _, program = program_of(random_problem(Squared(), 4, 6, 2))
    plain = ClosedForm().solve(program)
    scaled = ClosedForm().solve(Program(program.basis, unit * program.y, Squared(), unit * program.beta, None))
    assert scaled.outputs == pytest.approx(unit * plain.outputs, rel=1e-10)
    assert scaled.directions == pytest.approx(plain.directions, abs=1e-12)


@pytest.mark.parametrize("name", ["duplicate rows", "lattice with ties", "collinear columns", "one feature"])
def test_lower_ranks_are_refused(name: str):
    X = degenerate_data()[name]
    _, program = program_of(Problem(name, X, targets_for(Squared(), len(X), 0), Squared()))
    with pytest.raises(SolverUnavailable, match=rf"needs centred data of rank n-1, here {len(X) - 1}, not {program.basis.shape[1] - 1}"):
        ClosedForm().solve(program)


def test_the_solution_says_how_it_was_found():
    solution, *_ = solved(random_problem(Squared(), 4, 6, 2))
    assert (solution.status, solution.solver) == (Status.OPTIMAL, "closed form")
    assert np.linalg.norm(solution.directions, axis=1) == pytest.approx(1.0, rel=1e-14)


def one_hot(*counts: int) -> np.ndarray:
    """Rows of classes of those sizes."""
    return np.repeat(np.eye(len(counts)), counts, axis=0)


DISJOINT = {
    "one-hot": one_hot(1, 1, 2),
    "two classes": one_hot(3, 1),
    "an empty class": one_hot(2, 2, 0),
    "a sample without a class": np.vstack([one_hot(2, 1), np.zeros(2)]),
    "weights of both signs": one_hot(2, 2) * np.array([[1.0], [-2.0], [0.5], [3.0]]),
}
each_disjoint = pytest.mark.parametrize("Y", DISJOINT.values(), ids=list(DISJOINT))


@each_disjoint
@pytest.mark.parametrize("loss", [Squared(), Huber(0.7)], ids=lambda loss: loss.name)
@pytest.mark.parametrize("beta", [0.05, 0.8, 1.2])
def test_several_outputs_reach_the_exact_optimum(Y: np.ndarray, loss: Loss, beta: float):
    fit = fit_convex_bn(wide(4), Y, beta=beta, loss=loss)
    basis = whiten(wide(4)).basis
    exact = optimum_with_outputs(basis, Y, loss, beta, enumerate_arrangements(basis).active.astype(float))
    assert fit.certificate.objective == pytest.approx(exact, rel=1e-6)
    assert fit.certificate.relative_gap <= 1e-10
    assert fit.certificate.evidence.value == "proved"
    assert fit.solution.solver == ("closed form" if beta < fit.beta_max else "none, as beta is at least beta_max")


@pytest.mark.parametrize("counts", [(5, 5, 5), (1, 4, 9), (2, 3, 0)])
@fractions
def test_one_hot_targets_have_the_explicit_network(counts: tuple[int, ...], fraction: float):
    n, sizes = sum(counts), np.sqrt([count for count in counts if count])
    beta = fraction * np.sqrt(max(counts))
    X, Y = wide(n), one_hot(*counts)
    fit = fit_convex_bn(X, Y, beta=beta)
    assert fit.beta_max == pytest.approx(np.sqrt(max(counts)), rel=1e-10)
    expected = sum(beta * size - beta**2 / 2 if size > beta else size**2 / 2 for size in sizes)
    assert fit.certificate.objective == pytest.approx(expected, rel=1e-10)
    assert fit.certificate.bound == pytest.approx(expected, rel=1e-10)
    network = fit.network
    assert network.neurons == np.sum(sizes > beta)
    for w, g, a, v in zip(network.weights, network.gain, network.shift, network.outputs, strict=True):
        c = int(np.argmax(v))
        share, strength = counts[c] / n, np.sqrt(np.sqrt(counts[c]) - beta)
        assert v == pytest.approx(strength * np.eye(len(counts))[c], rel=1e-9)
        assert [g, a] == pytest.approx(strength * np.sqrt([1.0 - share, share]), rel=1e-9)
        centred = (X - X.mean(axis=0)) @ w
        by_hand = Y[:, c] - share
        assert centred / np.linalg.norm(centred) == pytest.approx(by_hand / np.linalg.norm(by_hand), abs=1e-9)


def test_training_on_one_hot_targets_never_ends_below_the_closed_form():
    X, Y, beta = wide(6), one_hot(1, 2, 3), 0.3
    optimum = fit_convex_bn(X, Y, beta=beta).certificate.objective
    best = best_of_lbfgs(X, Y, Squared(), beta, width=10, starts=20, seed=0)
    assert optimum * (1.0 - 1e-9) <= best <= 1.05 * optimum


@pytest.mark.parametrize("name", ["centred", "signs", "soft", "softmax"])
def test_several_outputs_without_a_closed_form_are_refused(name: str):
    Y = one_hot(2, 2, 1)
    targets = {"centred": Y - Y.mean(axis=0), "signs": 2.0 * Y - 1.0, "soft": 0.9 * Y + 0.1 / 3, "softmax": Y}[name]
    loss = Softmax() if name == "softmax" else Squared()
    program = Program(whiten(wide(5)).basis, targets, loss, 0.3, None)
    with pytest.raises(SolverUnavailable, match="squared or Huber" if name == "softmax" else "one-hot, neither centred nor -1 and"):
        ClosedForm().solve(program)


def test_one_hot_targets_of_a_lower_rank_go_to_another_solver():
    fit = fit_convex_bn(wide(8)[:, :2], one_hot(4, 4), beta=0.5, proof_seconds=0)
    assert fit.solution.solver != "closed form"
