"""A proof over all arrangements for few columns: the whole training problem, relaxed to the moments of its neurons."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from math import comb
from typing import NamedTuple, TypeVar

import numpy as np

from convexbn.losses import Loss, of_unit_size
from convexbn.patches import NO_POOLING, Pooling
from convexbn.pricing.nearest import normal_equations, normal_size
from convexbn.pricing.nonnegative import mass_near
from convexbn.pricing.polynomials import Lifted
from convexbn.validation import FloatArray

STEP, STEP_OF_FOUR = 20.0, 10.0  # of the method of multipliers, and with moments of degree 4, in the unit beta / mass
ENTRIES = 12_000_000  # of an array; with 30 columns an iteration takes a sixth of a second, and better dual points win more
SHARE = 0.125  # of the samples' moments beside the moment matrix, in the unit columns / samples
OVERSHOOT = 1.5
LOOK = 25  # iterations between two dual points
SIGNS = np.array([1.0, -1.0])

Parts = TypeVar("Parts", bound=NamedTuple)


def fits_moments(rows: int, width: int, half: int) -> bool:
    """Whether the moments of degree 2 half fit in the memory: the samples' powers, and the matrix of the least squares problem."""
    numbers = [comb(width + p - 1, p) for p in range(2 * half + 1)]
    return max(rows * sum(numbers), normal_size(rows, width, half) ** 2) <= ENTRIES


def moment_size(width: int, half: int) -> int:
    """Rows of the moment matrix."""
    return comb(width + half - 1, half) + comb(width + half - 2, half - 1)


class _Parts(NamedTuple):
    """One side of the split, for both signs of a neuron's output: what has to be positive semidefinite, and the predictions.

    gram (2, N, N) the moments of directions; right and left (2, n, e) those of tau_i where it is positive and of -tau_i where not, as
    the entries of the two small matrices that say that they are moments; features (2, n). With patches n stands for all rows.
    """

    gram: FloatArray
    right: FloatArray
    left: FloatArray
    features: FloatArray


