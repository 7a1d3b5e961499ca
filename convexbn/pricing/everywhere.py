"""Pricing over all arrangements without listing them: a local search below, a relaxation above."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from convexbn.pricing.cells import Price
from convexbn.pricing.climbing import climb
from convexbn.pricing.local import distinct, evolve, local_search, random_directions
from convexbn.pricing.outputs import bound_over_outputs
from convexbn.pricing.relaxation import Relaxation
from convexbn.threads import LARGE, side_by_side
from convexbn.validation import FloatArray

CLIMBS = 16  # of each sign, from random starts; none for a large basis, where each is a least squares problem with all samples
MANY, BLIND = 20, 128  # samples a column: with fewer, maxima are narrow; climbs that begin anywhere then
DISTINCT = 0.9  # the largest cosine of two output directions that count as different
NEURONS = 16  # with several outputs
SEARCHED = 200_000  # entries of a basis from which the local search makes fewer starts


def price_everywhere(
    basis: FloatArray, v: FloatArray, *, starts: int = 256, generations: int = 2, seed: int = 0, seconds: float = 2.0
) -> Price:
    """An interval around h(V) over all arrangements: `lower` by local search, `upper` proved by relaxation.

    Parameters
    ----------
    basis : (n, r+1) U'
    v : (n,) the dual point V, or (n, C) for several outputs
    starts, generations, seed : of the local search; for a large basis fewer, down to 16 and 1
    seconds : for the proof, which holds whenever it ends; the search is not cut short, so that what it finds depends on no clock
    """
    columns = v.reshape(len(v), -1)
    starts, generations = affordable(basis, starts), max(1, int(min(1.0, SEARCHED / basis.size) * generations))
    directions, _ = local_search(basis, columns, random_directions(starts, basis.shape[1], (seed,)))
    if basis.size < LARGE:
        directions = np.concatenate([directions, _climbed(basis, v, directions, blind(basis, (seed, 2)))])
    directions = np.concatenate([directions, random_directions(starts, basis.shape[1], (seed, 1))])
    directions, _ = evolve(basis, columns, directions, seed=(seed,), children=starts, generations=generations)
    if v.ndim == 1:
        price = _of_both_signs(basis, v, directions)
        upper = bound_by_relaxation(basis, v, price.directions, price.outputs, seconds=seconds)
        return replace(price, upper=max(upper, price.lower))
    price = _of_all_outputs(basis, v, directions)
    *_, best = bound_over_outputs(basis, v, price.directions, price.outputs, price.lower, seconds=seconds)
    return best


def narrow(basis: FloatArray) -> bool:
    """Whether there are so few samples a column that local maxima are narrow."""
    return bool(len(basis) < MANY * basis.shape[1])


def blind(basis: FloatArray, seed: tuple[int, ...]) -> FloatArray:
    """Directions (N, r+1) to climb from, at random, where maxima are narrow: a step leaves them for wider ones, and a climb doesn't.

    With 60 samples, 6 features and random targets gaps of 1e-5 were claimed, where climbs from 64 of them, a fiftieth of a second, found
    neurons for 7e-3. With many samples they find nothing.
    """
    return random_directions(BLIND if narrow(basis) else 0, basis.shape[1], (*seed, BLIND))


def affordable(basis: FloatArray, starts: int) -> int:
    """So many starts of a local search, or fewer on a large basis, but 16."""
    return max(min(starts, 16), int(min(1.0, SEARCHED / basis.size) * starts))


def bound_by_relaxation(basis: FloatArray, v: FloatArray, directions: FloatArray, outputs: FloatArray, *, seconds: float = np.inf) -> float:
    """A proved upper bound on h(V), V of shape (n,): the larger of the relaxations of V and -V, from a good neuron of each sign."""
    relaxation = Relaxation(basis)
    share = 1.0 if basis.size >= LARGE else 1.0 / len(outputs)  # side by side, or one after the other
    with side_by_side(basis.size) as each:
        return float(max(each(partial(relaxation.bound, seconds=share * seconds), outputs[:, :1] * v, directions)))


def _climbed(basis: FloatArray, v: FloatArray, directions: FloatArray, others: FloatArray) -> FloatArray:
    """Where climbs from the best few directions end, for one output from the best of each sign, and from all others.

    Climbs find higher maxima than ten times as many starts.
    """
    values = np.maximum(basis @ directions.T, 0.0).T @ v
    worths = [values, -values] if v.ndim == 1 else [np.linalg.norm(values, axis=1)]
    feet = np.concatenate([np.argsort(-worth)[:CLIMBS] for worth in worths])
    return climb(basis, v.reshape(len(v), -1), np.concatenate([directions[feet], others]))


def _of_both_signs(basis: FloatArray, v: FloatArray, directions: FloatArray) -> Price:
    """The best neuron of each sign, the better one first."""
    worths = np.maximum(basis @ directions.T, 0.0).T @ v
    ends = np.array([np.argmax(worths), np.argmin(worths)])
    signs = np.array([[1.0], [-1.0]])
    order = np.argsort(-signs[:, 0] * worths[ends], kind="stable")
    lower = float(np.max(np.abs(worths)))
    return Price(lower, lower, directions[ends[order]], signs[order])


def _of_all_outputs(basis: FloatArray, v: FloatArray, directions: FloatArray) -> Price:
    """The best neurons with output directions that differ."""
    values = np.maximum(basis @ directions.T, 0.0).T @ v
    worths = np.linalg.norm(values, axis=1)
    units = values / np.where(worths > 0, worths, 1.0)[:, None]
    chosen = distinct(units, worths, cosine=DISTINCT, most=NEURONS) or [0]
    lower = float(np.max(worths, initial=0.0))
    return Price(lower, lower, directions[chosen], units[chosen])
