"""The active set over listed arrangements, against Clarabel, duality, and problems built from their optimum."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from problems import LOSSES, Problem, degenerate_problems, objective_after, optimum_of, program_of, random_problem

from convexbn import (
    ActiveSet,
    Arrangements,
    Evidence,
    Hinge,
    InputError,
    Loss,
    Pooling,
    Program,
    Squared,
    Status,
    beta_max,
    certify,
    fit_convex_bn,
    sample_arrangements,
    whiten,
)
from convexbn.choices import choose_solver
from convexbn.pricing import price_arrangements
from convexbn.shards import Shards
from convexbn.solution import Solution
from convexbn.solvers import ClosedForm, Conic
from convexbn.solvers.active_set.blocks import blocks_of
from convexbn.solvers.active_set.proximal import ProximalPoint, SmoothLoss

each_loss = pytest.mark.parametrize("loss", LOSSES, ids=str)
SHAPES = [(12, 1), (10, 2), (6, 3)]
PROBLEMS = [random_problem(loss, *shape, seed) for loss in LOSSES for seed, shape in enumerate(SHAPES)] + degenerate_problems()


def sampled(n: int, d: int, count: int, fraction: float, loss: Loss | None = None, seed: int = 0) -> Program:
    """A program over a sample of arrangements, beta a fraction of its beta_max."""
    problem = random_problem(loss or Squared(), n, d, seed)
    basis = whiten(problem.X).basis
    arrangements = sample_arrangements(basis, count)
    pull = -problem.loss.gradient(np.zeros(n), problem.y)
    beta = fraction * price_arrangements(basis, pull, arrangements.active, complete=False).upper
    return Program(basis, problem.y, problem.loss, beta, arrangements)


def objective_of(solution: Solution, program: Program) -> float:
    """As a network on the basis."""
    f = program.pooling.pool(np.maximum(program.basis @ solution.directions.T, 0.0)) @ solution.outputs[:, 0]
    return program.loss.value(f, program.y) + program.beta * float(np.abs(solution.outputs).sum())


def violation(solution: Solution, program: Program) -> float:
    """How far the worst neuron is from the nearest cone of the list, relative to its largest pre-activation."""
    images = program.basis @ solution.directions.T
    broken = [np.min(np.max(-(2.0 * program.active - 1.0) * image, axis=1)) / np.max(np.abs(image)) for image in images.T]
    return float(np.max(broken, initial=0.0))


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_network_attains_the_convex_optimum(problem: Problem):
    whitening, program = program_of(problem)
    solution = ActiveSet().solve(program)
    assert solution.status is Status.OPTIMAL
    assert objective_after(solution, whitening, problem, program.beta) == pytest.approx(optimum_of(program), rel=1e-6, abs=1e-6)
    assert violation(solution, program) <= 1e-9


@each_loss
@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.99])
def test_a_sample_against_its_dual_and_clarabel(loss: Loss, fraction: float):
    """The bound comes from a projection for each cone by itself, as the certificate computes it."""
    program = sampled(60, 4, 30, fraction, loss)
    solution = ActiveSet().solve(program)
    objective = objective_of(solution, program)
    assert objective == pytest.approx(optimum_of(program), rel=2e-6)
    assert violation(solution, program) <= 1e-9
    assert solution.trace[-1].gap <= 1e-7
    assert solution.trace[-1].objective == pytest.approx(objective, rel=1e-12)
    v = -loss.project(-solution.dual, program.y)
    price = price_arrangements(program.basis, v, program.arrangements.active, complete=False).upper
    assert price <= program.beta * (1.0 + 1e-9)
    assert objective * (1.0 - 2e-7) <= program.dual_objective(v * min(1.0, program.beta / price)) <= objective


@pytest.mark.parametrize("name", ["squared", "logistic"])
def test_beta_near_zero(name: str):
    program = sampled(30, 2, 12, 1e-3, next(loss for loss in LOSSES if loss.name == name))
    solution = ActiveSet(tolerance=1e-6).solve(program)
    assert solution.status is Status.OPTIMAL
    assert objective_of(solution, program) * (1.0 - 1e-5) <= optimum_of(program)


@pytest.mark.parametrize("seed", range(4))
def test_a_problem_built_backwards_from_its_optimum(seed: int):
    """Any V is optimal for y = f + V if f is made of the neuron that V values most, and beta is its price."""
    generator = np.random.default_rng(seed)
    basis = whiten(generator.standard_normal((80, 6))).basis
    arrangements, v = sample_arrangements(basis, 40, seed=seed), generator.standard_normal(80)
    price = price_arrangements(basis, v, arrangements.active, complete=False)
    direction, sign = price.directions[0], float(price.outputs[0, 0])
    amplitude = 3.0
    y = sign * amplitude * np.maximum(basis @ direction, 0.0) + v
    program = Program(basis, y, Squared(), price.lower, arrangements)
    solution = ActiveSet(tolerance=1e-10).solve(program)
    assert objective_of(solution, program) == pytest.approx(0.5 * v @ v + price.lower * amplitude, rel=1e-9)
    assert solution.dual == pytest.approx(v, abs=2e-4)  # the gap bounds its square
    assert solution.outputs.sum() == pytest.approx(sign * amplitude, rel=1e-4)


def test_near_beta_max_one_neuron_and_beyond_it_none():
    program = sampled(50, 3, 20, 0.999)
    assert len(ActiveSet(tolerance=1e-12).solve(program).outputs) >= 1
    beyond = ActiveSet().solve(replace(program, beta=program.beta * 1.002))
    assert len(beyond.outputs) == 0
    assert beyond.status is Status.OPTIMAL


def test_the_basis_need_not_be_orthonormal():
    generator = np.random.default_rng(3)
    basis = generator.standard_normal((60, 4)) * [1.0, 10.0, 0.1, 1.0] @ generator.standard_normal((4, 4))
    y = generator.standard_normal(60)
    active = np.unique((basis @ generator.standard_normal((4, 30))).T >= 0, axis=0)
    program = Program(basis, y, Squared(), 5.0, Arrangements(active, complete=False, possible=10**6))
    solution = ActiveSet().solve(program)
    assert solution.status is Status.OPTIMAL
    assert objective_of(solution, program) == pytest.approx(optimum_of(program), rel=1e-7)


def test_patches_are_pooled():
    generator = np.random.default_rng(4)
    basis = whiten(generator.standard_normal((60, 3))).basis
    program = Program(basis, generator.standard_normal(20), Squared(), 0.1, sample_arrangements(basis, 20), Pooling(3, 1.0 / 3.0))
    active, conic = (objective_of(solver.solve(program), program) for solver in (ActiveSet(), Conic()))
    assert active == pytest.approx(conic, rel=1e-7)


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_the_unit_of_the_targets_does_not_matter(unit: float):
    program = sampled(50, 3, 20, 0.1)
    scaled = ActiveSet().solve(replace(program, y=unit * program.y, beta=unit * program.beta))
    plain = ActiveSet().solve(program)
    assert scaled.directions == pytest.approx(plain.directions, abs=1e-6)
    assert scaled.outputs == pytest.approx(unit * plain.outputs, rel=1e-4)


@pytest.mark.parametrize("loss", [Squared(), LOSSES[2]], ids=str)
def test_a_proximal_step_is_the_fixed_point_of_its_prox(loss: Loss):
    """s = prox(t - sigma M^T grad L(M s)), the prox computed from one projection after the other."""
    program = sampled(40, 3, 10, 0.05, loss)
    blocks, generator = blocks_of(program), np.random.default_rng(0)
    chosen = np.arange(20)
    start = blocks.cones.project(blocks.index(chosen), generator.standard_normal((20, 4)), blocks.cones.no_faces(20))[0]
    target, sigma = SmoothLoss(loss, program.y), 3.0
    step = ProximalPoint(blocks, target, chosen, start, program.beta, sigma)
    weights, f, faces, solved, _ = step.solve(blocks.predictions(chosen, start), blocks.cones.no_faces(20))
    for _ in range(3):
        weights, f, faces, solved, _ = step.solve(f, faces)
    assert solved
    assert f == pytest.approx(program.forward(weights.reshape(2, 10, 4)), abs=1e-10)
    pull = program.adjoint(target.gradient(f)).reshape(20, 4)
    points = start - sigma * pull
    for b in range(20):
        price = price_of(points[b], program.basis, program.arrangements.active[b % 10])
        expected = max(0.0, 1.0 - sigma * program.beta / np.linalg.norm(price)) * price if np.any(price) else price
        assert weights[b] == pytest.approx(expected, abs=0.06 * np.linalg.norm(weights - start))


def price_of(point: np.ndarray, basis: np.ndarray, active: np.ndarray) -> np.ndarray:
    """The projection of a point on a cone, by non-negative least squares on all rows."""
    from scipy.optimize import nnls

    rows = (2.0 * active - 1.0)[:, None] * basis
    return point + rows.T @ nnls(rows.T, -point)[0]


class Interrupting(Squared):
    """A loss that presses Ctrl-C at a given call."""

    def __init__(self, calls: int) -> None:
        object.__setattr__(self, "left", [calls])

    def gradient(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        self.left[0] -= 1
        if self.left[0] == 0:
            raise KeyboardInterrupt
        return super().gradient(f, y)

    def __repr__(self) -> str:
        return "interrupting"


@pytest.mark.parametrize("calls", [20, 45])
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(calls: int, tmp_path: Path):
    program, file = sampled(80, 4, 30, 0.05), tmp_path / "run.npz"
    whole = ActiveSet(tolerance=1e-10).solve(replace(program, loss=Interrupting(0)))
    broken = ActiveSet(tolerance=1e-10, checkpoint=file).solve(replace(program, loss=Interrupting(calls)))
    assert broken.status is Status.INTERRUPTED
    assert len(broken.outputs) > 0
    assert violation(broken, program) <= 1e-9
    assert broken.trace[-1].objective >= whole.trace[-1].objective
    resumed = ActiveSet(tolerance=1e-10, checkpoint=file).solve(replace(program, loss=Interrupting(0)))
    for one, other in ((whole.directions, resumed.directions), (whole.outputs, resumed.outputs), (whole.dual, resumed.dual)):
        assert np.array_equal(one, other)
    assert [entry.gap for entry in whole.trace] == [entry.gap for entry in resumed.trace]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path):
    program = sampled(30, 2, 10, 0.1)
    solver = ActiveSet(checkpoint=tmp_path / "run.npz", rounds=1)
    assert solver.solve(program).status is Status.LIMIT
    others = [replace(program, beta=1.1), replace(program, y=-program.y), sampled(30, 2, 11, 0.1)]
    for other in others:
        with pytest.raises(InputError, match="checkpoint"):
            solver.solve(other)


def test_a_warm_start_ends_at_once_and_foreign_neurons_are_left_out():
    program = sampled(80, 4, 40, 0.1)
    cold = ActiveSet().solve(program)
    generator = np.random.default_rng(0)
    foreign = generator.standard_normal((3, 5))
    start = (
        np.concatenate([cold.directions, foreign / np.linalg.norm(foreign, axis=1)[:, None]]),
        np.concatenate([cold.outputs, np.ones((3, 1))]),
    )
    warm = ActiveSet(warm_start=start).solve(program)
    assert len(warm.trace) <= 2 < len(cold.trace)
    assert warm.trace[-1].objective == pytest.approx(cold.trace[-1].objective, rel=1e-7)


def test_a_program_without_a_list_is_refused():
    program = sampled(20, 2, 10, 0.1)
    with pytest.raises(InputError, match="not listed"):
        ActiveSet().solve(replace(program, arrangements=None))
    with pytest.raises(InputError, match="tolerance"):
        ActiveSet(tolerance=0.0)


def test_little_memory_changes_nothing_but_the_tiles_and_too_little_is_refused():
    program = sampled(200, 5, 40, 0.05)
    plain, tight = ActiveSet().solve(program), ActiveSet(max_memory=40_000).solve(program)
    assert tight.directions == pytest.approx(plain.directions, abs=1e-9)
    assert tight.outputs == pytest.approx(plain.outputs, rel=1e-9)
    with pytest.raises(InputError, match="max_memory"):
        ActiveSet(max_memory=1000).solve(program)


def test_patches_in_little_memory_are_pooled_in_the_same_way():
    generator = np.random.default_rng(4)
    basis = whiten(generator.standard_normal((120, 3))).basis
    program = Program(basis, generator.standard_normal(40), Squared(), 0.1, sample_arrangements(basis, 20), Pooling(3, 1.0 / 3.0))
    plain, tight = (ActiveSet(max_memory=memory).solve(program) for memory in (2**30, 20_000))
    assert tight.outputs == pytest.approx(plain.outputs, rel=1e-9)


def test_every_tensor_names_its_device():
    """Tensors that don't are made on PyTorch's default device, here one without numbers: they could not be used with the others."""
    import torch

    program = sampled(60, 3, 20, 0.1)
    plain = ActiveSet().solve(program)
    with torch.device("meta"):
        solution = ActiveSet(warm_start=(plain.directions, plain.outputs)).solve(program)
        assert np.array_equal(ActiveSet().solve(program).directions, plain.directions)
    assert solution.status is Status.OPTIMAL


def test_without_pytorch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"convexbn\[torch\]"):
        ActiveSet().solve(sampled(20, 2, 10, 0.1))


def test_samples_are_not_spread():
    with pytest.raises(InputError, match="samples"):
        ActiveSet(shards=Shards(samples=object()))


def test_the_whole_line_with_a_sample():
    X, y = np.random.default_rng(0).standard_normal((2, 100, 5))
    y = np.maximum(X @ [1.0, -1.0, 0.5, 0.0, 2.0], 0.0) + 0.1 * y[:, 0]
    beta = 0.1 * beta_max(X, y, arrangements=50)
    fit = fit_convex_bn(X, y, beta=beta, arrangements=50, solver="active set")
    assert fit.solution.solver == "active set"
    assert fit.certificate.evidence is Evidence.SAMPLED
    assert fit.certificate.relative_gap <= 1e-6
    again = certify(X, y, fit.network, beta=beta, arrangements=fit.program.arrangements)
    assert again.relative_gap <= 1e-5


def test_the_automatic_choice_is_the_active_set_where_writing_out_costs_more():
    X, y = np.random.default_rng(0).standard_normal((2, 300, 5))
    whitening, targets = whiten(X), y[:, 0]
    assert isinstance(choose_solver("auto", 100, whitening, targets, Squared()), ActiveSet)
    assert isinstance(choose_solver("auto", 3, whitening, targets, Squared()), Conic)
    assert isinstance(choose_solver("auto", 50, whitening, np.sign(targets), Hinge()), Conic)
    assert isinstance(choose_solver("active set", 3, whitening, targets, Squared()), ActiveSet)
    assert isinstance(choose_solver("auto", "auto", whiten(X[:5]), targets[:5], Squared()), ClosedForm)
