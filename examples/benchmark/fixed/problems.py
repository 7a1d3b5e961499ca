"""The problems: fixed arrangements of synthetic data, as they are or whitened, without cones (gated) or with them (ReLU).

    min  ||sum_i D_i B S_i - y||^2 / 2 + beta sum_i ||S_i||                                                     gated
    min  ||sum_i D_i B (s_i - s_i') - y||^2 / 2 + beta sum_i (||s_i|| + ||s_i'||),  (2 D_i - I) B s_i >= 0        relu

n times scnn's scaling, beta = n lambda. B is the data X, (n, d), or its whitened basis U', (n, d+1): batch normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexbn import whiten

SIZES = {"S": (500, 10, 50), "M": (2000, 50, 200), "L": (10_000, 100, 500)}  # n, d, P
FRACTION = 0.02  # of the smallest beta at which nothing is left, without the cones


@dataclass(frozen=True, eq=False)
class Problem:
    """Basis (n, k), gates (P, k), patterns (P, n) of them, targets (n,), beta; `cones` for ReLU."""

    name: str
    basis: np.ndarray
    gates: np.ndarray
    patterns: np.ndarray
    y: np.ndarray
    beta: float
    cones: bool

    def matrix(self) -> np.ndarray:
        """[D_1 B, ..., D_P B], written out (n, P k), columns of an arrangement side by side: for solvers that need it."""
        n, k = self.basis.shape
        dense = np.empty((n, len(self.gates) * k), order="F")
        for i, pattern in enumerate(self.patterns):
            dense[:, i * k : (i + 1) * k] = pattern[:, None] * self.basis
        return dense


def make_problem(size: str, *, whitened: bool, cones: bool = False, seed: int = 0) -> Problem:
    """Gaussian features with correlations 0.5^|i-j|, unit columns; 20 random ReLU neurons of deviation 1, noise 0.3; Gaussian gates."""
    n, d, count = SIZES[size]
    generator = np.random.default_rng(seed)
    correlations = 0.5 ** np.abs(np.subtract.outer(np.arange(d), np.arange(d)))
    X = generator.standard_normal((n, d)) @ np.linalg.cholesky(correlations).T
    X /= np.linalg.norm(X, axis=0)
    teacher = np.maximum(X @ generator.standard_normal((d, 20)), 0.0) @ generator.standard_normal(20)
    y = teacher / teacher.std() + 0.3 * generator.standard_normal(n)
    basis = whiten(X).basis if whitened else X
    gates = generator.standard_normal((count, basis.shape[1]))
    patterns = gates @ basis.T >= 0
    largest = np.max(np.linalg.norm((patterns * y) @ basis, axis=1))
    name = f"{'relu' if cones else 'gated'} {size}{', whitened' if whitened else ''}"
    return Problem(name, basis, gates, patterns, y, FRACTION * largest, cones)


PROBLEMS = {
    f"{kind}-{size}{'-bn' if whitened else ''}": (size, whitened, kind == "relu")
    for kind in ("gated", "relu")
    for size in SIZES
    for whitened in (False, True)
}


def problem_of(key: str) -> Problem:
    """The problem of that key, as `gated-M` or `relu-S-bn`."""
    size, whitened, cones = PROBLEMS[key]
    return make_problem(size, whitened=whitened, cones=cones)
