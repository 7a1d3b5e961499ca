"""The local part of sliding Frank-Wolfe: descent on the directions and outputs of the neurons together."""

from __future__ import annotations

import time

import numpy as np

from convexbn.losses import Loss
from convexbn.patches import NO_POOLING, Pooling
from convexbn.pricing.local import normalised
from convexbn.smoothing import on_samples
from convexbn.validation import FloatArray

BLOCK = 32_768  # activations at a time: they stay in the cache


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
    deadline: float = np.inf,
) -> tuple[FloatArray, FloatArray]:
    """Descend by L-BFGS on  L( p sum_j rho(U' a_j) v_j^T, y ) + beta sum_j ||a_j|| ||v_j||  from a_j = s_j ||w_j||, v_j = w_j / ||w_j||.

    p is the pooling of patches, rho is ReLU with its kink rounded over |t| <= mu_j = width ||a_j|| / sqrt(rows of U'). With one
    output v_j = +-1 stays; else v_j is scaled by the first ||a_j||, so that all variables have curvatures of one order.

    It ends early where `time.perf_counter()` passes `deadline`. Returns unit directions (m, r+1) and outputs (m, C).
    """
    from scipy.optimize import minimize

    count, inputs = directions.shape
    size = np.linalg.norm(outputs, axis=1)
    signs = outputs / size[:, None]
    moving = outputs.shape[1] > 1
    kink = width * size / np.sqrt(len(basis))
    bend, rate = kink.astype(basis.dtype), (0.5 / kink).astype(basis.dtype)
    # The curvature in a_j is of the order of that of the loss plus beta / ||a_j||: a stretch brings all to one size.
    stretch = np.sqrt(0.5 * min(loss.smoothness, 1.0) + beta / size)[:, None]

    block = pooling.patches * max(1, BLOCK // (count * pooling.patches))

    def split(x: FloatArray) -> tuple[FloatArray, FloatArray]:
        inner = x[: count * inputs].reshape(count, inputs) / stretch
        return inner, x[count * inputs :].reshape(count, -1) / size[:, None] if moving else signs

    def objective(x: FloatArray) -> tuple[float, FloatArray]:
        inner, outer = split(x)
        inner_norm, outer_norm = np.linalg.norm(inner, axis=1), np.linalg.norm(outer, axis=1)
        value = beta * float(inner_norm @ outer_norm)
        inner_slope = (beta * outer_norm / np.where(inner_norm > 0, inner_norm, 1.0))[:, None] * inner
        outer_slope = (beta * inner_norm / np.where(outer_norm > 0, outer_norm, 1.0))[:, None] * outer
        columns = np.ascontiguousarray(inner.T, dtype=basis.dtype)
        for first in range(0, len(basis), block):
            rows = basis[first : first + block]
            samples = slice(first // pooling.patches, (first + block) // pooling.patches)
            targets, part = y[samples], on_samples(loss, samples)
            active = rows @ columns
            slope = active * rate
            slope += 0.5
            np.clip(slope, 0.0, 1.0, out=slope)
            np.maximum(active, bend * slope * slope, out=active)
            pooled = pooling.pool(active)
            predictions = pooled @ outer
            value += part.value(predictions, targets)
            error = part.gradient(predictions, targets)
            slope *= pooling.spread(error @ outer.T)
            inner_slope += slope.T @ rows
            if moving:
                outer_slope += pooled.T @ error
        if not moving:
            return value, (inner_slope / stretch).ravel()
        return value, np.concatenate([(inner_slope / stretch).ravel(), (outer_slope / size[:, None]).ravel()])

    def stop(xk: object) -> None:
        if time.perf_counter() > deadline:
            raise StopIteration

    start = (stretch * directions * size[:, None]).ravel()
    if moving:
        start = np.concatenate([start, outputs.ravel()])
    result = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        callback=stop,
        options={"maxiter": steps, "maxcor": 20, "ftol": 1e-13, "gtol": 1e-10},
    )
    inner, outer = split(result.x)
    return normalised(inner), outer * np.linalg.norm(inner, axis=1)[:, None]
