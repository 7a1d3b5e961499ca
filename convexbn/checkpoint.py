"""Checkpoints: the state of a long run in one file, written whole or not at all, and refused by any other run."""

from __future__ import annotations

import hashlib
import os
import zipfile
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


def save_checkpoint(path: str | os.PathLike[str], run: str, state: Mapping[str, Any]) -> None:
    """Write the arrays and numbers of `state` for the run of that fingerprint; the old file stays until the new one is complete."""
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, run=run, **state)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)


def load_checkpoint(path: str | os.PathLike[str], run: str) -> dict[str, Any] | None:
    """The state that was saved there, or None where there is no file.

    Raises
    ------
    InputError
        For a file that is no checkpoint, and for one of another run: other data, beta, loss or settings.
    """
    target = Path(path)
    if not target.exists():
        return None
    try:
        with np.load(target, allow_pickle=False) as file:
            state = {name: file[name] for name in file.files}
        owner = str(state.pop("run"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"checkpoint = {str(path)!r} can't be read ({error}): delete it, or pass another path") from error
    if owner != run:
        raise InputError(
            f"checkpoint = {str(path)!r} is of a run with other data, beta, loss or settings: delete it to begin anew, or pass another path"
        )
    return state
