from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import CLASSIFICATION, LOSSES, targets_for
from scipy.optimize import approx_fprime, minimize_scalar

from convexbn.losses import Hinge, Huber, Logistic, Loss, Softmax, Squared, get_loss
from convexbn.smoothing import Smoothed
from convexbn.validation import InputError

SMOOTHED = (
    Smoothed(Hinge(), 0.1),
    Smoothed(Hinge(), 0.3, 0.4),
    Smoothed(Huber(0.7), 0.5, -0.2),
    Smoothed(Logistic(), 2.0),
    Smoothed(Huber(0.7), 0.5),
    Smoothed(Squared(), 1.0),
)
ALL_LOSSES = (*LOSSES, Huber(1e-3), Huber(1e3), *SMOOTHED)
numbers = st.floats(-20.0, 20.0)
targets = st.sampled_from([-1.0, 1.0])
steps = st.floats(1e-3, 1e3)
each_loss = pytest.mark.parametrize("loss", ALL_LOSSES, ids=str)


def one(number: float) -> np.ndarray:
    return np.array([number])


def fenchel_gap(loss: Loss, f: float, v: float, y: float) -> float:
    """l(f) + l*(v) - f v: never negative, zero exactly where v is a subgradient at f."""
    return loss.value(one(f), one(y)) + loss.conjugate(one(v), one(y)) - f * v


def inside(loss: Loss, v: float, y: float) -> float:
    return float(loss.project(one(v), one(y))[0])


def some_points(loss: Loss) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).normal(scale=3.0, size=50), targets_for(loss, 50, 1)


@each_loss
@given(f=numbers, y=targets)
def test_gradient_reaches_fenchel_young_equality(loss: Loss, f: float, y: float):
    slope = float(loss.gradient(one(f), one(y))[0])
    assert inside(loss, slope, y) == pytest.approx(slope, abs=1e-13)
    assert fenchel_gap(loss, f, inside(loss, slope, y), y) == pytest.approx(0.0, abs=1e-12 * (1.0 + f * f))


@each_loss
@given(f=numbers, v=numbers, y=targets)
def test_fenchel_young_inequality(loss: Loss, f: float, v: float, y: float):
    assert fenchel_gap(loss, f, inside(loss, v, y), y) >= -1e-10


@each_loss
@given(v=st.floats(-0.99, 0.99), y=targets)
def test_conjugate_is_the_numerical_supremum(loss: Loss, v: float, y: float):
    slope = inside(loss, v, y)
    found = minimize_scalar(
        lambda f: loss.value(one(f), one(y)) - slope * f, bounds=(-60.0, 60.0), method="bounded", options={"xatol": 1e-6}
    )
    ends = [loss.value(one(f), one(y)) - slope * f for f in (-60.0, 0.0, y, 60.0)]
    assert loss.conjugate(one(slope), one(y)) == pytest.approx(-min(found.fun, *ends), abs=1e-7)


@each_loss
@given(v=st.floats(-0.99, 0.99), y=targets)
def test_gradient_of_the_conjugate_attains_the_supremum(loss: Loss, v: float, y: float):
    slope = inside(loss, v, y)
    f = float(loss.conjugate_gradient(one(slope), one(y))[0])
    assert fenchel_gap(loss, f, slope, y) == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize(
    ("loss", "slope"), [(Huber(0.7), 0.71), (Huber(0.7), -0.71), (Logistic(), 0.01), (Logistic(), -1.01), (Hinge(), 0.01), (Hinge(), -1.01)]
)
def test_conjugate_is_infinite_where_the_supremum_is(loss: Loss, slope: float):
    far = max(slope * f - loss.value(one(f), one(1.0)) for f in (-1e6, 1e6))
    assert far > 1e3
    assert loss.conjugate(one(slope), one(1.0)) == np.inf


def test_conjugate_at_known_points():
    assert Squared().conjugate(np.array([2.0, 0.0]), np.array([3.0, 9.0])) == 8.0
    assert Huber(2.0).conjugate(one(2.0), one(-3.0)) == -4.0
    assert Logistic().conjugate(one(-0.5), one(1.0)) == pytest.approx(-np.log(2.0), rel=1e-15)
    assert Logistic().conjugate(np.array([-1.0, 0.0]), np.array([1.0, -1.0])) == 0.0
    assert Hinge().conjugate(np.array([-0.25, 0.5]), np.array([1.0, -1.0])) == -0.75


