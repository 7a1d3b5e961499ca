"""h(V) for several outputs: between attained values and exact enumeration, invariant under rotations, and no proof from a broken hull."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import degenerate_data, lattices, listed_price

from convexbn.arrangements import enumerate_arrangements
from convexbn.pricing import (
    Price,
    bound_over_outputs,
    evolve,
    price_arrangements,
    price_dual,
    price_everywhere,
    random_directions,
)
from convexbn.pricing.outputs import _covers
from convexbn.whitening import whiten

TOLERANCE = 1e-2
each_data = pytest.mark.parametrize("X", degenerate_data().values(), ids=list(degenerate_data()))


def random_case(seed: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """A basis of up to 9 samples and 2 features, and a dual point of several columns."""
    generator = np.random.default_rng(seed)
    n, d = int(generator.integers(3, 10)), int(generator.integers(1, 3))
    return whiten(generator.standard_normal((n, d))).basis, generator.standard_normal((n, outputs))


def worths(basis: np.ndarray, v: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """||V^T (U's)_+|| of each row s, scaled to norm 1."""
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    values: np.ndarray = np.linalg.norm(np.maximum(unit @ basis.T, 0.0) @ v, axis=1)
    return values


def bounded(basis: np.ndarray, v: np.ndarray, *, seconds: float = 60.0) -> Price:
    """The interval from a search, by cuts until it is a hundredth wide."""
    columns = random_directions(64, basis.shape[1], (0,))
    directions, heights = evolve(basis, v, columns, seed=(0,), children=64, generations=2)
    best = directions[[int(np.argmax(heights))]]
    values = np.maximum(best @ basis.T, 0.0) @ v
    units = values / (np.linalg.norm(values) or 1.0)
    *_, price = bound_over_outputs(basis, v, best, units, float(np.max(heights)), tolerance=TOLERANCE, seconds=seconds)
    return price


def attained(basis: np.ndarray, v: np.ndarray, seed: int = 0) -> float:
    """The largest worth of random neurons, of a search, and of the best neurons of random outputs w over all cones."""
    generator = np.random.default_rng(seed)
    active = enumerate_arrangements(basis).active
    units = generator.standard_normal((4, v.shape[1]))
    tops = [price_arrangements(basis, v @ w, active).directions[0] for w in units]
    found, _ = evolve(basis, v, random_directions(64, basis.shape[1], (seed,)), seed=(seed,), children=32, generations=2)
    alive = [top for top in tops if np.any(top)]
    return float(np.max(worths(basis, v, np.concatenate([found, *(top[None] for top in alive)]))))


def enumerated(basis: np.ndarray, v: np.ndarray, count: int = 120) -> tuple[float, float]:
    """An interval around h(V) for two outputs: exact scalar prices on a grid of the half circle of w.

    w^T y is at least ||y|| cos(angle) for the y that attains h(V), and the next w of the grid is within half a step of it.
    """
    active = enumerate_arrangements(basis).active
    angles = np.arange(count) * np.pi / count
    prices = [price_arrangements(basis, v @ [np.cos(angle), np.sin(angle)], active) for angle in angles]
    lower = max(float(worths(basis, v, price.directions)[0]) for price in prices if np.any(price.directions))
    return lower, max(price.upper for price in prices) / np.cos(0.5 * np.pi / count)


def price_by_supports(v: np.ndarray) -> float:
    """h(V) at rank n - 1: max ||V^T p|| over p >= 0, ||p|| = 1. A maximiser is an eigenvector of V V^T on its support."""
    best = 0.0
    gram = v @ v.T
    for size in range(1, len(v) + 1):
        for support in combinations(range(len(v)), size):
            values, vectors = np.linalg.eigh(gram[np.ix_(support, support)])
            one_signed = np.all(vectors >= -1e-12, axis=0) | np.all(vectors <= 1e-12, axis=0)
            best = max(best, float(np.max(values[one_signed], initial=0.0)))
    return float(np.sqrt(best))


@pytest.mark.parametrize("seed", range(12))
def test_two_outputs_against_enumeration(seed: int) -> None:
    basis, v = random_case(seed, 2)
    low, high = enumerated(basis, v)
    assert high <= low * (1.0 + 1e-3)
    found = bounded(basis, v)
    assert found.lower <= high
    assert found.upper >= low
    assert found.upper <= high * (1.0 + 2.0 * TOLERANCE)


@each_data
def test_two_outputs_against_enumeration_on_degenerate_data(X: np.ndarray) -> None:
    basis = whiten(X).basis
    for v in (np.random.default_rng(8).standard_normal((len(X), 2)), np.eye(2)[np.arange(len(X)) % 2] - 0.5):
        low, high = enumerated(basis, v)
        found = bounded(basis, v)
        assert found.lower <= high
        assert low <= found.upper <= high * 1.05


@pytest.mark.parametrize("outputs", [2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_the_bound_is_never_below_an_attained_value(seed: int, outputs: int) -> None:
    basis, v = random_case(20 + seed, outputs)
    found, best = bounded(basis, v), attained(basis, v, seed)
    assert found.upper >= best
    assert best == pytest.approx(found.lower, rel=TOLERANCE)
    assert found.upper <= np.linalg.norm(v, 2) * (1.0 + 1e-9)


@settings(max_examples=20)
@given(lattices(7, 2), st.integers(2, 4), st.integers(0, 10**6))
def test_the_bound_holds_on_lattices(X: np.ndarray, outputs: int, seed: int) -> None:
    basis = whiten(X).basis
    v = np.random.default_rng(seed).integers(-1, 2, (len(X), outputs)).astype(float)
    found = bounded(basis, v, seconds=0.1)
    assert found.upper >= attained(basis, v, seed) * (1.0 - 1e-12)
    assert found.upper <= np.linalg.norm(v, 2) * (1.0 + 1e-9)


@pytest.mark.parametrize("seconds", [1e-9, 0.02, 0.1])
def test_a_proof_stopped_early_still_bounds(seconds: float) -> None:
    for outputs in (2, 3, 5):
        basis, v = random_case(3, outputs)
        found = bounded(basis, v, seconds=seconds)
        assert attained(basis, v) <= found.upper <= np.linalg.norm(v, 2) * (1.0 + 1e-9)


def test_a_proof_without_time_still_names_a_neuron() -> None:
    """What asks for a price goes on from its neurons, so there is one at least."""
    for outputs in (2, 3, 4):
        for seed in range(10):
            found = bounded(*random_case(seed, outputs), seconds=1e-9)
            assert len(found.directions) == len(found.outputs) >= 1


@pytest.mark.parametrize("samples", [3, 4, 5])
@pytest.mark.parametrize("outputs", [2, 3])
def test_square_bases_against_all_supports(samples: int, outputs: int) -> None:
    for seed in range(2):
        generator = np.random.default_rng((seed, samples))
        basis, v = whiten(generator.standard_normal((samples, samples))).basis, generator.standard_normal((samples, outputs))
        exact, found = price_by_supports(v), bounded(basis, v)
        assert basis.shape == (samples, samples)
        assert found.lower == pytest.approx(exact, rel=1e-6)
        assert exact <= found.upper <= exact * (1.0 + 2.0 * TOLERANCE)


@pytest.mark.parametrize("sizes", [(3, 2), (2, 2, 2), (4, 2, 1)], ids=str)
def test_one_hot_columns_at_rank_n_minus_1(sizes: tuple[int, ...]) -> None:
    """Orthogonal columns without negative entries: h(V) = max_c ||v_c||, attained by one neuron a class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    v = np.eye(len(sizes))[labels] * np.random.default_rng(1).uniform(0.5, 1.5, (len(labels), 1))
    basis = whiten(np.random.default_rng(2).standard_normal((len(labels), len(labels) + 2))).basis
    found, exact = bounded(basis, v), float(np.max(np.linalg.norm(v, axis=0)))
    assert found.lower == pytest.approx(exact, rel=1e-9)
    assert exact <= found.upper <= exact * (1.0 + 2.0 * TOLERANCE)


@pytest.mark.parametrize("outputs", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_one_column_that_is_not_zero_has_the_price_of_one_output(seed: int, outputs: int) -> None:
    basis, v = random_case(40 + seed, 1)
    wide = np.zeros((len(v), outputs))
    wide[:, seed % outputs] = v[:, 0]
    scalar, found = listed_price(basis, v[:, 0]), bounded(basis, wide)
    assert found.lower == pytest.approx(scalar.lower, rel=1e-7)
    assert scalar.lower <= found.upper <= price_everywhere(basis, v[:, 0]).upper * (1.0 + 2.0 * TOLERANCE)
    parallel = bounded(basis, v @ np.full((1, outputs), outputs**-0.5))
    assert scalar.lower * (1.0 - 1e-12) <= parallel.upper <= price_everywhere(basis, v[:, 0]).upper * (1.0 + 2.0 * TOLERANCE)


@pytest.mark.parametrize("outputs", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_turning_the_outputs_changes_nothing(seed: int, outputs: int) -> None:
    basis, v = random_case(60 + seed, outputs)
    plain = bounded(basis, v)
    for mirror in (1.0, -1.0):
        turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((outputs, outputs)))[0]
        turn[:, 0] *= mirror
        turned = bounded(basis, v @ turn)
        assert turned.lower == pytest.approx(plain.lower, rel=1e-6)
        assert turned.upper >= plain.lower * (1.0 - 1e-9)
        assert turned.upper == pytest.approx(plain.upper, rel=2.0 * TOLERANCE)


@pytest.mark.parametrize("factor", [1e-200, 1e-9, 1e6, 1e120])
def test_units_change_nothing(factor: float) -> None:
    basis, v = random_case(1, 3)
    plain, scaled = (price_dual(basis, unit * v, None, seconds=60.0) for unit in (1.0, factor))
    assert scaled.lower == pytest.approx(factor * plain.lower, rel=1e-9)
    assert scaled.upper == pytest.approx(factor * plain.upper, rel=TOLERANCE)


def test_zero_is_worth_nothing() -> None:
    basis = random_case(0, 2)[0]
    found = price_dual(basis, np.zeros((len(basis), 3)), None)
    assert (found.lower, found.upper) == (0.0, 0.0)


def test_outputs_beyond_the_hull_have_the_largest_singular_value() -> None:
    generator = np.random.default_rng(3)
    basis, v = whiten(generator.standard_normal((14, 2))).basis, generator.standard_normal((14, 11))
    found = price_everywhere(basis, v, starts=32, generations=1)
    assert found.upper == pytest.approx(np.linalg.norm(v, 2), rel=1e-9)
    assert attained(basis, v) <= found.upper


@pytest.mark.parametrize("outputs", [2, 3, 5])
def test_neurons_of_the_price_answer_their_outputs(outputs: int) -> None:
    basis, v = random_case(5, outputs)
    for found in (price_everywhere(basis, v, seconds=1.5), bounded(basis, v)):
        assert np.linalg.norm(found.directions, axis=1) == pytest.approx(1.0)
        assert np.linalg.norm(found.outputs, axis=1) == pytest.approx(1.0)
        assert len(found.directions) == len(found.outputs)
        assert np.max(worths(basis, v, found.directions)) == pytest.approx(found.lower, rel=1e-2)


@pytest.mark.parametrize("outputs", [2, 3])
@pytest.mark.parametrize("share", [1.0, 0.3, 1e-4])
def test_a_search_that_misses_the_maximum_makes_no_wrong_bound(outputs: int, share: float) -> None:
    """A needle: one outlier has the only high price. The cuts are told of far neurons and of a value too low."""
    generator = np.random.default_rng(2)
    basis = whiten(np.concatenate([generator.standard_normal((40, 2)), [[1e4, 1e4]]])).basis
    v = -0.1 * np.abs(generator.standard_normal((41, outputs)))
    v[-1] = 5.0
    needle = float(worths(basis, v, basis[-1:])[0])
    far = -basis[-1:] / np.linalg.norm(basis[-1])
    values = np.maximum(far @ basis.T, 0.0) @ v
    told = share * float(np.linalg.norm(values))
    assert told < 0.5 * needle
    *_, found = bound_over_outputs(basis, v, far, values / np.linalg.norm(values), told, seconds=0.3)
    assert found.upper >= needle


def octahedron() -> tuple[np.ndarray, np.ndarray]:
    """The hull of +-e_k in three dimensions: eight triangles."""
    points = np.concatenate([np.eye(3), -np.eye(3)])
    triangles = [(i, j, k) for i in (0, 3) for j in (1, 4) for k in (2, 5)]
    return points, np.array(triangles, dtype=np.intp)


def test_a_closed_surface_covers() -> None:
    points, triangles = octahedron()
    assert _covers(points, triangles)
    assert _covers(points * np.arange(1.0, 7.0)[:, None], triangles[::-1, ::-1])
    square = np.concatenate([np.eye(2), -np.eye(2)])
    assert _covers(square, np.array([[0, 1], [1, 2], [2, 3], [3, 0]]))


@pytest.mark.parametrize("missing", range(8))
def test_a_surface_with_a_hole_is_refused(missing: int) -> None:
    points, triangles = octahedron()
    assert not _covers(points, np.delete(triangles, missing, axis=0))


@pytest.mark.parametrize("doubled", range(8))
def test_a_doubled_simplex_is_refused(doubled: int) -> None:
    points, triangles = octahedron()
    assert not _covers(points, np.concatenate([triangles, triangles[[doubled]]]))
    others = np.delete(triangles, (doubled + 1) % 8, axis=0)
    assert not _covers(points, np.concatenate([others, triangles[[doubled]]]))
    assert not _covers(points, triangles[[doubled, doubled]])


def test_a_fold_is_refused() -> None:
    """Closed, two triangles at each ridge, and yet nothing below z = 0.5 is covered: a tetrahedron that doesn't hold 0."""
    points = np.array([[0.0, 0.0, 2.0], [1.0, 0.0, 1.0], [-1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]])
    triangles = np.array(list(combinations(range(4), 3)))
    assert not _covers(points, triangles)
    assert _covers(points - [0.0, 0.0, 1.2], triangles)
    arc = np.array([[1.0, 0.1], [0.0, 1.0], [-1.0, 0.1]])
    assert not _covers(arc, np.array([[0, 1], [1, 2], [2, 0]]))
    assert _covers(arc - [0.0, 0.5], np.array([[0, 1], [1, 2], [2, 0]]))


def test_flat_simplices_are_refused() -> None:
    points, triangles = octahedron()
    flat = points.copy()
    flat[2] = [0.6, 0.8, 0.0]
    assert not _covers(flat, triangles)


@pytest.mark.parametrize("kind", ["hole", "double"])
def test_no_bound_is_taken_from_a_hull_that_does_not_cover(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a surface the bound stays what it was: the largest singular value."""
    import scipy.spatial

    hull = scipy.spatial.ConvexHull

    class Broken:
        def __init__(self, points: np.ndarray, **options: object) -> None:
            whole = hull(points, **options).simplices
            self.simplices = whole[1:] if kind == "hole" else np.concatenate([whole, whole[:1]])

    basis, v = random_case(1, 3)
    honest = bounded(basis, v).upper
    monkeypatch.setattr(scipy.spatial, "ConvexHull", Broken)
    trivial = float(np.linalg.norm(v, 2))
    assert honest < trivial * (1.0 - 1e-3)
    assert bounded(basis, v, seconds=0.2).upper == pytest.approx(trivial, rel=1e-9)
