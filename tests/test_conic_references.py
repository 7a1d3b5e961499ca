"""Several outputs against the exact program: a semidefinite one for cones with at most four rays, which d = 1 and n <= 4 have."""

from __future__ import annotations

import numpy as np
import pytest
from conic_references import extreme_rays, nuclear_bound, optimum_with_outputs
from problems import LOSSES, Problem, best_of_lbfgs, objective_of, optimum_of, program_of, random_problem, several_targets

from convexbn import Loss, SlidingFrankWolfe, Softmax, beta_max, enumerate_arrangements, fit_convex_bn, whiten

smooth = pytest.mark.parametrize("loss", [*LOSSES[:3], Softmax()], ids=lambda loss: loss.name)


def line(loss: Loss, samples: int, outputs: int, seed: int) -> Problem:
    """One feature, several outputs."""
    X = np.random.default_rng(seed).standard_normal((samples, 1))
    return Problem("line", X, several_targets(loss, samples, outputs, seed), loss)


def exact(problem: Problem, beta: float) -> tuple[float, float]:
    """The optimum over all arrangements, and the nuclear norms' bound."""
    basis = whiten(problem.X).basis
    active = enumerate_arrangements(basis).active.astype(float)
    arguments = basis, problem.y, problem.loss, beta, active
    return optimum_with_outputs(*arguments), nuclear_bound(*arguments)


@smooth
@pytest.mark.parametrize("seed", range(2))
def test_the_fit_is_the_exact_optimum_and_its_bound_below(loss: Loss, seed: int) -> None:
    problem = line(loss, 5, 2 + seed, seed)
    beta = 0.2 * beta_max(problem.X, problem.y, loss=loss)
    fit = fit_convex_bn(problem.X, problem.y, beta=beta, loss=loss, solver=SlidingFrankWolfe(tolerance=1e-5), proof_seconds=0)
    optimum, nuclear = exact(problem, beta)
    assert objective_of(fit.network, problem, beta) == pytest.approx(optimum, rel=1e-6)
    assert fit.certificate.bound <= optimum * (1.0 + 1e-7)
    assert nuclear <= optimum * (1.0 + 1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_training_never_ends_below_the_exact_optimum_and_comes_near(seed: int) -> None:
    loss = LOSSES[0]
    problem = line(loss, 6, 2, seed)
    beta = 0.1 * beta_max(problem.X, problem.y)
    optimum, _ = exact(problem, beta)
    best = best_of_lbfgs(problem.X, problem.y, loss, beta, width=10, starts=20, seed=seed)
    assert optimum * (1.0 - 1e-7) <= best <= 1.02 * optimum


def test_nuclear_norms_are_a_loose_bound_and_equal_where_one_cone_is_enough() -> None:
    problem = line(LOSSES[0], 6, 2, 0)
    optimum, nuclear = exact(problem, 0.05 * beta_max(problem.X, problem.y))
    assert nuclear < 0.9 * optimum
    whitening = whiten(problem.X)
    one = np.ones((1, 6))
    targets = 3.0 + 0.1 * problem.y
    problem = Problem("nearly constant", problem.X, targets, LOSSES[0])
    assert optimum_with_outputs(whitening.basis, targets, LOSSES[0], 0.5, one) == pytest.approx(
        nuclear_bound(whitening.basis, targets, LOSSES[0], 0.5, one), rel=1e-6
    )


def test_one_output_is_the_cone_program() -> None:
    problem = random_problem(LOSSES[0], 8, 1, seed=3)
    whitening, program = program_of(problem)
    exact_value = optimum_with_outputs(whitening.basis, problem.y[:, None], problem.loss, program.beta, program.active)
    assert exact_value == pytest.approx(optimum_of(program), rel=1e-7)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_rays_of_a_square_basis_are_its_rows(n: int) -> None:
    basis = whiten(np.random.default_rng(n).standard_normal((n, n + 1))).basis
    rays = extreme_rays(basis)
    assert rays[np.argsort(rays[:, 0])] == pytest.approx(basis[np.argsort(basis[:, 0])], abs=1e-12)
