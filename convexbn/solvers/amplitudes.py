"""The convex part of sliding Frank-Wolfe: the group lasso for the amplitudes of neurons whose directions are fixed."""

from __future__ import annotations

import numpy as np

from convexbn.losses import Loss
from convexbn.validation import FloatArray

RIDGE = 1e-11  # of the trace: equal neurons make the Hessian singular
STEPS = 50  # of Newton
INEXACT = 0.03  # of the violation before a step is what it may leave
HALVINGS = 6  # of a step
SWEEPS = 20  # through the groups, for each of them
CONJUGATE = 50  # directions for the active groups after each sweep


def fit_amplitudes(
    features: FloatArray, y: FloatArray, outputs: FloatArray, beta: float, loss: Loss, *, tolerance: float = 1e-7
) -> FloatArray:
    """Minimise L(Phi W, y) + beta sum_j ||w_j|| over W (m, C), from `outputs`.

    Phi (n, m) holds the activations (U'S)_+, y is (n, C). Newton's method: each step minimises a quadratic model of the loss plus
    the penalty, by non-negative least squares for one output, by sweeps and conjugate gradients for several. First-order methods
    stall on neurons that are nearly equal, and a dual point from half-solved amplitudes is not worth pricing.

    `tolerance` is of ||g_j|| <= beta, with equality and the right direction where w_j is not 0, relative to beta; g is the gradient.
    """
    solve = _signed_minimiser if y.shape[1] == 1 else _grouped_minimiser
    safe = False
    for _ in range(STEPS if features.shape[1] else 0):
        predictions = features @ outputs
        slope = features.T @ loss.gradient(predictions, y)
        broken = violation(slope, outputs, beta) / beta
        if broken <= tolerance:
            break
        bend = np.full(len(y), loss.smoothness) if safe else curvature(predictions, y, loss)
        hessian = (bend[:, None] * features).T @ features
        wanted = solve(hessian, slope, outputs, beta, max(tolerance, INEXACT * broken))
        following = _towards(features, y, outputs, wanted, beta, loss)
        if following is outputs and safe:
            break
        safe = following is outputs  # the model was too bold, as it can be where the loss has kinks: next one that majorises it
        outputs = following
    return outputs


def violation(slope: FloatArray, outputs: FloatArray, beta: float) -> float:
    """By how much the gradient of the loss (m, C) breaks the conditions of optimality."""
    size = np.linalg.norm(outputs, axis=1)
    used = size > 0
    pulls = np.linalg.norm(slope[used] + beta * outputs[used] / size[used, None], axis=1)
    return max(float(np.max(pulls, initial=0.0)), float(np.max(np.linalg.norm(slope[~used], axis=1) - beta, initial=0.0)))


def curvature(predictions: FloatArray, y: FloatArray, loss: Loss) -> FloatArray:
    """A bound on the second derivatives of the loss of each sample, (n,), by differences of its gradient.

    For one output it is the second derivative; of several, twice the largest on the diagonal is enough for softmax loss, whose
    Hessian is diag(p) - p p^T, and `smoothness` for all.
    """
    largest = np.zeros(len(y))
    for k in range(y.shape[1]):
        step = np.zeros_like(predictions)
        step[:, k] = 1e-6 * (1.0 + np.abs(predictions[:, k]))
        change = loss.gradient(predictions + step, y)[:, k] - loss.gradient(predictions - step, y)[:, k]
        largest = np.maximum(largest, change / (2.0 * step[:, k]))
    bound = largest if y.shape[1] == 1 else np.minimum(2.0 * largest, loss.smoothness)
    return np.maximum(bound, 1e-9 * min(loss.smoothness, 1.0))


def _towards(features: FloatArray, y: FloatArray, start: FloatArray, end: FloatArray, beta: float, loss: Loss) -> FloatArray:
    """The first of end, half-way, a quarter of the way, ... whose objective is below that of the start; else the start."""

    def objective(outputs: FloatArray) -> float:
        return loss.value(features @ outputs, y) + beta * float(np.linalg.norm(outputs, axis=1).sum())

    highest = objective(start)
    trials = (start + 0.5**halvings * (end - start) for halvings in range(HALVINGS))
    return next((trial for trial in trials if objective(trial) < highest), start)


