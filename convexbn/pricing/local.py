"""Local search for the hardest neuron: lower bounds on h(V), over all arrangements."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from convexbn.threads import side_by_side
from convexbn.validation import FloatArray

SINGLE: str = "float32"
NUMBERS = 2**24  # in memory at a time
# Widths of the kinks in a search, of 1 / sqrt(n), the root mean square of an entry of U's.
WIDTHS = (1.0, 0.5, 0.2, 0.1, 0.03, 0.0)
SHARP = (0.0,)
# Kinks of a search in stages. With more than FEW columns, steps between them have to be smaller, or searches jam.
WIDE, CLOSE, HALF = (1.0, 0.5, 0.2), (0.1, 0.03, 0.0), 2
WIDE_FINER, CLOSE_FINER, FEW = (1.0, 0.7, 0.5, 0.3, 0.2), (0.1, 0.05, 0.03, 0.0), 32
MOMENTUM, GROWTH, SHRINK = 0.5, 1.2, 0.5  # of the steps
SHARE = 4  # products with directions that two threads are worth, as many as a basis of four times as many entries
BLOCK = 262_144  # products of rows with directions at a time: they stay in the cache


def random_directions(count: int, width: int, seed: tuple[int, ...]) -> FloatArray:
    """Independent uniform directions, shape (count, width); a pure function of the seed."""
    return normalised(np.random.default_rng(seed).standard_normal((count, width)))


def directions_around(centres: FloatArray, each: int, distances: tuple[float, ...], seed: tuple[int, ...]) -> FloatArray:
    """Unit directions around unit centres (m, width), `each` of them around each, at these distances in turn; shape (m each, width)."""
    centres = np.repeat(centres, each, axis=0)
    lengths = np.resize(distances, len(centres))[:, None]
    return normalised(centres + lengths * random_directions(len(centres), centres.shape[1], seed))


def directions_near(neurons: FloatArray, count: int, distances: tuple[float, ...], seed: tuple[int, ...]) -> FloatArray:
    """Unit directions (count, width) at these distances from random unit neurons (m, width); none without neurons."""
    chosen = np.random.default_rng(seed).integers(max(1, len(neurons)), size=min(count, count * len(neurons)))
    return directions_around(neurons[chosen], 1, distances, seed)


def directions_between(neurons: FloatArray, basis: FloatArray, count: int, seed: tuple[int, ...]) -> FloatArray:
    """Unit directions (count, r+1) half-way between random unit neurons (m, r+1) and random rows of the basis, of either sign.

    Once most neurons are found, the rest lie between them and samples that they neglect: at n = 2000, r = 50 and a gap of 1e-3
    searches found twice as many from there as from random directions. Far from the optimum it makes no difference.
    """
    generator = np.random.default_rng(seed)
    rows = normalised(basis[generator.integers(len(basis), size=count)]) * generator.choice([-1.0, 1.0], size=(count, 1))
    return normalised(rows + neurons[generator.integers(len(neurons), size=count)]) if len(neurons) else normalised(rows)


def normalised(rows: FloatArray) -> FloatArray:
    """The rows divided by their norms; rows of zeros stay."""
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    scaled: FloatArray = rows / np.where(length > 0, length, 1.0)
    return scaled


def worths_of(basis: FloatArray, v: FloatArray, directions: FloatArray) -> FloatArray:
    """h of each direction (N, r+1), shape (N,), for V (n, C)."""
    parts = np.array_split(directions, 1 + directions.shape[0] * len(basis) // NUMBERS)
    worths: FloatArray = np.concatenate([np.linalg.norm(v.T @ np.maximum(basis @ part.T, 0.0), axis=0) for part in parts])
    return worths


def distinct(units: FloatArray, worths: FloatArray, *, cosine: float, most: int, threshold: float = 0.0) -> list[int]:
    """Indices of the best unit rows whose worth is above the threshold, no two with a cosine of `cosine` or more."""
    order = np.argsort(-worths, kind="stable")
    order = order[worths[order] > threshold]
    chosen: list[int] = []
    units_chosen = np.empty((min(most, len(order)), units.shape[1]))
    for j in order:
        if len(chosen) == most:
            break
        if not chosen or float(np.max(units_chosen[: len(chosen)] @ units[j])) < cosine:
            units_chosen[len(chosen)] = units[j]
            chosen.append(int(j))
    return chosen


def local_search(
    basis: FloatArray, v: FloatArray, starts: FloatArray, *, widths: tuple[float, ...] = WIDTHS, steps: int = 8
) -> tuple[FloatArray, FloatArray]:
    """Ascend h(s) = ||V^T (U's)_+|| on the unit sphere from many starts at once; every value is a lower bound on h(V).

    The step is s <- normalise((1 - a) s + a g) with g the normalised gradient U'^T D(s) V u, u = V^T (U's)_+ / ||.||: with
    a = 1 the power method, exact inside a cell. A step is kept only if it ascends, else a shrinks for that start: local
    maxima lie on hyperplanes u_i^T s = 0 as often as inside cells, and there full steps overshoot.

    On sharp kinks they jam, at the first of many such hyperplanes: so the kinks are rounded at first, over |t| <= width / sqrt(n),
    and sharpened in stages. At n = 2000, r = 50 half of 256 random starts end above 0.997 beta, and above 0.952 beta without that.
    Narrow maxima are lost so, and on few samples they may be the highest: search with `widths=SHARP` too.

    Parameters
    ----------
    basis : (n, r+1) U'
    v : (n, C) the dual point V
    starts : (N, r+1) directions
    widths : of the kinks, one after the other
    steps : at each width; two matrix products of the size of U' S each

    Returns
    -------
    directions (N, r+1) of norm 1, and their worths h (N,)
    """
    starts = normalised(starts)
    block = max(16, BLOCK // len(basis))
    with side_by_side(SHARE * len(basis) * len(starts)) as mapped:
        parts = list(mapped(lambda k: _ascend(basis, v, starts[k : k + block], widths, steps), range(0, len(starts), block)))
    if not parts:
        return starts, np.zeros(0)
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _ascend(
    basis: FloatArray, v: FloatArray, directions: FloatArray, widths: tuple[float, ...], steps: int
) -> tuple[FloatArray, FloatArray]:
    """`local_search` for so few unit directions that their products with the basis stay in the cache."""
    look = _RoundedPrice(basis, v, len(directions))
    step = np.ones((len(directions), 1), basis.dtype)
    for width in widths:
        worths, uphill = look(directions, width)
        drift = np.zeros_like(directions)
        for _ in range(steps):
            trial = normalised(directions + step * (uphill - directions) + MOMENTUM * drift)
            trial_worths, trial_uphill = look(trial, width)
            gains = trial_worths - worths
            better = (gains > 0)[:, None]
            drift = np.where(better, trial - directions, basis.dtype.type(0.0))
            directions, uphill = np.where(better, trial, directions), np.where(better, trial_uphill, uphill)
            worths = np.maximum(trial_worths, worths)
            step = np.where(better, np.minimum(1.0, GROWTH * step), SHRINK * step)
            if float(step.max(initial=0.0)) < 1e-3 and float(gains.max(initial=0.0)) <= 1e-9 * float(worths.max(initial=0.0)):
                break
    return directions, worths


class _RoundedPrice:
    """h of `count` unit directions, with kinks of a width, and its unit gradients.

    The ReLU rounded over |t| <= mu is  rho(t) = a (t + mu (1 - a)) = 2 mu a (z - a/2),  z = t/(2 mu) + 1/2, its slope a = z between 0
    and 1. With one output sum_i v_i a_i t_i is the product of the direction with the gradient, so that rho itself is never formed.
    """

    def __init__(self, basis: FloatArray, v: FloatArray, count: int) -> None:
        self.v, self.single, self.number = v, v.shape[1] == 1, basis.dtype.type
        # With a column of ones the product with the basis is z.
        self.transposed = np.concatenate([basis.T, np.ones((1, len(basis)), basis.dtype)])
        self.weighted = np.concatenate([v * basis, v], axis=1) if self.single else basis
        self.inputs = np.full((count, basis.shape[1] + 1), 0.5, basis.dtype)
        self.inner, self.slope, self.scratch = (np.empty((count, len(basis)), basis.dtype) for _ in range(3))

    def __call__(self, directions: FloatArray, width: float) -> tuple[FloatArray, FloatArray]:
        """Shapes (count,) and (count, r+1)."""
        bend = self.number(width / np.sqrt(len(self.v)))
        if width:
            np.multiply(directions, self.number(0.5) / bend, out=self.inputs[:, :-1])
            np.matmul(self.inputs, self.transposed, out=self.inner)
            np.clip(self.inner, 0.0, 1.0, out=self.slope)
        else:
            np.matmul(directions, self.transposed[:-1], out=self.inner)
            np.greater(self.inner, 0.0, out=self.slope)
        values, gradients = self.one(directions, bend) if self.single else self.several(bend)
        return values, normalised(gradients)

    def one(self, directions: FloatArray, bend: np.floating) -> tuple[FloatArray, FloatArray]:
        """|V^T rho| and its gradient."""
        pull = self.slope @ self.weighted
        values = np.einsum("ij,ij->i", directions, pull[:, :-1])
        if bend:
            np.multiply(self.slope, self.slope, out=self.scratch)
            values += bend * (pull[:, -1] - (self.scratch @ self.v)[:, 0])
        return np.abs(values), np.sign(values)[:, None] * pull[:, :-1]

    def several(self, bend: np.floating) -> tuple[FloatArray, FloatArray]:
        """||V^T rho|| and its gradient."""
        if bend:
            np.multiply(self.slope, 0.5, out=self.scratch)
            np.subtract(self.inner, self.scratch, out=self.inner)
            np.multiply(self.inner, self.slope, out=self.inner)
        else:
            np.maximum(self.inner, 0.0, out=self.inner)
        values = self.inner @ self.v
        if bend:
            values *= 2.0 * bend
        worths = np.linalg.norm(values, axis=1)
        np.matmul(values / np.where(worths > 0, worths, 1.0)[:, None], self.v.T, out=self.scratch)
        np.multiply(self.scratch, self.slope, out=self.scratch)
        return worths, self.scratch @ self.weighted


class LocalSearch(Protocol):
    """From V (n, C) and starts (N, r+1) to local maxima of h, all in float64 outside."""

    def __call__(self, v: FloatArray, starts: FloatArray, widths: tuple[float, ...]) -> FloatArray:
        """Unit directions, in the order of the starts."""
        ...


class OnCPU:
    """`local_search` in single precision, which is enough, as finds are priced again."""

    def __init__(self, basis: FloatArray) -> None:
        self.basis = basis.astype(SINGLE)

    def __call__(self, v: FloatArray, starts: FloatArray, widths: tuple[float, ...]) -> FloatArray:
        """Unit directions, in the order of the starts."""
        v = (v / (np.max(np.abs(v), initial=0.0) or 1.0)).astype(SINGLE)
        return local_search(self.basis, v, starts.astype(SINGLE), widths=widths)[0].astype(np.float64)


def search_in_stages(local: LocalSearch, basis: FloatArray, v: FloatArray, starts: FloatArray) -> FloatArray:
    """The unit directions where searches end, on kinks ever sharper; of those on wide kinks the half with the lower h is given up.

    For h there tells already where it ends high. `starts` (N, r+1), the result (N/2, r+1), rounded up.
    """
    wide, close = (WIDE, CLOSE) if basis.shape[1] <= FEW else (WIDE_FINER, CLOSE_FINER)
    ends = local(v, starts, wide)
    promising = np.argsort(-worths_of(basis, v, ends), kind="stable")[: -(-len(ends) // HALF)]
    return local(v, ends[promising], close)


def evolve(
    basis: FloatArray, v: FloatArray, starts: FloatArray, *, seed: tuple[int, ...], children: int, generations: int
) -> tuple[FloatArray, FloatArray]:
    """Local search on sharp kinks, then `generations` times from between and around the best found: high local maxima are neighbours.

    It finds narrow maxima, which the rounded kinks of `local_search` pass over. Returns all directions found, with their worths.
    """
    directions, worths = local_search(basis, v, starts, widths=SHARP, steps=24)
    for generation in range(generations):
        generator = np.random.default_rng((*seed, generation))
        parents = directions[np.argsort(-worths)[: max(8, children // 8)]]
        one, other = parents[generator.integers(len(parents), size=(2, children))]
        nearby = normalised(generator.standard_normal(one.shape))
        mixed = np.arange(children)[:, None] % 2 == 0
        found = local_search(basis, v, one + np.where(mixed, other, 0.5 * nearby), widths=SHARP, steps=24)
        directions, worths = np.concatenate([directions, found[0]]), np.concatenate([worths, found[1]])
    return directions, worths
