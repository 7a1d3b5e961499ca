"""The softmax loss: Fenchel's identities, its prox and its projection against other methods, and logistic loss as its limiting case."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import several_targets
from scipy.optimize import approx_fprime, minimize

from convexbn.losses import Logistic, Softmax
from convexbn.smoothing import Smoothed
from convexbn.validation import InputError

classes = st.integers(2, 6)
seeds = st.integers(0, 10**6)
sizes = st.sampled_from([1e-3, 1.0, 20.0])


def class_problem(classes: int, seed: int, size: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions, numbers of that size and targets for five samples: one-hot rows, and one of mixed probabilities."""
    generator = np.random.default_rng(seed)
    y = several_targets(Softmax(), 5, classes, seed)
    y[0] = generator.dirichlet(np.ones(classes))
    f, v = size * generator.standard_normal((2, 5, classes))
    return f, v, y


def entropy(p: np.ndarray) -> float:
    """-sum p log p, with 0 log 0 = 0."""
    positive = p[p > 0]
    return -float(np.sum(positive * np.log(positive)))


@given(classes, seeds, sizes)
def test_softmax_reaches_fenchel_young_equality_at_its_gradient(classes: int, seed: int, size: float):
    f, _, y = class_problem(classes, seed, size)
    slope = Softmax().gradient(f, y)
    gap = Softmax().value(f, y) + Softmax().conjugate(slope, y) - np.sum(f * slope)
    assert gap == pytest.approx(0.0, abs=1e-12 * (1.0 + size**2))


@given(classes, seeds, sizes)
def test_softmax_keeps_fenchel_youngs_inequality(classes: int, seed: int, size: float):
    f, v, y = class_problem(classes, seed, size)
    inside = Softmax().project(v, y)
    assert Softmax().value(f, y) + Softmax().conjugate(inside, y) - np.sum(f * inside) >= -1e-12 * (1.0 + size)


@given(classes, seeds)
def test_softmax_conjugate_is_the_supremum(classes: int, seed: int):
    """BFGS on <v, f> - L(f), from 0, in the interior of the domain; and minus the entropy of v + y."""
    _, v, y = class_problem(classes, seed, 1.0)
    p = 0.9 * (Softmax().project(v, y) + y) + 0.1 / classes
    slope = p - y
    found = minimize(
        lambda f: Softmax().value(f.reshape(y.shape), y) - np.sum(slope * f.reshape(y.shape)),
        np.zeros(y.size),
        jac=lambda f: (Softmax().gradient(f.reshape(y.shape), y) - slope).ravel(),
        options={"gtol": 1e-7},
    )
    assert Softmax().conjugate(slope, y) == pytest.approx(-found.fun, abs=1e-9)
    assert Softmax().conjugate(slope, y) == pytest.approx(-entropy(p), abs=1e-12)
    f = Softmax().conjugate_gradient(slope, y)
    assert Softmax().gradient(f, y) == pytest.approx(slope, abs=1e-12)


@pytest.mark.parametrize(
    ("shift", "infinite"),
    [([0.0, 0.0, 0.0], False), ([0.1, -0.1, 0.0], True), ([-0.1, 0.1, 0.0], False), ([1e-9, 0.0, 0.0], True), ([-0.1, 0.0, 0.0], True)],
)
def test_softmax_conjugate_is_infinite_outside_of_the_simplex(shift: list[float], infinite: bool):
    """The supremum grows along f = 1 where a row doesn't sum to 1, and along -e_c where p_c < 0."""
    y, v = np.array([[1.0, 0.0, 0.0]]), np.array([shift])
    ways = [1e12 * np.ones((1, 3)), -1e12 * np.ones((1, 3)), -1e12 * np.eye(3)[[1]]]
    grows = max(float(np.sum(v * f)) - Softmax().value(f, y) for f in ways) > 1.0
    assert np.isinf(Softmax().conjugate(v, y)) == infinite == grows


def test_softmax_at_known_points():
    y = np.eye(3)[[0, 2]]
    assert Softmax().value(np.zeros((2, 3)), y) == pytest.approx(2.0 * np.log(3.0), rel=1e-15)
    assert Softmax().gradient(np.zeros((1, 3)), y[:1]) == pytest.approx(np.array([[-2.0, 1.0, 1.0]]) / 3.0, rel=1e-15)
    assert Softmax().conjugate(np.full((2, 3), 1.0 / 3.0) - y, y) == pytest.approx(-2.0 * np.log(3.0), rel=1e-15)
    assert Softmax().conjugate(np.zeros((2, 3)), y) == 0.0


