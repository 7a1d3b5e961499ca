"""The operator of pooled rows against the masked operator and its pooling, its adjoint identity, and the memory that it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from memory import Peak

from convexbn.patches import Pooling
from convexbn.solvers.masked import MaskedOperator, gated_bits
from convexbn.solvers.pooled import PooledOperator
from convexbn.validation import InputError

SMALL, LARGE = 20_000, 2**30


def operators(pooling: Pooling, count: int = 21, max_memory: int = LARGE, dtype: torch.dtype = torch.float64, images: int = 30):
    """The same arrangements, pooled and plain."""
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.standard_normal((images * pooling.patches, 5)))[0]
    bits = torch.as_tensor(gated_bits(basis, generator.standard_normal((count, 5))))
    tensor = torch.as_tensor(basis).to(dtype)
    return PooledOperator(tensor, bits, count, pooling, max_memory), MaskedOperator(tensor, bits, count)


def random_pair(operator: PooledOperator, outputs: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (operator.count, operator.basis.shape[1], outputs), (operator.samples, outputs)
    return tuple(torch.randn(shape, dtype=operator.basis.dtype, generator=generator) for shape in shapes)


each_pooling = pytest.mark.parametrize("pooling", [Pooling(4, 0.25), Pooling(9)])
each_memory = pytest.mark.parametrize("max_memory", [SMALL, LARGE])


@each_pooling
@each_memory
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_products_are_those_of_the_rows_pooled(pooling: Pooling, max_memory: int, dtype: torch.dtype, accuracy: float):
    pooled, plain = operators(pooling, max_memory=max_memory, dtype=dtype)
    assert pooled.keeps == (max_memory == LARGE)
    weights, residual = random_pair(pooled)
    assert pooled.forward(weights).numpy() == pytest.approx(pooling.pool(plain.forward(weights).numpy()), abs=accuracy)
    spread = torch.as_tensor(pooling.spread(residual.numpy()))
    assert pooled.adjoint(residual).numpy() == pytest.approx(plain.adjoint(spread).numpy(), abs=accuracy)
    assert pooled.total().numpy() == pytest.approx(pooling.pool(plain.total().numpy()), abs=accuracy)
    rows = pooling.pool(plain.kernel().numpy())
    assert pooled.kernel().numpy() == pytest.approx(pooling.pool(rows.T), abs=accuracy)
    assert pooled.written_out().numpy() == pytest.approx(pooling.pool(plain.written_out().numpy()), abs=accuracy)


@pytest.mark.parametrize("pooling", [Pooling(2, 0.5), Pooling(3)])
def test_with_few_rows_and_outputs_no_features_are_made_and_products_and_memory_stay(pooling: Pooling):
    pooled, plain = operators(pooling, count=100, max_memory=2**20, images=700)
    assert not pooled.keeps
    weights, residual = random_pair(pooled, 8)
    products = pooled.forward(weights), pooled.adjoint(residual)
    assert products[0].numpy() == pytest.approx(pooling.pool(plain.forward(weights).numpy()), abs=1e-12)
    assert products[1].numpy() == pytest.approx(plain.adjoint(torch.as_tensor(pooling.spread(residual.numpy()))).numpy(), abs=1e-12)
    for outputs, by_rows in ((8, True), (40, False)):
        assert pooled.by_rows(outputs) == by_rows
    for product, argument, result in ((pooled.forward, weights, products[0]), (pooled.adjoint, residual, products[1])):
        with Peak(pooled.basis, pooled.bits, argument) as used:
            product(argument)
        assert used.peak <= pooled.max_memory + 4 * result.nbytes + 2 * argument.nbytes


@each_memory
def test_a_subset_and_another_precision(max_memory: int):
    pooled, _ = operators(Pooling(4, 0.25), max_memory=max_memory)
    chosen = torch.tensor([0, 3, 8, 9, 20])
    weights, residual = random_pair(pooled)
    only = torch.zeros_like(weights)
    only[chosen] = weights[chosen]
    some = pooled.take(chosen)
    assert some.forward(weights[chosen]).numpy() == pytest.approx(pooled.forward(only).numpy(), abs=1e-13)
    assert some.adjoint(residual).numpy() == pytest.approx(pooled.adjoint(residual)[chosen].numpy(), abs=1e-13)
    narrow = pooled.to(torch.float32)
    assert narrow.adjoint(residual.float()).numpy() == pytest.approx(pooled.adjoint(residual).numpy(), abs=1e-5)


@each_pooling
def test_adjoint_identity_and_norm(pooling: Pooling):
    pooled, _ = operators(pooling)
    weights, residual = random_pair(pooled)
    left, right = torch.sum(pooled.forward(weights) * residual), torch.sum(weights * pooled.adjoint(residual))
    assert float(left) == pytest.approx(float(right), rel=1e-12)
    matrix = pooled.features(slice(0, pooled.samples)).view(pooled.samples, pooled.count, -1)
    norms = torch.linalg.matrix_norm(matrix.transpose(0, 1), ord=2)
    assert 0.3 * pooled.norm < float(norms.max()) <= pooled.norm


@pytest.mark.parametrize("max_memory", [100_000, 1_000_000])
def test_memory_is_bounded_as_stated(max_memory: int):
    pooled, _ = operators(Pooling(9), count=16, max_memory=max_memory, images=200)
    assert pooled.keeps == (max_memory == 1_000_000)
    weights, residual = random_pair(pooled)
    for product, argument in ((pooled.forward, weights), (pooled.adjoint, residual)):
        with Peak(pooled.basis, pooled.bits, argument) as used:
            result = product(argument)
        assert used.peak <= max_memory + 4 * result.nbytes + 2 * argument.nbytes


def test_too_little_memory_says_how_much_is_needed():
    with pytest.raises(InputError, match=r"^max_memory = 1000 is too small for one image: allow at least \d+ bytes"):
        operators(Pooling(4), max_memory=1000)
