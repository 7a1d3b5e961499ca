"""The convex part of sliding Frank-Wolfe: the group lasso for the amplitudes of neurons whose directions are fixed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convexbn.losses import Loss
from convexbn.smoothing import Smoothed
from convexbn.solvers.group_model import QuadraticModel
from convexbn.solvers.group_newton import LARGEST, GroupNewton, hessian_columns, violation
from convexbn.validation import FloatArray

RIDGE = 1e-11  # of the trace: equal neurons make the Hessian singular
MODELS, EASY = 20, 3  # of a loss with several outputs; and so many of them tell whether they suit; if not, Newton's method follows
STEPS, CHECK = 500, 20  # on losses with smoothed kinks; and how often their accuracy is looked at


def fit_amplitudes(
    features: FloatArray, y: FloatArray, outputs: FloatArray, beta: float, loss: Loss, *, tolerance: float = 1e-7
) -> FloatArray:
    """Minimise L(Phi W, y) + beta sum_j ||w_j|| over W (m, C), from `outputs`.

    Phi (n, m) holds the activations (U'S)_+, y is (n, C). With one output it is a lasso, solved to seven digits by Newton's
    method with an active set for each step: neurons that are nearly equal stall first-order methods, and a dual point from
    half-solved amplitudes is not worth pricing. With several it is a group lasso, by quadratic models of the loss whose Hessian all
    outputs share (`QuadraticModel`; for squared loss one is enough), and by Newton's method where a few of them don't do.

    `tolerance` is of ||g_j|| <= beta, g the gradient of the loss, with equality and the right direction where w_j is not 0, and
    relative to beta.
    """
    if not features.shape[1]:
        return outputs
    if y.shape[1] == 1:
        outputs, solved = _lasso(features, y, outputs, beta, loss, tolerance=tolerance)
        if solved:
            return outputs
    return _group_lasso(features, y, outputs, beta, loss, tolerance)


def _lasso(
    features: FloatArray, y: FloatArray, outputs: FloatArray, beta: float, loss: Loss, *, steps: int = 20, tolerance: float
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
        return loss.value(features @ outputs, y) + beta * float(np.linalg.norm(outputs, axis=1).sum())

    highest = objective(start)
    trials = (start + 0.5**halvings * (end - start) for halvings in range(20))
    return next((trial for trial in trials if objective(trial) <= highest), start)


def curvature(predictions: FloatArray, y: FloatArray, loss: Loss) -> FloatArray:
    """The second derivatives of a loss that treats entries one by one, by differences of its gradient, of the shape of y."""
    step = 1e-6 * (1.0 + np.abs(predictions))
    differences = loss.gradient(predictions + step, y) - loss.gradient(predictions - step, y)
    return np.maximum(differences / (2.0 * step), 1e-9 * min(loss.smoothness, 1.0))


def _group_lasso(features: FloatArray, y: FloatArray, outputs: FloatArray, beta: float, loss: Loss, tolerance: float) -> FloatArray:
    """Minimise one quadratic model of the loss after the other; where one was too bold, the next one majorises the loss.

    Kinks that are smoothed make every model too bold: there the steps are on the loss itself.
    """
    if isinstance(loss, Smoothed):
        norm = float(np.linalg.eigvalsh(features.T @ features)[-1])
        return _descend(lambda w: features.T @ loss.gradient(features @ w, y), loss.smoothness * norm, outputs, beta, tolerance)
    safe = False
    for model in range(MODELS):
        if model == EASY and outputs.size <= LARGEST:
            return _towards(features, y, outputs, GroupNewton(features, y, beta, loss).solve(outputs, tolerance)[0], beta, loss)
        predictions = features @ outputs
        slope = features.T @ loss.gradient(predictions, y)
        if violation(slope, outputs, beta) <= tolerance * beta:
            break
        bend = np.full(len(y), loss.smoothness) if safe else largest_curvature(predictions, y, loss)
        hessian = (bend[:, None] * features).T @ features
        linear = slope - hessian @ outputs
        wanted = QuadraticModel(hessian, linear, beta).solve(outputs, tolerance)
        following = _towards(features, y, outputs, wanted, beta, loss)
        if following is outputs and safe:
            break
        safe = following is outputs
        outputs = following
    return outputs


def largest_curvature(predictions: FloatArray, y: FloatArray, loss: Loss) -> FloatArray:
    """A bound on the Hessian of the loss of each sample, (n,): twice the largest diagonal entry, or `smoothness` where that is less.

    Enough for losses that treat entries one by one, and for softmax, whose Hessian diag(p) - p p^T has rows of size 2 p_i (1 - p_i).
    """
    largest = np.zeros(len(y))
    for c, column in enumerate(hessian_columns(predictions, y, loss)):
        largest = np.maximum(largest, column[:, c])
    return np.maximum(np.minimum(2.0 * largest, loss.smoothness), 1e-9 * min(loss.smoothness, 1.0))


def _descend(
    gradient: Callable[[FloatArray], FloatArray], curvature: float, outputs: FloatArray, beta: float, tolerance: float
) -> FloatArray:
    """Minimise a function of W with this gradient and largest curvature, plus beta sum_j ||w_j||: accelerated proximal gradient."""
    curvature = max(curvature * (1.0 + 1e-9), float(np.finfo(np.float64).tiny))
    current = ahead = outputs
    momentum = 1.0
    for step in range(STEPS):
        point = ahead - gradient(ahead) / curvature
        length = np.linalg.norm(point, axis=1, keepdims=True)
        following = point * np.maximum(0.0, 1.0 - beta / curvature / np.where(length > 0, length, 1.0))
        change = following - current
        if np.vdot(ahead - following, change) > 0:
            momentum = 1.0
        grown = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2))
        ahead = following + (momentum - 1.0) / grown * change
        current, momentum = following, grown
        if step % CHECK == 0 and violation(gradient(current), current, beta) <= tolerance * beta:
            break
    return current
