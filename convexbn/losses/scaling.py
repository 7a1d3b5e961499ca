"""A problem in the natural unit of its targets, so that tolerances mean the same for all."""

from __future__ import annotations

from typing import NamedTuple

from convexbn.losses.protocol import Loss
from convexbn.validation import FloatArray


class UnitProblem(NamedTuple):
    """Targets y / unit, the loss of these, and beta / unit.

    Outputs, predictions and dual points of the problem itself are `unit` times those of this one, objectives and bounds unit^2 times.
    """

    y: FloatArray
    loss: Loss
    beta: float
    unit: float


def of_unit_size(y: FloatArray, loss: Loss, beta: float, unit: float | None = None) -> UnitProblem:
    """min L(f, y) + beta sum_j ||s_j|| ||v_j|| over f / unit; None takes the unit that the loss finds in the targets."""
    chosen = loss.scale(y) if unit is None else unit
    return UnitProblem(y / chosen, loss.rescaled(chosen), beta / chosen, chosen)
