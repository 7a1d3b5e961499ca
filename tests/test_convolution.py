"""Convolution with global pooling, end to end: optimum, proof, export, and the network's own objective by PyTorch's layers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from problems import LOSSES, optimum_of, raw_loss, several_targets, targets_for
from scipy.optimize import minimize
from torch import nn

from convexbn import InputError, beta_max, certify, fit_convex_bn, from_torch, prune_network, recover
from convexbn.certificate import Evidence
from convexbn.fit import Fit
from convexbn.losses import Logistic, Loss, Softmax, Squared
from convexbn.patches import Patches
from convexbn.whitening import whiten

SQUARED = Squared()
GEOMETRIES = {
    "every pixel": Patches(1, stride=2),
    "overlapping": Patches((1, 2)),
    "padded": Patches((2, 2), stride=2, padding=1),
}


def images(count: int = 5, shape: tuple[int, int, int] = (1, 3, 3), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape))


@cache
def solved(
    loss: Loss = SQUARED, pooling: str = "average", geometry: str = "every pixel", outputs: int = 1
) -> tuple[np.ndarray, np.ndarray, Fit]:
    X = images()
    y = targets_for(loss, len(X), 1) if outputs == 1 else several_targets(loss, len(X), outputs, 1)
    arrangements = "all" if outputs == 1 and geometry == "every pixel" else "auto"
    solver = "CLARABEL" if arrangements == "all" else "sliding"
    patches = replace(GEOMETRIES[geometry], pooling=pooling)
    return X, y, fit_convex_bn(X, y, loss=loss, patches=patches, arrangements=arrangements, solver=solver, proof_seconds=1.0)


def raw_objective(X: np.ndarray, y: np.ndarray, loss: Loss, beta: float, patches: Patches, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The weight-decay objective from the definition, by torch's convolution: w (..., m, h), g, a (..., m), v (..., C, m)."""
    w, g, a, v = parts
    width = w.shape[-2]
    kernels = w.reshape(-1, patches.channels, *patches.size)
    maps = nn.functional.conv2d(torch.as_tensor(X), kernels, stride=patches.stride, padding=patches.padding)
    z = maps.reshape(len(X), -1, width, patches.count)
    z = z - z.mean(dim=(0, 3), keepdim=True)
    z = z / z.square().sum(dim=(0, 3), keepdim=True).sqrt()
    shift = a.reshape(-1, width, 1) / (len(X) * patches.count) ** 0.5
    hidden = torch.relu(g.reshape(-1, width, 1) * z + shift)
    pooled = hidden.mean(dim=3) if patches.pooling == "average" else hidden.sum(dim=3)
    f = v.reshape(-1, v.shape[-2], width) @ pooled.permute(1, 2, 0)
    decay = (g**2 + a**2).sum(-1) + (v**2).sum((-2, -1))
    return raw_loss(loss, f, torch.as_tensor(y.reshape(len(y), -1)).mT).sum(-1) + 0.5 * beta * decay


def best_of_lbfgs(X: np.ndarray, y: np.ndarray, loss: Loss, beta: float, patches: Patches, width: int, starts: int) -> float:
    """The lowest objective that L-BFGS reaches on the convolutional network itself, from many starts at once."""
    h, outputs, best = patches.features, y.reshape(len(y), -1).shape[1], np.inf

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        parameters = torch.tensor(flat.reshape(starts, width, h + 2 + outputs), requires_grad=True)
        w, g, a, v = parameters.split((h, 1, 1, outputs), dim=2)
        values = raw_objective(X, y, loss, beta, patches, (w, g[..., 0], a[..., 0], v.mT))
        (slope,) = torch.autograd.grad(values.sum(), parameters)
        best = min(best, values.min().item())
        return values.sum().item(), slope.numpy().ravel()

    start = np.random.default_rng(0).standard_normal(starts * width * (h + 2 + outputs))
    minimize(evaluate, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "maxfun": 1000, "maxcor": 20, "ftol": 1e-13})
    return best


def own_objective(X: np.ndarray, y: np.ndarray, loss: Loss, fit: Fit) -> float:
    """The fit's objective from its weights, gains, shifts and outputs alone."""
    network = fit.network
    parts = (network.weights, network.gain, network.shift, network.outputs.T)
    tensors = tuple(torch.as_tensor(np.ascontiguousarray(part)) for part in parts)
    assert network.patches is not None
    return float(raw_objective(X, y, loss, fit.program.beta, network.patches, tensors))


