"""Pricing: the neuron that a dual point values most, h(V) = max over ||s|| <= 1 of ||V^T (U's)_+||, and upper bounds on it.

Over listed arrangements (`cells`) and at rank n - 1 it is known; over all arrangements a local search (`local`) finds lower
bounds, which make estimates, and a relaxation finds upper bounds, which make proofs.
"""

from dataclasses import replace

import numpy as np

from convexbn.arrangements import Arrangements
from convexbn.pricing.boxes import BOX_COLUMNS, BoxSearch, bound_by_boxes
from convexbn.pricing.cells import Price, is_square, price_arrangements, price_square
from convexbn.pricing.climbing import climb
from convexbn.pricing.dual_point import improve_dual
from convexbn.pricing.everywhere import affordable, blind, bound_by_relaxation, narrow, price_everywhere
from convexbn.pricing.factored import FactoredTraining
from convexbn.pricing.families import search_families
from convexbn.pricing.joint import JointTraining, fits_jointly, joint_size
from convexbn.pricing.local import (
    LocalSearch,
    OnCPU,
    directions_around,
    directions_between,
    directions_near,
    distinct,
    evolve,
    local_search,
    normalised,
    random_directions,
    search_in_stages,
    worths_of,
)
from convexbn.pricing.moments import MomentTraining, fits_moments, moment_size
from convexbn.pricing.nonnegative import PRODUCT_SAMPLES, RelaxedTraining, bound_by_products
from convexbn.pricing.outputs import HULL_OUTPUTS, bound_over_outputs
from convexbn.pricing.relaxation import Relaxation
from convexbn.pricing.square import known_price, price_square_outputs
from convexbn.pricing.thorough import mixed_search, thorough_search
from convexbn.pricing.tree import bound_by_tree
from convexbn.validation import FloatArray
from convexbn.whitening import powers_of_two

__all__ = [
    "BOX_COLUMNS",
    "HULL_OUTPUTS",
    "PRODUCT_SAMPLES",
    "BoxSearch",
    "FactoredTraining",
    "JointTraining",
    "LocalSearch",
    "MomentTraining",
    "OnCPU",
    "Price",
    "Relaxation",
    "RelaxedTraining",
    "affordable",
    "blind",
    "bound_by_boxes",
    "bound_by_products",
    "bound_by_relaxation",
    "bound_by_tree",
    "bound_over_outputs",
    "climb",
    "directions_around",
    "directions_between",
    "directions_near",
    "distinct",
    "evolve",
    "fits_jointly",
    "fits_moments",
    "improve_dual",
    "is_square",
    "joint_size",
    "known_price",
    "local_search",
    "mixed_search",
    "moment_size",
    "narrow",
    "normalised",
    "price_arrangements",
    "price_dual",
    "price_everywhere",
    "price_square",
    "price_square_outputs",
    "random_directions",
    "search_families",
    "search_in_stages",
    "thorough_search",
    "worths_of",
]


def price_dual(basis: FloatArray, v: FloatArray, arrangements: Arrangements | None, *, seconds: float = 2.0) -> Price:
    """An interval around h(V), V of shape (n,) or (n, C), over the given arrangements; None stands for all of them.

    A tiny or huge V is brought to unit size first, as h is homogeneous: fourth powers would leave float64, and with them its price.
    `seconds` are for the proof over all arrangements, unlisted.
    """
    size = float(np.max(np.abs(v), initial=0.0))
    unit = 1.0 if 1e-60 < size < 1e60 else float(powers_of_two(size))
    price = _price_of_unit_size(basis, v / unit, arrangements, seconds)
    return replace(price, upper=unit * price.upper, lower=unit * price.lower)


def _price_of_unit_size(basis: FloatArray, v: FloatArray, arrangements: Arrangements | None, seconds: float) -> Price:
    if is_square(basis, v):
        return price_square(basis, v)
    if arrangements is None and basis.shape[0] == basis.shape[1]:
        return known_price(basis, v) or _intersection(price_square_outputs(basis, v), price_everywhere(basis, v, seconds=seconds))
    if arrangements is None:
        return price_everywhere(basis, v, seconds=seconds)
    return price_arrangements(basis, v, arrangements.active, complete=arrangements.complete)


def _intersection(one: Price, other: Price) -> Price:
    """The lower of two upper bounds, and the neurons with the higher worth."""
    return replace(max(one, other, key=lambda price: price.lower), upper=min(one.upper, other.upper))
