"""How small a gap can be proved over all arrangements, on tabular data: time and gap of relaxation and branch and bound.

    OMP_NUM_THREADS=2 python examples/benchmark/proof.py [--seconds 20]

Squared loss, standardised features, one class against the rest (class 0; class 1 for iris) or the centred target. beta is a
fraction of the estimated beta_max. The gap is (objective - bound) / objective: proved over every arrangement and every width,
beside the one that the local search estimates. `seconds` is the budget of branch and bound, used with up to 7 features only.
"""

import argparse
import time

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine

from convexbn import beta_max, fit_convex_bn

LOADERS = {"iris": load_iris, "diabetes": load_diabetes, "breast cancer": load_breast_cancer, "wine": load_wine}
FEW = [("iris", 4), ("diabetes", 4), ("breast cancer", 5), ("wine", 6), ("diabetes", 6)]
CASES = [(name, features, beta) for name, features in FEW for beta in (0.5, 0.3, 0.1)]
CASES += [(name, features, beta) for name, features in [("diabetes", 10), ("wine", 13), ("breast cancer", 30)] for beta in (0.5, 0.2, 0.1)]


def load(name: str, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features and targets of unit size."""
    X, y = LOADERS[name](return_X_y=True)
    X = ((X - X.mean(axis=0)) / X.std(axis=0))[:, :features]
    if name == "diabetes":
        return X, (y - y.mean()) / y.std()
    return X, np.where(y == (1 if name == "iris" else 0), 1.0, -1.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="for branch and bound, each case")
    budget = parser.parse_args().seconds
    table = Table(title="Proved over all arrangements")
    for column in ("data", "n", "d", "beta / beta_max", "neurons", "estimated gap", "proved gap", "training, s", "proof, s"):
        table.add_column(column, justify="right")
    for name, features, fraction in CASES:
        X, y = load(name, features)
        beta = fraction * beta_max(X, y)
        start = time.perf_counter()
        fit = fit_convex_bn(X, y, beta=beta, solver="sliding", proof_seconds=budget)
        proof = fit.seconds["certify"]
        training = time.perf_counter() - start - proof
        gaps = f"{fit.certificate.estimated_gap:.1e}", f"{fit.certificate.relative_gap:.1e}"
        table.add_row(name, str(len(y)), str(features), str(fraction), str(fit.network.neurons), *gaps, f"{training:.1f}", f"{proof:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
