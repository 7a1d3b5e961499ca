"""The operator of fixed arrangements against the matrix written out, its adjoint identity, and the memory that it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory import Peak
from problems import degenerate_problems, lattices, program_of

from convexbn.arrangements import sample_arrangements
from convexbn.solvers.conic import conic_matrices
from convexbn.solvers.masked import MaskedOperator, gated_patterns, masked_operator
from convexbn.validation import InputError
from convexbn.whitening import whiten

SMALL = 70_000  # bytes: many tiles, masks kept as bits


def random_operator(n: int, columns: int, count: int, **options: object) -> MaskedOperator:
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.standard_normal((n, columns)))[0]
    return masked_operator(basis, gated_patterns(basis, generator.standard_normal((count, columns))), **options)


def dense(operator: MaskedOperator) -> np.ndarray:
    """[D_1 U', ..., D_P U'], (n, P (r+1))."""
    masks = np.unpackbits(operator.bits.numpy(), axis=1)[:, : operator.count]
    return np.hstack([column[:, None] * operator.basis.numpy() for column in masks.T])


def random_pair(operator: MaskedOperator, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    n, columns = operator.basis.shape
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn((operator.count, columns, outputs), dtype=operator.basis.dtype, generator=generator)
    return weights, torch.randn((n, outputs), dtype=operator.basis.dtype, generator=generator)


@pytest.mark.parametrize("max_memory", [SMALL, 2**30])
@pytest.mark.parametrize("outputs", [1, 3, 50])
@pytest.mark.parametrize(("precision", "accuracy"), [("float64", 1e-12), ("float32", 1e-4)])
def test_products_are_those_of_the_matrix(max_memory: int, outputs: int, precision: str, accuracy: float):
    operator = random_operator(150, 6, 21, precision=precision, max_memory=max_memory)
    weights, residual = random_pair(operator, outputs)
    matrix = dense(operator)
    assert operator.forward(weights).numpy() == pytest.approx(matrix @ weights.numpy().reshape(-1, outputs), abs=accuracy)
    assert operator.adjoint(residual).numpy().reshape(-1, outputs) == pytest.approx(matrix.T @ residual.numpy(), abs=accuracy)
    assert (operator.tile(outputs)[0] < 150) == (max_memory == SMALL)
    assert operator.written_out().numpy() == pytest.approx(matrix, abs=0.0)


@pytest.mark.parametrize("problem", degenerate_problems(), ids=str)
def test_it_is_the_matrix_of_the_conic_form(problem):
    _, program = program_of(problem)
    operator = masked_operator(program.basis, program.arrangements.active)
    matrix = conic_matrices(program)[0].toarray()
    half = matrix.shape[1] // 2
    assert dense(operator) == pytest.approx(matrix[:, :half], abs=0.0)
    weights, residual = random_pair(operator, 1)
    both = np.stack([weights[..., 0].numpy(), np.zeros(weights.shape[:2])])
    assert operator.forward(weights)[:, 0].numpy() == pytest.approx(program.forward(both), abs=1e-12)
    assert operator.adjoint(residual)[..., 0].numpy() == pytest.approx(program.adjoint(residual[:, 0].numpy())[0], abs=1e-12)


@given(X=lattices(7, 4), outputs=st.integers(1, 3), count=st.integers(1, 20))
def test_adjoint_identity(X: np.ndarray, outputs: int, count: int):
    basis = whiten(X).basis
    operator = masked_operator(basis, sample_arrangements(basis, count).active)
    weights, residual = random_pair(operator, outputs)
    left, right = torch.sum(operator.forward(weights) * residual), torch.sum(weights * operator.adjoint(residual))
    assert float(left) == pytest.approx(float(right), abs=1e-12 * (1.0 + float(weights.abs().sum())))


@pytest.mark.parametrize("max_memory", [SMALL, 2**30])
def test_a_subset_is_the_operator_of_those_arrangements(max_memory: int):
    operator = random_operator(150, 6, 21, max_memory=max_memory)
    chosen = torch.tensor([0, 3, 8, 9, 15, 20])
    weights, residual = random_pair(operator, 2)
    smaller = operator.take(chosen)
    only = torch.zeros_like(weights)
    only[chosen] = weights[chosen]
    assert smaller.forward(weights[chosen]).numpy() == pytest.approx(operator.forward(only).numpy(), abs=1e-13)
    assert smaller.adjoint(residual).numpy() == pytest.approx(operator.adjoint(residual)[chosen].numpy(), abs=1e-13)


@pytest.mark.parametrize("max_memory", [400_000, 1_500_000])
@pytest.mark.parametrize("outputs", [1, 4])
def test_memory_is_bounded_as_stated(max_memory: int, outputs: int):
    operator = random_operator(2_000, 20, 64, max_memory=max_memory)
    weights, residual = random_pair(operator, outputs)
    assert operator.stored < operator.memory(outputs) <= max_memory
    for product, argument in ((operator.forward, weights), (operator.adjoint, residual)):
        with Peak(operator.basis, operator.bits, argument) as used:
            result = product(argument)
        temporary = operator.memory(outputs) - operator.stored
        assert 0.2 * temporary < used.peak - result.nbytes <= temporary


def test_too_little_memory_says_how_much_is_needed():
    with pytest.raises(InputError, match=r"^max_memory = 1000 is too small.*at least \d+ bytes"):
        random_operator(50, 5, 9, max_memory=1000)
    with pytest.raises(InputError, match="max_memory = 0"):
        random_operator(50, 5, 9, max_memory=0)


def test_wrong_arguments_are_named():
    with pytest.raises(InputError, match=r"active has shape \(2, 4\), not \(P, 5\)"):
        masked_operator(np.eye(5), np.ones((2, 4), dtype=np.bool_))
    with pytest.raises(InputError, match="precision = 'half'"):
        masked_operator(np.eye(5), np.ones((2, 5), dtype=np.bool_), precision="half")


def test_patterns_are_those_of_the_gates():
    generator = np.random.default_rng(3)
    basis, gates = generator.standard_normal((9, 3)), generator.standard_normal((5, 3))
    assert np.array_equal(gated_patterns(basis, gates), (gates @ basis.T) >= 0)