@pytest.mark.parametrize("pooling", ["average", "sum"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_recovered_network_attains_the_convex_optimum(loss: Loss, pooling: str) -> None:
    X, y, fit = solved(loss, pooling)
    assert fit.certificate.evidence is Evidence.PROVED
    assert fit.program.arrangements is not None
    assert fit.certificate.accepts(1e-6)
    assert own_objective(X, y, loss, fit) == pytest.approx(fit.certificate.objective, rel=1e-10)
    assert own_objective(X, y, loss, fit) == pytest.approx(optimum_of(fit.program), rel=1e-6)


@pytest.mark.parametrize("loss", [Squared(), Logistic()], ids=lambda loss: loss.name)
@pytest.mark.parametrize("geometry", list(GEOMETRIES))
def test_training_the_convolution_never_ends_below(loss: Loss, geometry: str) -> None:
    X, y, fit = solved(loss, "average", geometry)
    assert fit.network.patches is not None
    best = best_of_lbfgs(X, y, loss, fit.program.beta, fit.network.patches, width=6, starts=20)
    assert best >= fit.certificate.bound
    assert fit.certificate.objective <= best * (1.0 + 1e-6)
    assert best <= fit.certificate.objective * 1.1  # it is the same problem


@pytest.mark.parametrize("loss", [Squared(), Softmax()], ids=lambda loss: loss.name)
def test_several_outputs(loss: Loss) -> None:
    X, y, fit = solved(loss, "sum", "every pixel", 3)
    assert own_objective(X, y, loss, fit) == pytest.approx(fit.certificate.objective, rel=1e-10)
    assert fit.certificate.estimated_gap <= 1e-4
    assert fit.network.patches is not None
    best = best_of_lbfgs(X, y, loss, fit.program.beta, fit.network.patches, width=8, starts=10)
    assert fit.certificate.bound <= fit.certificate.objective <= best * (1.0 + 1e-4)


def test_sliding_and_a_cone_solver_agree() -> None:
    X, y, fit = solved()
    other = fit_convex_bn(X, y, beta=fit.program.beta, solver="sliding", proof_seconds=0.0, patches=GEOMETRIES["every pixel"])
    assert other.certificate.objective == pytest.approx(fit.certificate.objective, rel=1e-6)
    assert other.certificate.bound <= fit.certificate.objective


def test_a_sample_of_arrangements_is_an_upper_bound_and_says_so() -> None:
    X, y, fit = solved(SQUARED, "average", "overlapping")
    sample = fit_convex_bn(X, y, beta=fit.program.beta, arrangements=20, patches=GEOMETRIES["overlapping"])
    assert sample.certificate.evidence is Evidence.SAMPLED
    assert sample.certificate.objective >= fit.certificate.bound


@pytest.mark.parametrize("kind", ["average", "sum"])
def test_sum_and_average_are_one_problem_at_two_betas(kind: str) -> None:
    X, y, fit = solved(SQUARED, kind)
    patches = replace(GEOMETRIES["every pixel"], pooling="sum" if kind == "average" else "average")
    factor = 4.0 if kind == "average" else 0.25
    assert beta_max(X, y, patches=patches) == pytest.approx(factor * fit.beta_max, rel=1e-5)
    again = fit_convex_bn(X, y, beta=factor * fit.program.beta, patches=patches, arrangements="all")
    assert again.certificate.objective == pytest.approx(fit.certificate.objective, rel=1e-7)


def test_a_patch_as_large_as_the_image_is_the_plain_network() -> None:
    X = images(8, (1, 1, 2))
    y = targets_for(Squared(), 8, 4)
    whole, plain = fit_convex_bn(X, y, patches=Patches((1, 2)), proof_seconds=0.0), fit_convex_bn(X.reshape(8, 2), y, proof_seconds=0.0)
    assert whole.certificate.objective == pytest.approx(plain.certificate.objective, rel=1e-9)
    np.testing.assert_allclose(whole.predict(X), plain.predict(X.reshape(8, 2)), atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("pooling", ["average", "sum"])
def test_closed_form_at_full_rank_is_the_conic_optimum(loss: Loss, pooling: str) -> None:
    """Three images of two patches each, with as many numbers in a patch as make the rank n K - 1 = 5."""
    X, y = images(3, (5, 1, 2), seed=3), targets_for(loss, 3, 5)
    arguments = {"loss": loss, "patches": Patches(1, pooling=pooling)}
    fit = fit_convex_bn(X, y, **arguments)
    assert fit.solution.solver == "closed form"
    assert fit.certificate.accepts(1e-8)
    conic = fit_convex_bn(X, y, beta=fit.program.beta, solver="CLARABEL", arrangements="all", **arguments)
    assert conic.certificate.objective == pytest.approx(fit.certificate.objective, rel=1e-6)
    assert own_objective(X, y, loss, fit) == pytest.approx(fit.certificate.objective, rel=1e-10)


@pytest.mark.parametrize("pooling", ["average", "sum"])
@pytest.mark.parametrize("geometry", list(GEOMETRIES))
def test_export_is_the_network_in_both_modes(geometry: str, pooling: str) -> None:
    X, _, fit = solved(SQUARED, pooling, geometry)
    model, fresh = fit.to_torch(), images(4, seed=9)
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear)
    assert tuple(map(type, model)) == kinds
    with torch.no_grad():
        trained = model.train()(torch.as_tensor(X))[:, 0].numpy()
        model.load_state_dict(fit.to_torch().state_dict())
        evaluated = model.eval()(torch.as_tensor(fresh))[:, 0].numpy()
    np.testing.assert_allclose(trained, fit.predict(X), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(evaluated, fit.predict(fresh), rtol=1e-12, atol=1e-12)


def test_the_objective_that_the_exported_module_has_under_weight_decay_is_ours() -> None:
    X, y, fit = solved()
    model, beta = fit.to_torch().train(), fit.program.beta
    rows = fit.network.samples
    assert rows == len(fit.program.basis) == 4 * len(y)
    with torch.no_grad():
        residual = model(torch.as_tensor(X))[:, 0] - torch.as_tensor(y)
        decay = beta * rows * (model[1].weight.square().sum() + model[1].bias.square().sum()) + beta * model[5].weight.square().sum()
    assert float(0.5 * residual.square().sum() + 0.5 * decay) == pytest.approx(fit.certificate.objective, rel=1e-10)


def test_reading_an_exported_module_gives_the_network_back() -> None:
    X, y, fit = solved()
    again = from_torch(fit.to_torch(), X)
    np.testing.assert_allclose(again.predict(X), fit.predict(X), rtol=1e-12, atol=1e-12)
    assert again.objective(X, y, Squared(), fit.program.beta) == pytest.approx(fit.certificate.objective, rel=1e-12)
    summed = solved(SQUARED, "sum")[2]
    np.testing.assert_allclose(from_torch(summed.to_torch(), X).predict(X), summed.predict(X), rtol=1e-12, atol=1e-12)


def module(channels: int = 1, **options: object) -> nn.Sequential:
    torch.manual_seed(0)
    first = nn.Conv2d(channels, 4, (1, 2), **options)  # type: ignore[arg-type]
    layers = (first, nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1, bias=False))
    return nn.Sequential(*layers).double()


def test_somebody_elses_convolution_is_certified() -> None:
    X, y, fit = solved(SQUARED, "average", "overlapping")
    model = module().train()
    network = from_torch(model, X)
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.as_tensor(X))[:, 0].numpy(), network.predict(X), atol=1e-12)
    certificate = certify(X, y, network, beta=fit.program.beta, seconds=1.0)
    assert certificate.bound <= fit.certificate.objective * (1.0 + 1e-9) <= certificate.objective * (1.0 + 2e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilation": 2}, "^model has a Conv2d with groups, dilation"),
        ({"padding": "same"}, "^model has a Conv2d with groups, dilation"),
        ({"padding": 1, "padding_mode": "circular"}, "^model has a Conv2d with groups, dilation"),
        ({"channels": 2}, "^X has images of 1 channels, but the model expects 2"),
    ],
)
def test_other_convolutions_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_torch(module(**options), images())


