"""Least squares and halfspaces in normalised parameters: rates, identities, and lengths that don't exist."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gdnp_problems import derivative, moments
from scipy.integrate import quad
from scipy.special import expit
from sklearn.datasets import load_breast_cancer

from convexbn import InputError
from convexbn.training.gdnp import LengthStatus, best_length, train_gdnp
from convexbn.training.halfspaces import ACTIVATIONS, MarginLine, empirical_halfspaces, gaussian_halfspaces, get_activation
from convexbn.training.rayleigh import least_squares, rayleigh_descent, rayleigh_quotient

BOUNDED = ["softplus", "squared", "squared sigmoid"]
every_activation = pytest.mark.parametrize("name", list(ACTIVATIONS))


def sample(seed: int, n: int = 60, d: int = 4, flipped: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian data off the origin, with labels of a halfspace, some of them flipped."""
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, d)) * np.geomspace(0.5, 1.0, d) + 3.0
    return X, np.sign((X - 3.0) @ generator.standard_normal(d)) * np.where(generator.random(n) < flipped, -1.0, 1.0)


# ---- least squares --------------------------------------------------------------------------------------------------------------


def test_the_rate_of_the_rayleigh_quotient_is_never_violated():
    closest = 0.0
    for seed in range(300):
        generator = np.random.default_rng(seed)
        d, condition = int(generator.integers(2, 30)), float(10.0 ** generator.uniform(0.0, 2.6))
        quotient = rayleigh_quotient(*moments(seed, d, condition, strength=10.0 ** generator.uniform(-3, 3)))
        iterates = rayleigh_descent(quotient, generator.standard_normal(d), 200)
        gaps = np.array([quotient.gap(w) for w in iterates])
        bounds, rounding = quotient.bound(gaps[0], 200), 1e-26 * abs(quotient.optimum)  # a gap is a square, and has 32 digits
        assert np.all(gaps <= bounds * (1.0 + 1e-9) + rounding)
        closest = max([closest, *(gaps / np.maximum(bounds, rounding))[1:][bounds[1:] > 100.0 * rounding]])
    assert closest > 0.9  # the bound is nearly reached, so the test would see a better one violated


def test_descent_ends_at_the_least_squares_solution():
    quotient = rayleigh_quotient(*moments(1, 6, 10.0))
    w = rayleigh_descent(quotient, np.ones(6), 400)[-1]
    expected = np.linalg.solve(quotient.covariance, quotient.mean)
    np.testing.assert_allclose(quotient.minimiser, expected, rtol=1e-10)
    np.testing.assert_allclose(w / w[0], expected / expected[0], rtol=1e-9)
    assert quotient.value(w) == pytest.approx(quotient.optimum, rel=1e-13)
    assert quotient.optimum == pytest.approx(-quotient.mean @ expected, rel=1e-12)


def test_the_step_has_a_closed_form_and_its_gradient_is_that_of_the_quotient():
    quotient, w = rayleigh_quotient(*moments(2, 5, 7.0)), np.random.default_rng(3).standard_normal(5)
    S, u = quotient.covariance, quotient.mean
    kappa = (w @ S @ w) / (u @ w)
    np.testing.assert_allclose(quotient.step(w), w - (S @ w - kappa * u) / quotient.largest, rtol=1e-12)
    numeric = [derivative(lambda h, i=i: quotient.value(w + h * np.eye(5)[i]), 0.0) for i in range(5)]
    np.testing.assert_allclose(quotient.gradient(w), numeric, rtol=1e-7)
    assert abs(quotient.gradient(w) @ w) < 1e-14
    assert quotient.value(w) == pytest.approx(-((u @ w) ** 2) / (w @ S @ w), rel=1e-13)
    assert quotient.gap(w) == pytest.approx(quotient.value(w) - quotient.optimum, rel=1e-11)


def test_least_squares_with_an_optimal_length_is_the_quotient():
    X, y = sample(4)
    y = y + X[:, 0]
    quotient, w = least_squares(X, y), np.array([1.0, -2.0, 0.5, 1.0])
    hidden = (X - X.mean(axis=0)) @ w
    design = np.column_stack([hidden / np.linalg.norm(hidden), np.ones(len(y))])
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    assert np.mean((y - y.mean()) ** 2) + quotient.value(w) == pytest.approx(np.mean(residual**2), rel=1e-12)


