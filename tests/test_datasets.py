"""Readers of CIFAR and MNIST on small files in the official formats, hostile and damaged ones included; downloads from a local server."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convexbn import ConvexBNError, InputError
from convexbn.datasets import DownloadError, ImageData, download, read_cifar10, read_cifar100, read_mnist
from convexbn.datasets.__main__ import main
from convexbn.datasets.official import OFFICIAL, OfficialFile
from convexbn.datasets.plain_pickle import RECORDS, load_plain

CIFAR10 = "cifar-10-batches-py"
CIFAR100 = "cifar-100-python"
BATCHES = [f"data_batch_{number}" for number in range(1, 6)]

Dump = Callable[[Any], bytes]


# Files in the official formats.


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


def test_the_pickles_of_these_tests_are_what_python_reads_from_python_2():
    for content in [*cifar10_files().values(), {b"data": np.asfortranarray(images(2, 1).reshape(2, -1))}]:
        np.testing.assert_equal(pickle.loads(python2(content), encoding="bytes"), content)


# CIFAR.


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


# Archives.


def archived(files: dict[str, dict[bytes, Any]], folder: str) -> dict[str, bytes | str]:
    """The members of an archive, in another order than they are read."""
    return {f"{folder}/{name}": python2(content) for name, content in reversed(files.items())}


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


@pytest.mark.parametrize("content", [b"", b"no archive", gzip.compress(b"no tar" * 999), gzip.compress(bytes(2048))[:-9]])
def test_an_archive_that_is_none_is_refused(tmp_path, monkeypatch, content):
    archive = tmp_path / "archive"
    archive.write_bytes(content)
    official(monkeypatch, "cifar10", hashlib.md5(content).hexdigest())
    with pytest.raises(InputError, match=r"path: .*archive"):
        read_cifar10(archive)


# Hostile pickles.


class Evil:
    """Calls a function when it is unpickled."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def dumped(value: Any) -> bytes:
    """A pickle's opcodes without the frame of the file."""
    return pickle.dumps(value, 2)[2:-1]


def touch(marker: Path) -> Evil:
    """A shell command."""
    return Evil(os.system, f"touch {marker}")


def getattr_trick(marker: Path) -> bytes:
    """getattr(__import__('os'), 'system')('touch marker')."""
    module = b"c__builtin__\n__import__\n(" + dumped("os") + b"tR"
    return b"c__builtin__\ngetattr\n(" + module + dumped("system") + b"tR(" + dumped(f"touch {marker}") + b"tR"


HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda marker: dumped(touch(marker)),
    "eval": lambda marker: dumped(Evil(eval, f"open({str(marker)!r}, 'w').close()")),
    "exec": lambda marker: dumped(Evil(exec, f"open({str(marker)!r}, 'w').close()")),
    "open": lambda marker: dumped(Evil(open, str(marker), "w")),
    "subprocess": lambda marker: dumped(Evil(subprocess.check_call, ["touch", str(marker)])),
    "object array": lambda marker: dumped(np.array([touch(marker), 1], dtype=object)),
    "numpy function": lambda marker: dumped(Evil(np.savetxt, str(marker), [1.0])),
    "in a list": lambda marker: dumped([1, {"deep": (touch(marker),)}]),
    "getattr": getattr_trick,
    "dotted name": lambda marker: b"\x8c\x05numpy\x8c\x0endarray.tofile\x93(" + dumped(np.zeros(1, np.uint8)) + dumped(str(marker)) + b"tR",
    "INST": lambda marker: b"(" + dumped(f"touch {marker}") + b"ios\nsystem\n",
    "OBJ": lambda marker: b"(cos\nsystem\n" + dumped(f"touch {marker}") + b"o",
}


PLACES = [("data_batch_1", b"%b."), ("test_batch", b"}(U\x04data%bU\x06labelsK\x00u."), ("batches.meta", b"%b}.")]


