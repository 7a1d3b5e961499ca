"""Batch normalisation after the ReLU: against the paper's form of the program, closed forms, training, and PyTorch."""

from __future__ import annotations

import warnings
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from conic_references import expression_of
from problems import LOSSES, grid, raw_loss, several_targets, targets_for
from scipy.linalg import null_space
from scipy.optimize import linprog, minimize

from convexbn import Evidence, InputError, Loss, Network, certify, certify_post_bn, fit_post_bn, from_torch
from convexbn.post_bn.program import arrangements_of, cell_of, span_of

each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
GENERAL = np.random.default_rng(0).standard_normal((8, 2))
DATA = {
    "general": GENERAL,
    "three features": np.random.default_rng(1).standard_normal((7, 3)),
    "one feature": GENERAL[:, :1],
    "bias column": np.column_stack([GENERAL[:6, 0], np.ones(6)]),
    "duplicates and opposites": np.vstack([GENERAL[:3], GENERAL[:2], -GENERAL[1:3]]),
    "a row of zeros": np.vstack([GENERAL[:6], np.zeros(2)]),
    "lattice": grid(3, 2)[1:] - 1.0,
    "rank deficient": np.column_stack([GENERAL[:7], GENERAL[:7] @ [1.0, -2.0]]),
    "units": GENERAL[:7] * [1e6, 1e-6],
}
each_data = pytest.mark.parametrize("X", DATA.values(), ids=list(DATA))


def patterns(X: np.ndarray) -> np.ndarray:
    """Every pattern 1[x_i^T w > 0] of a w off the hyperplanes of the rows that are not zero, by a linear program for each of 2^n."""
    rows = X / np.maximum(np.linalg.norm(X / np.abs(X).max(axis=0), axis=1, keepdims=True), 1e-300) / np.abs(X).max(axis=0)
    seen, found = np.any(X != 0, axis=1), []
    for number in range(2 ** int(seen.sum())):
        row = np.zeros(len(X), dtype=bool)
        row[seen] = [bool(number >> i & 1) for i in range(int(seen.sum()))]
        signed = np.where(row, -1.0, 1.0)[seen, None] * rows[seen]
        solution = linprog(np.zeros(X.shape[1]), signed, -np.ones(len(signed)), bounds=(None, None))
        found += [row] if solution.status == 0 else []
    return np.array(found)


def optimum_by_factors(X: np.ndarray, y: np.ndarray, loss: Loss, beta: float, active: np.ndarray) -> float:
    """The program as the paper writes it, in q_i and t_i, with a free z_i in the null space of Pi D_i X."""
    n = len(X)
    f: Any = 0
    penalty: Any = 0
    constraints = []
    for row in active:
        masked = row[:, None] * X
        centred = masked - masked.mean(axis=0)
        left, values, right = np.linalg.svd(centred, full_matrices=False)
        rank = int(np.sum(values > 1e-10 * max(1.0, values[0])))
        null, sides = null_space(centred, rcond=1e-10), np.where(row, 1.0, -1.0)
        for sign in (1.0, -1.0):
            q, t = cp.Variable(max(rank, 1)), cp.Variable()
            if rank:
                f = f + sign * left[:, :rank] @ q
                w = right[:rank].T / values[:rank] @ q + (null @ cp.Variable(null.shape[1]) if null.shape[1] else 0)
                constraints.append(cp.multiply(sides, X @ w) >= 0)
            f = f + sign * t * np.ones(n) / np.sqrt(n)
            penalty = penalty + cp.norm(cp.hstack([q, t]))
    problem = cp.Problem(cp.Minimize(expression_of(loss, cp.reshape(f, (n, 1), order="F"), y[:, None]) + beta * penalty), constraints)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(problem.solve(solver="CLARABEL", tol_gap_rel=1e-9, tol_gap_abs=1e-9, tol_feas=1e-9))


def post_objective(X: Any, y: Any, loss: Loss, beta: float, w: Any, g: Any, a: Any, v: Any) -> torch.Tensor:
    """The objective from its definition: w (..., d, m); g, a (..., m); v (..., C, m); y (n, C)."""
    z = torch.relu(X @ w)
    z = z - z.mean(dim=-2, keepdim=True)
    norm = torch.linalg.vector_norm(z, dim=-2, keepdim=True)
    z = torch.where(norm > 0, z / torch.where(norm > 0, norm, 1.0), 0.0)
    f = v @ (g.unsqueeze(-2) * z + a.unsqueeze(-2) / len(X) ** 0.5).mT
    return raw_loss(loss, f, y.mT).sum(-1) + 0.5 * beta * ((g**2 + a**2).sum(-1) + (v**2).sum((-2, -1)))


