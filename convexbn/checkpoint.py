"""Checkpoints: the state of a long run in one file, written whole or not at all, and refused by any other run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convexbn.validation import InputError


def fingerprint(*parts: Any) -> str:
    """A hash of arrays, byte for byte, and of the `repr` of everything else: two runs with the same one do the same."""
    digest = hashlib.sha256()
    for part in _flat(parts):
        if isinstance(part, np.ndarray):
            digest.update(f"{part.shape}{part.dtype}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def _flat(parts: Iterable[Any]) -> Iterable[Any]:
    for part in parts:
        yield from _flat(part) if isinstance(part, tuple) else (part,)


class _State(dict[str, Any]):
    """A state whose entries are all there, unless another version of convexbn wrote it."""

    def __missing__(self, name: str) -> Any:
        raise InputError(f"checkpoint has no {name!r}: it is of another version of convexbn, so delete it to begin anew")


def save_checkpoint(path: str | os.PathLike[str], run: str, state: Mapping[str, Any]) -> None:
    """Write the arrays and numbers of `state` for the run of that fingerprint; the old file stays until the new one is complete.

    Raises
    ------
    InputError
        Where it can't be written.
    """
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, run=run, **state)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as error:
        raise InputError(f"checkpoint = {str(path)!r} can't be written ({error}): pass a path in a folder with space and rights") from error


def load_checkpoint(path: str | os.PathLike[str], run: str) -> dict[str, Any] | None:
    """The state that was saved there, or None where there is no file.

    Raises
    ------
    InputError
        For what is no path, a folder that can't be written to, a file that is no checkpoint, and for one of another run: other data, beta,
        loss or settings. The run learns it before it begins.
    """
    try:
        target = Path(path)
    except TypeError as error:
        raise InputError(f"checkpoint = {path!r} is no path: pass the name of a file, or None") from error
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(f"checkpoint = {str(path)!r} is in a folder that isn't there or is locked: make it, or pass another path")
    if not target.exists():
        return None
    try:
        with target.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            state = _State({name: file[name] for name in file.files})
        owner = str(state.pop("run"))
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"checkpoint = {str(path)!r} can't be read ({error}): delete it, or pass another path") from error
    if owner != run:
        raise InputError(
            f"checkpoint = {str(path)!r} is of a run with other data, beta, loss or settings: delete it to begin anew, or pass another path"
        )
    return state
