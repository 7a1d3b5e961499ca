"""Upper bounds on h(V) are bounds: against exact enumeration, needles, high precision, and each other."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import degenerate_data, lattices, listed_price, needle, random_case

from convexbn.pricing import (
    Relaxation,
    bound_by_boxes,
    bound_by_relaxation,
    climb,
    everywhere,
    evolve,
    local_search,
    price_everywhere,
    random_directions,
)
from convexbn.pricing import relaxation as relaxation_module
from convexbn.pricing.relaxation import Region
from convexbn.whitening import whiten

BOTH = np.array([[1.0], [-1.0]])
seeds = st.integers(0, 10**6)


def relaxed(basis: np.ndarray, v: np.ndarray, direction: np.ndarray) -> float:
    """The bound for both signs from one direction."""
    return bound_by_relaxation(basis, v, np.stack([direction, direction]), BOTH)


def random_region(basis: np.ndarray, seed: int) -> tuple[Region, np.ndarray]:
    """Up to four cuts, some along samples, some nearly, that leave a random point of the sphere in; and points of the region."""
    generator = np.random.default_rng(seed)
    width = basis.shape[1]
    inside = random_directions(1, width, (seed,))[0]
    region = Region.whole(width)
    for _ in range(generator.integers(1, 5)):
        row = basis[generator.integers(len(basis))] * generator.choice([-1.0, 1.0])
        normal = row + generator.choice([0.0, 1e-9, 1e-4, 10.0]) * generator.standard_normal(width)
        normal /= np.linalg.norm(normal)
        offset = normal @ inside - generator.choice([0.0, 1e-12, 1e-6, 0.1, 1.0])
        region = region.split(normal, float(offset))[0]
    near = inside + np.logspace(-12, 1, 2000)[:, None] * generator.standard_normal((2000, width))
    points = np.concatenate([inside[None], near / np.linalg.norm(near, axis=1, keepdims=True)])
    return region, points[np.all(points @ region.normals.T >= region.offsets, axis=1)]


def random_multipliers(relaxation: Relaxation, seed: int) -> np.ndarray:
    """Any within the limits, a third of them at a limit."""
    generator = np.random.default_rng(seed)
    low, high = relaxation.limits.lb, relaxation.limits.ub
    top = np.where(np.isfinite(high), high, generator.exponential())
    bottom = np.where(np.isfinite(low), low, -top)
    share = np.clip(1.5 * generator.random(len(low)) - 0.25, 0.0, 1.0)
    return np.clip(bottom + share * (top - bottom), low, high)


def random_slants(basis: np.ndarray, seed: int) -> np.ndarray:
    """Directions of any length for the slants: some along the samples, some almost, some nowhere."""
    generator = np.random.default_rng(seed)
    turns = generator.choice([1e-9, 0.1, 1.0, 10.0], (len(basis), 1)) * generator.standard_normal(basis.shape)
    return generator.choice([0.0, 1e-6, 1.0, 1e6], (len(basis), 1)) * (basis + turns)


def cases_in_regions(seed: int) -> list[tuple[Relaxation, np.ndarray, np.ndarray]]:
    """One random case on the whole sphere, in a region and with slants, each with a V and random multipliers."""
    basis, v = random_case(seed)
    region = random_region(basis, seed)[0]
    relaxations = Relaxation(basis), Relaxation(basis, region), Relaxation(basis, toward=random_slants(basis, seed))
    return [(relaxation, v, random_multipliers(relaxation, seed)) for relaxation in relaxations]


@pytest.mark.parametrize("seed", range(30))
def test_relaxation_is_never_below_the_exact_price(seed: int) -> None:
    basis, v = random_case(seed)
    exact = listed_price(basis, v)
    assert relaxed(basis, v, exact.directions[0]) >= exact.lower
    assert relaxed(basis, v, random_directions(1, basis.shape[1], (seed,))[0]) >= exact.lower


@pytest.mark.parametrize("name", degenerate_data())
def test_both_bounds_hold_on_degenerate_data(name: str) -> None:
    basis = whiten(degenerate_data()[name]).basis
    v = np.random.default_rng(5).standard_normal(len(basis))
    exact = listed_price(basis, v)
    assert relaxed(basis, v, exact.directions[0]) >= exact.lower
    assert max(bound_by_boxes(basis, side, exact.lower, tolerance=0.1, seconds=1.0) for side in (v, -v)) >= exact.lower


@settings(max_examples=40)
@given(lattices(7, 2), seeds)
def test_bounds_hold_on_lattices(X: np.ndarray, seed: int) -> None:
    basis = whiten(X).basis
    v = np.random.default_rng(seed).integers(-2, 3, len(X)).astype(float)
    lower = listed_price(basis, v).lower
    price = price_everywhere(basis, v, starts=32, generations=2)
    assert price.upper >= lower * (1.0 - 1e-12)
    assert price.lower <= lower * (1.0 + 1e-9) + 1e-12


def test_a_needle_that_the_search_misses_stays_below_the_bounds() -> None:
    """The search is started away from it and given no steps."""
    basis, v, far_away = needle()
    worst = listed_price(basis, v).upper
    assert v @ np.maximum(basis @ far_away, 0.0) < 0.1 * worst
    assert relaxed(basis, v, far_away) >= worst * (1.0 - 1e-6)
    assert bound_by_boxes(basis, v, 1e-9, tolerance=1e-3, seconds=0.5) >= worst * (1.0 - 1e-6)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("place", [0, 1, 2], ids=["whole sphere", "region", "slants"])
def test_gradients_of_the_smoothed_bound(seed: int, place: int) -> None:
    relaxation, v, x = cases_in_regions(seed)[place]
    n = len(v)
    x[:n] = np.maximum(x[:n], np.log(0.1 * relaxation.height))
    found, point = relaxation.smoothed(v, x, 0.1), np.concatenate([v, x])
    for place, slope in enumerate(np.concatenate([found.by_v, found.by_x])):
        step = 1e-6 * (np.arange(len(point)) == place)
        above, below = (relaxation.smoothed(moved[:n], moved[n:], 0.1).value for moved in (point + step, point - step))
        assert (above - below) / 2e-6 == pytest.approx(slope, rel=1e-5, abs=1e-6)


@given(seeds)
def test_the_smoothed_bound_is_above_by_the_temperature_at_most(seed: int) -> None:
    for relaxation, v, x in cases_in_regions(seed):
        sharp, size = relaxation.value(v, x), relaxation.basis.shape[1] + 1
        for temperature in (1.0, 1e-3):
            found = relaxation.smoothed(v, x, temperature)
            assert sharp - 1e-9 * abs(sharp) <= found.value <= sharp + temperature * np.log(size)
            assert np.trace(found.density) == pytest.approx(1.0)
            assert np.min(np.linalg.eigvalsh(found.density)) >= -1e-12


@given(seeds)
def test_reach_is_above_every_point_of_the_region(seed: int) -> None:
    basis = random_case(seed)[0]
    region, points = random_region(basis, seed)
    rows = np.concatenate([basis, -basis, region.normals, -region.normals])
    assert np.all(np.max(rows @ points.T, axis=1) <= region.reach(rows))
    relaxation, images = Relaxation(basis, region), points @ basis.T
    assert np.all(np.abs(images) <= relaxation.height)
    assert np.all(relaxation._sign * images >= 0.0)


@pytest.mark.parametrize("turn", [1e-12, 1e-9, 1e-8, 1e-7, 1e-4, 1.0, 2.0])
@pytest.mark.parametrize("offset", [-0.9, -1e-8, 0.0, 1e-10, 0.3, 0.999999])
def test_reach_beyond_one_cut_is_the_maximum(turn: float, offset: float) -> None:
    """In the plane the region is an arc around q, and u is maximal at the end next to it; also where u is all but -q."""
    region = Region(np.array([[1.0, 0.0]]), np.array([offset]))
    for angle in (turn, np.pi - turn):
        end = min(np.arccos(offset), angle)
        row = 3.0 * np.array([np.cos(angle), np.sin(angle)])
        highest = 3.0 * np.cos(angle - end)
        attained = float(row @ [np.cos(end), np.sin(end)])
        assert region.reach(row[None])[0] >= max(highest, attained) - 1e-15
        assert region.reach(row[None])[0] == pytest.approx(highest, abs=1e-11 if offset < 0.9 else 1e-9)


@pytest.mark.parametrize(("offset", "sign"), [(-0.1, 0.0), (-1e-9, 0.0), (0.0, 0.0), (1e-9, 1.0), (0.1, 1.0)])
def test_signs_are_known_only_where_no_point_has_the_other(offset: float, sign: float) -> None:
    basis = random_case(2)[0]
    row = basis[0] / np.linalg.norm(basis[0])
    for side in (1.0, -1.0):
        assert Relaxation(basis, Region(side * row[None], np.array([offset])))._sign[0] == side * sign


def test_the_whole_sphere_reaches_the_length_of_a_row() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [-1.0, 0.0]])
    assert Region.whole(2).reach(rows) == pytest.approx([5.0, 0.0, 1.0], rel=1e-11)


@given(seeds)
def test_parts_of_a_region_cover_it(seed: int) -> None:
    basis = random_case(seed)[0]
    region, points = random_region(basis, seed)
    normal = random_directions(1, basis.shape[1], (seed, 1))[0]
    one, other = region.split(normal, float(np.median(points @ normal)))
    inside = [np.all(points @ part.normals.T >= part.offsets - 1e-14, axis=1) for part in (one, other)]  # BLAS rounds by shape
    assert np.all(inside[0] | inside[1])
    assert one.normals.shape == (len(region.normals) + 1, basis.shape[1])


@given(seeds, st.sampled_from(["random", "one sign", "integers", "huge"]))
def test_any_multipliers_bound_every_point_of_the_region(seed: int, kind: str) -> None:
    basis, v = random_case(seed)
    v = {"random": v, "one sign": np.abs(v), "integers": np.round(v), "huge": 1e9 * v}[kind]
    region, points = random_region(basis, seed)
    everywhere = random_directions(2000, basis.shape[1], (seed,))
    everywhere = np.concatenate([points, everywhere])
    slanted = [Relaxation(basis, toward=random_slants(basis, seed)), Relaxation(basis, toward=basis @ np.diag(everywhere[0]))]
    for relaxation, where in ((Relaxation(basis, region), points), *((whole, everywhere) for whole in (Relaxation(basis), *slanted))):
        dearest = float(np.max(np.maximum(where @ basis.T, 0.0) @ v))
        for number in range(4):
            x = random_multipliers(relaxation, seed + number)
            assert relaxation.value(v, x) >= dearest
            assert relaxation.smoothed(v, x, 0.01).value >= dearest - 1e-12 * np.linalg.norm(v)


@pytest.mark.parametrize("seed", range(10))
def test_descent_keeps_the_bound_above_every_point_of_the_region(seed: int) -> None:
    basis, v = random_case(seed)
    region, points = random_region(basis, seed)
    values = np.maximum(points @ basis.T, 0.0) @ v
    relaxation = Relaxation(basis, region)
    x, scale = relaxation.start(points[int(np.argmax(values))]), float(np.linalg.norm(v))
    first = relaxation.value(v, x)
    for temperature in (0.1, 0.01, 0.001):
        x = relaxation.descend(v, x, temperature, scale, 30)
        assert np.all((relaxation.limits.lb <= x) & (x <= relaxation.limits.ub))
        assert relaxation.value(v, x) >= np.max(values)
    assert relaxation.value(v, x) <= first


@pytest.mark.parametrize("seed", range(5))
def test_small_regions_have_the_bound_of_their_centre(seed: int) -> None:
    """In a cap of radius e the bound is v^T (U's)_+ at its centre to the first order of e."""
    basis, v = random_case(seed)
    centre = random_directions(1, basis.shape[1], (seed, 5))[0]
    worth, scale = float(v @ np.maximum(basis @ centre, 0.0)), float(np.linalg.norm(v))
    for radius in (0.1, 0.01, 0.001):
        relaxation = Relaxation(basis, Region(centre[None], np.array([1.0 - 0.5 * radius**2])))
        x = relaxation.start(centre)
        for temperature in (0.03, 0.003, 0.0003):
            x = relaxation.descend(v, x, radius * temperature, scale, 60)
        assert worth <= relaxation.value(v, x) <= worth + 2.0 * radius * scale


def slope(relaxation: Relaxation, i: int, h: Fraction, row: list[Fraction], p: list[Fraction]) -> Fraction:
    """g_i^T s, to forty digits."""
    if relaxation.toward is None:
        return sum(u * q for u, q in zip(row, p[1:], strict=True)) / h
    toward = [Fraction(float(entry)) for entry in relaxation.toward[i]]
    square = sum(entry**2 for entry in toward)
    root = Fraction(math.isqrt(int(square * 10**80)), 10**40) if square else Fraction(1)
    return sum(u * q for u, q in zip(toward, p[1:], strict=True)) / root


def exact_value(relaxation: Relaxation, v: np.ndarray, x: np.ndarray, point: np.ndarray) -> Fraction:
    """p^T M p / p^T p + const in exact fractions, M and const written again from the definition of the relaxation; at most the bound."""
    n, p = len(v), [Fraction(float(entry)) for entry in point]
    rows = [[Fraction(float(entry)) for entry in row] for row in relaxation.basis]
    sign = relaxation._sign
    total, constant = Fraction(float(x[3 * n])) * p[0] ** 2, -Fraction(float(x[3 * n])) / 2
    for i in range(n):
        t = sum(u * q for u, q in zip(rows[i], p[1:], strict=True))
        value, h, a = Fraction(float(v[i])), Fraction(float(relaxation.height[i])), Fraction(float(np.exp(x[i])))
        k, c = Fraction(float(x[n + i])), Fraction(float(x[2 * n + i]))
        total += value * t * p[0]
        if sign[i] != 0:
            total += value * int(sign[i]) * t * p[0]
        elif value > 0:
            total += value * t**2 / (2 * a)
            constant += value * a / 4
        else:
            total += value * (k * t * slope(relaxation, i, h, rows[i], p) + (1 - k) * c * t * p[0])
    for multiplier, cut in zip(x[3 * n + 1 :], relaxation._cuts, strict=True):
        form = sum(Fraction(float(cut[i, j])) * p[i] * p[j] for i in range(len(p)) for j in range(len(p)))
        total += Fraction(float(multiplier)) * form
    return total / sum(entry**2 for entry in p) + constant


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_the_rounding_margin_covers_rational_arithmetic(seed: int, size: float) -> None:
    """The largest eigenvalue is at least the quotient at any vector; at the float64 eigenvector it is that, to twice the digits."""
    for relaxation, v, x in cases_in_regions(seed):
        matrix = relaxation._lift(relaxation.basis, relaxation._slants, size * v, x)[0]
        vector = np.linalg.eigh(matrix)[1][:, -1]
        exact = exact_value(relaxation, size * v, x, vector)
        found = Fraction(relaxation.value(size * v, x))
        assert found >= exact
        assert float(found - exact) <= 1e-9 * (np.linalg.norm(matrix) + size * np.abs(v).sum())


def test_cuts_are_products_that_no_point_of_the_region_makes_negative() -> None:
    for seed in range(20):
        basis = random_case(seed)[0]
        region, points = random_region(basis, seed)
        lifted = np.column_stack([np.ones(len(points)), points])
        cuts = Relaxation(basis, region)._cuts
        count = len(region.offsets)
        assert len(cuts) == count * (count + 1) // 2
        assert np.min(np.einsum("pi,kij,pj->kp", lifted, cuts, lifted)) >= -1e-14
        outside = np.concatenate([[1.0], -region.normals[0]])
        assert outside @ cuts[0] @ outside == pytest.approx(-2.0 * (1.0 + region.offsets[0]))


@pytest.mark.parametrize("seed", range(10))
def test_search_and_climbs_find_the_exact_price_in_few_dimensions(seed: int) -> None:
    basis, v = random_case(seed)
    assert price_everywhere(basis, v).lower == pytest.approx(listed_price(basis, v).upper, rel=1e-7)


def test_climbing_ends_at_a_ridge_that_gradient_steps_only_approach() -> None:
    basis, v = random_case(9)
    directions, worths = local_search(basis, v[:, None], random_directions(64, basis.shape[1], (9,)))
    foot = directions[np.argmax(worths)]
    top = climb(basis, v[:, None], foot[None])[0]
    assert np.abs(v @ np.maximum(basis @ top, 0.0)) > np.max(worths) * (1.0 + 1e-5)
    assert np.linalg.norm(top) == pytest.approx(1.0)


def test_worth_of_several_outputs_is_the_norm() -> None:
    generator = np.random.default_rng(0)
    basis, v = whiten(generator.standard_normal((20, 3))).basis, generator.standard_normal((20, 4))
    directions, worths = evolve(basis, v, random_directions(16, 4, (0,)), seed=(0,), children=16, generations=1)
    assert worths == pytest.approx(np.linalg.norm(v.T @ np.maximum(basis @ directions.T, 0.0), axis=0))
    assert np.linalg.norm(directions, axis=1) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(10))
