"""Local search for the hardest neuron: lower bounds on h(V), over all arrangements."""

from __future__ import annotations

import numpy as np

from convexbn.pricing.cells import sifted_multipliers
from convexbn.validation import FloatArray


def random_directions(count: int, width: int, seed: tuple[int, ...]) -> FloatArray:
    """Independent uniform directions, shape (count, width); a pure function of the seed."""
    return normalised(np.random.default_rng(seed).standard_normal((count, width)))


def normalised(rows: FloatArray) -> FloatArray:
    """The rows divided by their norms; rows of zeros stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: FloatArray = rows / np.where(length > 0, length, 1.0)
    return scaled


def distinct(units: FloatArray, worths: FloatArray, *, cosine: float, most: int, threshold: float = 0.0) -> list[int]:
    """Indices of the best unit rows whose worth is above the threshold, no two with a cosine of `cosine` or more."""
    chosen: list[int] = []
    for j in np.argsort(-worths):
        if worths[j] <= threshold or len(chosen) >= most:
            break
        if not chosen or float(np.max(units[chosen] @ units[j])) < cosine:
            chosen.append(int(j))
    return chosen


def local_search(basis: FloatArray, v: FloatArray, starts: FloatArray, *, steps: int = 25) -> tuple[FloatArray, FloatArray]:
    """Ascend h(s) = ||V^T (U's)_+|| on the unit sphere from many starts at once; every value is a lower bound on h(V).

    The step is s <- normalise((1 - a) s + a g) with g the normalised gradient U'^T D(s) V u, u = V^T (U's)_+ / ||.||: with
    a = 1 the power method, exact inside a cell. A step is kept only if it ascends, else a shrinks for that start: local
    maxima lie on hyperplanes u_i^T s = 0 as often as inside cells, and there full steps overshoot.

    Parameters
    ----------
    basis : (n, r+1) U'
    v : (n, C) the dual point V
    starts : (N, r+1) directions
    steps : two matrix products of the size of U' S each

    Returns
    -------
    directions (N, r+1) of norm 1, and their worths h (N,)
    """

    def worth(directions: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        active = np.maximum(basis @ directions.T, 0.0)
        values = v.T @ active
        return active, values, np.linalg.norm(values, axis=0)

    directions = normalised(starts)
    step = np.ones(len(directions))
    active, values, worths = worth(directions)
    for _ in range(steps):
        pull = (v @ (values / np.where(worths > 0, worths, 1.0))) * (active > 0)
        trial = normalised((1.0 - step)[:, None] * directions + step[:, None] * normalised(pull.T @ basis))
        trial_active, trial_values, trial_worths = worth(trial)
        better = trial_worths > worths
        gain = float(np.max(np.where(better, trial_worths - worths, 0.0), initial=0.0))
        directions = np.where(better[:, None], trial, directions)
        active, values = np.where(better, trial_active, active), np.where(better, trial_values, values)
        worths = np.where(better, trial_worths, worths)
        step = np.where(better, np.minimum(1.0, 1.5 * step), 0.3 * step)
        if gain <= 1e-9 * float(np.max(worths, initial=0.0)) and float(np.max(step, initial=0.0)) < 1e-3:
            break
    return directions, worths


def evolve(
    basis: FloatArray, v: FloatArray, starts: FloatArray, *, seed: tuple[int, ...], children: int, generations: int
) -> tuple[FloatArray, FloatArray]:
    """Local search, then `generations` times from between and around the best found: high local maxima lie near each other.

    With n = 2000 and r = 50, 512 such starts find what 4096 random ones miss. Returns all directions found, with their worths.
    """
    directions, worths = local_search(basis, v, starts)
    for generation in range(generations):
        generator = np.random.default_rng((*seed, generation))
        parents = directions[np.argsort(-worths)[: max(8, children // 8)]]
        one, other = parents[generator.integers(len(parents), size=(2, children))]
        nearby = normalised(generator.standard_normal(one.shape))
        mixed = np.arange(children)[:, None] % 2 == 0
        found = local_search(basis, v, one + np.where(mixed, other, 0.5 * nearby))
        directions, worths = np.concatenate([directions, found[0]]), np.concatenate([worths, found[1]])
    return directions, worths


def climb(basis: FloatArray, v: FloatArray, direction: FloatArray, *, cells: int = 20) -> FloatArray:
    """Walk from cell to cell to a direction that is maximal in its own cell and across every facet that it touches.

    In a cell the maximum of (V u)^T D U's over ||s|| <= 1, u fixed, is a projection on a cone: non-negative least squares with
    multipliers l of the facets. A touched facet i is worth crossing where l_i + (V u)_i > 0. Gradient steps jam at such ridges,
    up to 1e-4 below the top.

    Parameters
    ----------
    basis : (n, r+1) U'
    v : (n, C) the dual point V
    direction : (r+1,), best from `local_search`
    cells : at most so many are visited
    """

    def worth(s: FloatArray) -> FloatArray:
        values: FloatArray = v.T @ np.maximum(basis @ s, 0.0)
        return values

    best, sizes = direction, np.linalg.norm(basis, axis=1)
    active = basis @ best >= 0
    for _ in range(cells):
        values = worth(best)
        pull = v @ (values / (np.linalg.norm(values) or 1.0))
        cone = np.where(active, 1.0, -1.0)[:, None] * basis
        centre = basis.T @ (active * pull)
        rows, multipliers = sifted_multipliers(cone, sizes, centre, 0.0, 0.0)
        top = normalised((centre + multipliers @ cone[rows])[None])[0]
        if np.linalg.norm(worth(top)) > np.linalg.norm(worth(best)):
            best = top
        gain = multipliers + pull[rows]
        if np.max(gain, initial=0.0) <= 1e-9 * np.linalg.norm(pull):
            break
        crossed = rows[np.argmax(gain)]
        active = active.copy()
        active[crossed] = ~active[crossed]
    return best
