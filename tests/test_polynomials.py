"""Polynomials on the sphere: identities of monomials and moments, and a bound for any polynomials and any matrix."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import degenerate_data, lattices, listed_price, needle, random_case

from convexbn.pricing import random_directions
from convexbn.pricing.polynomials import Lifted, Monomials, SphereMoments
from convexbn.whitening import whiten


def some_bound(basis: np.ndarray, v: np.ndarray, seed: int, half: int = 2) -> float:
    """The bound from polynomials and a matrix that have nothing to do with the problem."""
    generator = np.random.default_rng(seed)
    lifted = Lifted(basis, half)
    above = generator.standard_normal((len(v), 2 * half + 1)) * 10.0 ** generator.integers(-3, 2)
    factor = generator.standard_normal((sum(len(part.counts) for part in lifted.moments.parts), 3))
    return lifted.bound(v, above, factor @ factor.T)


@pytest.mark.parametrize(("width", "degree"), [(1, 3), (3, 0), (3, 1), (4, 3), (2, 6)])
def test_scaled_monomials_are_powers_of_tensors(width: int, degree: int) -> None:
    one, other = random_directions(2, width, (degree,)) * 1.3
    monomials = Monomials(width, degree)
    assert np.all(np.sum(monomials.exponents, axis=1) == degree)
    assert len(np.unique(monomials.exponents, axis=0)) == len(monomials.counts)
    assert monomials.at(one[None])[0] @ monomials.at(other[None])[0] == pytest.approx((one @ other) ** degree, rel=1e-12)
    assert monomials.raised() @ Monomials(width, degree + 2).at(one[None])[0] == pytest.approx((one @ one) * monomials.at(one[None])[0])


@pytest.mark.parametrize(("width", "half"), [(2, 1), (3, 2), (4, 3)])
def test_moments_of_a_direction(width: int, half: int) -> None:
    """The matrix of its moments is phi phi^T, and coefficients of polynomials give their values."""
    generator = np.random.default_rng(width)
    moments = SphereMoments(width, half)
    s = random_directions(1, width, (3,))[0]
    values = np.concatenate([Monomials(width, degree).at(s[None])[0] for degree in (2 * half, 2 * half - 1)])
    phi = moments.features(s[None])[0]
    assert np.allclose(moments.matrix(values), np.outer(phi, phi), atol=1e-13)
    assert phi @ phi == pytest.approx(2.0)
    matrix = generator.standard_normal((len(phi), len(phi)))
    matrix += matrix.T
    assert moments.adjoint(matrix) @ values == pytest.approx(phi @ matrix @ phi)
    anything = generator.standard_normal(moments.count)
    assert moments.adjoint(matrix) @ anything == pytest.approx(np.sum(matrix * moments.matrix(anything)))
    assert np.allclose(moments.adjoint(moments.represented(anything)), anything, atol=1e-13)


@pytest.mark.parametrize(("width", "half"), [(2, 2), (3, 3)])
def test_moments_and_matrices_of_lower_degree(width: int, half: int) -> None:
    generator = np.random.default_rng(width)
    lower, higher = SphereMoments(width, half - 1), SphereMoments(width, half)
    s = random_directions(1, width, (1,))
    matrix = generator.standard_normal((len(lower.features(s)[0]),) * 2)
    matrix += matrix.T
    embedded = higher.embedded(matrix)
    assert np.array_equal(embedded, embedded.T)
    phi, more = lower.features(s)[0], higher.features(s)[0]
    assert more @ embedded @ more == pytest.approx(phi @ matrix @ phi)
    guess = generator.standard_normal(higher.count)
    assert np.allclose(higher.read(higher.matrix(guess)), guess)
    wanted, known = (lower.read(np.outer(x, x)) for x in (phi, lower.features(-0.5 * s)[0]))
    exact = higher.read(np.outer(more, more))
    assert np.allclose(higher.completed(wanted, exact), exact)
    again = higher.completed(known, guess)
    assert np.allclose(higher.completed(known, again), again)
    assert np.allclose(higher.completed(wanted, again) - again, higher.completed(wanted - known, np.zeros(higher.count)))


@pytest.mark.parametrize(("width", "half"), [(2, 1), (3, 2), (4, 3)])
def test_powers_of_samples(width: int, half: int) -> None:
    """Of moments of a direction they are those of its images; polynomials and rows say the same the other way."""
    generator = np.random.default_rng(width)
    lifted = Lifted(generator.standard_normal((5, width)), half)
    s = random_directions(1, width, (3,))[0]
    top = 2 * half
    values = np.concatenate([Monomials(width, degree).at(s[None])[0] for degree in (top, top - 1)])
    powers = (lifted.tables[1] @ s)[:, None] ** np.arange(top + 1)
    assert np.allclose(lifted.powers(values[None])[0], powers, atol=1e-12)
    above = generator.standard_normal((1, 5, top + 1))
    assert lifted.polynomials(above)[0] @ values == pytest.approx(np.sum(above[0] * powers))
    assert lifted.one @ values == pytest.approx(1.0)
    rows = lifted.rows(top, top - 1)
    assert np.allclose(rows @ values, powers, atol=1e-12)
    assert np.array_equal(lifted.rows(top, top - 1, slice(1, 3)), rows[1:3])
    assert np.all(lifted._sizes >= np.linalg.norm(rows, axis=2) * (1.0 - 1e-12))


@settings(max_examples=20)
@given(st.lists(st.integers(-20, 20), min_size=5, max_size=5))
def test_the_least_value_of_a_polynomial_is_bounded_and_near(coefficients: list[int]) -> None:
    """In rational arithmetic at many points, also where it touches 0 twice."""
    lifted = Lifted(random_case(0)[0], 2)
    polynomial = np.array(coefficients, dtype=float)
    least = lifted._least(polynomial[None])[0]
    points = [Fraction(lifted.reach) * Fraction(k, 100) for k in range(101)]
    true = min(sum((Fraction(c) * x**p for p, c in enumerate(polynomial)), Fraction(0)) for x in points)
    assert Fraction(least) <= true
    assert float(true) - least <= 1e-3 * (1.0 + np.sum(np.abs(polynomial)))


@pytest.mark.parametrize("seed", range(40))
def test_anything_gives_a_bound(seed: int) -> None:
    basis, v = random_case(seed)
    exact = max(listed_price(basis, v).lower, 0.0)
    assert max(some_bound(basis, sign * v, seed, half=1 + seed % 3) for sign in (1.0, -1.0)) >= exact


@pytest.mark.parametrize("name", degenerate_data())
def test_degenerate_data(name: str) -> None:
    basis = whiten(degenerate_data()[name]).basis
    v = np.round(np.random.default_rng(1).standard_normal(len(basis)), 1)
    assert max(some_bound(basis, sign * v, 1) for sign in (1.0, -1.0)) >= listed_price(basis, v).lower


@settings(max_examples=15)
@given(lattices(7, 2), st.integers(0, 10**6))
def test_lattices(X: np.ndarray, seed: int) -> None:
    basis = whiten(X).basis
    v = np.random.default_rng(seed).integers(-2, 3, len(X)).astype(float)
    assert max(some_bound(basis, sign * v, seed) for sign in (1.0, -1.0)) >= listed_price(basis, v).lower


def test_a_needle_is_not_missed() -> None:
    basis, v, direction = needle()
    exact = float(v @ np.maximum(basis @ direction, 0.0)) / float(np.linalg.norm(direction))
    assert some_bound(basis, v, 0) >= exact


def test_nothing_to_bound() -> None:
    """A sample at the origin has no direction, and no polynomials are polynomials too."""
    basis = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    lifted = Lifted(basis, 2)
    v = np.array([1.0, -2.0, 5.0])
    size = sum(len(part.counts) for part in lifted.moments.parts)
    found = lifted.bound(v, np.zeros((3, 5)), np.zeros((size, size)))
    assert 1.0 <= found <= 1.0 + 5e-6 * 5.0 + 1e-9
    assert lifted.bound(0.0 * v, np.zeros((3, 5)), np.zeros((size, size))) == 0.0
