"""Labelled images as arrays, and the checks that every reader makes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convexbn.validation import FloatArray, InputError

ByteArray = npt.NDArray[np.uint8]
LabelArray = npt.NDArray[np.int64]

AGAIN = "download the official file again"


@dataclass(frozen=True)
class ImageData:
    """Images and their classes, in training and test parts, in the order of the official files.

    Attributes
    ----------
    train_images, test_images : (n, channels, height, width) uint8, from 0 (dark) to 255; the channels are red, green, blue, or grey
    train_labels, test_labels : (n,) int64, from 0 to len(class_names) - 1
    class_names : the name of each label
    """

    train_images: ByteArray
    train_labels: LabelArray
    test_images: ByteArray
    test_labels: LabelArray
    class_names: tuple[str, ...]

    def train_pixels(self) -> FloatArray:
        """The training images as rows of float64 numbers in [0, 1], shape (n, channels height width): eight times the memory."""
        return _rows(self.train_images)

    def test_pixels(self) -> FloatArray:
        """The test images as rows of float64 numbers in [0, 1], shape (n, channels height width)."""
        return _rows(self.test_images)

    def __str__(self) -> str:
        size = " x ".join(map(str, self.train_images.shape[1:]))
        return f"{len(self.train_labels)} training and {len(self.test_labels)} test images, {size}, of {len(self.class_names)} classes"


def _rows(images: ByteArray) -> FloatArray:
    rows: FloatArray = images.reshape(len(images), -1) / 255.0
    return rows


def as_path(value: Any, name: str) -> Path:
    """Return `value` as a path, its ~ replaced by the home folder, or raise `InputError`."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise InputError(f"{name} = {value!r} is no path: pass text or a pathlib.Path")
    return Path(os.path.expanduser(value))


def check_path(path: Any) -> Path:
    """Return `path` as a path that exists, or raise `InputError`."""
    place = as_path(path, "path")
    with readable(place):
        if not place.exists():
            raise InputError(f"path = {str(path)!r} doesn't exist: pass the place of the official files")
    return place


def check_labels(labels: Any, images: int, classes: int, file: Path) -> LabelArray:
    """Return the integers `labels` as an array (images,) of numbers from 0 to classes - 1, or raise `InputError` naming the file."""
    if len(labels) != images:
        raise InputError(f"path: {file} belongs to {images} images, but to {len(labels)} labels: {AGAIN}")
    wrong = next((label for label in labels if not 0 <= label < classes), None)
    if wrong is not None:
        raise InputError(f"path: {file} has a label {str(wrong)[:20]} outside of 0 to {classes - 1}: {AGAIN}")
    return np.array(labels, dtype=np.int64)


def check_choice(value: Any, name: str, choices: Sequence[str]) -> str:
    """Return `value` where it is one of `choices`, or raise `InputError`."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} = {value!r} is unknown: pass one of {', '.join(map(repr, choices))}")
    return value


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turn the errors of a file that can't be opened, read or decompressed into an `InputError` that names it."""
    import tarfile
    import zlib

    try:
        yield
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"path: {file} can't be read ({reason(error)}): check its permissions, or {AGAIN}") from error


def reason(error: Exception) -> str:
    """What an error says, on one line, or else its kind."""
    return " ".join(str(error).split()) or type(error).__name__
