"""The dual point: which V makes the proved bound largest."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from convexbn.losses import Loss
from convexbn.pricing.relaxation import TEMPERATURES, Relaxation
from convexbn.validation import FloatArray

BEYOND = 1e200  # a dual coordinate that no domain reaches


def improve_dual(
    basis: FloatArray,
    y: FloatArray,
    loss: Loss,
    beta: float,
    v: FloatArray,
    highest: FloatArray,
    lowest: FloatArray,
    mass: float,
    *,
    steps: int = 100,
) -> FloatArray:
    """Maximise -L*(-V) subject to R(V) <= beta, in V and in the multipliers of R at once: the best bound that R can prove.

    R(V) is the larger of the relaxations of V and -V, convex in V. At the residual it charges for directions that the program
    never needed; a V that lowers it there costs little. The constraint enters as the exact penalty (1.5 mass) (R(V) - beta)_+,
    mass = sum_j ||s_j|| ||w_j|| being the multiplier of h(V) <= beta at the optimum. All maxima are smoothed at falling
    temperatures; L-BFGS keeps V in the domain of the conjugate and each V_i on its side of 0, where R is smooth. The result is
    a suggestion, valid like any V.

    Parameters
    ----------
    basis, y, loss, beta : the program's
    v : (n,) where to begin, best minus the gradient of the loss at the optimum
    highest, lowest : (r+1,) directions of the largest and the smallest v^T (U's)_+
    mass : sum_j ||s_j|| ||w_j|| of a good network
    """
    from scipy.optimize import minimize

    n = len(v)
    up, down = Relaxation(basis, v > 0), Relaxation(basis, v <= 0)
    (x_up, box_up), (x_down, box_down) = up.start(highest), down.start(lowest)
    low, high = -loss.project(np.full(n, BEYOND), y), -loss.project(np.full(n, -BEYOND), y)
    side = [(max(a, 0.0), b) if positive else (a, min(b, 0.0)) for a, b, positive in zip(low / beta, high / beta, v > 0, strict=True)]
    reference = abs(loss.conjugate(-v, y)) or 1.0
    weight = 1.5 * beta * mass

    def descend(temperature: float, point: FloatArray) -> tuple[float, FloatArray]:
        unit, rest = point[:n], point[n:]
        above, below = up.smoothed(unit, rest[: len(x_up)], temperature), down.smoothed(-unit, rest[len(x_up) :], temperature)
        excesses = np.array([above.value - 1.0, below.value - 1.0, 0.0])
        shares = np.exp((excesses - excesses.max()) / temperature)
        excess = float(excesses.max()) + temperature * float(np.log(shares.sum()))
        up_share, down_share, _ = weight * shares / shares.sum()
        by_v = up_share * above.by_v - down_share * below.by_v - beta * loss.conjugate_gradient(-beta * unit, y)
        gradient = np.concatenate([by_v, up_share * above.by_x, down_share * below.by_x])
        return (loss.conjugate(-beta * unit, y) + weight * excess) / reference, gradient / reference

    point = np.concatenate([v / beta, x_up, x_down])
    box: Any = side + box_up + box_down
    for temperature in TEMPERATURES:
        options: Any = {"maxiter": steps, "maxfun": 2 * steps, "maxcor": 20, "ftol": 1e-10, "gtol": 1e-13}
        point = minimize(partial(descend, temperature), point, method="L-BFGS-B", jac=True, bounds=box, options=options).x
    return -loss.project(-beta * point[:n], y)
