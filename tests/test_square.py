from __future__ import annotations

import numpy as np
import pytest
from conic_references import optimum_with_outputs
from problems import wide

from convexbn import Evidence, Softmax, Squared, beta_max, certify, enumerate_arrangements, fit_convex_bn, whiten
from convexbn.pricing import known_price, price_dual, price_square, price_square_outputs

SIZES = pytest.mark.parametrize("n", [2, 4, 7])


def best_of_orthants(v: np.ndarray) -> float:
    """h(V) by brute force: an h > 0 on a set of samples is an eigenvector of V V^T there, as it is a maximum inside of that orthant."""
    best = 0.0
    for pattern in range(1, 2 ** len(v)):
        inside = [i for i in range(len(v)) if pattern >> i & 1]
        values, vectors = np.linalg.eigh(v[inside] @ v[inside].T)
        for value, vector in zip(values, vectors.T, strict=True):
            if np.min(vector * np.sign(vector[np.argmax(np.abs(vector))])) >= -1e-12:
                best = max(best, value)
    return float(np.sqrt(max(best, 0.0)))


def disjoint(n: int, outputs: int, seed: int) -> np.ndarray:
    """At most one entry other than 0 in a row, of both signs."""
    generator = np.random.default_rng(seed)
    return np.eye(outputs)[generator.integers(outputs, size=n)] * generator.standard_normal((n, 1))


def residual(n: int, outputs: int, seed: int) -> np.ndarray:
    """One-hot rows minus probabilities that are not far from uniform."""
    classes = np.eye(outputs)[np.arange(n) % outputs]
    return classes - np.random.default_rng(seed).dirichlet(20.0 * np.ones(outputs), size=n)


@SIZES
@pytest.mark.parametrize("kind", [disjoint, residual])
@pytest.mark.parametrize("seed", range(4))
def test_the_price_is_known_for_disjoint_columns_and_for_residuals(n: int, kind: object, seed: int) -> None:
    v = kind(n, 3, seed)
    price = known_price(whiten(wide(n)).basis, v)
    brute = best_of_orthants(v)
    assert price is not None
    assert price.lower == pytest.approx(brute, rel=1e-9)
    assert price.upper >= brute * (1.0 - 1e-14)


@SIZES
@pytest.mark.parametrize("seed", range(8))
def test_the_interval_holds_the_price_of_any_dual_point(n: int, seed: int) -> None:
    v = np.random.default_rng(seed).standard_normal((n, 3))
    basis, brute = whiten(wide(n)).basis, best_of_orthants(v)
    price = price_square_outputs(basis, v)
    assert price.lower <= brute * (1.0 + 1e-12)
    assert brute <= price.upper * (1.0 + 1e-14)
    assert price.upper <= np.sqrt(np.linalg.eigvalsh(np.abs(v @ v.T))[-1]) * (1.0 + 1e-9)
    assert np.linalg.norm(v.T @ np.maximum(basis @ price.directions[0], 0.0)) == pytest.approx(price.lower, rel=1e-12)
    assert known_price(basis, v) is None or price.upper == pytest.approx(brute, rel=2e-9)


@SIZES
def test_one_column_has_the_price_of_the_scalar_closed_form(n: int) -> None:
    basis, v = whiten(wide(n)).basis, np.random.default_rng(n).standard_normal(n)
    assert price_square_outputs(basis, v[:, None]).upper == pytest.approx(price_square(basis, v).upper, rel=1e-11)


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e200])
def test_units_and_zeros(unit: float) -> None:
    basis, v = whiten(wide(6)).basis, disjoint(6, 2, 0)
    assert price_dual(basis, unit * v, None).upper == pytest.approx(unit * price_dual(basis, v, None).upper, rel=1e-12)
    zero = price_dual(basis, 0.0 * v, None)
    assert zero.upper == zero.lower == 0.0


def test_lower_ranks_are_not_known() -> None:
    assert known_price(whiten(wide(6)[:, :3]).basis, disjoint(6, 2, 0)) is None


@pytest.mark.parametrize("targets", ["softmax", "centred", "signs"])
def test_classifiers_at_rank_n_minus_one_are_proved(targets: str) -> None:
    X, classes = wide(9), np.eye(3)[np.arange(9) % 3]
    loss = Softmax() if targets == "softmax" else Squared()
    Y = {"softmax": classes, "centred": classes - classes.mean(axis=0), "signs": 2.0 * classes - 1.0}[targets]
    fit = fit_convex_bn(X, Y, loss=loss, proof_seconds=0)
    assert fit.certificate.evidence is Evidence.PROVED
    assert fit.certificate.relative_gap <= 1e-4
    assert "of the beta_max" in str(fit)
    assert fit.beta_max == pytest.approx(best_of_orthants(-loss.gradient(np.zeros(Y.shape), Y)), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_stays_below_the_exact_optimum(seed: int) -> None:
    X, Y = wide(4), np.random.default_rng(seed).standard_normal((4, 2))
    beta = 0.3 * beta_max(X, Y)
    basis = whiten(X).basis
    exact = optimum_with_outputs(basis, Y, Squared(), beta, enumerate_arrangements(basis).active.astype(float))
    fit = fit_convex_bn(X, Y, beta=beta, proof_seconds=0)
    assert fit.certificate.bound <= exact * (1.0 + 1e-7)
    assert exact <= fit.certificate.objective * (1.0 + 1e-7)
    assert certify(X, Y, fit.network, beta=beta, seconds=0).bound <= exact * (1.0 + 1e-7)