def objective_of(network: Network, X: np.ndarray, y: np.ndarray, loss: Loss, beta: float) -> float:
    """From weights, gains, shifts and outputs alone."""
    parts = X, y.reshape(len(y), -1), network.weights.T, network.gain, network.shift, network.outputs.T
    data, targets, w, g, a, v = (torch.as_tensor(np.ascontiguousarray(part), dtype=torch.float64) for part in parts)
    return float(post_objective(data, targets, loss, beta, w, g, a, v))


def best_of_lbfgs(X: np.ndarray, y: np.ndarray, loss: Loss, beta: float, width: int, starts: int) -> float:
    """The lowest objective that L-BFGS reaches from random starts, all of them at once."""
    data, targets = (torch.as_tensor(array, dtype=torch.float64) for array in (X, y.reshape(len(y), -1)))
    parts = (X.shape[1], 1, 1, targets.shape[1])
    best = np.inf

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        parameters = torch.tensor(flat.reshape(starts, sum(parts), width), requires_grad=True)
        w, g, a, v = parameters.split(parts, dim=1)
        values = post_objective(data, targets, loss, beta, w, g[:, 0], a[:, 0], v)
        (slope,) = torch.autograd.grad(values.sum(), parameters)
        best = min(best, values.min().item())
        return values.sum().item(), np.nan_to_num(slope.numpy().ravel())

    start = np.random.default_rng(0).standard_normal(starts * sum(parts) * width)
    minimize(evaluate, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "maxfun": 1000})
    return best


@each_data
def test_arrangements_are_those_of_the_rows_without_a_bias(X: np.ndarray) -> None:
    found = arrangements_of(span_of(X).basis, limit=10_000).active
    assert {row.tobytes() for row in found} == {row.tobytes() for row in patterns(X)}
    assert len(found) == len({row.tobytes() for row in found})


@each_data
@each_loss
def test_the_network_is_the_optimum_of_the_papers_program(X: np.ndarray, loss: Loss) -> None:
    y = targets_for(loss, len(X), 3)
    fit = fit_post_bn(X, y, loss=loss)
    scaled = X / np.abs(X).max(axis=0)
    expected = optimum_by_factors(scaled, y, loss, fit.beta, arrangements_of(span_of(X).basis, limit=10_000).active)
    assert objective_of(fit.network, X, y, loss, fit.beta) == pytest.approx(expected, rel=2e-6)
    assert fit.certificate.objective == pytest.approx(expected, rel=2e-6)
    assert fit.certificate.bound <= expected * (1.0 + 1e-6)
    assert fit.certificate.accepts(1e-5)
    assert fit.certificate.evidence is Evidence.PROVED


@pytest.mark.parametrize("name", ["general", "three features", "bias column"])
def test_training_never_ends_below_the_optimum_and_comes_near(name: str) -> None:
    X = DATA[name]
    y = targets_for(LOSSES[0], len(X), 3)
    fit = fit_post_bn(X, y)
    best = best_of_lbfgs(X, y, LOSSES[0], fit.beta, width=12, starts=20)
    assert fit.certificate.objective * (1.0 - 1e-7) <= best <= 1.1 * fit.certificate.objective


@each_loss
@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_closed_form_is_the_conic_optimum_over_all_arrangements(loss: Loss, fraction: float) -> None:
    X, y = np.random.default_rng(2).standard_normal((4, 5)), targets_for(loss, 4, 1)
    beta = fraction * fit_post_bn(X, y, loss=loss).beta_max
    closed = fit_post_bn(X, y, beta=beta, loss=loss)
    conic = fit_post_bn(X, y, beta=beta, loss=loss, solver="CLARABEL")
    assert closed.solver == "closed form"
    assert conic.solver == "CLARABEL"
    assert len(conic.arrangements) == 16
    assert closed.certificate.objective == pytest.approx(conic.certificate.objective, rel=1e-6)
    assert closed.certificate.relative_gap <= 1e-9
    assert closed.network.neurons == 1


