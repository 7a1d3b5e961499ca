"""Data and settings that the tests of the estimators share. Tests import it: `from estimator_data import ...`."""

from __future__ import annotations

from typing import Any

import numpy as np

from convexbn import Certificate, Conic, Evidence, Network, SlidingFrankWolfe
from convexbn.losses import get_loss
from convexbn.whitening import Whitening

# Ten arrangements and solutions of medium accuracy, in a tenth of the time.
CHEAP: dict[str, Any] = {"arrangements": 10, "solver": Conic("CLARABEL", {"tol_gap_abs": 1e-6, "tol_gap_rel": 1e-6, "tol_feas": 1e-6})}
CONIC: dict[str, Any] = {"arrangements": "all", "solver": "CLARABEL"}
# One round, whose gap is never small enough for the search that would confirm it.
SLIDING: dict[str, Any] = {"solver": SlidingFrankWolfe(tolerance=1e-12, rounds=1, starts=8)}
FOLDS: dict[str, Any] = {"betas": 2, "smallest": 0.3, "cv": 2}


def unproved(_whitening: Whitening, X: np.ndarray, y: np.ndarray, network: Network, *, beta: float, loss: Any, **_: Any) -> Certificate:
    """The bound 0, which holds for every loss and takes no time: scikit-learn's checks test the shell, not the certificate."""
    objective = network.objective(X, y, get_loss(loss), beta)
    return Certificate(objective, 0.0, Evidence.PROVED, "all arrangements", 0.0, np.zeros(np.shape(y)), 0.0)


def regression() -> tuple[np.ndarray, np.ndarray]:
    """A bent function of two features, with an offset."""
    X = np.random.default_rng(0).standard_normal((16, 2))
    return X, 5.0 + np.maximum(X[:, 0], 0.0) - 0.5 * X[:, 1]


def classification() -> tuple[np.ndarray, np.ndarray]:
    """Words for the sign of a linear function."""
    X = np.random.default_rng(1).standard_normal((16, 2))
    return X, np.where(X[:, 0] > 0.3 * X[:, 1], "yes", "no")


def three_classes() -> tuple[np.ndarray, np.ndarray]:
    """Words for the sectors of the plane."""
    X = np.random.default_rng(2).standard_normal((18, 2))
    return X, np.array(["a", "b", "c"])[np.digitize(np.arctan2(X[:, 1], X[:, 0]), [-1.0, 1.0])]
