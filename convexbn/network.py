"""The network with batch normalisation as arrays, its forward pass and weight-decay objective, and its recovery from neurons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from convexbn.arrangements import TIE
from convexbn.losses import Loss
from convexbn.patches import Patches, Pooling, pooling_of
from convexbn.validation import FloatArray, InputError, check_data
from convexbn.whitening import CONSTANT_COLUMN, Whitening


@dataclass(frozen=True)
class Network:
    """f(x) = sum_j ( g_j (w_j^T x - c_j) / n_j + a_j / sqrt(n) )_+ v_j^T, with the batch statistics c_j and n_j of n training samples.

    On those samples it is f(X) = sum_j ( BN_{g_j,a_j}(X w_j) )_+ v_j^T with BN_{g,a}(z) = g Pi z / ||Pi z|| + a 1/sqrt(n).
    PyTorch's layer has weight = g / sqrt(n) and bias = a / sqrt(n).

    With `patches` it is a convolution: x runs over the K patches of an image, batch statistics are those of all n patches of the
    training images, and the K values of (.)_+ are summed or averaged before they meet v_j.

    With `relu_first` batch normalisation follows the ReLU, f(X) = sum_j BN_{g_j,a_j}( (X w_j)_+ ) v_j^T, and c_j and n_j are the
    statistics of (X w_j)_+; the scale of w_j is free there too, but not its sign.

    Attributes
    ----------
    weights : (m, d) the w_j, in 1 / unit of X; their scale is free
    centre : (m,) c_j, the mean of X w_j
    norm : (m,) n_j = ||Pi X w_j||
    gain : (m,) g_j
    shift : (m,) a_j
    outputs : (m, C) the v_j
    samples : n, the number of training samples, of patches where there are any
    patches : how images are cut into rows and pooled; None for data that are rows themselves
    relu_first : whether batch normalisation follows the ReLU
    """

    weights: FloatArray
    centre: FloatArray
    norm: FloatArray
    gain: FloatArray
    shift: FloatArray
    outputs: FloatArray
    samples: int
    patches: Patches | None = None
    relu_first: bool = False

    @property
    def pooling(self) -> Pooling:
        """From rows to samples."""
        return pooling_of(self.patches)

    @property
    def neurons(self) -> int:
        """How many neurons have an output at all."""
        return int(np.any(self.outputs != 0, axis=1).sum())

    def rows(self, X: npt.ArrayLike, *, samples: int = 2) -> FloatArray:
        """What the first layer reads, shape (k, d): X itself, or the patches of images X (n, c, h, w), as `Patches.rows` makes them.

        A matrix of patches passes, so that images are cut once where their rows are needed often.
        """
        rows = check_data(X, samples=samples) if self.patches is None or np.ndim(X) == 2 else self.patches.rows(X)
        if rows.shape[1] != self.weights.shape[1]:
            raise InputError(f"X has {rows.shape[1]} features, but this network is expecting {self.weights.shape[1]} features as input")
        if len(rows) % self.pooling.patches:
            raise InputError(f"X has {len(rows)} rows, but each image has {self.pooling.patches} patches: pass the images (n, c, h, w)")
        return rows

    def blocks(self, X: npt.ArrayLike, *, samples: int = 2) -> Iterator[FloatArray]:
        """The same rows: a matrix as one block, the patches of some images at a time, so that they are never all held."""
        if self.patches is None or np.ndim(X) == 2:
            yield self.rows(X, samples=samples)
        else:
            yield from self.patches.blocks(X)

    def hidden(self, X: npt.ArrayLike) -> FloatArray:
        """What batch normalisation gives for the rows of X (k, d), g_j (w_j^T x - c_j) / n_j + a_j / sqrt(n), shape (k, m)."""
        return np.concatenate([self._normalised(self._products(rows)) for rows in self.blocks(X, samples=1)])

    def _products(self, rows: FloatArray) -> FloatArray:
        """What batch normalisation reads, shape (k, m)."""
        products: FloatArray = rows @ self.weights.T
        return np.maximum(products, 0.0) if self.relu_first else products

    def _normalised(self, products: FloatArray) -> FloatArray:
        """What it gives, shape (k, m)."""
        hidden: FloatArray = (products - self.centre) / self.norm * self.gain + self.shift / np.sqrt(self.samples)
        return hidden

    def predict(self, X: npt.ArrayLike) -> FloatArray:
        """Outputs for the rows of X (k, d), or k images, with the training statistics: shape (k,) for one output, else (k, C)."""
        values = self.activations(X) @ self.outputs
        return values[:, 0] if self.outputs.shape[1] == 1 else values

    def activations(self, X: npt.ArrayLike) -> FloatArray:
        """(.)_+ of the hidden layer, pooled where there are patches: the features that the last layer reads, shape (k, m)."""
        hidden = (self._normalised(self._products(rows)) for rows in self.blocks(X, samples=1))
        return np.concatenate([part if self.relu_first else self.pooling.pool(np.maximum(part, 0.0)) for part in hidden])

    def penalty(self) -> float:
        """(1/2) sum_j ( g_j^2 + a_j^2 + ||v_j||^2 ): times beta, the weight decay. The w_j cost nothing, as their scale is free."""
        return 0.5 * float(np.sum(self.gain**2) + np.sum(self.shift**2) + np.sum(self.outputs**2))

    def on(self, X: npt.ArrayLike) -> Network:
        """The same network with the batch statistics of X (n, d): what batch normalisation computes in training mode."""
        products = np.concatenate([self._products(rows) for rows in self.blocks(X)])
        largest = np.max(np.abs(products), axis=0, initial=0.0)
        unit = np.where(largest > 0, largest, 1.0)  # squares of very large or small products leave float64
        centre = np.mean(products / unit, axis=0) * unit
        norm = np.linalg.norm(products / unit - centre / unit, axis=0) * unit
        constant = norm <= CONSTANT_COLUMN * largest * np.sqrt(len(products))
        return replace(
            self, centre=centre, norm=np.where(constant, 1.0, norm), gain=np.where(constant, 0.0, self.gain), samples=len(products)
        )

    def objective(self, X: npt.ArrayLike, y: FloatArray, loss: Loss, beta: float) -> float:
        """L(f(X), y) + (beta/2) sum_j ( g_j^2 + a_j^2 + ||v_j||^2 ), from the raw data (n, d) and their own batch statistics."""
        predictions = self.on(X).predict(X)
        if np.shape(y) != predictions.shape:
            raise InputError(f"y has shape {np.shape(y)}, but the network's outputs have {predictions.shape}: they must be equal")
        return loss.value(predictions, y) + beta * self.penalty()

    def balanced(self) -> Network:
        """The network with the same outputs and the least penalty that rescaling its neurons gives: ||(g_j, a_j)|| = ||v_j||."""
        inner = np.hypot(self.gain, self.shift)
        outer = np.linalg.norm(self.outputs, axis=1)
        alive = (inner > 0) & (outer > 0)
        factor = np.sqrt(np.where(alive, outer, 0.0) / np.where(alive, inner, 1.0))
        inverse = np.where(alive, 1.0 / np.where(alive, factor, 1.0), 0.0)
        return replace(self, gain=self.gain * factor, shift=self.shift * factor, outputs=self.outputs * inverse[:, None])


def recover(whitening: Whitening, directions: FloatArray, outputs: FloatArray, patches: Patches | None = None) -> Network:
    """The network whose neurons on the whitened data are (U' s_j)_+ v_j^T, balanced: w = V Sigma^{-1} q, g = ||q||, a the last entry of s.

    Parameters
    ----------
    whitening : of the training data, or of all patches of the training images
    directions : (m, r+1) the s_j
    outputs : (m, C) the v_j
    patches : how the images are cut into rows, if they are

    A neuron with g = 0 takes the leading principal direction for its w, which has no effect. Without neurons the network gets one
    with output 0, as PyTorch has no empty layers.
    """
    if not len(directions):
        directions, outputs = np.zeros((1, whitening.rank + 1)), np.zeros((1, outputs.shape[1]))
    q = directions[:, :-1]
    gain = np.linalg.norm(q, axis=1)
    leading = np.eye(1, whitening.rank)
    unit = np.where((gain > 0)[:, None], q / np.where(gain > 0, gain, 1.0)[:, None], leading)
    weights = whitening.raw_weights(unit)
    centre = weights @ whitening.mean
    network = Network(weights, centre, np.ones(len(gain)), gain, directions[:, -1], outputs, whitening.samples, patches)
    return network.balanced()


def simplest(networks: Sequence[Network], X: npt.ArrayLike, y: FloatArray, loss: Loss, beta: float, *, slack: float) -> Network:
    """The network with the fewest neurons of those whose objective is the lowest of all, to the relative `slack`."""
    objectives = [network.objective(X, y, loss, beta) for network in networks]
    good = [network for network, value in zip(networks, objectives, strict=True) if value <= min(objectives) * (1.0 + slack)]
    return min(good, key=lambda network: network.neurons)


def largest_worth(network: Network, activations: FloatArray, v: FloatArray) -> float:
    """The largest ||V^T b_j|| / ||(g_j; a_j)||, b_j the columns of its `activations` (n, m), V (n,) or (n, C): no price is less."""
    sizes = np.hypot(network.gain, network.shift)
    worths = np.linalg.norm(activations.T @ v.reshape(len(v), -1), axis=1)
    return float(np.max(worths / np.where(sizes > 0, sizes, 1.0), initial=0.0))


def neurons_of(whitening: Whitening, network: Network) -> tuple[FloatArray, FloatArray]:
    """The neurons of a network on the whitened data, the inverse of `recover`: unit directions (m, r+1) and outputs (m, C).

    Use them to warm-start a solver from a network of any origin. Neurons without an output are left out.
    """
    q = whitening.whitened_weights(network.weights)
    length = np.linalg.norm(q, axis=1, keepdims=True)
    directions = np.column_stack([network.gain[:, None] * q / np.where(length > 0, length, 1.0), network.shift])
    size = np.linalg.norm(directions, axis=1)
    alive = (size > 0) & np.any(network.outputs != 0, axis=1)
    return directions[alive] / size[alive, None], network.outputs[alive] * size[alive, None]


def merge(directions: FloatArray, outputs: FloatArray, *, angle: float, smallest: float) -> tuple[FloatArray, FloatArray]:
    """Join neurons whose unit directions differ by at most `angle`, then drop those with ||v_j|| <= `smallest` max ||v||.

    A neuron on the border of two cells comes back from a solver once for each cell; joined, their outputs add up, and by the
    triangle inequality the penalty doesn't grow. The strongest neuron of a group leads it, and the group's direction is the
    mean weighted by ||v||.
    """
    size = np.linalg.norm(outputs, axis=1)
    left = size > 0
    joined, values = [], []
    for j in np.argsort(-size):
        if not left[j]:
            continue
        group = left & (np.linalg.norm(directions - directions[j], axis=1) <= angle)
        left &= ~group
        mean = size[group] @ directions[group]
        joined.append(mean / np.linalg.norm(mean))
        values.append(outputs[group].sum(axis=0))
    if not joined:
        return directions[:0], outputs[:0]
    merged = np.array(values)
    strength = np.linalg.norm(merged, axis=1)
    keep = strength > smallest * np.max(strength)
    return np.array(joined)[keep], merged[keep]


def merge_cells(basis: FloatArray, directions: FloatArray, outputs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Join neurons of one output whose unit directions lie in one closed cell, where (U's)_+ is linear, and whose signs agree.

    The network's outputs don't change, and its penalty doesn't grow. The strongest neuron of a group leads it.
    """
    pre = basis @ directions.T
    edge = TIE * float(np.max(np.abs(pre), initial=0.0))
    above, below = (pre > edge).astype(np.float32), (pre < -edge).astype(np.float32)
    opposed = above.T @ below > 0
    apart = opposed | opposed.T | (np.sign(outputs) != np.sign(outputs).T)
    weighted = np.abs(outputs) * directions
    left, joined, signs = np.ones(len(outputs), dtype=bool), [], []
    for j in np.argsort(-np.abs(outputs[:, 0])):
        if not left[j]:
            continue
        group: list[int] = []
        for k in np.flatnonzero(left & ~apart[j]):
            if not apart[k, group].any():
                group.append(int(k))
        left[group] = False
        joined.append(weighted[group].sum(axis=0))
        signs.append(np.sign(outputs[j]))
    if not joined:
        return directions, outputs
    size = np.linalg.norm(joined, axis=1, keepdims=True)
    return np.array(joined) / size, np.array(signs) * size