@pytest.mark.parametrize("outputs", [2, 4])
@pytest.mark.parametrize("fraction", [0.1, 0.6])
def test_several_outputs_shrink_the_singular_values_of_the_targets(outputs: int, fraction: float) -> None:
    X, Y = np.random.default_rng(3).standard_normal((6, 6)), several_targets(LOSSES[0], 6, outputs, 0)
    left, values, right = np.linalg.svd(Y, full_matrices=False)
    beta = fraction * values[0]
    fit = fit_post_bn(X, Y, beta=beta)
    kept = np.maximum(values - beta, 0.0)
    assert fit.beta_max == pytest.approx(values[0], rel=1e-10)
    assert fit.predict(X) == pytest.approx((left * kept) @ right, abs=1e-10)
    expected = 0.5 * np.sum(np.minimum(values, beta) ** 2) + beta * kept.sum()
    assert objective_of(fit.network, X, Y, LOSSES[0], beta) == pytest.approx(expected, rel=1e-10)
    assert fit.certificate.bound == pytest.approx(expected, rel=1e-10)
    assert fit.network.neurons == np.sum(kept > 0)
    assert expected * (1.0 - 1e-9) <= best_of_lbfgs(X, Y, LOSSES[0], beta, width=8, starts=10) <= 1.05 * expected


@pytest.mark.parametrize("constant", [2.0, -2.0])
def test_constant_targets_need_the_shift_alone(constant: float) -> None:
    fit = fit_post_bn(np.random.default_rng(0).standard_normal((4, 4)), np.full(4, constant), beta=1.0)
    assert fit.certificate.objective == pytest.approx(4.0 - 0.5, rel=1e-12)
    assert fit.network.gain == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", ["general", "a row of zeros", "units", "square"])
def test_export_is_the_network_in_both_modes(name: str) -> None:
    X = np.random.default_rng(5).standard_normal((5, 6)) if name == "square" else DATA[name]
    y = targets_for(LOSSES[0], len(X), 2)
    fit, rows = fit_post_bn(X, y), torch.as_tensor(X)
    model = fit.to_torch()
    assert [type(layer).__name__ for layer in model] == ["Linear", "ReLU", "BatchNorm1d", "Linear"]
    assert model.eval()(rows)[:, 0].detach().numpy() == pytest.approx(fit.predict(X), abs=1e-10)
    assert model.train()(rows)[:, 0].detach().numpy() == pytest.approx(fit.predict(X), abs=1e-10)
    new = np.abs(X).max(axis=0) * np.random.default_rng(1).standard_normal((3, X.shape[1]))
    assert fit.to_torch().eval()(torch.as_tensor(new))[:, 0].detach().numpy() == pytest.approx(fit.predict(new), abs=1e-10)
    back = from_torch(fit.to_torch(), X)
    assert back.relu_first
    assert back.objective(X, y, LOSSES[0], fit.beta) == pytest.approx(fit.certificate.objective, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_certificate_of_any_network_holds(seed: int) -> None:
    X, generator = DATA["general"], np.random.default_rng(seed)
    y = targets_for(LOSSES[0], len(X), 3)
    optimum = fit_post_bn(X, y, beta=0.1)
    parts = (
        generator.standard_normal((3, 2)),
        np.zeros(3),
        np.ones(3),
        *generator.standard_normal((2, 3)),
        generator.standard_normal((3, 1)),
    )
    random = Network(*parts, len(X), relu_first=True).on(X)
    judged = certify_post_bn(X, y, random, beta=0.1)
    assert judged.objective == pytest.approx(objective_of(random, X, y, LOSSES[0], 0.1), rel=1e-12)
    assert judged.bound <= optimum.certificate.objective
    assert not judged.accepts(1e-2)
    assert certify_post_bn(X, y, optimum.network, beta=0.1).accepts(1e-6)


def test_the_price_of_a_cell_is_the_best_neuron_in_it() -> None:
    X, v = DATA["three features"], np.random.default_rng(4).standard_normal(7)
    basis = span_of(X).basis
    draws = np.maximum(basis @ np.random.default_rng(5).standard_normal((3, 200_000)), 0.0)
    centred = draws - draws.mean(axis=0)
    worths = np.abs(v @ centred) / np.maximum(np.linalg.norm(centred, axis=0), 1e-12)
    active = arrangements_of(basis, limit=1000).active
    for row in active:
        inside = row == (draws > 0).T
        if inside.all(axis=1).sum() > 1000:
            best = worths[inside.all(axis=1)].max()
            assert best * (1.0 - 1e-12) <= cell_of(basis, row).price(v) <= 1.1 * best


def test_a_sample_is_called_a_sample_and_lies_above() -> None:
    X, y = DATA["three features"], targets_for(LOSSES[0], 7, 3)
    every, some = fit_post_bn(X, y, beta=0.1), fit_post_bn(X, y, beta=0.1, arrangements=5)
    assert some.certificate.evidence is Evidence.SAMPLED
    assert "sample of 5" in str(some)
    assert some.certificate.objective > every.certificate.objective


@pytest.mark.parametrize("fraction", [1.0, 3.0])
def test_beta_from_its_maximum_on_gives_the_zero_network(fraction: float) -> None:
    X, y = DATA["general"], targets_for(LOSSES[0], 8, 3)
    fit = fit_post_bn(X, y, beta=fraction * fit_post_bn(X, y).beta_max)
    assert fit.network.neurons == 0
    assert fit.certificate.relative_gap <= 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.zeros((4, 2))}, "X is zero"),
        ({"y": np.ones((8, 2))}, "y has 2 outputs"),
        ({"X": np.random.default_rng(0).standard_normal((40, 5)), "y": np.ones(40)}, "arrangements: X may have"),
        ({"beta": -1.0}, "beta"),
        ({"arrangements": 0}, "arrangements"),
    ],
    ids=str,
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    given = {"X": DATA["general"], "y": targets_for(LOSSES[0], 8, 3), **change}
    X, y = given.pop("X"), given.pop("y")
    with pytest.raises(InputError, match=message):
        fit_post_bn(X, y[: len(X)], **given)


