from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import LOSSES, Problem, degenerate_problems, lattices, program_of, random_problem, targets_for

from convexbn.arrangements import enumerate_arrangements
from convexbn.losses import Hinge, Loss, Softmax, Squared
from convexbn.program import Program
from convexbn.solvers.conic import conic_matrices
from convexbn.validation import InputError
from convexbn.whitening import whiten

PROBLEMS = [*degenerate_problems(), *(random_problem(loss, 6, 2, 0) for loss in LOSSES)]
each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=str)


def random_weights(program: Program, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, len(program.active), program.basis.shape[1]))


def feasible_weights(program: Program, neurons: int, seed: int) -> np.ndarray:
    """Random vectors, each in the block of the cell that it lies in."""
    generator = np.random.default_rng(seed)
    weights = np.zeros((2, len(program.active), program.basis.shape[1]))
    for s in generator.standard_normal((neurons, program.basis.shape[1])):
        cell = np.flatnonzero(np.all((program.basis @ s >= 0) == (program.active > 0), axis=1))
        weights[generator.integers(2), cell] += generator.exponential() * s
    return weights


def dense_forward(program: Program) -> np.ndarray:
    """[D_1 U', ..., D_P U', -D_1 U', ..., -D_P U'], as in the paper."""
    blocks = [np.diag(diagonal) @ program.basis for diagonal in program.active]
    return np.hstack([*blocks, *(-block for block in blocks)])


def feasible_dual(program: Program, v: np.ndarray) -> np.ndarray:
    """A multiple of v, brought into the domain, whose worth beta bounds on every cell even without the cones."""
    v = -program.loss.project(-v, program.y)
    worth = max(np.linalg.norm((diagonal * v) @ program.basis) for diagonal in program.active)
    return v * min(1.0, program.beta / worth) if worth > 0 else v


@each_problem
def test_forward_and_adjoint_are_the_dense_matrix(problem: Problem):
    _, program = program_of(problem)
    weights, v = random_weights(program, 0), np.random.default_rng(1).standard_normal(len(problem.y))
    dense = dense_forward(program)
    assert program.forward(weights) == pytest.approx(dense @ weights.ravel(), abs=1e-12)
    assert program.adjoint(v).ravel() == pytest.approx(dense.T @ v, abs=1e-12)


@given(X=lattices(6, 3), seed=st.integers(0, 99))
def test_adjoint_identity(X: np.ndarray, seed: int):
    basis = whiten(X).basis
    program = Program(basis, np.zeros(len(X)), Squared(), 1.0, enumerate_arrangements(basis))
    weights, v = random_weights(program, seed), np.random.default_rng(seed + 1).standard_normal(len(X))
    assert program.forward(weights) @ v == pytest.approx(np.sum(weights * program.adjoint(v)), abs=1e-12 * np.abs(weights).sum())


@each_problem
def test_sparse_matrices_of_the_conic_form(problem: Problem):
    _, program = program_of(problem)
    forward, cones = conic_matrices(program)
    assert forward.toarray() == pytest.approx(dense_forward(program), abs=0.0)
    for seed in range(3):
        weights = random_weights(program, seed)
        assert forward @ weights.ravel() == pytest.approx(program.forward(weights), abs=1e-12)
        assert max(0.0, np.max(-(cones @ weights.ravel()))) == pytest.approx(program.violation(weights), rel=1e-12)


def test_cone_matrix_is_block_diagonal():
    _, program = program_of(random_problem(Squared(), 5, 2, 3))
    blocks = [np.diag(2.0 * diagonal - 1.0) @ program.basis for diagonal in program.active] * 2
    n, width = program.basis.shape
    dense = np.zeros((len(blocks) * n, len(blocks) * width))
    for k, block in enumerate(blocks):
        dense[k * n : (k + 1) * n, k * width : (k + 1) * width] = block
    assert np.array_equal(conic_matrices(program)[1].toarray(), dense)


@each_problem
def test_feasible_weights_predict_as_their_neurons_do(problem: Problem):
    _, program = program_of(problem)
    weights = feasible_weights(program, 5, 2)
    neurons = np.maximum(weights @ program.basis.T, 0.0).sum(axis=1)
    assert program.violation(weights) == 0.0
    assert program.forward(weights) == pytest.approx(neurons[0] - neurons[1], abs=1e-13)


def test_violation_is_the_largest_breach():
    _, program = program_of(random_problem(Squared(), 6, 2, 4))
    weights = feasible_weights(program, 4, 0)
    lonely = np.zeros_like(weights)
    lonely[1, 3] = weights[np.nonzero(np.any(weights, axis=-1))][0]
    breach = -np.min((2.0 * program.active[3] - 1.0) * (program.basis @ lonely[1, 3]))
    assert program.violation(lonely) == pytest.approx(max(0.0, breach), rel=1e-14)
    assert program.violation(-weights) > 0.0


