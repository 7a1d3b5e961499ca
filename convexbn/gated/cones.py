"""From the gated model to a ReLU network: each weight as a difference of two in the cone of its gate, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexbn.losses import Loss
from convexbn.network import Network, recover
from convexbn.validation import BoolArray, FloatArray, InputError
from convexbn.whitening import Whitening


@dataclass(frozen=True)
class Conversion:
    """A ReLU network with the outputs of a gated one on the training data, and the price of the change of model.

    Attributes
    ----------
    network : the ReLU network with batch normalisation
    objective : its own weight-decay objective, from the raw data
    gated : the gated model's objective
    difference : the largest difference of the two models' outputs on the training data, relative to the largest output
    """

    network: Network
    objective: float
    gated: float
    difference: float

    @property
    def price(self) -> float:
        """objective - gated: what the cones cost, never negative for a solved program with the group or the nuclear norm."""
        return self.objective - self.gated

    def __str__(self) -> str:
        return (
            f"ReLU network of {self.network.neurons} neurons: objective {self.objective:.10g}, gated model {self.gated:.10g}, "
            f"price {self.price:.6g} (factor {self.objective / self.gated:.3g}), outputs equal to {self.difference:.1e}"
        )


def decompose(s: FloatArray, active: BoolArray, basis: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The s+, s- with s = s+ - s-, both in K = { (2D - I) U' s >= 0 }, and least ||s+||^2 + ||s-||^2.

    With s+- = q +- s/2 this is the q of least norm with (2D - I) U' q >= |U's|/2, a least distance problem, solved by non-negative least
    squares (Lawson and Hanson 1974, chapter 23). It has a solution for every s where K has an interior, as the cones of gates do.

    Parameters
    ----------
    s : (r+1,)
    active : (n,) the diagonal of D
    basis : (n, r+1) U'

    Raises
    ------
    InputError
        Where the cone is too thin for float64.
    """
    from scipy.optimize import nnls

    images = np.where(active[:, None], basis, -basis)
    wanted = 0.5 * np.abs(basis @ s)
    if not wanted.any():
        return 0.5 * s, -0.5 * s
    unit = float(np.linalg.norm(s))
    rows = np.vstack([images.T, wanted / unit])
    multipliers, _ = nnls(rows, np.eye(len(rows))[-1], maxiter=30 * rows.shape[1])
    rest = rows @ multipliers - np.eye(len(rows))[-1]
    if -rest[-1] <= 1e-12:
        raise InputError("gates have a cone too thin for float64: fit with fewer gates, or with others (seed=...)")
    q = -unit * rest[:-1] / rest[-1]
    return q + 0.5 * s, q - 0.5 * s


def to_relu(
    whitening: Whitening, gates: FloatArray, weights: FloatArray, X: FloatArray, y: FloatArray, loss: Loss, beta: float, gated: float
) -> Conversion:
    """The ReLU network of gated weights (P, r+1, C): each S_i = sum_k s_k v_k^T by its singular values, each s_k by `decompose`."""
    basis, directions, outputs = whitening.basis, [], []
    for gate, block in zip(gates, weights, strict=True):
        left, values, right = np.linalg.svd(block, full_matrices=False)
        for k in np.flatnonzero(values > 1e-12 * values[0]):
            for part, sign in zip(decompose(values[k] * left[:, k], basis @ gate >= 0, basis), (1.0, -1.0), strict=True):
                directions.append(part)
                outputs.append(sign * right[k])
    size = np.linalg.norm(directions, axis=1)
    alive = size > 0
    units, values = np.array(directions)[alive] / size[alive, None], np.array(outputs)[alive] * size[alive, None]
    network = recover(whitening, units, values)
    f = np.einsum("in,nk,ikc->nc", (gates @ basis.T >= 0).astype(float), basis, weights, optimize=True)
    predictions = network.predict(X).reshape(f.shape)
    difference = float(np.max(np.abs(predictions - f)) / max(float(np.max(np.abs(f))), 1e-300))
    return Conversion(network, network.objective(X, y, loss, beta), gated, difference)