def test_softmax_of_enormous_predictions_stays_finite():
    y, f = np.eye(2), np.array([[1e8, -1e8], [1e8, -1e8]])
    assert Softmax().value(f, y) == pytest.approx(2e8, rel=1e-15)
    assert Softmax().gradient(f, y).tolist() == [[0.0, 0.0], [1.0, -1.0]]


@given(seeds, sizes)
def test_softmax_of_two_classes_is_logistic(seed: int, size: float):
    """With f = (z, -z) / 2 the two losses are one, with their gradients, conjugates and proxes."""
    generator = np.random.default_rng(seed)
    z, labels = size * generator.standard_normal(6), np.array([1.0, -1.0, 1.0, 1.0, -1.0, -1.0])
    f, y = np.column_stack([z, -z]) / 2.0, np.column_stack([labels > 0, labels < 0]).astype(float)
    assert Softmax().value(f, y) == pytest.approx(Logistic().value(z, labels), rel=1e-12, abs=1e-14)
    slope, single = Softmax().gradient(f, y), Logistic().gradient(z, labels)
    assert slope == pytest.approx(np.column_stack([single, -single]), rel=1e-9, abs=1e-15)
    assert Softmax().conjugate(np.column_stack([single, -single]), y) == pytest.approx(Logistic().conjugate(single, labels), abs=1e-12)
    # ||f||^2 = z^2 / 2: a step in f is twice that step in z.
    near = Softmax().prox(f, y, 0.7)
    assert near[:, 0] - near[:, 1] == pytest.approx(Logistic().prox(z, labels, 1.4), rel=1e-9, abs=1e-12)
    assert near.sum(axis=1) == pytest.approx(np.zeros(6), abs=1e-12 * (1.0 + size))


@given(classes, seeds, sizes, st.floats(-1e3, 1e3))
def test_softmax_knows_no_common_shift(classes: int, seed: int, size: float, shift: float):
    f, _, y = class_problem(classes, seed, size)
    assert Softmax().value(f + shift, y) == pytest.approx(Softmax().value(f, y), rel=1e-9, abs=1e-11)
    assert Softmax().gradient(f + shift, y) == pytest.approx(Softmax().gradient(f, y), abs=1e-11)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_softmax_gradient_against_finite_differences(classes: int):
    f, _, y = class_problem(classes, 1, 1.0)
    slopes = approx_fprime(f.ravel(), lambda flat: Softmax().value(flat.reshape(f.shape), y), 1e-6)
    assert Softmax().gradient(f, y).ravel() == pytest.approx(slopes, abs=1e-5)
    inside = 0.9 * Softmax().project(f, y) + 0.1 * (1.0 / classes - y)
    tangent = np.random.default_rng(2).standard_normal(f.shape)
    tangent -= tangent.mean(axis=1, keepdims=True)
    above, below = (Softmax().conjugate(inside + step * tangent, y) for step in (1e-6, -1e-6))
    assert (above - below) / 2e-6 == pytest.approx(np.sum(Softmax().conjugate_gradient(inside, y) * tangent), rel=1e-6)


@given(classes, seeds, sizes, st.sampled_from([1e-6, 1e-2, 1.0, 30.0, 1e4, 1e8]))
def test_softmax_prox_meets_its_optimality_condition(classes: int, seed: int, size: float, step: float):
    z, _, y = class_problem(classes, seed, size)
    near = Softmax().prox(z, y, step)
    assert near + step * Softmax().gradient(near, y) == pytest.approx(z, abs=1e-10 * (1.0 + size + step))
    assert near.sum(axis=1) == pytest.approx(z.sum(axis=1), abs=1e-10 * (1.0 + size + step))


@pytest.mark.parametrize("step", [0.1, 10.0])
def test_softmax_prox_against_descent(step: float):
    z, _, y = class_problem(4, 3, 2.0)

    def cost(f: np.ndarray) -> float:
        return Softmax().value(f.reshape(z.shape), y) + float(np.sum((f.reshape(z.shape) - z) ** 2)) / (2.0 * step)

    near = Softmax().prox(z, y, step)
    assert cost(near.ravel()) <= minimize(cost, z.ravel(), options={"maxiter": 500, "gtol": 1e-5}).fun + 1e-12


