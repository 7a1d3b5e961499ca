"""One gated program on several processes: arrangements or samples spread, the same answer as one process gives.

    torchrun --nproc-per-node 2 examples/distributed.py [--spread samples] [--images 1797] [--gates 100]

scikit-learn's digits, one-hot targets. With arrangements spread every process has all images and a share of the gates, and predictions
are summed, (n, C) numbers a step; with samples spread each has a share of the images, whitened together by TSQR, and gradients are summed.
The first process then solves the whole by itself and prints how far apart the two answers are. See docs/scale.md.
"""

from __future__ import annotations

import argparse
from datetime import timedelta

import numpy as np
import torch
import torch.distributed
from sklearn.datasets import load_digits

from convexbn import GatedSolver, fit_gated_bn
from convexbn.gated import Shards


def main() -> None:
    """Solve together, then alone, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--spread", choices=["arrangements", "samples"], default="arrangements")
    parser.add_argument("--images", type=int, default=1797)
    parser.add_argument("--gates", type=int, default=100)
    chosen = parser.parse_args()
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    group, rank, size = torch.distributed.group.WORLD, torch.distributed.get_rank(), torch.distributed.get_world_size()
    X, digits = load_digits(return_X_y=True)
    X, Y = X[: chosen.images], np.eye(10)[digits[: chosen.images]]
    options = {"gates": chosen.gates, "solver": GatedSolver(tolerance=1e-6, method="steps", precision="float64")}
    if chosen.spread == "arrangements":
        together = fit_gated_bn(X, Y, shards=Shards(arrangements=group), **options)
    else:
        together = fit_gated_bn(X[rank::size], Y[rank::size], shards=Shards(samples=group), **options)
    if rank == 0:
        alone = fit_gated_bn(X, Y, **options)
        print(together)
        print(f"{size} processes: objective {together.certificate.objective:.12g}, bound {together.certificate.bound:.12g}")
        print(f"one process: objective {alone.certificate.objective:.12g}, bound {alone.certificate.bound:.12g}")
        print(f"largest difference of predictions {np.max(np.abs(together.predict(X) - alone.predict(X))):.1e}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