def test_a_network_pruned_on_images_keeps_its_outputs() -> None:
    X, _, fit = solved(SQUARED, "average", "overlapping")
    whitening = fit.whitening
    generator = np.random.default_rng(0)
    many = recover(whitening, generator.standard_normal((12, whitening.rank + 1)), generator.standard_normal((12, 1)), fit.network.patches)
    few = prune_network(many, X)
    assert few.neurons <= len(X)
    assert few.penalty() <= many.penalty() * (1.0 + 1e-9)
    np.testing.assert_allclose(few.predict(X), many.predict(X), atol=1e-8)


def test_images_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image a block, in whitening, objective, predictions and certificate: all as with all patches at once."""
    X, y, fit = solved(SQUARED, "average", "overlapping")
    rows, network = fit.network.patches.rows(X), fit.network
    monkeypatch.setattr("convexbn.patches.BLOCK", 1)
    blocks = list(network.blocks(X))
    assert len(blocks) == len(X)
    np.testing.assert_array_equal(np.concatenate(blocks), rows)
    np.testing.assert_allclose(network.predict(X), network.predict(rows), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(network.on(X).norm, network.on(rows).norm, rtol=1e-12)
    one, other = (certify(data, y, network, beta=fit.program.beta, seconds=0.1) for data in (X, rows))
    assert one.objective == pytest.approx(other.objective, rel=1e-12)
    assert 0.0 < one.bound <= other.objective * (1.0 + 1e-12)


def test_statistics_are_those_of_all_patches_and_scale_with_the_images() -> None:
    X, y, fit = solved(SQUARED, "average", "overlapping")
    other = fit_convex_bn(1e3 * X + 5.0, y, beta=fit.program.beta, solver="sliding", proof_seconds=0.0, patches=GEOMETRIES["overlapping"])
    assert other.certificate.objective == pytest.approx(fit.certificate.objective, rel=1e-6)
    assert whiten(Patches((1, 2)).on(X).rows(X)).samples == 30 == fit.network.samples


def test_predictions_for_other_images_and_their_errors() -> None:
    X, _, fit = solved()
    assert fit.predict(X[:1]).shape == (1,)
    np.testing.assert_allclose(fit.predict(X[2:3]), fit.predict(X)[2:3], atol=1e-14)
    with pytest.raises(InputError, match=r"^X has images of shape \(1, 4, 3\), but \(1, 3, 3\) is expected"):
        fit.predict(images(2, (1, 4, 3)))
    with pytest.raises(InputError, match=r"^X has shape \(5, 3, 3\), not \(samples, channels, height, width\)"):
        fit.predict(X[:, 0])
    with pytest.raises(InputError, match=r"^X has 7 rows, but each image has 4 patches"):
        fit.predict(np.ones((7, 1)))


@pytest.mark.parametrize("function", [fit_convex_bn, beta_max])
@pytest.mark.parametrize(
    ("X", "patches", "message"),
    [
        (images(), Patches(4), r"^size = \(4, 4\) of a patch is larger than an image of \(3, 3\)"),
        (images(), Patches(2, image=(1, 4, 4)), r"^X has images of shape \(1, 3, 3\), but patches are of images \(1, 4, 4\)"),
        (images()[0], Patches(2), r"^X has shape \(1, 3, 3\), not \(samples"),
        (images(), 2, r"^patches = 2 are no Patches: pass convexbn.Patches\("),
        (images(), None, "^X has 4 dimensions, as images have: pass patches="),
        (images()[:4], Patches(2), "^y has 5 targets, but X has 4 samples"),
        (np.full((5, 1, 3, 3), np.nan), Patches(2), "^X holds NaN"),
        (1e14 + np.arange(45.0).reshape(5, 1, 3, 3) % 7, Patches(2), "^X has a column, number 0, that varies by less"),
        (1e-310 * (np.arange(45.0).reshape(5, 1, 3, 3) % 7), Patches(2), "^X has a column, number 0, of a size"),
        (np.ones((5, 1, 3, 3)), Patches(2), "^X has only constant columns"),
    ],
)
def test_unusable_input_is_refused(function, X: np.ndarray, patches: Patches | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        function(X, targets_for(Squared(), 5, 0), patches=patches)


def test_one_image_is_enough_for_its_patches() -> None:
    fit = fit_convex_bn(images(1), np.array([2.0]), patches=Patches(2))
    assert fit.certificate.accepts(1e-5)
    assert replace(fit.network).samples == 4