@given(classes, seeds, sizes)
def test_softmax_projection_is_the_nearest_point_of_the_simplex(classes: int, seed: int, size: float):
    """Against all supports: on the right one p is shifted to the sum 1, and the nearest feasible of these points is the projection."""
    _, v, y = class_problem(classes, seed, size)
    found = Softmax().project(v, y) + y
    masks = np.array([[number >> c & 1 for c in range(classes)] for number in range(1, 2**classes)], dtype=bool)
    for p, row in zip(v + y, found, strict=True):
        shift = (1.0 - masks @ p) / masks.sum(axis=1)
        candidates = np.where(masks, p + shift[:, None], 0.0)
        feasible = candidates[np.min(candidates, axis=1) >= 0.0]
        nearest = feasible[np.argmin(np.linalg.norm(feasible - p, axis=1))]
        assert row == pytest.approx(nearest, abs=1e-13 * (1.0 + size))
    assert np.isfinite(Softmax().conjugate(found - y, y))
    assert Softmax().project(found - y, y) == pytest.approx(found - y, abs=1e-15)


@pytest.mark.parametrize("far", [1e16, -1e16, 1e100, -1e200])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_softmax_projection_from_afar_is_in_the_simplex(far: float, classes: int):
    """Where y is nothing beside v: the solution is the nearest corner, or anywhere for equal columns."""
    y = np.eye(classes)
    for v in (np.full((classes, classes), far), far * np.eye(classes), far * np.eye(classes)[::-1]):
        inside = Softmax().project(v, y)
        assert np.isfinite(Softmax().conjugate(inside, y))
    if far > 0:
        assert Softmax().project(far * np.eye(classes)[::-1], y) + y == pytest.approx(np.eye(classes)[::-1])


@given(classes, seeds, sizes)
def test_softmax_gradient_is_lipschitz_with_its_smoothness(classes: int, seed: int, size: float):
    f, other, y = class_problem(classes, seed, size)
    change = np.linalg.norm(Softmax().gradient(f, y) - Softmax().gradient(other, y), axis=1)
    assert np.all(change <= Softmax().smoothness * np.linalg.norm(f - other, axis=1) + 1e-14)
    h = np.array([[1e-5, -1e-5]]) / np.sqrt(2.0)
    steepest = np.linalg.norm(Softmax().gradient(h, np.eye(2)[:1]) - Softmax().gradient(-h, np.eye(2)[:1]))
    assert steepest / (2.0 * np.linalg.norm(h)) == pytest.approx(0.5, rel=1e-6)


def test_smoothed_softmax_lies_below_softmax():
    f, _, y = class_problem(3, 5, 2.0)
    smoothed = Smoothed(Softmax(), 0.1)
    slope = Softmax().gradient(f, y)
    assert 0.0 <= Softmax().value(f, y) - smoothed.value(f, y) <= 0.05 * float(np.sum(slope**2))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.array([0.0, 1.0, 2.0]), r"^y has one column, .*pass np\.eye\(C\)\[labels\], or use ConvexBNClassifier"),
        (np.array([[1.0, 1.0], [0.0, 1.0]]), r"^y has rows that are no probabilities: .* at least 0 and sum to 1"),
        (np.array([[1.5, -0.5], [0.0, 1.0]]), r"^y has rows that are no probabilities"),
        (np.array([[0.0, 0.0], [0.0, 1.0]]), r"^y has rows that are no probabilities"),
    ],
    ids=["labels", "two hots", "negative", "no hot"],
)
def test_targets_that_are_no_probabilities_are_refused(y: np.ndarray, message: str):
    with pytest.raises(InputError, match=message):
        Softmax().check(y)


def test_probabilities_are_good_targets_and_sum_to_one():
    assert np.array_equal(Softmax().check(np.eye(3)), np.eye(3))
    third = np.array([[0.3333333333, 0.3333333333, 0.3333333333]])
    assert Softmax().check(third).sum() == pytest.approx(1.0, abs=1e-15)
    assert Softmax().scale(np.eye(3)) == 1.0
    assert Softmax().rescaled(1.0) == Softmax()