@pytest.mark.filterwarnings("ignore:unclosed file")
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(("file", "frame"), PLACES)
def test_hostile_pickles_are_refused_and_do_not_run(tmp_path, name, file, frame):
    folder, marker = write(tmp_path / CIFAR10, cifar10_files()), tmp_path / "it_ran"
    protocol = b"\x80\x04" if name == "dotted name" else b"\x80\x02"
    (folder / file).write_bytes(protocol + frame % HOSTILE[name](marker))
    with pytest.raises(InputError, match=f"path: .*{file} .*it names .*, which was not run.*download"):
        read_cifar10(folder)
    assert not marker.exists()
    pickle.loads((folder / file).read_bytes(), encoding="bytes")
    assert marker.exists(), "a payload that couldn't have run shows nothing"


def test_the_refusal_names_what_was_asked_for(tmp_path):
    stream = io.BytesIO(b"\x80\x02" + HOSTILE["os.system"](tmp_path / "it_ran") + b".")
    with pytest.raises(InputError, match=r"path: some.file .*it names '(posix|nt).system', which was not run"):
        load_plain(stream, Path("some.file"))


def test_numpy_1_and_numpy_2_have_the_same_records():
    assert {(module.replace("._core", ".core"), name): kind for (module, name), kind in RECORDS.items()}.items() <= RECORDS.items()


STATES = [b"}U\x0b__setstate__K\x01s", b"N}U\x0b__setstate__K\x01s\x86", b"}U\x05stateK\x01s", b"N}U\x04codeU\x02u1s\x86"]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("module", "name"), RECORDS)
def test_a_pickle_cannot_change_the_records_that_stand_for_an_array(module, name, state):
    kind = RECORDS[module, name]
    before = dict(vars(kind))
    with pytest.raises(InputError, match="damaged"):
        load_plain(io.BytesIO(b"\x80\x02c%b\n%b\n%bb." % (module.encode(), name.encode(), state)), Path("file"))
    assert dict(vars(kind)) == before


@pytest.mark.parametrize("value", [np.int64(3), np.dtype("u1"), {1, 2}, 1j, slice(3), int, print, np.float64, Path("x"), range(3)])
def test_only_plain_values_are_read(value):
    content = {b"data": np.zeros((2, 3), np.uint8), b"entry": value}
    try:
        entry = load_plain(io.BytesIO(python3(content, 2)), Path("file"))["entry"]
    except InputError:
        return
    assert type(entry).__module__.startswith(("builtins", "convexbn")), "an inert record, or a value of Python's own"


# Damaged and foreign files.


def test_every_truncation_is_noticed():
    whole = python2({b"data": np.full((1, 30), 7, np.uint8), b"labels": [1, 2]})
    assert load_plain(io.BytesIO(whole), Path("file"))["labels"] == [1, 2]
    for length in range(len(whole)):
        with pytest.raises(InputError, match=r"^path: file "):
            load_plain(io.BytesIO(whole[:length]), Path("file"))


def outcome(content: bytes) -> str:
    """What reading a pickle and its array ends with."""
    try:
        data = load_plain(io.BytesIO(content), Path("file")).get("data")
        return "read" if data is None or data.values() is not None else "none"
    except InputError:
        return "refused"
    except (AttributeError, ValueError):
        return "no array"


