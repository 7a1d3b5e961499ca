"""The group lasso with several outputs to many digits: Newton's method on norms that are smoothed less and less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from convexbn.losses import Loss
from convexbn.validation import FloatArray

FIRST, LAST, SHARPER = 0.1, 1e-14, 0.1  # the smoothing of the norms, of the largest of them, and how it falls
STEPS, ENOUGH = 20, 0.1  # of Newton for each smoothing, and the part of it that is not worth one more
ROUNDING = 1e-13  # of the Hessian's trace: equal neurons make it singular
ARMIJO, HALVINGS, INSIDE = 1e-4, 20, 0.95
LARGEST = 400  # unknowns: above it first-order methods are cheaper


@dataclass(frozen=True)
class GroupNewton:
    """Minimise L(Phi W, y) + beta sum_j ||w_j|| over W (m, C), whatever the condition of Phi (n, m).

    The norm is replaced by t - eps log(2 eps t), t = eps + (eps^2 + ||w||^2)^(1/2), which is what the logarithmic barrier of
    the cone ||w|| <= t makes of it, with gradient w/t. Newton's method on the equations t_j z_j = beta w_j of primal and
    dual together, ||z_j|| <= beta, takes few steps for each eps, however sharp: the primal one alone overshoots near w_j = 0.
    Source: Chan, Golub and Mulet 1999, for total variation.
    """

    features: FloatArray
    y: FloatArray
    beta: float
    loss: Loss

    def solve(self, outputs: FloatArray, tolerance: float) -> tuple[FloatArray, bool]:
        """W, and whether ||g_j|| <= beta holds to `tolerance`, relative, with equality and the right direction where w_j is not 0.

        g is the gradient of the loss; `outputs` (m, C) is where it begins.
        """
        largest = float(np.max(np.linalg.norm(outputs, axis=1))) or 1.0
        width = FIRST * largest
        dual = self.beta * outputs / self.sizes(outputs, width)[0][:, None]
        while width > LAST * largest:
            try:
                outputs, dual = self.descend(outputs, dual, width)
            except np.linalg.LinAlgError:
                break
            # Near the optimum ||w|| (1 - ||g|| / beta) is about eps: where the first factor is the smaller one, it vanishes.
            cut = np.where(np.linalg.norm(outputs, axis=1, keepdims=True) < np.sqrt(width * largest), 0.0, outputs)
            if violation(self.slope(cut), cut, self.beta) <= tolerance * self.beta:
                return cut, True
            width *= SHARPER
        return outputs, False

    def slope(self, outputs: FloatArray) -> FloatArray:
        """The gradient of the loss, (m, C)."""
        slope: FloatArray = self.features.T @ self.loss.gradient(self.features @ outputs, self.y)
        return slope

    @staticmethod
    def sizes(outputs: FloatArray, width: float) -> tuple[FloatArray, FloatArray]:
        """t and (eps^2 + ||w||^2)^(1/2) of each row, (m,)."""
        root = np.sqrt(width**2 + np.sum(outputs**2, axis=1))
        return width + root, root

    def objective(self, outputs: FloatArray, width: float) -> float:
        """Loss and smoothed norms."""
        sizes = self.sizes(outputs, width)[0]
        return self.loss.value(self.features @ outputs, self.y) + self.beta * float(np.sum(sizes - width * np.log(2.0 * width * sizes)))

    def descend(self, outputs: FloatArray, dual: FloatArray, width: float) -> tuple[FloatArray, FloatArray]:
        """Newton steps until what they promise is small beside the smoothing."""
        for _ in range(STEPS):
            sizes, root = self.sizes(outputs, width)
            gradient = self.slope(outputs) + self.beta * outputs / sizes[:, None]
            move = self.direction(outputs, dual, gradient, sizes, root)
            promised = -float(np.vdot(gradient, move))
            turned = (self.beta * (outputs + move) - dual * (np.sum(outputs * move, axis=1) / root)[:, None]) / sizes[:, None]
            dual = _within(dual, turned, self.beta)
            before = self.objective(outputs, width)
            for halvings in range(HALVINGS):
                trial = outputs + 0.5**halvings * move
                if self.objective(trial, width) <= before - ARMIJO * 0.5**halvings * promised + 1e-14 * abs(before):
                    break
            outputs = trial
            if promised <= ENOUGH * width * self.beta * np.sqrt(len(outputs)):
                break
        return outputs, dual

    def direction(self, outputs: FloatArray, dual: FloatArray, gradient: FloatArray, sizes: FloatArray, root: FloatArray) -> FloatArray:
        """Newton's, by the Hessian of the loss and for each norm (beta I - (z w^T + w z^T) / (2 root)) / t."""
        from scipy.linalg import cho_factor, cho_solve

        count, width = outputs.shape
        system = np.empty((count, width, count, width))
        bends = hessians(self.features @ outputs, self.y, self.loss)
        for a in range(width):
            for b in range(a + 1):
                system[:, a, :, b] = self.features.T @ (bends[:, a, b, None] * self.features)
                system[:, b, :, a] = system[:, a, :, b]
        each = np.arange(count)
        products = dual[:, :, None] * outputs[:, None, :]
        inner = self.beta * np.eye(width) - 0.5 * (products + products.transpose(0, 2, 1)) / root[:, None, None]
        system[each, :, each, :] += inner / sizes[:, None, None]
        matrix = system.reshape(count * width, count * width)
        matrix[np.diag_indices_from(matrix)] += ROUNDING * np.trace(matrix) / len(matrix)
        move: FloatArray = -cho_solve(cho_factor(matrix, lower=True), gradient.ravel()).reshape(outputs.shape)
        return move


def _within(dual: FloatArray, turned: FloatArray, beta: float) -> FloatArray:
    """On the way from z to its Newton step, each row as far as ||z|| <= beta allows, less a little."""
    change = turned - dual
    square, inner = np.sum(change**2, axis=1), np.sum(dual * change, axis=1)
    room = np.maximum(beta**2 - np.sum(dual**2, axis=1), 0.0)
    length = (np.sqrt(inner**2 + square * room) - inner) / np.where(square > 0, square, 1.0)
    return dual + np.minimum(1.0, np.where(square > 0, INSIDE * length, 1.0))[:, None] * change


def hessians(predictions: FloatArray, y: FloatArray, loss: Loss) -> FloatArray:
    """The Hessian of the loss of each sample, (n, C, C), by differences of its gradient."""
    stacked = np.stack(list(hessian_columns(predictions, y, loss)), axis=2)
    return 0.5 * (stacked + stacked.transpose(0, 2, 1))


def hessian_columns(predictions: FloatArray, y: FloatArray, loss: Loss) -> Iterator[FloatArray]:
    """The columns of these Hessians, (n, C) each, one after the other."""
    step = 1e-6 * (1.0 + np.abs(predictions))
    for column in np.eye(y.shape[1]):
        change = loss.gradient(predictions + step * column, y) - loss.gradient(predictions - step * column, y)
        yield change / (2.0 * step @ column)[:, None]


def violation(slope: FloatArray, outputs: FloatArray, beta: float) -> float:
    """By how much the gradient of the loss (m, C) breaks the conditions of optimality."""
    size = np.linalg.norm(outputs, axis=1)
    used = size > 0
    pulls = np.linalg.norm(slope[used] + beta * outputs[used] / size[used, None], axis=1)
    return max(float(np.max(pulls, initial=0.0)), float(np.max(np.linalg.norm(slope[~used], axis=1) - beta, initial=0.0)))
