"""Gated programs of few samples by ADMM with an exact linear solve: one n x n Cholesky factor, whatever the number of arrangements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from convexbn.gated.program import GatedProgram
from convexbn.solution import relative_gap
from convexbn.validation import FloatArray

if TYPE_CHECKING:
    import torch

OVER = 1.8  # over-relaxation
TRACE = 0.2  # the stiffness of the weights, in units of the mean eigenvalue of the kernel
KINKED = 0.3  # the stiffness of the predictions for losses without curvature
KERNEL_CHECK = 5  # iterations between looks at the gap
BALANCE = (10, 20, 40, 80, 160, 320)  # iterations after which the two residuals are balanced
UNBALANCED = 3.0
SAMPLES = 3000  # up to which it is the faster method
WRITTEN_OUT = 2**19  # entries of A, up to which it is made: so small a matrix stays in the cache


def fits_kernel(program: GatedProgram) -> bool:
    """Whether the method may be taken: one process, a processor, and memory for three n x n arrays."""
    return program.shards.alone and program.device == "cpu" and 24 * len(program.y) ** 2 <= program.max_memory


@dataclass
class KernelIterate:
    """The iterate of ADMM on  min L(f) + beta sum_i ||S_i||  subject to f = A S, in scaled form.

    Projection on the graph { (Z, g) : g = A Z } needs (r I + A A^T)^{-1}, r the quotient of the two stiffnesses, and
    A A^T is n x n whatever P is. The quotient stays, so it is factored once;
    the common stiffness changes freely. S and f meet the proximal maps of the penalty and of the loss. Source: Boyd, Parikh, Chu,
    Peleato and Eckstein 2011 (ADMM), Parikh and Boyd 2014 (graph form).
    """

    program: GatedProgram
    weights: torch.Tensor

    def __post_init__(self) -> None:
        program, small = self.program, self.program.y[:, :1].size * self.weights[:, :, :1].numel() <= WRITTEN_OUT
        self.matrix = program.operator.written_out().numpy() if small else None
        kernel = program.operator.kernel().numpy()
        self.quotient = TRACE * float(np.trace(kernel)) / len(kernel)
        self.solve = _solver(kernel, self.quotient)
        smoothness = program.loss.smoothness
        self.stiffness = KINKED if not np.isfinite(smoothness) else min(smoothness, 0.8 * smoothness**2)
        self.shift = self.weights * 0.0
        self.f = self.forward(self.weights)
        self.f_shift = np.zeros_like(self.f)
        self.iterations = 0

    def forward(self, weights: torch.Tensor) -> FloatArray:
        """A S, (n, C)."""
        if self.matrix is None:
            predictions: FloatArray = self.program.operator.forward(weights).numpy()
        else:
            predictions = self.matrix @ weights.numpy().reshape(-1, weights.shape[2])
        return predictions

    def adjoint(self, v: FloatArray) -> torch.Tensor:
        """A^T V, (P, r+1, C)."""
        import torch

        if self.matrix is None:
            return self.program.operator.adjoint(torch.as_tensor(v))
        return torch.as_tensor(self.matrix.T @ v).view(self.weights.shape)

    def step(self) -> None:
        """One iteration; now and then the stiffness is balanced, and the scaled shifts with it."""
        program, penalty_stiffness = self.program, self.quotient * self.stiffness
        centre, target = self.weights - self.shift, self.f - self.f_shift
        multiplier = self.solve(target - self.forward(centre))
        image = self.adjoint(multiplier)
        raised = OVER * (centre + image) + (1.0 - OVER) * self.weights + self.shift
        f_raised = OVER * (target - self.quotient * multiplier) + (1.0 - OVER) * self.f + self.f_shift
        weights = program.penalty.prox(raised, program.beta / penalty_stiffness)[0]
        f = program.loss.prox(f_raised, program.y, 1.0 / self.stiffness)
        self.iterations += 1
        factor = 1.0
        if self.iterations in BALANCE:
            apart = self.size(centre + image - weights, target - self.quotient * multiplier - f)
            moved = self.size(weights - self.weights, f - self.f)
            factor = self.balance(apart, moved)
        self.shift, self.f_shift, self.weights, self.f = (raised - weights) / factor, (f_raised - f) / factor, weights, f
        self.stiffness *= factor

    def size(self, weights: torch.Tensor, f: FloatArray) -> float:
        """The norm of a pair, each in its own stiffness."""
        return float(np.hypot(self.quotient**0.5 * float(weights.norm()), np.linalg.norm(f)))

    def balance(self, apart: float, moved: float) -> float:
        """What to multiply the stiffness by: more where the copies are far apart, less where the iterate moves much, for their sizes."""
        one, other = apart * self.size(self.shift, self.f_shift), moved * self.size(self.weights, self.f)
        if min(one, other) <= 0.0 or 1.0 / UNBALANCED <= one / other <= UNBALANCED:
            return 1.0
        return float(np.clip(np.sqrt(one / other), 0.2, 5.0))

    def dual(self) -> FloatArray:
        """(n, C) minus the gradient of the loss at f, by its proximal map: in the domain of the conjugate, also at kinks."""
        point: FloatArray = -self.program.loss.project(self.stiffness * self.f_shift, self.program.y)
        return point

    def saved(self) -> dict[str, Any]:
        """Everything that the next iteration depends on, beside the factor."""
        numbers = {"stiffness": self.stiffness, "iterations": self.iterations}
        return {"weights": self.weights.numpy(), "shift": self.shift.numpy(), "f": self.f, "f_shift": self.f_shift, **numbers}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from there."""
        import torch

        self.weights, self.shift = torch.as_tensor(saved["weights"]), torch.as_tensor(saved["shift"])
        self.f, self.f_shift = saved["f"], saved["f_shift"]
        self.stiffness, self.iterations = float(saved["stiffness"]), int(saved["iterations"])

    def gap(self) -> float:
        """The relative gap of the weights, with the dual point scaled down to where it is feasible."""
        program, v = self.program, self.dual()
        f = self.forward(self.weights)
        objective = program.loss.value(f, program.y) + program.beta * float(program.penalty.norms(self.weights).sum())
        price = float(program.penalty.dual_norms(self.adjoint(v)).amax())
        bound = -program.loss.conjugate(-v * min(1.0, program.beta / price if price > 0 else 1.0), program.y)
        return relative_gap(objective, bound)


def _solver(kernel: FloatArray, quotient: float) -> Callable[[FloatArray], FloatArray]:
    """The inverse of quotient I + kernel as a map of (n, C)."""
    from scipy.linalg import blas, lapack

    kernel[np.diag_indices_from(kernel)] += quotient
    factor, failed = lapack.dpotrf(kernel.T, lower=1, overwrite_a=1, clean=0)
    assert failed == 0, "a positive multiple of the identity is added"

    def solve(right: FloatArray) -> FloatArray:
        if right.shape[1] > 1:
            solution: FloatArray = lapack.dpotrs(factor, right, lower=1)[0]
            return solution
        half = blas.dtrsv(factor, right[:, 0], lower=1)  # for one column three to five times as fast as dpotrs
        solution = blas.dtrsv(factor, half, lower=1, trans=1, overwrite_x=1)[:, None]
        return solution

    return solve
