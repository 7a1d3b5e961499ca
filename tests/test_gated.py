"""The gated model: its program against CVXPY, its bound against weak duality, its network and module on points old and new."""

from __future__ import annotations

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch
from problems import LOSSES, Interrupting, degenerate_data, several_targets, targets_for

from convexbn import GatedNetwork, GatedProgram, GatedSolver, Status, fit_gated_bn
from convexbn.gated.gates import choose_gates
from convexbn.gated.module import GatedModule
from convexbn.gated.penalties import PENALTIES
from convexbn.losses import Hinge, Huber, Logistic, Loss, Softmax, Squared
from convexbn.solvers.masked import gated_patterns
from convexbn.validation import InputError
from convexbn.whitening import whiten

ALL_LOSSES = (*LOSSES, Softmax())
EXACT = GatedSolver(tolerance=1e-9, seconds=20.0)
STEPS = replace(EXACT, method="steps")
each_method = pytest.mark.parametrize("method", ["steps", "kernel"])
each_loss = pytest.mark.parametrize("loss", ALL_LOSSES, ids=lambda loss: loss.name)
each_penalty = pytest.mark.parametrize("penalty", ["group", "nuclear"])


def targets(loss: Loss, n: int, outputs: int) -> np.ndarray:
    return several_targets(loss, n, outputs, 3) if loss.name == "softmax" or outputs > 1 else targets_for(loss, n, 3)[:, None]


def random_program(loss: Loss, penalty: str = "group", outputs: int = 1, fraction: float = 0.1, gates: int = 6) -> GatedProgram:
    X = np.random.default_rng(0).standard_normal((15, 3))
    whitening = whiten(X)
    chosen = choose_gates(gates, whitening, 1)
    program = GatedProgram(whitening.basis, chosen, targets(loss, 15, outputs), loss, 1.0, PENALTIES[penalty])
    return program.with_beta(fraction * program.beta_max())


def optimum_of(program: GatedProgram) -> float:
    """The program written out and solved by Clarabel."""
    basis, y, loss = program.basis, program.y, program.loss
    blocks = [cp.Variable((basis.shape[1], y.shape[1])) for _ in program.gates]
    masks = gated_patterns(basis, program.gates)
    f = sum(cp.multiply(np.outer(mask, np.ones(y.shape[1])), basis @ block) for mask, block in zip(masks, blocks, strict=True))
    value = {
        "squared": lambda: cp.sum_squares(f - y) / 2,
        "huber": lambda: cp.sum(cp.huber(f - y, getattr(loss, "delta", 1.0))) / 2,
        "logistic": lambda: cp.sum(cp.logistic(-cp.multiply(y, f))),
        "hinge": lambda: cp.sum(cp.pos(1 - cp.multiply(y, f))),
        "softmax": lambda: cp.sum(cp.log_sum_exp(f, axis=1)) - cp.sum(cp.multiply(y, f)),
    }[loss.name]()
    norm = {"group": lambda block: cp.norm(block, "fro"), "nuclear": cp.normNuc}[program.penalty.name]
    problem = cp.Problem(cp.Minimize(value + program.beta * sum(norm(block) for block in blocks)))
    solver = "SCS" if program.penalty.name == "nuclear" else "CLARABEL"
    options = {"eps_abs": 1e-8, "eps_rel": 1e-8, "max_iters": 200_000} if solver == "SCS" else {}
    return float(problem.solve(solver=solver, **options))


@each_method
@each_loss
def test_one_output_against_cvxpy(loss: Loss, method: str):
    program = random_program(loss, outputs=3 if loss.name == "softmax" else 1)
    tolerance = 1e-2 if (loss.name, method) == ("hinge", "steps") else 1e-6  # its kinks are smoothed, the sharper the slower
    solution = GatedSolver(tolerance=tolerance, method=method).solve(program)
    assert solution.status is Status.OPTIMAL
    optimum = optimum_of(program)
    assert solution.bound <= optimum * (1.0 + 1e-6)
    assert solution.objective == pytest.approx(optimum, rel=2.0 * tolerance)


@each_penalty
@pytest.mark.parametrize("loss", [Squared(), Huber(0.7), Softmax()], ids=lambda loss: loss.name)
def test_several_outputs_against_cvxpy(loss: Loss, penalty: str):
    program = random_program(loss, penalty, outputs=3)
    optimum = optimum_of(program)
    for method in ("steps", "kernel"):
        solution = GatedSolver(tolerance=1e-7, method=method, seconds=20.0).solve(program)
        assert solution.objective == pytest.approx(optimum, rel=1e-6)
        assert solution.relative_gap <= 1e-7


