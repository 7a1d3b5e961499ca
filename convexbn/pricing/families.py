"""Search for neurons with several outputs, whose high maxima come in families."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convexbn.pricing.local import (
    LocalSearch,
    directions_around,
    directions_near,
    distinct,
    normalised,
    random_directions,
    search_in_stages,
    worths_of,
)
from convexbn.validation import FloatArray

SHORT, SHORTER = (0.3, 0.2, 0.1, 0.05, 0.0), (0.2, 0.1, 0.05, 0.0)  # kinks of first searches, and of those that follow
# Twice as many starts as all others at these distances from neurons: near the optimum of digits, ten classes, they found ten times as
# many neurons as the others, but only half of the families.
AROUND, NEAR = (0.4, 0.6, 0.8, 1.0), 2
# As many as a fourth of the starts, no two of them alike, have CHILDREN each, so FAR away, in FOLLOWING generations.
FAR, ALIKE = 0.8, 0.995
PARENTS, CHILDREN, FOLLOWING = 4, 2, 8


def search_families(
    local: LocalSearch,
    basis: FloatArray,
    v: FloatArray,
    neurons: FloatArray,
    count: int,
    seed: tuple[int, ...],
    *,
    enough: float = np.inf,
    pause: Callable[[], None] = lambda: None,
) -> tuple[FloatArray, FloatArray]:
    """Search for unit directions s with a high h(s) = ||V^T (U's)_+||, V of several columns.

    High maxima come in families, many of them far from all neurons, and few starts end in one. But each end is near better ones. So
    the search begins at random, between pairs of neurons and around neurons; then, in generations, around the best ends of all, until
    every one of these is worth more than `enough`.

    Parameters
    ----------
    local : the search, for this basis
    basis : (n, r+1) U'
    v : (n, C) the dual point V
    neurons : (m, r+1) unit directions
    count : of starts at random and between neurons together
    seed : of all starts
    enough : h of the best that ends the search
    pause : called before each generation, may raise

    Returns
    -------
    (N, r+1) unit directions, and h of each (N,)
    """
    starts = random_directions(count, basis.shape[1], seed)
    if len(neurons):
        one, other = neurons[np.random.default_rng(seed).integers(len(neurons), size=(2, len(starts[::2])))]
        starts[::2] = normalised(one + other)
    around = directions_near(neurons, NEAR * count, AROUND, seed)
    first = local(v, np.concatenate([starts[::2], around]), SHORT)
    ends = np.concatenate([first, search_in_stages(local, basis, v, starts[1::2])])
    worths = worths_of(basis, v, ends)
    for generation in range(FOLLOWING):
        pause()
        best = distinct(ends, worths, cosine=ALIKE, most=-(-count // PARENTS))
        if not best or worths[best[-1]] > enough:
            break
        found = local(v, directions_around(ends[best], CHILDREN, (FAR,), (*seed, generation)), SHORTER)
        ends, worths = np.concatenate([ends, found]), np.concatenate([worths, worths_of(basis, v, found)])
    return ends, worths
