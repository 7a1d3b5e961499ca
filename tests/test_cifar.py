"""CIFAR from small files in the official formats, in folders and archives, and from files that are none."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from cifar_files import (
    BATCHES,
    CIFAR10,
    CIFAR100,
    DUMPS,
    archived,
    assert_is_cifar10,
    batch,
    cifar10_files,
    cifar100_files,
    dumped,
    images,
    official,
    opcodes,
    pack,
    python2,
    python3,
    write,
)

from convexbn import InputError
from convexbn.datasets import read_cifar10, read_cifar100, read_mnist


def test_the_pickles_of_these_tests_are_what_python_reads_from_python_2():
    for content in [*cifar10_files().values(), {b"data": np.asfortranarray(images(2, 1).reshape(2, -1))}]:
        np.testing.assert_equal(pickle.loads(python2(content), encoding="bytes"), content)


@pytest.mark.parametrize("dump", DUMPS.values(), ids=DUMPS)
def test_cifar10_folder_of_any_python(tmp_path, dump):
    assert_is_cifar10(read_cifar10(write(tmp_path / CIFAR10, cifar10_files(), dump)))


@pytest.mark.parametrize("place", [".", CIFAR10])
def test_a_folder_may_also_be_given_by_its_parent_and_as_text(tmp_path, place):
    write(tmp_path / CIFAR10, cifar10_files())
    assert_is_cifar10(read_cifar10(str(tmp_path / place)))


def test_a_folder_may_have_any_name_and_the_home_folder_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "mine", cifar10_files())
    assert_is_cifar10(read_cifar10("~/mine"))


def test_a_row_is_three_planes_from_the_top_down(tmp_path):
    files = cifar10_files()
    row = (np.arange(3072) * 7 % 251).astype(np.uint8)
    files["test_batch"] |= {b"data": row[None], b"labels": [4]}
    (image,) = read_cifar10(write(tmp_path / CIFAR10, files)).test_images
    for channel, top, left in [(0, 0, 0), (0, 0, 31), (0, 1, 0), (1, 5, 9), (2, 31, 31)]:
        assert image[channel, top, left] == (1024 * channel + 32 * top + left) * 7 % 251


def test_the_order_of_an_array_in_memory_does_not_matter(tmp_path):
    files = cifar10_files()
    for name in (*BATCHES, "test_batch"):
        files[name][b"data"] = np.asfortranarray(files[name][b"data"])
    assert_is_cifar10(read_cifar10(write(tmp_path / CIFAR10, files)))


@pytest.mark.parametrize(("labels", "train", "test", "classes"), [("fine", [99, 0, 7], [1, 98], 100), ("coarse", [19, 0, 2], [18, 1], 20)])
def test_cifar100_with_either_labels(tmp_path, labels, train, test, classes):
    write(tmp_path / CIFAR100, cifar100_files())
    data = read_cifar100(tmp_path, labels=labels)
    np.testing.assert_array_equal(data.train_images, images(3, 3))
    np.testing.assert_array_equal(data.test_images, images(2, 2))
    assert data.train_labels.tolist() == train
    assert data.test_labels.tolist() == test
    assert data.class_names == tuple(f"{labels} {number}" for number in range(classes))


def test_the_arrays_are_the_users_own(tmp_path):
    data = read_cifar10(write(tmp_path / CIFAR10, cifar10_files()))
    assert data.train_images.dtype == data.test_images.dtype == np.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert all(array.flags.writeable and array.flags.c_contiguous for array in (data.train_images, data.test_images))


def test_pixels_are_fractions_of_255(tmp_path):
    data = read_cifar10(write(tmp_path / CIFAR10, cifar10_files()))
    for pixels, raw in [(data.train_pixels(), data.train_images), (data.test_pixels(), data.test_images)]:
        assert pixels.dtype == np.float64
        assert pixels.shape == (len(raw), 3072)
        assert pixels.min() == raw.min() / 255.0
        assert pixels.max() <= 1.0
        np.testing.assert_array_equal(np.round(255.0 * pixels).reshape(raw.shape), raw)
    assert str(data) == "10 training and 2 test images, 3 x 32 x 32, of 10 classes"


@pytest.mark.parametrize("inside", [False, True])
def test_archives_are_read_by_their_path_or_folder(tmp_path, monkeypatch, inside):
    ten, hundred = tmp_path / "cifar-10-python.tar.gz", tmp_path / "cifar-100-python.tar.gz"
    official(monkeypatch, "cifar10", pack(ten, archived(cifar10_files(), CIFAR10)))
    official(monkeypatch, "cifar100", pack(hundred, archived(cifar100_files(), CIFAR100)))
    assert_is_cifar10(read_cifar10(tmp_path if inside else ten))
    np.testing.assert_array_equal(read_cifar100(tmp_path if inside else hundred).train_images, images(3, 3))
    assert sorted(path.name for path in tmp_path.iterdir()) == [ten.name, hundred.name]


def test_an_archive_with_another_md5_sum_is_refused_unread(tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    md5 = pack(archive, archived(cifar10_files(), CIFAR10))
    with pytest.raises(InputError, match=rf"path: .*{archive.name} has the md5 sum {md5}, not c58f30108f718f92721af3b95e74349a .*again"):
        read_cifar10(archive)


def test_members_of_other_names_are_neither_read_nor_written(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    archive = home / "cifar-10-python.tar.gz"
    names = ("../escaped", "/tmp/escaped", f"./{CIFAR10}/data_batch_1", f"x/../{CIFAR10}/data_batch_1", CIFAR10)
    strangers: dict[str, bytes | str] = dict.fromkeys(names, b"stranger")
    official(monkeypatch, "cifar10", pack(archive, {**strangers, **archived(cifar10_files(), CIFAR10)}))
    assert_is_cifar10(read_cifar10(archive))
    assert list(tmp_path.rglob("*")) == [home, archive]


def test_a_link_in_an_archive_is_no_batch(tmp_path, monkeypatch):
    archive = tmp_path / "cifar-10-python.tar.gz"
    outside = tmp_path / "outside"
    outside.write_bytes(python2(batch(1)))
    official(monkeypatch, "cifar10", pack(archive, archived(cifar10_files(), CIFAR10) | {f"{CIFAR10}/data_batch_1": str(outside)}))
    with pytest.raises(InputError, match="lacks data_batch_1:"):
        read_cifar10(archive)


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", gzip.compress(b"no tar" * 999), gzip.compress(bytes(2048))[:-9]],
    ids=["empty", "text", "no tar within", "truncated"],  # gzip writes the time, and workers that collect must agree on names
)
def test_an_archive_that_is_none_is_refused(tmp_path, monkeypatch, content):
    archive = tmp_path / "archive"
    archive.write_bytes(content)
    official(monkeypatch, "cifar10", hashlib.md5(content).hexdigest())
    with pytest.raises(InputError, match=r"path: .*archive"):
        read_cifar10(archive)


def changed(file: str, key: bytes, value: Any) -> Callable[[dict[str, dict[bytes, Any]]], None]:
    """Replace an entry of a file."""
    return lambda files: files[file].__setitem__(key, value)


FOREIGN = {
    "label too large": (changed("data_batch_2", b"labels", [3, 10]), "data_batch_2 has a label 10 outside of 0 to 9"),
    "label negative": (changed("test_batch", b"labels", [-1, 3]), "test_batch has a label -1 outside"),
    "label beyond int64": (changed("test_batch", b"labels", [10**30, 3]), "test_batch has a label 1000000"),
    "labels of text": (changed("test_batch", b"labels", [b"1", b"2"]), "test_batch has no list of integers under 'labels'"),
    "labels true and false": (changed("test_batch", b"labels", [True, False]), "test_batch has no list of integers"),
    "too few labels": (changed("data_batch_5", b"labels", [3]), "data_batch_5 belongs to 2 images, but to 1 labels"),
    "fine labels alone": (lambda files: files["test_batch"].pop(b"labels"), "test_batch has no list of integers .*two CIFAR sets"),
    "no images": (changed("test_batch", b"data", np.zeros((0, 3072), np.uint8)), r"test_batch has data of shape \(0, 3072\)"),
    "no array": (lambda files: files["data_batch_1"].pop(b"data"), "data_batch_1 has no array"),
    "a list of images": (changed("data_batch_1", b"data", [[1, 2], [3, 4]]), "data_batch_1 has no array"),
    "small images": (changed("data_batch_1", b"data", np.zeros((2, 768), np.uint8)), r"data_batch_1 has data of shape \(2, 768\)"),
    "images not in rows": (changed("data_batch_1", b"data", images(2, 0)), r"data_batch_1 has data of shape \(2, 3, 32, 32\)"),
    "float images": (changed("data_batch_1", b"data", np.zeros((2, 3072))), "data_batch_1 .* of type .*f8.*, not uint8"),
    "object images": (changed("data_batch_1", b"data", np.zeros((2, 3072), object)), "data_batch_1 .* of type .*O8.*, not uint8"),
    "structured": (changed("data_batch_1", b"data", np.zeros((2, 3072), [("x", "u1")])), "data_batch_1 .* of type .*V1.*, not uint8"),
    "missing batch": (lambda files: files.pop("data_batch_4"), "lacks data_batch_4: extract the official archive again"),
    "missing names": (lambda files: files.pop("batches.meta"), "lacks batches.meta"),
    "too few names": (changed("batches.meta", b"label_names", [b"cat"]), "batches.meta has no list of 10 names"),
    "names of numbers": (changed("batches.meta", b"label_names", list(range(10))), "batches.meta has no list of 10 names"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_batches_are_named_with_what_to_do(tmp_path, name):
    change, message = FOREIGN[name]
    files = cifar10_files()
    change(files)
    with pytest.raises(InputError, match=f"^path: .*{message}") as refusal:
        read_cifar10(write(tmp_path / CIFAR10, files, partial(python3, protocol=3)))
    assert any(f": {advice}" in str(refusal.value) for advice in ("download", "extract"))


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x80\x02K\x01.", b"\x80\x02].", b"\x80\x02}K\x01K\x02s.", b"\x80\x02Pid\n.", b"PK\x03\x04"]
)
def test_a_file_that_is_no_batch_is_refused(tmp_path, content):
    folder = write(tmp_path / CIFAR10, cifar10_files())
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(InputError, match=r"^path: .*data_batch_3 (is damaged|holds no).*: download"):
        read_cifar10(folder)


@pytest.mark.parametrize("shape", [(2, 3071), (-2, -3072), (-1, 3072), (3, 3072), (2**62, 4), (2.0, 3072)])
def test_an_array_whose_shape_is_not_that_of_its_elements_is_refused(tmp_path, shape):
    array = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01" + dumped(shape) + b"cnumpy\ndtype\nU\x02u1\x85R\x89"
    folder = write(tmp_path / CIFAR10, cifar10_files())
    (folder / "test_batch").write_bytes(b"\x80\x02}U\x04data" + array + opcodes(bytes(6144)) + b"tbs.")
    with pytest.raises(InputError, match=r"^path: .*test_batch is no official file \(an array of shape"):
        read_cifar10(folder)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(InputError, match=r"^path = '.*nowhere' doesn't exist"):
        read_cifar10(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds neither cifar-10-batches-py nor cifar-10-python.tar.gz.*convexbn.datasets cifar10"):
        read_cifar10(tmp_path)
    with pytest.raises(InputError, match=r"holds neither cifar-100-python nor cifar-100-python.tar.gz"):
        read_cifar100(tmp_path)
    (tmp_path / CIFAR10 / "data_batch_1").mkdir(parents=True)
    with pytest.raises(InputError, match=r"data_batch_1 can't be read"):
        read_cifar10(tmp_path)


@pytest.mark.parametrize("read", [read_cifar10, read_cifar100, read_mnist])
@pytest.mark.parametrize("path", [None, 3, b"bytes"])
def test_what_is_no_path_is_refused(read, path):
    with pytest.raises(InputError, match=r"^path = .* is no path"):
        read(path)


@pytest.mark.parametrize("read", [read_cifar100, read_mnist])
@pytest.mark.parametrize("labels", ["", "both", None, ["fine"]])
def test_unknown_labels_are_refused(tmp_path, read, labels):
    with pytest.raises(InputError, match=r"^labels = .* is unknown: pass one of '"):
        read(tmp_path, labels=labels)