def test_a_singular_covariance_is_handled_in_its_range():
    S, u = moments(5, 4, 9.0, null=3)
    quotient = rayleigh_quotient(S, u)
    assert quotient.condition == pytest.approx(9.0, rel=1e-10)
    assert len(quotient.eigenvalues) == 4
    np.testing.assert_allclose(quotient.minimiser, np.linalg.pinv(S) @ u, atol=1e-10)
    iterates = rayleigh_descent(quotient, np.ones(7), 100)
    gaps = np.array([quotient.gap(w) for w in iterates])
    assert np.all(gaps <= quotient.bound(gaps[0], 100) * (1.0 + 1e-9))
    np.testing.assert_allclose(iterates - iterates @ np.linalg.pinv(S) @ S, 0.0, atol=1e-12)


# ---- halfspaces -----------------------------------------------------------------------------------------------------------------


@every_activation
def test_derivatives_of_the_activations(name):
    phi, t = ACTIVATIONS[name], torch.linspace(-6.0, 6.0, 4001, dtype=torch.float64, requires_grad=True)
    forms = {
        "softplus": torch.nn.functional.softplus(t, threshold=40.0),
        "squared": (1.0 + t) ** 2,
        "sigmoid": torch.sigmoid(t),
        "squared sigmoid": torch.sigmoid(t) ** 2,
    }
    (first,) = torch.autograd.grad(forms[name].sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), t)
    points = t.detach().numpy()
    np.testing.assert_allclose(phi.value(points), forms[name].detach().numpy(), atol=1e-14)
    np.testing.assert_allclose(phi.slope(points), first.detach().numpy(), atol=1e-14)
    np.testing.assert_allclose(phi.curvature(points), second.numpy(), atol=1e-14)
    assert float(second.abs().max()) == pytest.approx(phi.smoothness, rel=1e-4)


@every_activation
@pytest.mark.parametrize("length", [0.3, 4.0, 60.0])
def test_expectations_agree_with_adaptive_quadrature(name, length):
    risk = gaussian_halfspaces(*moments(6, 3, 5.0), name)
    w = risk.quotient.normalised(np.array([1.0, 2.0, -1.0]))
    a, phi = risk.quotient.mean @ w, get_activation(name)

    def integral(f) -> float:
        def integrand(x: float) -> float:
            tau = a + np.sqrt(1.0 - a * a) * x
            return float(f(np.array(length * tau), tau)) * np.exp(-0.5 * x * x) / np.sqrt(2.0 * np.pi)

        kink = -a / np.sqrt(1.0 - a * a)
        return sum(quad(integrand, *ends, epsabs=1e-13, epsrel=1e-12, limit=500)[0] for ends in ((-12.0, kink), (kink, 12.0)))

    line = risk.line(w)
    assert line.value(length) == pytest.approx(integral(lambda t, tau: phi.value(t)), abs=1e-11, rel=1e-11)
    assert line.slope(length) == pytest.approx(integral(lambda t, tau: tau * phi.slope(t)), abs=1e-11)
    second = integral(lambda t, tau: phi.curvature(t))
    assert line.curvature(length) == pytest.approx(second, abs=1e-11)
    assert line.factor(length) == pytest.approx(integral(lambda t, tau: phi.slope(t)) - length * a * second, abs=1e-9)


@every_activation
def test_steins_identity_gives_the_gradient(name):
    risk = gaussian_halfspaces(*moments(7, 4, 6.0), name)
    w = np.array([0.5, -1.0, 2.0, 0.3])

    def value(weights: np.ndarray) -> float:
        return risk.line(risk.quotient.normalised(weights)).value(risk.quotient.norm(weights))

    numeric = [derivative(lambda h, i=i: value(w + h * np.eye(4)[i]), 0.0) for i in range(4)]
    np.testing.assert_allclose(risk.gradient(w), numeric, atol=1e-9)


@every_activation
@pytest.mark.parametrize("null", [0, 2])
def test_the_gradient_norm_is_the_gap_of_the_direction_plus_the_slope_of_the_length(name, null):
    risk = gaussian_halfspaces(*moments(8, 6, 12.0, null=null), name)
    for seed in range(20):
        generator = np.random.default_rng(seed)
        w, g = risk.quotient.normalised(generator.standard_normal(6 + null)), float(generator.uniform(-5.0, 5.0))
        line, gradient = risk.line(w), risk.gradient(g * w)
        expected = line.factor(g) ** 2 * (risk.quotient.value(w) - risk.quotient.optimum) + line.slope(g) ** 2
        assert gradient @ np.linalg.pinv(risk.quotient.covariance) @ gradient == pytest.approx(expected, rel=1e-10, abs=1e-12)
        assert gradient @ w == pytest.approx(line.slope(g), abs=1e-12)


