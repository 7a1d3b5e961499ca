"""Every box's bound holds in that box, whatever was wanted of it, and every cut makes two smaller ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from problems import degenerate_data, listed_price, random_case

from convexbn.pricing import boxes as module
from convexbn.whitening import whiten


def random_boxes(width: int, seed: int) -> module.Boxes:
    """On the surface of the cube: some large, some tiny, some with sides of very different lengths, some a point."""
    generator = np.random.default_rng(seed)
    half = np.exp2(-generator.integers(0, 30, (64, width)).astype(float)) * generator.choice([0.0, 1.0], (64, 1), p=[0.1, 0.9])
    centre = np.clip(generator.standard_normal((64, width)), half - 1.0, 1.0 - half)
    face = generator.integers(width, size=64)
    half[np.arange(64), face] = 0.0
    centre[np.arange(64), face] = generator.choice([-1.0, 1.0], 64)
    return module.Boxes(centre, half, np.full(64, np.inf), face)


def largest_seen(basis: np.ndarray, v: np.ndarray, boxes: module.Boxes, seed: int) -> np.ndarray:
    """The largest v^T (U's)_+ / ||s|| of 400 points in each box: corners, points inside, and the steepest corners from them."""
    generator = np.random.default_rng(seed)
    corners = generator.choice([-1.0, 1.0], (200, *boxes.centre.shape))
    points = boxes.centre + boxes.half * np.concatenate([corners, corners * generator.random((200, len(boxes), 1))])
    for _ in range(3):
        values = np.maximum(points @ basis.T, 0.0) @ v / np.linalg.norm(points, axis=2)
        slope = ((points @ basis.T > 0) * v) @ basis - values[..., None] * points / np.linalg.norm(points, axis=2, keepdims=True)
        points = np.concatenate([points, boxes.centre + boxes.half * np.sign(slope)])
    return np.asarray(np.max(np.maximum(points @ basis.T, 0.0) @ v / np.linalg.norm(points, axis=2), axis=0))


@pytest.mark.parametrize("stride", [0.0, 0.7, 50.0])
@pytest.mark.parametrize("name", ["general", *degenerate_data()])
def test_each_bound_holds_in_its_box(name: str, stride: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goals below, among and above the bounds, so that boxes are refined or not; strides that no slope survives."""
    monkeypatch.setattr(module, "STRIDE", stride)
    generator = np.random.default_rng(7)
    X = generator.standard_normal((40, 4)) if name == "general" else degenerate_data()[name]
    basis = whiten(X).basis
    v = generator.standard_normal(len(basis)) * generator.choice([0.0, 1e-6, 1.0], len(basis))
    boxes = random_boxes(basis.shape[1], 3)
    boxes = replace(boxes, bound=np.full(len(boxes), np.linalg.norm(np.maximum(v, 0.0)) * (1.0 + 1e-12)))
    seen = largest_seen(basis, v, boxes, 5)
    for goal in (0.0, float(np.median(np.abs(seen))), 1e6):
        found = module._Samples(basis, v, goal).bounded(boxes)
        assert np.all(found.bound >= seen)
        assert np.all(found.bound <= boxes.bound)


def test_slopes_that_cost_less_make_bounds_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nowhere larger, and nearer to what is attained by a fifth on boxes of half-width 1/8, beside slopes that stay."""
    generator = np.random.default_rng(0)
    basis = whiten(generator.standard_normal((200, 5))).basis
    v = generator.standard_normal(200)
    boxes = random_boxes(6, 1)
    boxes = module.Boxes(0.875 * boxes.centre, np.full_like(boxes.half, 0.125), np.full(64, np.linalg.norm(v)), boxes.side)
    samples = module._Samples(basis, v, 0.0)
    refined = samples.bounded(boxes).bound
    monkeypatch.setattr(module._Samples, "_refined", lambda self, some, *rest: some.bound)
    plain = samples.bounded(boxes).bound
    assert np.all(refined <= plain)
    seen = largest_seen(basis, v, boxes, 2)
    assert np.mean(refined - seen) < 0.8 * np.mean(plain - seen)


def test_halves_cover_the_box_and_are_cut_where_there_is_width() -> None:
    boxes = random_boxes(4, 2)
    generator = np.random.default_rng(1)
    basis, v = whiten(generator.standard_normal((30, 3))).basis, generator.standard_normal(30)
    found = module._Samples(basis, v, 0.0).bounded(replace(boxes, bound=np.full(64, 100.0)))
    wide = np.any(boxes.half > 0, axis=1)
    assert np.all(found.half[np.arange(64), found.side][wide] > 0)
    one, other = (found.halved().take(slice(64 * k, 64 * (k + 1))) for k in range(2))
    np.testing.assert_array_equal(one.centre - one.half, boxes.centre - boxes.half)
    np.testing.assert_array_equal(other.centre + other.half, boxes.centre + boxes.half)
    shared = (one.centre + one.half)[np.arange(64), found.side], (other.centre - other.half)[np.arange(64), found.side]
    np.testing.assert_allclose(*shared, rtol=0.0, atol=1e-15)


def test_a_search_goes_on_where_it_stopped() -> None:
    """Its bound never rises, never passes what is attained, and is that of a search in one go at the end."""
    generator = np.random.default_rng(1)
    basis = whiten(generator.standard_normal((60, 3))).basis
    v = generator.standard_normal(60)
    directions = generator.standard_normal((20_000, basis.shape[1]))
    attained = float(np.max(np.maximum(directions @ basis.T, 0.0) @ v / np.linalg.norm(directions, axis=1)))
    search = module.BoxSearch(basis, v, attained, tolerance=0.1)
    bounds = [search.advance(seconds) for seconds in (0.0, 1e-9, 1e-3, 60.0, 60.0)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > 1.1 * attained >= bounds[-1] >= attained
    assert module.bound_by_boxes(basis, v, attained, tolerance=0.1, seconds=60.0) <= 1.1 * attained


@pytest.mark.parametrize("seed", range(30))
def test_boxes_close_in_on_the_exact_price(seed: int) -> None:
    basis, v = random_case(seed)
    exact = listed_price(basis, v)
    bound = max(module.bound_by_boxes(basis, side, exact.lower, tolerance=1e-3, seconds=60.0) for side in (v, -v))
    assert exact.lower <= bound <= exact.lower * (1.0 + 1e-3)


@pytest.mark.parametrize("seconds", [1e-9, 0.05])
def test_boxes_stopped_early_still_bound(seconds: float) -> None:
    basis, v = random_case(3)
    exact = listed_price(basis, v)
    found = max(module.bound_by_boxes(basis, side, exact.lower, tolerance=1e-9, seconds=seconds) for side in (v, -v))
    assert exact.lower <= found <= np.linalg.norm(v) * (1.0 + 1e-9)
