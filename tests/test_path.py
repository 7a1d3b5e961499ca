"""The regularisation path against closed forms, enumeration, and what duality says of every path."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from path_data import tabular, task

from convexbn import Evidence, InputError, Squared, Status, fit_convex_bn
from convexbn import fit as fit_module
from convexbn import path as module
from convexbn.path import Path, fit_path, networks_along

COUNT = 6


@pytest.fixture(scope="module")
def path() -> Path:
    X, y = task("squared")
    return fit_path(X, y, betas=COUNT, smallest=0.05)


def test_the_first_point_is_the_zero_network_and_the_last_is_not(path):
    X, y = task("squared")
    assert path.neurons[0] == 0 < path.neurons[-1]
    assert path.objectives[0] == pytest.approx(0.5 * float(y @ y), rel=1e-12)
    assert path.betas[0] == pytest.approx(path.beta_max, rel=1e-9)
    assert np.array_equal(path.predict(X)[0], np.zeros(len(X)))


def test_every_point_is_proved(path):
    assert all(fit.certificate.evidence is Evidence.PROVED for fit in path.fits)
    assert (path.bounds <= path.objectives).all()
    assert (path.bounds >= 0.85 * path.objectives).all()


def test_objectives_fall_with_beta_and_are_concave_in_it(path):
    betas, objectives = path.betas, path.objectives
    assert np.allclose(np.diff(np.log(betas)), np.log(0.05) / (COUNT - 1))
    assert (np.diff(objectives) <= 0.0).all()
    for k in range(1, COUNT - 1):
        share = (betas[k] - betas[k + 1]) / (betas[k - 1] - betas[k + 1])
        assert share * path.bounds[k - 1] + (1.0 - share) * path.bounds[k + 1] <= objectives[k]
        assert share * objectives[k - 1] + (1.0 - share) * objectives[k + 1] <= objectives[k] * (1.0 + 1e-3)


@pytest.mark.parametrize("loss", ["huber", "logistic", "hinge"])
def test_the_optimum_is_that_of_the_enumerated_program(loss):
    X, y = task(loss)
    fit = fit_path(X, y, betas=2, smallest=0.1, loss=loss).fits[-1]
    exact = fit_convex_bn(X, y, beta=fit.program.beta, loss=loss, solver="CLARABEL", arrangements="all").certificate
    assert exact.bound <= fit.certificate.objective <= exact.objective * (1.0 + 2e-3)
    assert fit.certificate.bound <= exact.objective


@pytest.mark.parametrize("loss", ["softmax", "outputs"])
def test_several_outputs(loss):
    X, y = (array[:12] for array in task(loss))
    path = fit_path(X, y, betas=2, smallest=0.3, loss="softmax" if loss == "softmax" else "squared")
    assert path.predict(X).shape == (2, *y.shape)
    assert path.neurons[0] == 0
    assert (np.diff(path.objectives) <= 0.0).all()
    assert (path.bounds <= path.objectives).all()
    cold = fit_convex_bn(X, y, beta=path.betas[-1], loss=path.fits[-1].program.loss, proof_seconds=0.0).certificate
    assert max(cold.bound, path.bounds[-1]) <= min(cold.objective, path.objectives[-1])
    assert cold.objective == pytest.approx(path.objectives[-1], rel=5e-4)


def test_at_rank_n_minus_one_the_path_is_known():
    """The sum over both signs of beta ||y|| - beta^2 / 2 while beta < ||y||, and then of ||y||^2 / 2."""
    generator = np.random.default_rng(1)
    X, y = generator.standard_normal((8, 12)), generator.standard_normal(8)
    path = fit_path(X, y, betas=5, smallest=0.01)
    sizes = np.array([np.linalg.norm(np.maximum(sign * y, 0.0)) for sign in (1.0, -1.0)])
    assert path.beta_max == pytest.approx(sizes.max(), rel=1e-12)
    known = [sum(b * s - 0.5 * b**2 if b < s else 0.5 * s**2 for s in sizes) for b in path.betas]
    np.testing.assert_allclose(path.objectives, known, rtol=1e-9)
    np.testing.assert_allclose(path.bounds, known, rtol=1e-6)
    assert all("closed form" in fit.solution.solver for fit in path.fits[1:])


def test_few_arrangements_are_listed_and_the_optimum_is_proved_to_many_digits():
    X, y = tabular(20, 1, 2)
    path = fit_path(X, y, betas=3, smallest=0.05)
    assert (path.objectives - path.bounds <= 1e-6 * path.objectives).all()


def test_betas_come_in_any_order_and_go_back_falling():
    X, y = task("squared")
    path = fit_path(X, y, betas=[1.0, 4.0, 1.0])
    assert path.betas.tolist() == [4.0, 1.0]
    for fit in path.fits:
        cold = fit_convex_bn(X, y, beta=fit.program.beta, solver="sliding", proof_seconds=0.0).certificate
        assert max(cold.bound, fit.certificate.bound) <= min(cold.objective, fit.certificate.objective)
        assert fit.certificate.objective == pytest.approx(cold.objective, rel=5e-4)


def test_fractions_are_those_of_a_fit():
    X, y = task("squared")
    path = fit_path(X, y, fractions=[0.3, 1.0, 0.3])
    assert path.betas.tolist() == [path.beta_max, 0.3 * path.beta_max]
    assert path.betas[1] == fit_convex_bn(X, y, fraction=0.3, solver="sliding", proof_seconds=0.0).program.beta
    assert path.neurons[0] == 0 < path.neurons[1]


def test_between_the_points_the_optimum_is_bracketed(path):
    X, y = task("squared")
    lower, upper = path.interval(path.betas)
    assert (path.bounds <= lower * (1.0 + 1e-12)).all()
    assert (upper <= path.objectives).all()
    between = np.sqrt(path.betas[1:] * path.betas[:-1])
    lower, upper = path.interval(between)
    for k in (0, COUNT - 2):
        certificate = fit_convex_bn(X, y, beta=between[k], solver="CLARABEL", arrangements="all").certificate
        assert lower[k] <= certificate.objective
        assert certificate.bound <= upper[k]
    for outside in (1.1 * path.betas[0], 0.9 * path.betas[-1]):
        with pytest.raises(InputError, match=r"^betas leave the path"):
            path.interval([outside])


@settings(max_examples=50)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=7))
def test_the_concave_hull_is_the_highest_chord(heights):
    x, y = np.sqrt(1.0 + np.arange(len(heights))), np.array(heights, dtype=float)
    corners = module._concave_corners(x, y)
    hull = np.interp(x, x[corners], y[corners])
    for k in range(len(x)):
        chords = [np.interp(x[k], x[[i, j]], y[[i, j]]) for i, j in itertools.product(range(k + 1), range(k, len(x))) if i < j]
        assert hull[k] == pytest.approx(max([*chords, y[k]]), abs=1e-12)


def test_networks_for_predictions_are_nearly_optimal(path):
    X, y = task("squared")
    networks = list(networks_along(X, y, path.betas, loss=Squared()))
    values = [network.objective(X, y, Squared(), beta) for network, beta in zip(networks, path.betas, strict=True)]
    assert (path.bounds <= values).all()
    assert (values <= path.objectives * 1.005).all()


def test_zero_targets_have_a_path_of_zero_networks():
    X, _ = task("squared")
    path = fit_path(X, np.zeros(len(X)), betas=3)
    assert path.objectives.tolist() == [0.0, 0.0, 0.0]
    assert path.betas[0] == 1.0


@pytest.mark.parametrize("done", [0, 2])
def test_an_interrupt_keeps_the_points_that_are_done(monkeypatch, done):
    calls = iter(range(10))

    certify_on = fit_module.certify_on

    def interrupted(*arguments, **keywords):
        if next(calls) == done:
            raise KeyboardInterrupt
        return certify_on(*arguments, **keywords)

    monkeypatch.setattr(fit_module, "certify_on", interrupted)
    X, y = task("squared")
    if not done:
        with pytest.raises(KeyboardInterrupt):
            fit_path(X, y, betas=[6.0, 5.0, 1.0])
        return
    path = fit_path(X, y, betas=[6.0, 5.0, 1.0])
    assert path.interrupted
    assert path.betas.tolist() == [6.0, 5.0]
    assert "interrupted" in str(path)


def test_a_point_whose_solve_was_interrupted_is_left_out(monkeypatch):
    solve = module.SlidingFrankWolfe.solve
    calls = iter(range(10))

    def interrupted(self, program):
        solution = solve(self, program)
        if next(calls) == 1:
            object.__setattr__(solution, "status", Status.INTERRUPTED)
        return solution

    monkeypatch.setattr(module.SlidingFrankWolfe, "solve", interrupted)
    X, y = task("squared")
    path = fit_path(X, y, betas=[4.0, 2.0, 1.0])
    assert path.interrupted
    assert path.betas.tolist() == [4.0]


def test_each_point_starts_from_the_one_before(monkeypatch, path):
    starts = []
    solve = module.SlidingFrankWolfe.solve
    monkeypatch.setattr(module.SlidingFrankWolfe, "solve", lambda self, program: starts.append(self.warm_start) or solve(self, program))
    X, y = task("squared")
    again = fit_path(X, y, betas=path.betas[1:3])
    assert starts[0] is None
    for fit, start in zip(again.fits, starts[1:], strict=False):
        assert np.array_equal(start[0], fit.solution.directions)
        assert np.array_equal(start[1], fit.solution.outputs)


def test_verbose_prints_a_line_a_point(capsys, path):
    X, y = task("squared")
    fit_path(X, y, betas=[6.0, 5.0], verbose=True)
    captured = capsys.readouterr()
    lines = " ".join((captured.out + captured.err).split())
    assert "point 1 of 2" in lines
    assert "point 2 of 2, beta 5: objective" in lines
    assert str(path).count("\n") == COUNT


def test_the_picture_shows_what_the_path_holds(path):
    mpl.use("Agg")
    above, below = path.plot()
    points = next(line for line in above.lines if line.get_marker() == "o")
    np.testing.assert_array_equal(points.get_xydata(), np.column_stack([path.betas / path.beta_max, path.objectives]))
    np.testing.assert_array_equal(below.lines[0].get_ydata(), path.neurons)
    assert above.get_xscale() == below.get_xscale() == "log"
    assert path.plot((above, below)) == (above, below)
    plt.close("all")
