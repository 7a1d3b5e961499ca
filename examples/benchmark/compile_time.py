"""How long does the conic solver spend on bringing the program into its form? Claim: under a quarter of the solve.

    OMP_NUM_THREADS=1 python examples/benchmark/compile_time.py [--samples 500] [--features 10] [--arrangements 50] [--solver CLARABEL]

CVXPY compiles a constraint for each arrangement in a time that outgrows the solve; convexbn hands it two sparse matrices instead.
"""

from __future__ import annotations

import argparse

import cvxpy
import numpy as np

from convexbn import Conic, fit_convex_bn
from convexbn.fit import beta_max


def problem(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian features with correlations 0.5^|i-j|, columns of norm 1; targets of 20 random ReLU neurons, deviation 1, plus noise 0.3."""
    generator = np.random.default_rng(seed)
    correlations = 0.5 ** np.abs(np.subtract.outer(np.arange(d), np.arange(d)))
    X = generator.standard_normal((n, d)) @ np.linalg.cholesky(correlations).T
    X /= np.linalg.norm(X, axis=0)
    teacher = np.maximum(X @ generator.standard_normal((d, 20)), 0.0) @ generator.standard_normal(20)
    return X, teacher / teacher.std() + 0.3 * generator.standard_normal(n)


def main() -> None:
    """Print both times of one fit."""
    parser = argparse.ArgumentParser(description="Compile and solve times of the conic solver.")
    for name, default in (("samples", 500), ("features", 10), ("arrangements", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--solver", default="CLARABEL")
    chosen = parser.parse_args()
    X, y = problem(chosen.samples, chosen.features)
    beta = 0.02 * beta_max(X, y, arrangements=chosen.arrangements)
    fit = fit_convex_bn(X, y, beta=beta, arrangements=chosen.arrangements, solver=Conic(chosen.solver))
    solve = fit.solution.solve_seconds
    compilation = fit.seconds["solve"] - solve  # CVXPY's and ours, everything around the solver
    print(f"{fit.solution.solver}, n={chosen.samples}, d={chosen.features}, P={chosen.arrangements}, squared loss, 0.02 beta_max")
    print(f"CVXPY {cvxpy.__version__}: compile {compilation:.3f} s, solve {solve:.3f} s in {fit.solution.iterations} iterations")
    print(f"compile / solve = {compilation / solve:.3f}")


if __name__ == "__main__":
    main()
