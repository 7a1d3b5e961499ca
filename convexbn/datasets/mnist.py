"""MNIST and Fashion-MNIST from their idx files."""

from __future__ import annotations

import gzip
import math
import struct
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convexbn.datasets.images import AGAIN, ByteArray, ImageData, LabelArray, check_choice, check_labels, check_path, readable
from convexbn.validation import InputError

SHAPE = (28, 28)
LARGEST = 60_000

CLASS_NAMES = {
    "digits": tuple("0123456789"),
    "fashion": ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
}


def read_mnist(path: str | PathLike[str], labels: Literal["digits", "fashion"] = "digits") -> ImageData:
    """MNIST or Fashion-MNIST, whose files have the same names: 60,000 training and 10,000 test images, 1 x 28 x 28, of 10 classes.

    Parameters
    ----------
    path : the folder of `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`,
        each plain or with `.gz`. They may hold subsets, with fewer images.
    labels : what to call the classes, "digits" for MNIST, "fashion" for Fashion-MNIST; the files don't say which they are

    Raises
    ------
    InputError
        Naming the file that is missing, damaged, or no official file.

    Source: LeCun, Bottou, Bengio and Haffner 1998, Gradient-based learning applied to document recognition; Xiao, Rasul and
    Vollgraf 2017, Fashion-MNIST.
    """
    names = CLASS_NAMES[check_choice(labels, "labels", list(CLASS_NAMES))]
    folder = check_path(path)
    if not folder.is_dir():
        raise InputError(f"path = {str(path)!r} is a file: pass the folder of the four idx files")
    return ImageData(*_part(folder, "train"), *_part(folder, "t10k"), names)


def _part(folder: Path, part: str) -> tuple[ByteArray, LabelArray]:
    """The images (n, 1, 28, 28) and labels (n,) of the training or the test part."""
    images = _values(_locate(folder, f"{part}-images-idx3-ubyte"), SHAPE)
    file = _locate(folder, f"{part}-labels-idx1-ubyte")
    return images[:, None], check_labels(_values(file, ()), len(images), len(CLASS_NAMES["digits"]), file)


def _locate(folder: Path, name: str) -> Path:
    """The plain file, or else the compressed one; some copies are called `train-images.idx3-ubyte`."""
    for candidate in (name, f"{name}.gz", name.replace("-idx", ".idx"), f"{name.replace('-idx', '.idx')}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise InputError(
        f"path = {str(folder)!r} lacks {name} (plain or .gz): pass the folder of the four idx files, "
        "or fetch them by python -m convexbn.datasets mnist FOLDER (or fashion-mnist)"
    )


def _values(file: Path, shape: tuple[int, ...]) -> ByteArray:
    """The bytes (n, *shape) of an idx file: a code for bytes and their dimensions, the sizes, both big-endian, and the elements."""
    head = struct.Struct(f">{2 + len(shape)}I")
    with readable(file), _open(file) as stream:
        start = stream.read(head.size)
        if len(start) < head.size:
            raise InputError(f"path: {file} is truncated after {len(start)} bytes: {AGAIN}")
        code, count, *sizes = head.unpack(start)
        if code != 0x0801 + len(shape) or tuple(sizes) != shape or not 1 <= count <= LARGEST:
            raise InputError(f"path: {file} doesn't begin as an idx file of 1 to {LARGEST} entries of shape {shape} does: {AGAIN}")
        length = count * math.prod(shape)
        elements = stream.read(length + 1)  # one more shows what shouldn't be there, and has gzip check its sum at the end
    if len(elements) != length:
        raise InputError(f"path: {file} is {'truncated' if len(elements) < length else 'too long'} for {count} entries: {AGAIN}")
    return np.frombuffer(bytearray(elements), dtype=np.uint8).reshape(count, *shape)


def _open(file: Path) -> Any:
    return gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb")
