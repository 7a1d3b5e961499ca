"""A proof over all arrangements in polynomial time: an upper bound on h(V) by a relaxation with multipliers for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from convexbn.validation import BoolArray, FloatArray

# Temperatures of the smoothed largest eigenvalue, as fractions of the local maximum of h.
TEMPERATURES = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)

Bounds = list[Any]


class SmoothBound(NamedTuple):
    """A smoothed bound with its gradients in the dual point v and in the multipliers x."""

    value: float
    by_v: FloatArray
    by_x: FloatArray


@dataclass(frozen=True)
class Relaxation:
    """An upper bound on max over ||s|| = 1 of v^T (t)_+ with t = U's, for any number of samples and features.

    v_i (t_i)_+ = v_i t_i / 2 + v_i |t_i| / 2, and on the unit sphere, for multipliers of each sample,

        v_i > 0:   |t_i| <= t_i^2 / (2 a_i) + a_i / 2                                     a_i > 0
        v_i < 0:   |t_i| >= k_i t_i^2 / ||u_i|| + (1 - k_i) c_i t_i                       0 <= k_i <= 1, -1 <= c_i <= 1

    so the value is at most s^T A s + b^T s + const. With x = (1, s), whose two parts have norm 1 each, that is x^T H x / 2 for
    H = [[0, b^T], [b, 2 A]], and for every number z it is at most lambda_max(H + z e_0 e_0^T) - z/2 + const. The bound holds
    for all multipliers (a, k, c, z); descent makes it small, on the smoothed eigenvalue T log tr exp(H/T) with T going to 0,
    as the largest eigenvalue is multiple at the optimum wherever the relaxation is not exact. For fixed multipliers the bound
    is linear in v as long as no v_i changes its sign: `improve_dual` descends on both.

    Rejected: the exact trust-region value in place of z (ill-conditioned in the hard case, the usual one here), and uniform
    a_i (7 to 31 % loose where these multipliers are within 1 %).

    Attributes
    ----------
    basis : (n, r+1) U'
    positive : (n,) where v_i > 0, or may become so
    """

    basis: FloatArray
    positive: BoolArray

    def bound(self, v: FloatArray, direction: FloatArray, *, steps: int = 60) -> float:
        """The bound that descent from the multipliers of a good `direction` (r+1,) reaches for v (n,), rounding included.

        The direction, best a local maximiser of v^T (U's)_+, makes the bound tight sooner; any gives a valid bound.
        """
        from scipy.optimize import minimize

        worth = float(v @ np.maximum(self.basis @ direction, 0.0))
        scale = worth if worth > 0 else float(np.linalg.norm(v))
        if scale == 0.0:
            return 0.0
        x, box = self.start(direction)
        best = np.inf
        for temperature in TEMPERATURES:
            descend = partial(self._descend, v, temperature * scale)
            options: Any = {"maxiter": steps, "maxfun": 2 * steps, "maxcor": 20, "ftol": 1e-9, "gtol": 1e-12}
            x = minimize(descend, x, method="L-BFGS-B", jac=True, bounds=box, options=options).x
            best = min(best, self.value(v, x))
            if best <= scale * (1.0 + 1e-5):
                break
        return max(0.0, best)

    def _descend(self, v: FloatArray, temperature: float, x: FloatArray) -> tuple[float, FloatArray]:
        found = self.smoothed(v, x, temperature)
        return found.value, found.by_x

    def start(self, direction: FloatArray) -> tuple[FloatArray, Bounds]:
        """The multipliers x = (log a, k, c, z) that are tight at a direction, and their bounds."""
        rising, falling = self._signs
        height = np.linalg.norm(self.basis, axis=1)
        t = self.basis @ direction
        log_a = np.log(np.maximum(np.abs(t[rising]), 0.05 * height[rising]))
        k, c = np.full(len(falling), 0.1), np.clip(3.0 * t[falling] / height[falling], -1.0, 1.0)
        lower = np.concatenate([np.log(1e-4 * height[rising]), np.zeros(len(k)), -np.ones(len(c)), [-np.inf]])
        upper = np.concatenate([np.log(height[rising]), np.ones(len(k)), np.ones(len(c)), [np.inf]])
        return np.concatenate([log_a, k, c, [0.0]]), list(zip(lower.tolist(), upper.tolist(), strict=True))

    def value(self, v: FloatArray, x: FloatArray) -> float:
        """The bound at given multipliers, plus what float64 may have lost.

        Matrix entries and constant are sums of at most n products, within (n + 2) eps of the sum of their sizes; the eigenvalue
        solver is backward stable, and the eigenvalue moves by at most the norm of the error. The factor 8 is generous.
        """
        matrix, constant, size = self._lift(v, x)
        largest = float(np.linalg.eigvalsh(matrix)[-1])
        terms = len(v) + len(matrix)
        rounding = 8.0 * terms * float(np.finfo(np.float64).eps) * (size + float(np.linalg.norm(matrix)))
        return largest + constant + rounding

    def smoothed(self, v: FloatArray, x: FloatArray, temperature: float) -> SmoothBound:
        """T log tr exp((H + z e_0 e_0^T) / T) - z/2 + const, an upper bound as well, with its gradients."""
        matrix, constant, _ = self._lift(v, x)
        a, k, c = self._split(x)
        rising, falling = self._signs
        height = np.linalg.norm(self.basis[falling], axis=1)
        values, vectors = np.linalg.eigh(matrix)
        weights = np.exp((values - values[-1]) / temperature)
        total = float(weights.sum())
        density = (vectors * (weights / total)) @ vectors.T
        t = 2.0 * self.basis @ density[1:, 0]
        square = 2.0 * np.einsum("ij,ij->i", self.basis @ density[1:, 1:], self.basis)
        by_v = 0.5 * t
        by_v[rising] += 0.25 * (square[rising] / a + a)
        by_v[falling] += 0.5 * (k * square[falling] / height + (1.0 - k) * c * t[falling])
        by_a = 0.25 * v[rising] * (a - square[rising] / a)
        by_k = 0.5 * v[falling] * (square[falling] / height - c * t[falling])
        by_c = 0.5 * v[falling] * (1.0 - k) * t[falling]
        value = float(values[-1]) + temperature * float(np.log(total)) + constant
        return SmoothBound(value, by_v, np.concatenate([by_a, by_k, by_c, [density[0, 0] - 0.5]]))

    @property
    def _signs(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        return np.flatnonzero(self.positive), np.flatnonzero(~self.positive)

    def _split(self, x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        count = int(np.count_nonzero(self.positive))
        return np.exp(x[:count]), x[count : len(self.positive)], x[len(self.positive) : -1]

    def _lift(self, v: FloatArray, x: FloatArray) -> tuple[FloatArray, float, float]:
        """H + z e_0 e_0^T, the constant less z/2, and the sum of the sizes of all terms, for the rounding."""
        rising, falling = self._signs
        a, k, c = self._split(x)
        height = np.linalg.norm(self.basis, axis=1)
        quadratic, linear = np.empty(len(v)), 0.5 * v
        quadratic[rising] = v[rising] / (4.0 * a)
        quadratic[falling] = v[falling] * k / (2.0 * height[falling])
        linear[falling] += 0.5 * v[falling] * (1.0 - k) * c
        width = self.basis.shape[1]
        matrix = np.empty((width + 1, width + 1))
        matrix[0, 0] = x[-1]
        matrix[0, 1:] = matrix[1:, 0] = self.basis.T @ linear
        matrix[1:, 1:] = 2.0 * (self.basis * quadratic[:, None]).T @ self.basis
        shift = 0.25 * float(v[rising] @ a)
        size = float(np.abs(linear) @ height + 2.0 * np.abs(quadratic) @ height**2) + shift + abs(float(x[-1]))
        return matrix, shift - 0.5 * float(x[-1]), size
