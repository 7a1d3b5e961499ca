"""Losses with kinks made smooth, for solvers that descend by gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexbn.losses import Loss
from convexbn.validation import FloatArray


@dataclass(frozen=True)
class Smoothed:
    """The Moreau envelope of a loss, min over p of l(p, y) + (f - p)^2 / (2 width): smooth, at most width v^2 / 2 below the loss.

    Its gradients lie in the domain of the conjugate of the loss itself, so they are dual points of the unsmoothed problem.
    """

    loss: Loss
    width: float

    @property
    def name(self) -> str:
        """That of the loss."""
        return f"smoothed {self.loss.name}"

    @property
    def smoothness(self) -> float:
        """1 / width."""
        return 1.0 / self.width

    def check(self, y: FloatArray) -> FloatArray:
        """As the loss does."""
        return self.loss.check(y)

    def value(self, f: FloatArray, y: FloatArray) -> float:
        """The envelope."""
        point = self.loss.prox(f, y, self.width)
        return self.loss.value(point, y) + float(np.sum((f - point) ** 2)) / (2.0 * self.width)

    def gradient(self, f: FloatArray, y: FloatArray) -> FloatArray:
        """(f - p) / width."""
        return (f - self.loss.prox(f, y, self.width)) / self.width

    def conjugate(self, v: FloatArray, y: FloatArray) -> float:
        """L*(v) + width ||v||^2 / 2."""
        return self.loss.conjugate(v, y) + 0.5 * self.width * float(np.sum(v**2))

    def conjugate_gradient(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """That of the loss, plus width v."""
        return self.loss.conjugate_gradient(v, y) + self.width * v

    def project(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """The domain is that of the loss."""
        return self.loss.project(v, y)

    def prox(self, z: FloatArray, y: FloatArray, step: float) -> FloatArray:
        """z moved by step / (step + width) of the way to the loss's own prox with step + width."""
        return z + (self.loss.prox(z, y, step + self.width) - z) * (step / (step + self.width))

    def scale(self, y: FloatArray) -> float:
        """That of the loss."""
        return self.loss.scale(y)

    def rescaled(self, unit: float) -> Smoothed:
        """The width is a step of the prox, which has no unit."""
        return Smoothed(self.loss.rescaled(unit), self.width)


def smooth(loss: Loss, width: float) -> Loss:
    """The loss itself, or, where it has kinks, smoothed to `width`."""
    return loss if np.isfinite(loss.smoothness) else Smoothed(loss, width)
