"""Patches: rows as PyTorch's unfold cuts them, pooling with its adjoint, and the program, solvers and proofs on pooled rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import LOSSES, targets_for
from torch.nn import functional

from convexbn.arrangements import enumerate_arrangements
from convexbn.losses import Loss, Squared
from convexbn.patches import Patches, Pooling, pooling_of
from convexbn.pricing import price_dual
from convexbn.program import Program
from convexbn.solvers import Conic
from convexbn.solvers.conic import conic_matrices
from convexbn.validation import InputError
from convexbn.whitening import whiten

GEOMETRIES = [
    ((1, 4, 4), 2, 1, 0),
    ((3, 5, 4), (3, 2), (2, 1), (1, 0)),
    ((2, 6, 7), (1, 3), (2, 3), (0, 2)),
    ((1, 3, 3), 3, 1, 0),
    ((2, 2, 2), (2, 2), 5, 2),
]


def images(shape: tuple[int, int, int], count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape))


@pytest.mark.parametrize(("shape", "size", "stride", "padding"), GEOMETRIES)
def test_rows_are_those_of_unfold(shape, size, stride, padding) -> None:
    X, patches = images(shape, 3), Patches(size, stride, padding, image=shape)
    expected = functional.unfold(torch.as_tensor(X), size, stride=stride, padding=padding).mT
    assert expected.shape[1] == patches.count == np.prod(patches.grid)
    np.testing.assert_array_equal(patches.rows(X), expected.reshape(-1, expected.shape[2]).numpy())


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
@pytest.mark.parametrize("pooling", [Pooling(), Pooling(4, 0.25), Pooling(3)])
def test_spread_is_the_adjoint_of_pool(pooling: Pooling, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    rows, samples = (generator.standard_normal((count, *shape)) for count in (5 * pooling.patches, 5))
    assert np.sum(pooling.pool(rows) * samples) == pytest.approx(np.sum(rows * pooling.spread(samples)), rel=1e-13)
    assert np.linalg.norm(pooling.spread(samples)) == pytest.approx(pooling.norm * np.linalg.norm(samples), rel=1e-13)


def test_average_and_sum_pool_as_pytorch_does() -> None:
    X = images((1, 3, 4), 5)
    rows = np.random.default_rng(2).standard_normal((5 * 6, 2))
    maps = torch.as_tensor(rows.reshape(5, 2, 3, 2)).permute(0, 3, 1, 2)
    mean, total = (pooling_of(Patches(2, pooling=word).on(X)) for word in ("average", "sum"))
    np.testing.assert_allclose(mean.pool(rows), functional.adaptive_avg_pool2d(maps, 1).flatten(1).numpy(), rtol=1e-13)
    np.testing.assert_allclose(total.pool(rows), maps.sum(dim=(2, 3)).numpy(), rtol=1e-13)


def pooled_program(loss: Loss, kind: str = "average", seed: int = 0) -> Program:
    """Four images with four patches of one or two numbers each, and all arrangements."""
    image, size = ((1, 2, 3), (1, 2)) if loss.name != "squared" else ((1, 2, 2), 1)
    patches = Patches(size, pooling=kind, image=image)
    basis = whiten(patches.rows(images(image, 4, seed))).basis
    return Program(basis, targets_for(loss, 4, seed), loss, 0.05, enumerate_arrangements(basis), pooling_of(patches))


@pytest.mark.parametrize("kind", ["average", "sum"])
def test_forward_is_that_of_the_definition_and_adjoint_its_adjoint(kind: str) -> None:
    program = pooled_program(Squared(), kind)
    generator = np.random.default_rng(3)
    weights, v = generator.standard_normal((2, len(program.active), program.basis.shape[1])), generator.standard_normal(4)
    blocks = [np.diag(row) @ program.basis @ (s - t) for row, s, t in zip(program.active, *weights, strict=True)]
    summed = np.sum(blocks, axis=0).reshape(4, 4).sum(axis=1) / (4 if kind == "average" else 1)
    np.testing.assert_allclose(program.forward(weights), summed, rtol=1e-12)
    assert np.sum(program.adjoint(v) * weights) == pytest.approx(v @ program.forward(weights), rel=1e-12)
    matrix, _ = conic_matrices(program)
    np.testing.assert_allclose(matrix @ np.stack([weights[0], weights[1]]).ravel(), program.forward(weights), rtol=1e-11)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_solvers_agree_and_their_dual_point_proves_it(loss: Loss) -> None:
    program = pooled_program(loss)
    solution = Conic().solve(program)
    weights = np.abs(solution.outputs[:, 0]).sum()
    predictions = program.pooling.pool(np.maximum(program.basis @ solution.directions.T, 0.0)) @ solution.outputs[:, 0]
    objective = loss.value(predictions, program.y) + program.beta * weights
    assert solution.dual is not None
    price = price_dual(program.basis, program.pooling.spread(solution.dual), program.arrangements).upper
    v = -loss.project(-solution.dual * min(1.0, program.beta / price), program.y)
    assert program.dual_objective(v) == pytest.approx(objective, rel=1e-5)


def test_rows_that_are_no_multiple_of_the_patches_are_refused() -> None:
    program = pooled_program(Squared())
    with pytest.raises(InputError, match=r"^y has shape \(4,\), but the basis has 16 rows, 3 for each sample"):
        Program(program.basis, program.y, program.loss, 0.1, None, Pooling(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (5, 2)}, r"^size = \(5, 2\) of a patch is larger than an image of \(4, 4\)"),
        ({"size": 0}, r"^size = 0 is not usable: pass a whole number of at least 1"),
        ({"size": (2, 2, 2)}, r"^size = \(2, 2, 2\) is not usable"),
        ({"size": "2"}, r"^size = '2' is not usable"),
        ({"size": 2.0}, r"^size = 2.0 is not usable"),
        ({"stride": 0}, r"^stride = 0 is not usable"),
        ({"stride": (1, True)}, r"^stride = \(1, True\) is not usable"),
        ({"padding": -1}, r"^padding = -1 is not usable: pass a whole number of at least 0"),
        ({"pooling": "max"}, r"^pooling = 'max' is unknown: choose 'average' or 'sum'"),
    ],
)
def test_unusable_geometry_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Patches(**{"image": (1, 4, 4), "size": 2} | options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 4, 4), r"^X has shape \(3, 4, 4\), not \(samples, channels, height, width\).*X\[:, None\]"),
        ((3, 16), r"^X has shape \(3, 16\), not .*leave patches out"),
        ((0, 1, 4, 4), r"^X has shape \(0, 1, 4, 4\)"),
        ((3, 1, 5, 4), r"^X has images of shape \(1, 5, 4\), but \(1, 4, 4\) is expected"),
    ],
)
def test_other_images_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Patches(2, image=(1, 4, 4)).rows(np.ones(shape))


def test_patches_without_an_image_wait_for_it() -> None:
    patches = Patches((2, 1), stride=2)
    with pytest.raises(InputError, match=r"^patches don't know the shape of the images yet"):
        patches.rows(images((1, 4, 4), 3))
    known = patches.on(images((3, 4, 5), 2))
    assert known == Patches((2, 1), (2, 2), image=(3, 4, 5)) == known.on(images((3, 4, 5), 7))
    assert (known.count, known.features) == (6, 6)
