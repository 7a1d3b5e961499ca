"""Branch and bound around the relaxation: above the exact price always, near it when time suffices, whatever the data."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import degenerate_data, lattices, listed_price, needle, random_case

from convexbn.pricing import Price, Relaxation, bound_by_boxes, bound_by_relaxation, bound_by_tree, price_everywhere, random_directions
from convexbn.pricing import tree as module
from convexbn.pricing.relaxation import Region
from convexbn.whitening import whiten

TOLERANCE = 0.01
each_data = pytest.mark.parametrize("X", degenerate_data().values(), ids=list(degenerate_data()))


def by_tree(basis: np.ndarray, v: np.ndarray, price: Price, *, tolerance: float = TOLERANCE, seconds: float = 20.0) -> float:
    """The tree's bound from the neurons of a price of both signs."""
    *_, upper = bound_by_tree(basis, v, price, tolerance=tolerance, seconds=seconds)
    return upper


def loose_case() -> tuple[np.ndarray, np.ndarray, Price]:
    """A case in which the relaxation by itself is a percent above the price and more."""
    for seed in range(100):
        basis, v = random_case(seed)
        price = price_everywhere(basis, v)
        if price.upper > 1.02 * price.lower:
            return basis, v, price
    raise AssertionError("the relaxation is tight everywhere")


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_the_tree_is_never_below_the_exact_price(seed: int, seconds: float) -> None:
    basis, v = random_case(seed)
    assert by_tree(basis, v, price_everywhere(basis, v), tolerance=1e-6, seconds=seconds) >= listed_price(basis, v).lower


@pytest.mark.parametrize("seed", [2, 11, 16, 17, 20, 28])
def test_the_tree_closes_in_on_the_exact_price(seed: int) -> None:
    """Where the relaxation by itself is not within the tolerance."""
    basis, v = random_case(seed)
    exact, price = listed_price(basis, v), price_everywhere(basis, v)
    assert price.upper > price.lower * (1.0 + TOLERANCE)
    assert exact.lower <= by_tree(basis, v, price) <= exact.upper * (1.0 + TOLERANCE) * (1.0 + 1e-9)


@each_data
@pytest.mark.parametrize("kind", ["random", "integers", "one sign"])
def test_the_tree_is_right_on_degenerate_data(X: np.ndarray, kind: str) -> None:
    basis, noise = whiten(X).basis, np.random.default_rng(5).standard_normal(len(X))
    v = {"random": noise, "integers": np.round(2.0 * noise), "one sign": -np.abs(noise)}[kind]
    exact, price = listed_price(basis, v), price_everywhere(basis, v)
    assert exact.lower <= by_tree(basis, v, price) <= exact.upper * (1.0 + TOLERANCE) * (1.0 + 1e-9)


@settings(max_examples=30)
@given(lattices(7, 2), st.integers(0, 10**6))
def test_the_tree_is_right_on_lattices(X: np.ndarray, seed: int) -> None:
    """Also where V is nothing but duplicates that cancel, and h(V) = 0."""
    basis = whiten(X).basis
    v = np.random.default_rng(seed).integers(-2, 3, len(X)).astype(float)
    lower = listed_price(basis, v).lower
    bound = by_tree(basis, v, price_everywhere(basis, v, starts=32, generations=2), tolerance=0.01, seconds=0.3)
    assert lower * (1.0 - 1e-12) <= bound <= np.linalg.norm(v) * (1.0 + 1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 17, 20])
def test_tree_and_boxes_agree(seed: int) -> None:
    """Two methods that share nothing but the definition of h."""
    basis, v = random_case(seed)
    price = price_everywhere(basis, v)
    boxes = max(bound_by_boxes(basis, side, price.lower, tolerance=TOLERANCE, seconds=20.0) for side in (v, -v))
    assert by_tree(basis, v, price) == pytest.approx(boxes, rel=TOLERANCE)


def test_the_tree_is_tighter_than_the_relaxation_it_begins_with() -> None:
    basis, v, price = loose_case()
    assert by_tree(basis, v, price) < bound_by_relaxation(basis, v, price.directions, price.outputs) * (1.0 - 0.5e-2)


