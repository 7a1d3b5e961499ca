"""The gates of the gated model: given, or drawn so that no pattern repeats."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from convexbn.solvers.masked import gated_patterns
from convexbn.validation import FloatArray, InputError, check_count, real_array
from convexbn.whitening import Whitening

MOST_LEAN = 4.0  # gates that lean further see nothing but a direction or two
GLANCE = 4096  # rows
DRAWS = 20  # times as many gates are drawn at most, where patterns repeat


def choose_gates(gates: int | npt.ArrayLike, whitening: Whitening, seed: int, lean: float = 0.0, *, distinct: bool = True) -> FloatArray:
    """(P, r+1) the gates that the argument of `fit_gated_bn` stands for; `distinct` leaves out patterns that repeat.

    The signs of singular vectors are anybody's choice; drawn gates turn with them, so that the same data and seed give the same patterns.
    """
    basis = whitening.basis
    if not isinstance(gates, (int, np.integer)) or isinstance(gates, bool):
        given = real_array(gates, "gates")
        if given.ndim != 2 or given.shape[1] != basis.shape[1] or not len(given) or not np.any(given, axis=1).all():
            raise InputError(f"gates have shape {given.shape}: pass a number, or rows (P, {basis.shape[1]}) on the basis, none of them 0")
        return given
    count = check_count(gates, "gates")
    generator = np.random.default_rng(check_count(seed, "seed", 0))
    components = whitening.components
    largest = components[np.argmax(np.abs(components), axis=0), np.arange(whitening.rank)]
    if not (isinstance(lean, (int, float, np.number)) and abs(lean) <= MOST_LEAN):
        raise InputError(
            f"lean = {lean!r} can't be used: pass a number from -{MOST_LEAN:g} to {MOST_LEAN:g}; 0 treats all directions alike"
        )
    strengths = (whitening.singular_values / whitening.singular_values[:1]) ** lean
    size = np.sqrt(np.mean(strengths**2)) if len(strengths) else 1.0
    spread = np.append(np.sign(largest) * strengths, size)
    if not distinct:
        return spread * generator.standard_normal((count, len(spread)))
    found = np.zeros((0, basis.shape[1]))
    for _ in range(DRAWS):
        found = _distinct(basis, np.vstack([found, spread * generator.standard_normal((count, len(spread)))]))[:count]
        if len(found) == count:
            break
    return found


def _distinct(basis: FloatArray, gates: FloatArray) -> FloatArray:
    """The gates without those whose pattern came before, or opens for no sample; in their order.

    Patterns that differ on some of the rows differ; only where they don't are all rows looked at.
    """
    if len(basis) > GLANCE:
        found = _distinct(basis[:GLANCE], gates)
        if len(found) == len(gates):
            return found
    patterns = gated_patterns(basis, gates)
    packed = np.packbits(patterns, axis=1)
    first = np.sort(np.unique(packed, axis=0, return_index=True)[1])
    return gates[first[patterns[first].any(axis=1)]]
