"""The network's forward pass, objective, balancing, merging and recovery, against loops written from the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import LOSSES, degenerate_data, targets_for

from convexbn import InputError, Loss, Network, Squared, recover, whiten
from convexbn.network import merge, merge_cells


def random_data(seed: int, samples: int = 9, features: int = 3) -> np.ndarray:
    """Gaussian data with a mean."""
    return np.random.default_rng(seed).standard_normal((samples, features)) + 0.7


def random_network(X: np.ndarray, seed: int, width: int = 4, outputs: int = 1) -> Network:
    """Random weights with the batch statistics of X."""
    generator = np.random.default_rng(seed)
    weights, values = generator.standard_normal((width, X.shape[1])), generator.standard_normal((width, outputs))
    gain, shift = generator.standard_normal((2, width))
    return Network(weights, np.zeros(width), np.ones(width), gain, shift, values, len(X)).on(X)


def random_neurons(rank: int, seed: int, width: int = 5, outputs: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions and outputs."""
    generator = np.random.default_rng(seed)
    directions = generator.standard_normal((width, rank + 1))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True), generator.standard_normal((width, outputs))


def naive_outputs(X: np.ndarray, network: Network) -> np.ndarray:
    """sum_j (g_j Pi X w_j / ||Pi X w_j|| + a_j / sqrt(n))_+ v_j^T, one neuron and one sample after the other."""
    n = len(X)
    total = np.zeros((n, network.outputs.shape[1]))
    for w, g, a, v in zip(network.weights, network.gain, network.shift, network.outputs, strict=True):
        z = [sum(float(x) * float(c) for x, c in zip(row, w, strict=True)) for row in X]
        mean = sum(z) / n
        length = sum((value - mean) ** 2 for value in z) ** 0.5
        for i in range(n):
            total[i] += max(0.0, g * (z[i] - mean) / length + a / n**0.5) * v
    return total


@pytest.mark.parametrize("outputs", [1, 3])
def test_predictions_equal_a_loop_over_neurons_and_samples(outputs: int) -> None:
    X = random_data(0)
    network = random_network(X, 1, outputs=outputs)
    np.testing.assert_allclose(network.predict(X).reshape(len(X), outputs), naive_outputs(X, network), atol=1e-13)


def test_on_takes_the_batch_statistics_of_the_new_data() -> None:
    network, other = random_network(random_data(0), 1), random_data(2, samples=6) * 3.0
    np.testing.assert_allclose(network.on(other).predict(other), naive_outputs(other, network)[:, 0], atol=1e-13)


def test_predictions_of_new_rows_do_not_depend_on_their_company() -> None:
    X, rows = random_data(0), random_data(3, samples=5)
    network = random_network(X, 1)
    one_by_one = [network.predict(row[None])[0] for row in rows]
    np.testing.assert_allclose(network.predict(rows), one_by_one, atol=1e-13)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_objective_is_the_loss_of_the_loop_plus_weight_decay(loss: Loss) -> None:
    X = random_data(0)
    network, y = random_network(X, 1), targets_for(loss, len(X), 2)
    f = naive_outputs(X, network)[:, 0]
    definitions = {
        "squared": 0.5 * (f - y) ** 2,
        "huber": np.where(abs(f - y) <= 0.7, 0.5 * (f - y) ** 2, 0.7 * abs(f - y) - 0.5 * 0.7**2),
        "logistic": np.log(1.0 + np.exp(-y * f)),
        "hinge": np.maximum(0.0, 1.0 - y * f),
    }
    decay = sum(float(np.sum(part**2)) for part in (network.gain, network.shift, network.outputs))
    expected = float(np.sum(definitions[loss.name])) + 0.5 * 0.3 * decay
    assert network.objective(X, y, loss, 0.3) == pytest.approx(expected, rel=1e-13)


def test_objective_does_not_trust_the_statistics_that_a_network_carries() -> None:
    X = random_data(0)
    network, y = random_network(X, 1), targets_for(LOSSES[0], len(X), 2)
    stale = network.on(random_data(3))
    assert np.max(np.abs(stale.predict(X) - network.predict(X))) > 0.1
    assert stale.objective(X, y, LOSSES[0], 0.3) == pytest.approx(network.objective(X, y, LOSSES[0], 0.3), rel=1e-14)


