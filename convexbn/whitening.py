"""Whitening: the orthonormal basis in which batch normalisation disappears, and the way back to raw weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convexbn.validation import BoolArray, FloatArray, InputError, check_count, check_data

# A column is constant when its spread is below this fraction of its magnitude: float64 has no digits left for it. Where the spread is
# more than rounding leaves of equal numbers it is data, and what is proved without it would not be so for networks that read it.
CONSTANT_COLUMN = 1e-13
ROUNDED_COLUMN = 16.0 * float(np.finfo(np.float64).eps)

# Weights are in one over the unit of a column, and float64 has to hold both: spreads from 2^-1013 to 2^1013, about 1e305.
LARGEST_EXPONENT = 1013

# From this size of the shorter side on, few leading directions come from a Gram matrix, if none is weaker than this fraction; so do
# all directions of data that have more than TALL rows for each column.
GRAM_FROM = 500
TALL = 50
WEAKEST_BY_GRAM = 1e-4


@dataclass(frozen=True)
class Whitening:
    """The compact singular value decomposition of centred data, Pi X = U Sigma V^T diag(scale), or its leading part.

    Pi = I - 11^T/n removes the column means. Batch normalisation of a neuron X w is U' s with the orthonormal basis
    U' = [U, 1/sqrt(n)] and s = (g q; a), q = Sigma V^T (scale * w) / ||.||; so a network with batch normalisation on X is a
    plain network with weight decay on U' (Ergen et al. 2022; `docs/theory.md`).

    Attributes
    ----------
    mean : (d,) column means, in the unit of X
    scale : (d,) powers of two, in the unit of X; dividing by them is exact and makes the rank independent of units
    components : (d, r) V, orthonormal columns
    singular_values : (r,) Sigma, descending, of the scaled centred data
    basis : (n, r+1) U', orthonormal columns, the last one constant 1/sqrt(n)
    dropped : the number of directions that are more than rounding and less than the tolerance of `whiten`: networks that read
        them are not among those that a program on this basis stands for
    energy : the share of the variance, sum of Sigma^2, in the directions that are kept; 1 where `rank` has cut none
    whole : how many samples there are where `basis` holds the rows of some of them; None where it holds all
    """

    mean: FloatArray
    scale: FloatArray
    components: FloatArray
    singular_values: FloatArray
    basis: FloatArray
    dropped: int = 0
    energy: float = 1.0
    whole: int | None = None

    @property
    def samples(self) -> int:
        """The number n of samples."""
        return len(self.basis) if self.whole is None else self.whole

    @property
    def rank(self) -> int:
        """The rank r of the centred data, or the number k of directions that truncation keeps."""
        return len(self.singular_values)

    def transform(self, X: npt.ArrayLike) -> FloatArray:
        """phi(x) = [Sigma^{-1} V^T ((x - mean) / scale); 1/sqrt(n)] of new rows (k, d), shape (k, r+1).

        The statistics are those of the training data; on the training data the result is `basis`.
        """
        rows = check_data(X, samples=1)
        if rows.shape[1] != len(self.mean):
            raise InputError(f"X has {rows.shape[1]} features, but the whitening was made with {len(self.mean)}: pass the same columns")
        whitened = (rows / self.scale - self.mean / self.scale) @ (self.components / self.singular_values)
        return np.column_stack([whitened, np.full(len(rows), 1.0 / np.sqrt(self.samples))])

    def raw_weights(self, q: FloatArray) -> FloatArray:
        """The w, shape (m, d), with Pi X w_j = U q_j, for the rows q_j of `q`, shape (m, r)."""
        weights: FloatArray = (q / self.singular_values) @ self.components.T / self.scale
        return weights

    def whitened_weights(self, w: FloatArray) -> FloatArray:
        """The q = Sigma V^T (scale * w), shape (m, r), with Pi X w_j = U q_j, for the rows w_j of `w`, shape (m, d)."""
        weights: FloatArray = (w * self.scale) @ self.components * self.singular_values
        return weights


def powers_of_two(size: FloatArray | float) -> FloatArray:
    """The power of two just above each size, 1 for size 0: dividing by it changes no digit."""
    return np.where(size > 0, np.ldexp(1.0, np.frexp(np.where(size > 0, size, 1.0))[1].clip(-1021, 1023)), 1.0)


def whiten(X: npt.ArrayLike, *, rank: float | None = None, tolerance: float = 1e-10) -> Whitening:
    """Centre the data and factor it, Pi X = U Sigma V^T diag(scale); with `rank`, keep the k leading principal directions.

    Columns are first divided by powers of two near their spread. The networks that a layer with batch normalisation can
    express don't depend on the units of the columns; without this step the numerical rank would.

    Truncation is another matter: which directions lead depends on the units. They are those of the centred data as they are,
    as in `sklearn.decomposition.PCA`, so that columns of different kinds want scaling first; all columns are divided by one
    power of two. U' = [U_{:,1:k}, 1/sqrt(n)] is then the basis of the rank-k data Pi X V V^T, and as neurons have their weights
    in the span of V, networks on it are networks on X. Whitened, a direction of tiny variance costs as little as any other;
    gradient descent reaches it late. Truncation is how the program is told to leave it out.

    Parameters
    ----------
    X : (n, d) real numbers, n >= 2
    rank : None keeps all directions, a whole number k the k leading ones (all of them where the data have fewer), a fraction in
        (0, 1) as many as hold that share of the variance, sum_{i<=k} Sigma_i^2 >= fraction sum_i Sigma_i^2
    tolerance : singular values below `tolerance` times the largest are dropped, and with them directions of the data that
        float64 can't tell from rounding

    Raises
    ------
    InputError
        For unusable `X` or `rank`, and where every column is constant, as batch normalisation then divides by zero; for columns that
        float64 can't normalise, as they vary by 1e-14 of their size, say, or by 1e-305 or 1e305.
    """
    data = check_data(X)
    if not 0.0 < tolerance < 1.0:
        raise InputError(f"tolerance = {tolerance} must lie between 0 and 1")
    wanted = check_rank(rank)
    mean, scale = _centre(data, one_unit=wanted is not None)
    factors = None
    if wanted is not None and min(data.shape) > GRAM_FROM and wanted < min(data.shape) // 2:
        factors = _by_gram_matrix(data, wanted)
    left, values, components, energy, dropped = factors or _by_decomposition(data, wanted, tolerance)
    # Constant columns, 0 by now, may be of any size: rounding there would be multiplied by it.
    components = np.where(np.any(data, axis=0, keepdims=True).T, components, 0.0)
    constant = np.full(len(data), 1.0 / np.sqrt(len(data)))
    # Rounding tilts the vectors of small singular values towards the constant one: set them upright again.
    basis = _orthonormal(np.column_stack([constant, left]))[0]
    return Whitening(mean, scale, np.ascontiguousarray(components), values, np.roll(basis, -1, axis=1), dropped, energy)


def check_rank(rank: float | None) -> float | None:
    """`rank` as None, an int of at least 1 or a float in (0, 1), or raise `InputError`."""
    if rank is None or (isinstance(rank, (int, np.integer)) and not isinstance(rank, bool)):
        return None if rank is None else check_count(rank, "rank")
    if not isinstance(rank, (float, np.floating)) or not 0.0 < rank < 1.0:
        raise InputError(
            f"rank = {rank!r} is no number of directions and no share of the variance: pass an int from 1 on, a float in (0, 1), or None"
        )
    return float(rank)


def _centre(data: FloatArray, *, one_unit: bool) -> tuple[FloatArray, FloatArray]:
    """Centre the data in place and divide them by powers of two, one for all columns with `one_unit`: their means, and the powers.

    In place, because at the size of image collections every copy counts.
    """
    magnitude = powers_of_two(np.maximum(data.max(axis=0), -data.min(axis=0)))
    data /= magnitude
    mean = np.mean(data, axis=0)
    data -= mean
    data -= np.mean(data, axis=0)
    spread = np.maximum(data.max(axis=0), -data.min(axis=0))
    spread[~varying(spread, np.ones_like(spread), magnitude)] = 0.0
    scale = magnitude * powers_of_two(spread)
    if one_unit:
        scale = np.where(spread > 0, np.max(scale[spread > 0]), scale)
    data *= np.where(spread > 0, magnitude / scale, 0.0)
    return mean * magnitude, scale


def varying(spread: FloatArray, size: FloatArray, unit: float | FloatArray = 1.0) -> BoolArray:
    """Which columns vary, of their spread (d,) and their size (d,), both in `unit`; `InputError` where none does or float64 can't say."""
    varies: BoolArray = spread > CONSTANT_COLUMN * size
    lost = ~varies & (spread > ROUNDED_COLUMN * size)
    if lost.any():
        raise InputError(
            f"X has a column, number {int(np.argmax(lost))}, that varies by less than {CONSTANT_COLUMN:g} of its size, which leaves batch "
            "normalisation no digits in float64: change its origin (subtract one of its entries), or drop it"
        )
    if not varies.any():
        raise InputError("X has only constant columns: batch normalisation divides by their spread. Add a column that varies")
    check_exponents(np.where(varies, np.frexp(spread)[1] + np.frexp(unit)[1], 0))
    return varies


