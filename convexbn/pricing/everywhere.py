"""Pricing over all arrangements without listing them: a local search below, a relaxation above."""

from __future__ import annotations

import numpy as np

from convexbn.pricing.cells import Price
from convexbn.pricing.local import climb, evolve, random_directions
from convexbn.pricing.relaxation import Relaxation
from convexbn.validation import FloatArray

CLIMBS = 4  # of each sign


def price_everywhere(basis: FloatArray, v: FloatArray, *, starts: int = 256, generations: int = 4, seed: int = 0) -> Price:
    """An interval around h(V) over all arrangements: `lower` by local search, `upper` proved by relaxation.

    Parameters
    ----------
    basis : (n, r+1) U'
    v : (n,) the dual point V
    starts, generations, seed : of the local search
    """
    random = random_directions(starts, basis.shape[1], (seed,))
    directions, _ = evolve(basis, v[:, None], random, seed=(seed,), children=starts, generations=generations)
    worths = np.maximum(basis @ directions.T, 0.0).T @ v
    feet = np.concatenate([np.argsort(-worths)[:CLIMBS], np.argsort(worths)[:CLIMBS]])
    directions = np.concatenate([directions, [climb(basis, v[:, None], directions[j]) for j in feet]])
    worths = np.maximum(basis @ directions.T, 0.0).T @ v
    highest, lowest = int(np.argmax(worths)), int(np.argmin(worths))
    sign, best, other = (1.0, highest, lowest) if worths[highest] >= -worths[lowest] else (-1.0, lowest, highest)
    lower = abs(float(worths[best]))
    upper = bound_by_relaxation(basis, v, directions[highest], directions[lowest])
    return Price(max(upper, lower), lower, directions[best], sign, directions[other])


def bound_by_relaxation(basis: FloatArray, v: FloatArray, highest: FloatArray, lowest: FloatArray) -> float:
    """A proved upper bound on h(V), from good directions (r+1,) for each sign: the larger of the relaxations of V and -V."""
    return max(Relaxation(basis, v > 0).bound(v, highest), Relaxation(basis, v < 0).bound(-v, lowest))
