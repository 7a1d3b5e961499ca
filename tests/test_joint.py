"""Moments of directions and of |t_i| in one matrix: below the optimum, nearer to it than moments alone, and valid for any multipliers."""

from __future__ import annotations

import numpy as np
import pytest
from problems import degenerate_data, listed_price, targets_for

from convexbn import beta_max, fit_convex_bn
from convexbn.losses import Hinge, Logistic, Loss, Squared
from convexbn.pricing.joint import LOCAL, Joint, JointTraining, Multipliers, fits_jointly
from convexbn.pricing.moments import MomentTraining
from convexbn.whitening import whiten

FOREVER = float("inf")


def best_of(training: JointTraining | MomentTraining, y: np.ndarray, loss: Loss, beta: float, looks: int) -> float:
    """The best dual value of a few looks."""
    best = -np.inf
    for _ in range(looks):
        training.advance(FOREVER)
        v = -loss.project(-training.dual, y)
        best = max(best, -loss.conjugate(-min(1.0, beta / training.price(v)) * v, y))
    return best


def without_neurons(basis: np.ndarray, y: np.ndarray, beta: float, loss: Loss | None = None) -> JointTraining:
    """The training that begins at the zero network."""
    return JointTraining(basis, y, loss or Squared(), beta, np.zeros((0, basis.shape[1])), np.zeros(0))


@pytest.mark.parametrize("loss", [Squared(), Logistic(), Hinge()], ids=lambda loss: loss.name)
def test_below_the_optimum_and_nearer_than_moments_alone(loss: Loss) -> None:
    X, y = np.random.default_rng(2).standard_normal((8, 2)), targets_for(loss, 8, 3)
    beta = 0.05 * beta_max(X, y, loss=loss)
    fit = fit_convex_bn(X, y, loss=loss, beta=beta, arrangements="all", solver="CLARABEL")
    best, basis = fit.certificate.objective, fit.whitening.basis
    neurons = fit.solution.directions, fit.solution.outputs[:, 0]
    joint = best - best_of(JointTraining(basis, y, loss, beta, *neurons), y, loss, beta, 12)
    moments = best - best_of(MomentTraining(basis, y, loss, beta, *neurons), y, loss, beta, 12)
    assert -1e-9 * best <= joint < 0.9 * moments


@pytest.mark.parametrize("seed", range(8))
def test_the_price_is_an_upper_bound_for_any_dual_point(seed: int) -> None:
    """Against exact enumeration: at its own dual point, at another one, and after a single iteration."""
    generator = np.random.default_rng(seed)
    basis = whiten(generator.standard_normal((int(generator.integers(4, 12)), int(generator.integers(1, 4))))).basis
    y = generator.standard_normal(len(basis))
    training = without_neurons(basis, y, 0.3 * listed_price(basis, y).lower)
    for deadline in (0.0, FOREVER):
        training.advance(deadline)
        for v in (training.dual, y, -training.dual):
            assert training.price(v) >= listed_price(basis, v).lower


@pytest.mark.parametrize("name", degenerate_data())
def test_degenerate_data(name: str) -> None:
    basis = whiten(degenerate_data()[name]).basis
    y = np.round(np.random.default_rng(1).standard_normal(len(basis)), 1)
    training = without_neurons(basis, y, 0.3 * listed_price(basis, y).lower)
    training.advance(FOREVER)
    assert training.price(training.dual) >= listed_price(basis, training.dual).lower


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_bound_holds_for_all_that_the_multipliers_add(sign: float) -> None:
    """Random multipliers, half of them of the wrong sign: what they add to v^T p from its definition, at many directions."""
    generator = np.random.default_rng(3)
    basis = whiten(generator.standard_normal((7, 2))).basis
    n, maps = len(basis), Joint(basis)
    gram = generator.standard_normal((maps.size, maps.size))
    factors = generator.standard_normal((2, n, 4, 4))
    right, left = sign * factors @ factors.transpose(0, 1, 3, 2)
    products = sign * generator.random((3, n, n))
    multipliers = Multipliers(gram + gram.T, generator.standard_normal(n), right, left, products)
    v = generator.standard_normal(n)
    bound = maps.bound(v, multipliers)
    s = generator.standard_normal((2000, 3))
    s /= np.linalg.norm(s, axis=1, keepdims=True)
    t = s @ basis.T
    p, q, psi = np.maximum(t, 0.0), np.maximum(-t, 0.0), np.column_stack([np.ones(len(s)), s])
    value = p @ v
    if sign > 0:
        value += np.einsum("sn,sa,nab,sb->s", p, psi, right, psi) + np.einsum("sn,sa,nab,sb->s", q, psi, left, psi)
        pp, pq, qq = products
        value += np.sum(p @ pp * p, axis=1) + 2.0 * np.sum(p @ pq * q, axis=1) + np.sum(q @ qq * q, axis=1)
    assert np.max(value) <= bound


def test_consistent_moments_are_the_nearest() -> None:
    """The least squares problem is solved, so that what is left is orthogonal to all consistent moments."""
    generator = np.random.default_rng(4)
    basis = whiten(generator.standard_normal((6, 2))).basis
    training = without_neurons(basis, generator.standard_normal(6), 0.1)
    training.beta = 0.0
    parts = type(training.parts)(*(generator.standard_normal(part.shape[1:]) for part in training.parts))
    symmetric = parts.products + np.stack([parts.products[0].T, np.zeros((6, 6)), parts.products[2].T])
    parts = parts._replace(joint=parts.joint + parts.joint.T, products=symmetric)
    nearest = training._consistent(parts)
    again = training._consistent(nearest)
    assert all(np.allclose(one, other, atol=1e-9) for one, other in zip(nearest, again, strict=True))
    other = training._consistent(type(parts)(*(part[::-1] if part.ndim < 3 else part for part in parts)))
    double = np.array([1.0, 2.0, 1.0])[:, None, None]  # the products pq stand for qp as well
    weights = (1.0, LOCAL, LOCAL, double, 1.0, 1.0)
    left = [np.sum(weight * (wanted - found) * more) for weight, wanted, found, more in zip(weights, parts, nearest, other, strict=True)]
    assert sum(left) == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize("unit", [2.0**-30, 2.0**40])
def test_units_of_the_targets_change_nothing(unit: float) -> None:
    generator = np.random.default_rng(6)
    basis = whiten(generator.standard_normal((9, 2))).basis
    y = generator.standard_normal(9)
    beta = 0.3 * listed_price(basis, y).lower
    plain, scaled = (best_of(without_neurons(basis, u * y, u * beta), u * y, Squared(), u * beta, 2) for u in (1.0, unit))
    assert scaled == pytest.approx(unit**2 * plain, rel=1e-6)


def test_what_fits() -> None:
    assert fits_jointly(442, 11)
    assert not fits_jointly(50_000, 11)
    assert not fits_jointly(100, 31)
