"""The betas and the solvers of paths: what a path takes, what it refuses, and its points beside fits."""

from __future__ import annotations

import numpy as np
import pytest
from path_data import task

from convexbn import ActiveSet, Conic, Evidence, InputError, Patches, SlidingFrankWolfe, beta_max, fit_convex_bn
from convexbn.path import fit_path


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([], r"^betas have shape \(0,\)"),
        (0.5, r"^betas = 0.5 is not a whole number"),
        (np.array(0.5), r"^betas have shape \(\)"),
        ([[1.0]], r"^betas have shape \(1, 1\)"),
        ([1.0, 0.0], r"^betas hold 0"),
        ([-1.0], r"^betas hold -1"),
        ([np.nan], r"^betas holds NaN or infinity"),
        ([np.inf], r"^betas holds NaN or infinity"),
        (["a"], r"^betas "),
    ],
    ids=str,
)
def test_bad_betas_are_refused(betas, message):
    with pytest.raises(InputError, match=message):
        fit_path(*task("squared"), betas=betas)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"betas": 0}, "^betas = 0"),
        ({"fractions": []}, r"^fractions have shape \(0,\)"),
        ({"fractions": 0.5}, r"^fractions have shape \(\)"),
        ({"fractions": [0.5], "betas": [1.0]}, "^betas are given, and fractions too"),
        ({"smallest": 0.0}, "^smallest = 0"),
        ({"smallest": 2.0}, "^smallest = 2.0 is a fraction of beta_max"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        fit_path(*task("squared"), **settings)


def test_a_path_over_a_sample_is_warm_started_and_certified_for_it():
    """Each point is the optimum that a solve from nothing finds, in fewer rounds."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((100, 4))
    y = np.maximum(X @ generator.standard_normal((4, 3)), 0.0).sum(axis=1)
    path = fit_path(X, y - y.mean(), betas=4, smallest=0.05, arrangements=40)
    assert all(fit.solution.solver == "active set" for fit in path.fits[1:])
    assert all(fit.certificate.evidence is Evidence.SAMPLED and fit.certificate.relative_gap <= 1e-6 for fit in path.fits)
    last = path.fits[-1]
    cold = ActiveSet().solve(last.program)
    assert last.certificate.objective == pytest.approx(cold.trace[-1].objective, rel=1e-6)
    assert last.solution.iterations < cold.iterations


@pytest.mark.parametrize(
    ("name", "solver", "tolerance", "settings"),
    [
        ("CLARABEL", "CLARABEL", 1e-6, {"arrangements": "all", "rank": 1}),
        ("CLARABEL", Conic("CLARABEL", {"tol_gap_rel": 1e-10}), 1e-6, {"arrangements": 20}),
        ("active set", "active set", 1e-6, {"arrangements": 20}),
        ("sliding", "sliding", 2e-4, {}),
        ("sliding", SlidingFrankWolfe(tolerance=1e-7), 1e-6, {"rank": 2, "seed": 3}),
    ],
)
def test_a_point_is_what_the_solver_makes_of_its_beta(name, solver, tolerance, settings):
    X, y = task("squared")
    path = fit_path(X, y, betas=3, smallest=0.1, solver=solver, **settings)
    assert [name in fit.solution.solver for fit in path.fits] == [False, True, True]
    assert path.beta_max == pytest.approx(beta_max(X, y, **settings), rel=1e-6)
    for fit in path.fits[1:]:
        alone = fit_convex_bn(X, y, beta=fit.program.beta, solver=solver, proof_seconds=0.0, **settings)
        assert fit.certificate.objective == pytest.approx(alone.certificate.objective, rel=tolerance)
        assert fit.certificate.evidence is alone.certificate.evidence


def test_the_closed_form_can_be_asked_for():
    generator = np.random.default_rng(1)
    X, y = generator.standard_normal((8, 12)), generator.standard_normal(8)
    path = fit_path(X, y, betas=2, solver="closed form")
    alone = fit_convex_bn(X, y, beta=path.betas[-1])
    assert path.objectives[-1] == pytest.approx(alone.certificate.objective, rel=1e-12)


def test_features_are_read_once_and_a_point_is_the_network_on_them():
    X, y = task("squared")
    calls = []

    def features(rows):
        calls.append(len(rows))
        return np.tanh(rows[:, :2] - rows[:, 2:])

    path = fit_path(X, y, betas=3, smallest=0.1, solver="CLARABEL", arrangements=20, features=features)
    assert calls == [16]
    assert path.beta_max == beta_max(X, y, arrangements=20, features=features)
    for fit in path.fits[1:]:
        alone = fit_convex_bn(X, y, beta=fit.program.beta, solver="CLARABEL", arrangements=20, features=features)
        assert fit.certificate.objective == pytest.approx(alone.certificate.objective, rel=1e-6)
    calls.clear()
    predictions = path.predict(X[:5])
    assert calls == [5]
    np.testing.assert_array_equal(predictions[-1], path.fits[-1].predict(X[:5]))


def test_a_point_on_patches_is_the_convolution_of_its_beta():
    generator = np.random.default_rng(0)
    images, patches = generator.standard_normal((8, 1, 2, 4)), Patches(2, stride=2, pooling="sum")
    y = generator.standard_normal(8)
    path = fit_path(images, y, betas=3, smallest=0.2, patches=patches)
    assert path.predict(images).shape == (3, 8)
    for fit in path.fits[1:]:
        alone = fit_convex_bn(images, y, beta=fit.program.beta, patches=patches, proof_seconds=0.0).certificate
        assert fit.certificate.objective == pytest.approx(alone.objective, rel=2e-4)
        assert max(alone.bound, fit.certificate.bound) <= min(alone.objective, fit.certificate.objective)


def test_the_solver_keeps_its_tolerance_and_starts_warm(monkeypatch):
    given = SlidingFrankWolfe(tolerance=1e-3, rounds=50)
    X, y = task("squared")
    seen, solve = [], SlidingFrankWolfe.solve
    monkeypatch.setattr(SlidingFrankWolfe, "solve", lambda self, program: seen.append(self) or solve(self, program))
    fit_path(X, y, betas=[4.0, 2.0], solver=given)
    assert seen[0] is given
    assert (seen[1].tolerance, seen[1].rounds) == (1e-3, 50)
    assert seen[1].warm_start is not None


def test_a_checkpoint_would_be_one_for_all_points(tmp_path):
    with pytest.raises(InputError, match=r"^solver has a checkpoint"):
        fit_path(*task("squared"), solver=SlidingFrankWolfe(checkpoint=tmp_path / "file"))