def check_exponents(exponents: npt.NDArray[np.int_]) -> None:
    """`InputError` where the columns' powers of two (d,) leave their weights outside of float64."""
    beyond = np.abs(exponents) > LARGEST_EXPONENT
    if beyond.any():
        raise InputError(
            f"X has a column, number {int(np.argmax(beyond))}, of a size beyond 1e-305 or 1e305, for which float64 can't hold weights: "
            "change its unit"
        )


Factors = tuple[FloatArray, FloatArray, FloatArray, float, int]


def _by_decomposition(centred: FloatArray, rank: float | None, tolerance: float) -> Factors:
    """U, Sigma and V of the directions that are kept, their share of the variance, and the number of those dropped as rounding."""
    left, values, right = _decomposition(centred)
    full = min(int(np.sum(values > tolerance * values[0])), len(centred) - 1)
    kept = kept_of(values, rank, full)
    rounding = max(centred.shape) * float(np.finfo(np.float64).eps) * values[0]
    dropped = int(np.sum((values > 4.0 * rounding) & (values <= tolerance * values[0]))) if kept == full else 0
    energy = 1.0 if kept == full else float(np.sum(values[:kept] ** 2) / np.sum(values**2))
    return left[:, :kept], values[:kept], right[:kept].T, energy, dropped


