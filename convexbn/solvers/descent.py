"""The two convergent parts of sliding Frank-Wolfe: the group lasso for the amplitudes, and descent on the neurons."""

from __future__ import annotations

import numpy as np

from convexbn.losses import Loss
from convexbn.pricing.local import normalised
from convexbn.validation import FloatArray


def fit_amplitudes(
    features: FloatArray, y: FloatArray, outputs: FloatArray, beta: float, loss: Loss, *, steps: int = 500, tolerance: float = 1e-7
) -> FloatArray:
    """Minimise L(Phi W, y) + beta sum_j ||w_j|| over W (m, C), by accelerated proximal gradient with restarts, from `outputs`.

    Phi (n, m) holds the activations (U'S)_+, y is (n, C).
    """
    if not features.shape[1]:
        return outputs
    lipschitz = loss.smoothness * float(np.linalg.norm(features.T @ features, 2)) * (1.0 + 1e-9)
    current = ahead = outputs
    momentum = 1.0
    for _ in range(steps):
        point = ahead - features.T @ loss.gradient(features @ ahead, y) / lipschitz
        length = np.linalg.norm(point, axis=1, keepdims=True)
        following = point * np.maximum(0.0, 1.0 - beta / lipschitz / np.where(length > 0, length, 1.0))
        change = following - current
        if np.sum((ahead - following) * change) > 0:
            momentum = 1.0
        grown = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2))
        ahead = following + (momentum - 1.0) / grown * change
        current, momentum = following, grown
        if np.linalg.norm(change) <= tolerance * np.linalg.norm(current):
            break
    return current


def slide(
    basis: FloatArray,
    y: FloatArray,
    directions: FloatArray,
    outputs: FloatArray,
    beta: float,
    loss: Loss,
    width: float,
    *,
    steps: int = 100,
) -> tuple[FloatArray, FloatArray]:
    """Descend by L-BFGS on  L( sum_j rho(U' a_j) v_j^T, y ) + beta sum_j ||a_j|| ||v_j||  from a_j = s_j ||w_j||, v_j = w_j / ||w_j||.

    rho is ReLU with its kink rounded over |t| <= mu_j = width ||a_j|| / sqrt(n). With one output v_j = +-1 stays; else v_j is
    scaled by the first ||a_j||, so that all variables have curvatures of one order.

    Returns unit directions (m, r+1) and outputs (m, C).
    """
    from scipy.optimize import minimize

    count, inputs = directions.shape
    size = np.linalg.norm(outputs, axis=1)
    signs = outputs / size[:, None]
    moving = outputs.shape[1] > 1
    kink = width * size / np.sqrt(len(basis))

    def split(x: FloatArray) -> tuple[FloatArray, FloatArray]:
        inner = x[: count * inputs].reshape(count, inputs)
        return inner, x[count * inputs :].reshape(count, -1) / size[:, None] if moving else signs

    def objective(x: FloatArray) -> tuple[float, FloatArray]:
        inner, outer = split(x)
        pre = basis @ inner.T
        slope = np.clip(0.5 + pre * (0.5 / kink), 0.0, 1.0)
        active = np.where(slope >= 1.0, pre, kink * slope**2)
        predictions = active @ outer
        error = loss.gradient(predictions, y)
        inner_norm, outer_norm = np.linalg.norm(inner, axis=1), np.linalg.norm(outer, axis=1)
        value = loss.value(predictions, y) + beta * float(inner_norm @ outer_norm)
        inner_pull = (beta * outer_norm / np.where(inner_norm > 0, inner_norm, 1.0))[:, None] * inner
        gradient = (slope * (error @ outer.T)).T @ basis + inner_pull
        if not moving:
            return value, gradient.ravel()
        outer_pull = (beta * inner_norm / np.where(outer_norm > 0, outer_norm, 1.0))[:, None] * outer
        return value, np.concatenate([gradient.ravel(), ((active.T @ error + outer_pull) / size[:, None]).ravel()])

    start = (directions * size[:, None]).ravel()
    if moving:
        start = np.concatenate([start, outputs.ravel()])
    result = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": steps, "maxcor": 20, "ftol": 1e-13, "gtol": 1e-10})
    inner, outer = split(result.x)
    return normalised(inner), outer * np.linalg.norm(inner, axis=1)[:, None]
