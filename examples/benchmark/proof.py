"""How small a gap can be proved over all arrangements, on tabular data: time and gap of relaxation and branch and bound.

    OMP_NUM_THREADS=2 python examples/benchmark/proof.py [--seconds 20]

Squared loss, standardised features, one class against the rest (class 0; class 1 for iris), the centred target, or with several
outputs the one-hot classes. beta is a fraction of the estimated beta_max. The gap is (objective - bound) / objective: proved over
every arrangement and every width, beside the one that the local search estimates. `seconds` is the budget of branch and bound and
of the search over output directions, used up only where the relaxation leaves more than 1e-3. Boxes use two cores.
"""

import argparse
import time

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine

from convexbn import beta_max, fit_convex_bn

LOADERS = {"iris": load_iris, "diabetes": load_diabetes, "breast cancer": load_breast_cancer, "wine": load_wine, "digits": load_digits}
FEW = [("iris", 4), ("diabetes", 4), ("breast cancer", 5), ("wine", 6), ("diabetes", 6)]
ALL = [("diabetes", 10), ("wine", 13), ("breast cancer", 30)]
CASES = [(name, features, 1, beta) for name, features in FEW for beta in (0.5, 0.3, 0.1)]
CASES += [(name, features, 1, beta) for name, features in ALL for beta in (0.5, 0.2, 0.1)]
CASES += [("iris", 4, 3, 0.3), ("wine", 13, 3, 0.3), ("digits", 64, 10, 0.15)]


def load(name: str, features: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features, constant ones left at 0, and targets of unit size or one-hot."""
    X, y = LOADERS[name](return_X_y=True)
    X = ((X - X.mean(axis=0)) / np.maximum(X.std(axis=0), 1e-9))[:, :features]
    if outputs > 1:
        return X, np.eye(outputs)[y]
    if name == "diabetes":
        return X, (y - y.mean()) / y.std()
    return X, np.where(y == (1 if name == "iris" else 0), 1.0, -1.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="for branch and bound, each case")
    parser.add_argument("--only", default="", help="cases of this data set alone")
    arguments = parser.parse_args()
    table = Table(title="Proved over all arrangements")
    for column in ("data", "n", "d", "C", "beta / beta_max", "neurons", "estimated gap", "proved gap", "training, s", "proof, s"):
        table.add_column(column, justify="right")
    for name, features, outputs, fraction in CASES:
        if arguments.only not in name:
            continue
        X, y = load(name, features, outputs)
        beta = fraction * beta_max(X, y)
        start = time.perf_counter()
        fit = fit_convex_bn(X, y, beta=beta, solver="sliding", proof_seconds=arguments.seconds)
        proof = fit.seconds["certify"]
        training = time.perf_counter() - start - proof
        gaps = f"{fit.certificate.estimated_gap:.1e}", f"{fit.certificate.relative_gap:.1e}"
        case = name, str(len(y)), str(features), str(outputs), str(fraction)
        table.add_row(*case, str(fit.network.neurons), *gaps, f"{training:.1f}", f"{proof:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
