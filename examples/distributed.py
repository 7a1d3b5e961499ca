"""One program on several processes: arrangements or samples spread, the same answer as one process gives.

    torchrun --nproc-per-node 2 examples/distributed.py [--spread samples] [--images 1797] [--gates 100] [--network relu]

scikit-learn's digits. The gated model has one-hot targets: with arrangements spread every process has all images and a share of the
gates, and predictions are summed, (n, C) numbers a step; with samples spread each has a share of the images, whitened together by TSQR,
and gradients are summed. The ReLU network over sampled arrangements tells one half of the digits from the other: each process prices
its share of the arrangements. The first process then solves the whole by itself and prints how far apart the two answers are. See
docs/scale.md.
"""

from __future__ import annotations

import argparse
from datetime import timedelta

import numpy as np
import torch
import torch.distributed
from sklearn.datasets import load_digits

from convexbn import ActiveSet, Arrangements, GatedSolver, Program, Squared, fit_gated_bn, recover, sample_arrangements, whiten
from convexbn.gated import Shards


def relu(X: np.ndarray, digits: np.ndarray, count: int, shards: Shards) -> None:
    """The ReLU network, beta 0.1 of the largest by the norms of all blocks."""
    whitening, y = whiten(X), np.where(digits >= 5, 1.0, -1.0)
    active = sample_arrangements(whitening.basis, count).active
    beta = 0.1 * float(np.max(np.linalg.norm((active * y) @ whitening.basis, axis=1)))

    def solved(part: np.ndarray, shards: Shards) -> tuple[float, float, np.ndarray]:
        program = Program(whitening.basis, y, Squared(), beta, Arrangements(part, complete=False, possible=2 ** len(X)))
        solution = ActiveSet(shards=shards).solve(program)
        network = recover(whitening, solution.directions, solution.outputs)
        return solution.trace[-1].objective, program.dual_objective(solution.dual), network.predict(X)

    together = solved(shards.part_of(active), shards)
    if shards.place[0] == 0:
        compare("ReLU network", shards.place[1], together, solved(active, Shards()))


def gated(X: np.ndarray, Y: np.ndarray, gates: int, spread: str) -> None:
    """The gated model, arrangements or samples spread."""
    group, rank, size = torch.distributed.group.WORLD, torch.distributed.get_rank(), torch.distributed.get_world_size()
    options = {"gates": gates, "solver": GatedSolver(tolerance=1e-6, method="steps", precision="float64")}
    if spread == "arrangements":
        together = fit_gated_bn(X, Y, shards=Shards(arrangements=group), **options)
    else:
        together = fit_gated_bn(X[rank::size], Y[rank::size], shards=Shards(samples=group), **options)
    if rank == 0:
        both = [(fit.certificate.objective, fit.certificate.bound, fit.predict(X)) for fit in (together, fit_gated_bn(X, Y, **options))]
        print(together)
        compare("gated model", size, *both)


def compare(name: str, size: int, together: tuple[float, float, np.ndarray], alone: tuple[float, float, np.ndarray]) -> None:
    """Print objective, bound and predictions of both."""
    print(f"{name}, {size} processes: objective {together[0]:.12g}, bound {together[1]:.12g}")
    print(f"one process: objective {alone[0]:.12g}, bound {alone[1]:.12g}")
    print(f"largest difference of predictions {np.max(np.abs(together[2] - alone[2])):.1e}")


def main() -> None:
    """Solve together, then alone, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--spread", choices=["arrangements", "samples"], default="arrangements")
    parser.add_argument("--images", type=int, default=1797)
    parser.add_argument("--gates", type=int, default=100, help="or arrangements of the ReLU network")
    parser.add_argument("--network", choices=["gated", "relu"], default="gated")
    chosen = parser.parse_args()
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    group = torch.distributed.group.WORLD
    X, digits = load_digits(return_X_y=True)
    X, digits = X[: chosen.images], digits[: chosen.images]
    if chosen.network == "relu":
        relu(X, digits, chosen.gates, Shards(arrangements=group))
    else:
        gated(X, np.eye(10)[digits], chosen.gates, chosen.spread)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
