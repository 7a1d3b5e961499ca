"""Searches for narrow maxima of the price: what the estimates of solver and certificate rest on."""

from __future__ import annotations

import numpy as np

from convexbn.pricing.climbing import climb
from convexbn.pricing.everywhere import blind
from convexbn.pricing.families import search_families
from convexbn.pricing.local import SHARP, LocalSearch, directions_near, distinct, random_directions, worths_of
from convexbn.threads import LARGE
from convexbn.validation import FloatArray

ROUNDED, NARROW = (0.3, 0.1, 0.03, 0.0), 3 * SHARP  # the kinks of half of the random starts, and of all others
BESIDE = 0.1, 0.2, 0.4, 0.8  # distances from neurons
DEARER = 4  # times as much a search for families takes, by the start
APART, PROMISING, CLIMBS = 0.9999, 0.9, 400  # climbs begin at so many ends at most, of smaller cosines, that are worth so much of the best


def mixed_search(local: LocalSearch, v: FloatArray, neurons: FloatArray, count: int, seed: tuple[int, ...]) -> FloatArray:
    """Unit directions where searches end, from `count` random starts, half of them on rounded kinks, and from as many around the neurons.

    Near an optimum the maxima that are missing lie at corners, on as many facets as there are dimensions, and are narrow. The wide
    kinks that find most maxima far from an optimum pass over these: section 10 of `docs/theory.md` has figures. None of the three
    searches finds all that the others do.
    """
    random, around = random_directions(count, neurons.shape[1], seed), directions_near(neurons, count, BESIDE, seed)
    return np.concatenate([local(v, random[::2], ROUNDED), local(v, np.concatenate([random[1::2], around]), NARROW)])


def thorough_search(
    local: LocalSearch, basis: FloatArray, v: FloatArray, neurons: FloatArray, count: int, seed: tuple[int, ...]
) -> FloatArray:
    """Unit directions to which climbs lead from the best ends of a `mixed_search`, and blind ones; on a large basis, where climbs are
    dear, the ends.

    With several outputs half of the time, or more where there are many neurons, is for a search for families.

    Parameters
    ----------
    local : the search, for this basis
    basis : (n, r+1) U'
    v : (n, C) the dual point V
    neurons : (m, r+1) unit directions near which maxima are likely
    count : of random starts, and of those around the neurons
    seed : of both
    """
    if v.shape[1] > 1:
        families = search_families(local, basis, v, neurons, max(-(-count // DEARER), len(neurons)), seed)[0]
        ends = np.concatenate([families, mixed_search(local, v, neurons, -(-count // 2), seed)])
    else:
        ends = mixed_search(local, v, neurons, count, seed)
    if basis.size >= LARGE:  # a climb there is a least squares problem with all samples
        return ends
    worths = worths_of(basis, v, ends)
    feet = distinct(ends, worths, cosine=APART, most=CLIMBS, threshold=PROMISING * float(np.max(worths, initial=0.0)))
    return climb(basis, v, np.concatenate([ends[feet], blind(basis, seed)]))
