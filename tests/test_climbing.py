"""Climbs end at local maxima of the price, whatever the data, and never below where they began."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convexbn import whiten
from convexbn.pricing import climb, local_search, random_directions


def worths(basis: np.ndarray, v: np.ndarray, directions: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.maximum(directions @ basis.T, 0.0) @ v, axis=1)


def case(n: int, d: int, outputs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return whiten(generator.standard_normal((n, d))).basis, generator.standard_normal((n, outputs))


@pytest.mark.parametrize("n", [40, 300])
def test_no_direction_nearby_is_worth_more_than_where_a_climb_ends(n):
    """Random steps of all lengths down to 1e-6 from each end: none gains, where gradient steps alone leave something to gain."""
    basis, v = case(n, 4, 1, 0)
    feet, _ = local_search(basis, v, random_directions(12, 5, (0,)))
    tops = climb(basis, v, feet)
    generator = np.random.default_rng(1)
    gained = np.zeros((2, len(tops)))
    for length in 10.0 ** -np.arange(3, 7):
        for which, ends in enumerate((tops, feet)):
            steps = ends[:, None] + length * generator.standard_normal((len(ends), 400, 5))
            steps /= np.linalg.norm(steps, axis=2, keepdims=True)
            best = np.array([worths(basis, v, around).max() for around in steps])
            gained[which] = np.maximum(gained[which], best / worths(basis, v, ends) - 1.0)
    assert gained[0].max() <= 1e-12
    assert gained[1].max() > 1e-7


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_best_end_is_the_exact_price_of_a_plane(outputs):
    """Two columns: the price on a fine grid of the circle, and at every kink."""
    basis, v = case(30, 1, outputs, 2)
    kinks = np.arctan2(basis[:, 0], -basis[:, 1])
    angles = np.concatenate([np.linspace(0.0, 2.0 * np.pi, 20001), kinks, kinks + np.pi])
    highest = worths(basis, v, np.column_stack([np.cos(angles), np.sin(angles)])).max()
    ends = climb(basis, v, random_directions(40, 2, (0,)))
    assert worths(basis, v, ends).max() >= highest * (1.0 - 1e-12)
    assert worths(basis, v, ends).max() == pytest.approx(highest, rel=1e-6)


@settings(max_examples=50)
@given(st.integers(2, 12), st.integers(1, 3), st.integers(1, 3), st.integers(0, 10**6))
def test_a_climb_never_ends_lower(n, d, outputs, seed):
    """On integer data: duplicates, ties and columns in one plane."""
    generator = np.random.default_rng(seed)
    X = generator.integers(-2, 3, size=(n, d)).astype(float)
    if np.ptp(X, axis=0).max() == 0:
        X[0, 0] += 1.0
    basis, v = whiten(X).basis, generator.integers(-2, 3, size=(n, outputs)).astype(float)
    starts = random_directions(5, basis.shape[1], (seed,))
    ends = climb(basis, v, starts)
    assert np.linalg.norm(ends, axis=1) == pytest.approx(1.0)
    assert np.all(worths(basis, v, ends) >= worths(basis, v, starts) * (1.0 - 1e-14))


def test_directions_climb_one_by_one_as_they_do_together():
    basis, v = case(120, 6, 2, 3)
    starts = random_directions(6, 7, (0,))
    together = climb(basis, v, starts)
    alone = np.concatenate([climb(basis, v, start[None]) for start in starts])
    assert worths(basis, v, together) == pytest.approx(worths(basis, v, alone), rel=1e-9)
    assert climb(basis, v, starts[:0]).shape == (0, 7)
