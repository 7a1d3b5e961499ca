"""Neural collapse: how near the features of a trained classifier are to one point a class, at the corners of a simplex."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convexbn.validation import FloatArray, InputError, real_array


@dataclass(frozen=True)
class NeuralCollapse:
    """Three signs of neural collapse in features h_i with class means m_c and mean m; all are 0 where it is complete.

    Source: Papyan, Han and Donoho 2020, "Prevalence of neural collapse during the terminal phase of deep learning training"
    (NC1 and NC2).

    Attributes
    ----------
    within : tr(S_W S_B^+) / C, S_W the covariance of the h_i around their class means, S_B that of the m_c around m
    cosines : (C, C) between the m_c - m
    lengths : (C,) ||m_c - m||
    """

    within: float
    cosines: FloatArray
    lengths: FloatArray

    @property
    def angles(self) -> float:
        """The mean over pairs of |cosine + 1 / (C - 1)|: in a simplex equiangular tight frame every cosine is -1 / (C - 1)."""
        classes = len(self.cosines)
        pairs = self.cosines[~np.eye(classes, dtype=np.bool_)]
        return float(np.mean(np.abs(pairs + 1.0 / (classes - 1))))

    @property
    def inequality(self) -> float:
        """Standard deviation of the lengths divided by their mean."""
        lengths = self.lengths / np.max(self.lengths)  # squares of very large or small ones leave float64
        return float(np.std(lengths) / np.mean(lengths))

    def __str__(self) -> str:
        return f"neural collapse: within-class {self.within:.1e}, angles {self.angles:.1e}, lengths {self.inequality:.1e} (0 is complete)"


def neural_collapse(features: npt.ArrayLike, labels: npt.ArrayLike) -> NeuralCollapse:
    """Measure within-class variability and the angles and lengths of the class means.

    Parameters
    ----------
    features : (n, m), such as `Network.activations` of the data
    labels : (n,) of any kind that can be sorted, at least two different ones

    Raises
    ------
    InputError
        For another shape, fewer than two classes, or class means that are all equal.
    """
    hidden = real_array(features, "features")
    if hidden.ndim != 2 or 0 in hidden.shape:
        raise InputError(f"features have shape {hidden.shape}, not (samples, features): pass one row for each sample")
    classes, place = np.unique(np.asarray(labels), return_inverse=True)
    if np.shape(labels) != (len(hidden),) or len(classes) < 2:
        raise InputError(
            f"labels have shape {np.shape(labels)} and {len(classes)} class(es): one for each of {len(hidden)} rows, of two kinds or more"
        )
    unit = float(np.max(np.abs(hidden))) or 1.0
    hidden = hidden / unit  # squares of very large or small numbers leave float64
    means = np.array([hidden[place == c].mean(axis=0) for c in range(len(classes))])
    centred = means - hidden.mean(axis=0)
    lengths = np.linalg.norm(centred, axis=1)
    if np.max(lengths) <= 1e-12 * np.max(np.abs(hidden), initial=0.0):
        raise InputError("features have the same mean in every class, so there are no angles between them: train the network first")
    # tr(S_W S_B^+), S_B = M^T M / C: the squares of the deviations in the coordinates that M^+ gives.
    around = (hidden - means[place]) @ np.linalg.pinv(centred)
    within = float(np.sum(around**2)) / len(hidden)
    directions = centred / np.where(lengths > 0, lengths, 1.0)[:, None]
    return NeuralCollapse(within, directions @ directions.T, unit * lengths)
