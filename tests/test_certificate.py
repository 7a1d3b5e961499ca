"""The certificate: bounds that hold whatever is thrown at it, gaps that close at the optimum and only there."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import (
    LOSSES,
    Problem,
    degenerate_problems,
    lattices,
    optimum_of,
    program_of,
    random_network,
    random_problem,
    spoilt,
    targets_for,
    zero_network,
)

from convexbn import (
    Arrangements,
    Certificate,
    Conic,
    Evidence,
    Fit,
    InputError,
    Loss,
    Network,
    beta_max,
    certify,
    enumerate_arrangements,
    fit_convex_bn,
    recover,
    sample_arrangements,
    whiten,
)

SMOOTH = [loss for loss in LOSSES if np.isfinite(loss.smoothness)]
KINDS_OF_DUAL = ("zero", "random", "wrong sign", "stretched", "huge", "tiny", "one entry")


def by_name(value: object) -> str:
    """The name of a loss."""
    return getattr(value, "name", str(value))


@cache
def solved(loss: Loss, arrangements: str | int = "all") -> tuple[np.ndarray, np.ndarray, Fit]:
    """Ten samples with two features, solved by Clarabel at a tenth of beta_max."""
    problem = random_problem(loss, 10, 2, seed=3)
    return problem.X, problem.y, fit_convex_bn(problem.X, problem.y, loss=loss, arrangements=arrangements, solver="CLARABEL")


@cache
def optimum(loss: Loss) -> float:
    """The optimum of the same program by a formulation that shares no code with the package's."""
    return optimum_of(solved(loss)[2].program)


def judged(loss: Loss, network: Network, dual: np.ndarray | None = None, arrangements: str | int = "all") -> Certificate:
    """The certificate of a network for the problem above."""
    X, y, fit = solved(loss, arrangements)
    return certify(X, y, network, beta=fit.program.beta, loss=loss, arrangements=fit.program.arrangements, dual=dual)


def perturbed(network: Network, seed: int) -> Network:
    """Every parameter off by a thousandth of itself, up or down."""
    generator = np.random.default_rng(seed)
    parts = {name: getattr(network, name) for name in ("weights", "gain", "shift", "outputs")}
    return replace(network, **{name: part * (1.0 + 1e-3 * generator.choice([-1.0, 1.0], part.shape)) for name, part in parts.items()})


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_bound_optimum_and_objective_meet_over_all_arrangements(loss: Loss) -> None:
    certificate = solved(loss)[2].certificate
    assert certificate.evidence is Evidence.PROVED
    assert certificate.relative_gap < 1e-6
    assert certificate.bound <= optimum(loss) * (1.0 + 1e-9)
    assert optimum(loss) <= certificate.objective * (1.0 + 2e-8)


@pytest.mark.parametrize("problem", degenerate_problems(), ids=str)
def test_gap_closes_on_degenerate_data(problem: Problem) -> None:
    _, program = program_of(problem)
    fit = fit_convex_bn(problem.X, problem.y, beta=program.beta, loss=problem.loss, arrangements="all", solver="CLARABEL")
    assert fit.certificate.evidence is Evidence.PROVED
    assert fit.certificate.bound <= fit.certificate.objective
    assert fit.certificate.gap <= 1e-6 * problem.loss.value(np.zeros(len(problem.y)), problem.y) + 1e-15


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_sample_is_never_called_proved_over_all(loss: Loss) -> None:
    certificate = solved(loss, 12)[2].certificate
    assert certificate.evidence is Evidence.SAMPLED
    assert "proved for the sampled program" in str(certificate)
    assert "proved" not in str(certificate).replace("proved for the sampled program", "")
    assert "all" not in str(certificate).replace("proved for the sampled program, over", "").split()


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_words_for_a_proof_over_all_arrangements(loss: Loss) -> None:
    text = str(solved(loss)[2].certificate)
    assert ": proved, over all 92 arrangements" in text
    assert "sampled" not in text


