"""Pricing over all arrangements without listing them: a local search below, a relaxation above."""

from __future__ import annotations

import numpy as np

from convexbn.pricing.boxes import bound_by_boxes
from convexbn.pricing.cells import Price
from convexbn.pricing.local import climb, evolve, random_directions
from convexbn.pricing.relaxation import Relaxation
from convexbn.validation import FloatArray

CLIMBS = 4  # of each sign


def price_everywhere(
    basis: FloatArray,
    v: FloatArray,
    *,
    starts: int = 256,
    generations: int = 6,
    seed: int = 0,
    box_seconds: float = 0.0,
    tolerance: float = 1e-3,
) -> Price:
    """An interval around h(V) over all arrangements: `lower` by local search, `upper` proved by `Relaxation` or by boxes.

    Parameters
    ----------
    basis : (n, r+1) U'
    v : (n,) the dual point V
    starts, generations, seed : of the local search
    box_seconds : for branch and bound on boxes, both signs together; 0 leaves the relaxation alone
    tolerance : relative width of the interval at which boxes stop
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
    uppers = []
    for side, direction in ((v, directions[highest]), (-v, directions[lowest])):
        upper = Relaxation(basis, side > 0).bound(side, direction)
        if box_seconds > 0 and upper > (1.0 + tolerance) * lower:
            upper = min(upper, bound_by_boxes(basis, side, lower, tolerance=tolerance, seconds=0.5 * box_seconds))
        uppers.append(upper)
    upper = max(uppers)
    return Price(max(upper, lower), lower, directions[best], sign, directions[other])
