"""Pricing at rank n - 1, where every vector of pre-activations is within reach: the closed form, and its reach with several outputs."""

from __future__ import annotations

import numpy as np

from convexbn.pricing.cells import Price, price_square
from convexbn.validation import FloatArray

# A price is known where its two ends agree to this; entries of V V^T this small join no two groups of samples.
CLOSED = 1e-9
NEGLIGIBLE = 1e-14


def known_price(basis: FloatArray, v: FloatArray) -> Price | None:
    """h(V) in closed form at rank n - 1, V of shape (n,) or (n, C); None at lower ranks and where it isn't known."""
    if basis.shape[0] != basis.shape[1]:
        return None
    price = price_square(basis, v) if v.ndim == 1 else price_square_outputs(basis, v)
    return price if price.upper <= price.lower * (1.0 + CLOSED) + np.finfo(np.float64).tiny else None


def price_square_outputs(basis: FloatArray, v: FloatArray) -> Price:
    """An interval around h(V) for a square basis (rank n - 1) and V of shape (n, C).

    Hidden columns are all h >= 0 there, h(V)^2 = max of h^T K h over h >= 0, ||h|| = 1 with K = V V^T, and for such h

        h^T K h  <=  h^T K_+ h  <=  lambda_max(K_+),        K_+ = max(K, 0) entry by entry.

    K_+ falls apart into groups of samples that no positive entry joins, and by Perron and Frobenius each has a leading
    eigenvector >= 0. Where K has no negative entry inside of a group, that h attains the bound: so it is for V with at most one
    entry other than 0 in a row, where the groups are the positive and the negative entries of each column, and for the residual
    of a classifier, where they are the classes as long as samples of different classes have <V_i, V_j> <= 0.
    """
    from scipy.linalg import eigh
    from scipy.sparse.csgraph import connected_components

    positive = np.maximum(v @ v.T, 0.0)
    joined = positive > NEGLIGIBLE * np.max(positive, initial=0.0)
    values, directions, outputs = [0.0], [], []
    for group in _groups(connected_components(joined, directed=False)[1]):
        block = np.where(joined[np.ix_(group, group)], positive[np.ix_(group, group)], 0.0)
        value, vector = eigh(block, subset_by_index=(len(group) - 1, len(group) - 1))
        hidden = np.abs(vector[:, 0])
        values.append(float(value[0]))
        directions.append(basis[group].T @ hidden)
        outputs.append(v[group].T @ hidden)
    worths = np.linalg.norm(np.array(outputs), axis=1)
    order = np.argsort(-worths, kind="stable")
    units = np.array(outputs) / np.where(worths > 0, worths, 1.0)[:, None]
    left_out = float(np.linalg.norm(np.where(joined, 0.0, positive)))
    rounding = (len(v) + v.shape[1]) * float(np.finfo(np.float64).eps) * float(np.sum(v**2))
    upper = float(np.sqrt(max(values) + left_out + rounding))
    return Price(max(upper, float(worths[order[0]])), float(worths[order[0]]), np.array(directions)[order], units[order])


def _groups(labels: np.ndarray) -> list[np.ndarray]:
    """The indices of each label."""
    return [np.flatnonzero(labels == label) for label in range(int(np.max(labels)) + 1)]
