"""Moments of a given spectrum, and a numeric derivative, for the tests of length and direction apart."""

from __future__ import annotations

import numpy as np


def moments(seed: int, d: int, condition: float, strength: float = 0.49, null: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """S with eigenvalues from 1 / condition to 1, and `null` more that are 0; u in its range with u^T S^{-1} u = strength."""
    generator = np.random.default_rng(seed)
    rotation = np.linalg.qr(generator.standard_normal((d + null, d + null)))[0][:, :d]
    S = rotation * np.geomspace(1.0 / condition, 1.0, d) @ rotation.T
    v = generator.standard_normal(d + null)
    return S, S @ v * np.sqrt(strength / (v @ S @ v))


def derivative(f, x: float, h: float = 1e-5) -> float:
    return (f(x + h) - f(x - h)) / (2.0 * h)
