"""Data for the tests of paths."""

from __future__ import annotations

import numpy as np


def tabular(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bent function with noise, centred."""
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, d))
    y = np.maximum(X @ generator.standard_normal((d, 3)), 0.0).sum(axis=1) + 0.3 * generator.standard_normal(n)
    return X, y - y.mean()


def task(loss: str) -> tuple[np.ndarray, np.ndarray]:
    """Targets that suit the loss; "outputs" are two targets of squared loss. The arrangements are 1152, too many to be listed unasked."""
    X, y = tabular(16, 3, 0)
    targets = {
        "logistic": np.sign(y),
        "hinge": np.sign(y),
        "softmax": np.eye(3)[np.searchsorted([-0.5, 0.5], y)],
        "outputs": np.column_stack([y, np.abs(y)]),
    }
    return X, targets.get(loss, y)