def test_a_flipped_bit_is_an_input_error_or_another_value():
    whole = python2({b"data": np.full((1, 30), 7, np.uint8), b"labels": [1, 2]})
    outcomes = []
    for place in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        if damaged[place // 8] == pickle.LONG_BINPUT[0]:
            continue  # with four arbitrary bytes it makes Python reserve up to 64 GB
        outcomes.append(outcome(bytes(damaged)))
    assert outcomes.count("read") > 8 * 30, "pixels have no check sum"
    assert outcomes.count("refused") > 500


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


# MNIST.

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


# Downloads.

CONTENT = np.random.default_rng(0).bytes(700_000)


class Site(BaseHTTPRequestHandler):
    """Serves CONTENT at /whole/..., half of it at /half/..., nothing else; counts requests."""

    requests: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.requests.append(self.path)
        found = self.path.startswith(("/whole/", "/half/"))
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(CONTENT) if found else 0))
        self.end_headers()
        if found:
            self.wfile.write(CONTENT if self.path.startswith("/whole/") else CONTENT[: len(CONTENT) // 2])

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on the screen."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on this machine."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(Site, "requests", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def offer(monkeypatch: pytest.MonkeyPatch, *urls: str) -> None:
    """Let these be the official files of MNIST."""
    monkeypatch.setitem(OFFICIAL, "mnist", tuple(OfficialFile(url, hashlib.md5(CONTENT).hexdigest()) for url in urls))


def test_downloads_are_whole_and_not_repeated(tmp_path, monkeypatch, site):
    offer(monkeypatch, f"{site}/whole/one.gz", f"{site}/whole/two.gz")
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        assert download("mnist", folder) == [folder / "one.gz", folder / "two.gz"]
    assert [path.read_bytes() == CONTENT for path in sorted(folder.iterdir())] == [True, True]
    assert Site.requests == ["/whole/one.gz", "/whole/two.gz"]


@pytest.mark.parametrize(("place", "message"), [("half", "md5 sum .*discarded: try again later"), ("gone", "404.*check the connection")])
def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch, site, place, message):
    offer(monkeypatch, f"{site}/{place}/one.gz")
    with pytest.raises(DownloadError, match=message):
        download("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch, site):
    offer(monkeypatch, f"{site}/whole/one.gz")

    def interrupt(*arguments: Any) -> None:
        assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
        raise KeyboardInterrupt

    monkeypatch.setattr("rich.progress.Progress.advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_connection_the_error_says_what_to_do(tmp_path, monkeypatch, site):
    monkeypatch.setattr("socket.create_connection", lambda *arguments, **options: (_ for _ in ()).throw(OSError("unreachable")))
    with pytest.raises(DownloadError, match=r"cifar-10-python.tar.gz couldn't be fetched .*unreachable.*check the connection.*put it into"):
        download("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert issubclass(DownloadError, ConvexBNError)


def test_a_file_of_the_user_is_never_replaced(tmp_path, monkeypatch, site):
    offer(monkeypatch, f"{site}/whole/one.gz")
    (tmp_path / "one.gz").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"^folder: .*one.gz is there with another md5 sum .*: remove it"):
        download("mnist", tmp_path)
    assert (tmp_path / "one.gz").read_bytes() == b"mine"
    with pytest.raises(InputError, match=r"^folder = .*can't be made"):
        download("mnist", tmp_path / "one.gz")
    assert Site.requests == []


@pytest.mark.parametrize(
    ("name", "folder", "message"), [("cifar", ".", "^name = 'cifar' is unknown"), ("mnist", None, "^folder = None is no path")]
)
def test_unusable_arguments_of_a_download(name, folder, message):
    with pytest.raises(InputError, match=message):
        download(name, folder)


def test_the_command_prints_the_files_or_the_error(tmp_path, monkeypatch, site, capsys):
    offer(monkeypatch, f"{site}/whole/one.gz")
    assert main(["mnist", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'one.gz'}\n"
    offer(monkeypatch, f"{site}/gone/two.gz")
    assert main(["mnist", str(tmp_path)]) == 1
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit):
        main(["unknown", str(tmp_path)])


def test_a_downloaded_archive_is_read_from_its_folder(tmp_path, monkeypatch, site):
    archive = tmp_path / "served"
    md5 = pack(archive, archived(cifar10_files(), CIFAR10))
    monkeypatch.setattr(sys.modules[__name__], "CONTENT", archive.read_bytes())
    monkeypatch.setitem(OFFICIAL, "cifar10", (OfficialFile(f"{site}/whole/cifar-10-python.tar.gz", md5),))
    download("cifar10", tmp_path / "data")
    assert_is_cifar10(read_cifar10(tmp_path / "data"))


def test_official_files_are_fetched_over_https_and_known_by_md5():
    for file in (file for files in OFFICIAL.values() for file in files):
        assert file.url.startswith("https://")
        assert len(bytes.fromhex(file.md5)) == 16


def test_importing_the_readers_opens_no_connection():
    script = (
        "import socket\n"
        "def refuse(*arguments, **options): raise AssertionError('a socket')\n"
        "socket.socket = socket.create_connection = refuse\n"
        "import sys, convexbn.datasets\n"
        "print([name for name in ('urllib.request', 'http.client', 'rich', 'torch', 'torchvision') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "[]\n"
