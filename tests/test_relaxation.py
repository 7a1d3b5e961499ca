"""Upper bounds on h(V) are bounds: against exact enumeration, needles, high precision, and each other."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import degenerate_data, lattices

from convexbn.arrangements import enumerate_arrangements
from convexbn.pricing import (
    Relaxation,
    bound_by_boxes,
    climb,
    evolve,
    local_search,
    price_arrangements,
    price_everywhere,
    random_directions,
)
from convexbn.validation import InputError
from convexbn.whitening import whiten


def exact_price(basis: np.ndarray, v: np.ndarray) -> float:
    return price_arrangements(basis, v, enumerate_arrangements(basis).active).upper


def relaxed(basis: np.ndarray, v: np.ndarray, direction: np.ndarray) -> float:
    return max(Relaxation(basis, side > 0).bound(side, direction) for side in (v, -v))


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    n, d = int(generator.integers(4, 13)), int(generator.integers(1, 4))
    return whiten(generator.standard_normal((n, d))).basis, generator.standard_normal(n)


@pytest.mark.parametrize("seed", range(30))
def test_relaxation_is_never_below_the_exact_price(seed):
    basis, v = random_case(seed)
    exact = price_arrangements(basis, v, enumerate_arrangements(basis).active)
    assert relaxed(basis, v, exact.direction) >= exact.lower
    assert relaxed(basis, v, random_directions(1, basis.shape[1], (seed,))[0]) >= exact.lower


@pytest.mark.parametrize("seed", range(30))
def test_boxes_close_in_on_the_exact_price(seed):
    basis, v = random_case(seed)
    exact = price_arrangements(basis, v, enumerate_arrangements(basis).active)
    bound = max(bound_by_boxes(basis, side, exact.lower, tolerance=1e-3, seconds=60.0) for side in (v, -v))
    assert exact.lower <= bound <= exact.lower * (1.0 + 1e-3)


@pytest.mark.parametrize("name", degenerate_data())
def test_both_bounds_hold_on_degenerate_data(name):
    basis = whiten(degenerate_data()[name]).basis
    v = np.random.default_rng(5).standard_normal(len(basis))
    exact = price_arrangements(basis, v, enumerate_arrangements(basis).active)
    assert relaxed(basis, v, exact.direction) >= exact.lower
    assert max(bound_by_boxes(basis, side, exact.lower, tolerance=0.1, seconds=1.0) for side in (v, -v)) >= exact.lower


@settings(max_examples=40, deadline=None)
@given(lattices(7, 2), st.integers(0, 10**6))
def test_bounds_hold_on_lattices(X, seed):
    try:
        basis = whiten(X).basis
    except InputError:
        return
    v = np.random.default_rng(seed).integers(-2, 3, len(X)).astype(float)
    lower = price_arrangements(basis, v, enumerate_arrangements(basis).active).lower
    price = price_everywhere(basis, v, starts=32, generations=2)
    assert price.upper >= lower * (1.0 - 1e-12)
    assert price.lower <= lower * (1.0 + 1e-9) + 1e-12


def test_a_needle_that_the_search_misses_stays_below_the_bounds():
    """One outlier gives a thin cell with the only high price; the search is started away from it and given no steps."""
    generator = np.random.default_rng(2)
    X = np.concatenate([generator.standard_normal((60, 2)), [[1e4, 1e4]]])
    basis = whiten(X).basis
    v = np.full(61, -0.2)
    v[-1] = 5.0
    needle = exact_price(basis, v)
    far_away = -basis[-1] / np.linalg.norm(basis[-1])
    assert v @ np.maximum(basis @ far_away, 0.0) < 0.1 * needle
    assert relaxed(basis, v, far_away) >= needle * (1.0 - 1e-6)
    assert bound_by_boxes(basis, v, 1e-9, tolerance=1e-3, seconds=0.5) >= needle * (1.0 - 1e-6)


@pytest.mark.parametrize("seconds", [1e-9, 0.05])
def test_boxes_stopped_early_still_bound(seconds):
    basis, v = random_case(3)
    exact = price_arrangements(basis, v, enumerate_arrangements(basis).active)
    found = max(bound_by_boxes(basis, side, exact.lower, tolerance=1e-9, seconds=seconds) for side in (v, -v))
    assert exact.lower <= found <= np.linalg.norm(v) * (1.0 + 1e-9)


def test_gradients_of_the_smoothed_bound():
    basis, v = random_case(11)
    relaxation = Relaxation(basis, v > 0)
    x, _ = relaxation.start(random_directions(1, basis.shape[1], (0,))[0])
    found = relaxation.smoothed(v, x, 0.1)
    generator = np.random.default_rng(0)
    for _ in range(5):
        dv, dx = 1e-6 * np.abs(v) * generator.standard_normal(len(v)), 1e-6 * generator.standard_normal(len(x))
        rise = relaxation.smoothed(v + dv, x + dx, 0.1).value - relaxation.smoothed(v - dv, x - dx, 0.1).value
        assert rise / 2 == pytest.approx(found.by_v @ dv + found.by_x @ dx, rel=1e-5, abs=1e-12)


def test_the_rounding_margin_covers_rational_arithmetic():
    """x^T H x / 2 in exact fractions, at the eigenvector, against the float64 bound with its margin."""
    basis, v = random_case(8)
    relaxation = Relaxation(basis, v > 0)
    x, _ = relaxation.start(random_directions(1, basis.shape[1], (1,))[0])
    matrix, constant, _ = relaxation._lift(v, x)
    vector = np.linalg.eigh(matrix)[1][:, -1]
    rows = [[Fraction(float(entry)) for entry in row] for row in matrix]
    exact = [Fraction(float(entry)) for entry in vector]
    quotient = sum(a * b * c for a, row in zip(exact, rows, strict=True) for b, c in zip(row, exact, strict=True))
    quotient /= sum(entry * entry for entry in exact)
    assert Fraction(relaxation.value(v, x)) >= quotient + Fraction(constant)


@pytest.mark.parametrize("seed", range(10))
def test_search_and_climbs_find_the_exact_price_in_few_dimensions(seed):
    basis, v = random_case(seed)
    assert price_everywhere(basis, v).lower == pytest.approx(exact_price(basis, v), rel=1e-7)


def test_climbing_ends_at_a_ridge_that_gradient_steps_only_approach():
    basis, v = random_case(9)
    directions, worths = local_search(basis, v[:, None], random_directions(64, basis.shape[1], (9,)))
    foot = directions[np.argmax(worths)]
    top = climb(basis, v[:, None], foot)
    assert np.abs(v @ np.maximum(basis @ top, 0.0)) > np.max(worths) * (1.0 + 1e-5)
    assert np.linalg.norm(top) == pytest.approx(1.0)


def test_worth_of_several_outputs_is_the_norm():
    generator = np.random.default_rng(0)
    basis, v = whiten(generator.standard_normal((20, 3))).basis, generator.standard_normal((20, 4))
    directions, worths = evolve(basis, v, random_directions(16, 4, (0,)), seed=(0,), children=16, generations=1)
    assert worths == pytest.approx(np.linalg.norm(v.T @ np.maximum(basis @ directions.T, 0.0), axis=0))
    assert np.linalg.norm(directions, axis=1) == pytest.approx(1.0)
