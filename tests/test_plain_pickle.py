"""The restricted unpickler on hostile and damaged files, none of which it runs."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cifar_files import (
    CIFAR10,
    cifar10_files,
    dumped,
    python2,
    python3,
    write,
)

from convexbn import InputError
from convexbn.datasets import read_cifar10
from convexbn.datasets.plain_pickle import RECORDS, load_plain


class Evil:
    """Calls a function when it is unpickled."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


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
