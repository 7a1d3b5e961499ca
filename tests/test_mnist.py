"""MNIST and Fashion-MNIST from small idx files, damaged ones included."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from convexbn import InputError
from convexbn.datasets import read_mnist

PARTS = {"train": 4, "t10k": 2}
LABELS = {"train": [0, 9, 3, 3], "t10k": [7, 1]}


def idx(array: np.ndarray) -> bytes:
    """The idx file of bytes: 0, 0, 8 (unsigned bytes), dimensions; sizes and elements, the last index the fastest."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def digits(part: str) -> np.ndarray:
    """Random drawings (n, 28, 28)."""
    return np.random.default_rng(PARTS[part]).integers(0, 256, (PARTS[part], 28, 28), dtype=np.uint8)


def write_mnist(folder: Path, *, pattern: str = "{}-{}-idx{}-ubyte", compress: bool = False) -> Path:
    """The four files."""
    for part in PARTS:
        for kind, array in [("images", digits(part)), ("labels", np.array(LABELS[part], np.uint8))]:
            name = pattern.format(part, kind, array.ndim)
            (folder / (f"{name}.gz" if compress else name)).write_bytes(gzip.compress(idx(array)) if compress else idx(array))
    return folder


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("pattern", ["{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte"])
def test_mnist_plain_and_compressed(tmp_path, compress, pattern):
    data = read_mnist(write_mnist(tmp_path, pattern=pattern, compress=compress))
    np.testing.assert_array_equal(data.train_images, digits("train")[:, None])
    np.testing.assert_array_equal(data.test_images, digits("t10k")[:, None])
    assert data.train_labels.tolist() == LABELS["train"]
    assert data.test_labels.tolist() == LABELS["t10k"]
    assert data.train_labels.dtype == np.int64
    assert data.train_images.flags.writeable
    assert data.class_names == tuple("0123456789")
    assert data.train_pixels().shape == (4, 784)


def test_fashion_mnist_has_other_names(tmp_path):
    names = read_mnist(write_mnist(tmp_path), labels="fashion").class_names
    assert len(names) == 10
    assert (names[0], names[9]) == ("T-shirt/top", "Ankle boot")


IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
HEAD = struct.pack(">IIII", 0x803, 4, 28, 28)
DAMAGED = {
    "empty": (IMAGES, b"", "is truncated after 0 bytes"),
    "truncated head": (IMAGES, HEAD[:15], "is truncated after 15 bytes"),
    "truncated": (IMAGES, HEAD + bytes(4 * 784 - 1), "is truncated for 4 entries"),
    "too long": (IMAGES, HEAD + bytes(4 * 784 + 1), "is too long for 4 entries"),
    "labels in place of images": (IMAGES, idx(np.zeros(20, np.uint8)), "doesn't begin as an idx file"),
    "images in place of labels": (TRAIN_LABELS, idx(digits("train")), "doesn't begin as an idx file"),
    "integers": (TRAIN_LABELS, struct.pack(">II4i", 0xC01, 4, 0, 9, 3, 3), "doesn't begin as an idx file"),
    "other size": (IMAGES, idx(np.zeros((4, 32, 32), np.uint8)), r"idx file of .* shape \(28, 28\)"),
    "no images": (IMAGES, idx(np.zeros((0, 28, 28), np.uint8)), "doesn't begin as"),
    "too many images": (IMAGES, struct.pack(">IIII", 0x803, 2**32 - 1, 28, 28), "1 to 60000 entries"),
    "label too large": (TRAIN_LABELS, idx(np.array([0, 9, 10, 3], np.uint8)), "has a label 10 outside of 0 to 9"),
    "too few labels": (TRAIN_LABELS, idx(np.zeros(3, np.uint8)), "belongs to 4 images, but to 3 labels"),
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_idx_files_are_named_with_what_to_do(tmp_path, name, compress):
    file, content, message = DAMAGED[name]
    write_mnist(tmp_path, compress=compress)
    (tmp_path / (f"{file}.gz" if compress else file)).write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(InputError, match=f"^path: .*{file}.* {message}.*: download"):
        read_mnist(tmp_path)


def test_damaged_compression_is_noticed(tmp_path):
    write_mnist(tmp_path, compress=True)
    file = tmp_path / f"{IMAGES}.gz"
    whole = file.read_bytes()
    wrong_sum = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    for content in (b"plain text", whole[: len(whole) // 2], whole[:-1], wrong_sum, whole[:30] + b"damage" + whole[36:]):
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"^path: .*{IMAGES}.gz "):
            read_mnist(tmp_path)


@pytest.mark.parametrize("name", [IMAGES, "t10k-labels-idx1-ubyte"])
def test_a_missing_idx_file_is_named(tmp_path, name):
    (write_mnist(tmp_path) / name).unlink()
    with pytest.raises(InputError, match=f"^path = .* lacks {name} "):
        read_mnist(tmp_path)
    with pytest.raises(InputError, match=r"^path = .* is a file: pass the folder"):
        read_mnist(tmp_path / TRAIN_LABELS)
