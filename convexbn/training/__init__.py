"""The non-convex side: gradient methods, to compare with and as tools of their own. Needs PyTorch."""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("convexbn.training needs PyTorch: pip install 'convexbn[torch]'") from error

from convexbn.training.curvature import cross_dependency
from convexbn.training.decoupled import DecoupledSGD, normalised_pairs
from convexbn.training.full_norm import (
    FullNorm1d,
    FullNorm2d,
    batch_norm_objective,
    convert_batch_norm,
    full_norm_gradient,
    full_norm_objective,
    set_exact_statistics,
)
from convexbn.training.gdnp import GDNPRun, LengthStatus, train_gdnp
from convexbn.training.halfspaces import Activation, EmpiricalHalfspaces, GaussianHalfspaces, empirical_halfspaces, gaussian_halfspaces
from convexbn.training.methods import LBFGS, SGD, Adam, Method
from convexbn.training.models import ModelRun, evaluate, train_model
from convexbn.training.networks import TrainingRun, train_networks
from convexbn.training.rayleigh import RayleighQuotient, least_squares, rayleigh_descent, rayleigh_quotient
from convexbn.training.units import GaussianNetwork, UnitsRun, gaussian_network, train_units

__all__ = [
    "LBFGS",
    "SGD",
    "Activation",
    "Adam",
    "DecoupledSGD",
    "EmpiricalHalfspaces",
    "FullNorm1d",
    "FullNorm2d",
    "GDNPRun",
    "GaussianHalfspaces",
    "GaussianNetwork",
    "LengthStatus",
    "Method",
    "ModelRun",
    "RayleighQuotient",
    "TrainingRun",
    "UnitsRun",
    "batch_norm_objective",
    "convert_batch_norm",
    "cross_dependency",
    "empirical_halfspaces",
    "evaluate",
    "full_norm_gradient",
    "full_norm_objective",
    "gaussian_halfspaces",
    "gaussian_network",
    "least_squares",
    "normalised_pairs",
    "rayleigh_descent",
    "rayleigh_quotient",
    "set_exact_statistics",
    "train_gdnp",
    "train_model",
    "train_networks",
    "train_units",
]