@each_penalty
def test_a_problem_built_backwards_from_its_optimum(penalty: str):
    """With V = beta times a dual certificate and Y = f + V, the chosen weights are optimal, and their objective is known."""
    program = random_program(Squared(), penalty, outputs=2, gates=3)
    generator = np.random.default_rng(5)
    v = generator.standard_normal(program.y.shape)
    v /= program.price(v)
    gradient = program.operator.adjoint(torch.as_tensor(v))
    worth = program.penalty.dual_norms(gradient)
    best = int(worth.argmax())
    weights = torch.zeros_like(gradient)
    left, _, right = torch.linalg.svd(gradient[best], full_matrices=False)
    weights[best] = 0.7 * (gradient[best] if penalty == "group" else torch.outer(left[:, 0], right[0]))
    built = replace(program, y=program.predictions(weights) + 0.3 * v, beta=0.3)
    expected = 0.5 * 0.09 * np.sum(v**2) + 0.3 * float(program.penalty.norms(weights).sum())
    for solver in (EXACT, STEPS):
        solution = solver.solve(built)
        assert solution.objective == pytest.approx(expected, rel=1e-8)
        assert solution.bound == pytest.approx(expected, rel=1e-8)


@each_penalty
@each_loss
def test_the_bound_holds_at_any_point(loss: Loss, penalty: str):
    """Weak duality between random weights and random dual points."""
    program = random_program(loss, penalty, outputs=3)
    generator = np.random.default_rng(2)
    for size in (0.1, 1.0, 10.0):
        weights = torch.as_tensor(size * generator.standard_normal((len(program.gates), program.basis.shape[1], 3)))
        v = -loss.project(-size * generator.standard_normal(program.y.shape), program.y)
        assert program.bound(v, program.price(v))[0] <= program.objective(weights)


@each_penalty
def test_the_slope_of_a_prox_is_its_derivative(penalty: str):
    generator = torch.Generator().manual_seed(0)
    points, change = torch.randn((2, 7, 5, 3), dtype=torch.float64, generator=generator)
    points[0] *= 0.1
    norm = PENALTIES[penalty]
    value, slope = norm.prox(points, 1.3)
    numeric = (norm.prox(points + 1e-6 * change, 1.3)[0] - norm.prox(points - 1e-6 * change, 1.3)[0]) / 2e-6
    assert slope(change).numpy() == pytest.approx(numeric.numpy(), abs=1e-7)
    descent = (points - value) / 1.3
    assert float(norm.dual_norms(descent).max()) <= 1.0 + 1e-12
    assert (descent * value).sum((1, 2)).numpy() == pytest.approx(norm.norms(value).numpy(), abs=1e-12)


@each_penalty
def test_a_prox_within_the_dual_ball_is_exactly_nothing(penalty: str):
    """Not 1e-16 of the points: weights that are not 0 count as neurons, and keep arrangements in the working set."""
    norm = PENALTIES[penalty]
    points = torch.as_tensor(np.random.default_rng(0).standard_normal((200, 3, 2)))
    points *= (0.9 / norm.dual_norms(points))[:, None, None]
    for step in np.random.default_rng(1).uniform(0.1, 10.0, 20):
        assert not norm.prox(float(step) * points, float(step))[0].any()


def test_for_one_output_the_penalties_are_one():
    group, nuclear = (EXACT.solve(random_program(Logistic(), penalty)) for penalty in ("group", "nuclear"))
    assert group.objective == pytest.approx(nuclear.objective, rel=1e-8)


def test_for_several_outputs_the_group_penalty_is_smaller():
    group, nuclear = (random_program(Squared(), penalty, outputs=3) for penalty in ("group", "nuclear"))
    assert EXACT.solve(group.with_beta(0.3)).objective < EXACT.solve(nuclear.with_beta(0.3)).bound


@each_loss
def test_nothing_from_beta_max_on(loss: Loss):
    outputs = 3 if loss.name == "softmax" else 1
    above, below = (random_program(loss, outputs=outputs, fraction=fraction) for fraction in (1.0 + 1e-9, 0.9))
    solver = GatedSolver(tolerance=1e-3)
    assert not solver.solve(above).weights.any()
    assert solver.solve(below).weights.any()


def test_targets_may_have_any_unit():
    program = random_program(Squared(), outputs=2)
    plain = EXACT.solve(program)
    for unit in (1e-60, 1e60):
        scaled = EXACT.solve(replace(program, y=unit * program.y, beta=unit * program.beta))
        assert scaled.weights == pytest.approx(unit * plain.weights, rel=1e-3, abs=1e-4 * unit)
        assert scaled.objective == pytest.approx(unit**2 * plain.objective, rel=1e-8)


