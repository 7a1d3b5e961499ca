"""A proof over all arrangements for several outputs: the whole training problem, relaxed to doubly nonnegative matrices."""

from __future__ import annotations

import time

import numpy as np

from convexbn.losses import Loss, of_unit_size
from convexbn.validation import AnyFloats, FloatArray

PRODUCT_SAMPLES = 2_500  # beyond so many, an eigen-decomposition of their matrix takes too long
SINGLE = 600  # from so many on the iterations run in float32
STEP = 100.0  # of the method of multipliers, in the unit beta / (2 mass)
OVERSHOOT = 1.5
LOOK = 20  # iterations between two dual points
BALANCE, CHANGE = 2.0, 1.4  # the step changes by the one where the residuals differ by more than the other
SQRT2 = float(np.sqrt(2.0))


def bound_by_products(basis: FloatArray, v: FloatArray, multipliers: AnyFloats) -> float:
    """A proved upper bound on h(V) = max over ||s|| <= 1 of ||V^T (U's)_+||, from multipliers on products of pairs of samples.

    With p = (U's)_+ and q = (-U's)_+ all products p_i p_j, p_i q_j, q_i q_j are at least 0, p_i q_i = 0, and
    ||p||^2 + ||q||^2 = ||s||^2. So for z = (p, q) and every symmetric G whose entries off the diagonal are at most 0, except at
    p_i q_i, where they are free,

        ||V^T p||^2 = z^T G z + z^T (V V^T - G) z <= max_k G_kk + lambda_max(B^T (V V^T - G) B)_+

    where z = B x, with orthonormal columns B, for x = (|U's|, s) / sqrt(2). Whatever the multipliers, the bound holds; rounding
    is added, from the norms of all factors.

    Parameters
    ----------
    basis : (n, r+1) U'
    v : (n, C) the dual point V, or (n,)
    multipliers : (3, n, n) the blocks pp, pq and qq of G; entries of the wrong sign count as 0
    """
    from scipy.linalg import eigh

    n, width = basis.shape
    v = v.reshape(n, -1)
    blocks = multipliers.astype(np.float64)
    blocks[[0, 2]] = 0.5 * (blocks[[0, 2]] + blocks[[0, 2]].transpose(0, 2, 1))
    diagonal = np.einsum("kii->ki", blocks).copy()
    np.minimum(blocks, 0.0, out=blocks)
    np.einsum("kii->ki", blocks)[...] = diagonal
    eps = float(np.finfo(np.float64).eps)
    size = float(np.linalg.norm(blocks)) + float(np.linalg.norm(v)) ** 2
    tilt = float(np.linalg.norm(basis.T @ basis - np.eye(width))) + n * width * eps  # how far ||U's|| can be from ||s||
    highest = max(0.0, float(np.max(diagonal[[0, 2]])))
    np.negative(blocks, out=blocks)
    blocks[0] += v @ v.T
    matrix = _gathered(basis, blocks)
    largest = float(eigh(matrix, eigvals_only=True, subset_by_index=[n + width - 1] * 2, overwrite_a=True)[0])
    rounding = 16.0 * (n + width) * width * eps * size
    return float(np.sqrt((highest + max(0.0, largest) + rounding) * (1.0 + 2.0 * tilt))) * (1.0 + 4.0 * eps)


