"""The group lasso by Newton's method: conditions of optimality, limiting cases, and methods that share no code with it."""

from __future__ import annotations

import numpy as np
import pytest

from convexbn import Huber, Softmax, Squared
from convexbn.losses import Loss
from convexbn.solvers.amplitudes import fit_amplitudes
from convexbn.solvers.group_newton import GroupNewton, hessians, violation

LOSSES = [Squared(), Softmax(), Huber(delta=0.5)]


def problem(loss: Loss, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Features that come in nearly equal pairs, as those of neighbouring neurons do, targets, and a tenth of beta_max."""
    generator = np.random.default_rng(seed)
    features = np.maximum(generator.standard_normal((30, 6)), 0.0)
    features = np.hstack([features, features + 1e-4 * np.maximum(generator.standard_normal((30, 6)), 0.0)])
    y = np.eye(3)[np.arange(30) % 3]
    beta = 0.1 * float(np.max(np.linalg.norm(features.T @ loss.gradient(np.zeros_like(y), y), axis=1)))
    return features, y, beta


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_reaches_the_conditions_of_optimality(loss: Loss) -> None:
    features, y, beta = problem(loss, 0)
    outputs, solved = GroupNewton(features, y, beta, loss).solve(np.zeros((12, 3)), 1e-6)
    assert solved
    assert 0 < np.count_nonzero(outputs.any(axis=1)) < 12
    slope, size = features.T @ loss.gradient(features @ outputs, y), np.linalg.norm(outputs, axis=1)
    used = size > 0
    assert np.linalg.norm(slope, axis=1).max() <= beta * (1 + 2e-6)
    np.testing.assert_allclose(slope[used], -beta * outputs[used] / size[used, None], atol=2e-6 * beta)


def test_agrees_with_a_conic_solver() -> None:
    import cvxpy as cp

    features, y, beta = problem(Squared(), 1)
    outputs, _ = GroupNewton(features, y, beta, Squared()).solve(np.zeros((12, 3)), 1e-7)
    wanted = cp.Variable((12, 3))
    value = cp.Problem(cp.Minimize(cp.sum_squares(features @ wanted - y) / 2 + beta * cp.sum(cp.norm(wanted, axis=1)))).solve("CLARABEL")
    ours = Squared().value(features @ outputs, y) + beta * np.linalg.norm(outputs, axis=1).sum()
    assert ours == pytest.approx(value, rel=1e-7)
    np.testing.assert_allclose(features @ outputs, features @ wanted.value, atol=1e-4)


def test_one_group_has_a_closed_form() -> None:
    generator = np.random.default_rng(2)
    column, y = generator.standard_normal((20, 1)), generator.standard_normal((20, 4))
    pull = column[:, 0] @ y
    length = np.linalg.norm(pull)
    outputs, solved = GroupNewton(column, y, 0.3 * length, Squared()).solve(np.zeros((1, 4)), 1e-9)
    assert solved
    np.testing.assert_allclose(outputs[0], (1 - 0.3) * pull / np.sum(column**2), rtol=1e-8)
    nothing, solved = GroupNewton(column, y, 1.01 * length, Squared()).solve(np.ones((1, 4)), 1e-9)
    assert solved
    assert not nothing.any()


def test_hessian_of_softmax() -> None:
    predictions, y = np.random.default_rng(3).standard_normal((5, 4)), np.eye(4)[[0, 1, 2, 3, 0]]
    share = np.exp(predictions) / np.exp(predictions).sum(axis=1, keepdims=True)
    exact = share[:, :, None] * np.eye(4) - share[:, :, None] * share[:, None, :]
    np.testing.assert_allclose(hessians(predictions, y, Softmax()), exact, atol=1e-9)


def test_amplitudes_of_nearly_equal_neurons_reach_the_accuracy_asked_for() -> None:
    features, y, beta = problem(Softmax(), 4)
    outputs = fit_amplitudes(features, y, np.zeros((12, 3)), 0.1 * beta, Softmax(), tolerance=1e-6)
    assert violation(features.T @ Softmax().gradient(features @ outputs, y), outputs, 0.1 * beta) <= 1e-7 * beta