@each_loss
def test_objective_is_loss_and_norms(loss: Loss):
    problem = random_problem(loss, 5, 2, 6)
    _, program = program_of(problem)
    weights = random_weights(program, 1)
    norms = sum(np.sqrt(np.sum(s**2)) for half in weights for s in half)
    expected = loss.value(dense_forward(program) @ weights.ravel(), problem.y) + program.beta * norms
    assert program.objective(weights) == pytest.approx(expected, rel=1e-13)
    assert program.objective(np.zeros_like(weights)) == loss.value(np.zeros(5), problem.y)


@each_problem
def test_weak_duality_at_random_feasible_points(problem: Problem):
    _, program = program_of(problem)
    for seed in range(10):
        scale = np.random.default_rng(seed).exponential()
        objective = program.objective(scale * feasible_weights(program, 3, seed))
        v = np.random.default_rng(seed + 50).standard_normal(len(problem.y)) + problem.y
        for candidate in (v, -problem.loss.gradient(np.zeros_like(v), problem.y)):
            assert program.dual_objective(feasible_dual(program, candidate)) <= objective + 1e-12


def test_dual_objective_of_the_squared_loss():
    _, program = program_of(random_problem(Squared(), 6, 2, 8))
    v = np.random.default_rng(0).standard_normal(6)
    assert program.dual_objective(v) == pytest.approx(v @ program.y - 0.5 * v @ v, rel=1e-13)


@each_loss
def test_dual_objective_is_tight_at_minus_the_gradient(loss: Loss):
    """Fenchel and Young: -L*(-V) = L(f) + <V, f> at V = -grad L(f)."""
    y, f = targets_for(loss, 7, 3), np.random.default_rng(2).standard_normal(7)
    program = Program(np.eye(7), y, loss, 1.0, None)
    v = -loss.gradient(f, y)
    assert program.dual_objective(v) == pytest.approx(loss.value(f, y) + v @ f, abs=1e-12)


def test_dual_objective_outside_of_the_domain_bounds_nothing():
    program = Program(np.eye(3), np.ones(3), Hinge(), 1.0, None)
    assert program.dual_objective(np.array([0.5, 1.0, 1.5])) == -np.inf


def test_dual_objective_of_several_outputs_is_the_sum():
    """Squared loss treats the columns one by one; softmax is tight at minus its gradient."""
    generator = np.random.default_rng(4)
    y, v = generator.standard_normal((2, 6, 3))
    joint = Program(np.eye(6), y, Squared(), 1.0, None).dual_objective(v)
    columns = [Program(np.eye(6), y[:, c], Squared(), 1.0, None).dual_objective(v[:, c]) for c in range(3)]
    assert joint == pytest.approx(sum(columns), rel=1e-13)
    classes = np.eye(3)[[0, 1, 2, 2, 1, 0]]
    pull = -Softmax().gradient(y, classes)
    tight = Softmax().value(y, classes) + np.sum(pull * y)
    assert Program(np.eye(6), classes, Softmax(), 1.0, None).dual_objective(pull) == pytest.approx(tight, rel=1e-12)


def test_several_outputs_have_no_list():
    _, program = program_of(random_problem(Squared(), 6, 2, 9))
    pairs = np.column_stack([program.y, program.y])
    with pytest.raises(InputError, match=r"^arrangements are listed, but y has 2 outputs.*use the solver 'sliding'"):
        replace(program, y=pairs)
    assert replace(program, y=pairs, arrangements=None).y.shape == (6, 2)


def test_a_program_without_a_list_asks_for_one():
    program = Program(np.eye(3), np.ones(3), Squared(), 1.0, None)
    with pytest.raises(InputError, match=r"arrangements are not listed.*enumerate or sample"):
        program.forward(np.zeros((2, 1, 3)))


def test_wrong_shapes_are_named():
    _, program = program_of(random_problem(Squared(), 6, 2, 9))
    _, other = program_of(random_problem(Squared(), 5, 2, 9))
    with pytest.raises(InputError, match=r"y has shape \(5,\), but the basis has 6 rows"):
        replace(program, y=other.y)
    with pytest.raises(InputError, match=r"y has shape \(6, 1, 1\)"):
        replace(program, y=program.y[:, None, None])
    with pytest.raises(InputError, match="arrangements are patterns of 5 rows, but the basis has 6 rows"):
        replace(program, arrangements=other.arrangements)


@pytest.mark.parametrize("beta", [0.0, -1.0, np.nan, np.inf, "big"])
def test_beta_is_positive(beta: object):
    _, program = program_of(random_problem(Squared(), 4, 1, 0))
    with pytest.raises(InputError, match="beta"):
        replace(program, beta=beta)
