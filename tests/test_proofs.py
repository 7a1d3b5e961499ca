"""Proofs for several outputs: known optima, and attempts to make the package say "proved" of what is false."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import LOSSES, Problem, best_of_lbfgs, objective_of, random_network, several_targets, spoilt, zero_network

from convexbn import Certificate, Evidence, Fit, Loss, Network, SlidingFrankWolfe, beta_max, certify, fit_convex_bn, recover, whiten
from convexbn.losses import Softmax
from convexbn.pricing import dual_point, everywhere, outputs, relaxation

SEVERAL: tuple[Loss, ...] = (*LOSSES, Softmax())
KINDS_OF_DUAL = ("zero", "random", "wrong sign", "stretched", "huge", "tiny", "one entry")
SIZES = ((4, 3), (3, 2, 2), (1, 6))
QUICK = SlidingFrankWolfe(tolerance=1e-4, rounds=7)
each_loss = pytest.mark.parametrize("loss", SEVERAL, ids=lambda loss: loss.name)


@pytest.fixture(autouse=True, scope="module")
def hurry() -> Iterator[None]:
    """Proofs stop at a dozen vertices and dual points after one descent: less tight, as valid, and the same on slow machines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "VERTICES", 12)
        patch.setattr(dual_point, "TEMPERATURES", (0.03,))
        patch.setattr(relaxation, "TEMPERATURES", (0.03, 0.003))
        yield


@cache
def problem_of(loss: Loss) -> Problem:
    """Nine samples, two features and two outputs, or three classes."""
    targets = several_targets(loss, 9, 3 if loss.name == "softmax" else 2, 4)
    return Problem("several outputs", np.random.default_rng(3).standard_normal((9, 2)), targets, loss)


@cache
def largest(loss: Loss) -> float:
    """beta_max of that problem."""
    problem = problem_of(loss)
    return beta_max(problem.X, problem.y, loss=loss)


@cache
def solved(loss: Loss, fraction: float = 0.4) -> Fit:
    """The problem above by the sliding solver, at a fraction of beta_max."""
    problem = problem_of(loss)
    return fit_convex_bn(problem.X, problem.y, loss=loss, beta=fraction * largest(loss), solver=QUICK, proof_seconds=5.0)


def judged(loss: Loss, network: Network, fraction: float = 0.4, dual: np.ndarray | None = None) -> Certificate:
    """The certificate of a network for the problem above."""
    problem = problem_of(loss)
    return certify(problem.X, problem.y, network, beta=fraction * largest(loss), loss=loss, dual=dual, seconds=0.5)


