"""Accelerated proximal gradient steps on the weights of some arrangements, in one precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from convexbn.gated.metric import Metric, common_metric
from convexbn.gated.program import GatedProgram
from convexbn.losses import Loss
from convexbn.smoothing import smooth
from convexbn.solvers.pooled import Operator
from convexbn.validation import FloatArray

if TYPE_CHECKING:
    import torch

ACCURACY = 3e-2  # of the multiplier of a step
NOISE = 300.0  # roundings: a change of the predictions that is smaller says nothing about curvature
FIRST_WIDTH, FLATTER = 0.1, 0.25  # of the smoothed kinks of a loss, and how they sharpen


class State(NamedTuple):
    """The weights and the point of the next step with their predictions; replaced as one, so that an interrupt finds them in step."""

    weights: torch.Tensor
    predictions: torch.Tensor
    point: torch.Tensor
    point_predictions: torch.Tensor
    momentum: float
    multiplier: torch.Tensor


class Descent:
    """The steps, on the arrangements `chosen`; kinks of a loss are smoothed, the less the smaller the gap gets."""

    def __init__(
        self,
        program: GatedProgram,
        operator: Operator,
        chosen: torch.Tensor,
        gates: torch.Tensor,
        weights: torch.Tensor,
        width: float = FIRST_WIDTH,
    ) -> None:
        dtype = operator.basis.dtype
        self.program, self.operator, self.chosen, self.shards = program, operator, chosen, program.shards
        self.width = width
        self.metric: Metric = common_metric(operator, gates, program.shards)
        weights = weights.to(dtype)
        predictions = self._forward(weights)
        multiplier = weights.new_zeros((weights.shape[1] + 1, weights.shape[2]))
        self.state = State(weights, predictions, weights, predictions, 1.0, multiplier)
        self.dual: tuple[FloatArray, torch.Tensor] | None = None

    @property
    def loss(self) -> Loss:
        """The loss, smoothed where it has kinks."""
        return smooth(self.program.loss, self.width)

    def _forward(self, weights: torch.Tensor) -> torch.Tensor:
        return self.shards.over_arrangements(self.operator.forward(weights))

    def _gradient(self, predictions: torch.Tensor) -> torch.Tensor:
        """The gradient of the loss in the weights, (q, r+1, C); with it the dual point that `gap` needs."""
        import torch

        slope = self.loss.gradient(predictions.double().cpu().numpy(), self.program.y)
        residual = torch.as_tensor(slope, dtype=predictions.dtype, device=predictions.device)
        gradient = self.shards.over_samples(self.operator.adjoint(residual))
        self.dual = -slope, gradient
        return gradient

    def step(self) -> None:
        """One proximal step from the point ahead, and the next point ahead; without momentum where that has begun to climb."""
        state, smoothness = self.state, self.loss.smoothness
        gradient = self._gradient(state.point_predictions)
        while True:
            metric = self.metric.times(smoothness)
            weights, multiplier = metric.step(state.point, gradient, self.program.beta, self.program.penalty, state.multiplier, ACCURACY)
            predictions = self._forward(weights)
            ratio = self._curvature(weights - state.point, predictions - state.point_predictions, predictions)
            if ratio <= 1.0:
                break
            self.metric = self.metric.raised(ratio)
        climbs = metric.inner(state.point - weights, weights - state.weights) > 0
        momentum = 1.0 if climbs else state.momentum
        following = 0.5 * (1.0 + (1.0 + 4.0 * momentum**2) ** 0.5)
        ahead = (momentum - 1.0) / following
        point = weights + ahead * (weights - state.weights)
        point_predictions = predictions + ahead * (predictions - state.predictions)
        self.state = State(weights, predictions, point, point_predictions, following, multiplier)

    def _curvature(self, change: torch.Tensor, image: torch.Tensor, predictions: torch.Tensor) -> float:
        """||A d||^2 / ||d||_M^2: above 1 the metric was too small for this step. 0 where rounding would decide."""
        import torch

        size = self.shards.total_over_samples(float((image * image).sum()))
        noise = NOISE * torch.finfo(image.dtype).eps
        total = self.shards.total_over_samples(float((predictions * predictions).sum()))
        return 0.0 if size <= noise**2 * total else size / self.metric.inner(change, change)

    def gap(self) -> float:
        """The relative duality gap over the chosen arrangements, as far as this precision sees it: no more products are needed.

        A gap that the smoothed kinks prevent from closing sharpens them.
        """
        program, state = self.program, self.state
        assert self.dual is not None
        v = -program.loss.project(-self.dual[0], program.y)
        price = self.shards.largest(program.penalty.dual_norms(self.dual[1]))
        loss = self.shards.total_over_samples(program.loss.value(state.predictions.double().cpu().numpy(), program.y))
        penalty = self.shards.total_over_arrangements(float(program.penalty.norms(state.weights).double().sum()))
        objective = loss + program.beta * penalty
        gap = objective - program.bound(v, price)[0]
        if self.loss is not program.loss and gap <= self.width * self.shards.total_over_samples(float(np.sum(v * v))):
            self.width *= FLATTER
            self.state = state._replace(point=state.weights, point_predictions=state.predictions, momentum=1.0)
        return gap / objective if objective > 0 else 0.0

    def saved(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        arrays = {name: value.cpu().numpy() for name, value in self.state._asdict().items() if name != "momentum"}
        metric = {"rest": self.metric.rest, "curvature": self.metric.curvature.cpu().numpy()}
        return {**arrays, **metric, "momentum": self.state.momentum, "width": self.width, "chosen": self.chosen.cpu().numpy()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from there."""
        import torch

        def tensor(name: str) -> torch.Tensor:
            return torch.as_tensor(saved[name], device=self.operator.basis.device)

        weights, point = tensor("weights"), tensor("point")
        self.state = State(
            weights, tensor("predictions"), point, tensor("point_predictions"), float(saved["momentum"]), tensor("multiplier")
        )
        self.metric = replace(self.metric, rest=float(saved["rest"]), curvature=tensor("curvature"))
        self.width = float(saved["width"])