class MomentTraining:
    """The training problem with one output relaxed to moments of degree 2k: ever better dual points, with proofs of their bounds.

    A network is two measures on the unit sphere, of the neurons with positive and with negative output. Of each the relaxation keeps
    the moments of s up to degree 2k and, for each sample, those of the part where t_i = u_i^T s > 0:

        min  L(f, y) + beta (mass_+ + mass_-),       f_i = a_i1^+ - a_i1^-

    over moments whose matrix is positive semidefinite, with a_i and what is left of the moments of t_i moments of measures on
    [0, ||u_i||] and [-||u_i||, 0]. The dual of the latter are polynomials above v_i (t_i)_+, of the former a sum of squares:
    `Lifted.bound` makes proofs of them. At k = 1 that is close to `Relaxation`; k = 2 is much tighter, and larger k more so.

    The alternating direction method of multipliers splits consistent moments, a linear least squares problem, from positive
    semidefinite ones and from the loss. It begins at a network, where the first half is solved already. With patches each row has
    its moments, and the loss reads the pooled f.

    Rejected: descent on polynomials and dual point (7.5 % on ten features of diabetes after 8 s, where this takes 3 s to 3.9 %),
    and an interior-point method (330 s to 3.5 %, the optimum for k = 2).

    Parameters
    ----------
    basis : (n, r+1) U', or (n K, r+1) with K patches
    y, loss, beta, pooling : the program's, y of shape (n,)
    directions, outputs : (m, r+1) and (m,) the neurons of a good network; none will do
    half : k
    """

    def __init__(
        self,
        basis: FloatArray,
        y: FloatArray,
        loss: Loss,
        beta: float,
        directions: FloatArray,
        outputs: FloatArray,
        *,
        half: int = 2,
        pooling: Pooling = NO_POOLING,
    ) -> None:
        self.y, self.loss, self.beta, self.unit = of_unit_size(y, loss, beta)
        self.basis, self.lifted, self.half, self.pooling = basis, Lifted(basis, half), half, pooling
        self.neurons = unit_neurons(directions, outputs / self.unit)
        self.step = _step(half) * self.beta / mass_near(float(np.sum(np.abs(self.neurons[1]))), self.y, self.loss, self.beta)
        self.share = SHARE * basis.shape[1] / len(basis)
        self.pull = self.share / float(np.mean(self.lifted.unit**2 * self.lifted.reach**2))
        self._prepare()
        self._begin()

    def _prepare(self) -> None:
        """The linear least squares problem, with the samples' own moments eliminated."""
        lifted, size = self.lifted, 2 * self.half + 1
        self.hankel = _hankel(self.half, lifted.reach)
        self.flip = (-1.0) ** np.arange(size)
        right = self.hankel.T @ self.hankel
        self.left = right * np.outer(self.flip, self.flip)
        own = self.share * np.broadcast_to(right + self.left, (len(lifted.unit), size, size)).copy()
        own[:, 1, 1] += self.pull * lifted.unit**2
        self.inverse = np.linalg.inv(own)
        blocks = self.share * self.left - self.share**2 * self.left @ self.inverse @ self.left
        self.solve = normal_equations(lifted, 0.5 * (blocks + blocks.transpose(0, 2, 1)))

    def _begin(self) -> None:
        """The moments of the neurons, and the multipliers of the loss."""
        s, w = self.neurons
        tau = self.basis @ s.T / self.lifted.unit[:, None]
        phi = self.lifted.moments.features(s)
        weights = np.maximum(SIGNS[:, None] * w, 0.0)
        gram = np.stack([(phi.T * side) @ phi for side in weights])
        orders = np.arange(2 * self.half + 1)
        right, left = (np.where(where, np.abs(tau), 0.0)[..., None] ** orders * where[..., None] for where in (tau > 0, tau <= 0))
        moments, others = (np.einsum("nmp,sm->snp", powers, weights) for powers in (right, left))
        features = self.lifted.unit * moments[:, :, 1]
        self.parts = _Parts(gram, moments @ self.hankel.T, others @ self.hankel.T, features)
        zeros = _Parts(*(np.zeros_like(part) for part in self.parts))
        self.slope = self.loss.gradient(self.pooling.pool(features[0] - features[1]), self.y)
        self.excess = zeros._replace(features=SIGNS[:, None] * self.pooling.spread(self.slope) / (self.step * self.pull))

    def raised(self) -> MomentTraining:
        """The same problem with moments of degree 2k + 2, begun where this one has come.

        Its multipliers hold in every higher degree, and its moments are completed by those of the network: on ten features of diabetes
        25 iterations from there get as far as 75 from the network.
        """
        higher = copy(self)
        higher.half = self.half + 1
        higher.lifted = Lifted(self.basis, higher.half)
        higher.step = self.step * _step(higher.half) / _step(self.half)
        higher._prepare()
        higher._begin()
        higher.slope = self.slope
        moments, own = higher.lifted.moments, self.lifted.moments
        pairs = zip(self.parts.gram, higher.parts.gram, strict=True)
        grams = [moments.matrix(moments.completed(own.read(low), moments.read(high))) for low, high in pairs]
        halves = ((self.parts.right, higher.parts.right), (self.parts.left, higher.parts.left))
        right, left = (higher._moments(self._completed(low, high, higher.hankel)) for low, high in halves)
        higher.parts = _Parts(positive(np.stack(grams)), right, left, self.parts.features)
        embedded = np.stack([moments.embedded(gram) for gram in self.excess.gram])
        right, left = (_embedded(entries, self.half) for entries in (self.excess.right, self.excess.left))
        factor = self.step / higher.step
        higher.excess = _Parts(*(factor * part for part in (embedded, right, left, self.excess.features)))
        return higher

    def _completed(self, low: FloatArray, high: FloatArray, hankel: FloatArray) -> FloatArray:
        """Entries of the moments of samples that are `low` here, with those of higher degree from the entries `high` of `hankel`."""
        moments = high @ np.linalg.pinv(hankel).T
        moments[..., : 2 * self.half + 1] = low @ np.linalg.pinv(self.hankel).T
        return moments @ hankel.T

    def advance(self, deadline: float) -> None:
        """As many iterations as go between two looks at the bound, or fewer where `time.perf_counter` reaches the deadline."""
        repeat(self.iterate, deadline)

    def iterate(self) -> None:
        """Consistent moments near the positive ones, then positive moments near these, then the multipliers."""
        consistent = self._consistent(plus(self.parts, self.excess, -1.0))
        wanted = plus(overshot(consistent, self.parts), self.excess)
        outputs = self.pooling.pool(wanted.features[0] - wanted.features[1])
        stiffness = 0.5 * self.step * self.pull / self.pooling.norm**2
        change = self.loss.prox(outputs, self.y, 1.0 / stiffness) - outputs
        self.slope = -stiffness * change  # of the subgradients at a kink the one that belongs to this point
        self.parts = _Parts(
            positive(wanted.gram),
            self._moments(wanted.right),
            self._moments(wanted.left),
            wanted.features + 0.5 * SIGNS[:, None] * self.pooling.spread(change / self.pooling.norm**2),
        )
        self.excess = plus(wanted, self.parts, -1.0)

    def _consistent(self, wanted: _Parts) -> _Parts:
        """The moments of one measure for each sign that are nearest to the wanted parts, with the penalty on their mass."""
        lifted, moments = self.lifted, self.lifted.moments
        mirrored = self.share * (wanted.left @ self.hankel) * self.flip
        own = self.share * wanted.right @ self.hankel - mirrored
        own[:, :, 1] += self.pull * lifted.unit * wanted.features
        own = np.einsum("nij,snj->sni", self.inverse, own)
        linear = lifted.polynomials(mirrored + self.share * own @ self.left)
        linear += np.array([moments.adjoint(gram) for gram in wanted.gram]) - self.beta / self.step * lifted.one
        whole = self.solve(linear)
        every = lifted.powers(whole)
        right = own + self.share * np.einsum("nij,snj->sni", self.inverse, every @ self.left)
        left = (every - right) * self.flip
        gram = np.array([moments.matrix(side) for side in whole])
        return _Parts(gram, right @ self.hankel.T, left @ self.hankel.T, lifted.unit * right[:, :, 1])

    def _moments(self, entries: FloatArray) -> FloatArray:
        """The nearest entries of positive semidefinite matrices of moments."""
        k, first = self.half, (self.half + 1) ** 2
        long = positive(entries[..., :first].reshape(-1, k + 1, k + 1)).reshape(*entries.shape[:-1], first)
        short = positive(entries[..., first:].reshape(-1, k, k)).reshape(*entries.shape[:-1], k * k)
        return np.concatenate([long, short], axis=-1)

    @property
    def dual(self) -> FloatArray:
        """The dual point V, of the shape of y: minus the gradient of the loss at f."""
        return np.asarray(-self.unit * self.slope)

    def price(self, v: FloatArray) -> float:
        """A proved upper bound on h(v), v (n,) best `dual`, by the present multipliers."""
        rows = self.pooling.spread(v / self.unit)
        return self.unit * max(self._side(place, sign * rows) for place, sign in enumerate(SIGNS))

    def _side(self, place: int, v: FloatArray) -> float:
        """The bound for one sign: polynomials from the multipliers of both halves of the line, which agree at the optimum."""
        right, left = (-self.share * self.step * (part[place] @ self.hankel) for part in (self.excess.right, self.excess.left))
        right[:, 1] += v * self.lifted.unit
        return self.lifted.bound(v, 0.5 * (right + left * self.flip), -self.step * self.excess.gram[place])