def one_hot(sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Data of rank n - 1 and one-hot targets with that many samples in each class."""
    n = sum(sizes)
    return np.random.default_rng(2).standard_normal((n, n + 2)), np.eye(len(sizes))[np.repeat(np.arange(len(sizes)), sizes)]


def one_hot_optimum(sizes: tuple[int, ...], beta: float) -> float:
    """sum_c min over w >= 0 of (sqrt(n_c) - w)^2 / 2 + beta w: one neuron a class."""
    return sum(beta * size**0.5 - beta**2 / 2 if size**0.5 > beta else size / 2 for size in sizes)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("beta", [0.05, 0.5, 1.2, 1.9])
def test_one_hot_targets_at_rank_n_minus_1_have_the_known_optimum(sizes: tuple[int, ...], beta: float) -> None:
    X, y = one_hot(sizes)
    certificate = fit_convex_bn(X, y, beta=beta, solver="sliding", proof_seconds=0.5).certificate
    optimum = one_hot_optimum(sizes, beta)
    assert certificate.objective == pytest.approx(optimum, rel=1e-5)
    assert optimum * (1.0 - 1e-2) <= certificate.bound <= optimum * (1.0 + 1e-9)
    assert certificate.evidence is Evidence.PROVED


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_beta_max_of_one_hot_targets(sizes: tuple[int, ...]) -> None:
    X, y = one_hot(sizes)
    assert beta_max(X, y) == pytest.approx(max(sizes) ** 0.5, rel=1e-6)
    assert fit_convex_bn(X, y, beta=1.001 * max(sizes) ** 0.5).certificate.objective == pytest.approx(0.5 * len(y), rel=1e-12)


def test_words_of_a_proof_for_several_outputs() -> None:
    text = str(solved(LOSSES[0]).certificate)
    assert ": proved, over all arrangements, none of them listed" in text
    assert "closed form" not in text
    assert "sampled" not in text
    assert "closed form" not in str(fit_convex_bn(*one_hot((4, 3)), beta=0.5, proof_seconds=0.1).certificate)


@each_loss
def test_objective_is_that_of_the_raw_data(loss: Loss) -> None:
    fit, problem = solved(loss), problem_of(loss)
    assert fit.certificate.objective == pytest.approx(objective_of(fit.network, problem, fit.program.beta), rel=1e-12)
    for seed in range(3):
        network = random_network(problem.X, seed, outputs=problem.y.shape[1])
        assert judged(loss, network).objective == pytest.approx(objective_of(network, problem, fit.program.beta), rel=1e-12)


@each_loss
def test_no_descent_gets_below_the_bound(loss: Loss) -> None:
    fit, problem = solved(loss), problem_of(loss)
    reached = best_of_lbfgs(problem.X, problem.y, loss, fit.program.beta, width=6, starts=20, seed=0)
    assert fit.certificate.bound <= reached * (1.0 + 1e-9)
    assert fit.certificate.objective <= reached * (1.0 + 1e-3)


@each_loss
def test_dual_of_the_certificate_gives_the_bound_and_is_feasible(loss: Loss) -> None:
    fit, problem = solved(loss), problem_of(loss)
    dual = fit.certificate.dual
    assert -loss.conjugate(-dual, problem.y) == pytest.approx(fit.certificate.bound, rel=1e-12)
    directions = np.random.default_rng(0).standard_normal((20_000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    worth = np.linalg.norm(np.maximum(directions @ fit.program.basis.T, 0.0) @ dual, axis=1)
    assert np.max(worth) <= fit.program.beta
    assert np.max(worth) >= 0.5 * fit.program.beta


@pytest.mark.parametrize("loss", LOSSES[:2], ids=lambda loss: loss.name)
def test_a_column_of_zeros_is_the_program_of_one_output(loss: Loss) -> None:
    problem = problem_of(loss)
    y, wide = problem.y[:, 0], np.column_stack([problem.y[:, 0], np.zeros(9)])
    beta = 0.4 * beta_max(problem.X, y, loss=loss)
    single = fit_convex_bn(problem.X, y, loss=loss, beta=beta, arrangements="all", solver="CLARABEL").certificate
    double = fit_convex_bn(problem.X, wide, loss=loss, beta=beta, solver=QUICK, proof_seconds=5.0).certificate
    assert beta_max(problem.X, wide, loss=loss) == pytest.approx(beta / 0.4, rel=1e-6)
    assert double.objective == pytest.approx(single.objective, rel=1e-4)
    assert double.bound <= single.objective * (1.0 + 1e-9)


def test_softmax_of_two_classes_is_logistic_at_another_beta() -> None:
    """With f = (z, -z) / 2 a neuron's output v has the norm ||v|| = |z| / sqrt(2): logistic loss at beta / sqrt(2)."""
    problem = problem_of(LOSSES[2])
    labels = problem.y[:, 0]
    beta = 0.4 * beta_max(problem.X, labels, loss="logistic")
    single = fit_convex_bn(problem.X, labels, loss="logistic", beta=beta, arrangements="all", solver="CLARABEL").certificate
    y = np.column_stack([labels > 0, labels < 0]).astype(float)
    double = fit_convex_bn(problem.X, y, loss="softmax", beta=beta * 2**0.5, solver=QUICK, proof_seconds=0.1).certificate
    assert double.objective == pytest.approx(single.objective, rel=1e-4)
    assert double.bound <= single.objective * (1.0 + 1e-9)


@each_loss
@settings(max_examples=3)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 1e3]), st.sampled_from([1e-6, 0.4, 0.999]))
def test_bounds_of_random_networks_hold(loss: Loss, seed: int, size: float, fraction: float) -> None:
    problem = problem_of(loss)
    certificate = judged(loss, random_network(problem.X, seed, size, outputs=problem.y.shape[1]), fraction)
    assert certificate.bound <= certificate.estimate <= certificate.objective * (1.0 + 1e-12)
    assert certificate.bound <= (solved(loss).certificate.objective if fraction <= 0.4 else zero_objective(loss)) * (1.0 + 1e-9)


def zero_objective(loss: Loss) -> float:
    """The objective of the zero network."""
    problem = problem_of(loss)
    return loss.value(np.zeros(problem.y.shape), problem.y)


@pytest.mark.parametrize("loss", [LOSSES[0], LOSSES[2], Softmax()], ids=lambda loss: loss.name)
@pytest.mark.parametrize("kind", KINDS_OF_DUAL)
def test_no_dual_lifts_the_bound_above_the_optimum(loss: Loss, kind: str) -> None:
    fit = solved(loss)
    certificate = judged(loss, fit.network, dual=spoilt(kind, fit.certificate.dual, 4))
    assert certificate.bound <= fit.certificate.objective * (1.0 + 1e-12)
    assert certificate.objective == pytest.approx(fit.certificate.objective, rel=1e-12)


@each_loss
@pytest.mark.parametrize("fraction", [0.999, 0.4, 1e-3])
def test_a_stuck_network_gets_no_proof_of_optimality(loss: Loss, fraction: float) -> None:
    """One neuron of the optimum, at half its size, and the zero network, which is stationary at every beta."""
    problem, fit = problem_of(loss), solved(loss)
    best = fit.certificate.objective if fraction == 0.4 else np.inf
    stuck = recover(fit.whitening, fit.solution.directions[:1], 0.5 * fit.solution.outputs[:1])
    found = [judged(loss, network, fraction) for network in (stuck, zero_network(problem.X, problem.y.shape[1]))]
    lowest = min(best, *(certificate.objective for certificate in found))
    for certificate in found:
        assert certificate.bound <= lowest * (1.0 + 1e-9)
        assert not certificate.accepts(1e-6) or certificate.objective <= lowest * (1.0 + 1e-5)
    if fraction < 0.5:
        assert not any(certificate.accepts(1e-3) for certificate in found)


