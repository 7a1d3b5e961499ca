"""Small CIFAR files as Python 2 and 3 wrote them, in folders and archives. Tests import it: `from cifar_files import ...`."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convexbn.datasets import ImageData
from convexbn.datasets.official import OFFICIAL, OfficialFile

CIFAR10 = "cifar-10-batches-py"
CIFAR100 = "cifar-100-python"
BATCHES = [f"data_batch_{number}" for number in range(1, 6)]

Dump = Callable[[Any], bytes]


def python2(value: Any) -> bytes:
    """The pickle that Python 2 and numpy 1 write by protocol 2, in which text is byte strings, as in the official archives."""
    return b"\x80\x02" + opcodes(value) + b"."


def opcodes(value: Any) -> bytes:
    """The opcodes of a value without the frame of the file."""
    match value:
        case dict():
            return b"}(" + b"".join(opcodes(key) + opcodes(entry) for key, entry in value.items()) + b"u"
        case list():
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        case int():
            return b"J" + struct.pack("<i", value)
        case bytes() if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(map(opcodes, value.shape)) + b"\x86"
    fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    return array + b"(K\x01" + shape + kind + (b"\x88" if fortran else b"\x89") + opcodes(value.tobytes("A")) + b"tb"


def python3(value: Any, protocol: int) -> bytes:
    """The pickle that Python 3 and the installed numpy write."""
    return pickle.dumps(value, protocol)


def numpy1(value: Any, protocol: int) -> bytes:
    """The same with the module names of numpy 1; up to protocol 3, names end with their line."""
    return pickle.dumps(value, protocol).replace(b"cnumpy._core.", b"cnumpy.core.")


def text_keys(value: Any) -> bytes:
    """A copy that somebody pickled again with keys of text."""
    return pickle.dumps({key.decode(): entry for key, entry in value.items()}, 4)


DUMPS = {
    "Python 2": python2,
    **{f"Python 3, protocol {protocol}": partial(python3, protocol=protocol) for protocol in range(6)},
    **{f"numpy 1, protocol {protocol}": partial(numpy1, protocol=protocol) for protocol in (2, 3)},
    "text keys": text_keys,
}


def images(count: int, seed: int) -> np.ndarray:
    """Random photographs (count, 3, 32, 32)."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def batch(number: int) -> dict[bytes, Any]:
    """A batch of CIFAR-10 with two images; the sixth is the test batch."""
    labels = [number % 10, (3 * number) % 10]
    rows = images(2, number).reshape(2, -1)
    return {b"batch_label": b"batch %d" % number, b"labels": labels, b"data": rows, b"filenames": [b"a.png", b"b.png"]}


def cifar10_files() -> dict[str, dict[bytes, Any]]:
    """The content of each file of CIFAR-10."""
    meta = {b"label_names": [b"class %d" % number for number in range(10)], b"num_vis": 3072, b"num_cases_per_batch": 2}
    return {**{name: batch(number) for number, name in enumerate([*BATCHES, "test_batch"], 1)}, "batches.meta": meta}


def cifar100_files() -> dict[str, dict[bytes, Any]]:
    """The content of each file of CIFAR-100."""
    parts = {
        name: {b"data": images(count, count).reshape(count, -1), b"fine_labels": fine, b"coarse_labels": coarse}
        for name, count, fine, coarse in [("train", 3, [99, 0, 7], [19, 0, 2]), ("test", 2, [1, 98], [18, 1])]
    }
    meta = {b"fine_label_names": [b"fine %d" % i for i in range(100)], b"coarse_label_names": [b"coarse %d" % i for i in range(20)]}
    return {**parts, "meta": meta}


def write(folder: Path, files: dict[str, dict[bytes, Any]], dump: Dump = python2) -> Path:
    """A folder of pickles."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(dump(content))
    return folder


def pack(archive: Path, members: dict[str, bytes | str]) -> str:
    """A tar.gz of files (bytes) and of symbolic links (text), and its md5 sum."""
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return hashlib.md5(archive.read_bytes()).hexdigest()


def official(monkeypatch: pytest.MonkeyPatch, name: str, md5: str) -> None:
    """Let an archive with this md5 sum pass for the official one."""
    monkeypatch.setitem(OFFICIAL, name, (OfficialFile(OFFICIAL[name][0].url, md5),))


def assert_is_cifar10(data: ImageData) -> None:
    """The arrays are those of the batches 1 to 5 and of the test batch, in that order."""
    np.testing.assert_array_equal(data.train_images, np.concatenate([images(2, number) for number in range(1, 6)]))
    np.testing.assert_array_equal(data.train_labels, [1, 3, 2, 6, 3, 9, 4, 2, 5, 5])
    np.testing.assert_array_equal(data.test_images, images(2, 6))
    np.testing.assert_array_equal(data.test_labels, [6, 8])
    assert data.class_names == tuple(f"class {number}" for number in range(10))


def archived(files: dict[str, dict[bytes, Any]], folder: str) -> dict[str, bytes | str]:
    """The members of an archive, in another order than they are read."""
    return {f"{folder}/{name}": python2(content) for name, content in reversed(files.items())}


def dumped(value: Any) -> bytes:
    """A pickle's opcodes without the frame of the file."""
    return pickle.dumps(value, 2)[2:-1]
