"""The dual point: which V makes the proved bound largest."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from convexbn.losses import Loss
from convexbn.patches import NO_POOLING, Pooling
from convexbn.pricing.relaxation import TEMPERATURES, Relaxation, SmoothBound, stop_at
from convexbn.threads import side_by_side
from convexbn.validation import FloatArray

EVALUATIONS = 1.2  # of the objective in a step of L-BFGS
BEYOND = 1e200  # a dual coordinate that no domain reaches


def improve_dual(
    basis: FloatArray,
    y: FloatArray,
    loss: Loss,
    beta: float,
    v: FloatArray,
    directions: FloatArray,
    outputs: FloatArray,
    mass: float,
    *,
    pooling: Pooling = NO_POOLING,
    steps: int = 100,
    seconds: float = np.inf,
) -> FloatArray:
    """Maximise -L*(-V) subject to R(V w_k) <= beta for each k, in V and in the multipliers of R at once.

    R is the relaxation, convex in V, with slants renewed at each temperature; pooling spreads V over the rows of the basis. The w_k are
    the output directions that matter, for one output +1 and -1. At the residual R charges for neurons that the program never needed; a
    V that lowers it there costs little. The constraint enters as the exact penalty (1.5 mass) (max_k R(V w_k) - beta)_+, mass = sum_j
    ||s_j|| ||w_j|| being the multiplier of h(V) <= beta at the optimum. All maxima are smoothed at falling temperatures. L-BFGS keeps V
    in the domain of the conjugate where that is a box, and descends through the projection on it where not (softmax); with one output
    each V_i stays on its side of 0, where R is smooth. The result is a suggestion, valid like any V.

    Parameters
    ----------
    basis, y, loss, beta : the program's, y of shape (n,) or (n, C)
    v : of the shape of y; where to begin, best minus the gradient of the loss at the optimum
    directions, outputs : (K, r+1) s_k and unit w_k (K, C), each s_k best a local maximiser of (V w_k)^T (U's)_+
    mass : sum_j ||s_j|| ||w_j|| of a good network
    pooling : the program's
    steps : at each temperature, or as many as `seconds` allow
    seconds : shared by the temperatures; after them the best so far has to do
    """
    from scipy.optimize import Bounds, minimize

    size, count = v.size, len(outputs)
    relaxation = Relaxation(basis)
    relaxations = [relaxation] * count
    starts = [relaxation.start(direction) for direction in directions]
    low, high = (-loss.project(np.full(y.shape, sign * BEYOND), y).ravel() / beta for sign in (1.0, -1.0))
    simplex = bool(np.any(low >= high))  # the domain of softmax: there is no box to descend in
    if simplex:
        low, high = np.full(size, -np.inf), np.full(size, np.inf)
    if y.ndim == 1:
        low, high = np.where(v > 0, np.maximum(low, 0.0), low), np.where(v > 0, high, np.minimum(high, 0.0))
    reference = abs(loss.conjugate(-v, y)) or 1.0
    weight = 1.5 * beta * mass

    def feasible(unit: FloatArray) -> FloatArray:
        return -loss.project(-beta * unit, y) / beta if simplex else unit

    def pulled_back(slope: FloatArray, unit: FloatArray) -> FloatArray:
        """The gradient through the projection, whose derivative is symmetric: a difference along the slope."""
        step = 1e-7 / (float(np.max(np.abs(slope))) or 1.0)
        return (feasible(unit + step * slope) - feasible(unit)) / step if simplex else slope

    def smoothed(temperature: float, unit: FloatArray, multipliers: FloatArray) -> list[SmoothBound]:
        columns = pooling.spread(unit.reshape(len(y), -1) @ outputs.T)
        return list(mapped(Relaxation.smoothed, relaxations, columns.T, multipliers.reshape(count, -1), [temperature] * count))

    def descend(temperature: float, point: FloatArray) -> tuple[float, FloatArray]:
        free = point[:size].reshape(y.shape)
        unit = feasible(free)
        sides = smoothed(temperature, unit, point[size:])
        excesses = np.array([side.value - 1.0 for side in sides] + [0.0])
        shares = np.exp((excesses - excesses.max()) / temperature)
        excess = float(excesses.max()) + temperature * float(np.log(shares.sum()))
        shares *= weight / shares.sum()
        by_columns = pooling.pool(np.stack([share * side.by_v for share, side in zip(shares, sides, strict=False)], axis=1))
        by_v = (by_columns @ outputs).reshape(y.shape) - beta * loss.conjugate_gradient(-beta * unit, y)
        by_x = [share * side.by_x for share, side in zip(shares, sides, strict=False)]
        value = loss.conjugate(-beta * unit, y) + weight * excess
        return value / reference, np.concatenate([pulled_back(by_v, free).ravel(), *by_x]) / reference

    point = np.concatenate([v.ravel() / beta, *starts])
    lower, upper = relaxation.limits.lb, relaxation.limits.ub
    box = Bounds(np.concatenate([low, np.tile(lower, count)]), np.concatenate([high, np.tile(upper, count)]))
    with side_by_side(basis.size) as mapped:
        begun = time.perf_counter()
        deadline = begun + seconds
        descend(TEMPERATURES[0], point)
        steps = int(np.clip(seconds / (len(TEMPERATURES) * EVALUATIONS * (time.perf_counter() - begun)), 1, steps))
        options: Any = {"maxiter": steps, "maxfun": 2 * steps, "maxcor": 20, "ftol": 1e-10, "gtol": 1e-13}
        for temperature in TEMPERATURES:
            if time.perf_counter() > deadline:
                break
            smooth = partial(descend, temperature)
            point = minimize(smooth, point, method="L-BFGS-B", jac=True, bounds=box, options=options, callback=stop_at(deadline)).x
            sides = smoothed(temperature, feasible(point[:size].reshape(y.shape)), point[size:])
            relaxations = [replace(relaxation, toward=basis @ side.density[1:, 1:]) for side in sides]
    return -loss.project(-beta * point[:size].reshape(y.shape), y)