@each_loss
@pytest.mark.parametrize("factor", [0.9, 1.001, 1e6])
def test_the_zero_network_is_optimal_from_beta_max_on_and_not_before(loss: Loss, factor: float) -> None:
    problem = problem_of(loss)
    certificate = judged(loss, zero_network(problem.X, problem.y.shape[1]), factor)
    assert certificate.objective == pytest.approx(zero_objective(loss), rel=1e-12)
    assert certificate.bound <= certificate.objective * (1.0 + 1e-12)
    if factor < 1.0:
        better = solved(loss, factor).certificate.objective
        assert better < certificate.objective * (1.0 - 1e-5)
        assert certificate.bound <= better * (1.0 + 1e-9)
    if factor > 10.0:
        assert certificate.relative_gap < 1e-9


@pytest.mark.parametrize("loss", [LOSSES[0], Softmax()], ids=lambda loss: loss.name)
def test_a_needle_that_no_search_finds_is_in_the_bound(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outlier has the only neuron that matters; all searches are replaced by one constant direction."""
    generator = np.random.default_rng(2)
    X = np.concatenate([generator.standard_normal((30, 2)), [[1e3, 1e3]]])
    y = np.zeros((31, 2)) if loss.name == "squared" else np.eye(2)[np.zeros(31, dtype=int)]
    y[-1] = [0.0, 1.0] if loss.name == "softmax" else [3.0, 4.0]
    beta = 0.5 * beta_max(X, y, loss=loss)
    good = fit_convex_bn(X, y, loss=loss, beta=beta, solver=QUICK, proof_seconds=0.1)

    def blind(basis: np.ndarray, v: np.ndarray, starts: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        constant = np.eye(basis.shape[1])[[-1]]
        return constant, np.linalg.norm(np.maximum(constant @ basis.T, 0.0) @ v, axis=1)

    monkeypatch.setattr(everywhere, "evolve", blind)
    monkeypatch.setattr(everywhere, "climb", lambda basis, v, direction: direction)
    for network in (zero_network(X, 2), good.network):
        certificate = certify(X, y, network, beta=beta, loss=loss, seconds=0.1)
        assert certificate.bound <= good.certificate.objective * (1.0 + 1e-9)


@each_loss
def test_turned_outputs_and_moved_samples_change_nothing(loss: Loss) -> None:
    fit, problem = solved(loss), problem_of(loss)
    order, columns = np.random.default_rng(1).permutation(9), np.arange(problem.y.shape[1])[::-1]
    network = replace(fit.network, outputs=fit.network.outputs[:, columns])
    dual = fit.certificate.dual[order][:, columns]
    moved = certify(problem.X[order], problem.y[order][:, columns], network, beta=fit.program.beta, loss=loss, dual=dual, seconds=1.0)
    assert moved.objective == pytest.approx(fit.certificate.objective, rel=1e-12)
    assert moved.bound <= fit.certificate.objective
    assert moved.bound >= 0.9 * fit.certificate.bound


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_units_of_the_targets_change_nothing(unit: float) -> None:
    fit, problem = solved(LOSSES[0]), problem_of(LOSSES[0])
    network = replace(fit.network, outputs=unit * fit.network.outputs)
    scaled = certify(problem.X, unit * problem.y, network.balanced(), beta=unit * fit.program.beta, seconds=0.5)
    assert scaled.objective == pytest.approx(unit**2 * fit.certificate.objective, rel=1e-9)
    assert scaled.bound <= unit**2 * fit.certificate.objective
    assert scaled.bound == pytest.approx(unit**2 * fit.certificate.bound, rel=0.05)


@pytest.mark.parametrize("samples", [9, 30])
def test_units_of_one_output_change_nothing_without_a_list(samples: int) -> None:
    generator = np.random.default_rng(samples)
    X, y = generator.standard_normal((samples, 9)), generator.standard_normal(samples)
    network = zero_network(X)
    plain = certify(X, y, network, beta=0.5, seconds=0.0)
    for unit in (1e-6, 1e6):
        scaled = certify(X, unit * y, network, beta=0.5 * unit, seconds=0.0)
        assert scaled.bound == pytest.approx(unit**2 * plain.bound, rel=0.02)


def test_targets_of_zeros_with_many_features_have_no_gap_at_the_zero_network() -> None:
    X = np.random.default_rng(0).standard_normal((30, 9))
    for y, count in ((np.zeros(30), 1), (np.zeros((30, 2)), 2)):
        certificate = certify(X, y, random_network(X, 1, outputs=count), beta=1.0, seconds=0.2)
        assert certificate.bound == pytest.approx(0.0, abs=1e-12)
        assert certify(X, y, zero_network(X, count), beta=1.0, seconds=0.2).gap == 0.0
    assert whiten(X).rank == 9