def test_more_time_is_never_worse_than_rounding() -> None:
    """However soon the search ends, at the root or in the middle, the answer bounds the price and no longer search has a worse one."""
    basis, v, price = loose_case()
    exact = listed_price(basis, v)
    bounds = [by_tree(basis, v, price, tolerance=1e-7, seconds=seconds) for seconds in (0.0, 0.05, 0.2, 0.8)]
    assert min(bounds) >= exact.lower
    assert np.all(np.diff(bounds) <= 1e-9 * exact.lower)


def test_a_full_memory_splits_the_newest_and_stays_right(monkeypatch: pytest.MonkeyPatch) -> None:
    basis, v, price = loose_case()
    exact = listed_price(basis, v)
    monkeypatch.setattr(module, "MEMORY", 1.0)
    assert exact.lower <= by_tree(basis, v, price, seconds=0.3) <= price.upper * (1.0 + 1e-3)
    assert exact.lower <= by_tree(basis, v, price) <= exact.upper * (1.0 + TOLERANCE) * (1.0 + 1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [1.0, 0.5, 1e-3, 1e-9])
def test_directions_that_find_nothing_make_the_bound_loose_but_not_wrong(seed: int, share: float) -> None:
    basis, v = random_case(seed)
    exact = listed_price(basis, v)
    blind = Price(np.inf, share * exact.lower, random_directions(2, basis.shape[1], (seed,)), np.array([[1.0], [-1.0]]))
    assert by_tree(basis, v, blind, seconds=0.1) >= exact.lower


def test_a_needle_that_the_search_misses_stays_below_the_bound() -> None:
    """The tree is told of neurons far away from it."""
    basis, v, far_away = needle()
    worst = listed_price(basis, v).lower
    worth = abs(float(v @ np.maximum(basis @ far_away, 0.0)))
    blind = Price(np.inf, worth, np.stack([far_away, far_away]), np.array([[1.0], [-1.0]]))
    for seconds in (0.0, 1.0):
        assert by_tree(basis, v, blind, seconds=seconds) >= worst


@pytest.mark.parametrize("v", [np.zeros(7), np.array([1.0, 0, 0, 0, -1.0, 0, 0])], ids=["zero", "duplicates that cancel"])
def test_a_dual_point_without_a_price(v: np.ndarray) -> None:
    basis = whiten(degenerate_data()["duplicate rows"]).basis
    price = price_everywhere(basis, v)
    assert price.lower <= 1e-15
    assert price.lower <= by_tree(basis, v, price, seconds=0.1) <= np.linalg.norm(v) * (1.0 + 1e-9)


@pytest.mark.parametrize("factor", [1e-12, 1e-3, 1e9])
def test_the_bound_is_homogeneous(factor: float) -> None:
    basis, v = random_case(1)
    price = price_everywhere(basis, v)
    scaled = Price(factor * price.upper, factor * price.lower, price.directions, price.outputs)
    assert by_tree(basis, factor * v, scaled) == pytest.approx(factor * by_tree(basis, v, price), rel=1e-3)


def test_regions_are_split_where_the_density_is_spread() -> None:
    """The cut goes through the mean, across the direction of the largest variance: neither part is the whole region."""
    basis, v, price = loose_case()
    whole = Region.whole(basis.shape[1])
    x = Relaxation(basis, whole).start(price.directions[0])
    node = module._bounded(basis, price.outputs[0, 0] * v, whole, x, module._Aim(price.lower, price.lower, np.inf), np.inf, 0)
    density = Relaxation(basis, whole).smoothed(node.v, node.x, module.SPLITTING * price.lower).density
    mean = density[1:, 0] / density[0, 0]
    variance = density[1:, 1:] / density[0, 0] - np.outer(mean, mean)
    one, other = module._parts(basis, node, price.lower)
    normal = one.normals[0]
    assert normal @ variance @ normal == pytest.approx(np.linalg.eigvalsh(variance)[-1], rel=1e-9)
    assert one.offsets[0] == pytest.approx(float(normal @ mean), abs=1e-12)
    assert abs(one.offsets[0]) < 1.0
    assert np.array_equal(other.normals, -one.normals)
    assert np.array_equal(other.offsets, -one.offsets)


def test_the_worst_region_comes_first() -> None:
    nodes = [module._Node(-bound, number, np.zeros(1), Region.whole(1), np.zeros(1)) for number, bound in enumerate([1.0, 3.0, 2.0])]
    heapq.heapify(nodes)
    assert [-heapq.heappop(nodes).key for _ in range(3)] == [3.0, 2.0, 1.0]
