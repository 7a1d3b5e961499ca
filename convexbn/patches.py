"""Patches of images: the rows that a convolution reads, and the pooling that makes them samples again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from convexbn.validation import FloatArray, InputError, check_data, real_array

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


@dataclass(frozen=True, init=False)
class Patches:
    """How a convolution reads images (n, c, h, w): as K patches each, rows of c p_h p_w numbers, pooled over the image.

    `size`, `stride` and `padding` mean what `kernel_size`, `stride` and `padding` do in PyTorch's Conv2d; padding is with zeros.

    Parameters
    ----------
    size, stride, padding : along height and width, one number standing for both
    pooling : "average" or "sum", over the patches of an image
    image : (c, h, w), channels, height and width of each image; None until it is known, as `on` tells

    Raises
    ------
    InputError
        For a geometry that can't be used, and for a patch that is larger than the image.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    pooling: str
    image: tuple[int, int, int] | None

    def __init__(
        self,
        size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        pooling: str = "average",
        image: tuple[int, int, int] | None = None,
    ) -> None:
        if pooling not in POOLINGS:
            raise InputError(f"pooling = {pooling!r} is unknown: choose 'average' or 'sum'")
        pairs = {"size": _pair(size, "size", 1), "stride": _pair(stride, "stride", 1), "padding": _pair(padding, "padding", 0)}
        for name, value in {**pairs, "pooling": pooling, "image": image}.items():
            object.__setattr__(self, name, value)
        if image is not None:
            padded = tuple(side + 2 * extra for side, extra in zip(image[1:], self.padding, strict=True))
            if any(part > side for part, side in zip(self.size, padded, strict=True)):
                raise InputError(f"size = {self.size} of a patch is larger than an image of {padded} with its padding: take a smaller one")

    def on(self, images: npt.ArrayLike) -> Patches:
        """The same on images like these (n, c, h, w): it knows their shape."""
        shape = tuple(getattr(images, "shape", ()))
        channels, height, width = (shape if len(shape) == 4 and 0 not in shape else check_images(images).shape)[1:]
        if self.image not in (None, (channels, height, width)):
            raise InputError(f"X has images of shape {(channels, height, width)}, but patches are of images {self.image}: leave image out")
        return replace(self, image=(channels, height, width))

    @property
    def _known(self) -> tuple[int, int, int]:
        if self.image is None:
            raise InputError("patches don't know the shape of the images yet: pass patches.on(X)")
        return self.image

    @property
    def channels(self) -> int:
        """How many channels an image has."""
        return self._known[0]

    @property
    def grid(self) -> tuple[int, int]:
        """How many patches along height and width."""
        sides = zip(self._known[1:], self.size, self.stride, self.padding, strict=True)
        down, across = ((side + 2 * extra - part) // step + 1 for side, part, step, extra in sides)
        return down, across

    @property
    def count(self) -> int:
        """How many patches an image has, K."""
        down, across = self.grid
        return down * across

    @property
    def features(self) -> int:
        """How many numbers a patch has, c p_h p_w."""
        return self.channels * self.size[0] * self.size[1]

    def rows(self, images: npt.ArrayLike) -> FloatArray:
        """The patches as rows, shape (n K, c p_h p_w), those of an image next to each other; each in the order (c, p_h, p_w).

        They take K p_h p_w / (h w) times the memory of the images in float64: `blocks` makes them for some images at a time.
        """
        pixels = check_images(images)
        if pixels.shape[1:] != self._known:
            raise InputError(f"X has images of shape {pixels.shape[1:]}, but {self.image} is expected: (channels, height, width)")
        (above, left), (down, across) = self.padding, self.stride
        padded = np.pad(pixels, ((0, 0), (0, 0), (above, above), (left, left)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.size, axis=(2, 3))[:, :, ::down, ::across]
        return windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, self.features)

    def blocks(self, images: npt.ArrayLike) -> Iterator[FloatArray]:
        """The same rows, of some images at a time, so that neither all patches nor the images in float64 are ever held."""
        several = max(1, BLOCK // (self.count * self.features))
        pixels: Any = images if len(getattr(images, "shape", ())) == 4 and len(images) else check_images(images)  # type: ignore[arg-type]
        for first in range(0, len(pixels), several):
            yield self.rows(pixels[first : first + several])


def pooling_of(patches: Patches | None) -> Pooling:
    """From the patches of an image to the image; the identity for data that are rows themselves."""
    if patches is None:
        return NO_POOLING
    return Pooling(patches.count, 1.0 / patches.count if patches.pooling == "average" else 1.0)


def check_input(X: Any, patches: Patches | None) -> tuple[npt.NDArray[Any], Patches | None]:
    """X as numbers (n, d), or as images (n, c, h, w) where there are patches, which know the shape of the images then.

    Raises
    ------
    InputError
        For data that can't be used. The numbers of images are looked at where they are read, some images at a time.
    """
    if patches is None:
        if len(np.shape(X) if hasattr(X, "shape") else ()) == 4:
            raise InputError("X has 4 dimensions, as images have: pass patches=Patches(5) for a convolution, or X.reshape(len(X), -1)")
        return check_data(X), None
    if not isinstance(patches, Patches):
        raise InputError(f"patches = {patches!r} are no Patches: pass convexbn.Patches(5, stride=2), for instance")
    return np.asarray(X), patches.on(X)


def check_images(X: Any) -> FloatArray:
    """Return `X` as a float64 array (n, c, h, w) with at least one entry along each side, or raise `InputError`."""
    images = real_array(X, "X")
    if images.ndim != 4 or 0 in images.shape:
        advice = "X[:, None] makes one channel of (n, h, w)" if images.ndim == 3 else "reshape it, or leave patches out for rows"
        raise InputError(f"X has shape {images.shape}, not (samples, channels, height, width) as patches need: {advice}")
    return images


def _pair(value: Any, name: str, smallest: int) -> tuple[int, int]:
    """The whole numbers along height and width that one number or a pair stands for."""
    pair = (value, value) if isinstance(value, (int, np.integer)) else value
    good = isinstance(pair, (tuple, list)) and len(pair) == 2
    if not good or any(isinstance(p, (bool, np.bool_)) or not isinstance(p, (int, np.integer)) or p < smallest for p in pair):
        raise InputError(f"{name} = {value!r} is not usable: pass a whole number of at least {smallest}, or a pair (height, width)")
    return int(pair[0]), int(pair[1])
