"""Train ReLU networks with batch normalisation to global optimality by convex optimisation, and certify the result.

`fit_convex_bn(X, y)` is the way in; `ConvexBNRegressor` and `ConvexBNClassifier` are its scikit-learn estimators.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from convexbn.arrangements import Arrangements, count_arrangements, enumerate_arrangements, sample_arrangements
from convexbn.certificate import Certificate, Evidence, certify
from convexbn.collapse import NeuralCollapse, neural_collapse
from convexbn.export import from_torch, to_torch
from convexbn.features import random_layers
from convexbn.fit import Fit, beta_max, fit_convex_bn
from convexbn.gated import GatedFit, GatedNetwork, GatedProgram, GatedSolution, GatedSolver, LocalGates, fit_gated_bn, fit_gated_path
from convexbn.losses import Hinge, Huber, Logistic, Loss, Softmax, Squared
from convexbn.network import Network, neurons_of, recover
from convexbn.patches import Patches, Pooling
from convexbn.path import Path, fit_path
from convexbn.post_bn import PostFit, certify_post_bn, fit_post_bn
from convexbn.program import Program
from convexbn.pruning import prune_network
from convexbn.solution import Solution, Solver, SolverError, SolverUnavailable, Status
from convexbn.solvers import ActiveSet, ClosedForm, Conic, SlidingFrankWolfe
from convexbn.validation import ConvexBNError, InputError
from convexbn.whitening import Whitening, whiten

if TYPE_CHECKING:
    from convexbn.estimators import ConvexBNClassifier, ConvexBNClassifierCV, ConvexBNRegressor, ConvexBNRegressorCV

__version__ = "0.1.0"

__all__ = [
    "ActiveSet",
    "Arrangements",
    "Certificate",
    "ClosedForm",
    "Conic",
    "ConvexBNClassifier",
    "ConvexBNClassifierCV",
    "ConvexBNError",
    "ConvexBNRegressor",
    "ConvexBNRegressorCV",
    "Evidence",
    "Fit",
    "GatedFit",
    "GatedNetwork",
    "GatedProgram",
    "GatedSolution",
    "GatedSolver",
    "Hinge",
    "Huber",
    "InputError",
    "LocalGates",
    "Logistic",
    "Loss",
    "Network",
    "NeuralCollapse",
    "Patches",
    "Path",
    "Pooling",
    "PostFit",
    "Program",
    "SlidingFrankWolfe",
    "Softmax",
    "Solution",
    "Solver",
    "SolverError",
    "SolverUnavailable",
    "Squared",
    "Status",
    "Whitening",
    "beta_max",
    "certify",
    "certify_post_bn",
    "count_arrangements",
    "enumerate_arrangements",
    "fit_convex_bn",
    "fit_gated_bn",
    "fit_gated_path",
    "fit_path",
    "fit_post_bn",
    "from_torch",
    "neural_collapse",
    "neurons_of",
    "prune_network",
    "random_layers",
    "recover",
    "sample_arrangements",
    "to_torch",
    "whiten",
]


def __getattr__(name: str) -> Any:
    """The estimators and two modules on first use: scikit-learn and PyTorch take a second to import."""
    if name in ("datasets", "training"):
        return import_module(f"convexbn.{name}")
    if name.startswith("ConvexBN") and name in __all__:
        from convexbn import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module 'convexbn' has no attribute {name!r}")
