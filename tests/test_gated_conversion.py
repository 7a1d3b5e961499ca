"""From gated weights to a ReLU network, and along beta."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from convexbn import GatedSolver, certify, fit_gated_bn, fit_gated_path
from convexbn.gated.cones import decompose
from convexbn.validation import InputError
from convexbn.whitening import whiten


def problem(outputs: int, n: int = 25) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    y = generator.standard_normal((n, outputs))
    return generator.standard_normal((n, 2)), y[:, 0] if outputs == 1 else y


@pytest.mark.parametrize("seed", range(5))
def test_decomposition_lies_in_the_cone_and_is_the_least(seed: int):
    generator = np.random.default_rng(seed)
    basis = whiten(generator.standard_normal((9, 2))).basis
    active = basis @ generator.standard_normal(3) >= 0
    s = generator.standard_normal(3)
    plus, minus = decompose(s, active, basis)
    cone = np.where(active[:, None], basis, -basis)
    assert plus - minus == pytest.approx(s, abs=1e-12)
    assert min((cone @ plus).min(), (cone @ minus).min()) >= -1e-10
    constraints = [{"type": "ineq", "fun": lambda w: cone @ w}, {"type": "ineq", "fun": lambda w: cone @ (w + s)}]
    reference = minimize(lambda w: w @ w + (w + s) @ (w + s), minus, constraints=constraints, method="SLSQP", options={"ftol": 1e-14})
    assert plus @ plus + minus @ minus <= reference.fun * (1.0 + 1e-6)


@pytest.mark.parametrize("penalty", ["group", "nuclear"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_network_has_the_gated_outputs_at_its_own_price(penalty: str, outputs: int):
    X, y = problem(outputs)
    fit = fit_gated_bn(X, y, gates=12, penalty=penalty)
    conversion = fit.to_relu(X)
    assert conversion.network.predict(X) == pytest.approx(fit.predict(X), abs=1e-8)
    assert conversion.difference <= 1e-8
    assert conversion.objective == pytest.approx(conversion.network.objective(X, y, fit.program.loss, fit.program.beta), rel=1e-12)
    if penalty == "nuclear" or outputs == 1:
        assert conversion.price >= 0.0
    assert certify(X, y, conversion.network, beta=fit.program.beta, seconds=0.0).bound <= conversion.objective
    assert "price" in str(conversion)


def test_inside_of_its_cone_a_weight_costs_nothing():
    X, _ = problem(1)
    basis = whiten(X).basis
    gate = np.array([0.3, -1.0, 0.8])
    plus, minus = decompose(2.0 * gate, basis @ gate >= 0, basis)
    assert plus == pytest.approx(2.0 * gate, abs=1e-10)
    assert minus == pytest.approx(0.0, abs=1e-10)


def test_the_path_is_warm_and_certified_at_every_point():
    X, y = problem(2, n=60)
    fits = fit_gated_path(X, y, fractions=[0.05, 0.5, 0.2], gates=20, solver=GatedSolver(tolerance=1e-5))
    assert [fit.program.beta / fit.beta_max for fit in fits] == pytest.approx([0.5, 0.2, 0.05])
    for fit in fits:
        alone = fit_gated_bn(X, y, beta=fit.program.beta, gates=20, solver=GatedSolver(tolerance=1e-5))
        assert fit.certificate.relative_gap <= 1e-5
        assert fit.certificate.objective == pytest.approx(alone.certificate.objective, rel=2e-5)
    objectives = [fit.certificate.objective for fit in fits]
    assert objectives == sorted(objectives, reverse=True)


def test_betas_of_a_path_are_chosen_as_those_of_relu_networks():
    X, y = problem(1)
    counted = fit_gated_path(X, y, betas=3, smallest=0.04, gates=10)
    assert [fit.program.beta / fit.beta_max for fit in counted] == pytest.approx([1.0, 0.2, 0.04])
    assert not counted[0].solution.weights.any()
    listed = fit_gated_path(X, y, betas=[0.2, 0.4, 0.2], gates=10)
    assert [fit.program.beta for fit in listed] == [0.4, 0.2]


def test_bad_paths_are_named(tmp_path):
    X, y = problem(1)
    with pytest.raises(InputError, match=r"^fractions have shape"):
        fit_gated_path(X, y, fractions=[])
    with pytest.raises(InputError, match=r"^betas are given, and fractions too"):
        fit_gated_path(X, y, betas=[1.0], fractions=[0.5])
    with pytest.raises(InputError, match=r"^solver has a checkpoint"):
        fit_gated_path(X, y, solver=GatedSolver(checkpoint=tmp_path / "file"))
