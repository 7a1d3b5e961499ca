"""Full normalisation (Lian and Liu 2019): batch normalisation's network with the statistics of all data, trained on any batches."""

from convexbn.training.full_norm.convert import convert_batch_norm
from convexbn.training.full_norm.layers import FullNorm1d, FullNorm2d
from convexbn.training.full_norm.objectives import batch_norm_objective, full_norm_gradient, full_norm_objective
from convexbn.training.full_norm.statistics import set_exact_statistics

__all__ = [
    "FullNorm1d",
    "FullNorm2d",
    "batch_norm_objective",
    "convert_batch_norm",
    "full_norm_gradient",
    "full_norm_objective",
    "set_exact_statistics",
]
