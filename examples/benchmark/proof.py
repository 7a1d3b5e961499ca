"""How small a gap can be proved over all arrangements, on tabular data: time and gap of relaxation and branch and bound.

    OMP_NUM_THREADS=2 python examples/benchmark/proof.py [--seconds 20] [--cpu] [--cifar DIR]

Squared loss, standardised features, one class against the rest (class 0; class 1 for iris), the centred target, or with several
outputs the one-hot classes. beta is a fraction of the estimated beta_max. The gap is (objective - bound) / objective: proved over
every arrangement and every width, beside the one that the local search estimates. `seconds` is the budget of the proof, used up
only where the gap stays above 1e-3. Boxes use two cores. CIFAR-10, 50,000 images on their 200 leading principal directions, takes
minutes and gigabytes. With `--cpu` all budgets and times are in CPU seconds, of all threads together: on a machine that others use
too, wall seconds say little.
"""

import argparse
import time

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine

from convexbn import SlidingFrankWolfe, fit_convex_bn
from convexbn.datasets import read_cifar10

LOADERS = {"iris": load_iris, "diabetes": load_diabetes, "breast cancer": load_breast_cancer, "wine": load_wine, "digits": load_digits}
FEW = [("iris", 4), ("diabetes", 4), ("breast cancer", 5), ("wine", 6), ("diabetes", 6)]
ALL = [("diabetes", 10), ("wine", 13), ("breast cancer", 30)]
CASES = [(name, features, 1, beta) for name, features in FEW for beta in (0.5, 0.3, 0.1)]
CASES += [(name, features, 1, beta) for name, features in ALL for beta in (0.5, 0.2, 0.1)]
CASES += [("iris", 4, 3, 0.3), ("wine", 13, 3, 0.3), ("digits", 64, 10, 0.15)]
CIFAR = ("CIFAR-10", 3072, 1, 0.06)
RANK, ROUGH = 200, SlidingFrankWolfe(tolerance=3e-3, seconds=300.0)


def load(name: str, features: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features, constant ones left at 0, and targets of unit size or one-hot."""
    X, y = LOADERS[name](return_X_y=True)
    X = ((X - X.mean(axis=0)) / np.maximum(X.std(axis=0), 1e-9))[:, :features]
    if outputs > 1:
        return X, np.eye(outputs)[y]
    if name == "diabetes":
        return X, (y - y.mean()) / y.std()
    return X, np.where(y == (1 if name == "iris" else 0), 1.0, -1.0)


def load_cifar(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """All training images as pixels from 0 to 1, the first class against the rest."""
    data = read_cifar10(folder)
    pixels = data.train_pixels()
    return pixels.reshape(len(pixels), -1), np.where(data.train_labels == 0, 1.0, -1.0)


def row(case: tuple[str, int, int, float], X: np.ndarray, y: np.ndarray, seconds: float) -> list[str]:
    """One problem, trained and proved."""
    name, features, outputs, fraction = case
    rank, solver = (RANK, ROUGH) if name == CIFAR[0] else (None, "sliding")
    start = time.perf_counter()
    fit = fit_convex_bn(X, y, fraction=fraction, rank=rank, solver=solver, proof_seconds=seconds)
    if fit.interrupted:
        raise KeyboardInterrupt
    proof = fit.seconds["certify"]
    training = time.perf_counter() - start - proof
    gaps = f"{fit.certificate.estimated_gap:.1e}", f"{fit.certificate.relative_gap:.1e}"
    numbers = str(len(y)), str(rank or features), str(outputs), str(fraction), str(fit.network.neurons)
    return [name, *numbers, *gaps, f"{training:.1f}", f"{proof:.1f}"]


def main() -> None:
    """Print the table, each row as it comes, and all of them at the end."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="for the proof, each case")
    parser.add_argument("--only", default="", help="cases of this data set alone")
    parser.add_argument("--cifar", default="", help="folder with CIFAR-10, for the case of 50,000 images")
    parser.add_argument("--cpu", action="store_true", help="budgets and times in CPU seconds")
    arguments = parser.parse_args()
    if arguments.cpu:
        time.perf_counter = time.process_time
    table = Table(title="Proved over all arrangements")
    for column in ("data", "n", "d", "C", "beta / beta_max", "neurons", "estimated gap", "proved gap", "training, s", "proof, s"):
        table.add_column(column, justify="right")
    for case in CASES + [CIFAR] * bool(arguments.cifar):
        if arguments.only in case[0]:
            data = load_cifar(arguments.cifar) if case == CIFAR else load(*case[:3])
            cells = row(case, *data, arguments.seconds)
            print("|", " | ".join(cells), "|", flush=True)
            table.add_row(*cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