def test_values_at_known_points():
    f, y = np.array([0.5, -4.0]), np.array([1.0, -1.0])
    assert Squared().value(f, y) == 0.125 + 4.5
    assert Huber(1.0).value(f, y) == 0.125 + 2.5
    assert Hinge().value(f, y) == 0.5
    assert Logistic().value(f, y) == pytest.approx(np.log1p(np.exp(-0.5)) + np.log1p(np.exp(-4.0)), rel=1e-15)


@pytest.mark.parametrize("loss", [Logistic(), Hinge(), Huber(1.0)], ids=str)
def test_values_of_enormous_predictions_stay_finite(loss: Loss):
    f, y = np.array([1e8, -1e8]), np.array([1.0, 1.0])
    assert loss.value(f, y) == pytest.approx(1e8 if loss.name in CLASSIFICATION else 2e8, rel=1e-7)
    assert np.isfinite(loss.gradient(f, y)).all()


@each_loss
def test_gradient_against_finite_differences(loss: Loss):
    f, y = some_points(loss)
    assert loss.gradient(f, y) == pytest.approx(approx_fprime(f, loss.value, 1e-6, y), abs=1e-4)


@each_loss
@given(z=numbers, y=targets, step=steps)
def test_prox_meets_its_optimality_condition(loss: Loss, z: float, y: float, step: float):
    near = float(loss.prox(one(z), one(y), step)[0])
    slope = (z - near) / step
    assert inside(loss, slope, y) == pytest.approx(slope, abs=1e-13 * (1.0 + abs(near) / step))
    assert fenchel_gap(loss, near, inside(loss, slope, y), y) == pytest.approx(0.0, abs=1e-11 * (1.0 + near * near + z * z))


@each_loss
@given(z=numbers, y=targets, step=steps)
def test_prox_against_scalar_minimisation(loss: Loss, z: float, y: float, step: float):
    near = float(loss.prox(one(z), one(y), step)[0])

    def cost(f: float) -> float:
        return loss.value(one(f), one(y)) + (f - z) ** 2 / (2.0 * step)

    reach = abs(z) + 2.0 + 21.0 * min(step, 10.0)
    found = minimize_scalar(cost, bounds=(z - reach, z + reach), method="bounded", options={"xatol": 1e-10})
    assert cost(near) <= found.fun + 1e-12 * (1.0 + found.fun)


@pytest.mark.parametrize("step", [1e-9, 1.0, 50.0, 400.0, 1e4, 1e9, 1e13, 1e16])
def test_logistic_prox_against_bisection(step: float):
    """The margin u solves u = y z + step / (1 + exp(u)); all of a vector at once, as solvers ask for it."""
    start = np.arange(-30.0, 30.25, 0.25)
    y = np.where(np.arange(len(start)) % 3, 1.0, -1.0)
    low, high = start, start + step
    for _ in range(200):
        margin = 0.5 * (low + high)
        short = margin - start < step * np.exp(-np.logaddexp(0.0, margin))
        low, high = np.where(short, margin, low), np.where(short, high, margin)
    assert y * Logistic().prox(y * start, y, step) == pytest.approx(margin, rel=1e-13, abs=1e-13)


