"""Dual points: where they come from, the dual objective along one, and how far it may be scaled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convexbn.losses import Loss
from convexbn.validation import FloatArray


def residuals(loss: Loss, y: FloatArray, predictions: FloatArray, objective: float) -> list[FloatArray]:
    """Minus the gradient of the loss at a network's outputs; at 0 as well where the zero network is the better one.

    From beta_max on the zero network is optimal, and the residual of any other network says less.
    """
    nothing = np.zeros(y.shape)
    outputs = [predictions, nothing] if objective > loss.value(nothing, y) else [predictions]
    return [-loss.gradient(f, y) for f in outputs]


def dual_values(loss: Loss, y: FloatArray, v: FloatArray) -> Callable[[float], float]:
    """t -> -L*(-t v), the dual objective along v."""
    return lambda t: -loss.conjugate(-t * v, y)


def best_scale(value: Callable[[float], float], beta: float, price: float, *, iterations: int = 500) -> tuple[float, float]:
    """The t >= 0 with t `price` <= beta and a large `value`, -L*(-t V), and that value: concave in t, and any t is valid."""
    from scipy.optimize import minimize_scalar

    top = beta / price if price > 0 else 1.0
    with np.errstate(over="ignore"):  # for beta far beyond beta_max the largest scale overflows, to minus infinity
        inner = 0.0
        if top > 0:
            inner = minimize_scalar(lambda t: -value(t), bounds=(0.0, min(1.0, top)), method="bounded", options={"maxiter": iterations}).x
        return max(((t, value(t)) for t in (0.0, float(inner), min(1.0, top), top)), key=lambda pair: pair[1])
