"""A proof over all arrangements by branch and bound around the relaxation: for more features than boxes can cover."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from convexbn.pricing.cells import Price
from convexbn.pricing.relaxation import TEMPERATURES, Region, Relaxation
from convexbn.validation import FloatArray
from convexbn.whitening import powers_of_two

STAGES = ((0.01, 20), (0.001, 30))  # temperatures and steps in a region, from the multipliers of the one that it is part of
SPLITTING = 1e-3  # temperature of the density that says where to split
MEMORY = 5e8  # bytes of multipliers; beyond that the newest region is split first, which needs no more


@dataclass(frozen=True, order=True)
class _Node:
    """A region of the sphere for one sign of V: minus its bound, to sort by, and the multipliers that gave it."""

    key: float
    number: int
    v: FloatArray = field(compare=False)
    region: Region = field(compare=False)
    x: FloatArray = field(compare=False)


@dataclass(frozen=True)
class _Aim:
    """A value that is attained, the bound that is wanted, and when to stop."""

    attained: float
    goal: float
    deadline: float


def bound_by_tree(basis: FloatArray, v: FloatArray, price: Price, *, tolerance: float, seconds: float) -> Iterator[float]:
    """Ever smaller proved upper bounds on h(V), V of shape (n,), the last at most (1 + tolerance) `price.lower` if the time suffices.

    Regions of the sphere are bounded by the relaxation, whose cuts and ranges tighten as they shrink. The worst region is split
    first, across the direction in which the relaxation's optimum is spread most: there it mixes neurons that a split separates.
    What is proved is the largest bound left, told after each split and valid whenever the search stops.

    Parameters
    ----------
    basis : (n, r+1) U'
    v : (n,) the dual point V
    price : what is known of h(V), with a good neuron of each sign, whose multipliers begin
    tolerance, seconds : when to stop
    """
    size = float(np.max(np.abs(v), initial=0.0))
    trivial = float(np.linalg.norm(v)) * (1.0 + 1e-12)
    if size == 0.0 or price.lower <= 0.0:
        yield trivial
        return
    unit = float(powers_of_two(size))
    lower = price.lower / unit
    aim = _Aim(lower, (1.0 + tolerance) * lower, time.perf_counter() + seconds)
    for upper in _search(basis, v / unit, price.directions, price.outputs, aim):
        yield min(trivial, price.upper, unit * upper)


def _search(basis: FloatArray, v: FloatArray, directions: FloatArray, outputs: FloatArray, aim: _Aim) -> Iterator[float]:
    """The same for V of unit size: multipliers have units, and descent goes the same way in every one so."""
    whole = Region.whole(basis.shape[1])
    roots = [(w * v, Relaxation(basis, whole).start(direction)) for w, direction in zip(outputs[:, 0], directions, strict=True)]
    heap = [_bounded(basis, side, whole, x, aim, np.inf, number) for number, (side, x) in enumerate(roots)]
    heapq.heapify(heap)
    done, count = 0.0, len(heap)
    yield max(0.0, *(-node.key for node in heap))
    while heap and time.perf_counter() < aim.deadline:
        if len(heap) * heap[0].x.nbytes > MEMORY:  # the newest to the front, whatever its bound
            newest = max(range(len(heap)), key=lambda place: heap[place].number)
            heap[0], heap[newest] = heap[newest], heap[0]
        node = heapq.heappop(heap)
        for region in _parts(basis, node, aim.attained):
            child = _bounded(basis, node.v, region, node.x, aim, -node.key, count)
            count += 1
            if -child.key <= aim.goal:
                done = max(done, -child.key)
            else:
                heapq.heappush(heap, child)
        yield max(done, 0.0, *(-node.key for node in heap))


def _bounded(basis: FloatArray, v: FloatArray, region: Region, x: FloatArray, aim: _Aim, bound: float, number: int) -> _Node:
    """The region with its own bound, which is never above that of the region it is part of."""
    relaxation = Relaxation(basis, region)
    limits = relaxation.limits
    x = np.clip(np.append(x, np.zeros(len(limits.lb) - len(x))), limits.lb, limits.ub)
    stages = STAGES if np.isfinite(bound) else tuple((temperature, 60) for temperature in TEMPERATURES)
    for temperature, steps in stages:
        x = relaxation.descend(v, x, temperature, aim.attained, steps, aim.deadline)
        bound = min(bound, relaxation.value(v, x))
        if bound <= aim.goal or time.perf_counter() > aim.deadline:
            break
    return _Node(-bound, number, v, region, x)


def _parts(basis: FloatArray, node: _Node, scale: float) -> list[Region]:
    """The region in two, across the direction of largest variance of s under the density of the relaxation, near its mean.

    Not nearer to the region's own ends than a fifth of its width, or a split would cut off nothing; empty parts are left out.
    """
    density = Relaxation(basis, node.region).smoothed(node.v, node.x, SPLITTING * scale).density
    mean = density[1:, 0] / density[0, 0]
    variance = density[1:, 1:] / density[0, 0] - np.outer(mean, mean)
    normal = np.linalg.eigh(variance)[1][:, -1]
    high, low = node.region.reach(normal[None])[0], -node.region.reach(-normal[None])[0]
    offset = float(np.clip(normal @ mean, low + 0.2 * (high - low), high - 0.2 * (high - low)))
    return [part for part in node.region.split(normal, offset) if np.all(part.reach(part.normals) >= part.offsets)]
