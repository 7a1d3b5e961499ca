"""Pruning neurons: networks blown up from small ones, linear programs as a reference, degenerate data, and judges that can refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neurons import (
    Neurons,
    assert_as_good,
    atoms,
    penalty,
    random_basis,
    random_neurons,
    sorted_neurons,
    unit,
    values,
    with_shares,
    with_splits,
)
from problems import lattices
from scipy.optimize import brentq, linprog

from convexbn import pruning as module
from convexbn import (
    whiten,
)
from convexbn.patches import NO_POOLING
from convexbn.pruning import prune


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_a_network_blown_up_in_its_cells_comes_back(outputs: int, seed: int) -> None:
    basis = random_basis(40, 4, seed)
    small = random_neurons(basis, 6, outputs, seed)
    large = with_splits(basis, with_shares(with_splits(basis, small, seed), seed), seed + 1)
    shuffled = np.random.default_rng(seed).permutation(len(large[0]))
    pruned = prune(basis, large[0][shuffled], large[1][shuffled])
    assert len(large[0]) == 72
    assert len(pruned[0]) == 6
    for found, known in zip(sorted_neurons(*pruned), sorted_neurons(*small), strict=True):
        np.testing.assert_allclose(found, known, atol=1e-12)


def test_neurons_of_neighbouring_cells_and_of_other_outputs_stay() -> None:
    basis = random_basis(30, 3)
    s = np.array([0.5, -0.5, 0.1, 0.7])
    nearest = basis[np.argmin(np.abs(basis @ s))]
    across = s - 1.001 * (nearest @ s) / (nearest @ nearest) * nearest
    assert np.sum((basis @ s > 0) != (basis @ across > 0)) == 1
    assert len(prune(basis, np.array([s, across]), np.ones((2, 1)))[0]) == 2
    cell = with_splits(basis, (s[None], np.ones((1, 2))), 0)[0]
    assert len(prune(basis, cell, np.array([[1.0], [-1.0]]))[0]) == 2
    assert len(prune(basis, cell, np.array([[1.0, 0.0], [0.0, 1.0]]))[0]) == 2
    assert len(prune(basis, cell, np.array([[1.0, 0.5], [2.0, 1.0]]))[0]) == 1


def test_a_sample_on_the_kink_lies_on_both_sides() -> None:
    X = np.array([[-1.0], [-1.0], [0.0], [1.0], [1.0]])
    basis = whiten(X).basis
    kinked = np.array([[1.0, 0.0], [1.0, 0.3], [1.0, -0.3]])
    images = basis @ kinked.T
    assert images[2] == pytest.approx([0.0, 0.3 / 5**0.5, -0.3 / 5**0.5], abs=1e-15)
    assert len(prune(basis, kinked[[0, 1]], np.ones((2, 1)))[0]) == 1
    assert len(prune(basis, kinked[[0, 2]], np.ones((2, 1)))[0]) == 1
    assert len(prune(basis, kinked[[1, 2]], np.ones((2, 1)))[0]) == 2
    assert len(prune(basis, kinked, np.ones((3, 1)))[0]) == 2


@pytest.mark.parametrize(("samples", "width", "outputs"), [(6, 20, 1), (8, 8, 1), (9, 60, 1), (4, 30, 3), (3, 40, 5), (30, 20, 2)])
def test_what_is_left_is_independent(samples: int, width: int, outputs: int) -> None:
    basis = random_basis(samples, 2)
    neurons = random_neurons(basis, width, outputs)
    pruned = prune(basis, *neurons)
    assert_as_good(basis, neurons, pruned, 1e-12)
    phi = atoms(basis, *pruned)
    assert len(pruned[0]) == np.linalg.matrix_rank(phi, tol=1e-10) <= samples * outputs
    np.testing.assert_allclose(np.linalg.norm(pruned[0], axis=1), 1.0, rtol=1e-14)


def test_outputs_of_one_direction_add_up() -> None:
    basis = random_basis(30, 3)
    directions = unit(np.array([[0.5, -0.5, 0.1, 0.7]] * 2))
    joined = prune(basis, directions, np.array([[1.0, 0.5], [-0.5, 1.0]]))
    np.testing.assert_allclose(joined[0], directions[:1], rtol=1e-14)
    np.testing.assert_allclose(joined[1], [[0.5, 1.5]], rtol=1e-14)


def test_a_group_that_would_change_the_outputs_stays_and_the_others_are_joined() -> None:
    basis = random_basis(30, 3)
    directions, outputs = random_neurons(basis, 2)
    wrong, right = random_neurons(basis, 2, seed=7)[0], with_splits(basis, (directions[:1], outputs[:1]), 0)
    neurons = np.vstack([wrong, right[0]]), np.vstack([np.ones((2, 1)), right[1]])
    together = np.kron(np.eye(2), np.ones((2, 2))).astype(bool)
    joined = module._join(module._Basis(basis, NO_POOLING), neurons, together, 1e-9)
    assert len(joined[0]) == 3
    np.testing.assert_allclose(joined[0][:2], wrong, rtol=1e-14)
    np.testing.assert_allclose(values(basis, *joined), values(basis, *neurons), atol=1e-13)


def tight_neurons(basis: np.ndarray, width: int, seed: int) -> np.ndarray:
    """Directions with V^T (U's)_+ = 1 for one V: whatever sum of theirs makes f, its penalty is V^T f."""
    generator = np.random.default_rng(seed)
    v = 3.0 * generator.standard_normal(len(basis))

    def worth(s: np.ndarray) -> float:
        return float(v @ np.maximum(basis @ s, 0.0) / np.linalg.norm(s)) - 1.0

    found: list[np.ndarray] = []
    while len(found) < width:
        low, high = unit(generator.standard_normal((2, basis.shape[1])))
        if worth(low) < 0 < worth(high):
            part = brentq(lambda t, a=low, b=high: worth(a + t * (b - a)), 0.0, 1.0, xtol=1e-15)
            found.append(low + part * (high - low))
    return unit(np.array(found))


@pytest.mark.parametrize("seed", range(8))
def test_of_many_optimal_networks_one_with_as_many_neurons_as_the_linear_program_gives_is_left(seed: int) -> None:
    basis = random_basis(9, 3, seed)
    neurons = tight_neurons(basis, 30, seed), np.random.default_rng(seed).random((30, 1))
    optimum = linprog(np.ones(30), A_eq=atoms(basis, *neurons), b_eq=values(basis, *neurons)[:, 0], method="highs-ds")
    assert optimum.fun == pytest.approx(penalty(*neurons), rel=1e-8)
    pruned = module._independent(module._Basis(basis, NO_POOLING), neurons, 1e-9, 1e-9)
    assert len(pruned[0]) <= np.sum(optimum.x > 1e-9) <= 9
    assert_as_good(basis, neurons, pruned, 1e-12)
    assert penalty(*pruned) == pytest.approx(penalty(*neurons), rel=1e-11)
    assert len(prune(basis, *neurons)[0]) <= 9


@pytest.mark.parametrize("seed", range(5))
def test_a_network_that_is_not_optimal_ends_between_the_linear_program_and_itself(seed: int) -> None:
    basis = random_basis(7, 2, seed)
    neurons = random_neurons(basis, 25, 2, seed)
    best = linprog(np.ones(25), A_eq=atoms(basis, *neurons), b_eq=values(basis, *neurons).ravel(), method="highs-ds").fun
    pruned = module._independent(module._Basis(basis, NO_POOLING), neurons, 1e-9, 1e-9)
    assert best * (1.0 - 1e-7) <= penalty(*pruned) < penalty(*neurons)
    assert len(pruned[0]) <= 14
    again = linprog(np.ones(len(pruned[0])), A_eq=atoms(basis, *pruned), b_eq=values(basis, *neurons).ravel(), method="highs-ds")
    np.testing.assert_allclose(again.x, np.linalg.norm(pruned[1], axis=1), atol=1e-7)


@settings(max_examples=120)
@given(lattices(7, 3), st.integers(1, 3), st.integers(0, 10**6))
def test_degenerate_data(X: np.ndarray, outputs: int, seed: int) -> None:
    whitening = whiten(X)
    generator = np.random.default_rng(seed)
    directions = np.column_stack(
        [whitening.whitened_weights(generator.integers(-1, 2, (20, X.shape[1])).astype(float)), generator.integers(-2, 3, 20)]
    )
    neurons = directions, generator.integers(-2, 3, (20, outputs)).astype(float)
    pruned = prune(whitening.basis, *neurons)
    assert_as_good(whitening.basis, neurons, pruned)
    if len(pruned[0]):
        assert len(pruned[0]) == np.linalg.matrix_rank(atoms(whitening.basis, *pruned), tol=1e-9)
        assert len(prune(whitening.basis, *pruned)[0]) == len(pruned[0])


@pytest.mark.parametrize("seed", [4, 6, 8, 15])
def test_a_neuron_that_is_alive_by_rounding_alone_does_not_hide_the_cost_of_the_others(seed: int) -> None:
    generator = np.random.default_rng(seed)
    columns = unit(generator.standard_normal((14, 6))).T
    start, cost = generator.random(14) + 0.1, 1.0 / (generator.random(14) + 1e-3)
    start[0], cost[0] = 1e-17, 1e17
    amplitudes = module._vertex(columns, start, cost, 1e-9, 1e-9)
    assert np.sum(amplitudes > 0) <= 6
    np.testing.assert_allclose(columns @ amplitudes, columns @ start, atol=1e-12)
    assert cost @ amplitudes <= cost @ start * (1.0 + 1e-13)


def test_null_vectors_run_out_even_where_none_changes_anything() -> None:
    assert module._flatter(np.zeros((3, 3)), np.eye(3)[:, :2]).shape == (3, 1)


@pytest.mark.parametrize("outputs", [1, 2])
def test_pruning_twice_is_pruning_once(outputs: int) -> None:
    basis = random_basis(8, 3)
    once = prune(basis, *random_neurons(basis, 40, outputs))
    for first, second in zip(once, prune(basis, *once), strict=True):
        np.testing.assert_allclose(second, first, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("scale", [1e-120, 1.0, 1e120])
def test_the_unit_of_the_outputs_does_not_matter(scale: float) -> None:
    basis = random_basis(8, 2)
    directions, outputs = random_neurons(basis, 30)
    expected = prune(basis, directions, outputs)
    found = prune(basis, directions, scale * outputs)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-12)
    np.testing.assert_allclose(found[1] / scale, expected[1], rtol=1e-9)


def test_nothing_one_neuron_and_neurons_that_do_nothing() -> None:
    basis = random_basis(6, 2)
    empty = prune(basis, np.zeros((0, 3)), np.zeros((0, 2)))
    assert empty[0].shape == (0, 3)
    assert empty[1].shape == (0, 2)
    directions, outputs = random_neurons(basis, 3, 2)
    one = prune(basis, 4.0 * directions[:1], outputs[:1])
    np.testing.assert_allclose(one[0], directions[:1], rtol=1e-14)
    np.testing.assert_allclose(one[1], 4.0 * outputs[:1], rtol=1e-14)
    dead = np.array([[0.0, 0.0, -1.0]])
    assert len(prune(basis, dead, outputs[:1])[0]) == 0
    assert len(prune(basis, np.vstack([dead, directions]), np.vstack([outputs[:1], outputs]))[0]) == 3
    assert len(prune(basis, np.vstack([directions, directions[:1]]), np.vstack([outputs, np.zeros((1, 2))]))[0]) == 3


@pytest.mark.parametrize("outputs", [1, 2])
def test_neurons_that_cancel_leave_none(outputs: int) -> None:
    basis = random_basis(6, 2)
    directions, w = random_neurons(basis, 4, outputs)
    shares = np.array([0.1, 0.2, -0.3])
    cancelling = np.repeat(directions, 3, axis=0), (w[:, None, :] * shares[:, None]).reshape(-1, outputs)
    assert len(prune(basis, *cancelling)[0]) == 0


def test_a_small_difference_of_large_neurons_is_not_lost() -> None:
    basis = random_basis(20, 3)
    s = random_neurons(basis, 1)[0][0]
    e = 1e-10 * np.eye(4)[0]
    neurons = np.array([s + e, s]), np.array([[1.0], [-1.0]])
    f = values(basis, *neurons)
    assert 0.0 < np.linalg.norm(f) < 1e-9
    assert np.linalg.norm(values(basis, *prune(basis, *neurons)) - f) <= 1e-3 * np.linalg.norm(f)


def test_null_vectors_that_change_the_outputs_are_left_out_and_the_others_used() -> None:
    generator = np.random.default_rng(0)
    left = np.linalg.qr(generator.standard_normal((12, 6)))[0]
    columns = left @ np.diag([1.0, 1.0, 1.0, 1e-4, 0.0, 0.0]) @ np.linalg.qr(generator.standard_normal((6, 6)))[0]
    start, cost = np.ones(6), np.ones(6)
    strict = module._vertex(columns, start, cost, 1e-3, 1e-9)
    loose = module._vertex(columns, start, cost, 1e-3, 1e-2)
    assert np.sum(strict > 0) == 4
    assert np.linalg.norm(columns @ (strict - start)) <= 1e-9
    assert np.sum(loose > 0) == 3
    assert 1e-9 < np.linalg.norm(columns @ (loose - start)) <= 1e-2


def test_tolerance_decides_what_lies_on_a_kink() -> None:
    X = np.array([[-1.0], [-1.0], [0.0], [1.0], [1.0]])
    basis = whiten(X).basis
    near = np.array([[1.0, 1e-6], [1.0, -1e-6]])
    assert len(prune(basis, near, np.array([[1.0], [2.0]]))[0]) == 2
    for tolerance in (1e-5, 1e-3):
        pruned = prune(basis, near, np.array([[1.0], [2.0]]), tolerance=tolerance)
        assert len(pruned[0]) == 1
        assert_as_good(basis, (near, np.array([[1.0], [2.0]])), pruned, tolerance)


@pytest.mark.parametrize("name", ["_join_directions", "_join_cells", "_independent", "_without_weak"])
@pytest.mark.parametrize("fault", ["outputs", "penalty"])
def test_a_step_that_breaks_the_promise_is_not_taken(name: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    basis = random_basis(20, 3)
    neurons = random_neurons(basis, 4)

    def broken(basis: np.ndarray, neurons: Neurons, tolerance: float, room: float) -> Neurons:
        if fault == "outputs":
            return neurons[0][1:], neurons[1][1:]
        return np.vstack([neurons[0], neurons[0][:1], neurons[0][:1]]), np.vstack([neurons[1], [[5.0]], [[-5.0]]])

    monkeypatch.setattr(module, name, broken)
    for found, known in zip(prune(basis, *neurons), neurons, strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-12)
