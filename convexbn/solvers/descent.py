"""The local part of sliding Frank-Wolfe: descent on the directions and outputs of the neurons together."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from convexbn.losses import Loss
from convexbn.patches import NO_POOLING, Pooling
from convexbn.pricing import normalised
from convexbn.smoothing import on_samples
from convexbn.threads import side_by_side
from convexbn.validation import FloatArray

BLOCK = 65_536  # activations at a time: they stay in the cache
# Steps that L-BFGS remembers. With several outputs and a thousand neurons 20 of them take as long as the gradients, and win nothing.
ONE, SEVERAL = 20, 8
Respond = Callable[[slice, FloatArray], FloatArray]  # from some samples and their predictions (k, C) to the gradient of the loss there


class Layer(Protocol):
    """The network p sum_j rho(U' a_j) v_j^T and its adjoint, p the pooling of patches, rho ReLU with kinks rounded over |t| <= mu_j."""

    @property
    def rows(self) -> int:
        """Of U'."""
        ...

    def slopes(self, inner: FloatArray, outer: FloatArray, kinks: FloatArray, respond: Respond) -> tuple[FloatArray, FloatArray]:
        """The derivatives of the loss in a_j (m, r+1) and v_j (m, C), for kinks mu (m,), by asking for its gradient block by block."""
        ...


class LayerOnCPU:
    """By numpy, in the precision of the basis."""

    def __init__(self, basis: FloatArray, pooling: Pooling = NO_POOLING) -> None:
        self.basis, self.pooling = basis, pooling

    @property
    def rows(self) -> int:
        """Of U'."""
        return len(self.basis)

    def slopes(self, inner: FloatArray, outer: FloatArray, kinks: FloatArray, respond: Respond) -> tuple[FloatArray, FloatArray]:
        """In blocks that stay in the cache, half of them in a thread of their own where the basis is large."""
        block = self.pooling.patches * max(1, BLOCK // (len(inner) * self.pooling.patches))
        firsts = range(0, len(self.basis), block)
        halves = firsts[: len(firsts) // 2], firsts[len(firsts) // 2 :]
        with side_by_side(self.basis.size) as mapped:
            (inner_slope, outer_slope), other = mapped(lambda half: self._part(half, inner, outer, kinks, respond), halves)
        return inner_slope + other[0], outer_slope + other[1]

    def _part(
        self, firsts: range, inner: FloatArray, outer: FloatArray, kinks: FloatArray, respond: Respond
    ) -> tuple[FloatArray, FloatArray]:
        """The derivatives for blocks that begin at these rows."""
        basis, pooling = self.basis, self.pooling
        bend, rate, outputs = (array.astype(basis.dtype) for array in (kinks, 0.5 / kinks, outer))
        columns = np.ascontiguousarray(inner.T, dtype=basis.dtype)
        inner_slope, outer_slope = np.zeros_like(inner), np.zeros_like(outer)
        block = firsts.step
        for first in firsts:
            rows = basis[first : first + block]
            active = rows @ columns
            slope = active * rate
            slope += 0.5
            np.clip(slope, 0.0, 1.0, out=slope)
            np.maximum(active, bend * slope * slope, out=active)
            pooled = pooling.pool(active)
            samples = slice(first // pooling.patches, (first + block) // pooling.patches)
            error = respond(samples, (pooled @ outputs).astype(np.float64)).astype(basis.dtype)
            slope *= pooling.spread(error @ outputs.T)
            inner_slope += slope.T @ rows
            outer_slope += pooled.T @ error
        return inner_slope, outer_slope


def slide(
    layer: Layer,
    y: FloatArray,
    directions: FloatArray,
    outputs: FloatArray,
    beta: float,
    loss: Loss,
    width: float,
    *,
    steps: int = 100,
    deadline: float = np.inf,
) -> tuple[FloatArray, FloatArray]:
    """Descend by L-BFGS on  L( p sum_j rho(U' a_j) v_j^T, y ) + beta sum_j ||a_j|| ||v_j||  from a_j = s_j ||w_j||, v_j = w_j / ||w_j||.

    p and rho are those of the layer, with kinks mu_j = width ||a_j|| / sqrt(rows of U'). With one output v_j = +-1 stays; else v_j is
    scaled by the first ||a_j||, so that all variables have curvatures of one order.

    It ends early where `time.perf_counter()` passes `deadline`. Returns unit directions (m, r+1) and outputs (m, C).
    """
    from scipy.optimize import minimize

    count, inputs = directions.shape
    size = np.linalg.norm(outputs, axis=1)
    signs = outputs / size[:, None]
    moving = outputs.shape[1] > 1
    kinks = width * size / np.sqrt(layer.rows)
    # The curvature in a_j is of the order of that of the loss plus beta / ||a_j||: a stretch brings all to one size.
    stretch = np.sqrt(0.5 * min(loss.smoothness, 1.0) + beta / size)[:, None]

    def split(x: FloatArray) -> tuple[FloatArray, FloatArray]:
        inner = x[: count * inputs].reshape(count, inputs) / stretch
        return inner, x[count * inputs :].reshape(count, -1) / size[:, None] if moving else signs

    def objective(x: FloatArray) -> tuple[float, FloatArray]:
        inner, outer = split(x)
        inner_norm, outer_norm = np.linalg.norm(inner, axis=1), np.linalg.norm(outer, axis=1)
        # By the first sample: threads come in any order, and the sum is to be the same each time.
        values = {-1: beta * float(inner_norm @ outer_norm)}

        def respond(samples: slice, predictions: FloatArray) -> FloatArray:
            part, targets = on_samples(loss, samples), y[samples]
            values[samples.start] = part.value(predictions, targets)
            return part.gradient(predictions, targets)

        inner_slope, outer_slope = layer.slopes(inner, outer, kinks, respond)
        inner_slope += (beta * outer_norm / np.where(inner_norm > 0, inner_norm, 1.0))[:, None] * inner
        outer_slope += (beta * inner_norm / np.where(outer_norm > 0, outer_norm, 1.0))[:, None] * outer
        slopes = [inner_slope / stretch, outer_slope / size[:, None]] if moving else [inner_slope / stretch]
        return sum(values[first] for first in sorted(values)), np.concatenate([slope.ravel() for slope in slopes])

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
        options={"maxiter": steps, "maxcor": SEVERAL if moving else ONE, "ftol": 1e-13, "gtol": 1e-10},
    )
    inner, outer = split(result.x)
    return normalised(inner), outer * np.linalg.norm(inner, axis=1)[:, None]
