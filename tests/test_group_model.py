"""The group lasso of a quadratic model: conditions of optimality, closed forms, and methods that share no code with it."""

from __future__ import annotations

import numpy as np
import pytest

from convexbn import Squared
from convexbn.solvers.group_model import QuadraticModel
from convexbn.solvers.group_newton import GroupNewton


def neighbours(seed: int, outputs: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Features (40, 30) in triples that are nearly or exactly equal, and targets."""
    generator = np.random.default_rng(seed)
    kinds = np.maximum(generator.standard_normal((40, 10)), 0.0)
    features = np.hstack([kinds, kinds + 1e-4 * generator.standard_normal(kinds.shape), kinds])
    return features, generator.standard_normal((40, outputs))


def model(features: np.ndarray, y: np.ndarray, fraction: float) -> QuadraticModel:
    """Of the squared loss, at that fraction of the beta from which on W = 0."""
    pull = features.T @ y
    return QuadraticModel(features.T @ features, -pull, fraction * float(np.max(np.linalg.norm(pull, axis=1))))


@pytest.mark.parametrize("fraction", [0.7, 0.1, 0.001])
@pytest.mark.parametrize("outputs", [1, 3])
def test_reaches_the_conditions_of_optimality(fraction: float, outputs: int) -> None:
    features, y = neighbours(0, outputs)
    problem = model(features, y, fraction)
    weights = problem.solve(np.zeros((30, outputs)), 1e-8)
    slope, size = features.T @ (features @ weights - y), np.linalg.norm(weights, axis=1)
    used = size > 0
    assert used.any()
    assert np.linalg.norm(slope, axis=1).max() <= problem.beta * (1 + 2e-8)
    np.testing.assert_allclose(slope[used], -problem.beta * weights[used] / size[used, None], atol=2e-8 * problem.beta)


def test_agrees_with_newton_on_smoothed_norms() -> None:
    features, y = neighbours(1)
    problem = model(features, y, 0.05)
    ours = problem.solve(np.ones((30, 3)), 1e-9)
    theirs, solved = GroupNewton(features, y, problem.beta, Squared()).solve(np.zeros((30, 3)), 1e-7)
    assert solved

    def objective(weights: np.ndarray) -> float:
        return 0.5 * float(np.sum((features @ weights - y) ** 2)) + problem.beta * float(np.linalg.norm(weights, axis=1).sum())

    assert objective(ours) <= objective(theirs) * (1 + 1e-12)
    np.testing.assert_allclose(features @ ours, features @ theirs, atol=1e-5)


def test_orthogonal_features_have_a_closed_form() -> None:
    generator = np.random.default_rng(2)
    scale, pull = np.array([1e-3, 1.0, 40.0, 0.0]), generator.standard_normal((4, 5))
    pull[3] *= 0.1 / np.linalg.norm(pull[3])
    length = np.linalg.norm(pull, axis=1)
    expected = np.maximum(0.0, 1.0 - 0.5 / length)[:, None] * pull / np.where(scale > 0, scale, 1.0)[:, None]
    expected[3] = 0.0
    weights = QuadraticModel(np.diag(scale), -pull, 0.5).solve(np.zeros((4, 5)), 1e-10)
    np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-12)


def test_above_beta_max_nothing_is_used() -> None:
    features, y = neighbours(3)
    assert not model(features, y, 1.0 + 1e-9).solve(np.ones((30, 3)), 1e-10).any()


def test_an_optimum_is_left_as_it_is() -> None:
    features, y = neighbours(4)
    problem = model(features, y, 0.2)
    weights = problem.solve(np.zeros((30, 3)), 1e-8)
    assert problem.solve(weights, 1e-7) is weights
