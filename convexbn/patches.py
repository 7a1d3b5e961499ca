"""Patches of images: the rows that a convolution reads, and the pooling that makes them samples again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from convexbn.validation import FloatArray, InputError, real_array

POOLINGS = ("average", "sum")
BLOCK = 2**22  # numbers: 32 MiB of patches at a time, where not all of them are wanted at once


@dataclass(frozen=True)
class Pooling:
    """From K consecutive rows to one sample, z -> weight sum_k z_k: global sum pooling, or with weight 1/K average pooling.

    Without patches a row is a sample, K = 1, and pooling is the identity.

    Attributes
    ----------
    patches : K
    weight : 1 or 1/K
    """

    patches: int = 1
    weight: float = 1.0

    @property
    def norm(self) -> float:
        """The operator norm, weight sqrt(K)."""
        return self.weight * float(np.sqrt(self.patches))

    def pool(self, rows: FloatArray) -> FloatArray:
        """The samples (n, ...) of rows (n K, ...), those of a sample next to each other."""
        if self.patches == 1:
            return rows
        pooled: FloatArray = self.weight * rows.reshape(len(rows) // self.patches, self.patches, *rows.shape[1:]).sum(axis=1)
        return pooled

    def spread(self, samples: FloatArray) -> FloatArray:
        """The adjoint: rows (n K, ...) of samples (n, ...). The price of V over pooled neurons is that of V spread, over neurons."""
        if self.patches == 1:
            return samples
        rows: FloatArray = np.repeat(self.weight * samples, self.patches, axis=0)
        return rows


NO_POOLING = Pooling()


@dataclass(frozen=True)
class Patches:
    """How a convolution reads images (n, c, h, w): as K patches each, rows of c p_h p_w numbers, pooled over the image.

    `size`, `stride` and `padding` mean what they do in PyTorch's Conv2d, one number standing for both sides; padding is with zeros.

    Attributes
    ----------
    image : (c, h, w), channels, height and width of each image
    size : (p_h, p_w) of a patch
    stride, padding : along height and width
    kind : "average" or "sum", the pooling over the patches of an image
    """

    image: tuple[int, int, int]
    size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    kind: str = "average"

    def __post_init__(self) -> None:
        for name, smallest in (("size", 1), ("stride", 1), ("padding", 0)):
            object.__setattr__(self, name, _pair(getattr(self, name), "patch" if name == "size" else name, smallest))
        if self.kind not in POOLINGS:
            raise InputError(f"pooling = {self.kind!r} is unknown: choose 'average' or 'sum'")
        padded = tuple(side + 2 * extra for side, extra in zip(self.image[1:], self.padding, strict=True))
        if any(part > side for part, side in zip(self.size, padded, strict=True)):
            raise InputError(f"patch = {self.size} is larger than an image of {padded} with its padding: take a smaller patch")

    @property
    def grid(self) -> tuple[int, int]:
        """How many patches along height and width."""
        sides = zip(self.image[1:], self.size, self.stride, self.padding, strict=True)
        down, across = ((side + 2 * extra - part) // step + 1 for side, part, step, extra in sides)
        return down, across

    @property
    def pooling(self) -> Pooling:
        """From the patches to the images."""
        count = self.grid[0] * self.grid[1]
        return Pooling(count, 1.0 / count if self.kind == "average" else 1.0)

    def rows(self, images: npt.ArrayLike) -> FloatArray:
        """The patches as rows, shape (n K, c p_h p_w), those of an image next to each other; each in the order (c, p_h, p_w).

        They take K p_h p_w / (h w) times the memory of the images in float64: `blocks` makes them for some images at a time.
        """
        pixels = check_images(images)
        if pixels.shape[1:] != self.image:
            raise InputError(f"X has images of shape {pixels.shape[1:]}, but {self.image} is expected: (channels, height, width)")
        (above, left), (down, across) = self.padding, self.stride
        padded = np.pad(pixels, ((0, 0), (0, 0), (above, above), (left, left)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.size, axis=(2, 3))[:, :, ::down, ::across]
        return windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, self.features)

    @property
    def features(self) -> int:
        """How many numbers a patch has, c p_h p_w."""
        return self.image[0] * self.size[0] * self.size[1]

    def blocks(self, images: npt.ArrayLike) -> Iterator[FloatArray]:
        """The same rows, of some images at a time, so that neither all patches nor the images in float64 are ever held."""
        several = max(1, BLOCK // (self.pooling.patches * self.features))
        pixels: Any = images if len(getattr(images, "shape", ())) == 4 and len(images) else check_images(images)  # type: ignore[arg-type]
        for first in range(0, len(pixels), several):
            yield self.rows(pixels[first : first + several])


def patches_of(X: npt.ArrayLike, patch: Any, stride: Any = 1, padding: Any = 0, pooling: str = "average") -> Patches | None:
    """How images X are cut into patches; None where no patch is asked for.

    Raises
    ------
    InputError
        For images or a geometry that can't be used, and for a geometry without a patch.
    """
    if patch is not None:
        shape = tuple(getattr(X, "shape", ()))
        channels, height, width = (shape if len(shape) == 4 and 0 not in shape else check_images(X).shape)[1:]
        return Patches((channels, height, width), patch, stride, padding, pooling)
    if (stride, padding, pooling) != (1, 0, "average"):
        raise InputError("stride, padding and pooling are those of a convolution, but patch is None: pass patch=(height, width) as well")
    return None


def check_images(X: Any) -> FloatArray:
    """Return `X` as a float64 array (n, c, h, w) with at least one entry along each side, or raise `InputError`."""
    images = real_array(X, "X")
    if images.ndim != 4 or 0 in images.shape:
        advice = "X[:, None] makes one channel of (n, h, w)" if images.ndim == 3 else "reshape it, or leave patch out for rows"
        raise InputError(f"X has shape {images.shape}, not (samples, channels, height, width) as a patch needs: {advice}")
    return images


def _pair(value: Any, name: str, smallest: int) -> tuple[int, int]:
    """The whole numbers along height and width that one number or a pair stands for."""
    pair = (value, value) if isinstance(value, (int, np.integer)) else value
    good = isinstance(pair, (tuple, list)) and len(pair) == 2
    if not good or any(isinstance(p, (bool, np.bool_)) or not isinstance(p, (int, np.integer)) or p < smallest for p in pair):
        raise InputError(f"{name} = {value!r} is not usable: pass a whole number of at least {smallest}, or a pair (height, width)")
    return int(pair[0]), int(pair[1])
