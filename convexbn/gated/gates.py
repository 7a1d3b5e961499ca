"""The gates of the gated model: given, or drawn so that no pattern repeats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convexbn.solvers.masked import gated_patterns
from convexbn.validation import FloatArray, InputError, check_count, real_array
from convexbn.whitening import Whitening

MOST_LEAN = 4.0  # gates that lean further see nothing but a direction or two
GLANCE = 4096  # rows
BLIND = 1e-9  # of a filter's length: what less of it sees is rounding
DRAWS = 20  # times as many gates are drawn at most, where patterns repeat


@dataclass(frozen=True, eq=False)
class LocalGates:
    """Gates that look at a square window of an image each: so many, to be drawn by `fit_gated_bn(gates=LocalGates(...))`.

    With a `lean` of 0, g = V^T f for a filter f of Gaussian noise in a window that is placed at random, 0 outside. As U = Pi X V Sigma^{-1}
    the gate opens where f^T V Sigma^{-1} V^T (x - mean) >= 0: the filter's sign on the image with its kept directions whitened (and
    turned back: ZCA), after the scale of X where columns have scales of their own. No intercept is drawn, so about half of the samples
    pass. Gaussian gates are filters of noise on the whole image. Windows that see no direction have no gate.

    Attributes
    ----------
    count : how many
    shape : (c, h, w) of the images
    window : side of the windows in pixels, at most min(h, w)
    projection : (d, c h w) with orthonormal rows, where the columns of X are coordinates `projection @ image`; None where they are pixels
    """

    count: int
    shape: tuple[int, int, int]
    window: int
    projection: npt.ArrayLike | None = None

    def __post_init__(self) -> None:
        check_count(self.count, "count")
        if not (isinstance(self.shape, tuple) and len(self.shape) == 3):
            raise InputError(f"shape = {self.shape!r} can't be used: pass (channels, height, width)")
        for side in self.shape:
            check_count(side, "shape")
        if check_count(self.window, "window") > min(self.shape[1:]):
            raise InputError(f"window = {self.window} is larger than images of shape {self.shape}: choose one that fits inside")
        if self.projection is not None:
            rows, pixels = real_array(self.projection, "projection"), int(np.prod(self.shape))
            if rows.ndim != 2 or rows.shape[1] != pixels:
                raise InputError(f"projection has shape {rows.shape}: pass a column for each of the {pixels} pixels")
            object.__setattr__(self, "projection", rows)

    @property
    def columns(self) -> int:
        """d, how many columns of X the gates are for."""
        return int(np.prod(self.shape)) if self.projection is None else len(np.asarray(self.projection))

    def filters(self, count: int, generator: np.random.Generator) -> FloatArray:
        """(count, d) filters, as weights on the columns of X."""
        channels, height, width = self.shape
        images = np.zeros((count, *self.shape))
        tops, lefts = (generator.integers(side - self.window + 1, size=count) for side in (height, width))
        noise = generator.standard_normal((count, channels, self.window, self.window))
        for image, top, left, values in zip(images, tops, lefts, noise, strict=True):
            image[:, top : top + self.window, left : left + self.window] = values
        flat = images.reshape(count, -1)
        return flat if self.projection is None else flat @ np.asarray(self.projection).T


def choose_gates(
    gates: int | LocalGates | npt.ArrayLike, whitening: Whitening, seed: int, lean: float = 0.0, *, distinct: bool = True
) -> FloatArray:
    """(P, r+1) the gates that the argument of `fit_gated_bn` stands for; `distinct` leaves out patterns that repeat.

    The signs of singular vectors are anybody's choice; drawn gates turn with them, so that the same data and seed give the same patterns.
    """
    basis = whitening.basis
    if not isinstance(gates, (int, np.integer, LocalGates)) or isinstance(gates, bool):
        given = real_array(gates, "gates")
        if given.ndim != 2 or given.shape[1] != basis.shape[1] or not len(given) or not np.any(given, axis=1).all():
            raise InputError(f"gates have shape {given.shape}: pass a number, or rows (P, {basis.shape[1]}) on the basis, none of them 0")
        return given
    count = gates.count if isinstance(gates, LocalGates) else check_count(gates, "gates")
    generator = np.random.default_rng(check_count(seed, "seed", 0))
    draw = _drawn_by(gates, whitening, _strengths(whitening, lean), generator)
    if not distinct:
        return draw(count)
    found = np.zeros((0, basis.shape[1]))
    for _ in range(DRAWS):
        found = _distinct(basis, np.vstack([found, draw(count)]))[:count]
        if len(found) == count:
            break
    return found


def _strengths(whitening: Whitening, lean: float) -> FloatArray:
    """(r,) what the components of drawn gates are multiplied by: Sigma^lean, 1 for the strongest direction."""
    if not (isinstance(lean, (int, float, np.number)) and abs(lean) <= MOST_LEAN):
        raise InputError(
            f"lean = {lean!r} can't be used: pass a number from -{MOST_LEAN:g} to {MOST_LEAN:g}; 0 treats all directions alike"
        )
    strengths: FloatArray = (whitening.singular_values / whitening.singular_values[:1]) ** lean
    return strengths


def _drawn_by(
    gates: int | LocalGates | np.integer, whitening: Whitening, strengths: FloatArray, generator: np.random.Generator
) -> Callable[[int], FloatArray]:
    """How so many gates are drawn, Gaussian or local; distinct or not."""
    components = whitening.components
    if isinstance(gates, LocalGates):
        if gates.columns != len(components):
            raise InputError(
                f"X has {len(components)} columns, but the gates are for {gates.columns}: give them the images' shape, or a projection"
            )
        return lambda count: _local(gates.filters(count, generator), components, strengths)
    largest = components[np.argmax(np.abs(components), axis=0), np.arange(whitening.rank)]
    size = np.sqrt(np.mean(strengths**2)) if len(strengths) else 1.0
    spread = np.append(np.sign(largest) * strengths, size)
    return lambda count: spread * generator.standard_normal((count, len(spread)))


def _local(filters: FloatArray, components: FloatArray, strengths: FloatArray) -> FloatArray:
    """(P, r+1) the gates of filters, without those that see no direction, as in a corner where all images are black."""
    along = filters @ components
    seen = np.linalg.norm(along, axis=1) > BLIND * np.linalg.norm(filters, axis=1)
    gates: FloatArray = np.pad(strengths * along[seen], ((0, 0), (0, 1)))
    return gates


def _distinct(basis: FloatArray, gates: FloatArray) -> FloatArray:
    """The gates without those whose pattern came before, or opens for no sample; in their order.

    Patterns that differ on some of the rows differ; only where they don't are all rows looked at.
    """
    if len(basis) > GLANCE:
        found = _distinct(basis[:GLANCE], gates)
        if len(found) == len(gates):
            return found
    patterns = gated_patterns(basis, gates)
    packed = np.packbits(patterns, axis=1)
    first = np.sort(np.unique(packed, axis=0, return_index=True)[1])
    return gates[first[patterns[first].any(axis=1)]]
