"""The convex program as data: the basis, the targets, the loss, beta and the arrangements, with the maps between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexbn.arrangements import Arrangements
from convexbn.losses import Loss
from convexbn.patches import NO_POOLING, Pooling
from convexbn.validation import FloatArray, InputError, check_positive


@dataclass(frozen=True)
class Program:
    """The convex program that equals the training of a two-layer ReLU network with batch normalisation,

        min  L( sum_i D_i U'(s_i - s_i'), y ) + beta sum_i ( ||s_i|| + ||s_i'|| )
        s.t. (2 D_i - I) U' s_i >= 0,  (2 D_i - I) U' s_i' >= 0,        D_i = diag(1[U's >= 0]).

    L is a sum over samples, ||.|| Euclidean. Over all arrangements its optimum is that of the network problem for every
    width from n + 1 on; over a sample of arrangements it is an upper bound (Ergen et al. 2022, Theorem 2.2).

    With C outputs and all arrangements, unlisted, it stands for  min L( (U'S)_+ W, y ) + beta sum_j ||s_j|| ||w_j||  over neurons
    S (m, r+1), W (m, C) of every width m; on a list that penalty has no conic form of fixed size.

    On patches of images, K rows a sample, predictions are pooled: U' is the basis of all patches, and the pooling p takes the place
    of the identity in  L( p sum_i D_i U'(s_i - s_i'), y ).

    Attributes
    ----------
    basis : (n K, r+1) U', orthonormal columns, K = 1 without patches
    y : (n,) targets, or (n, C) for C outputs, in their own unit
    loss : L
    beta : regularisation, in the unit of the gradient of L
    arrangements : the D_i; None stands for all of them, not listed
    pooling : from the rows of the basis to samples; the identity by default
    """

    basis: FloatArray
    y: FloatArray
    loss: Loss
    beta: float
    arrangements: Arrangements | None
    pooling: Pooling = NO_POOLING

    def __post_init__(self) -> None:
        check_positive(self.beta, "beta")
        if self.y.ndim not in (1, 2) or len(self.y) * self.pooling.patches != len(self.basis):
            each = f", {self.pooling.patches} for each sample" if self.pooling.patches > 1 else ""
            raise InputError(f"y has shape {self.y.shape}, but the basis has {len(self.basis)} rows{each}: they must be equal in number")
        if self.arrangements is not None and self.y.ndim > 1:
            raise InputError(
                f"arrangements are listed, but y has {self.y.shape[1]} outputs, for which a list makes no convex program of fixed size: "
                "leave them unlisted and use the solver 'sliding'"
            )
        if self.arrangements is not None and self.arrangements.active.shape[1:] != (len(self.basis),):
            raise InputError(
                f"arrangements are patterns of {self.arrangements.active.shape[1]} rows, but the basis has {len(self.basis)} rows: "
                "make them from this basis"
            )

    @property
    def active(self) -> FloatArray:
        """(P, n K) the diagonals of the D_i as 0.0 and 1.0."""
        if self.arrangements is None:
            raise InputError("arrangements are not listed in this program: enumerate or sample them for a solver that needs a list")
        return self.arrangements.active.astype(np.float64)

    def forward(self, weights: FloatArray) -> FloatArray:
        """Predictions sum_i D_i U'(s_i - s_i'), shape (n,), of `weights` (2, P, r+1): weights[0, i] = s_i, weights[1, i] = s_i'."""
        images = self.basis @ (weights[0] - weights[1]).T
        return self.pooling.pool(np.einsum("pn,np->n", self.active, images))

    def adjoint(self, v: FloatArray) -> FloatArray:
        """The adjoint of `forward`: U'^T D_i v and its negative, shape (2, P, r+1), for v of shape (n,)."""
        images = (self.active * self.pooling.spread(v)) @ self.basis
        return np.stack([images, -images])

    def violation(self, weights: FloatArray) -> float:
        """The largest amount by which `weights` (2, P, r+1) break the cone constraints; 0 where they hold."""
        images = weights @ self.basis.T
        return float(np.max(-(2.0 * self.active - 1.0) * images, initial=0.0))

    def objective(self, weights: FloatArray) -> float:
        """The objective of `weights` (2, P, r+1). An infeasible point lies below the optimum: read `violation` with it."""
        penalty = self.beta * float(np.sum(np.linalg.norm(weights, axis=-1)))
        return self.loss.value(self.forward(weights), self.y) + penalty

    def dual_objective(self, v: FloatArray) -> float:
        """-L*(-v), v of the shape of y: a lower bound on the optimum where max over the cones and ||s|| <= 1 of ||v^T D_i U's|| <= beta."""
        return -self.loss.conjugate(-v, self.y)
