"""The non-convex side: gradient methods, to compare with and as tools of their own. Needs PyTorch."""

from convexbn.training.adam import TrainingRun, train_adam
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
from convexbn.training.rayleigh import RayleighQuotient, least_squares, rayleigh_descent, rayleigh_quotient
from convexbn.training.units import GaussianNetwork, UnitsRun, gaussian_network, train_units

__all__ = [
    "Activation",
    "DecoupledSGD",
    "EmpiricalHalfspaces",
    "FullNorm1d",
    "FullNorm2d",
    "GDNPRun",
    "GaussianHalfspaces",
    "GaussianNetwork",
    "LengthStatus",
    "RayleighQuotient",
    "TrainingRun",
    "UnitsRun",
    "batch_norm_objective",
    "convert_batch_norm",
    "cross_dependency",
    "empirical_halfspaces",
    "full_norm_gradient",
    "full_norm_objective",
    "gaussian_halfspaces",
    "gaussian_network",
    "least_squares",
    "normalised_pairs",
    "rayleigh_descent",
    "rayleigh_quotient",
    "set_exact_statistics",
    "train_adam",
    "train_gdnp",
    "train_units",
]