def _signed_minimiser(hessian: FloatArray, slope: FloatArray, outputs: FloatArray, beta: float, tolerance: float) -> FloatArray:
    """The minimiser of the model for one output with the signs of the amplitudes held: non-negative least squares, exactly."""
    from scipy.linalg import solve_triangular
    from scipy.optimize import nnls

    signs = np.where(outputs[:, 0] != 0, np.sign(outputs[:, 0]), -np.sign(slope[:, 0]))
    signed = signs[:, None] * hessian * signs
    signed[np.diag_indices_from(signed)] += RIDGE * np.trace(signed)
    try:
        root = np.linalg.cholesky(signed)
        target = signed @ np.abs(outputs[:, 0]) - signs * slope[:, 0] - beta
        wanted = nnls(root.T, solve_triangular(root, target, lower=True))[0]
    except (np.linalg.LinAlgError, RuntimeError):  # too singular, or out of iterations
        return _grouped_minimiser(hessian, slope, outputs, beta, tolerance)
    return (signs * wanted)[:, None]


def _grouped_minimiser(hessian: FloatArray, slope: FloatArray, outputs: FloatArray, beta: float, tolerance: float) -> FloatArray:
    """The minimiser of the model  <slope, D> + tr(D^T H D) / 2 + beta sum_j ||w_j + d_j||,  from `outputs`.

    Sweeps minimise over one group after the other, which finds out the groups that are 0; then conjugate gradients for all
    others at once, which does in one step what would take hundreds of sweeps.
    """
    current, slope = outputs.copy(), slope.copy()
    diagonal = np.maximum(np.diag(hessian), np.finfo(np.float64).tiny)
    for _ in range(SWEEPS):
        for j in np.flatnonzero(current.any(axis=1) | (np.linalg.norm(slope, axis=1) > beta)):
            target = diagonal[j] * current[j] - slope[j]
            length = float(np.sqrt(target @ target))
            following = target * (max(0.0, 1.0 - beta / length) / diagonal[j] if length > 0 else 0.0)
            if (change := following - current[j]).any():
                slope += np.multiply.outer(hessian[j], change)
                current[j] = following
        if violation(slope, current, beta) <= tolerance * beta:
            break
        used = np.flatnonzero(current.any(axis=1))
        step = _newton_step(hessian[np.ix_(used, used)], slope[used], current[used], beta)
        slope += hessian[:, used] @ step
        current[used] += step
    return current


def _newton_step(hessian: FloatArray, slope: FloatArray, outputs: FloatArray, beta: float) -> FloatArray:
    """A step for groups that are not 0, by conjugate gradients; a group that it would turn round goes to 0. Never uphill."""
    size = np.linalg.norm(outputs, axis=1, keepdims=True)
    units, bend = outputs / size, beta / size
    step = np.zeros_like(outputs)
    residual = -slope - beta * units
    diagonal = np.diag(hessian)[:, None]

    def scale(vectors: FloatArray) -> FloatArray:
        """Divide by the Hessian of each group alone, which is stiff across the group and not along it."""
        along = units * np.sum(units * vectors, axis=1, keepdims=True)
        scaled: FloatArray = along / diagonal + (vectors - along) / (diagonal + bend)
        return scaled

    direction = scaled = scale(residual)
    first = square = float(np.sum(residual * scaled))
    for _ in range(CONJUGATE):
        image = hessian @ direction + bend * (direction - units * np.sum(units * direction, axis=1, keepdims=True))
        curved = float(np.sum(direction * image))
        if square <= 1e-4 * first or curved <= 0:
            break
        step = step + square / curved * direction
        residual = residual - square / curved * image
        scaled = scale(residual)
        direction, square = scaled + np.sum(residual * scaled) / square * direction, float(np.sum(residual * scaled))
    for halvings in range(10):
        part = 0.5**halvings * step
        part = np.where(np.sum((outputs + part) * outputs, axis=1, keepdims=True) > 0, part, -outputs)
        lengths = np.linalg.norm(outputs + part, axis=1).sum() - size.sum()
        if np.sum(part * (slope + 0.5 * (hessian @ part))) + beta * lengths <= 0:
            return part
    return np.zeros_like(outputs)
