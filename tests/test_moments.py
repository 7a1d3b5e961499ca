"""The training problem relaxed to moments: below the optimum, near it, in every unit, and tighter than the relaxation."""

from __future__ import annotations

import time

import numpy as np
import pytest
from problems import degenerate_data, listed_price, targets_for

from convexbn import Fit, beta_max, certify, fit_convex_bn, judge
from convexbn.losses import Hinge, Huber, Logistic, Loss, Squared
from convexbn.patches import Patches, Pooling
from convexbn.pricing import moments as module
from convexbn.pricing import price_everywhere
from convexbn.pricing.moments import MomentTraining, _hankel, fits_moments, positive
from convexbn.whitening import whiten

FOREVER = float("inf")


def relaxed(
    X: np.ndarray, y: np.ndarray, loss: Loss, beta: float, looks: int, fit: Fit | None = None, half: int = 2
) -> tuple[float, float]:
    """The best dual value of a few looks, from the neurons of a fit or from none, and the price of its dual point over beta."""
    basis = whiten(X).basis
    neurons = (np.zeros((0, basis.shape[1])), np.zeros(0)) if fit is None else (fit.solution.directions, fit.solution.outputs[:, 0])
    training = MomentTraining(basis, y, loss, beta, *neurons, half=half)
    best = (-np.inf, np.inf)
    for _ in range(looks):
        training.advance(FOREVER)
        v = -loss.project(-training.dual, y)
        price = training.price(v)
        best = max(best, (-loss.conjugate(-min(1.0, beta / price) * v, y), price / beta))
    return best


def small_fit(loss: Loss, fraction: float = 0.2) -> tuple[np.ndarray, np.ndarray, Fit]:
    """Twelve samples with two features, solved over all arrangements by an interior-point method."""
    X, y = np.random.default_rng(2).standard_normal((12, 2)), targets_for(loss, 12, 3)
    beta = fraction * beta_max(X, y, loss=loss)
    return X, y, fit_convex_bn(X, y, loss=loss, beta=beta, arrangements="all", solver="CLARABEL")


@pytest.mark.parametrize("loss", [Squared(), Logistic(), Hinge(), Huber()], ids=lambda loss: loss.name)
def test_the_bound_is_below_the_optimum_and_near_it(loss: Loss) -> None:
    X, y, fit = small_fit(loss)
    best, beta = fit.certificate.objective, fit.program.beta
    found = relaxed(X, y, loss, beta, 12, fit)[0]
    assert 0.9 * best <= found <= best * (1.0 + 1e-9)
    assert relaxed(X, y, loss, beta, 12)[0] <= best * (1.0 + 1e-9)


def test_higher_degrees_are_tighter() -> None:
    X, y, fit = small_fit(Squared(), 0.05)
    best = fit.certificate.objective
    gaps = [best - relaxed(X, y, Squared(), fit.program.beta, 20, fit, half=half)[0] for half in (1, 2, 3)]
    assert gaps[1] < 0.8 * gaps[0]
    assert gaps[2] < gaps[1]
    assert gaps[2] >= -1e-9 * best


def test_raised_moments_begin_where_lower_ones_have_come() -> None:
    """With their dual point and polynomials, at prices that hold; and a look from there is nearer than several from the network."""
    _, y, fit = small_fit(Squared(), 0.05)
    basis, beta = fit.whitening.basis, fit.program.beta
    neurons = fit.solution.directions, fit.solution.outputs[:, 0]

    def gap(training: MomentTraining) -> float:
        v, price = training.dual, training.price(training.dual)
        assert price >= listed_price(basis, v).lower
        return fit.certificate.objective + Squared().conjugate(-min(1.0, beta / price) * v, y)

    lower, fresh = (MomentTraining(basis, y, Squared(), beta, *neurons, half=half) for half in (2, 3))
    for _ in range(8):
        lower.advance(FOREVER)
    raised = lower.raised()
    assert np.array_equal(raised.dual, lower.dual)
    for one, other in ((lower.excess.right, raised.excess.right), (lower.excess.left, raised.excess.left)):
        polynomials = lower.step * one @ lower.hankel, raised.step * other @ raised.hankel
        assert np.allclose(polynomials[0], polynomials[1][..., :5], atol=1e-12)
        assert np.all(polynomials[1][..., 5:] == 0.0)
    assert gap(raised) < 1.2 * gap(lower)
    raised.advance(FOREVER)
    for _ in range(2):
        fresh.advance(FOREVER)
    assert gap(raised) < min(gap(lower), gap(fresh))


@pytest.mark.parametrize("seed", range(12))
def test_the_price_is_an_upper_bound_for_any_dual_point(seed: int) -> None:
    """Against exact enumeration: at its own dual point, at another one, and after a single iteration."""
    generator = np.random.default_rng(seed)
    basis, y = whiten(generator.standard_normal((int(generator.integers(4, 12)), int(generator.integers(1, 4))))).basis, None
    y = generator.standard_normal(len(basis))
    training = MomentTraining(basis, y, Squared(), 0.3 * listed_price(basis, y).lower, np.zeros((0, basis.shape[1])), np.zeros(0))
    for deadline in (0.0, FOREVER):
        training.advance(deadline)
        for v in (training.dual, y, -training.dual):
            assert training.price(v) >= listed_price(basis, v).lower


