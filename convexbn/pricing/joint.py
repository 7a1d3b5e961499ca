"""A proof over all arrangements, the tightest for some ten columns: moments of directions and of the samples' |t_i| in one matrix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convexbn.losses import Loss, of_unit_size
from convexbn.pricing.moments import SIGNS, overshot, plus, positive, repeat, unit_neurons
from convexbn.pricing.nonnegative import mass_near
from convexbn.pricing.polynomials import EPS, Monomials, SphereMoments
from convexbn.validation import FloatArray

STEP = 30.0  # of the method of multipliers, in the unit beta / mass
LOCAL = 0.3  # weight of what is local to a sample beside the joint matrix
SIZE, COLUMNS = 1_000, 14  # of the joint matrix, and of the basis: beyond that an iteration takes seconds


def fits_jointly(samples: int, width: int) -> bool:
    """Whether the joint matrix is small enough for some hundred eigen-decompositions."""
    return width <= COLUMNS and joint_size(samples, width) <= SIZE


def joint_size(samples: int, width: int) -> int:
    """Rows of the joint matrix."""
    return samples + width * (width + 3) // 2


class _Parts(NamedTuple):
    """One side of the split, for both signs of a neuron's output, of expectations E over its measure.

    joint (2, N + n, N + n) = E x x^T for x = (phi(s), |t|); right and left (2, n, r+2, r+2) = E p_i (1, s)(1, s)^T and the same of
    q_i, with p = (t)_+ and q = (-t)_+; products (2, 3, n, n) = E p p^T, E p q^T, E q q^T; bent and straight (2, n) = E |t_i|, E t_i.
    """

    joint: FloatArray
    right: FloatArray
    left: FloatArray
    products: FloatArray
    bent: FloatArray
    straight: FloatArray


class Multipliers(NamedTuple):
    """What a proof is made of: see `Joint.bound`."""

    gram: FloatArray
    diagonal: FloatArray
    right: FloatArray
    left: FloatArray
    products: FloatArray


class Joint:
    """The linear maps from moments of s to what the samples have of them.

    Attributes
    ----------
    one : (count,) the polynomial 1
    linear, quadratic : (r+1, count) the s_a; (r+1, r+1, count) the s_a s_b
    local : (r+1, (r+2)^2, count) the s_a (1, s)(1, s)^T
    squares : (n, count) the t_i^2
    spread : ((r+2)^2, N) from phi(s) to (1, s)(1, s)^T, whose first row is the polynomial 1
    """

    def __init__(self, basis: FloatArray) -> None:
        width = basis.shape[1]
        self.basis, self.moments = basis, SphereMoments(width, 2)
        even, count = self.moments.top.size, self.moments.count
        units = np.eye(width, dtype=np.int64)
        pairs, triples = Monomials(width, 2), Monomials(width, 3)
        two = pairs.places((units[:, None] + units[None]).reshape(-1, width)).reshape(width, width)
        three = triples.places((units[:, None, None] + units[None, :, None] + units[None, None]).reshape(-1, width))
        self.linear = np.zeros((width, count))
        self.linear[:, even:] = Monomials(width, 1).raised().toarray()
        self.quadratic = np.zeros((width, width, count))
        self.quadratic[:, :, :even] = (pairs.raised().toarray() / np.sqrt(pairs.counts)[:, None])[two]
        self.one = np.einsum("aac->c", self.quadratic)
        local = np.zeros((width, width + 1, width + 1, count))
        local[:, 0, 0], local[:, 0, 1:], local[:, 1:, 0] = self.linear, self.quadratic, self.quadratic
        cubic = np.zeros((width**3, count))
        cubic[np.arange(width**3), even + three] = 1.0 / np.sqrt(triples.counts[three])
        local[:, 1:, 1:] = cubic.reshape(width, width, width, count)
        self.local = local.reshape(width, -1, count)
        self.squares = np.einsum("na,nb,abc->nc", basis, basis, self.quadratic, optimize=True)
        self.size = len(pairs.counts) + width
        spread = np.zeros((width + 1, width + 1, self.size))
        spread[1:, 1:, : len(pairs.counts)] = (np.eye(len(pairs.counts)) / np.sqrt(pairs.counts)[:, None])[two]
        spread[0, 1:, len(pairs.counts) :] = spread[1:, 0, len(pairs.counts) :] = np.eye(width)
        spread[0, 0] = np.einsum("aak->k", spread[1:, 1:])
        self.spread = spread.reshape(-1, self.size)

    def bound(self, v: FloatArray, multipliers: Multipliers) -> float:
        """A proved upper bound on max over ||s|| = 1 of v^T p, p = (U's)_+, with q = (-U's)_+ and a = p + q = |U's|.

        For psi = (1, s), positive semidefinite L_i and M_i, and N whose entries are at least 0, but for those at p_i q_i = 0,

            v^T p  <=  v^T p + sum_i (p_i psi^T L_i psi + q_i psi^T M_i psi) + (p, q)^T N (p, q)  =  g + x^T E x,   x = (phi(s), a)

        for any number g and a matrix E, because p = (a + U's)/2 and a_i^2 = t_i^2; and ||x||^2 = 2 + ||U's||^2 = 3. So the bound is
        g + 3 max(0, lambda_max(E)). Of all E that say the same, gram and diagonal choose one. It holds for any multipliers: those of
        a wrong sign are projected, and what float64 may have lost is added.

        Parameters
        ----------
        v : (n,)
        multipliers : gram (N, N) and diagonal (n,), free; right and left (n, r+2, r+2), the L_i and M_i; products (3, n, n), N
        """
        gram, diagonal, right, left, products = multipliers
        basis, n = self.basis, len(v)
        right, left = positive(right), positive(left)
        free = np.diag(products[1]).copy()
        products = np.maximum(products, 0.0)
        np.fill_diagonal(products[1], free)
        pp, pq, qq = 0.5 * (products[0] + products[0].T), products[1], 0.5 * (products[2] + products[2].T)
        by_a = 0.5 * np.outer(v, self.spread[0]) + 0.5 * (right + left).reshape(n, -1) @ self.spread
        by_a[:, -basis.shape[1] :] += 0.5 * (pp - pq + pq.T - qq) @ basis
        corner = 0.25 * (pp + pq + pq.T + qq)
        moved = diagonal + np.diag(corner)
        np.fill_diagonal(corner, -diagonal)
        total = 0.5 * (basis.T @ v) @ self.linear + moved @ self.squares + self.moments.adjoint(gram)
        total += 0.5 * np.tensordot(basis.T @ (right - left).reshape(n, -1), self.local, 2)
        total += np.tensordot(0.25 * basis.T @ (pp - pq - pq.T + qq) @ basis, self.quadratic, 2)
        constant = float(total @ self.one / (self.one @ self.one))
        matrix = self.moments.represented(total - constant * self.one) - gram
        whole = np.block([[matrix, 0.5 * by_a.T], [0.5 * by_a, corner]])
        largest = max(0.0, float(np.linalg.eigvalsh(whole)[-1]))
        sizes = [np.abs(v), self.size * np.abs(gram), np.abs(diagonal), basis.shape[1] * (np.abs(right) + np.abs(left)), np.abs(products)]
        size = abs(constant) + float(sum(np.sum(part) for part in sizes))
        tilt = float(np.linalg.norm(basis.T @ basis - np.eye(basis.shape[1]))) + n * basis.shape[1] * EPS
        return float(constant + (3.0 + tilt) * largest + 16.0 * (n + self.moments.count) * EPS * size)


class JointTraining:
    """The training problem with one output relaxed to joint moments: ever better dual points, with proofs of their bounds.

    A network is two measures on the unit sphere, as in `MomentTraining`. Of each the relaxation keeps the moments of s up to degree 4
    and those of the |t_i| with each other and with the monomials phi of degree 1 and 2:

        min  L(f, y) + beta (mass_+ + mass_-),       f_i = E_+ p_i - E_- p_i

    with E x x^T positive semidefinite for x = (phi(s), |t|), E |t_i|^2 = E t_i^2, E p_i (1, s)(1, s)^T and the same of q_i positive
    semidefinite, the products of p and q at least 0 and those of p_i q_i 0. On a measure with few atoms that leaves nothing but the
    true |t_i|, where polynomials above a ReLU leave a slack for each sample: with moments of degree 4 alone the sum of squares was
    tight to four digits on ten features of diabetes, and all of the gap was that slack. The alternating direction method of
    multipliers splits it as there; the least squares problem falls apart into one for s, one for each sample, and numbers.

    Parameters
    ----------
    basis : (n, r+1) U'
    y, loss, beta : the program's, y of shape (n,)
    directions, outputs : (m, r+1) and (m,) the neurons of a good network; none will do
    """

    def __init__(self, basis: FloatArray, y: FloatArray, loss: Loss, beta: float, directions: FloatArray, outputs: FloatArray) -> None:
        self.y, self.loss, self.beta, self.unit = of_unit_size(y, loss, beta)
        self.maps, self.basis = Joint(basis), basis
        s, w = unit_neurons(directions, outputs / self.unit)
        self.step = STEP * self.beta / mass_near(float(np.sum(np.abs(w))), self.y, self.loss, self.beta)
        self._prepare()
        self._begin(s, w)

    def _prepare(self) -> None:
        """The least squares problems, for the moments of s and for those of |t_i| with phi, the same for all samples."""
        from scipy.linalg import cho_factor

        maps, moments = self.maps, self.maps.moments
        lowered = moments.lowered.toarray()
        whole = np.diag(np.where(np.arange(moments.count) < moments.top.size, 1.0, 2.0))
        whole[: moments.top.size, : moments.top.size] += lowered.T @ lowered
        pieces = [(1.25, maps.squares), (0.25, maps.quadratic), (0.5 * LOCAL, maps.local), (1.0, maps.linear)]
        for weight, piece in pieces:
            rows = piece.reshape(-1, moments.count)
            whole += weight * rows.T @ rows
        self.factor = cho_factor(whole)
        own = 2.0 * np.eye(maps.size) + 0.5 * LOCAL * maps.spread.T @ maps.spread + np.outer(maps.spread[0], maps.spread[0])
        own[-self.basis.shape[1] :, -self.basis.shape[1] :] += 0.5 * np.eye(self.basis.shape[1])
        self.inverse = np.linalg.inv(own)

    def _begin(self, s: FloatArray, w: FloatArray) -> None:
        """The moments of the neurons, and the multipliers of the loss."""
        t, n = self.basis @ s.T, len(self.basis)
        p, q = np.maximum(t, 0.0), np.maximum(-t, 0.0)
        x = np.concatenate([self.maps.moments.features(s), np.abs(t).T], axis=1)
        psi = np.concatenate([np.ones((len(s), 1)), s], axis=1)
        outer = (psi[:, :, None] * psi[:, None]).reshape(len(s), psi.shape[1] ** 2)
        shape = (2, n, psi.shape[1], psi.shape[1])
        weights = np.maximum(SIGNS[:, None] * w, 0.0)
        self.parts = _Parts(
            np.stack([(x.T * side) @ x for side in weights]),
            np.stack([(p * side) @ outer for side in weights]).reshape(shape),
            np.stack([(q * side) @ outer for side in weights]).reshape(shape),
            np.stack([[(p * side) @ p.T, (p * side) @ q.T, (q * side) @ q.T] for side in weights]),
            weights @ np.abs(t).T,
            weights @ t.T,
        )
        zeros = _Parts(*(np.zeros_like(part) for part in self.parts))
        self.slope = self.loss.gradient(self._outputs(self.parts), self.y)
        pull = 0.5 * SIGNS[:, None] * self.slope / self.step
        self.excess = zeros._replace(bent=pull, straight=pull)

    def _outputs(self, parts: _Parts) -> FloatArray:
        """f from E |t_i| and E t_i."""
        return np.asarray(0.5 * SIGNS @ (parts.bent + parts.straight))

    def advance(self, deadline: float) -> None:
        """As many iterations as go between two looks at the bound, or fewer where `time.perf_counter` reaches the deadline."""
        repeat(self.iterate, deadline)

    def iterate(self) -> None:
        """Consistent moments near the positive ones, then positive moments near these, then the multipliers."""
        wanted = plus(self.parts, self.excess, -1.0)
        sides = [self._consistent(_Parts(*(part[place] for part in wanted))) for place in range(len(SIGNS))]
        consistent = _Parts(*(np.stack(parts) for parts in zip(*sides, strict=True)))
        wanted = plus(overshot(consistent, self.parts), self.excess)
        outputs = self._outputs(wanted)
        change = self.loss.prox(outputs, self.y, 1.0 / self.step) - outputs
        self.slope = -self.step * change
        products = np.maximum(wanted.products, 0.0)
        np.einsum("sii->si", products[:, 1])[...] = 0.0
        shift = 0.5 * SIGNS[:, None] * change
        joint, right, left = (positive(part) for part in (wanted.joint, wanted.right, wanted.left))
        self.parts = _Parts(joint, right, left, products, wanted.bent + shift, wanted.straight + shift)
        self.excess = plus(wanted, self.parts, -1.0)

    def _consistent(self, wanted: _Parts) -> _Parts:
        """The moments of one measure that are nearest to the wanted parts, with the penalty on its mass, for one sign."""
        from scipy.linalg import cho_solve

        maps, basis, size, width = self.maps, self.basis, self.maps.size, self.basis.shape[1]
        pp, pq, qq = wanted.products
        pairs, mixed = pp + pq + pq.T + qq, (pp - pq + pq.T - qq) @ basis
        joint = wanted.joint
        linear = maps.moments.adjoint(joint[:size, :size]) - self.beta / self.step * maps.one
        linear += (np.diag(joint)[size:] + 0.25 * np.diag(pairs)) @ maps.squares
        linear += 0.25 * np.tensordot(basis.T @ ((pp - pq - pq.T + qq) @ basis), maps.quadratic, 2)
        linear += 0.5 * LOCAL * np.tensordot(basis.T @ (wanted.right - wanted.left).reshape(len(basis), -1), maps.local, 2)
        linear += (basis.T @ wanted.straight) @ maps.linear
        whole = np.asarray(cho_solve(self.factor, linear, check_finite=False))
        own = joint[size:, :size] + joint[:size, size:].T + np.outer(wanted.bent, maps.spread[0])
        own += 0.5 * LOCAL * (wanted.right + wanted.left).reshape(len(basis), -1) @ maps.spread
        own[:, -width:] += 0.5 * mixed
        own = own @ self.inverse
        corner = (joint[size:, size:] + 0.25 * pairs) / 1.25
        corner = 0.5 * (corner + corner.T)
        np.fill_diagonal(corner, maps.squares @ whole)
        bent, straight = own @ maps.spread.T, basis @ (maps.local @ whole)
        cross, flat = own[:, -width:] @ basis.T, basis @ (maps.quadratic @ whole) @ basis.T
        products = 0.25 * np.stack([corner + cross + cross.T + flat, corner - cross + cross.T - flat, corner - cross - cross.T + flat])
        return _Parts(
            np.block([[maps.moments.matrix(whole), own.T], [own, corner]]),
            0.5 * (bent + straight).reshape(wanted.right.shape),
            0.5 * (bent - straight).reshape(wanted.left.shape),
            products,
            own @ maps.spread[0],
            basis @ (maps.linear @ whole),
        )

    @property
    def dual(self) -> FloatArray:
        """The dual point V, of the shape of y: minus the gradient of the loss at f."""
        return np.asarray(-self.unit * self.slope)

    def price(self, v: FloatArray) -> float:
        """A proved upper bound on h(v), v (n,) best `dual`, by the present multipliers."""
        bounds = [self.maps.bound(sign * v / self.unit, self._multipliers(place)) for place, sign in enumerate(SIGNS)]
        return self.unit * max(0.0, *bounds)

    def _multipliers(self, place: int) -> Multipliers:
        size, excess = self.maps.size, self.excess
        joint = -self.step * excess.joint[place]
        right, left = (-self.step * LOCAL * part[place] for part in (excess.right, excess.left))
        return Multipliers(joint[:size, :size], np.diag(joint)[size:], right, left, -self.step * excess.products[place])
