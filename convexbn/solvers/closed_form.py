"""The closed form for data of rank n-1, where every vector of pre-activations is within reach of a neuron."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from convexbn.losses import Huber, Loss, Squared
from convexbn.program import Program
from convexbn.solution import Solution, SolverUnavailable, Status
from convexbn.validation import FloatArray


@dataclass(frozen=True)
class ClosedForm:
    """Solve the program over all arrangements when rank(Pi X) = n - 1 (n <= d in general position):

        min over f of  L(f, y) + beta ( ||f_+|| + ||f_-|| ) / p,

    with one neuron for the samples that the loss pulls up and one for those it pulls down; p is 1, or on patches the norm of their
    pooling. A group of samples minimises L(f, y) + (beta/p) ||f|| by itself, so f = prox_{L / nu}(0) with the one unknown
    nu = (beta/p) / ||f||; nu ||f(nu)|| grows with nu, and a root finder gives it. For the squared loss it is f =
    (1 - beta/(p ||y||))_+ y on each group.

    With several outputs, squared or Huber loss and targets of at most one entry other than 0 in a row, such as one-hot rows, each
    column is solved so by itself: one neuron a class, w_c = (Pi X)^+ y_c. Not for centred targets, nor for -1 and +1.

    Source: Ergen et al. 2022 (the closed forms for squared loss); the form for any loss is in `docs/theory.md`.
    """

    def solve(self, program: Program) -> Solution:
        """The optimal neurons, at most two for each output.

        Raises
        ------
        SolverUnavailable
            Where the centred data have a rank below n - 1, or several outputs have no closed form.
        """
        start = time.perf_counter()
        reason = obstacle(program.basis, program.y, program.loss)
        if reason is not None:
            raise SolverUnavailable(f"solver 'closed form' needs {reason}: use solver='auto'")
        y = program.y.reshape(len(program.y), -1)
        pull = -program.loss.gradient(np.zeros(program.y.shape), program.y).reshape(y.shape)
        strength, norm = program.beta / program.pooling.norm, program.pooling.norm
        signed = [(output, sign) for output in range(y.shape[1]) for sign in (1.0, -1.0)]
        shrunk = [shrink(program.loss, y[:, c], strength, sign * pull[:, c] > 0) for c, sign in signed]
        found = [(c, f) for (c, _), f in zip(signed, shrunk, strict=True) if np.any(f)]
        active = [program.pooling.spread(np.abs(f)) for _, f in found]
        directions = np.array([program.basis.T @ z / np.linalg.norm(z) for z in active]).reshape(-1, program.basis.shape[1])
        outputs, predictions = np.zeros((len(found), y.shape[1])), np.zeros(y.shape)
        for j, (c, f) in enumerate(found):
            outputs[j, c] = np.sign(np.sum(f)) * np.linalg.norm(f) / norm
            predictions[:, c] += f
        dual = -program.loss.gradient(predictions.reshape(program.y.shape), program.y).reshape(y.shape)
        # V = (beta/p) f / ||f|| on each group: exact also at the kinks of the loss, where its gradient says little.
        for c, f in found:
            dual[f != 0, c] = strength * f[f != 0] / np.linalg.norm(f)
        seconds = time.perf_counter() - start
        return Solution(directions, outputs, Status.OPTIMAL, "closed form", dual=dual.reshape(program.y.shape), solve_seconds=seconds)


def obstacle(basis: FloatArray, y: FloatArray, loss: Loss) -> str | None:
    """What a closed form would need and hasn't got; None where there is one."""
    n, columns = basis.shape
    if n != columns:
        return f"centred data of rank n-1, here {n - 1}, not {columns - 1}"
    if y.ndim > 1 and not isinstance(loss, (Squared, Huber)):
        return f"squared or Huber loss where there are several outputs, not {loss.name} loss"
    if y.ndim > 1 and np.any(np.count_nonzero(y, axis=1) > 1):
        return "rows of y with at most one entry other than 0 where there are several outputs (one-hot, neither centred nor -1 and +1)"
    return None


def shrink(loss: Loss, y: FloatArray, beta: float, group: np.ndarray) -> FloatArray:
    """The minimiser of L(f, y) + beta ||f|| over f that vanishes outside of `group`, shape (n,)."""
    from scipy.optimize import brentq

    f = np.zeros(len(y))
    if not group.any():
        return f
    targets = y[group]
    origin = np.zeros(len(targets))

    def excess(log_nu: float) -> float:
        nu = np.exp(log_nu)
        return float(nu * np.linalg.norm(loss.prox(origin, targets, 1.0 / nu))) - beta

    # As nu grows, nu prox(0) tends to minus the gradient at 0; the margin keeps the root away from infinity.
    if np.linalg.norm(loss.gradient(origin, targets)) <= beta * (1.0 + 1e-12):
        return f
    low, high = -1.0, 1.0
    while excess(low) > 0:
        low *= 2
    while excess(high) < 0:
        high *= 2
    nu = np.exp(brentq(excess, low, high, xtol=1e-15, rtol=1e-15, maxiter=500))
    f[group] = loss.prox(origin, targets, 1.0 / nu)
    return f