@pytest.mark.parametrize("loss", SMOOTH, ids=by_name)
@pytest.mark.parametrize("seed", range(5))
def test_wrong_solution_is_refused_and_the_right_one_accepted(loss: Loss, seed: int) -> None:
    network = solved(loss)[2].network
    right, wrong = judged(loss, network), judged(loss, perturbed(network, seed))
    assert right.accepts()
    assert not wrong.accepts()
    assert wrong.bound <= optimum(loss) * (1.0 + 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_wrong_solution_is_refused_at_a_kink_whatever_the_dual(seed: int) -> None:
    hinge = LOSSES[3]
    _, _, fit = solved(hinge)
    assert judged(hinge, fit.network, fit.solution.dual).accepts()
    assert not judged(hinge, perturbed(fit.network, seed), fit.solution.dual).accepts()


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
@pytest.mark.parametrize("arrangements", ["all", 5])
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e-3, 1.0, 1e3]), st.sampled_from((None, *KINDS_OF_DUAL)))
def test_bound_never_exceeds_the_objective_or_the_optimum(
    loss: Loss, arrangements: str | int, seed: int, size: float, kind: str | None
) -> None:
    X, _, fit = solved(loss, arrangements)
    dual = None if kind is None else spoilt(kind, fit.solution.dual, seed)
    certificate = judged(loss, random_network(X, seed, size), dual, arrangements)
    assert certificate.bound <= certificate.objective * (1.0 + 1e-12)
    assert certificate.bound <= fit.certificate.objective * (1.0 + 1e-9)


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
@pytest.mark.parametrize("kind", KINDS_OF_DUAL)
def test_garbage_for_a_dual_does_not_lift_the_bound_of_the_optimum(loss: Loss, kind: str) -> None:
    fit = solved(loss)[2]
    without, given_garbage = judged(loss, fit.network), judged(loss, fit.network, spoilt(kind, fit.solution.dual, 4))
    assert without.bound <= given_garbage.bound <= fit.certificate.objective
    assert given_garbage.objective == without.objective


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
def test_numbers_that_a_broken_solver_leaves_are_passed_over(loss: Loss, number: float) -> None:
    fit = solved(loss)[2]
    broken = np.where(np.arange(10) == 3, number, fit.solution.dual)
    certificate = judged(loss, fit.network, broken)
    assert judged(loss, fit.network).bound <= certificate.bound <= fit.certificate.objective


def test_dual_of_another_shape_is_refused() -> None:
    fit = solved(LOSSES[0])[2]
    for dual in (fit.solution.dual[:, None], fit.solution.dual[:-1], 0.1):
        with pytest.raises(InputError, match=r"^dual has shape .*: pass one number for each target"):
            judged(LOSSES[0], fit.network, dual)


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_dual_of_the_certificate_is_feasible_and_gives_the_bound(loss: Loss) -> None:
    _, y, fit = solved(loss)
    dual = fit.certificate.dual
    assert -loss.conjugate(-dual, y) == pytest.approx(fit.certificate.bound, rel=1e-12)
    directions = np.random.default_rng(0).standard_normal((3, 20_000))
    worth = np.abs(dual @ np.maximum(fit.program.basis @ directions, 0.0)) / np.linalg.norm(directions, axis=0)
    assert np.max(worth) <= fit.program.beta
    assert np.max(worth) >= 0.98 * fit.program.beta


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_bound_of_every_descent_iterate_holds(loss: Loss) -> None:
    X, y, fit = solved(loss)
    network, basis = random_network(X, 1, width=6), fit.program.basis
    whitening = whiten(X)
    q = whitening.whitened_weights(network.weights)
    s = np.column_stack([q / np.linalg.norm(q, axis=1, keepdims=True) * network.gain[:, None], network.shift])
    v, bounds = network.outputs[:, 0], []
    for step in range(200):
        hidden = np.maximum(basis @ s.T, 0.0)
        slope = loss.gradient(hidden @ v, y)
        s, v = (
            s - 0.1 * (((slope[:, None] * (hidden > 0) * v).T @ basis) + fit.program.beta * s),
            v - 0.1 * (hidden.T @ slope + fit.program.beta * v),
        )
        if step % 20 == 0:
            certificate = judged(loss, recover(whitening, s, v[:, None]))
            bounds.append(certificate.bound)
            assert certificate.bound <= certificate.objective * (1.0 + 1e-12)
    assert max(bounds) <= optimum(loss) * (1.0 + 1e-9)


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_bound_of_a_sample_is_below_the_optimum_of_the_sampled_program(loss: Loss) -> None:
    X, _, fit = solved(loss, 5)
    sampled_optimum = optimum_of(fit.program)
    networks = [fit.network, zero_network(X), *(random_network(X, seed) for seed in range(10))]
    bounds = [judged(loss, network, fit.solution.dual, arrangements=5).bound for network in networks]
    assert max(bounds) <= sampled_optimum * (1.0 + 1e-9)
    assert bounds[0] >= sampled_optimum * (1.0 - 1e-6)
    assert sampled_optimum >= optimum(loss) * (1.0 - 1e-9)


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_network_from_outside_of_a_sample_is_not_contradicted(loss: Loss) -> None:
    X, y, sampled = solved(loss, 5)
    best = fit_convex_bn(X, y, beta=sampled.program.beta, loss=loss, arrangements="all", solver="CLARABEL")
    assert best.certificate.objective < sampled.certificate.bound * (1.0 - 1e-3)
    certificate = judged(loss, best.network, sampled.solution.dual, arrangements=5)
    assert certificate.bound <= certificate.objective == pytest.approx(best.certificate.objective, rel=1e-12)


