"""Norms of the Hessian blocks between layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decoupled_models import batch, multilayer
from torch import nn

from convexbn import InputError
from convexbn.training.curvature import cross_dependency


def test_blocks_with_orthogonal_columns_are_exact_with_one_probe():
    # H^T H is diagonal, so every vector of signs gives ||H v||^2 = ||H||^2.
    a, b = torch.ones(3, dtype=torch.float64, requires_grad=True), torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    A = torch.zeros(4, 3, dtype=torch.float64)
    A[0, 0], A[1, 1], A[3, 2] = 2.0, -1.0, 4.0
    loss = b.flatten() @ A @ a + 3.0 * a.square().sum()
    unrelated = torch.ones(5, dtype=torch.float64, requires_grad=True)
    norms = cross_dependency(loss + unrelated.sum(), a, [a, b, unrelated], probes=1)
    np.testing.assert_allclose(norms, [6.0 * np.sqrt(3.0), np.sqrt(21.0), 0.0], rtol=1e-14)


def test_many_probes_agree_with_the_whole_hessian():
    model, (x, y) = multilayer(), batch("multilayer")
    names = ["0.weight", "3.weight", "6.weight"]
    fixed = dict(model.named_parameters())

    def loss(*weights: torch.Tensor) -> torch.Tensor:
        changed = {**fixed, **dict(zip(names, weights, strict=True))}
        return nn.functional.cross_entropy(torch.func.functional_call(model, changed, (x,)), y)

    weights = tuple(fixed[name] for name in names)
    blocks = torch.autograd.functional.hessian(loss, weights)[1]
    exact = [block.norm().item() for block in blocks]
    np.testing.assert_allclose(cross_dependency(loss(*weights), weights[1], weights, probes=2000), exact, rtol=0.03)


def test_products_with_the_norms_of_the_weights_dont_depend_on_their_scale():
    model, (x, y) = multilayer(), batch("multilayer")
    first, second = model[0].weight, model[3].weight
    found = []
    for factor in (1.0, 7.0):
        with torch.no_grad():
            first.mul_(factor)
        found.append(cross_dependency(nn.functional.cross_entropy(model(x), y), second, [first])[0] * (first.norm() * second.norm()).item())
    assert found[0] == pytest.approx(found[1], rel=1e-10)
    assert found[0] > 1e-3


def test_the_seed_decides_the_probes():
    model, (x, y) = multilayer(), batch("multilayer")
    loss, weights = nn.functional.cross_entropy(model(x), y), [model[0].weight]
    values = [cross_dependency(loss, model[3].weight, weights, probes=2, seed=seed)[0] for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


def test_bad_input_names_the_argument():
    weight = torch.ones(3, requires_grad=True)
    for call, message in [
        (lambda: cross_dependency(torch.zeros(2), weight, []), "loss is no scalar"),
        (lambda: cross_dependency(torch.zeros(()), weight, []), "loss is no scalar"),
        (lambda: cross_dependency(weight.square().sum(), weight, [], probes=0), "probes = 0"),
    ]:
        with pytest.raises(InputError, match=f"^{message}"):
            call()