@each_penalty
@pytest.mark.parametrize("outputs", [1, 3])
def test_fit_predicts_and_exports(penalty: str, outputs: int):
    generator = np.random.default_rng(3)
    X, fresh = generator.standard_normal((40, 4)) * 3.0 + 100.0, generator.standard_normal((20, 4)) * 3.0 + 100.0
    fit = fit_gated_bn(X, targets(Squared(), 40, outputs), gates=15, penalty=penalty)
    weights = torch.as_tensor(fit.solution.weights)
    assert fit.predict(X).reshape(40, -1) == pytest.approx(fit.program.predictions(weights), abs=1e-10)
    assert fit.certificate.objective == pytest.approx(fit.solution.objective, rel=1e-9)
    assert fit.certificate.relative_gap <= 1e-4
    module = fit.to_torch()
    again = GatedModule(4, fit.whitening.rank + 1, len(fit.network.gates), outputs).double()
    again.load_state_dict(module.state_dict())
    for rows in (X, fresh):
        assert again(torch.as_tensor(rows)).detach().numpy() == pytest.approx(fit.predict(rows).reshape(len(rows), -1), abs=1e-10)
    assert "GATED" in str(fit)
    assert "not a ReLU network" in str(fit)
    assert "proved for the sampled program" in str(fit)


def test_new_points_go_through_the_gates():
    """By hand: a gate opens by the sign of phi(x)^T g, whatever its weights are."""
    X = np.random.default_rng(4).standard_normal((12, 2))
    whitening = whiten(X)
    gates = np.array([[1.0, 0.5, 0.1], [-1.0, 2.0, 0.0]])
    weights = np.random.default_rng(5).standard_normal((2, 3, 2))
    network = GatedNetwork(whitening, gates, weights)
    for x in np.random.default_rng(6).standard_normal((5, 2)):
        phi = np.append(
            (x - X.mean(axis=0)) @ (whitening.components / whitening.singular_values / whitening.scale[:, None]), 1 / np.sqrt(12)
        )
        by_hand = sum((phi @ gate >= 0) * (phi @ weight) for gate, weight in zip(gates, weights, strict=True))
        assert network.predict(x[None])[0] == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("name", sorted(degenerate_data()))
def test_degenerate_data(name: str):
    X = degenerate_data()[name]
    fit = fit_gated_bn(X, targets_for(Squared(), len(X), 2), gates=20, solver=EXACT)
    assert fit.solution.status is Status.OPTIMAL
    patterns = gated_patterns(fit.whitening.basis, fit.program.gates)
    assert len(np.unique(patterns, axis=0)) == len(patterns)
    assert patterns.any(axis=1).all()


def test_rank_truncates():
    X = np.random.default_rng(7).standard_normal((30, 5))
    fit = fit_gated_bn(X, targets_for(Squared(), 30, 2), gates=8, rank=2)
    assert fit.network.gates.shape[1] == 3


def test_a_start_saves_steps_and_an_answer_needs_none():
    program = random_program(Squared(), outputs=2)
    solver = GatedSolver(tolerance=1e-6, method="steps")
    cold = solver.solve(program)
    near = solver.solve(program.with_beta(0.97 * program.beta), cold.weights)
    assert near.iterations < solver.solve(program.with_beta(0.97 * program.beta)).iterations
    assert solver.solve(program, cold.weights).iterations == 0


def test_a_checkpoint_is_taken_up(tmp_path):
    program = random_program(Squared(), outputs=2, gates=6)
    file = tmp_path / "run.npz"
    solver = GatedSolver(tolerance=1e-8, precision="float64", method="steps")
    whole = solver.solve(program)
    part = replace(solver, checkpoint=file, iterations=15).solve(program)
    assert part.status is Status.LIMIT
    rest = replace(solver, checkpoint=file).solve(program)
    assert rest.relative_gap <= 1e-8
    assert part.iterations < rest.iterations <= whole.iterations + 15
    assert rest.objective == pytest.approx(whole.objective, rel=1e-8)
    with pytest.raises(InputError, match="other data, beta"):
        replace(solver, checkpoint=file).solve(program.with_beta(2.0))


