"""The local part of sliding Frank-Wolfe: descent on directions and outputs of the neurons together."""

from __future__ import annotations

import numpy as np

from convexbn.losses import Loss
from convexbn.patches import NO_POOLING, Pooling
from convexbn.pricing.local import normalised
from convexbn.validation import FloatArray


def slide(
    basis: FloatArray,
    y: FloatArray,
    directions: FloatArray,
    outputs: FloatArray,
    beta: float,
    loss: Loss,
    width: float,
    *,
    pooling: Pooling = NO_POOLING,
    steps: int = 100,
) -> tuple[FloatArray, FloatArray]:
    """Descend by L-BFGS on  L( p sum_j rho(U' a_j) v_j^T, y ) + beta sum_j ||a_j|| ||v_j||  from a_j = s_j ||w_j||, v_j = w_j / ||w_j||.

    p is the pooling of patches, rho is ReLU with its kink rounded over |t| <= mu_j = width ||a_j|| / sqrt(rows of U'). With one
    output v_j = +-1 stays; else v_j is scaled by the first ||a_j||, so that all variables have curvatures of one order.

    Returns unit directions (m, r+1) and outputs (m, C).
    """
    from scipy.optimize import minimize

    count, inputs = directions.shape
    size = np.linalg.norm(outputs, axis=1)
    signs = outputs / size[:, None]
    moving = outputs.shape[1] > 1
    kink = width * size / np.sqrt(len(basis))
    # The curvature in a_j is of the order of that of the loss plus beta / ||a_j||: a stretch brings all to one size.
    stretch = np.sqrt(0.5 * min(loss.smoothness, 1.0) + beta / size)[:, None]

    def split(x: FloatArray) -> tuple[FloatArray, FloatArray]:
        inner = (x[: count * inputs].reshape(count, inputs) / stretch).astype(basis.dtype, copy=False)
        return inner, x[count * inputs :].reshape(count, -1) / size[:, None] if moving else signs

    def objective(x: FloatArray) -> tuple[float, FloatArray]:
        inner, outer = split(x)
        pre = basis @ inner.T
        slope = np.clip(0.5 + pre * (0.5 / kink), 0.0, 1.0)
        active = pooling.pool(np.where(slope >= 1.0, pre, kink * slope**2))
        predictions = active @ outer
        error = loss.gradient(predictions, y)
        inner_norm, outer_norm = np.linalg.norm(inner, axis=1), np.linalg.norm(outer, axis=1)
        value = loss.value(predictions, y) + beta * float(inner_norm @ outer_norm)
        inner_pull = (beta * outer_norm / np.where(inner_norm > 0, inner_norm, 1.0))[:, None] * inner
        gradient = ((slope * pooling.spread(error @ outer.T)).T @ basis + inner_pull) / stretch
        if not moving:
            return value, gradient.ravel()
        outer_pull = (beta * inner_norm / np.where(outer_norm > 0, outer_norm, 1.0))[:, None] * outer
        return value, np.concatenate([gradient.ravel(), ((active.T @ error + outer_pull) / size[:, None]).ravel()])

    start = (stretch * directions * size[:, None]).ravel()
    if moving:
        start = np.concatenate([start, outputs.ravel()])
    result = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": steps, "maxcor": 20, "ftol": 1e-13, "gtol": 1e-10})
    inner, outer = split(result.x)
    return normalised(inner), outer * np.linalg.norm(inner, axis=1)[:, None]
