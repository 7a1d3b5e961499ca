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
from convexbn.solution import relative_gap
from convexbn.solvers.pooled import Operator
from convexbn.validation import FloatArray

if TYPE_CHECKING:
    import torch

NOISE = 300.0  # roundings: a change of the predictions that is smaller says nothing about curvature
NOISE_OF_PRODUCTS, PROBE = 3.0, 256  # rows of the basis by whose products their rounding is measured
FIRST_WIDTH, FLATTER = 0.1, 0.25  # of the smoothed kinks of a loss, and how they sharpen


class State(NamedTuple):
    """The weights and the point of the next step, with their predictions and with their sums over arrangements as the metric reads them.

    Replaced as one, so that an interrupt finds them in step.
    """

    weights: torch.Tensor
    predictions: torch.Tensor
    sums: torch.Tensor
    point: torch.Tensor
    point_predictions: torch.Tensor
    point_sums: torch.Tensor
    momentum: float
    multiplier: torch.Tensor

    def without_momentum(self) -> State:
        """The next step from the weights themselves."""
        return self._replace(point=self.weights, point_predictions=self.predictions, point_sums=self.sums, momentum=1.0)


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
        self.width, self.noise = width, _noise(operator.basis)
        self.metric: Metric = common_metric(operator, gates, program.shards)
        weights = weights.to(dtype)
        predictions, sums = self.shards.over_arrangements(operator.forward(weights)), self.metric.sums(weights)
        multiplier = 0.0 * sums
        self.state = State(weights, predictions, sums, weights, predictions, sums, 1.0, multiplier)
        self.dual: tuple[FloatArray, torch.Tensor] | None = None
        self.alive = 0

    @property
    def loss(self) -> Loss:
        """The loss, smoothed where it has kinks."""
        return smooth(self.program.loss, self.width)

    def _gradient(self, predictions: torch.Tensor, news: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of the loss in the weights, (q, r+1, C), and the news; with it the dual point that `gap` needs."""
        import torch

        slope = self.loss.gradient(predictions.double().cpu().numpy(), self.program.y)
        residual = torch.as_tensor(slope, dtype=predictions.dtype, device=predictions.device)
        gradient, news = self.shards.sums_over_samples(self.operator.adjoint(residual), news)
        self.dual = -slope, gradient
        return gradient, news

    def step(self, *news: float) -> tuple[float, ...]:
        """One proximal step from the point ahead, and the next point ahead; without momentum where that has begun to climb.

        What comes back are the sums of the news of all processes. They travel with the gradient and with the predictions.
        """
        state, smoothness, shards = self.state, self.loss.smoothness, self.shards
        gradient, told = self._gradient(state.point_predictions, state.weights.new_tensor(news))
        while True:
            metric = self.metric.times(smoothness)
            step = metric.step(state.point, state.point_sums, gradient, self.program.beta, self.program.penalty, state.multiplier)
            weights, sums, multiplier = step
            parts = self.operator.forward(weights), metric.products(weights - state.point, weights - state.weights), told
            predictions, products, heard = shards.sums_over_arrangements(*parts)
            size, progress = self.metric.inners(products)  # without the loss's smoothness, as the image has none
            ratio = self._curvature(size, predictions - state.point_predictions, predictions)
            if ratio <= 1.0:
                break
            self.metric = self.metric.raised(ratio)
        momentum = state.momentum if progress >= 0 else 1.0
        following = 0.5 * (1.0 + (1.0 + 4.0 * momentum**2) ** 0.5)
        ahead = (momentum - 1.0) / following
        point = weights + ahead * (weights - state.weights)
        point_predictions = predictions + ahead * (predictions - state.predictions)
        point_sums = sums + ahead * (sums - state.sums)
        self.state = State(weights, predictions, sums, point, point_predictions, point_sums, following, multiplier)
        return tuple(heard.tolist())

    def _curvature(self, size: float, image: torch.Tensor, predictions: torch.Tensor) -> float:
        """||A d||^2 / ||d||_M^2 with `size` ||d||_M^2: above 1 the metric was too small for this step. 0 where rounding would decide."""
        moved, total = self.shards.totals_over_samples(float((image * image).sum()), float((predictions * predictions).sum()))
        return 0.0 if moved <= self.noise**2 * total else moved / size

    def gap(self) -> float:
        """The relative duality gap over the chosen arrangements, as far as this precision sees it: no more products are needed.

        A gap that the smoothed kinks prevent from closing sharpens them.
        """
        program, state = self.program, self.state
        assert self.dual is not None
        v = -program.loss.project(-self.dual[0], program.y)
        norms, worths = program.penalty.norms(state.weights).double(), program.penalty.dual_norms(self.dual[1])
        price = float(worths.amax()) if len(worths) else 0.0
        prices, penalties, alive = self.shards.each_over_arrangements(price, float(norms.sum()), float((norms > 0).sum())).T
        value = program.loss.value(state.predictions.double().cpu().numpy(), program.y)
        loss, square = self.shards.totals_over_samples(value, float(np.sum(v * v)))
        self.alive = round(alive.sum())
        objective = loss + program.beta * penalties.sum()
        bound = program.bound(v, prices.max())[0]
        if self.loss is not program.loss and objective - bound <= self.width * square:
            self.width *= FLATTER
            self.state = state.without_momentum()
        return relative_gap(float(objective), bound)

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

        arrays = {name: tensor(name) for name in State._fields if name != "momentum"}
        self.state = State(**arrays, momentum=float(saved["momentum"]))
        self.metric = replace(self.metric, rest=float(saved["rest"]), curvature=tensor("curvature"))
        self.width = float(saved["width"])


def _noise(basis: torch.Tensor) -> float:
    """The relative change of predictions below which all is rounding; in TF32 products read fewer digits than their factors have."""
    import torch

    rows = basis[:PROBE]
    exact = rows.double() @ rows.double().mT
    lost = float((rows @ rows.mT - exact).norm() / exact.norm().clamp_min(1e-300))
    return max(NOISE * torch.finfo(basis.dtype).eps, NOISE_OF_PRODUCTS * lost)