def _decomposition(matrix: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The thin singular value decomposition; of a tall matrix by way of its Gram matrix, where that loses nothing.

    Patches of images are many rows with some dozens of columns: of 122,500 by 75 it took 0.5 s in place of LAPACK's 1.3 s.
    """
    if len(matrix) >= TALL * matrix.shape[1]:
        values, vectors = np.linalg.eigh(matrix.T @ matrix)
        if values[0] > WEAKEST_BY_GRAM**2 * values[-1]:
            unit, triangle = _orthonormal(matrix @ (vectors / np.sqrt(values)))
            left, singular, right = np.linalg.svd(triangle @ (np.sqrt(values)[:, None] * vectors.T))
            return unit @ left, singular, right
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    return left, singular, right


def _orthonormal(nearly: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Q and R with Q R = `nearly`, whose columns are orthonormal to a few digits: then this way Q is so to rounding.

    R has a positive diagonal, so that no column is flipped.
    """
    triangle = np.asarray(np.linalg.cholesky(nearly.T @ nearly).T, dtype=np.float64)
    return nearly @ np.linalg.inv(triangle), triangle


def kept_of(values: FloatArray, rank: float | None, full: int) -> int:
    """How many of the falling singular values a checked `rank` keeps, at most the `full` number of those that are no rounding."""
    if rank is None or isinstance(rank, int):
        return full if rank is None else min(full, rank)
    held = np.cumsum(values**2)
    return min(full, int(np.searchsorted(held, rank * held[-1])) + 1)


def _by_gram_matrix(centred: FloatArray, rank: float) -> Factors | None:
    """The same for few leading directions of large data, or None where they are too weak for it to be accurate.

    The eigenvectors of the smaller Gram matrix cost one pass over the data; a decomposition of the data inside their span makes
    U, Sigma and V consistent to rounding. The span itself is accurate to eps (Sigma_1 / Sigma_k)^2, divided by the relative gap
    to the next direction. Rejected: randomised projection with power iterations, as expensive at this accuracy; ARPACK, ten
    times slower.
    """
    from scipy.linalg import eigh

    tall = centred if centred.shape[0] >= centred.shape[1] else centred.T
    gram = tall.T @ tall
    width, variance = len(gram), float(np.trace(gram))
    kept = rank if isinstance(rank, int) else kept_of(np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)), rank, width)
    vectors = eigh(gram, subset_by_index=(width - kept, width - 1), overwrite_a=True)[1]
    left, values, right = np.linalg.svd(tall @ vectors, full_matrices=False)
    if values[-1] < WEAKEST_BY_GRAM * values[0]:
        return None
    far, near = left, vectors @ right.T
    energy = min(1.0, float(np.sum(values**2)) / variance)
    return (far, values, near, energy, 0) if tall is centred else (near, values, far, energy, 0)
