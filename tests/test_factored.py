"""The training problem relaxed to second moments: its optimum from both sides, its prices against enumeration, its gradients."""

from __future__ import annotations

import numpy as np
import pytest
from problems import degenerate_data, listed_price, random_network

from convexbn import Pooling, beta_max, certify, fit_convex_bn, judge
from convexbn.losses import Huber, Logistic, Loss, Squared
from convexbn.pricing import bound_by_relaxation, factored
from convexbn.pricing.factored import FactoredTraining
from convexbn.pricing.products import Products
from convexbn.whitening import whiten

BOTH = np.array([[1.0], [-1.0]])
LOSSES = [Squared(), Huber(), Logistic()]


def problem(loss: Loss, n: int = 30, d: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A basis and targets that the loss can use."""
    generator = np.random.default_rng(seed)
    y = generator.standard_normal(n)
    return whiten(generator.standard_normal((n, d))).basis, np.sign(y) if loss.name == "logistic" else y


def training(loss: Loss, basis: np.ndarray, y: np.ndarray, share: float = 0.3, **settings: object) -> FactoredTraining:
    """Begun at no network, at about that share of beta_max."""
    beta = share * listed_price(basis, -loss.gradient(np.zeros_like(y), y)).lower
    return FactoredTraining(basis, y, loss, beta, np.zeros((0, basis.shape[1])), np.zeros(0), **settings)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("patches", [1, 3])
def test_gradients(loss: Loss, patches: int) -> None:
    basis, y = problem(loss)
    y = y[: len(y) // patches]
    run = FactoredTraining(basis, y, loss, 0.1, np.zeros((0, 4)), np.zeros(0), pooling=Pooling(patches, 0.5))
    step = np.random.default_rng(1).standard_normal(run.factors.shape)
    for size in (0.1, 1.0, 10.0):
        point = size * run.factors
        change = run.objective(point + 1e-5 * step)[0] - run.objective(point - 1e-5 * step)[0]
        assert change / 2e-5 == pytest.approx(np.sum(run.objective(point)[1] * step), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_both_sides_meet(loss: Loss) -> None:
    """The relaxed objective, from above, and the dual value of the scaled V, from below, which no step of it has seen."""
    basis, y = problem(loss)
    run = training(loss, basis, y)
    for _ in factored.WIDTHS:
        run.advance(np.inf)
    v = -loss.project(-run.dual, y)
    beta = run.beta * run.unit
    scale = min(1.0, beta / run.price(v))
    value = run.unit**2 * run.objective(run.factors)[0]
    bound = -loss.conjugate(-scale * v, y)
    assert bound <= value * (1.0 + 1e-9)
    assert bound == pytest.approx(value, rel=5e-4)


@pytest.mark.parametrize("name", ["general", *degenerate_data()])
def test_prices_are_never_below_the_exact_ones(name: str) -> None:
    """At the dual point, at another, and at multipliers of every stage; large steps leave the factors where no descent would."""
    X = np.random.default_rng(3).standard_normal((12, 2)) if name == "general" else degenerate_data()[name]
    basis = whiten(X).basis
    generator = np.random.default_rng(4)
    y = generator.standard_normal(len(basis))
    run = training(Squared(), basis, y)
    for stage in range(3):
        for v in (run.dual, generator.standard_normal(len(basis))):
            exact = listed_price(basis, v).lower
            assert run.price(v) >= exact * (1.0 - 1e-12)
        run.advance(np.inf)
        run.factors = run.factors * generator.choice([0.0, 1e-8, 1.0, 1e8], run.factors.shape) if stage else run.factors


def test_prices_are_as_good_as_those_of_descent_on_multipliers() -> None:
    basis, y = problem(Squared(), 60, 4)
    run = FactoredTraining(basis, y, Squared(), 0.3, np.zeros((0, 5)), np.zeros(0))
    for _ in factored.WIDTHS:
        run.advance(np.inf)
    other = bound_by_relaxation(basis, run.dual, np.eye(2, 5), BOTH)
    assert run.price(run.dual) <= other


def test_it_begins_at_the_network() -> None:
    """Without rounding the relaxed objective of one neuron of each sign is the network's own."""
    basis, y = problem(Squared())
    directions, outputs = np.random.default_rng(2).standard_normal((2, 4)), np.array([0.7, -0.4])
    run = FactoredTraining(basis, y, Squared(), 0.1, directions, outputs)
    run.factors = np.stack([factored._factor(*unit, 4) for unit in _sides(directions, outputs / run.unit)])
    run.width = 1e-9 * run.width
    f = np.maximum(basis @ directions.T, 0.0) @ outputs
    expected = Squared().value(f, y) + 0.1 * np.linalg.norm(directions, axis=1) @ np.abs(outputs)
    assert run.unit**2 * run.objective(run.factors)[0] == pytest.approx(expected, rel=1e-6)


def _sides(directions: np.ndarray, outputs: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    lengths = np.linalg.norm(directions, axis=1)
    return [(directions / lengths[:, None], np.maximum(sign * outputs * lengths, 0.0)) for sign in (1.0, -1.0)]


def test_factors_hold_the_moments() -> None:
    directions = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    masses = np.array([0.5, 2.0, 0.0, 1.0, 0.25])
    s = factored._factor(directions, masses, 5)
    assert np.sum(s**2) == pytest.approx(np.sum(masses))
    np.testing.assert_allclose(s @ s.T, (directions.T * masses) @ directions, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(s) * s[:, 0], masses @ directions, atol=1e-12)


def test_products_of_pytorch_are_those_of_numpy() -> None:
    pytest.importorskip("torch")
    basis = problem(Squared(), 50, 6)[0]
    generator = np.random.default_rng(0)
    s, g = generator.standard_normal((7, 3)), generator.standard_normal((50, 3))
    one, other = Products(basis), Products(basis, "cpu:0")
    np.testing.assert_allclose(other.images(s), one.images(s), rtol=1e-12)
    np.testing.assert_allclose(other.adjoint(g), one.adjoint(g), rtol=1e-12)


def test_large_bases_are_certified_so_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """With numpy and with PyTorch: proved, below the objective, and nearer to it than the relaxation of the residual."""
    pytest.importorskip("torch")
    monkeypatch.setattr(judge, "LARGE", 100)
    X = np.random.default_rng(0).standard_normal((60, 9))
    y = X[:, 0] + np.abs(X[:, 1])
    beta = 0.3 * beta_max(X, y)
    fit = fit_convex_bn(X, y, beta=beta, proof_seconds=0.0)
    for device in ("cpu", "cpu:0"):
        better = certify(X, y, fit.network, beta=beta, seconds=20.0, device=device)
        assert fit.certificate.bound < better.bound <= better.objective
        assert "proved" in str(better)


def test_a_loss_with_kinks_is_left_to_descent_on_multipliers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "LARGE", 100)
    X = np.random.default_rng(0).standard_normal((40, 9))
    y = np.sign(X[:, 0])

    def forbidden(*arguments: object, **settings: object) -> None:
        raise AssertionError("it has kinks")

    monkeypatch.setattr(judge, "FactoredTraining", forbidden)
    certificate = certify(X, y, random_network(X, 0), beta=1.0, loss="hinge", seconds=0.1)
    assert certificate.bound <= certificate.objective
