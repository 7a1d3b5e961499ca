"""Doubly nonnegative relaxation: a bound for any multipliers, tight where it should be, from a method that keeps its identities."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import degenerate_data, lattices, listed_price, random_network, several_targets, targets_for

from convexbn import Fit, beta_max, certify, fit_convex_bn
from convexbn.losses import Hinge, Logistic, Loss, Softmax, Squared
from convexbn.pricing import bound_by_products, nonnegative, random_directions
from convexbn.pricing.nonnegative import RelaxedTraining, _gathered, _Multipliers
from convexbn.whitening import whiten

FOREVER = float("inf")


def random_case(seed: int, outputs: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A basis of up to 12 samples and 3 features, a dual point, and multipliers of any size and sign."""
    generator = np.random.default_rng(seed)
    n, d = int(generator.integers(4, 13)), int(generator.integers(1, 4))
    multipliers = generator.standard_normal((3, n, n)) * 10.0 ** generator.integers(-3, 2)
    return whiten(generator.standard_normal((n, d))).basis, generator.standard_normal((n, outputs)), multipliers


def attained(basis: np.ndarray, v: np.ndarray, seed: int) -> float:
    """The largest ||V^T (U's)_+|| of many random neurons and of all rows of the basis."""
    directions = np.concatenate([random_directions(5000, basis.shape[1], (seed,)), basis, -basis])
    lengths = np.linalg.norm(directions, axis=1)
    return float(np.max(np.linalg.norm(np.maximum(directions @ basis.T, 0.0) @ v.reshape(len(v), -1), axis=1) / lengths))


