"""Pruning networks: the objective on the raw data, global optima that stay global, and networks that are refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from neurons import (
    random_basis,
    random_neurons,
    with_shares,
)
from problems import LOSSES, degenerate_data, random_problem, targets_for

from convexbn import (
    Evidence,
    InputError,
    Network,
    SlidingFrankWolfe,
    Squared,
    beta_max,
    certify,
    enumerate_arrangements,
    fit_convex_bn,
    recover,
    whiten,
)
from convexbn.pruning import prune, prune_network

CUBE = np.array(list(itertools.product([-1.0, 1.0], repeat=3)))
PARITY = CUBE.prod(axis=1)


def wide_optimum(strength: np.ndarray) -> Network:
    """An optimal network for the parity of the cube's corners: at each corner e one neuron that sees e alone, and one its neighbours.

    (x^T e - 1)_+ is 2 at e, (x^T e + 1)_+ is 4 at e and 2 at its three neighbours; parity prices all of them alike. With
    amplitudes c for the first and d (`strength`, at most 1/4) for the second, f = parity if 2 c = 1 + 4 d - 2 sum of d over neighbours.
    """
    near = (CUBE @ CUBE.T == 1.0).astype(float)
    c = (1.0 + 4.0 * strength - 2.0 * near @ strength) / 2.0
    assert np.all(c >= 0.0)
    outputs = np.concatenate([c * PARITY, -strength * PARITY])[:, None]
    return Network(np.vstack([CUBE, CUBE]), np.zeros(16), np.ones(16), np.full(16, 3**0.5), np.repeat([-1.0, 1.0], 8), outputs, 8).on(CUBE)


@pytest.mark.parametrize("seed", range(6))
def test_a_global_optimum_becomes_a_smaller_global_optimum(seed: int) -> None:
    network = wide_optimum(np.random.default_rng(seed).uniform(0.05, 0.2, 8))
    f = network.predict(CUBE)
    np.testing.assert_allclose(f / f[-1], PARITY, rtol=1e-14)
    pruned = prune_network(network, CUBE)
    assert network.neurons == 16
    assert 4 <= pruned.neurons <= 8
    np.testing.assert_allclose(pruned.predict(CUBE), f, rtol=1e-13)
    assert pruned.penalty() == pytest.approx(network.balanced().penalty(), rel=1e-13)
    certificate = certify(CUBE, 1.5 * f, pruned, beta=0.5 * f[-1] / 2**0.5 / 2.0, arrangements=enumerate_arrangements(whiten(CUBE).basis))
    assert certificate.evidence is Evidence.PROVED
    assert certificate.accepts(1e-6)


def test_the_weakest_neurons_go_first() -> None:
    antipodal = np.where(np.abs(CUBE @ CUBE[1]) == 3.0, 0.24, 0.02)
    assert prune_network(wide_optimum(antipodal), CUBE).neurons == 4


@pytest.mark.parametrize("name", sorted(degenerate_data().keys() - {"large mean"}))
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_the_objective_on_the_raw_data_stays(name, loss):
    X = degenerate_data()[name]
    generator, y = np.random.default_rng(3), targets_for(loss, len(X), 4)
    gain, shift, centre = generator.standard_normal((3, 40))
    network = Network(generator.standard_normal((40, X.shape[1])), centre, np.ones(40), gain, shift, generator.standard_normal((40, 1)), 5)
    pruned = prune_network(network, X)
    assert pruned.neurons <= len(X) < 40
    np.testing.assert_allclose(pruned.predict(X), network.on(X).predict(X), atol=1e-8)
    assert pruned.objective(X, y, loss, 0.3) <= network.on(X).balanced().objective(X, y, loss, 0.3) * (1.0 + 1e-8)


def test_a_network_that_reads_what_whitening_drops_keeps_its_neurons() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal(12)
    X = np.column_stack([x, x + 1e-12 * generator.standard_normal(12)])
    assert whiten(X).dropped == 1
    reader = np.array([[1.0, -1.0]] * 3)
    network = Network(reader, np.zeros(3), np.ones(3), np.ones(3), np.zeros(3), np.ones((3, 1)), 5)
    same = prune_network(network, X)
    assert same.neurons == 3
    np.testing.assert_allclose(same.predict(X), network.on(X).predict(X), rtol=1e-12)


def test_the_zero_network_stays_zero() -> None:
    X = np.random.default_rng(0).standard_normal((6, 2))
    zero = recover(whiten(X), np.zeros((0, 3)), np.zeros((0, 2)))
    pruned = prune_network(zero, X)
    assert pruned.neurons == 0
    np.testing.assert_array_equal(pruned.predict(X), np.zeros((6, 2)))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_a_rough_solution_of_a_solver_gets_smaller_and_no_worse(loss):
    problem = random_problem(loss, 8, 3, 5)
    beta = 0.02 * beta_max(problem.X, problem.y, loss=loss)
    fit = fit_convex_bn(problem.X, problem.y, beta=beta, loss=loss, solver=SlidingFrankWolfe(tolerance=1e-2, rounds=3))
    doubled = with_shares((fit.solution.directions, fit.solution.outputs.reshape(-1, 1)), 0)
    wide = recover(fit.whitening, *doubled)
    pruned = prune_network(wide, problem.X)
    objective = wide.objective(problem.X, problem.y, loss, beta)
    assert 0 < pruned.neurons <= min(8, len(fit.solution.outputs))
    assert pruned.objective(problem.X, problem.y, loss, beta) <= objective * (1.0 + 1e-8)
    again = certify(problem.X, problem.y, pruned, beta=beta, loss=loss, dual=fit.solution.dual)
    assert again.bound <= again.objective


def test_a_wide_network_with_three_outputs_and_the_squared_loss() -> None:
    X = np.random.default_rng(0).standard_normal((10, 3))
    whitening = whiten(X)
    wide = recover(whitening, *random_neurons(whitening.basis, 80, 3))
    pruned = prune_network(wide, X)
    assert pruned.neurons <= 30
    y = np.random.default_rng(1).standard_normal((10, 3))
    assert pruned.objective(X, y, Squared(), 0.0) == pytest.approx(wide.objective(X, y, Squared(), 0.0), rel=1e-9)
    assert pruned.penalty() < wide.penalty()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"directions": np.ones((2, 5))}, r"^directions have 5 entries, but the basis has 3"),
        ({"outputs": np.ones((3, 1))}, r"^outputs are those of 3 neurons"),
        ({"outputs": np.ones(2)}, r"^outputs has shape \(2,\)"),
        ({"basis": np.ones(3)}, r"^basis has shape \(3,\)"),
        ({"directions": np.full((2, 3), np.nan)}, r"^directions holds NaN"),
        ({"tolerance": 0.0}, r"^tolerance = 0.0"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"basis": random_basis(6, 2), "directions": np.eye(3)[:2], "outputs": np.ones((2, 1)), "tolerance": 1e-9}
    with pytest.raises(InputError, match=message):
        prune(**(arguments | change))


def test_a_network_of_other_data_is_refused() -> None:
    X = np.random.default_rng(0).standard_normal((6, 2))
    network = recover(whiten(X), *random_neurons(whiten(X).basis, 2))
    with pytest.raises(InputError, match=r"^X has 1 features, but this network is expecting 2"):
        prune_network(network, X[:, :1])