def test_a_sample_of_two_points_has_the_length_of_its_log_odds():
    line = MarginLine(np.array([1.0, -1.0]), np.array([0.2, 0.8]), -0.6, ACTIVATIONS["softplus"])
    length = best_length(line)
    assert length.status is LengthStatus.BOUNDED
    assert length.value == pytest.approx(np.log(4.0), rel=1e-14)  # 0.2 expit(g) = 0.8 expit(-g)
    mirrored = best_length(MarginLine(-line.margins, line.probabilities, 0.6, line.activation))
    assert mirrored.value == -length.value


def test_bisection_halves_the_slope():
    line = gaussian_halfspaces(*moments(9, 5, 4.0)).line(rayleigh_quotient(*moments(9, 5, 4.0)).normalised(np.ones(5)))
    for halvings in (5, 15, 30):
        length = best_length(line, halvings=halvings)
        assert abs(line.slope(length.value)) <= 0.5 * ACTIVATIONS["softplus"].smoothness * length.width
        assert length.width <= 4.0 * 0.5**halvings


def test_the_best_length_of_gaussian_data_is_the_log_odds_of_a_linear_discriminant():
    # Classes N(+-u, S - u u^T) with equal weights: the posterior is logistic in 2 (S - u u^T)^{-1} u, so logistic regression finds it.
    S, u = moments(10, 5, 8.0)
    run = train_gdnp(gaussian_halfspaces(S, u), steps=300)
    np.testing.assert_allclose(run.weights, -2.0 * np.linalg.solve(S - np.outer(u, u), u), rtol=1e-8)


# ---- the algorithm --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("null", [0, 3])
def test_the_direction_follows_the_rayleigh_quotient_whatever_the_activation(null):
    S, u = moments(11, 8, 15.0, null=null)
    start = np.random.default_rng(0).standard_normal(8 + null)
    quotient = rayleigh_quotient(S, u)
    iterates = rayleigh_descent(quotient, start, 60)
    expected = [quotient.gap(w) for w in iterates]
    for name in ACTIVATIONS:
        run = train_gdnp(gaussian_halfspaces(S, u, name), start=start, steps=60)
        np.testing.assert_allclose(run.gaps, expected, rtol=1e-6)
        assert np.all(run.gaps <= run.bounds * (1.0 + 1e-9))
        assert abs(run.direction @ S @ iterates[-1]) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", BOUNDED)
def test_the_gradient_vanishes_at_a_linear_rate(name):
    run = train_gdnp(gaussian_halfspaces(*moments(12, 10, 10.0), name), steps=150)
    assert run.status is LengthStatus.BOUNDED
    assert run.unbounded == 0
    np.testing.assert_allclose(run.gradients, run.factors**2 * run.gaps, rtol=1e-6, atol=1e-24)
    assert run.gradients[-1] < 1e-16 * run.gradients[0]
    assert np.all(np.diff(run.values) < 1e-13)


def test_the_sigmoid_has_no_bounded_length_on_gaussian_data_and_the_run_says_so():
    run = train_gdnp(gaussian_halfspaces(*moments(13, 6, 5.0), "sigmoid"), steps=20)
    assert run.status is LengthStatus.UNBOUNDED
    assert run.unbounded == 21
    assert set(np.abs(run.lengths)) == {256.0}
    assert run.gaps[-1] <= run.bounds[-1]


def test_separable_data_have_no_bounded_length_either():
    X = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    run = train_gdnp(empirical_halfspaces(X, np.sign(X[:, 0])), steps=1)
    assert run.status is LengthStatus.UNBOUNDED
    assert run.weights[0] == pytest.approx(256.0 / np.sqrt(2.5))


def test_on_a_sample_softplus_ends_at_logistic_regression():
    X, y = sample(14, n=300)
    risk = empirical_halfspaces(X, y)
    run = train_gdnp(risk, steps=400)
    Z, w = risk.rows, np.zeros(4)
    for _ in range(20):  # Newton's method
        p = expit(Z @ w)
        w -= np.linalg.solve((Z * (p * (1.0 - p))[:, None]).T @ Z, Z.T @ p)
    np.testing.assert_allclose(run.weights, w, rtol=1e-6)
    assert run.gradients[-1] < 1e-14