@pytest.mark.parametrize("pooling", [Pooling(3, 1.0), Pooling(3, 1 / 3)], ids=["sum", "average"])
def test_patches_are_pooled(pooling: Pooling) -> None:
    """Twelve patches of four images: prices bound the enumerated ones of V spread, dual values the optimum, and both come near."""
    generator = np.random.default_rng(5)
    X, y = generator.standard_normal((4, 1, 1, 3)), np.array([1.0, -0.5, 0.3, 2.0])
    patches = Patches(1, pooling="sum" if pooling.weight == 1.0 else "average")
    beta = 0.3 * beta_max(X, y, patches=patches)
    fit = fit_convex_bn(X, y, beta=beta, patches=patches, arrangements="all", solver="CLARABEL")
    basis = fit.whitening.basis
    training = MomentTraining(basis, y, Squared(), beta, np.zeros((0, 2)), np.zeros(0), pooling=pooling)
    best = -np.inf
    for _ in range(20):
        training.advance(FOREVER)
        v, price = training.dual, training.price(training.dual)
        assert price >= listed_price(basis, pooling.spread(v)).lower
        best = max(best, -Squared().conjugate(-min(1.0, beta / price) * v, y))
    assert 0.9 * fit.certificate.objective <= best <= fit.certificate.objective * (1.0 + 1e-9)


@pytest.mark.parametrize("name", degenerate_data())
def test_degenerate_data(name: str) -> None:
    basis = whiten(degenerate_data()[name]).basis
    y = np.round(np.random.default_rng(1).standard_normal(len(basis)), 1)
    training = MomentTraining(basis, y, Squared(), 0.3 * listed_price(basis, y).lower, np.zeros((0, basis.shape[1])), np.zeros(0))
    training.advance(FOREVER)
    assert training.price(training.dual) >= listed_price(basis, training.dual).lower


@pytest.mark.parametrize("unit", [2.0**-30, 2.0**40])
def test_units_of_the_targets_change_nothing(unit: float) -> None:
    X, y, fit = small_fit(Squared())
    beta = fit.program.beta
    plain, scaled = relaxed(X, y, Squared(), beta, 3), relaxed(X, unit * y, Squared(), unit * beta, 3)
    assert scaled[0] == pytest.approx(unit**2 * plain[0], rel=1e-6)


def test_moments_of_measures_on_an_interval() -> None:
    """Both matrices are positive semidefinite for points inside of the interval, and not for points outside."""
    entries = _hankel(2, 1.5)

    def least(point: float) -> float:
        both = entries @ point ** np.arange(5)
        return float(min(np.linalg.eigvalsh(both[:9].reshape(3, 3))[0], np.linalg.eigvalsh(both[9:].reshape(2, 2))[0]))

    assert min(least(point) for point in (0.0, 0.3, 1.0, 1.5)) >= -1e-12
    assert max(least(point) for point in (-0.1, 1.6)) < -1e-3


def test_the_positive_part_is_the_projection() -> None:
    matrices = np.random.default_rng(1).standard_normal((5, 4, 4))
    matrices += matrices.swapaxes(1, 2)
    parts = positive(matrices)
    rest = parts - matrices
    assert np.min(np.linalg.eigvalsh(rest)) >= -1e-12
    assert np.allclose(np.sum(rest * parts, axis=(1, 2)), 0.0, atol=1e-10)


@pytest.mark.parametrize("half", [1, 2, 3])
@pytest.mark.parametrize("samples", [4, 30], ids=["by samples", "by moments"])
def test_consistent_moments_are_the_nearest(samples: int, half: int) -> None:
    """Whichever matrix is inverted: the least squares problem is solved, so that what is left is orthogonal to all moments."""
    generator = np.random.default_rng(4)
    basis = whiten(generator.standard_normal((samples, 2))).basis
    y = generator.standard_normal(len(basis))
    training = MomentTraining(basis, y, Squared(), 0.1, np.zeros((0, 3)), np.zeros(0), half=half)
    training.beta = 0.0
    parts = type(training.parts)(*(generator.standard_normal(part.shape) for part in training.parts))
    parts = parts._replace(gram=parts.gram + parts.gram.swapaxes(1, 2))
    nearest = training._consistent(parts)
    again = training._consistent(nearest)
    assert all(np.allclose(one, other, atol=1e-8) for one, other in zip(nearest, again, strict=True))
    other = training._consistent(type(parts)(*(part[::-1] for part in parts)))
    weights = 1.0, training.share, training.share, training.pull
    left = [weight * np.sum((wanted - found) * more) for weight, wanted, found, more in zip(weights, parts, nearest, other, strict=True)]
    assert sum(left) == pytest.approx(0.0, abs=1e-7)


def test_what_fits() -> None:
    assert fits_moments(442, 11, 2)
    assert fits_moments(442, 11, 3)
    assert not fits_moments(442, 11, 4)
    assert not fits_moments(50_000, 201, 2)


def test_a_deadline_ends_it_after_one_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    basis = whiten(np.arange(5.0)[:, None]).basis
    training = MomentTraining(basis, np.arange(5.0), Squared(), 0.5, np.zeros((0, 2)), np.zeros(0))
    count: list[int] = []
    monkeypatch.setattr(training, "iterate", lambda: count.append(1))
    training.advance(time.perf_counter())
    assert len(count) == 1
    training.advance(FOREVER)
    assert len(count) == 1 + module.LOOK


def test_nine_columns_are_proved_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the relaxation leaves percents."""
    monkeypatch.setattr(judge, "HALVES", (2,))
    generator = np.random.default_rng(0)
    X = generator.standard_normal((40, 8))
    y = generator.standard_normal(40)
    beta = 0.35 * beta_max(X, y)
    fit = fit_convex_bn(X, y, beta=beta, solver="sliding", proof_seconds=0.0)
    dual = np.asarray(fit.solution.dual)
    price = price_everywhere(fit.whitening.basis, dual)
    assert price.upper > 1.02 * price.lower
    found = certify(X, y, fit.network, beta=beta, seconds=8.0)
    assert found.relative_gap < 0.5 * fit.certificate.relative_gap