@pytest.mark.parametrize("name", list(degenerate_data()))
@pytest.mark.parametrize("outputs", [1, 3])
def test_recovered_network_equals_the_neurons_on_the_whitened_data(name: str, outputs: int) -> None:
    X = degenerate_data()[name]
    whitening = whiten(X)
    directions, values = random_neurons(whitening.rank, 4, outputs=outputs)
    expected = np.maximum(whitening.basis @ directions.T, 0.0) @ values
    network = recover(whitening, directions, values)
    np.testing.assert_allclose(network.predict(X).reshape(expected.shape), expected, atol=1e-10)
    tolerance = 1e-8 if name == "large mean" else 1e-10
    np.testing.assert_allclose(network.on(X).predict(X).reshape(expected.shape), expected, atol=tolerance)


def test_recovered_network_extends_to_new_rows_as_the_whitening_does() -> None:
    X, rows = random_data(0), random_data(5, samples=4)
    whitening = whiten(X)
    directions, values = random_neurons(whitening.rank, 6)
    expected = np.maximum(whitening.transform(rows) @ directions.T, 0.0) @ values
    np.testing.assert_allclose(recover(whitening, directions, values).predict(rows), expected[:, 0], atol=1e-12)


def test_penalty_of_a_recovered_network_is_the_sum_of_products_of_norms() -> None:
    whitening = whiten(random_data(0))
    directions, values = random_neurons(whitening.rank, 7, outputs=2)
    directions *= np.arange(1.0, 6.0)[:, None]
    expected = np.sum(np.linalg.norm(directions, axis=1) * np.linalg.norm(values, axis=1))
    assert recover(whitening, directions, values).penalty() == pytest.approx(expected, rel=1e-13)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e-6, 1.0, 1e6]), st.sampled_from([0.0, 1e-6, 1.0, 1e6]))
def test_balancing_keeps_the_outputs_and_never_raises_the_penalty(seed: int, inner: float, outer: float) -> None:
    X = random_data(0)
    network = random_network(X, seed)
    stretched = Network(
        network.weights,
        network.centre,
        network.norm,
        network.gain * np.array([inner, 1.0, 1.0, 1.0]),
        network.shift * np.array([inner, 1.0, 1.0, 1.0]),
        network.outputs * np.array([[1.0], [outer], [1.0], [1.0]]),
        network.samples,
    )
    balanced = stretched.balanced()
    np.testing.assert_allclose(balanced.predict(X), stretched.predict(X), rtol=1e-12, atol=1e-12 * max(1.0, inner, outer))
    assert balanced.penalty() <= stretched.penalty() * (1.0 + 1e-12)
    np.testing.assert_allclose(np.hypot(balanced.gain, balanced.shift), np.linalg.norm(balanced.outputs, axis=1), rtol=1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_zero_network_has_the_loss_of_zero_as_objective(loss: Loss) -> None:
    X, labels = random_data(0), np.where(np.arange(9) % 2, 1.0, -1.0)
    expected = 9 * {"squared": 0.5, "huber": 0.7 * (1.0 - 0.35), "logistic": np.log(2.0), "hinge": 1.0}[loss.name]
    whitening = whiten(X)
    network = recover(whitening, np.zeros((0, whitening.rank + 1)), np.zeros((0, 1)))
    assert network.neurons == 0
    assert network.objective(X, labels, loss, 0.5) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("outputs", "shape"), [(1, (6,)), (3, (6, 3))])
def test_shape_of_the_predictions(outputs: int, shape: tuple[int, ...]) -> None:
    network = random_network(random_data(0), 1, outputs=outputs)
    assert network.predict(random_data(2, samples=6)).shape == shape


def test_wrong_number_of_features_is_refused() -> None:
    network = random_network(random_data(0), 1)
    with pytest.raises(InputError, match=r"^X has 2 features, but this network is expecting 3"):
        network.predict(random_data(2, features=2))


def test_merging_adds_the_outputs_of_equal_directions() -> None:
    directions, values = random_neurons(3, 8)
    doubled = np.vstack([directions, directions[:2]]), np.vstack([values, 0.5 * values[:2]])
    merged_directions, merged_values = merge(*doubled, angle=1e-9, smallest=0.0)
    order = [int(np.argmax(directions @ direction)) for direction in merged_directions]
    np.testing.assert_allclose(merged_directions, directions[order], atol=1e-15)
    np.testing.assert_allclose(merged_values, (values * np.array([[1.5], [1.5], [1.0], [1.0], [1.0]]))[order], rtol=1e-14)


