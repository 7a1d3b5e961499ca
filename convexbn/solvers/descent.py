"""The two convergent parts of sliding Frank-Wolfe: the group lasso for the amplitudes, and descent on the neurons."""

from __future__ import annotations

import numpy as np

from convexbn.losses import Loss
from convexbn.patches import NO_POOLING, Pooling
from convexbn.pricing.local import normalised
from convexbn.validation import FloatArray

RIDGE = 1e-11  # of the trace: equal neurons make the Hessian singular


def fit_amplitudes(features: FloatArray, y: FloatArray, outputs: FloatArray, beta: float, loss: Loss) -> FloatArray:
    """Minimise L(Phi W, y) + beta sum_j ||w_j|| over W (m, C), from `outputs`.

    Phi (n, m) holds the activations (U'S)_+, y is (n, C). With one output it is a lasso, solved to seven digits by Newton's
    method with an active set for each step: neurons that are nearly equal stall first-order methods, and a dual point from
    half-solved amplitudes is not worth pricing. With several it is a group lasso, for accelerated proximal gradient.
    """
    if not features.shape[1]:
        return outputs
    if y.shape[1] == 1:
        outputs, solved = _lasso(features, y, outputs, beta, loss)
        if solved:
            return outputs
    return _group_lasso(features, y, outputs, beta, loss)


def _lasso(
    features: FloatArray, y: FloatArray, outputs: FloatArray, beta: float, loss: Loss, *, steps: int = 20, tolerance: float = 1e-7
) -> tuple[FloatArray, bool]:
    """Newton steps with the signs of the amplitudes held, each a non-negative least squares problem; and whether they converged."""
    from scipy.linalg import solve_triangular
    from scipy.optimize import nnls

    for _ in range(steps):
        predictions = features @ outputs
        slope = (features.T @ loss.gradient(predictions, y))[:, 0]
        signs = np.where(outputs[:, 0] != 0, np.sign(outputs[:, 0]), -np.sign(slope))
        size, excess = np.abs(outputs[:, 0]), signs * slope + beta
        if np.max(np.where(size > 0, np.abs(excess), -excess)) <= tolerance * beta:
            return outputs, True
        signed = features * signs
        hessian = (signed * curvature(predictions, y, loss)).T @ signed
        hessian[np.diag_indices_from(hessian)] += RIDGE * np.trace(hessian)
        try:
            root = np.linalg.cholesky(hessian)
            wanted = nnls(root.T, solve_triangular(root, hessian @ size - excess, lower=True))[0]
        except (np.linalg.LinAlgError, RuntimeError):  # too singular, or out of iterations
            return outputs, False
        following = _towards(features, y, outputs, (signs * wanted)[:, None], beta, loss)
        if following is outputs:
            return outputs, False
        outputs = following
    return outputs, False


def _towards(features: FloatArray, y: FloatArray, start: FloatArray, end: FloatArray, beta: float, loss: Loss) -> FloatArray:
    """The first of end, half-way, a quarter of the way, ... whose objective is at most that of the start; else the start."""

    def objective(outputs: FloatArray) -> float:
        return loss.value(features @ outputs, y) + beta * float(np.abs(outputs).sum())

    highest = objective(start)
    trials = (start + 0.5**halvings * (end - start) for halvings in range(20))
    return next((trial for trial in trials if objective(trial) <= highest), start)


def curvature(predictions: FloatArray, y: FloatArray, loss: Loss) -> FloatArray:
    """The second derivatives of a loss that treats entries one by one, by differences of its gradient, of the shape of y."""
    step = 1e-6 * (1.0 + np.abs(predictions))
    differences = loss.gradient(predictions + step, y) - loss.gradient(predictions - step, y)
    return np.maximum(differences / (2.0 * step), 1e-9 * min(loss.smoothness, 1.0))


def _group_lasso(
    features: FloatArray, y: FloatArray, outputs: FloatArray, beta: float, loss: Loss, *, steps: int = 500, tolerance: float = 1e-7
) -> FloatArray:
    """Accelerated proximal gradient with restarts."""
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