def _step(half: int) -> float:
    return STEP_OF_FOUR if half == 2 else STEP


def _embedded(entries: FloatArray, half: int) -> FloatArray:
    """Multipliers (..., e) of moments up to 2 half as multipliers of moments up to 2 half + 2 that say the same."""
    parts, first = [], 0
    for size in (half + 1, half):
        matrices = entries[..., first : first + size**2].reshape(*entries.shape[:-1], size, size)
        grown = np.zeros((*entries.shape[:-1], size + 1, size + 1))
        grown[..., :size, :size] = matrices
        parts.append(grown.reshape(*entries.shape[:-1], -1))
        first += size**2
    return np.concatenate(parts, axis=-1)


def _hankel(half: int, reach: float) -> FloatArray:
    """(e, 2k+1) from moments a_0..a_2k of a measure on [0, reach] to the entries of two matrices.

    [a_i+j], i, j <= k, and [reach a_i+j+1 - a_i+j+2], i, j < k, are positive semidefinite if and only if there is such a measure.
    """
    unit = np.eye(2 * half + 1)
    long = [unit[i + j] for i in range(half + 1) for j in range(half + 1)]
    short = [reach * unit[i + j + 1] - unit[i + j + 2] for i in range(half) for j in range(half)]
    return np.array(long + short)


def unit_neurons(directions: FloatArray, outputs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The same neurons, but for those that are zero, with unit directions (m', r+1) and outputs (m',)."""
    length = np.linalg.norm(directions, axis=1)
    alive = (length > 0) & (outputs != 0)
    return directions[alive] / length[alive, None], (length * outputs)[alive]


def repeat(iterate: Callable[[], None], deadline: float) -> None:
    """As many iterations as go between two looks at the bound, or fewer where `time.perf_counter` reaches the deadline."""
    for _ in range(LOOK):
        iterate()
        if time.perf_counter() > deadline:
            break


def plus(parts: Parts, others: Parts, factor: float = 1.0) -> Parts:
    """The tuple of arrays parts + factor others."""
    return parts._make(part + factor * other for part, other in zip(parts, others, strict=True))


def overshot(consistent: Parts, parts: Parts) -> Parts:
    """From the parts past the consistent ones, which converges in fewer iterations."""
    return parts._make(OVERSHOOT * one + (1.0 - OVERSHOOT) * other for one, other in zip(consistent, parts, strict=True))


def positive(matrices: FloatArray) -> FloatArray:
    """The nearest positive semidefinite matrices, for (..., k, k)."""
    values, vectors = np.linalg.eigh(matrices)
    return np.asarray((vectors * np.maximum(values, 0.0)[..., None, :]) @ np.swapaxes(vectors, -1, -2))