@pytest.mark.parametrize(("offset", "told"), [(1e6, False), (1e11, True)])
def test_directions_that_are_dropped_are_told(offset: float, told: bool) -> None:
    """With a column of ones an offset changes nothing but the digits: there are networks far below the bound without that direction."""
    x, y = np.arange(8.0), np.random.default_rng(0).standard_normal(8)
    centred, moved = (fit_post_bn(np.column_stack([x + move, np.ones(8)]), y, beta=0.3).certificate for move in (0.0, offset))
    assert (moved.bound > 1.001 * centred.objective) == told
    assert ("nearly collinear" in str(moved)) == told
    assert "nearly collinear" not in str(centred)


@pytest.mark.parametrize("unit", [1e-310, 1e307])
@pytest.mark.parametrize("samples", [3, 12])
def test_units_without_weights_in_float64_are_refused(unit: float, samples: int) -> None:
    X = np.random.default_rng(0).standard_normal((samples, 3))
    with pytest.raises(InputError, match=r"^X has a column, number 0, of a size beyond .*: change its unit"):
        fit_post_bn(unit * X, X[:, 0])


def test_the_two_orders_are_not_mixed_up() -> None:
    X, y = DATA["general"], targets_for(LOSSES[0], 8, 3)
    after = fit_post_bn(X, y).network
    with pytest.raises(InputError, match="after the ReLU"):
        certify(X, y, after, beta=0.1)
    before = Network(after.weights, after.centre, after.norm, after.gain, after.shift, after.outputs, 8)
    with pytest.raises(InputError, match="before the ReLU"):
        certify_post_bn(X, y, before, beta=0.1)
    model = fit_post_bn(X, y).to_torch()
    model[0] = torch.nn.Linear(2, model[0].out_features, dtype=torch.float64)
    with pytest.raises(InputError, match="bias before its ReLU"):
        from_torch(model, X)


@pytest.mark.parametrize("X", [GENERAL, GENERAL[:2]], ids=["listed", "closed form"])
def test_each_stage_is_timed_and_told_when_verbose(X: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    y = np.arange(len(X)) - 1.5
    fit = fit_post_bn(X, y, verbose=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split()[1] for line in captured.err.splitlines()] == list(fit.seconds) == ["arrange", "solve", "certify"]
    assert all(f"{stage} {seconds:.2f} s" in str(fit) for stage, seconds in fit.seconds.items())
    fit_post_bn(X, y)
    assert capsys.readouterr() == ("", "")