@settings(max_examples=25)
@given(lattices(6, 2), st.sampled_from(LOSSES), st.integers(0, 100))
def test_gap_closes_on_lattices_with_duplicates_and_ties(X: np.ndarray, loss: Loss, seed: int) -> None:
    y = targets_for(loss, len(X), seed)
    fit = fit_convex_bn(X, y, beta=0.2, loss=loss, arrangements="all", solver=Conic("CLARABEL"))
    assert fit.certificate.evidence is Evidence.PROVED
    assert fit.certificate.bound <= fit.certificate.objective * (1.0 + 1e-12)
    assert fit.certificate.relative_gap <= 1e-6


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
@settings(max_examples=15)
@given(st.integers(0, 10**6), st.floats(-3.0, 3.0))
def test_affine_maps_of_the_features_change_nothing(loss: Loss, seed: int, shift: float) -> None:
    X, y, fit = solved(loss)
    generator = np.random.default_rng(seed)
    turn = np.linalg.qr(generator.standard_normal((2, 2)))[0]
    A = turn @ np.diag([1.0, 10.0**shift]) @ np.linalg.qr(generator.standard_normal((2, 2)))[0]
    image = X @ A + shift
    network = replace(fit.network, weights=np.linalg.solve(A, fit.network.weights.T).T).on(image)
    arrangements = enumerate_arrangements(whiten(image).basis)
    moved = certify(image, y, network, beta=fit.program.beta, loss=loss, arrangements=arrangements, dual=fit.solution.dual)
    assert moved.objective == pytest.approx(fit.certificate.objective, rel=1e-9)
    assert moved.bound == pytest.approx(fit.certificate.bound, rel=1e-7)


