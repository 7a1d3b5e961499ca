"""One step of the proximal point method on the blocks, by Newton's method on the faces of their cones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from convexbn.losses import Loss
from convexbn.solvers.active_set.blocks import Blocks
from convexbn.solvers.amplitudes import curvature
from convexbn.validation import FloatArray, IntArray

NEWTON_STEPS = 20
HALVINGS = 15
ARMIJO = 1e-4
ACCURACY = 0.05  # of the residual, relative to what the step moves


@dataclass(frozen=True)
class SmoothLoss:
    """A smooth loss as a function of the predictions alone: f -> L(f, y)."""

    loss: Loss
    y: FloatArray

    def value(self, f: FloatArray) -> float:
        """L."""
        return self.loss.value(f, self.y)

    def gradient(self, f: FloatArray) -> FloatArray:
        """Its gradient, (n,)."""
        return self.loss.gradient(f, self.y)

    def curvature(self, f: FloatArray) -> FloatArray:
        """Its second derivatives, (n,)."""
        return curvature(f, self.y, self.loss)


class _Point(NamedTuple):
    """What is known at predictions f.

    The projections on the cones (m, p), the factors (m,) that shrink them to the weights, the faces, the residual f - M s, and the
    merit, which the step minimises.
    """

    projections: FloatArray
    factors: FloatArray
    faces: IntArray
    residual: FloatArray
    merit: float

    @property
    def weights(self) -> FloatArray:
        """The blocks at f, (m, p)."""
        return self.factors[:, None] * self.projections


class Step(NamedTuple):
    """Weights (m, p), their predictions (n,) and faces (m, p); whether it converged, and whether all of Newton's steps were full."""

    weights: FloatArray
    predictions: FloatArray
    faces: IntArray
    solved: bool
    full: bool


@dataclass(frozen=True)
class ProximalPoint:
    """The minimiser over blocks s_b in their cones of

        L(M s) + beta sum_b ||s_b|| + ||s - t||^2 / (2 sigma),           M s = sum_b +- D_b U's_b.

    The prox of a norm on a cone is the projection, shrunk: s_b = (1 - sigma beta/||u||)_+ u with u the projection of
    t_b - sigma M_b^T grad L(f) on the cone. So the minimiser is a root of f - M s(f), one equation a sample, which is piecewise
    smooth: Newton's method with the derivative of the projection, the projector on the linear hull of its face (the semismooth
    Newton method inside of an augmented Lagrangian, Li, Sun and Toh 2018 for the lasso). Its descent is on the dual of the step,
    psi(f) = <f, g> - L(f) + ||s(f)||^2 / (2 sigma), g = grad L(f), with grad psi = L''(f) (f - M s(f)).

    Faces have few dimensions, so the linear systems are as small as the sum of these over the blocks that are not zero.
    """

    blocks: Blocks
    loss: SmoothLoss
    chosen: IntArray
    start: FloatArray
    beta: float
    sigma: float

    def solve(self, predictions: FloatArray, faces: IntArray) -> Step:
        """The minimiser, from what is likely to be its predictions (n,) and faces (m, p)."""
        f, full = predictions, True
        origin = self.blocks.predictions(self.chosen, self.start)
        point = self._at(f, faces)
        for _ in range(NEWTON_STEPS):
            moved = float(np.linalg.norm(f - point.residual - origin))
            if float(np.linalg.norm(point.residual)) <= max(1e-13 * float(np.linalg.norm(f)), ACCURACY * moved):
                return Step(point.weights, f - point.residual, point.faces, True, full)
            direction = self._direction(f, point)
            slope = float((self.loss.curvature(f) * point.residual) @ direction)
            for halvings in range(HALVINGS):
                length = 0.5**halvings
                trial = self._at(f + length * direction, point.faces)
                if trial.merit <= point.merit + ARMIJO * length * slope + 1e-13 * abs(point.merit):
                    break
            full = full and not halvings
            f, point = f + length * direction, trial
        return Step(point.weights, f - point.residual, point.faces, False, False)

    def _at(self, f: FloatArray, faces: IntArray) -> _Point:
        gradient = self.loss.gradient(f)
        index, signs = self.blocks.index(self.chosen), self.blocks.signs(self.chosen)
        centres = self.start - self.sigma * signs[:, None] * self.blocks.centres(gradient)[index]
        threshold = self.sigma * self.beta
        projections, lengths, faces = self.blocks.cones.project(index, centres, faces, threshold)
        factors = np.maximum(0.0, 1.0 - threshold / np.where(lengths > 0, lengths, 1.0)) * (lengths > threshold)
        weights = factors[:, None] * projections
        residual = f - self.blocks.predictions(self.chosen, weights)
        merit = float(f @ gradient) - self.loss.value(f) + float(np.sum(weights**2)) / (2.0 * self.sigma)
        return _Point(projections, factors, faces, residual, merit)

    def _direction(self, f: FloatArray, point: _Point) -> FloatArray:
        """d with (I + sigma M J M^T L''(f)) d = -(f - M s(f)), J = R R^T the derivative of the prox, by Woodbury's formula."""
        alive = np.flatnonzero(point.factors)
        if not len(alive):
            return -point.residual
        hulls = self.blocks.cones.hulls(point.faces[alive])
        roots = [self._root(int(k), hull, point) for k, hull in zip(alive, hulls, strict=True)]
        index = np.repeat(self.blocks.index(self.chosen[alive]), [root.shape[1] for root in roots])
        directions, bend = np.hstack(roots).T, self.loss.curvature(f)
        system = self.blocks.gram(index, directions, bend)
        system[np.diag_indices_from(system)] += 1.0 / self.sigma
        right = np.sum(directions * self.blocks.centres(bend * point.residual)[index], axis=1)
        amplitudes = np.linalg.solve(system, right)
        return self.blocks.predictions(index, amplitudes[:, None] * directions) - point.residual

    def _root(self, k: int, hull: FloatArray, point: _Point) -> FloatArray:
        """R (p, dimensions of the face) with R R^T = (1 - t) P + t u u^T, u the unit projection, P the projector on the face's hull.

        t = sigma beta over the length of the projection.
        """
        inner = hull.T @ point.projections[k]
        inner /= np.linalg.norm(inner)
        root = float(np.sqrt(point.factors[k]))
        return root * hull + np.outer(hull @ inner, (1.0 - root) * inner)