def test_the_squared_loss_on_a_sample_is_least_squares_exactly():
    # phi'' is constant, so c_1 u + c_2 S w is the gradient of any data and the theorem holds without a Gaussian.
    X, y = sample(15)
    run, quotient = train_gdnp(empirical_halfspaces(X, y, "squared"), steps=300), least_squares(X, y)
    assert np.all(run.gaps <= run.bounds * (1.0 + 1e-9) + 1e-26)
    np.testing.assert_allclose(run.weights, -quotient.minimiser, rtol=1e-8)
    assert run.values[-1] == pytest.approx(1.0 + quotient.optimum, rel=1e-12)


def test_the_unit_of_the_data_has_no_effect_and_no_more_has_a_constant_column():
    X, y = sample(16)
    start = np.array([1.0, -1.0, 2.0, 0.5])
    for settings in ({}, {"step": "constant", "step_size": 2.0}):
        plain = train_gdnp(empirical_halfspaces(X, y), start=start, steps=30, **settings)
        scaled = train_gdnp(empirical_halfspaces(1024.0 * X, y), start=start, steps=30, **settings)
        wider = train_gdnp(empirical_halfspaces(np.column_stack([X, np.full(len(y), 7.0)]), y), start=[*start, 3.0], steps=30, **settings)
        np.testing.assert_allclose(scaled.values, plain.values, rtol=1e-10)
        np.testing.assert_allclose(wider.values, plain.values, rtol=1e-10)


def test_constant_steps_descend_too():
    run = train_gdnp(empirical_halfspaces(*sample(17)), steps=200, step="constant", step_size=1.0)
    assert np.all(np.diff(run.values) <= 1e-12)
    assert run.gradients[-1] < 1e-6 * run.gradients[0]


def test_collinear_real_data_report_their_condition():
    X, y = load_breast_cancer(return_X_y=True)
    X = np.column_stack([(X - X.mean(axis=0)) / X.std(axis=0), X[:, 0] * 1e-3])
    risk = empirical_halfspaces(X, 2.0 * y - 1.0)
    assert len(risk.quotient.eigenvalues) == 30
    assert 1e4 < risk.quotient.condition < 1e6
    run = train_gdnp(risk, steps=30)
    assert run.values[-1] < 0.1 < run.values[0]


# ---- bad input ------------------------------------------------------------------------------------------------------------------


def test_bad_input_names_the_argument():
    S, u = moments(26, 3, 4.0)
    risk = gaussian_halfspaces(S, u)
    for call, message in [
        (lambda: rayleigh_quotient(S[:2], u), "covariance has shape"),
        (lambda: rayleigh_quotient(-S, u), "covariance has the eigenvalue"),
        (lambda: rayleigh_quotient(S + np.triu(np.ones((3, 3)), 1), u), "covariance is zero or not symmetric"),
        (lambda: rayleigh_quotient(np.diag([1.0, 1.0, 0.0]), np.ones(3)), "mean lies outside"),
        (lambda: rayleigh_descent(risk.quotient, np.zeros(3), 1), "start has u"),
        (lambda: gaussian_halfspaces(S, 3.0 * u), "mean has u"),
        (lambda: gaussian_halfspaces(S, u, "relu"), "activation = 'relu' is unknown"),
        (lambda: empirical_halfspaces(np.eye(3), [0.0, 1.0, 1.0]), "y has values other than"),
        (lambda: empirical_halfspaces(np.ones((3, 2)), [1.0, -1.0, 1.0]), "covariance has the eigenvalue"),
        (lambda: train_gdnp(risk, step="newton"), "step = 'newton' is unknown"),
        (lambda: train_gdnp(risk, start=np.ones(4)), "start has shape"),
        (lambda: train_gdnp(risk, steps=-1), "steps = -1"),
        (lambda: train_gdnp(risk, step_size=0.0), "step_size = 0.0"),
        (lambda: rayleigh_quotient(np.diag([1.0, 1.0]), [1.0, 0.0]).step(np.array([0.0, 1.0])), "w has u"),
        (lambda: risk.quotient.normalised(np.zeros(3)), "w has "),
    ]:
        with pytest.raises(InputError, match=f"^{message}"):
            call()
