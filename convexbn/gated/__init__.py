"""The gated model: arrangements fixed by gates, no cones. It is another model than the ReLU network, and says so everywhere."""

from __future__ import annotations

from convexbn.gated.cones import Conversion
from convexbn.gated.fit import GatedFit, fit_gated_bn, fit_gated_path
from convexbn.gated.gates import LocalGates
from convexbn.gated.network import GatedNetwork
from convexbn.gated.program import GatedProgram
from convexbn.gated.solver import GatedSolution, GatedSolver
from convexbn.shards import Shards, whiten_shards

__all__ = [
    "Conversion",
    "GatedFit",
    "GatedNetwork",
    "GatedProgram",
    "GatedSolution",
    "GatedSolver",
    "LocalGates",
    "Shards",
    "fit_gated_bn",
    "fit_gated_path",
    "whiten_shards",
]
