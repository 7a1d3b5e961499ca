"""Losses with kinks made smooth, for solvers that descend by gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from convexbn.losses import Loss
from convexbn.validation import FloatArray


@dataclass(frozen=True, eq=False)
class Smoothed:
    """The Moreau envelope of a loss at f + shift, min over p of l(p, y) + (f + shift - p)^2 / (2 width): smooth.

    Its gradients lie in the domain of the conjugate of the loss itself, so they are dual points of the unsmoothed problem. Without
    a shift it is at most width v^2 / 2 below the loss. An optimum f of the unsmoothed problem, with v the gradient of the loss there,
    is one of the smoothed problem with shift = width v, however wide: the method of multipliers goes there by taking width times the
    gradient of the envelope for the shift again and again (Rockafellar 1976).

    Attributes
    ----------
    loss, width : as above
    shift : a number, or an array of the shape of f
    """

    loss: Loss
    width: float
    shift: FloatArray | float = 0.0

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
        moved = f + self.shift
        point = self.loss.prox(moved, y, self.width)
        return self.loss.value(point, y) + float(np.sum((moved - point) ** 2)) / (2.0 * self.width)

    def gradient(self, f: FloatArray, y: FloatArray) -> FloatArray:
        """(f + shift - p) / width."""
        moved = f + self.shift
        return (moved - self.loss.prox(moved, y, self.width)) / self.width

    def next_shift(self, f: FloatArray, y: FloatArray) -> FloatArray:
        """The shift after a step of the method of multipliers: width times the gradient."""
        return self.width * self.gradient(f, y)

    def conjugate(self, v: FloatArray, y: FloatArray) -> float:
        """L*(v) + width ||v||^2 / 2 - <shift, v>."""
        return self.loss.conjugate(v, y) + float(np.sum(v * (0.5 * self.width * v - self.shift)))

    def conjugate_gradient(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """That of the loss, plus width v - shift."""
        return self.loss.conjugate_gradient(v, y) + self.width * v - self.shift

    def project(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """The domain is that of the loss."""
        return self.loss.project(v, y)

    def prox(self, z: FloatArray, y: FloatArray, step: float) -> FloatArray:
        """z + shift moved by step / (step + width) of the way to the loss's own prox with step + width, less the shift."""
        moved = z + self.shift
        return z + (self.loss.prox(moved, y, step + self.width) - moved) * (step / (step + self.width))

    def scale(self, y: FloatArray) -> float:
        """That of the loss."""
        return self.loss.scale(y)

    def rescaled(self, unit: float) -> Smoothed:
        """The width is a step of the prox, which has no unit."""
        return Smoothed(self.loss.rescaled(unit), self.width, self.shift / unit)

    def of(self, samples: slice) -> Smoothed:
        """The same on a part of the samples."""
        return replace(self, shift=self.shift[samples]) if isinstance(self.shift, np.ndarray) else self


def smooth(loss: Loss, width: float, shift: FloatArray | float = 0.0) -> Loss:
    """The loss itself, or, where it has kinks, smoothed to `width` and shifted."""
    return loss if np.isfinite(loss.smoothness) else Smoothed(loss, width, shift)


def on_samples(loss: Loss, samples: slice) -> Loss:
    """The loss on a part of the samples: itself, but for shifts."""
    return loss.of(samples) if isinstance(loss, Smoothed) else loss
