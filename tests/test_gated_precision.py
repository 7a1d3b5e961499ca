"""The gated model in float32, and with products in TF32: objective and bound are exact all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import several_targets
from torch.utils._python_dispatch import TorchDispatchMode

from convexbn import GatedProgram, GatedSolver, Status
from convexbn.gated.gates import choose_gates
from convexbn.gated.penalties import PENALTIES
from convexbn.losses import Squared
from convexbn.whitening import whiten

EXACT = GatedSolver(tolerance=1e-9, seconds=20.0)


def two_outputs() -> GatedProgram:
    whitening = whiten(np.random.default_rng(0).standard_normal((15, 3)))
    targets = several_targets(Squared(), 15, 2, 3)
    program = GatedProgram(whitening.basis, choose_gates(6, whitening, 1), targets, Squared(), 1.0, PENALTIES["group"])
    return program.with_beta(0.1 * program.beta_max())


@pytest.mark.parametrize("precision", ["mixed", "float64", "float32"])
def test_precisions_agree(precision: str):
    program = two_outputs()
    solution = GatedSolver(tolerance=1e-5, precision=precision, method="steps").solve(program)
    exact = EXACT.solve(program)
    assert solution.relative_gap <= 1e-5
    assert exact.bound * (1.0 - 1e-12) <= solution.objective <= exact.objective * (1.0 + 1.1e-5)
    assert program.objective(torch.as_tensor(solution.weights)) == pytest.approx(solution.objective, rel=1e-12)


class TF32(TorchDispatchMode):
    """Products of float32 matrices as a GPU takes them where TF32 is allowed: ten bits behind the leading one are read."""

    products = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        def rounded(value: object) -> object:
            if not (isinstance(value, torch.Tensor) and value.dtype == torch.float32):
                return value
            return ((value.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

        if function.overloadpacket in PRODUCTS:
            factors = len(arguments) - 2  # what a product is added to keeps its digits
            arguments = (*arguments[:factors], *(rounded(value) for value in arguments[factors:]))
            self.products += arguments[-1].dtype == torch.float32
        return function(*arguments, **(options or {}))


PRODUCTS = {getattr(torch.ops.aten, name) for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "mv", "addmv", "addmv_")}


def test_tf32_rounds_as_told():
    with TF32():
        values = torch.tensor([[1.0 + 2.0**-10, 1.0 + 2.0**-12, 3.0]]) @ torch.eye(3)
    assert values.tolist() == [[1.0 + 2.0**-10, 1.0, 3.0]]


@pytest.mark.parametrize(("precision", "tolerance"), [("mixed", 1e-6), ("float32", 1e-2)])
def test_products_in_tf32_leave_objective_and_bound_exact(precision: str, tolerance: float):
    program, exact = two_outputs(), EXACT.solve(two_outputs())
    with TF32() as mode:
        solution = GatedSolver(tolerance=tolerance, precision=precision, method="steps").solve(program)
    assert mode.products > 20
    assert solution.status is Status.OPTIMAL
    assert program.objective(torch.as_tensor(solution.weights)) == pytest.approx(solution.objective, rel=1e-12)
    assert (1.0 - tolerance) * solution.objective <= solution.bound <= exact.objective
    assert exact.bound <= solution.objective