@each_loss
def test_rescaled_loss_keeps_the_identity_of_its_unit(loss: Loss):
    f, y = some_points(loss)
    unit = loss.scale(y)
    small = loss.rescaled(unit)
    assert unit**2 * small.value(f / unit, y / unit) == pytest.approx(loss.value(f, y), rel=1e-12)
    assert unit * small.gradient(f / unit, y / unit) == pytest.approx(loss.gradient(f, y), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("loss", [Squared(), Huber(0.7)], ids=str)
def test_unit_of_zero_targets_is_one(loss: Loss):
    assert loss.scale(np.zeros(3)) == 1.0
    assert loss.scale(np.array([3.0, -4.0])) == pytest.approx(5.0)


@each_loss
@given(v=numbers, y=targets)
def test_projection_is_the_nearest_point_of_the_domain(loss: Loss, v: float, y: float):
    near = inside(loss, v, y)
    domain = [w for w in np.linspace(-25.0, 25.0, 501) if np.isfinite(loss.conjugate(one(w), one(y)))]
    assert np.isfinite(loss.conjugate(one(near), one(y)))
    assert inside(loss, near, y) == near
    assert abs(v - near) <= min(abs(v - w) for w in domain)


@each_loss
def test_domain_of_the_conjugate_holds_zero(loss: Loss):
    assert loss.conjugate(np.zeros(2), np.array([-1.0, 1.0])) == 0.0


@pytest.mark.parametrize("loss", [Squared(), Huber(0.7), Logistic(), *SMOOTHED], ids=str)
@given(f=numbers, other=numbers, y=targets)
def test_gradient_is_lipschitz_with_the_smoothness(loss: Loss, f: float, other: float, y: float):
    change = np.abs(loss.gradient(one(f), one(y)) - loss.gradient(one(other), one(y)))[0]
    assert change <= loss.smoothness * abs(f - other) + 1e-14


@pytest.mark.parametrize(("loss", "steepest"), [(Squared(), 2.0), (Huber(0.7), 1.0), (Logistic(), 0.0), (SMOOTHED[0], 0.95)], ids=str)
def test_no_smaller_smoothness_would_do(loss: Loss, steepest: float):
    low, high = (loss.gradient(one(steepest + h), one(1.0))[0] for h in (-1e-4, 1e-4))
    assert (high - low) / 2e-4 == pytest.approx(loss.smoothness, rel=1e-6)


@pytest.mark.parametrize("smoothed", SMOOTHED, ids=str)
@given(f=numbers, y=targets)
def test_smoothing_lies_below_the_loss_by_at_most_its_width(smoothed: Smoothed, f: float, y: float):
    loss, there = smoothed.loss, one(f + smoothed.shift)
    slope = loss.gradient(there, one(y))[0]
    below = loss.value(there, one(y)) - smoothed.value(one(f), one(y))
    assert -1e-12 <= below <= 0.5 * smoothed.width * slope**2 + 1e-12


def test_the_right_shift_takes_the_smoothing_away():
    """min max(0, 1 - f) + (f - 1)^2 / 2 + 0.3 f has f = 1 on the kink, with slope -0.3 of the loss there, whatever the width."""
    for width in (0.1, 1.0, 10.0):
        shifted = Smoothed(Hinge(), width, shift=-0.3 * width)
        assert shifted.gradient(one(1.0), one(1.0))[0] == pytest.approx(-0.3)
        assert shifted.gradient(one(1.0), one(1.0))[0] * width == pytest.approx(shifted.shift)


def test_smoothed_hinge_by_hand():
    """Width w: 0 from the margin 1 on, quadratic until 1 - w, then the hinge less w / 2."""
    f, y = np.array([1.5, 0.95, 0.9, -1.0]), np.ones(4)
    values = [SMOOTHED[0].value(one(point), one(1.0)) for point in f]
    assert values == pytest.approx([0.0, 0.0125, 0.05, 1.95], abs=1e-15)
    assert SMOOTHED[0].gradient(f, y) == pytest.approx([0.0, -0.5, -1.0, -1.0], abs=1e-14)


def test_hinge_has_no_smoothness():
    low, high = (Hinge().gradient(one(1.0 + h), one(1.0))[0] for h in (-1e-9, 1e-9))
    assert high - low == 1.0
    assert Hinge().smoothness == np.inf


@pytest.mark.parametrize("loss", [Logistic(), Hinge()], ids=str)
@pytest.mark.parametrize("wrong", [[0.0, 1.0], [1.0, 2.0], [-1.0, 0.5, 1.0], np.arange(9.0)], ids=str)
def test_wrong_labels_are_named(loss: Loss, wrong: list[float]):
    with pytest.raises(InputError, match=rf"{wrong[0]}.*{loss.name} loss needs labels -1 and \+1"):
        loss.check(np.array(wrong))


@each_loss
@pytest.mark.parametrize("labels", [[-1.0, 1.0], [1.0, 1.0], [-1.0]], ids=str)
def test_right_targets_come_back_untouched(loss: Loss, labels: list[float]):
    assert loss.check(np.array(labels)).tolist() == labels


@pytest.mark.parametrize("loss", [Squared(), Huber(), Logistic(), Hinge(), Softmax()], ids=str)
def test_losses_are_found_by_name_and_pass_through(loss: Loss):
    assert get_loss(loss.name) == loss
    assert get_loss(loss) is loss


def test_unknown_losses_are_refused_with_the_choice():
    with pytest.raises(InputError, match="'mse' is unknown: choose one of squared, logistic, hinge, huber, softmax"):
        get_loss("mse")
    with pytest.raises(InputError, match=r"neither a name .* nor a Loss"):
        get_loss(3)


@pytest.mark.parametrize("delta", [0.0, -1.0, np.inf, np.nan, "wide"])
def test_huber_needs_a_positive_delta(delta: object):
    with pytest.raises(InputError, match="delta"):
        Huber(delta)
