"""GDNP unit by unit: gradients of a network with one hidden layer, and the rate of each of its units."""

from __future__ import annotations

import numpy as np
import pytest
from gdnp_problems import derivative, moments

from convexbn import InputError
from convexbn.training.gdnp import LengthStatus
from convexbn.training.units import gaussian_network, train_units


def test_gradients_of_a_network_are_those_of_its_value():
    network = gaussian_network(*moments(18, 2, 5.0), theta=[1.5, -1.0, 2.0])
    W = np.random.default_rng(19).standard_normal((3, 2))
    numeric = [[derivative(lambda h, i=i, j=j: network.value(W + h * _unit(i, j)), 0.0) for j in range(2)] for i in range(3)]
    np.testing.assert_allclose(network.gradients(W), numeric, atol=1e-8)


def _unit(i: int, j: int) -> np.ndarray:
    entry = np.zeros((3, 2))
    entry[i, j] = 1.0
    return entry


def test_a_network_of_one_unit_agrees_with_a_large_sample():
    S, u = moments(20, 2, 3.0)
    network, w = gaussian_network(S, u, theta=[2.0]), np.array([[0.7, -0.4]])
    z = np.random.default_rng(21).multivariate_normal(u, S - np.outer(u, u), 200_000)
    draws = np.logaddexp(0.0, 2.0 * np.tanh(z @ w[0]))
    assert abs(network.value(w) - draws.mean()) < 4.0 * draws.std() / np.sqrt(len(draws))


def test_the_risk_of_one_unit_is_the_network_with_the_others_on_the_line():
    network = gaussian_network(*moments(22, 4, 6.0, strength=0.3), theta=[1.5, -2.0, 1.0], loss="squared sigmoid")
    positions = np.array([0.7, -0.4, np.nan])
    w = np.array([0.5, 1.0, -0.3, 0.8])
    W = np.outer(np.nan_to_num(positions), network.quotient.minimiser)
    W[2] = w
    unit, length = network.unit(2, positions), network.quotient.norm(w)
    line = unit.line(network.quotient.normalised(w))
    np.testing.assert_allclose(unit.gradient(w), network.gradients(W)[2], atol=1e-10)
    assert line.value(length) == pytest.approx(network.value(W), rel=1e-11)
    assert line.slope(length) == pytest.approx(derivative(line.value, length), abs=1e-9)


def test_each_unit_keeps_the_rate_and_the_identity():
    network = gaussian_network(*moments(23, 6, 8.0), theta=[4.0, -3.0])
    run = train_units(network, steps=30)
    for unit in run.runs[0]:
        assert unit.status is LengthStatus.BOUNDED
        assert np.all(unit.gaps <= unit.bounds * (1.0 + 1e-9))
        assert unit.gaps[-1] < 1e-4 * unit.gaps[0]
        np.testing.assert_allclose(unit.gradients, unit.factors**2 * unit.gaps, rtol=1e-8, atol=1e-20)
    assert np.all(np.diff(run.values) < 1e-12)
    np.testing.assert_allclose(run.weights, np.outer(run.positions, network.quotient.minimiser), rtol=1e-12)


def test_further_sweeps_lead_to_a_joint_critical_point():
    network = gaussian_network(*moments(24, 5, 5.0), theta=[2.0, 1.5])
    once, often = train_units(network, steps=15), train_units(network, steps=15, sweeps=20)
    assert often.values[-1] < once.values[-1]
    assert once.gradients.max() > 1e-8
    assert often.gradients.max() < 1e-10
    np.testing.assert_allclose([network.quotient.dual_square(v) for v in network.gradients(often.weights)], often.gradients)


def test_the_best_length_grows_as_the_output_shrinks_and_the_run_says_where_it_ends():
    S, u = moments(25, 4, 4.0)
    large, small, tiny = (train_units(gaussian_network(S, u, [theta]), steps=2).runs[0][0] for theta in (3.0, 1.0, 0.1))
    assert abs(large.length) < abs(small.length) < 16.0 == abs(tiny.length)
    assert (small.status, tiny.status) == (LengthStatus.BOUNDED, LengthStatus.UNBOUNDED)


def test_bad_input_names_the_argument():
    S, u = moments(26, 3, 4.0)
    for call, message in [
        (lambda: gaussian_network(S, 0.0 * u, [1.0]), "mean is 0"),
        (lambda: gaussian_network(S, u, [[1.0]]), "theta has shape"),
        (lambda: gaussian_network(S, u, [1.0, 1.0, 1.0]).gradients(np.eye(3)), "weights span more"),
        (lambda: train_units(gaussian_network(S, u, [1.0]), sweeps=0), "sweeps = 0"),
    ]:
        with pytest.raises(InputError, match=f"^{message}"):
            call()
