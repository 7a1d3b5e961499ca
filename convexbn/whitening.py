"""Whitening: the orthonormal basis in which batch normalisation disappears, and the way back to raw weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convexbn.validation import FloatArray, InputError, check_data

# A column is constant when its spread is below this fraction of its magnitude: float64 has no digits left for it.
CONSTANT_COLUMN = 1e-13


@dataclass(frozen=True)
class Whitening:
    """The compact singular value decomposition of centred data, Pi X = U Sigma V^T diag(scale).

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
    """

    mean: FloatArray
    scale: FloatArray
    components: FloatArray
    singular_values: FloatArray
    basis: FloatArray
    dropped: int = 0

    @property
    def samples(self) -> int:
        """The number n of samples."""
        return len(self.basis)

    @property
    def rank(self) -> int:
        """The rank r of the centred data."""
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


def _powers_of_two(size: FloatArray) -> FloatArray:
    """The power of two just above each size, 1 for size 0."""
    return np.where(size > 0, np.ldexp(1.0, np.frexp(np.where(size > 0, size, 1.0))[1].clip(-1021, 1023)), 1.0)


def whiten(X: npt.ArrayLike, *, tolerance: float = 1e-10) -> Whitening:
    """Centre the data and factor it, Pi X = U Sigma V^T diag(scale).

    Columns are first divided by powers of two near their spread. The networks that a layer with batch normalisation can
    express don't depend on the units of the columns; without this step the numerical rank would.

    Parameters
    ----------
    X : (n, d) real numbers, n >= 2
    tolerance : singular values below `tolerance` times the largest are dropped, and with them directions of the data that
        float64 can't tell from rounding

    Raises
    ------
    InputError
        For unusable `X`, and where every column is constant, as batch normalisation then divides by zero.
    """
    data = check_data(X)
    if not 0.0 < tolerance < 1.0:
        raise InputError(f"tolerance = {tolerance} must lie between 0 and 1")
    magnitude = _powers_of_two(np.max(np.abs(data), axis=0))
    scaled = data / magnitude
    mean = np.mean(scaled, axis=0)
    centred = scaled - mean
    centred -= np.mean(centred, axis=0)
    spread = np.max(np.abs(centred), axis=0)
    spread[spread <= CONSTANT_COLUMN] = 0.0
    if not spread.any():
        raise InputError("X has only constant columns: batch normalisation divides by their spread. Add a column that varies")
    ratio = _powers_of_two(spread)
    centred = np.where(spread > 0, centred / ratio, 0.0)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    rank = min(int(np.sum(values > tolerance * values[0])), len(data) - 1)
    constant = np.full(len(data), 1.0 / np.sqrt(len(data)))
    # Rounding tilts the vectors of small singular values towards the constant one: set them upright again.
    upright = np.linalg.qr(np.column_stack([constant, left[:, :rank]]))[0][:, 1:]
    upright *= np.sign(np.sum(upright * left[:, :rank], axis=0))
    basis = np.column_stack([upright, constant])
    rounding = max(data.shape) * float(np.finfo(np.float64).eps) * values[0]
    dropped = int(np.sum((values > 4.0 * rounding) & (values <= tolerance * values[0])))
    return Whitening(mean * magnitude, magnitude * ratio, np.ascontiguousarray(right[:rank].T), values[:rank], basis, dropped)
