"""Gap-safe screening: the radius where it is attained, what it leaves out against optima found without it, and the solver that uses it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import several_targets, targets_for

from convexbn import GatedProgram, GatedSolver, Hinge, Huber, Logistic, Loss, Softmax, Squared, Status
from convexbn.gated.fit import choose_gates
from convexbn.gated.penalties import PENALTIES
from convexbn.screening import safe_radius
from convexbn.whitening import whiten

LOSSES = [Squared(), Huber(0.7), Logistic(), Softmax()]


def program_of(loss: Loss, penalty: str, fraction: float, scale: float = 1.0, gates: int = 40) -> GatedProgram:
    """On a basis `scale` U'."""
    whitening = whiten(np.random.default_rng(0).standard_normal((60, 4)))
    y = several_targets(loss, 60, 3, 1) if loss.name == "softmax" or penalty == "nuclear" else targets_for(loss, 60, 1)[:, None]
    program = GatedProgram(scale * whitening.basis, choose_gates(gates, whitening, 0), y, loss, 1.0, PENALTIES[penalty])
    return program.with_beta(fraction * program.beta_max())


def test_the_radius_is_attained():
    """Squared loss, beta so large that nothing carries weight: V* = y, and the gap of V with S = 0 is ||V - y||^2 / 2."""
    y, v = np.random.default_rng(0).standard_normal((2, 30))
    gap = Squared().value(np.zeros(30), y) + Squared().conjugate(-v, y)
    assert safe_radius(Squared(), gap) == pytest.approx(np.linalg.norm(v - y), rel=1e-12)


def test_losses_with_kinks_have_no_radius_and_rounding_no_negative_one():
    assert safe_radius(Hinge(), 0.1) == np.inf
    assert safe_radius(Squared(), -1e-17) == 0.0


@pytest.mark.parametrize(
    ("loss", "penalty"), [(loss, "group") for loss in LOSSES] + [(Squared(), "nuclear"), (Softmax(), "nuclear")], ids=str
)
def test_the_optimal_dual_point_is_within_the_radius_of_any_feasible_one(loss: Loss, penalty: str):
    """And what is left out at the radius carries no weight at the optimum that the kernel finds over all gates."""
    program = program_of(loss, penalty, 0.4)
    best = GatedSolver(tolerance=1e-11, method="kernel").solve(program)
    generator, out = np.random.default_rng(2), 0
    for away in (1.0, 0.3, 0.1, 0.01, 1e-3, 1e-4):
        weights = torch.as_tensor((1.0 + away * generator.standard_normal(best.weights.shape)) * best.weights)
        v = -loss.gradient(program.predictions(weights), program.y)
        worths = program.worths(v)
        bound, scale = program.bound(v, float(worths.max()))
        radius = safe_radius(loss, program.objective(weights) - bound)
        assert np.linalg.norm(scale * v - best.dual) <= radius
        gone = (scale * worths.numpy() + radius * program.reach) < program.beta
        assert not best.weights[gone].any()
        out = max(out, int(gone.sum()))
    assert out > 20


@pytest.mark.parametrize("start", [None, "near"])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_the_solver_leaves_them_out_and_finds_the_optimum(scale: float, start: str | None, monkeypatch: pytest.MonkeyPatch):
    """On a basis that is no whitening too; the bound is one for all gates."""
    program = program_of(Squared(), "group", 0.3, scale)
    sizes, take = [], GatedProgram.take

    def recording(self: GatedProgram, arrangements: torch.Tensor) -> GatedProgram:
        sizes.append(len(arrangements))
        return take(self, arrangements)

    monkeypatch.setattr(GatedProgram, "take", recording)
    best = GatedSolver(tolerance=1e-11, method="kernel").solve(program)
    assert not sizes
    solver = GatedSolver(tolerance=1e-9, method="steps", precision="float64")
    begin = None if start is None else GatedSolver(tolerance=1e-4).solve(program.with_beta(1.01 * program.beta)).weights
    solution = solver.solve(program, begin)
    assert solution.status is Status.OPTIMAL
    assert 0 < min(sizes) <= 0.7 * 40
    assert solution.weights.shape == best.weights.shape
    assert solution.objective == pytest.approx(best.objective, rel=1e-9)
    assert float(program.worths(solution.dual).max()) <= program.beta * (1.0 + 1e-12)
    assert program.objective(torch.as_tensor(solution.weights)) == pytest.approx(solution.objective, rel=1e-12)


def test_a_checkpoint_knows_what_was_left_out(tmp_path):
    program, file = program_of(Squared(), "group", 0.3), tmp_path / "run.npz"
    solver = GatedSolver(tolerance=1e-10, method="steps", precision="float64")
    whole = solver.solve(program)
    broken = replace(solver, checkpoint=file, iterations=whole.iterations - 5).solve(program)
    assert broken.status is Status.LIMIT
    with np.load(file) as saved:
        assert len(saved["kept"]) < 40
    rest = replace(solver, checkpoint=file).solve(program)
    assert rest.status is Status.OPTIMAL
    assert rest.objective == pytest.approx(whole.objective, rel=1e-9)
