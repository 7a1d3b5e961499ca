"""The gated model on patches of images: its program written out by PyTorch's unfold, its fit, network and module."""

from __future__ import annotations

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch
from problems import several_targets, targets_for
from torch.nn import functional

from convexbn import GatedSolver, Patches, fit_gated_bn, fit_gated_path
from convexbn.losses import Logistic, Softmax, Squared
from convexbn.solvers.masked import gated_patterns
from convexbn.validation import InputError

GEOMETRIES = {"apart": Patches(2, stride=2), "padded": Patches((2, 3), stride=2, padding=1), "whole": Patches(4)}
EXACT = GatedSolver(tolerance=1e-9, seconds=20.0)
each_geometry = pytest.mark.parametrize("geometry", GEOMETRIES)
each_pooling = pytest.mark.parametrize("pooling", ["average", "sum"])


def images(count: int = 14, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 2, 4, 4)) + 3.0


@each_pooling
@each_geometry
@pytest.mark.parametrize("method", ["steps", "kernel"])
def test_it_is_the_optimum_of_the_program_written_out(geometry: str, pooling: str, method: str):
    X, y = images(), targets_for(Squared(), 14, 1)
    fit = fit_gated_bn(X, y, gates=5, patches=replace(GEOMETRIES[geometry], pooling=pooling), solver=replace(EXACT, method=method))
    program = fit.program
    patterns = gated_patterns(program.basis, program.gates)
    blocks = [cp.Variable(program.basis.shape[1]) for _ in program.gates]
    f = sum(program.pooling.pool(pattern[:, None] * program.basis) @ block for pattern, block in zip(patterns, blocks, strict=True))
    expected = cp.Problem(cp.Minimize(cp.sum_squares(f - y) / 2 + program.beta * sum(map(cp.norm, blocks)))).solve(solver="CLARABEL")
    assert fit.certificate.objective == pytest.approx(expected, rel=1e-7)
    assert fit.certificate.bound == pytest.approx(expected, rel=1e-7)
    assert "patches each" in str(fit)


@pytest.mark.parametrize("method", ["steps", "kernel"])
def test_a_patch_as_large_as_the_image_is_the_plain_program(method: str):
    X, Y = images(), several_targets(Softmax(), 14, 3, 1)
    solver = replace(EXACT, method=method, tolerance=1e-7)
    whole = fit_gated_bn(X, Y, gates=6, loss="softmax", solver=solver, patches=GEOMETRIES["whole"])
    plain = fit_gated_bn(X.reshape(14, -1), Y, gates=6, loss="softmax", solver=solver)
    assert whole.certificate.objective == pytest.approx(plain.certificate.objective, rel=1e-6)
    np.testing.assert_allclose(whole.predict(X), plain.predict(X.reshape(14, -1)), atol=1e-2)


def test_sum_and_average_are_one_problem_at_two_betas():
    X, y = images(), targets_for(Logistic(), 14, 2)
    arguments = {"gates": 4, "loss": "logistic", "solver": replace(EXACT, tolerance=1e-7)}
    average = fit_gated_bn(X, y, patches=Patches(2, stride=2), **arguments)
    total = fit_gated_bn(X, y, beta=4.0 * average.program.beta, patches=Patches(2, stride=2, pooling="sum"), **arguments)
    assert total.certificate.objective == pytest.approx(average.certificate.objective, rel=1e-6)
    assert total.beta_max == pytest.approx(4.0 * average.beta_max, rel=1e-12)


@each_pooling
@each_geometry
@pytest.mark.parametrize("outputs", [1, 3])
def test_export_is_the_network_on_images_old_and_new(geometry: str, pooling: str, outputs: int):
    X, Y = images(), several_targets(Squared(), 14, 3, 1)[:, :outputs]
    fit = fit_gated_bn(X, Y, gates=6, rank=4, patches=replace(GEOMETRIES[geometry], pooling=pooling))
    assert fit.predict(X).reshape(14, -1) == pytest.approx(fit.program.predictions(torch.as_tensor(fit.solution.weights)), abs=1e-10)
    module = fit.to_torch()
    for batch in (X, images(5, seed=9), images(1, seed=8)):
        assert module(torch.as_tensor(batch)).detach().numpy() == pytest.approx(fit.predict(batch).reshape(len(batch), -1), abs=1e-10)


def test_by_hand_on_the_patches_that_unfold_cuts():
    X = images()
    fit = fit_gated_bn(X, targets_for(Squared(), 14, 1), gates=3, patches=GEOMETRIES["padded"])
    cut = functional.unfold(torch.as_tensor(X), (2, 3), stride=2, padding=1).mT.numpy()
    network, expected = fit.network, np.zeros(14)
    for i, rows in enumerate(cut):
        for phi in fit.whitening.transform(rows):
            expected[i] += sum((phi @ g >= 0) * (phi @ s[:, 0]) for g, s in zip(network.gates, network.weights, strict=True)) / len(rows)
    assert fit.predict(X) == pytest.approx(expected, abs=1e-12)


def test_images_may_be_bytes_and_need_no_memory_for_features():
    bytes_ = (40.0 * images() + 100.0).clip(0, 255).astype(np.uint8)
    y = targets_for(Squared(), 14, 1)
    arguments = {"gates": 6, "patches": Patches(2), "solver": replace(EXACT, method="steps", tolerance=1e-4)}
    held, made = (fit_gated_bn(bytes_ / factor, y, max_memory=memory, **arguments) for factor, memory in ((1, 2**30), (255.0, 9_000)))
    assert held.program.operator.keeps
    assert not made.program.operator.keeps
    assert made.certificate.objective == pytest.approx(held.certificate.objective, rel=2e-4)


def test_the_path_takes_patches():
    fits = fit_gated_path(images(), targets_for(Squared(), 14, 1), fractions=[0.5, 0.1], gates=4, patches=GEOMETRIES["apart"])
    assert [fit.certificate.relative_gap <= 1e-4 for fit in fits] == [True, True]
    assert fits[0].certificate.objective > fits[1].certificate.objective


@pytest.mark.parametrize(
    ("X", "patches", "message"),
    [
        (images(), Patches(5), r"^size = \(5, 5\) of a patch is larger"),
        (images()[0], Patches(2), r"^X has shape \(2, 4, 4\), not \(samples"),
        (images(), 2, "^patches = 2 are no Patches"),
        (images(), None, "^X has 4 dimensions, as images have: pass patches="),
        (np.full((14, 1, 3, 3), np.nan), Patches(2), "^X holds NaN"),
        (np.ones((14, 1, 3, 3)), Patches(2), "^X has only constant columns"),
        (images(13), Patches(2), "^y has 14 targets, but X has 13 samples"),
    ],
)
def test_unusable_input_is_refused(X: np.ndarray, patches: Patches | None, message: str):
    with pytest.raises(InputError, match=message):
        fit_gated_bn(X, targets_for(Squared(), 14, 1), patches=patches)


def test_patches_have_no_conversion():
    fit = fit_gated_bn(images(), targets_for(Squared(), 14, 1), gates=2, patches=GEOMETRIES["apart"])
    with pytest.raises(InputError, match=r"^X has patches, whose cones are too many"):
        fit.to_relu(images())
