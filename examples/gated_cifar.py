"""The gated model on all of CIFAR-10: 50,000 images, 1000 gates, ten outputs, solved to a proved gap of one percent on two cores.

    OMP_NUM_THREADS=2 python examples/gated_cifar.py FOLDER [--gates 1000] [--rank 200] [--fraction 0.05] [--tolerance 1e-2] [--device cuda]

FOLDER holds the official `cifar-10-batches-py` (`python -m convexbn.datasets cifar10 FOLDER` fetches it). Raw pixels / 255, one-hot
targets, squared loss, beta a fraction of beta_max, group penalty. The gated model is another model than the ReLU network; the gap is
proved for these gates.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from convexbn import GatedSolver, fit_gated_bn
from convexbn.datasets import read_cifar10


def main() -> None:
    """Print the fit, its trace and its accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gates", type=int, default=1000)
    parser.add_argument("--rank", type=int, default=200)
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument("--tolerance", type=float, default=1e-2)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=None, help="of the training set, from the front; all by default")
    chosen = parser.parse_args()
    data = read_cifar10(chosen.folder)
    X, labels = data.train_pixels()[: chosen.images], data.train_labels[: chosen.images]
    solver = GatedSolver(tolerance=chosen.tolerance, precision=chosen.precision, verbose=True)
    wall, cpu = time.perf_counter(), time.process_time()
    fit = fit_gated_bn(
        X,
        np.eye(10)[labels],
        gates=chosen.gates,
        rank=chosen.rank,
        fraction=chosen.fraction,
        solver=solver,
        device=chosen.device,
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(fit)
    print(f"  altogether    {wall:.1f} s, {cpu:.1f} s of CPU")
    for look in fit.solution.trace:
        print(
            f"  after {look.seconds:6.1f} s  objective {look.objective:.6g}, relative gap {look.gap:.1e}, {look.neurons} gates with weight"
        )
    for name, images, kinds in (("train", X, labels), ("test", data.test_pixels(), data.test_labels)):
        print(f"  {name} accuracy {np.mean(fit.predict(images).argmax(axis=1) == kinds):.4f}")


if __name__ == "__main__":
    main()
