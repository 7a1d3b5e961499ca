"""Pickles of plain values (numbers, text, bytes, lists, dictionaries and arrays of bytes), read without running what they name.

A pickle is a program: it names functions and calls them. Here the few names that an array needs stand for inert records, so that
not even numpy runs on what the file says; any other name is refused before it is looked up. Handing the names to numpy's own
functions was rejected: these trust the shapes and types that a file claims, and `ndarray` or `dtype` would be callable at will.
What stays possible is what any pickle can do to Python's own reader: a hostile file may use up the memory or crash the process.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np

from convexbn.datasets.images import AGAIN, ByteArray, reason
from convexbn.validation import InputError


class PlainType:
    """What a pickle says of an array's element type: its code, 'u1' for bytes."""

    code: object = None

    def __init__(self, code: object, *options: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, which mean nothing for single bytes."""


class PlainArray:
    """What a pickle says of an array: (version, shape, type, whether the first index is the fastest, the elements as bytes).

    The state stays here as it came. That every record has a `__setstate__` keeps a pickle from setting attributes of the class.
    """

    state: object = ()

    def __init__(self, *empty: object) -> None:
        """Arguments of the empty array that a pickle begins with."""

    def __setstate__(self, state: object) -> None:
        self.state = state

    def values(self) -> ByteArray:
        """The array; `ValueError` where it is of another type than uint8, or its shape isn't that of its elements."""
        match self.state:
            case (_, tuple(shape), PlainType(code="u1" | b"u1"), fortran, (bytes() | bytearray()) as elements):
                whole = all(type(size) is int and size >= 0 for size in shape)
                if not whole or math.prod(shape) != len(elements):
                    raise ValueError(f"an array of shape {str(shape)[:60]} can't have {len(elements)} elements")
                return np.frombuffer(elements, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")
            case (_, _, PlainType(code=code), *_):
                raise ValueError(f"an array has elements of type {str(code)[:20]}, not uint8")
        raise ValueError("an array is incomplete")


class BufferArray(PlainArray):
    """The same as a pickle of protocol 5 says it: (the elements, type, shape, order)."""

    def __init__(self, elements: object, kind: object, shape: object, order: object) -> None:
        self.state = (1, shape, kind, order == "F", elements)


# numpy 2 has `numpy._core` where numpy 1, which wrote the official files, has `numpy.core`. Python 3 writes bytes into old
# protocols as text that `_codecs.encode` turns back: bytes(text, "latin1").
RECORDS: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): PlainArray,
    ("numpy._core.multiarray", "_reconstruct"): PlainArray,
    ("numpy.core.numeric", "_frombuffer"): BufferArray,
    ("numpy._core.numeric", "_frombuffer"): BufferArray,
    ("numpy", "ndarray"): PlainArray,
    ("numpy", "dtype"): PlainType,
    ("_codecs", "encode"): bytes,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in RECORDS:
            raise pickle.UnpicklingError(f"it names {f'{module}.{name}'[:80]!r}, which was not run")
        return RECORDS[module, name]


def load_plain(stream: IO[bytes], file: Path) -> dict[str, Any]:
    """Read a dictionary of plain values with keys of text or bytes, as Python 2 or 3 pickled it; an array is a `PlainArray`.

    Raises
    ------
    InputError
        Naming `file`, for a pickle that is truncated, is no dictionary, or names anything but arrays.
    """
    try:
        content = _PlainUnpickler(stream, encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(f"path: {file} is damaged or no official file ({reason(error)}): {AGAIN}") from error
    if not isinstance(content, dict) or not all(isinstance(key, (str, bytes)) for key in content):
        raise InputError(f"path: {file} holds no dictionary of named entries, so it is no official file: {AGAIN}")
    return {as_text(key): value for key, value in content.items()}


def as_text(value: str | bytes) -> str:
    """Text from the byte strings that Python 2 wrote."""
    return value.decode("latin1") if isinstance(value, bytes) else value
