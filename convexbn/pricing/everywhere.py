"""Pricing over all arrangements without listing them: a local search below, a relaxation above."""

from __future__ import annotations

import numpy as np

from convexbn.pricing.cells import Price
from convexbn.pricing.local import evolve, random_directions
from convexbn.pricing.relaxation import Relaxation
from convexbn.validation import FloatArray


def price_everywhere(basis: FloatArray, v: FloatArray, *, starts: int = 256, generations: int = 6, seed: int = 0) -> Price:
    """An interval around h(V) over all arrangements: `lower` by local search, `upper` proved by `Relaxation`.

    Parameters
    ----------
    basis : (n, r+1) U'
    v : (n,) the dual point V
    starts, generations, seed : of the local search
    """
    random = random_directions(starts, basis.shape[1], (seed,))
    directions, _ = evolve(basis, v[:, None], random, seed=(seed,), children=starts, generations=generations)
    worths = np.maximum(basis @ directions.T, 0.0).T @ v
    highest, lowest = int(np.argmax(worths)), int(np.argmin(worths))
    above, below = Relaxation(basis, v > 0), Relaxation(basis, v < 0)
    upper = max(above.bound(v, directions[highest]), below.bound(-v, directions[lowest]))
    sign, best, other = (1.0, highest, lowest) if worths[highest] >= -worths[lowest] else (-1.0, lowest, highest)
    lower = abs(float(worths[best]))
    return Price(max(upper, lower), lower, directions[best], sign, directions[other])