def test_the_kernel_goes_on_from_its_checkpoint_bit_for_bit(tmp_path):
    program, file = random_program(Softmax(), outputs=2), tmp_path / "run.npz"
    solver = GatedSolver(tolerance=1e-9, method="kernel")
    whole = solver.solve(program)
    part = replace(solver, checkpoint=file, iterations=15).solve(program)
    assert part.status is Status.LIMIT
    rest = replace(solver, checkpoint=file).solve(program)
    assert rest.iterations == whole.iterations > 15
    assert np.array_equal(rest.weights, whole.weights)
    assert rest.bound == whole.bound
    with pytest.raises(InputError, match="other data, beta"):
        replace(solver, checkpoint=file, method="steps").solve(program)


@each_method
def test_there_are_no_more_steps_than_asked_for(method: str):
    solution = GatedSolver(tolerance=1e-15, iterations=7, method=method).solve(random_program(Squared()))
    assert (solution.iterations, solution.status) == (7, Status.LIMIT)


@each_method
def test_an_interrupt_returns_what_is_there_with_its_gap(method: str):
    X = np.random.default_rng(8).standard_normal((400, 20))
    whitening = whiten(X)
    y = targets_for(Squared(), 400, 1)[:, None]
    program = GatedProgram(whitening.basis, choose_gates(200, whitening, 0), y, Interrupting(30), 1e-4)
    solution = GatedSolver(tolerance=1e-15, method=method).solve(program)
    assert solution.status is Status.INTERRUPTED
    assert np.isfinite(solution.relative_gap)
    assert program.objective(torch.as_tensor(solution.weights)) == pytest.approx(solution.objective, rel=1e-12)
    assert solution.bound <= solution.objective


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gates": 0}, "^gates = 0 is too small"),
        ({"gates": np.ones((2, 7))}, r"^gates have shape \(2, 7\)"),
        ({"gates": np.zeros((2, 3))}, r"^gates have shape \(2, 3\).*none of them 0"),
        ({"penalty": "ridge"}, "^penalty = 'ridge' is unknown: choose 'group' or 'nuclear'"),
        ({"beta": -1.0}, "^beta = -1.0"),
        ({"start": np.zeros((3, 3))}, r"^start has shape \(3, 3\), not"),
        ({"loss": "softmax"}, "^y has one column"),
        ({"lean": np.nan}, "^lean = nan can't be used"),
        ({"lean": "much"}, "^lean = 'much' can't be used"),
        ({"lean": 100.0}, "^lean = 100.0 can't be used"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], message: str):
    X = np.random.default_rng(9).standard_normal((10, 2))
    with pytest.raises(InputError, match=message):
        fit_gated_bn(X, np.arange(10.0), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance"),
        ({"iterations": 0}, "iterations"),
        ({"precision": "half"}, "precision = 'half' is unknown"),
        ({"method": "adam"}, "method = 'adam'"),
    ],
)
def test_settings_are_checked(options: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        GatedSolver(**options)


@pytest.mark.parametrize("outputs", [1, 3])
def test_writing_a_small_matrix_out_changes_nothing(outputs: int, monkeypatch: pytest.MonkeyPatch):
    program = random_program(Squared(), outputs=outputs)
    written = GatedSolver(tolerance=1e-9, method="kernel").solve(program)
    monkeypatch.setattr("convexbn.gated.kernel.WRITTEN_OUT", 0)
    tiled = GatedSolver(tolerance=1e-9, method="kernel").solve(program)
    assert tiled.iterations == written.iterations
    assert tiled.weights == pytest.approx(written.weights, abs=1e-11)


def test_a_kernel_that_can_not_be_is_refused():
    program = random_program(Squared())
    with pytest.raises(InputError, match=r"^method = 'kernel' needs one process"):
        GatedSolver(method="kernel", precision="float32").solve(program)
    with pytest.raises(InputError, match=r"^method = 'kernel' needs one process"):
        GatedSolver(method="kernel").solve(replace(program, max_memory=5000))


def test_hinge_and_logistic_take_their_labels_only():
    X = np.random.default_rng(9).standard_normal((10, 2))
    for loss in (Hinge(), Logistic()):
        with pytest.raises(InputError, match="labels -1 and"):
            fit_gated_bn(X, np.arange(10.0), loss=loss)


def test_the_module_goes_through_torch_export_for_batches_of_any_size():
    X = np.random.default_rng(0).standard_normal((12, 3))
    module = fit_gated_bn(X, X[:, 0] ** 2, gates=5).to_torch()
    exported = torch.export.export(module, (torch.as_tensor(X[:4]),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with torch.no_grad():
        assert torch.equal(exported.module()(torch.as_tensor(X)), module(torch.as_tensor(X)))