@settings(max_examples=80)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 3), min_size=1, max_size=9), st.sampled_from([0.0, 1e-3, 0.5]), st.integers(1, 2))
def test_merging_never_raises_the_penalty(seed: int, choice: list[int], angle: float, outputs: int) -> None:
    X = random_data(0)
    whitening = whiten(X)
    directions = random_neurons(whitening.rank, seed, width=4)[0][choice]
    values = np.random.default_rng(seed).integers(-2, 3, (len(choice), outputs)).astype(float)
    merged = merge(directions, values, angle=angle, smallest=0.0)
    assert np.sum(np.linalg.norm(merged[1], axis=1)) <= np.sum(np.linalg.norm(values, axis=1)) + 1e-12
    np.testing.assert_allclose(np.linalg.norm(merged[0], axis=1), 1.0, rtol=1e-14)
    if angle < 0.5:
        before, after = recover(whitening, directions, values), recover(whitening, *merged)
        np.testing.assert_allclose(after.predict(X), before.predict(X), atol=1e-12)


def test_neurons_of_one_cell_and_sign_merge_without_a_trace() -> None:
    """Outputs stay, the penalty falls, and no two that are left share a cell and a sign; one lies on a facet, of both its cells."""
    basis = whiten(random_data(2, samples=12, features=2)).basis
    directions, outputs = random_neurons(2, 5, width=40)
    edge = np.linalg.svd(basis[:1])[2][1]
    directions = np.concatenate([directions, edge[None]])
    outputs = np.concatenate([outputs, [[0.5]]])
    merged = merge_cells(basis, directions, outputs)
    before, after = (np.maximum(basis @ s.T, 0.0) @ w for s, w in ((directions, outputs), merged))
    assert after == pytest.approx(before, abs=1e-9)
    assert np.abs(merged[1]).sum() < np.abs(outputs).sum()
    assert np.linalg.norm(merged[0], axis=1) == pytest.approx(1.0)
    kinds = {(*(row > 0), bool(w > 0)) for row, w in zip(merged[0] @ basis.T, merged[1][:, 0], strict=True)}
    assert len(kinds) == len(merged[1]) < 41
    assert all(len(part) == 0 for part in merge_cells(basis, directions[:0], outputs[:0]))


def test_merging_drops_weak_neurons() -> None:
    directions, values = np.eye(3), np.array([[1.0], [-1e-5], [1e-3]])
    kept, outputs = merge(directions, values, angle=1e-3, smallest=1e-4)
    np.testing.assert_array_equal(kept, directions[[0, 2]])
    np.testing.assert_array_equal(outputs, values[[0, 2]])


def test_neurons_that_cancel_leave_none() -> None:
    directions = np.eye(3)[[0, 0]]
    kept, outputs = merge(directions, np.array([[1.0], [-1.0]]), angle=1e-3, smallest=0.0)
    assert len(kept) == len(outputs) == 0


def test_dead_neurons_are_not_counted_and_cost_nothing_after_balancing() -> None:
    X = random_data(0)
    network = random_network(X, 1)
    dead = Network(
        network.weights, network.centre, network.norm, network.gain, network.shift, network.outputs * [[1.0], [0.0], [1.0], [0.0]], 9
    )
    balanced = dead.balanced()
    assert dead.neurons == balanced.neurons == 2
    np.testing.assert_allclose(balanced.predict(X), dead.predict(X), atol=1e-13)
    alive = np.hypot(dead.gain, dead.shift)[[0, 2]] @ np.abs(dead.outputs[[0, 2], 0])
    assert balanced.penalty() == pytest.approx(alive, rel=1e-13)


@pytest.mark.parametrize("level", [0.0, 0.1, 1e8, -1e-30])
def test_constant_pre_activation_leaves_the_shift(level: float) -> None:
    X = random_data(0)
    X[:, 2] = level
    network = Network(np.array([[0.0, 0.0, 0.3]]), np.zeros(1), np.ones(1), np.array([2.0]), np.array([1.5]), np.array([[-1.0]]), 9).on(X)
    assert network.gain == 0.0
    np.testing.assert_allclose(network.predict(X), -1.5 / 3.0, rtol=1e-14)


def test_neuron_with_the_constant_direction_is_the_constant() -> None:
    X = random_data(0)
    whitening = whiten(X)
    network = recover(whitening, np.eye(whitening.rank + 1)[-1:], np.array([[6.0]]))
    assert network.gain == 0.0
    np.testing.assert_allclose(network.predict(X), 2.0, rtol=1e-14)
    np.testing.assert_allclose(network.on(X).predict(X), 2.0, rtol=1e-14)


def test_targets_of_another_shape_are_refused():
    X = np.random.default_rng(0).standard_normal((5, 2))
    network = recover(whiten(X), np.ones((1, 3)), np.ones((1, 1)))
    with pytest.raises(InputError, match="y has shape"):
        network.objective(X, np.ones((5, 1)), Squared(), 0.1)
