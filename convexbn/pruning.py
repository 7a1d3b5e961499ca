"""Pruning: fewer neurons with the same outputs on the training data and a penalty that is not larger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convexbn.network import Network, neurons_of, recover
from convexbn.patches import NO_POOLING, Pooling
from convexbn.validation import BoolArray, FloatArray, InputError, check_positive, real_array
from convexbn.whitening import whiten

# What float64 can't tell from 0 in a sum of neurons, relative to the sum of their sizes.
ROUNDING = 1e-13

Neurons = tuple[FloatArray, FloatArray]


def prune(
    basis: FloatArray, directions: FloatArray, outputs: FloatArray, *, pooling: Pooling = NO_POOLING, tolerance: float = 1e-9
) -> Neurons:
    """Fewer neurons with the same f = sum_j (U's_j)_+ w_j^T on the data, and sum_j ||s_j|| ||w_j|| not larger.

    Two steps, until neither finds anything:

    (a) neurons in one cell, where the ReLU is linear, are one neuron if sum_j s_j w_j^T has rank one: equal directions, or parallel
        outputs. A sample with U's = 0 lies on both sides. By the triangle inequality the penalty doesn't grow;
    (b) Caratheodory: f = sum_j c_j phi_j with c_j > 0 and phi_j = vec( (U's_j)_+ w_j^T / ||w_j|| ). Along a z with
        sum_j z_j phi_j = 0, signed so that the penalty doesn't grow, c moves until an amplitude is 0.

    Both are exact up to rounding. What is left is linearly independent: at most rank [phi_j] <= n C neurons, and of a global
    optimum it is another one, as the penalty can't fall. It is not the least possible number, which is NP-hard to find. At last
    the weakest neurons go, as far as all of them together change the outputs by less than `tolerance`.

    Only the outputs on the data stay: between the samples f may change.

    Source: Ergen et al. 2022 (n + 1 neurons are enough); Mishkin and Pilanci 2023, "Optimal Sets and Solution Paths of ReLU
    Networks" (pruning until the neurons are independent).

    Parameters
    ----------
    basis : (n, r+1) U'
    directions : (m, r+1) the s_j, of any length
    outputs : (m, C) the w_j
    pooling : from the rows of the basis to samples
    tolerance : f changes by at most this fraction of ||f|| in the Frobenius norm, or by rounding where neurons cancel, and the
        penalty grows by at most this fraction: each step is judged by recomputing both in float64, and not taken where that
        fails. Also what counts as U's = 0, as equal and as dependent; neurons that only come near to a kink need a larger one

    Returns
    -------
    directions (k, r+1) of unit length and outputs (k, C), k <= m.

    Raises
    ------
    InputError
        For arrays whose shapes don't fit, NaN, infinity, or a tolerance that is not positive.
    """
    check_positive(tolerance, "tolerance")
    rows, *given = _checked(basis, directions, outputs)
    data, neurons = _Basis(rows, pooling), _unit(*given)
    judge = _Judge.of(data, neurons, tolerance)
    before = len(neurons[0]) + 1
    while len(neurons[0]) < before:
        before = len(neurons[0])
        for step in (_join_directions, _join_cells, _independent, _without_weak):
            fewer = step(data, neurons, tolerance, judge.room(neurons))
            neurons = fewer if judge.accepts(fewer) else neurons
    return neurons


def prune_network(network: Network, X: npt.ArrayLike, *, tolerance: float = 1e-9) -> Network:
    """A network with fewer neurons, the same outputs f(X) on its training data X (n, d) and a weight decay that is not larger.

    As good an answer to  min L(f(X), y) + (beta/2) sum_j (g_j^2 + a_j^2 + ||v_j||^2)  for every loss, y and beta, with at most
    n C neurons: see `prune`, also for `tolerance`. Batch statistics are those of X. Between the samples f may change.

    Outputs and weight decay are judged once more on the raw data. Where they don't hold, the network comes back with all its
    neurons, only balanced: it reads directions of X that `whiten` drops, or X loses the digits to rounding when it is centred.

    Raises
    ------
    InputError
        For unusable X, another number of features than the network's, or a tolerance that is not positive.
    """
    check_positive(tolerance, "tolerance")
    data = network.rows(X)
    values = network.on(data).predict(data)
    same, whitening = network.on(data).balanced(), whiten(data)
    neurons = prune(whitening.basis, *neurons_of(whitening, same), pooling=network.pooling, tolerance=0.5 * tolerance)
    fewer = recover(whitening, *neurons, network.patches)
    change = float(np.linalg.norm(fewer.on(data).predict(data) - values))
    allowed = max(tolerance * float(np.linalg.norm(values)), ROUNDING * same.penalty())
    return fewer if change <= allowed and fewer.penalty() <= (1.0 + tolerance) * same.penalty() else same


@dataclass(frozen=True)
class _Basis:
    """U' and how its rows are pooled to samples."""

    rows: FloatArray
    pooling: Pooling

    def features(self, directions: FloatArray) -> FloatArray:
        """(U's_j)_+, pooled, as columns, shape (n, m)."""
        return self.pooling.pool(np.maximum(self.rows @ directions.T, 0.0))


@dataclass(frozen=True)
class _Judge:
    """Recomputes outputs and penalty of any neurons, and compares them with those of the first ones."""

    basis: _Basis
    predictions: FloatArray
    change: float  # of the predictions, at most
    penalty: float  # at most

    @staticmethod
    def of(basis: _Basis, neurons: Neurons, tolerance: float) -> _Judge:
        predictions = basis.features(neurons[0]) @ neurons[1]
        rounding = ROUNDING * float(_contributions(basis, neurons).sum())
        change = max(tolerance * float(np.linalg.norm(predictions)), rounding)
        return _Judge(basis, predictions, change, (1.0 + tolerance) * float(_sizes(neurons[1]).sum()))

    def room(self, neurons: Neurons) -> float:
        """By how much the outputs may still change, in the Frobenius norm."""
        return self.change - float(np.linalg.norm(self.basis.features(neurons[0]) @ neurons[1] - self.predictions))

    def accepts(self, neurons: Neurons) -> bool:
        return self.room(neurons) >= 0.0 and float(_sizes(neurons[1]).sum()) <= self.penalty


def _checked(basis: FloatArray, directions: FloatArray, outputs: FloatArray) -> list[FloatArray]:
    arrays = [real_array(basis, "basis"), real_array(directions, "directions"), real_array(outputs, "outputs")]
    for array, name in zip(arrays, ("basis", "directions", "outputs"), strict=True):
        if array.ndim != 2:
            raise InputError(f"{name} has shape {array.shape}: pass a matrix, one row a {'sample' if name == 'basis' else 'neuron'}")
    if arrays[1].shape[1] != arrays[0].shape[1]:
        raise InputError(f"directions have {arrays[1].shape[1]} entries, but the basis has {arrays[0].shape[1]} columns: make them equal")
    if len(arrays[2]) != len(arrays[1]):
        raise InputError(f"outputs are those of {len(arrays[2])} neurons, but there are {len(arrays[1])} directions: make them equal")
    return arrays


def _sizes(rows: FloatArray) -> FloatArray:
    lengths: FloatArray = np.linalg.norm(rows, axis=1)
    return lengths


def _contributions(basis: _Basis, neurons: Neurons) -> FloatArray:
    """||(U's_j)_+|| ||w_j||, shape (m,): how much the outputs change without the neuron."""
    return _sizes(basis.features(neurons[0]).T) * _sizes(neurons[1])


def _unit(directions: FloatArray, outputs: FloatArray) -> Neurons:
    """The same neurons with directions of unit length, without those that are zero."""
    length = _sizes(directions)
    alive = (length > 0) & np.any(outputs != 0, axis=1)
    return directions[alive] / length[alive, None], outputs[alive] * length[alive, None]


def _without_weak(basis: _Basis, neurons: Neurons, tolerance: float, room: float) -> Neurons:
    """Drop the weakest neurons, as many as have room together."""
    contributions = _contributions(basis, neurons)
    order = np.argsort(contributions, kind="stable")
    strong = np.sort(order[np.cumsum(contributions[order]) > room])
    return neurons[0][strong], neurons[1][strong]


def _join_directions(basis: _Basis, neurons: Neurons, tolerance: float, room: float) -> Neurons:
    """Neurons with one direction: their outputs add up."""
    return _join(basis, neurons, _near(neurons[0], tolerance), room)


def _join_cells(basis: _Basis, neurons: Neurons, tolerance: float, room: float) -> Neurons:
    """Neurons with one arrangement and parallel outputs: their ||w_j|| s_j add up."""
    directions, outputs = neurons
    images = directions @ basis.rows.T
    kink = tolerance * _sizes(basis.rows)
    above, below = (images > kink).astype(np.float64), (images < -kink).astype(np.float64)
    opposed = above @ below.T
    one_cell = opposed + opposed.T == 0.0
    return _join(basis, neurons, one_cell & _near(outputs / _sizes(outputs)[:, None], tolerance), room)


def _near(rows: FloatArray, tolerance: float) -> BoolArray:
    """Which rows are equal to which, shape (m, m)."""
    return np.array([_sizes(rows - row) <= tolerance for row in rows], dtype=bool).reshape(len(rows), len(rows))


def _join(basis: _Basis, neurons: Neurons, together: BoolArray, room: float) -> Neurons:
    """Replace each group by one neuron where that changes the outputs by less than the group's share of the room."""
    directions, outputs = neurons[0].copy(), neurons[1].copy()
    features, contributions = basis.features(directions), _contributions(basis, neurons)
    kept = np.ones(len(directions), dtype=bool)
    for group in _groups(together):
        direction, output = _rank_one(directions[group], outputs[group])
        joined = basis.features(direction[None]) * output
        share = room * contributions[group].sum() / contributions.sum() if contributions.any() else room
        if np.linalg.norm(joined - features[:, group] @ outputs[group]) <= share:
            directions[group[0]], outputs[group[0]] = direction, output
            kept[group[1:]] = False
            kept[group[0]] = bool(output.any())
    return directions[kept], outputs[kept]


def _groups(together: BoolArray) -> Iterator[list[int]]:
    """Sets of two neurons and more, each with all the others `together`; a sample on a kink makes that no equivalence."""
    left = np.ones(len(together), dtype=bool)
    for j in range(len(together)):
        group: list[int] = []
        for k in np.flatnonzero(left & together[j]) if left[j] else ():
            if together[k, group].all():
                group.append(int(k))
        left[group] = False
        if len(group) > 1:
            yield group


def _rank_one(directions: FloatArray, outputs: FloatArray) -> Neurons:
    """The neuron s, w with s w^T nearest to sum_j s_j w_j^T, s of unit length on the side of the s_j."""
    left, values, right = np.linalg.svd(directions.T @ outputs, full_matrices=False)
    side = 1.0 if _sizes(outputs) @ directions @ left[:, 0] >= 0 else -1.0
    return side * left[:, 0], side * values[0] * right[0]


def _independent(basis: _Basis, neurons: Neurons, tolerance: float, room: float) -> Neurons:
    """Caratheodory's theorem: the same outputs by neurons whose phi_j are linearly independent, by changing their ||w_j|| alone."""
    alive = _sizes(basis.features(neurons[0]).T) > ROUNDING
    directions, outputs = neurons[0][alive], neurons[1][alive]
    if not len(outputs):
        return directions, outputs
    start = _contributions(basis, (directions, outputs))
    amplitudes = _vertex(_columns(basis.features(directions), outputs), start, _sizes(outputs) / start, tolerance, room)
    kept = amplitudes > 0
    return directions[kept], outputs[kept] * (amplitudes / start)[kept, None]


def _columns(features: FloatArray, outputs: FloatArray) -> FloatArray:
    """A matrix (k, m), k <= m, with the inner products of the phi_j / ||phi_j||.

    Those of h_j u_j^T with h_j from a QR factorisation of the features: nothing of size n C m, nor squared as a Gram matrix,
    whose null vectors have half the digits.
    """
    triangle = np.linalg.qr(features / _sizes(features.T)).R
    units = outputs / _sizes(outputs)[:, None]
    products = np.einsum("kj,jc->kcj", triangle, units).reshape(-1, len(units))
    return np.linalg.qr(products).R


def _vertex(columns: FloatArray, start: FloatArray, cost: FloatArray, tolerance: float, room: float) -> FloatArray:
    """Amplitudes x >= 0, shape (m,), with columns x = columns start, cost x <= cost start, and independent columns where x > 0.

    A linear program would do as well, but its solvers keep equations to 1e-10 at best. Here an orthonormal basis of the null
    space is carried along by reflections, and every step is judged by the equations themselves.
    """
    x, null = start, _null_space(columns, tolerance)
    while null.shape[1]:
        z = _descent(null, cost, x)
        steps = np.divide(x, z, out=np.full_like(x, np.inf), where=z > 0)
        j = int(np.argmin(steps))
        moved = np.maximum(x - steps[j] * z, 0.0)
        moved[j] = 0.0
        if np.linalg.norm(columns @ (moved - start)) <= room:
            x, null = moved, _fix(null, j)
        else:
            null = _flatter(columns, null)
    return x


def _null_space(columns: FloatArray, tolerance: float) -> FloatArray:
    """Orthonormal columns (m, p): the right singular vectors with values up to `tolerance` of the largest."""
    _, found, right = np.linalg.svd(columns)
    values = np.zeros(len(right))
    values[: len(found)] = found
    null: FloatArray = right[values <= tolerance * values[0]].T
    return np.where(np.abs(null) > ROUNDING, null, 0.0)


def _descent(null: FloatArray, cost: FloatArray, x: FloatArray) -> FloatArray:
    """A z in the null space with z_j > 0 somewhere: along -z the cost falls the most or, where it can't, the weakest x_j falls.

    The weakest first leaves fewer neurons than a random z where many sets of neurons are optimal.
    """
    z: FloatArray = null @ (null.T @ cost)
    if cost @ z > ROUNDING * (cost @ np.abs(z)) and np.max(z) > 0:
        return z
    movable = _sizes(null) > ROUNDING
    z = null @ null[int(np.argmin(np.where(movable, x, np.inf)))]
    return z if cost @ z >= -ROUNDING * (cost @ np.abs(z)) else -z


def _fix(null: FloatArray, j: int) -> FloatArray:
    """An orthonormal basis of those null vectors that leave x_j as it is: reflect row j to the first column, and drop that."""
    mirror = null[j].copy()
    mirror[0] += np.copysign(np.linalg.norm(mirror), mirror[0])
    reflected = null - np.outer(null @ mirror, 2.0 / (mirror @ mirror) * mirror)
    reflected[j] = 0.0
    return reflected[:, 1:]


def _flatter(columns: FloatArray, null: FloatArray) -> FloatArray:
    """The null space without the directions that change the outputs most, one at least."""
    flat: FloatArray = null @ _null_space(columns @ null, 0.1)
    return flat[:, flat.shape[1] == null.shape[1] :]
