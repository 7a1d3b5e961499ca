"""The gated program as data: basis, gates, targets, loss, beta and penalty, with its objective and its bound."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from convexbn.choices import without_rounding
from convexbn.dual import best_scale
from convexbn.gated.penalties import GroupNorm, Penalty
from convexbn.losses import Loss, of_unit_size
from convexbn.patches import NO_POOLING, Pooling
from convexbn.shards import Shards
from convexbn.solvers.masked import MAX_MEMORY, MaskedOperator, gated_bits
from convexbn.solvers.pooled import Operator, PooledOperator
from convexbn.validation import FloatArray, InputError, check_positive

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class GatedProgram:
    """The convex program of a two-layer gated network with batch normalisation, over P fixed gates g_i,

        min  L( sum_i D_i U' S_i, Y ) + beta sum_i ||S_i||,        D_i = diag(1[U' g_i >= 0]),  S_i (r+1, C).

    On patches of images, K rows a sample, predictions are pooled: L( p sum_i D_i U' S_i, Y ).

    L is a sum over samples; ||.|| the Frobenius norm ("group") or the nuclear norm ("nuclear"), for C = 1 one and the same.
    It is the program of `Program` without its cones: ANOTHER model, whose gates open by g_i whatever S_i is. With the nuclear
    norm and all arrangements its optimum is a lower bound on that of the ReLU network; over a sample of gates, or with the group norm
    for C > 1, it is neither a lower nor an upper bound. Source: Mishkin, Sahiner and Pilanci 2022 (gated ReLU).

    Attributes
    ----------
    basis : (n K, r+1) U', K = 1 without patches; orthonormal columns make it batch normalisation, the program is solved on any basis
    gates : (P, r+1) the g_i, in float64 wherever the program is solved
    y : (n, C) targets
    loss, beta, penalty : L, beta, and the norm
    device : where products are taken, "cpu" or "cuda"
    max_memory : bytes for masks and temporary arrays, beyond basis and weights
    shards : which part of samples and arrangements this process has; basis, gates and y are then that part
    pooling : p, from the rows of the basis to samples; the identity by default
    """

    basis: FloatArray
    gates: FloatArray
    y: FloatArray
    loss: Loss
    beta: float
    penalty: Penalty = field(default_factory=GroupNorm)
    device: str = "cpu"
    max_memory: int = MAX_MEMORY
    shards: Shards = field(default_factory=Shards)
    pooling: Pooling = NO_POOLING

    def __post_init__(self) -> None:
        check_positive(self.beta, "beta")
        if self.y.ndim != 2 or len(self.y) * self.pooling.patches != len(self.basis):
            each = f", {self.pooling.patches} for each sample" if self.pooling.patches > 1 else ""
            raise InputError(f"y has shape {self.y.shape}, but the basis has {len(self.basis)} rows{each}: pass (n, C)")
        none = not len(self.gates) and self.shards.arrangements is None  # one process of several may be without any
        if self.gates.ndim != 2 or self.gates.shape[1] != self.basis.shape[1] or none:
            raise InputError(f"gates have shape {self.gates.shape}, not (P, {self.basis.shape[1]}): pass a row for each arrangement")
        object.__setattr__(self, "shards", replace(self.shards, device=self.device))

    @cached_property
    def operator(self) -> Operator:
        """The linear map in float64."""
        import torch

        basis = torch.as_tensor(self.basis, device=self.device)
        bits = torch.as_tensor(gated_bits(self.basis, self.gates), device=self.device)
        if self.pooling.patches == 1:
            return MaskedOperator(basis, bits, len(self.gates), self.max_memory)
        return PooledOperator(basis, bits, len(self.gates), self.pooling, self.max_memory)

    @cached_property
    def reach(self) -> float:
        """||p|| ||U'||, over all processes: no p D_i U' has a larger norm. Without patches 1 on a whitened basis, to rounding."""
        import torch

        gram = self.operator.basis.mT @ self.operator.basis
        return self.operator.norm * float(torch.linalg.eigvalsh(self.shards.over_samples(gram))[-1].clamp_min(0.0).sqrt())

    @cached_property
    def total(self) -> int:
        """P, over all processes."""
        return round(self.shards.total_over_arrangements(float(len(self.gates))))

    def with_beta(self, beta: float) -> GatedProgram:
        """The same program with another beta, on the same operator."""
        return self._changed(beta=beta)

    def rescaled(self, unit: float) -> GatedProgram:
        """The program of targets y / unit, whose weights are those of this one over `unit`, on the same operator."""
        problem = of_unit_size(self.y, self.loss, self.beta, unit)
        return self._changed(y=problem.y, loss=problem.loss, beta=problem.beta)

    def take(self, arrangements: torch.Tensor) -> GatedProgram:
        """The program over a subset of the gates, `arrangements` their numbers (q,), rising."""
        return self._changed(self.operator.take(arrangements), gates=self.gates[arrangements.cpu().numpy()])

    def _changed(self, operator: Operator | None = None, **changes: Any) -> GatedProgram:
        other = replace(self, **changes)
        other.__dict__.update(operator=operator or self.operator, reach=self.reach)
        return other

    def predictions(self, weights: torch.Tensor) -> FloatArray:
        """sum_i D_i U' S_i, (n, C), of weights (P, r+1, C), in float64."""
        import torch

        nothing = torch.zeros(self.y.shape, dtype=torch.float64, device=self.device)
        found = self.shards.over_arrangements(self.operator.forward(weights.double()) if bool(weights.any()) else nothing)
        values: FloatArray = found.cpu().numpy()
        return values

    def objective(self, weights: torch.Tensor, predictions: FloatArray | None = None) -> float:
        """The objective of weights (P, r+1, C), in float64."""
        f = self.predictions(weights) if predictions is None else predictions
        penalty = self.shards.total_over_arrangements(float(self.penalty.norms(weights.double()).sum()))
        return self.shards.total_over_samples(self.loss.value(f, self.y)) + self.beta * penalty

    def worths(self, v: FloatArray) -> torch.Tensor:
        """(P,) the dual norms of U'^T D_i V for V (n, C): at most beta for all i where V is feasible."""
        import torch

        gradient = self.operator.adjoint(torch.as_tensor(v, device=self.device))
        return self.penalty.dual_norms(self.shards.over_samples(gradient))

    def bound(self, v: FloatArray, price: float) -> tuple[float, float]:
        """The best lower bound -L*(-t V) with t `price` <= beta, and its t; `price` the largest of the `worths` of V.

        Weak duality, for any V in the domain of the conjugate: `Loss.project` brings it there.
        """

        def value(t: float) -> float:
            return self.shards.total_over_samples(-self.loss.conjugate(-t * v, self.y))

        scale, best = best_scale(value, self.beta, price, iterations=12)
        return best + 0.0, scale  # no minus zero

    def price(self, v: FloatArray) -> float:
        """The largest of the `worths` of V, over all gates: exact."""
        return self.shards.largest(self.worths(v))

    def beta_max(self) -> float:
        """The smallest beta for which no gate carries weight."""
        pull = -self.loss.gradient(np.zeros_like(self.y), self.y)
        return without_rounding(self.price(pull), self.shards.total_over_samples(float(np.sum(pull**2))) ** 0.5)
