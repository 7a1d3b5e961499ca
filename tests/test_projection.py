"""Projections on the cones of listed arrangements, held against the conditions that characterise them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import degenerate_data, lattices
from scipy.optimize import nnls

from convexbn.arrangements import enumerate_arrangements, sample_arrangements
from convexbn.solvers.active_set.projection import cones_of
from convexbn.whitening import whiten


def signed_rows(basis: np.ndarray, active: np.ndarray) -> np.ndarray:
    return (2.0 * active - 1.0)[:, None] * basis


def assert_projection(basis: np.ndarray, active: np.ndarray, point: np.ndarray, projection: np.ndarray) -> None:
    """u is in the cone, and u - w is a non-negative combination of its rows that is orthogonal to u."""
    rows, size = signed_rows(basis, active), float(np.linalg.norm(point))
    assert np.min(rows @ projection, initial=0.0) >= -1e-9 * size
    assert nnls(rows.T, projection - point, maxiter=10_000)[1] <= 1e-7 * size
    assert abs((projection - point) @ projection) <= 1e-9 * size**2


def project_cold(
    basis: np.ndarray, active: np.ndarray, points: np.ndarray, floor: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cones = cones_of(basis, active)
    return cones.project(np.arange(len(active)), points, cones.no_faces(len(active)), floor)


@pytest.mark.parametrize("name", sorted(degenerate_data()))
def test_projections_on_all_cones_of_degenerate_data(name: str):
    basis = whiten(degenerate_data()[name]).basis
    active = enumerate_arrangements(basis).active
    points = np.random.default_rng(0).standard_normal((len(active), basis.shape[1]))
    projections, lengths, _ = project_cold(basis, active, points)
    for k in range(len(active)):
        assert_projection(basis, active[k], points[k], projections[k])
    assert lengths == pytest.approx(np.linalg.norm(projections, axis=1), abs=1e-12)


@settings(max_examples=30)
@given(X=lattices(6, 2), seed=st.integers(0, 99))
def test_projections_on_cones_of_lattices(X: np.ndarray, seed: int):
    basis = whiten(X).basis
    active = enumerate_arrangements(basis).active
    points = np.random.default_rng(seed).standard_normal((len(active), basis.shape[1]))
    projections = project_cold(basis, active, points)[0]
    for k in range(len(active)):
        assert_projection(basis, active[k], points[k], projections[k])


def test_a_face_that_is_nearly_right_changes_nothing():
    basis = whiten(np.random.default_rng(1).standard_normal((200, 8))).basis
    active = sample_arrangements(basis, 40).active
    generator = np.random.default_rng(2)
    points = generator.standard_normal((40, 9))
    cones, index = cones_of(basis, active), np.arange(40)
    faces = cones.project(index, points, cones.no_faces(40))[2]
    for distance in (0.0, 1e-3, 0.3, 10.0):
        moved = points + distance * generator.standard_normal(points.shape)
        warm, cold = (cones.project(index, moved, start)[0] for start in (faces, cones.no_faces(40)))
        assert warm == pytest.approx(cold, abs=1e-9)
        for k in range(40):
            assert_projection(basis, active[k], moved[k], warm[k])


def test_projections_that_are_known_to_be_short_are_left_with_an_upper_bound():
    basis = whiten(np.random.default_rng(1).standard_normal((150, 6))).basis
    active = sample_arrangements(basis, 60).active
    points = np.random.default_rng(3).standard_normal((60, 7))
    exact = project_cold(basis, active, points)[1]
    floor = float(np.median(exact))
    early = project_cold(basis, active, points, floor)[1]
    assert (early >= exact * (1.0 - 1e-12)).all()
    assert early[exact > floor] == pytest.approx(exact[exact > floor], rel=1e-9)
    assert (early[exact <= floor] <= floor).all()


def test_the_hull_of_a_face_holds_its_projection():
    basis = whiten(np.random.default_rng(1).standard_normal((100, 5))).basis
    active = sample_arrangements(basis, 20).active
    projections, _, faces = project_cold(basis, active, np.random.default_rng(3).standard_normal((20, 6)))
    cones = cones_of(basis, active)
    for k, hull in enumerate(cones.hulls(faces)):
        assert hull.T @ hull == pytest.approx(np.eye(hull.shape[1]), abs=1e-12)
        assert hull @ (hull.T @ projections[k]) == pytest.approx(projections[k], abs=1e-10)


def test_rows_of_zeros_and_cones_that_are_empty_inside():
    """A pattern that no direction has leaves a cone without interior, here the origin alone; a row of zeros bounds nothing."""
    basis = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    active = np.array([[True, True, False, True], [True, True, True, False]])
    points = np.array([[1.0, 2.0], [1.0, -2.0]])
    projections, lengths, _ = project_cold(basis, active, points)
    assert projections == pytest.approx(np.array([[0.0, 0.0], [1.0, 0.0]]), abs=1e-12)
    assert lengths == pytest.approx([0.0, 1.0], abs=1e-12)
