"""The closed form for data of rank n-1, where every vector of pre-activations is within reach of a neuron."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from convexbn.losses import Loss
from convexbn.pricing import is_square
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

    Source: Ergen et al. 2022 (the closed form for squared loss); the form for any loss is in `docs/theory.md`.
    """

    def solve(self, program: Program) -> Solution:
        """The optimal neurons, at most two.

        Raises
        ------
        SolverUnavailable
            Where the centred data have a rank below n - 1.
        """
        start = time.perf_counter()
        n, columns = program.basis.shape
        if not is_square(program.basis, program.y):
            raise SolverUnavailable(
                f"solver 'closed form' needs centred data of rank n-1, here {n - 1}, not {columns - 1}: use solver='auto'"
            )
        pull = -program.loss.gradient(np.zeros(len(program.y)), program.y)
        strength = program.beta / program.pooling.norm
        groups = [(sign, _shrink(program.loss, program.y, strength, sign * pull > 0)) for sign in (1.0, -1.0)]
        found = [(sign, f) for sign, f in groups if np.any(f)]
        active = [program.pooling.spread(np.abs(f)) for _, f in found]
        directions = np.array([program.basis.T @ z / np.linalg.norm(z) for z in active]).reshape(-1, columns)
        outputs = np.array([[sign * np.linalg.norm(f) / program.pooling.norm] for sign, f in found]).reshape(-1, 1)
        predictions = np.sum([f for _, f in groups], axis=0)
        dual = -program.loss.gradient(predictions, program.y)
        seconds = time.perf_counter() - start
        return Solution(directions, outputs, Status.OPTIMAL, "closed form", dual=self._dual(strength, groups, dual), solve_seconds=seconds)

    @staticmethod
    def _dual(strength: float, groups: list[tuple[float, FloatArray]], fallback: FloatArray) -> FloatArray:
        """V = (beta / p) f / ||f|| on each group: exact also at the kinks of the loss, where its gradient says little."""
        dual = fallback.copy()
        for _, f in groups:
            if np.any(f):
                inside = f != 0
                dual[inside] = strength * f[inside] / np.linalg.norm(f)
        return dual


def _shrink(loss: Loss, y: FloatArray, beta: float, group: np.ndarray) -> FloatArray:
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