@pytest.mark.parametrize("power", [-440, 8, 440])
@pytest.mark.parametrize("outputs", [1, 2])
def test_unit_of_the_targets_changes_no_digit(power: int, outputs: int) -> None:
    """From 1e-132 to 1e132, where squares of prices leave float64: objective and estimate are the same."""
    X, y = np.random.default_rng(0).standard_normal((14, 4)), np.random.default_rng(1).standard_normal((14, outputs))
    unit, root = 2.0**power, 2.0 ** (power // 2)
    small = random_network(X, 5, outputs=outputs)
    large = replace(small, gain=root * small.gain, shift=root * small.shift, outputs=root * small.outputs)
    y = y[:, 0] if outputs == 1 else y
    certificates = [certify(X, s * y, network, beta=0.5 * s, seconds=0.0) for s, network in ((1.0, small), (unit, large))]
    for name in ("objective", "estimate"):
        one, other = (getattr(certificate, name) for certificate in certificates)
        assert other / unit / unit == pytest.approx(one, rel=1e-12)
    assert 0.0 < certificates[1].bound / unit / unit <= certificates[0].estimate * (1.0 + 1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_order_of_the_samples_changes_nothing(loss: Loss) -> None:
    X, y, fit = solved(loss)
    order = np.random.default_rng(1).permutation(len(y))
    arrangements = enumerate_arrangements(whiten(X[order]).basis)
    dual = fit.solution.dual[order]
    moved = certify(X[order], y[order], fit.network, beta=fit.program.beta, loss=loss, arrangements=arrangements, dual=dual)
    assert moved.objective == pytest.approx(fit.certificate.objective, rel=1e-12)
    assert moved.bound == pytest.approx(fit.certificate.bound, rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
@pytest.mark.parametrize("factor", [1.001, 2.0, 1e6])
def test_zero_network_has_no_gap_above_beta_max(loss: Loss, factor: float) -> None:
    X, y, fit = solved(loss)
    arrangements = fit.program.arrangements
    largest = beta_max(X, y, loss=loss, arrangements=arrangements)
    certificate = certify(X, y, zero_network(X), beta=factor * largest, loss=loss, arrangements=arrangements)
    assert certificate.objective == pytest.approx(loss.value(np.zeros(10), y), rel=1e-14)
    assert 0.0 <= certificate.gap <= 1e-9 * certificate.objective
    below = certify(X, y, zero_network(X), beta=0.99 * largest, loss=loss, arrangements=arrangements)
    assert below.gap > 1e-5 * below.objective


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
@pytest.mark.parametrize("factor", [1.01, 1e150])
def test_bound_above_beta_max_is_the_optimum_whatever_the_network(loss: Loss, factor: float) -> None:
    """There the zero network is optimal: the residual of any other one would give a lower bound."""
    problem = random_problem(loss, 9, 2, seed=4)
    beta = factor * beta_max(problem.X, problem.y, loss=loss, arrangements="all")
    certificate = certify(problem.X, problem.y, random_network(problem.X, 5), beta=beta, loss=loss, seconds=1.0)
    optimum = loss.value(np.zeros(9), problem.y)
    assert certificate.bound == pytest.approx(optimum, rel=2e-3 if factor < 2.0 else 1e-12)
    assert certificate.bound <= optimum * (1.0 + 1e-12) < certificate.objective


def test_gap_of_an_exact_fit_is_zero() -> None:
    X = solved(LOSSES[0])[0]
    certificate = certify(X, np.zeros(10), zero_network(X), beta=0.3, arrangements=solved(LOSSES[0])[2].program.arrangements)
    assert (certificate.objective, certificate.bound, certificate.gap, certificate.relative_gap) == (0.0, 0.0, 0.0, 0.0)
    assert certificate.accepts(0.0)


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_no_arrangements_stand_for_all_of_them(loss: Loss) -> None:
    X, y, fit = solved(loss)
    beta, dual = 0.5 * fit.beta_max, fit.solution.dual
    best = fit_convex_bn(X, y, beta=beta, loss=loss, arrangements="all", solver="CLARABEL")
    for network in (best.network, random_network(X, 1), zero_network(X)):
        certificate = certify(X, y, network, beta=beta, loss=loss, dual=dual)
        assert certificate.evidence is Evidence.PROVED
        assert certificate.bound <= best.certificate.objective * (1.0 + 1e-9)
    assert certify(X, y, best.network, beta=beta, loss=loss, dual=best.solution.dual).relative_gap <= 0.25


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_estimate_lies_between_bound_and_objective(loss: Loss) -> None:
    X = solved(loss)[0]
    for network in (solved(loss)[2].network, random_network(X, 1), zero_network(X)):
        certificate = judged(loss, network)
        assert certificate.bound <= certificate.estimate <= certificate.objective
        assert certificate.estimated_gap <= certificate.relative_gap


def test_all_patterns_of_other_data_prove_nothing() -> None:
    X, y, fit = solved(LOSSES[0])
    for other in (X[:, :1], X**3):
        with pytest.raises(InputError, match=r"^arrangements are not known to be all those of X: make them"):
            certify(X, y, fit.network, beta=0.3, arrangements=enumerate_arrangements(whiten(other).basis))
    same = enumerate_arrangements(whiten(X @ [[2.0, 1.0], [0.0, -1e3]] + 5.0).basis)
    assert certify(X, y, fit.network, beta=fit.program.beta, arrangements=same).accepts(1e-6)


def test_patterns_of_other_samples_are_refused() -> None:
    X, y, fit = solved(LOSSES[0])
    other: Arrangements = sample_arrangements(whiten(X[:-1]).basis, 5)
    with pytest.raises(InputError, match=r"^arrangements are patterns of 9 rows, but X has 10: make them from this X"):
        certify(X, y, fit.network, beta=0.3, arrangements=other)


def test_directions_that_whitening_drops_are_told():
    generator = np.random.default_rng(0)
    x, z = generator.standard_normal((2, 12))
    y = generator.standard_normal(12)
    nearly, exactly = np.column_stack([x, x + 1e-11 * z]), np.column_stack([x, x])
    assert "nearly collinear" in str(fit_convex_bn(nearly, y, beta=0.3).certificate)
    assert "nearly collinear" not in str(fit_convex_bn(exactly, y, beta=0.3).certificate)