class RelaxedTraining:
    """The training problem relaxed to doubly nonnegative matrices: ever better dual points, with multipliers that prove them.

    A network with balanced neurons, ||s_j|| = ||w_j||, has the moments M = sum_j x_j x_j^T of x_j = (p_j, q_j, w_j), p_j and q_j
    as in `bound_by_products`, with f = its block pw and the penalty beta tr(M) / 2. The training problem is convex in M over all
    sums of such x x^T; the relaxation asks only that M is positive semidefinite, that its entries among p and q are at least 0
    and those at p_i q_i are 0, and that p - q is in the span of U':

        min  L(M_pw, y) + (beta/2) tr M          over such M

    Its dual point is the best that this relaxation can prove anything with, and no search over output directions is needed. The
    alternating direction method of multipliers splits M into a part in the cone (an eigen-decomposition of size n + r + 1 + C)
    and one that takes signs, trace and loss, entry by entry. It begins at a network, where the first half is solved already.

    Rejected: cutting planes over the directions w, which need some hundred cuts in R^10 to be 20 % loose; products of w with
    |t_i| alone (2.08 beta on ten digits and 1.27 on three wines, where this gives 1.02 and 1.0005).

    Parameters
    ----------
    basis : (n, r+1) U', n at most `PRODUCT_SAMPLES`
    y, loss, beta : the program's, y of shape (n,) or (n, C)
    directions, outputs : (m, r+1) and (m, C) the neurons of a good network; none will do
    """

    def __init__(self, basis: FloatArray, y: FloatArray, loss: Loss, beta: float, directions: FloatArray, outputs: FloatArray) -> None:
        problem = of_unit_size(y, loss, beta)
        self.unit, self.shape = problem.unit, y.shape
        self.method = _Multipliers(basis, problem.y, problem.loss, problem.beta, directions, outputs / self.unit)

    def advance(self, deadline: float) -> None:
        """As many iterations as go between two looks at the bound, or fewer where `time.perf_counter` reaches the deadline."""
        for left in reversed(range(LOOK)):
            self.method.iterate(balance=left == 0)
            if time.perf_counter() > deadline:
                break

    @property
    def dual(self) -> FloatArray:
        """The dual point V, of the shape of y: minus the gradient of the loss at f."""
        return np.asarray(-2.0 * self.unit * self.method.step * self.method.pull, dtype=np.float64).reshape(self.shape)

    @property
    def multipliers(self) -> AnyFloats:
        """(3, n, n) the G of `bound_by_products`: by Schur's complement of the block ww, whose multiplier is beta / 2."""
        return np.asarray(2.0 * self.unit**2 * self.method.step * self.method.beta * self.method.slack)

    def price(self, v: FloatArray) -> float:
        """A proved upper bound on h(v), v best `dual`, by the present multipliers."""
        return bound_by_products(self.method.basis, v, self.multipliers)