def test_large_bases_descend_in_float32_and_are_bounded_in_float64(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few steps, few starts and no climbs, in chunks of three rows: looser, but bounds."""
    basis, v = random_case(seed)
    exact = listed_price(basis, v)
    small = price_everywhere(basis, v)
    for module in (relaxation_module, everywhere):
        monkeypatch.setattr(module, "LARGE", 1)
    monkeypatch.setattr(relaxation_module, "ROWS", 3)
    large = price_everywhere(basis, v)
    assert Relaxation(basis)._rough.dtype == np.float32
    assert large.lower <= exact.lower * (1.0 + 1e-9)
    assert exact.lower <= large.upper <= 1.2 * small.upper


def test_sums_in_chunks_are_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaxation_module, "ROWS", 4)
    basis, weights = random_case(3)
    matrix = np.random.default_rng(0).standard_normal((basis.shape[1], basis.shape[1]))
    matrix, slants = matrix + matrix.T, random_slants(basis, 3)
    mixed = basis.T @ np.diag(weights**2) @ slants
    expected = basis.T @ np.diag(weights) @ basis + 0.5 * (mixed + mixed.T)
    np.testing.assert_allclose(relaxation_module._weighted_gram(basis, slants, weights, weights**2), expected, rtol=1e-12, atol=1e-13)
    forms = [np.diag(basis @ matrix @ other.T) for other in (basis, slants)]
    np.testing.assert_allclose(relaxation_module._forms(basis, slants, matrix), forms, rtol=1e-12, atol=1e-13)