def relaxed(X: np.ndarray, y: np.ndarray, loss: Loss, beta: float, looks: int, fit: Fit | None = None) -> tuple[float, float]:
    """The best dual value of a few looks, from the neurons of a fit or from none, and the price of its dual point over beta."""
    basis = whiten(X).basis
    none = np.zeros((0, basis.shape[1])), np.zeros((0, y.size // len(y)))
    neurons = none if fit is None else (fit.solution.directions, fit.solution.outputs)
    training = RelaxedTraining(basis, y, loss, beta, *neurons)
    best = (-np.inf, np.inf)
    for _ in range(looks):
        training.advance(FOREVER)
        v = -loss.project(-training.dual, y)
        price = bound_by_products(basis, v, training.multipliers)
        value = -loss.conjugate(-min(1.0, beta / price) * v, y) if price > 0 else -loss.conjugate(-v, y)
        best = max(best, (value, price / beta))
    return best


@pytest.mark.parametrize("seed", range(40))
def test_any_multipliers_give_a_bound(seed: int) -> None:
    basis, v, multipliers = random_case(seed)
    trivial = float(np.linalg.norm(v, 2))
    assert bound_by_products(basis, v, multipliers) >= attained(basis, v, seed)
    assert bound_by_products(basis, v, np.zeros_like(multipliers)) <= trivial * (1.0 + 1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_one_output_against_exact_enumeration(seed: int) -> None:
    """Also with multipliers that the method itself found, for another V and for this one."""
    basis, v, multipliers = random_case(seed, outputs=1)
    exact = listed_price(basis, v[:, 0]).lower
    training = RelaxedTraining(basis, 2.0 * v, Squared(), 0.7 * exact, np.zeros((0, basis.shape[1])), np.zeros((0, 1)))
    training.advance(FOREVER)
    for found in (multipliers, training.multipliers, 0.25 * training.multipliers):
        assert bound_by_products(basis, v, found) >= exact
        assert bound_by_products(basis, v[:, 0], found) == bound_by_products(basis, v, found)


@pytest.mark.parametrize("name", degenerate_data())
@settings(max_examples=5)
@given(st.integers(0, 10**6))
def test_degenerate_data(name: str, seed: int) -> None:
    basis = whiten(degenerate_data()[name]).basis
    generator = np.random.default_rng(seed)
    v = np.round(generator.standard_normal(len(basis)), 1)
    multipliers = np.round(generator.standard_normal((3, len(basis), len(basis))))
    assert bound_by_products(basis, v, multipliers) >= listed_price(basis, v).lower


@settings(max_examples=20)
@given(lattices(7, 2), st.integers(0, 10**6))
def test_lattices(X: np.ndarray, seed: int) -> None:
    basis = whiten(X).basis
    generator = np.random.default_rng(seed)
    v = generator.integers(-2, 3, len(X)).astype(float)
    multipliers = generator.integers(-2, 3, (3, len(X), len(X))).astype(float)
    assert bound_by_products(basis, v, multipliers) >= listed_price(basis, v).lower


def test_the_bound_holds_for_each_neuron_in_more_than_double_precision() -> None:
    """Where multipliers make it tight: z^T G z <= max G_kk and the eigenvalue are compared in longdouble, neuron by neuron."""
    X = np.random.default_rng(3).standard_normal((9, 2))
    y = several_targets(Squared(), 9, 3, 4)
    basis, beta = whiten(X).basis, 0.4 * beta_max(X, y)
    neurons = fit_convex_bn(X, y, beta=beta, solver="sliding", proof_seconds=0.0).solution
    training = RelaxedTraining(basis, y, Squared(), beta, neurons.directions, neurons.outputs)
    for _ in range(10):
        training.advance(FOREVER)
    v = training.dual
    bound = np.longdouble(bound_by_products(basis, v, training.multipliers))
    directions = random_directions(200_000, 3, (1,)).astype(np.longdouble)
    directions /= np.sqrt(np.sum(directions**2, axis=1, keepdims=True))
    values = np.maximum(directions @ basis.T.astype(np.longdouble), 0) @ v.astype(np.longdouble)
    top = np.max(np.sqrt(np.sum(values**2, axis=1)))
    assert top <= bound <= top * (1.0 + 2e-2)


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e9])
def test_the_bound_is_homogeneous(factor: float) -> None:
    basis, v, multipliers = random_case(5)
    bound = bound_by_products(basis, v, multipliers)
    assert bound_by_products(basis, factor * v, factor**2 * multipliers) == pytest.approx(factor * bound, rel=1e-12)


def test_gathering_is_the_product_with_orthonormal_columns() -> None:
    basis = random_case(2)[0]
    n, width = basis.shape
    generator = np.random.default_rng(0)
    whole = generator.standard_normal((2 * n + 3, 2 * n + 3))
    whole += whole.T
    to_signs = np.block([[np.eye(n), basis], [np.eye(n), -basis]]) / np.sqrt(2.0)
    columns = np.block([[to_signs, np.zeros((2 * n, 3))], [np.zeros((3, n + width)), np.eye(3)]])
    assert np.allclose(columns.T @ columns, np.eye(n + width + 3), atol=1e-12)
    blocks = np.stack([whole[:n, :n], whole[:n, n : 2 * n], whole[n : 2 * n, n : 2 * n]])
    gathered = _gathered(basis, blocks, whole[:n, 2 * n :], whole[n : 2 * n, 2 * n :], whole[2 * n :, 2 * n :])
    assert np.allclose(gathered, columns.T @ whole @ columns, atol=1e-12)
    assert np.allclose(_gathered(basis, blocks), (columns.T @ whole @ columns)[: n + width, : n + width], atol=1e-12)


def test_the_positive_part_is_the_projection_on_the_cone() -> None:
    matrix = np.random.default_rng(1).standard_normal((12, 12))
    matrix += matrix.T
    method = _Multipliers(whiten(np.arange(4.0)[:, None]).basis, np.ones((4, 1)), Squared(), 1.0, np.zeros((0, 2)), np.zeros((0, 1)))
    factor = method._positive_part(matrix.copy())
    rest = factor @ factor.T - matrix
    assert np.min(np.linalg.eigvalsh(rest)) >= -1e-12
    assert np.sum(rest * (factor @ factor.T)) == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("loss", [Squared(), Softmax()], ids=lambda loss: loss.name)
@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
def test_the_relaxation_is_below_the_optimum_and_near_it(loss: Loss, single: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonnegative, "SINGLE", 1 if single else 600)
    X, y = np.random.default_rng(0).standard_normal((12, 2)), several_targets(loss, 12, 3, 1)
    beta = 0.4 * beta_max(X, y, loss=loss)
    fit = fit_convex_bn(X, y, loss=loss, beta=beta, solver="sliding", proof_seconds=0.0)
    value, price = relaxed(X, y, loss, beta, 10, fit)
    assert fit.certificate.objective * 0.97 <= value <= fit.certificate.objective * (1.0 + 1e-9)
    assert price <= 1.05


@pytest.mark.parametrize("loss", [Squared(), Logistic(), Hinge()], ids=lambda loss: loss.name)
def test_one_output(loss: Loss) -> None:
    X, y = np.random.default_rng(2).standard_normal((12, 2)), targets_for(loss, 12, 3)
    beta = 0.3 * beta_max(X, y, loss=loss)
    fit = fit_convex_bn(X, y, loss=loss, beta=beta, arrangements="all", solver="CLARABEL")
    best = fit.certificate.objective
    assert 0.7 * best <= relaxed(X, y, loss, beta, 15, fit)[0] <= best * (1.0 + 1e-9)
    assert relaxed(X, y, loss, beta, 2)[0] <= relaxed(X, y, loss, beta, 20)[0] <= best * (1.0 + 1e-9)


@pytest.mark.parametrize("unit", [2.0**-30, 2.0**40])
def test_units_of_the_targets_change_nothing(unit: float) -> None:
    X, y = np.random.default_rng(0).standard_normal((9, 2)), several_targets(Squared(), 9, 2, 1)
    plain, scaled = relaxed(X, y, Squared(), 0.5, 4), relaxed(X, unit * y, Squared(), 0.5 * unit, 4)
    assert scaled[0] == pytest.approx(unit**2 * plain[0], rel=1e-6)


def test_a_deadline_ends_it_after_one_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    basis, v, _ = random_case(1)
    training = RelaxedTraining(basis, v, Squared(), 0.5, np.zeros((0, basis.shape[1])), np.zeros((0, 3)))
    count = []
    monkeypatch.setattr(training.method, "iterate", lambda balance: count.append(balance))
    training.advance(time.perf_counter())
    assert len(count) == 1
    training.advance(FOREVER)
    assert count[1:] == [False] * (nonnegative.LOOK - 1) + [True]


def test_ten_outputs_are_proved_through_it() -> None:
    """Where the search over output directions gives up."""
    generator = np.random.default_rng(0)
    kind = generator.integers(10, size=60)
    X = generator.standard_normal((10, 4))[kind] + 0.3 * generator.standard_normal((60, 4))
    y = np.eye(10)[kind]
    beta = 0.3 * beta_max(X, y)
    fit = fit_convex_bn(X, y, beta=beta, solver="sliding", proof_seconds=60.0)
    assert fit.certificate.relative_gap < 0.03
    stuck = certify(X, y, random_network(X, 0, outputs=10), beta=beta, seconds=1.0)
    assert stuck.bound <= fit.certificate.objective