class _Multipliers:
    """The method of multipliers for the relaxed training problem.

    `moments` (3, n, n) are the blocks pp, pq, qq of M and `slack` their scaled multipliers; `features` and `others` (n, C) the
    blocks pw = f and qw, with the multipliers `pull` of the one that the loss reads; `gram` (C, C) the block ww.
    """

    moments: AnyFloats
    features: AnyFloats
    others: AnyFloats
    gram: AnyFloats

    def __init__(self, basis: FloatArray, y: FloatArray, loss: Loss, beta: float, directions: FloatArray, outputs: FloatArray) -> None:
        self.basis, self.y, self.loss, self.beta = basis, y, loss, float(beta)
        self.narrow: AnyFloats = basis.astype(np.float32) if len(basis) >= SINGLE else basis
        lengths, sizes = np.linalg.norm(directions, axis=1), np.linalg.norm(outputs, axis=1)
        alive = (lengths > 0) & (sizes > 0)
        lengths, sizes, s, w = lengths[alive], sizes[alive], directions[alive], outputs[alive]
        t = basis @ (s * np.sqrt(sizes / lengths)[:, None]).T
        w = w * np.sqrt(lengths / sizes)[:, None]
        self.step = STEP * beta / (2.0 * mass_near(float(lengths @ sizes), y, loss, beta))
        self._take(np.maximum(t, 0.0), np.maximum(-t, 0.0), w.T)
        self.slack = np.zeros_like(self.moments)
        np.einsum("kii->ki", self.slack)[[0, 2]] = self.charge
        self.pull: AnyFloats = loss.gradient(self.features.astype(np.float64).reshape(y.shape), y).reshape(len(y), -1) / (2.0 * self.step)
        self.rank = 2 * int(np.sum(alive)) + 30

    @property
    def charge(self) -> float:
        """What the penalty takes from each entry of the diagonal."""
        return self.beta / (2.0 * self.step)

    def iterate(self, *, balance: bool = False) -> None:
        """The part in the cone, then the part entry by entry, then the multipliers; with `balance` a better step for the next time."""
        before = self.moments, self.features, self.others, self.gram
        gram = self.gram - self.charge * np.eye(len(self.gram))
        cone = _gathered(self.narrow, self.moments - self.slack, self.features - self.pull, self.others, gram)
        factor = self._positive_part(cone)
        n, width = self.basis.shape
        across = self.narrow @ factor[n : n + width]
        self._take((factor[:n] + across) / SQRT2, (factor[:n] - across) / SQRT2, factor[n + width :])
        apart = [self.moments - before[0], self.features - before[1]] if balance else []
        further, self.others, self.gram = (
            OVERSHOOT * part + (1.0 - OVERSHOOT) * old
            for part, old in zip((self.features, self.others, self.gram), before[1:], strict=True)
        )
        self.slack += OVERSHOOT * self.moments + (1.0 - OVERSHOOT) * before[0]
        self.moments = np.maximum(self.slack, 0.0)
        np.einsum("kii->ki", self.moments)[...] = np.maximum(np.einsum("kii->ki", self.slack) - self.charge, 0.0)
        np.einsum("ii->i", self.moments[1])[...] = 0.0
        self.slack -= self.moments
        wanted = np.asarray(further + self.pull, dtype=np.float64)
        features = self.loss.prox(wanted.reshape(self.y.shape), self.y, 0.5 / self.step).reshape(wanted.shape)
        self.pull = wanted - features
        self.features = features.astype(self.narrow.dtype)
        if balance:
            moved = [self.moments - before[0], self.features - before[1]]
            self._balance(*(float(np.sqrt(sum(np.sum(part**2) for part in parts))) for parts in (apart, moved)))

    def _take(self, p: AnyFloats, q: AnyFloats, w: AnyFloats) -> None:
        """The moments of the columns (p_j, q_j, w_j)."""
        self.moments = np.stack([p @ p.T, p @ q.T, q @ q.T]).astype(self.narrow.dtype, copy=False)
        self.features, self.others, self.gram = (np.asarray(part @ w.T, dtype=self.narrow.dtype) for part in (p, q, w))

    def _positive_part(self, matrix: AnyFloats) -> AnyFloats:
        """F with F F^T the projection of the matrix on the cone: from its largest eigenvalues, a third more than there were."""
        from scipy.linalg import LinAlgError, eigh

        size = len(matrix)
        try:
            values, vectors = eigh(matrix, subset_by_index=[max(0, size - self.rank), size - 1], driver="evr", check_finite=False)
        except LinAlgError:
            values, vectors = np.linalg.eigh(matrix)
        positive = values > 0
        self.rank = int(1.3 * np.sum(positive)) + 20
        return np.asarray(vectors[:, positive] * np.sqrt(values[positive]))

    def _balance(self, apart: float, moved: float) -> None:
        """A longer step where the two parts differ by more than they move, and a shorter one where they move by more."""
        factor = CHANGE if apart > BALANCE * moved else 1.0 / CHANGE if moved > BALANCE * apart else 1.0
        self.step *= factor
        self.slack /= factor
        self.pull = self.pull / factor


def mass_near(mass: float, y: FloatArray, loss: Loss, beta: float) -> float:
    """A positive number of the size of the optimum's sum of ||s_j|| ||w_j||, from that of some network."""
    return max(mass, 0.1 * loss.value(np.zeros_like(y), y) / beta) or 1.0


def _gathered(
    basis: AnyFloats, blocks: AnyFloats, features: AnyFloats | None = None, others: AnyFloats | None = None, gram: AnyFloats | None = None
) -> AnyFloats:
    """B^T M B for B : (|t|, s, w) -> (p, q, w), the former two over sqrt(2), with orthonormal columns; without w where it isn't given."""
    n, width = basis.shape
    size = n + width + (0 if gram is None else len(gram))
    pp, pq, qq = blocks
    matrix = np.empty((size, size), dtype=basis.dtype)
    alike, unlike = pp + qq, pq + pq.T
    matrix[:n, :n] = 0.5 * (alike + unlike)
    matrix[n : n + width, n : n + width] = 0.5 * (basis.T @ ((alike - unlike) @ basis))
    corners = [(slice(0, n), slice(n, n + width), 0.5 * ((pp - qq - pq + pq.T) @ basis))]
    if gram is not None and features is not None and others is not None:
        corners.append((slice(0, n), slice(n + width, size), (features + others) / SQRT2))
        corners.append((slice(n, n + width), slice(n + width, size), basis.T @ (features - others) / SQRT2))
        matrix[n + width :, n + width :] = gram
    for rows, columns, part in corners:
        matrix[rows, columns], matrix[columns, rows] = part, part.T
    return matrix
