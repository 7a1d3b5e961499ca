"""The group lasso of a quadratic model that outputs share: proximal points by semismooth Newton steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from convexbn.solvers.group_newton import violation
from convexbn.validation import FloatArray

# The proximal parameter, times the mean diagonal of H, and how it grows while subproblems are easy; beyond LARGEST they are singular.
FIRST, GROWTH, LARGEST = 100.0, 10.0, 1e6
PROXIMAL, STEPS = 30, 30  # subproblems, and Newton steps for each
EASY, HARD = 4, 8  # steps up to which a subproblem is easy, and from which it is hard
ENOUGH, HASTY = 0.1, 0.3  # of the move of the centre: accuracy of a subproblem, and of one whose steps had to be halved
ARMIJO, HALVINGS = 1e-4, 20
SMALLEST = 1e-6  # shrinkage of a row that counts as active, below which its Newton equations lose their digits


class Shrunk(NamedTuple):
    """x (m, C), its rows shortened by a threshold (m, C), by which factors (m,), and the lengths of x (m,)."""

    point: FloatArray
    short: FloatArray
    factor: FloatArray
    length: FloatArray


@dataclass(frozen=True)
class QuadraticModel:
    """Minimise <W, H W>/2 + <l, W> + beta sum_j ||w_j|| over W (m, C), for H (m, m) that all outputs share.

    Proximal points: W <- argmin of that plus ||W - W_k||^2 / (2 sigma), each found as the zero of Z - shrink(W_k - sigma (H Z + l)),
    the gradient of a convex function of Z whose generalised Hessian touches the active rows only. It is (D + H) x I less one rank for
    each row, so a Newton step costs two (m, m) Cholesky factors in place of one of (m C, m C). Nearly equal neurons, for which
    accelerated gradients take ten thousands of steps, take some twenty. Source: Zhang, Zhang, Sun and Toh 2020.

    Attributes
    ----------
    hessian : (m, m) H, positive semidefinite
    linear : (m, C) l
    beta : of the penalty
    """

    hessian: FloatArray
    linear: FloatArray
    beta: float

    def solve(self, outputs: FloatArray, tolerance: float) -> FloatArray:
        """W, from `outputs`, whose gradient g has ||g_j|| <= beta to `tolerance`, relative, with equality where w_j is not 0."""
        scale = float(np.mean(np.diag(self.hessian))) or 1.0
        sigma = FIRST / scale
        best, lowest = outputs, self.violation(outputs)
        for _ in range(PROXIMAL):
            if lowest <= tolerance:
                break
            try:
                outputs, steps = self.proximal_point(outputs, sigma, tolerance)
            except np.linalg.LinAlgError:
                sigma, outputs = sigma / GROWTH, best
                continue
            broken = self.violation(outputs)
            if broken < lowest:
                best, lowest = outputs, broken
            if steps <= EASY:
                sigma = min(GROWTH * sigma, LARGEST / scale)
            elif steps > HARD:
                sigma /= GROWTH
        return best

    def violation(self, outputs: FloatArray) -> float:
        """By how much the conditions of optimality are broken, relative to beta."""
        return violation(self.hessian @ outputs + self.linear, outputs, self.beta) / self.beta

    def proximal_point(self, centre: FloatArray, sigma: float, tolerance: float) -> tuple[FloatArray, int]:
        """The next centre, and how many Newton steps it took."""
        current, product = centre, self.hessian @ centre
        shrunk = self.shrink(centre, product, sigma)
        steps = 0
        while steps < STEPS:
            steps += 1
            change = self.newton(product, shrunk, sigma) - current
            turned = self.hessian @ change
            downhill = float(np.vdot(turned, current - shrunk.short))
            before = _value(current, product, shrunk, sigma)
            length = 1.0
            for _ in range(HALVINGS):  # the last trial is taken in any case: it can't be far from the start
                trial, image = current + length * change, product + length * turned
                shrunk = self.shrink(centre, image, sigma)
                if _value(trial, image, shrunk, sigma) <= before + ARMIJO * length * downhill + 1e-15 * abs(before):
                    break
                length *= 0.5
            current, product = trial, image
            missing = current - shrunk.short
            error = np.sqrt(max(0.0, float(np.vdot(missing, self.hessian @ missing))))
            moved = float(np.linalg.norm(shrunk.short - centre)) / np.sqrt(sigma)
            if error <= (ENOUGH if length == 1.0 else HASTY) * moved or self.violation(shrunk.short) <= tolerance:
                break
        return shrunk.short, steps

    def shrink(self, centre: FloatArray, product: FloatArray, sigma: float) -> Shrunk:
        """x = W_k - sigma (H Z + l) for the product H Z, and its rows shortened by sigma beta."""
        point = centre - sigma * (product + self.linear)
        length = np.linalg.norm(point, axis=1)
        factor = np.maximum(0.0, length - sigma * self.beta) / np.where(length > 0, length, 1.0)
        return Shrunk(point, factor[:, None] * point, factor, length)

    def newton(self, product: FloatArray, shrunk: Shrunk, sigma: float) -> FloatArray:
        """The next Z: 0 in the rows shrunk to 0, and in the others the solution of (J^-1 / sigma + H) Z = shrunk / sigma + H Z_now.

        J_j = c_j I + (1 - c_j) x_j x_j^T / ||x_j||^2 is the derivative of the shrinkage by the factor c_j: with M = H + D,
        D = diag(1 / (sigma c)), the left side is M x I less one rank a row, which the formula of Woodbury takes into account.
        """
        from scipy.linalg import cho_factor, cho_solve, lapack

        following = np.zeros_like(shrunk.point)
        active = np.flatnonzero(shrunk.factor > 0)
        if not len(active):
            return following
        stiffness = sigma * np.maximum(shrunk.factor[active], SMALLEST)
        units = shrunk.point[active] / shrunk.length[active, None]
        matrix = self.hessian[np.ix_(active, active)]
        matrix[np.diag_indices_from(matrix)] += 1.0 / stiffness
        lower = np.tril(lapack.dpotri(cho_factor(matrix, lower=True)[0], lower=1)[0])
        inverse = lower + np.tril(lower, -1).T
        solved = inverse @ (shrunk.short[active] / sigma + product[active])
        small = -inverse * (units @ units.T)
        small[np.diag_indices_from(small)] += stiffness / np.maximum(1.0 - stiffness / sigma, SMALLEST)
        weights = cho_solve(cho_factor(small, lower=True), np.sum(units * solved, axis=1))
        following[active] = solved + inverse @ (weights[:, None] * units)
        return following


def _value(current: FloatArray, product: FloatArray, shrunk: Shrunk, sigma: float) -> float:
    """The convex function whose minimiser gives the proximal point."""
    return 0.5 * float(np.vdot(current, product)) + float(np.vdot(shrunk.short, shrunk.short)) / (2.0 * sigma)
