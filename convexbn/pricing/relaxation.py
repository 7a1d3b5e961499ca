"""A proof over all arrangements in polynomial time: an upper bound on h(V) by a relaxation with multipliers for each sample."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from convexbn.pricing.cells import trivial_bound
from convexbn.threads import LARGE
from convexbn.validation import AnyFloats, BoolArray, FloatArray
from convexbn.whitening import powers_of_two

# Temperatures of the smoothed largest eigenvalue, as fractions of the local maximum of h.
TEMPERATURES = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
STEPS, STEPS_OF_LARGE = 60, 30  # of descent at each
WORTHWHILE = 0.01  # for a large basis the next temperature has to promise more
ROWS = 4_096  # of a basis at a time, which stay in the cache between the two products that read them


def stop_at(deadline: float) -> Any:
    """A callback that ends a minimisation by scipy where `time.perf_counter` is past the deadline, with the best point so far."""

    def stop(xk: FloatArray) -> None:
        if time.perf_counter() > deadline:
            raise StopIteration

    return stop


class SmoothBound(NamedTuple):
    """A smoothed bound with its gradients in the dual point v and in the multipliers x, and the density of (1, s) that attains it."""

    value: float
    by_v: FloatArray
    by_x: FloatArray
    density: FloatArray


@dataclass(frozen=True)
class Region:
    """The part { s : q_k^T s >= o_k for every k } of the unit sphere.

    Attributes
    ----------
    normals : (K, r+1) the q_k, of norm 1
    offsets : (K,) the o_k
    """

    normals: FloatArray
    offsets: FloatArray

    @classmethod
    def whole(cls, width: int) -> Region:
        """The whole sphere in R^width."""
        return cls(np.zeros((0, width)), np.zeros(0))

    def split(self, normal: FloatArray, offset: float) -> tuple[Region, Region]:
        """The parts on both sides of the hyperplane normal^T s = offset."""
        both = ((sign * normal, sign * offset) for sign in (1.0, -1.0))
        one, other = (Region(np.vstack([self.normals, q]), np.append(self.offsets, o)) for q, o in both)
        return one, other

    def reach(self, rows: FloatArray) -> FloatArray:
        """An upper bound on u^T s over the region for each row u, shape (n,): the least that a single cut gives.

        Over the unit ball and q^T s >= o the maximum is ||u|| where u / ||u|| satisfies the cut, and else lies on its rim.
        """
        height = np.linalg.norm(rows, axis=1)
        reach: FloatArray = height
        for q, o in zip(self.normals, self.offsets, strict=True):
            along = rows @ q
            across = np.linalg.norm(rows - np.outer(along, q), axis=1)  # not from ||u||^2 - along^2, which cancels
            rim = o * along + np.sqrt(max(0.0, 1.0 - o**2) + 1e-15) * across
            reach = np.where(along >= o * height, reach, np.minimum(reach, rim))
        return np.asarray(reach + 1e-12 * height)


@dataclass(frozen=True)
class Relaxation:
    """An upper bound on max over ||s|| = 1 of v^T (t)_+ with t = U's, for any number of samples and features.

    v_i (t_i)_+ = v_i t_i / 2 + v_i |t_i| / 2, and on the unit sphere, for multipliers of each sample,

        v_i > 0:   |t_i| <= t_i^2 / (2 a_i) + a_i / 2                                     a_i > 0
        v_i < 0:   |t_i| >= k_i t_i g_i^T s + (1 - k_i) c_i t_i                           0 <= k_i <= 1, -1 <= c_i <= 1

    with slants g_i, |g_i^T s| <= 1, so the value is at most s^T A s + b^T s + const. With x = (1, s), whose two parts have
    norm 1 each, that is x^T H x / 2 for H = [[0, b^T], [b, 2 A]], and for every number z it is at most
    lambda_max(H + z e_0 e_0^T) - z/2 + const. The bound holds for all multipliers (a, k, c, z), of which a sample uses those of
    its sign; descent makes it small, on the smoothed eigenvalue T log tr exp(H/T) with T going to 0, as the largest eigenvalue is
    multiple at the optimum wherever the relaxation is not exact. For fixed multipliers the bound is convex in v, with kinks where
    a v_i changes its sign: `improve_dual` descends on both.

    Any g_i of norm 1 will do, best S u_i / ||S u_i|| for S = E s s^T of the measure where the bound is attained: no other
    lower bound on E |t_i| by S alone is above ||S u_i||. Without it g_i = u_i / h_i, h_i >= |t_i|, in general ||u_i||.

    In a region of the sphere each t_i has a range: h_i falls, and where the sign of t_i is known its term is exact. The cuts
    q_k^T s >= o_k enter by themselves and as products of pairs, with multipliers l >= 0.

    Rejected: the exact trust-region value in place of z (ill-conditioned in the hard case, the usual one here), and uniform
    a_i (7 to 31 % loose where these multipliers are within 1 %).

    Attributes
    ----------
    basis : (n, r+1) U'
    region : the part of the sphere; None stands for all of it
    toward : (n, r+1) vectors along the g_i, of any length; None stands for the rows of the basis, divided by h_i
    """

    basis: FloatArray
    region: Region | None = None
    toward: FloatArray | None = None

    def bound(
        self, v: FloatArray, direction: FloatArray, *, steps: int | None = None, enough: float = 0.0, seconds: float = np.inf
    ) -> float:
        """The bound that descent from the multipliers of a good `direction` (r+1,) reaches for v (n,), rounding included.

        The direction, best a local maximiser of v^T (U's)_+, makes the bound tight sooner; any gives a valid bound. Descent ends
        where the bound is at most `enough`, or no more than 1e-5 above what the direction attains, or after `steps` at each
        temperature, by default 60; for a large basis 30, and only as long as they gain a percent; or after so many
        `seconds`. Never above ||(v)_+||, as ||(U's)_+|| <= 1.
        """
        deadline = time.perf_counter() + seconds
        size = float(np.max(np.abs(v), initial=0.0))
        if size == 0.0:
            return 0.0
        unit = float(powers_of_two(size))  # multipliers have units: descent goes the same way in every unit of v
        steps = steps or (STEPS_OF_LARGE if self.basis.size >= LARGE else STEPS)
        return unit * self._bound_of_unit_size(v / unit, direction, steps, enough / unit, deadline)

    def _bound_of_unit_size(self, v: FloatArray, direction: FloatArray, steps: int, enough: float, deadline: float) -> float:
        worth = float(v @ np.maximum(self.basis @ direction, 0.0))
        scale = worth if worth > 0 else float(np.linalg.norm(v))
        slanted, x = self, self.start(direction)
        best = np.inf
        for temperature in TEMPERATURES:
            if time.perf_counter() > deadline:
                break
            x = slanted.descend(v, x, temperature, scale, steps, deadline)
            before, best = best, min(best, slanted.value(v, x))
            slow = self.basis.size >= LARGE and before - best < WORTHWHILE * best
            if slow or best <= max(enough, scale * (1.0 + 1e-5)):
                break
            if self.region is None:
                slanted = replace(self, toward=self.basis @ slanted.smoothed(v, x, temperature * scale).density[1:, 1:])
        return max(0.0, min(best, trivial_bound(v)))

    def descend(self, v: FloatArray, x: FloatArray, temperature: float, scale: float, steps: int, deadline: float = np.inf) -> FloatArray:
        """Better multipliers by L-BFGS on the bound smoothed at `temperature` times `scale`, a number of the size of the bound."""
        from scipy.optimize import minimize

        def objective(x: FloatArray) -> tuple[float, FloatArray]:
            smooth = self.smoothed(v, x, temperature * scale)
            return smooth.value, smooth.by_x

        options: Any = {"maxiter": steps, "maxfun": 2 * steps, "maxcor": 20, "ftol": 1e-9, "gtol": 1e-12}
        found = minimize(objective, x, method="L-BFGS-B", jac=True, bounds=self.limits, options=options, callback=stop_at(deadline))
        better: FloatArray = found.x
        return better

    def start(self, direction: FloatArray) -> FloatArray:
        """The multipliers x = (log a, k, c, z, l) that are tight at a direction."""
        n, height = len(self.basis), self.height
        t = self.basis @ direction
        a = np.log(np.clip(np.abs(t), 0.05 * height, height))
        return np.concatenate([a, np.full(n, 0.1), np.clip(3.0 * t / height, -1.0, 1.0), [0.0], np.zeros(len(self._cuts))])

    @cached_property
    def limits(self) -> Any:
        """The bounds of the multipliers."""
        from scipy.optimize import Bounds

        n, cuts, height = len(self.basis), len(self._cuts), self.height
        lower = np.concatenate([np.log(1e-4 * height), np.zeros(n), -np.ones(n), [-np.inf], np.zeros(cuts)])
        return Bounds(lower, np.concatenate([np.log(height), np.ones(2 * n), np.full(1 + cuts, np.inf)]))

    def value(self, v: FloatArray, x: FloatArray) -> float:
        """The bound at given multipliers, plus what float64 may have lost.

        Matrix entries and constant are sums of at most n products, within (n + 2) eps of the sum of their sizes; the eigenvalue
        solver is backward stable, and the eigenvalue moves by at most the norm of the error. The factor 8 is generous.
        """
        matrix, constant, size = self._lift(self.basis, self._slants, v, x)
        largest = float(np.linalg.eigvalsh(matrix)[-1])
        terms = len(v) + len(matrix) + len(self._cuts)
        rounding = 8.0 * terms * float(np.finfo(np.float64).eps) * (size + float(np.linalg.norm(matrix)))
        return largest + constant + rounding

    def shifted(self, v: FloatArray, x: FloatArray) -> FloatArray:
        """The multipliers x with the best z for the others: the bound is convex in it, and at its least |z| <= 3 ||H||."""
        from scipy.optimize import minimize_scalar

        matrix = self._lift(self.basis, self._slants, v, np.where(np.arange(len(x)) == 3 * len(v), 0.0, x))[0]
        corner = np.zeros_like(matrix)
        corner[0, 0] = 1.0
        limit = 3.0 * float(np.linalg.norm(matrix, 2))

        def bound(z: float) -> float:
            return float(np.linalg.eigvalsh(matrix + z * corner)[-1]) - 0.5 * z

        better = x.copy()
        if limit > 0:
            better[3 * len(v)] = minimize_scalar(bound, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-7 * limit}).x
        return better

    def smoothed(self, v: FloatArray, x: FloatArray, temperature: float) -> SmoothBound:
        """T log tr exp((H + z e_0 e_0^T) / T) - z/2 + const, an upper bound as well, with its gradients."""
        matrix, constant, _ = self._lift(self._rough, self._rough_slants, v, x)
        a, k, c = self._split(x)
        rising = (v > 0) & self._open
        falling = (v <= 0) & self._open
        values, vectors = np.linalg.eigh(matrix)
        weights = np.exp((values - values[-1]) / temperature)
        total = float(weights.sum())
        density = (vectors * (weights / total)) @ vectors.T
        t, (square, slanted) = 2.0 * self.basis @ density[1:, 0], 2.0 * _forms(self._rough, self._rough_slants, density[1:, 1:])
        bent = np.where(falling, 0.5 * (k * slanted + (1.0 - k) * c * t), 0.5 * self._sign * t)
        by_v = 0.5 * t + np.where(rising, 0.25 * (square / a + a), bent)
        by_a = np.where(rising, 0.25 * v * (a - square / a), 0.0)
        by_k = np.where(falling, 0.5 * v * (slanted - c * t), 0.0)
        by_c = np.where(falling, 0.5 * v * (1.0 - k) * t, 0.0)
        by_cuts = np.einsum("kij,ij->k", self._cuts, density)
        value = float(values[-1]) + temperature * float(np.log(total)) + constant
        return SmoothBound(value, by_v, np.concatenate([by_a, by_k, by_c, [density[0, 0] - 0.5], by_cuts]), density)

    @cached_property
    def _rough(self) -> AnyFloats:
        """U' in float32 where it is large: good enough for descent; a bound is always evaluated in float64."""
        return self.basis.astype(np.float32) if self.basis.size >= LARGE else self.basis

    @cached_property
    def _slants(self) -> FloatArray:
        """The g_i, (n, r+1)."""
        if self.toward is None:
            return self.basis / np.maximum(self.height, 1e-300)[:, None]
        toward = self.toward.astype(np.float64)
        return np.asarray(toward / np.maximum(np.linalg.norm(toward, axis=1), 1e-300)[:, None])

    @cached_property
    def _rough_slants(self) -> AnyFloats:
        return self._slants.astype(self._rough.dtype)

    @cached_property
    def _lengths(self) -> FloatArray:
        return np.asarray(np.linalg.norm(self.basis, axis=1))

    @cached_property
    def _range(self) -> tuple[FloatArray, FloatArray]:
        """The least and the largest t_i in the region, or beyond them."""
        if self.region is None:
            return -self._lengths, self._lengths
        return -self.region.reach(-self.basis), self.region.reach(self.basis)

    @cached_property
    def height(self) -> FloatArray:
        """h_i >= |t_i|, shape (n,)."""
        low, high = self._range
        return np.asarray(np.maximum(np.maximum(-low, high), 1e-3 * self._lengths))

    @cached_property
    def _sign(self) -> FloatArray:
        """The sign of t_i where the region leaves no other, else 0."""
        low, high = self._range
        return np.where(low >= 0, 1.0, np.where(high <= 0, -1.0, 0.0))

    @cached_property
    def _open(self) -> BoolArray:
        return np.asarray(self._sign == 0.0)

    @cached_property
    def _cuts(self) -> FloatArray:
        """(K (K+1) / 2, r+2, r+2) matrices C with x^T C x >= 0 in the region: the cuts, and the products of two of them."""
        width = self.basis.shape[1] + 1
        if self.region is None:
            return np.zeros((0, width, width))
        rows = np.column_stack([-self.region.offsets, self.region.normals])
        first = np.eye(1, width)[0]
        pairs = [(rows[i], other) for i in range(len(rows)) for other in (first, *rows[:i])]
        return np.array([np.outer(p, q) + np.outer(q, p) for p, q in pairs]).reshape(-1, width, width)

    def _split(self, x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        n = len(self.basis)
        return np.exp(x[:n]), x[n : 2 * n], x[2 * n : 3 * n]

    def _lift(self, basis: AnyFloats, slants: AnyFloats, v: FloatArray, x: FloatArray) -> tuple[FloatArray, float, float]:
        """H + z e_0 e_0^T + sum_k l_k C_k, the constant less z/2, and the sum of the sizes of all terms, for the rounding.

        `basis` is U', or U' in float32 for descent, and the slants as well.
        """
        a, k, c = self._split(x)
        rising = (v > 0) & self._open
        falling = (v <= 0) & self._open
        convex, concave = np.where(rising, v / (4.0 * a), 0.0), np.where(falling, 0.5 * v * k, 0.0)
        linear = 0.5 * v * (1.0 + np.where(falling, (1.0 - k) * c, self._sign))
        width, z, multipliers = self.basis.shape[1], float(x[3 * len(v)]), x[3 * len(v) + 1 :]
        matrix = np.empty((width + 1, width + 1))
        matrix[0, 0] = z
        matrix[0, 1:] = matrix[1:, 0] = self.basis.T @ linear
        matrix[1:, 1:] = _weighted_gram(basis, slants, 2.0 * convex, 2.0 * concave)
        matrix += np.einsum("k,kij->ij", multipliers, self._cuts)
        shift = 0.25 * float(np.where(rising, v, 0.0) @ a)
        length = self._lengths
        sizes = np.abs(linear) + 2.0 * convex * length - 2.0 * concave * np.linalg.norm(self._slants, axis=1)
        return matrix, shift - 0.5 * z, float(sizes @ length) + shift + abs(z) + 8.0 * float(np.sum(multipliers))


def _weighted_gram(basis: AnyFloats, slants: AnyFloats, weights: FloatArray, slanting: FloatArray) -> FloatArray:
    """sum_i weights_i u_i u_i^T + slanting_i (u_i g_i^T + g_i u_i^T) / 2."""
    total = np.zeros((basis.shape[1], basis.shape[1]))
    straight, slanted = weights.astype(basis.dtype)[:, None], slanting.astype(basis.dtype)[:, None]
    for block in _blocks(len(basis)):
        total += (basis[block] * straight[block] + slants[block] * slanted[block]).T @ basis[block]
    return np.asarray(0.5 * (total + total.T))


def _forms(basis: AnyFloats, slants: AnyFloats, matrix: FloatArray) -> FloatArray:
    """u_i^T matrix u_i and u_i^T matrix g_i for each row, (2, n), with a symmetric matrix."""
    narrow = matrix.astype(basis.dtype)
    both = []
    for block in _blocks(len(basis)):
        turned = basis[block] @ narrow
        both.append([np.einsum("ij,ij->i", turned, basis[block]), np.einsum("ij,ij->i", turned, slants[block])])
    return np.concatenate(both, axis=1).astype(np.float64)


def _blocks(rows: int) -> list[slice]:
    return [slice(first, first + ROWS) for first in range(0, rows, ROWS)]
