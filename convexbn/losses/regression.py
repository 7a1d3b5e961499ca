"""Losses for numbers: squared and Huber."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexbn.validation import FloatArray, check_positive


@dataclass(frozen=True)
class Squared:
    """l(f, y) = (f - y)^2 / 2, with conjugate v^2/2 + v y."""

    name = "squared"
    smoothness = 1.0

    def check(self, y: FloatArray) -> FloatArray:
        """Every finite y will do."""
        return y

    def value(self, f: FloatArray, y: FloatArray) -> float:
        """||f - y||^2 / 2."""
        return 0.5 * float(np.sum((f - y) ** 2))

    def gradient(self, f: FloatArray, y: FloatArray) -> FloatArray:
        """f - y."""
        return f - y

    def conjugate(self, v: FloatArray, y: FloatArray) -> float:
        """||v||^2 / 2 + <v, y>."""
        return float(np.sum(v * (0.5 * v + y)))

    def conjugate_gradient(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """V + y."""
        return v + y

    def project(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """The domain is everything."""
        return v

    def prox(self, z: FloatArray, y: FloatArray, step: float) -> FloatArray:
        """(z + step y) / (1 + step)."""
        return (z + step * y) / (1.0 + step)

    def scale(self, y: FloatArray) -> float:
        """||y||, or 1 for y = 0."""
        return float(np.linalg.norm(y)) or 1.0

    def rescaled(self, unit: float) -> Squared:
        """Homogeneous of degree 2: unchanged."""
        return self


@dataclass(frozen=True)
class Huber:
    """l(f, y) = r^2/2 for |r| <= delta, else delta |r| - delta^2/2, with r = f - y; conjugate v^2/2 + v y on |v| <= delta."""

    delta: float = 1.0
    name = "huber"
    smoothness = 1.0

    def __post_init__(self) -> None:
        check_positive(self.delta, "delta")

    def check(self, y: FloatArray) -> FloatArray:
        """Every finite y will do."""
        return y

    def value(self, f: FloatArray, y: FloatArray) -> float:
        """The sum over samples."""
        size = np.abs(f - y)
        small = np.minimum(size, self.delta)
        return float(np.sum(small * (size - 0.5 * small)))

    def gradient(self, f: FloatArray, y: FloatArray) -> FloatArray:
        """f - y, clipped to [-delta, delta]."""
        return np.clip(f - y, -self.delta, self.delta)

    def conjugate(self, v: FloatArray, y: FloatArray) -> float:
        """||v||^2 / 2 + <v, y> where |v| <= delta."""
        if np.max(np.abs(v), initial=0.0) > self.delta:
            return float("inf")
        return float(np.sum(v * (0.5 * v + y)))

    def conjugate_gradient(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """V + y, inside the domain."""
        return v + y

    def project(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """Clip to [-delta, delta]."""
        return np.clip(v, -self.delta, self.delta)

    def prox(self, z: FloatArray, y: FloatArray, step: float) -> FloatArray:
        """A step towards y, by step/(1 + step) of the way and at most step delta."""
        way = (y - z) * (step / (1.0 + step))
        return z + np.clip(way, -step * self.delta, step * self.delta)

    def scale(self, y: FloatArray) -> float:
        """||y||, or 1 for y = 0."""
        return float(np.linalg.norm(y)) or 1.0

    def rescaled(self, unit: float) -> Huber:
        """The same with delta / unit."""
        return Huber(self.delta / unit)
