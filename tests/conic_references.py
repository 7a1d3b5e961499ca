"""Programs with several outputs, solved exactly at small size and bounded from below, by methods that share no code with convexbn."""

from __future__ import annotations

import warnings
from itertools import combinations
from typing import Any

import cvxpy as cp
import numpy as np

from convexbn.losses import Huber, Loss

# Completely positive matrices are the doubly nonnegative ones up to this size.
RAYS = 4


def extreme_rays(cone: np.ndarray) -> np.ndarray:
    """Unit vectors (k, r+1) that span the pointed cone { s : A s >= 0 } of full dimension, A (n, r+1): from every r rows of A."""
    width = cone.shape[1]
    rays: list[np.ndarray] = []
    for rows in combinations(range(len(cone)), width - 1):
        _, values, right = np.linalg.svd(cone[list(rows)])
        if len(values) == width - 1 and values[-1] > 1e-9:
            rays += [ray for ray in (right[-1], -right[-1]) if np.min(cone @ ray) >= -1e-9]
    distinct = [ray for k, ray in enumerate(rays) if all(np.linalg.norm(ray - other) > 1e-7 for other in rays[:k])]
    return np.array(distinct)


def expression_of(loss: Loss, f: Any, y: np.ndarray) -> Any:
    """The loss of the predictions f (n, C), summed over samples and outputs."""
    match loss.name:
        case "squared":
            return cp.sum_squares(f - y) / 2
        case "huber":
            assert isinstance(loss, Huber)
            return cp.sum(cp.huber(f - y, loss.delta)) / 2
        case "logistic":
            return cp.sum(cp.logistic(-cp.multiply(y, f)))
        case "softmax":
            return cp.sum(cp.log_sum_exp(f, axis=1)) - cp.sum(cp.multiply(y, f))
        case _:
            return cp.sum(cp.pos(1 - cp.multiply(y, f)))


def optimum_with_outputs(basis: np.ndarray, y: np.ndarray, loss: Loss, beta: float, active: np.ndarray) -> float:
    """The optimum of L(f, Y) + beta sum_j ||s_j|| ||v_j|| over all neurons of the arrangements `active` (P, n), Y of shape (n, C).

    On a cone with k rays R, neurons are s = R c with c >= 0, and the pairs sum_j (c_j; v_j)(c_j; v_j)^T are the matrices
    [[C, W], [W^T, B]] >= 0 with C completely positive, at the price (tr(R C R^T) + tr B)/2: with C = F F^T, F >= 0, the v_j are the
    rows of F^T C^+ W. For k <= 4 completely positive is positive semidefinite and >= 0 entry by entry.
    """
    f, price, constraints = 0, 0, []
    for row in active:
        rays = extreme_rays((2.0 * row - 1.0)[:, None] * basis)
        assert 0 < len(rays) <= RAYS
        k = len(rays)
        lifted = cp.Variable((k + y.shape[1], k + y.shape[1]), PSD=True)
        constraints.append(lifted[:k, :k] >= 0)
        f = f + (row[:, None] * basis @ rays.T) @ lifted[:k, k:]
        price = price + cp.trace(rays @ rays.T @ lifted[:k, :k]) + cp.trace(lifted[k:, k:])
    return minimum(expression_of(loss, f, y) + 0.5 * beta * price, constraints)


def nuclear_bound(basis: np.ndarray, y: np.ndarray, loss: Loss, beta: float, active: np.ndarray) -> float:
    """The same with the cones forgotten: a sum of nuclear norms, over all arrangements a lower bound."""
    blocks = [cp.Variable((basis.shape[1], y.shape[1])) for _ in active]
    f = sum((row[:, None] * basis) @ block for row, block in zip(active, blocks, strict=True))
    return minimum(expression_of(loss, f, y) + beta * sum(cp.normNuc(block) for block in blocks), [])


def minimum(objective: Any, constraints: list[Any]) -> float:
    """The optimum by Clarabel, to 1e-9 where it gets there."""
    problem = cp.Problem(cp.Minimize(objective), constraints)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "inaccurate" at this tolerance; the comparisons tell
        return float(problem.solve(solver="CLARABEL", tol_gap_rel=1e-9, tol_gap_abs=1e-9, tol_feas=1e-9))
