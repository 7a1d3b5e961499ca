"""Whitening of rows that come in blocks, such as the patches of many images: the basis is held, the rows themselves never are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from convexbn.patches import Patches
from convexbn.validation import BoolArray, FloatArray
from convexbn.whitening import WEAKEST_BY_GRAM, Whitening, check_rank, kept_of, powers_of_two, varying, whiten

Stream = Callable[[], Iterator[FloatArray]]  # the blocks in their order, as often as it is called
TILE = 2**16  # rows of the basis that are turned at a time


def whiten_stream(stream: Stream, *, rank: float | None = None) -> Whitening:
    """Whiten the rows of all blocks, Pi X = U Sigma V^T diag(scale), from their Gram matrix: the result is that of `whiten`.

    Three passes: means and ranges; the Gram matrix of the centred rows (d, d), whose eigenvectors are V; the basis, which is set
    upright by its own Gram matrix, to rounding. The memory is that of the basis, n (r+1) numbers, d^2 numbers and one block. Where a
    direction is too weak for that, below 1e-4 of the strongest, all rows are held after all.

    Parameters
    ----------
    stream : gives blocks of rows (n_b, d), checked numbers
    rank : as in `whiten`

    Raises
    ------
    InputError
        Where every column is constant, and for an unusable `rank`.
    """
    wanted = check_rank(rank)
    samples, mean, scale, varies = _ranges(stream, one_unit=wanted is not None)
    gram = np.zeros((len(mean), len(mean)))
    for block in stream():
        centred = (block - mean) * (varies / scale)
        gram += centred.T @ centred
    squares, vectors = (array[..., ::-1] for array in np.linalg.eigh(gram))
    values = np.sqrt(np.maximum(squares, 0.0))
    full = min(int(varies.sum()), samples - 1)
    kept = kept_of(values, wanted, full)
    if values[kept - 1] < WEAKEST_BY_GRAM * values[0]:
        return whiten(np.concatenate(list(stream())), rank=rank)
    energy = float(np.sum(squares[:kept]) / np.sum(squares)) if kept < full else 1.0
    return _upright(stream, samples, mean, scale, vectors[:, :kept], values[:kept], energy)


def whiten_input(data: npt.NDArray[Any], patches: Patches | None, *, rank: float | None = None) -> Whitening:
    """Whiten what the first layer reads: the rows of data at once, or the patches of images block by block."""
    return whiten(data, rank=rank) if patches is None else whiten_stream(lambda: patches.blocks(data), rank=rank)


def _ranges(stream: Stream, *, one_unit: bool) -> tuple[int, FloatArray, FloatArray, BoolArray]:
    """How many rows, their means, powers of two near the spread of the columns, one for all with `one_unit`; which columns vary."""
    count = 0
    for block in stream():
        if not count:
            origin = block[0]
            total, lowest, highest = np.zeros(len(origin)), origin, origin
        count += len(block)
        total = total + np.sum(block - origin, axis=0)
        lowest, highest = np.minimum(lowest, block.min(axis=0)), np.maximum(highest, block.max(axis=0))
    centre = origin + total / count
    spread = np.maximum(highest - centre, centre - lowest)
    varies = varying(spread, np.maximum(np.abs(highest), np.abs(lowest)))
    scale = powers_of_two(np.full_like(spread, spread.max()) if one_unit else np.where(varies, spread, 0.0))
    return count, centre, scale, varies


def _upright(
    stream: Stream, samples: int, mean: FloatArray, scale: FloatArray, vectors: FloatArray, values: FloatArray, energy: float
) -> Whitening:
    """The whitening on those directions, whose vectors and values are good to half of the digits; the basis is to all."""
    kept, start = len(values), 0
    basis = np.empty((samples, kept + 1))
    basis[:, kept] = 1.0 / np.sqrt(samples)
    for block in stream():
        basis[start : start + len(block), :kept] = ((block - mean) / scale) @ (vectors / values)
        start += len(block)
    triangle = np.linalg.cholesky(basis[:, :kept].T @ basis[:, :kept]).T
    left, singular, right = np.linalg.svd(triangle * values)
    _turn(basis[:, :kept], np.linalg.inv(triangle) @ left)
    order = [kept, *range(kept)]  # the constant first: it stays, and the others are set upright against it
    again = np.linalg.inv(np.linalg.cholesky((basis.T @ basis)[np.ix_(order, order)]).T)
    back = np.argsort(order)
    _turn(basis, again[np.ix_(back, back)])
    return Whitening(mean, scale, np.ascontiguousarray(vectors @ right.T), singular, basis, energy=energy)


def _turn(rows: FloatArray, matrix: FloatArray) -> None:
    """rows @ matrix, in place."""
    for first in range(0, len(rows), TILE):
        rows[first : first + TILE] = rows[first : first + TILE] @ matrix
