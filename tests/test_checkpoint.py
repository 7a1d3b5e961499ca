"""The file of a long run: what can't be one is named before the run begins, and a damaged one never passes for whole."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convexbn import InputError, Program, SlidingFrankWolfe, Squared, whiten
from convexbn.checkpoint import load_checkpoint, save_checkpoint

STATE = {"x": np.arange(5.0), "k": 3}


def program() -> Program:
    X = np.random.default_rng(0).standard_normal((12, 2))
    return Program(whiten(X).basis, X[:, 0] * X[:, 1], Squared(), 0.5, None)


def test_a_state_comes_back_and_no_other_run_takes_it(tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    assert load_checkpoint(file, "mine") is None
    save_checkpoint(file, "mine", STATE)
    saved = load_checkpoint(str(file), "mine")
    assert saved is not None
    assert saved.keys() == STATE.keys()
    assert np.array_equal(saved["x"], STATE["x"])
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]
    with pytest.raises(InputError, match=r"^checkpoint = .* is of a run with other data"):
        load_checkpoint(file, "yours")
    with pytest.raises(InputError, match=r"^checkpoint has no 'y': it is of another version"):
        saved["y"]


@pytest.mark.parametrize("path", [3, "", "none/run.npz", "."])
def test_what_can_hold_no_checkpoint_is_said_before_the_first_round(path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("convexbn.solvers.rounds.Rounds.begin", None)
    with pytest.raises(InputError, match=r"^checkpoint = "):
        SlidingFrankWolfe(checkpoint=path).solve(program())


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / "run.npz.partial").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"^checkpoint = .* can't be written \(.*space"):
        save_checkpoint(tmp_path / "run.npz", "mine", {"x": np.zeros(10_000)})


def test_damage_is_noticed(tmp_path: Path) -> None:
    """Every truncation, and flipped bits: those that pass are in what the archive doesn't need, and change nothing."""
    file = tmp_path / "run.npz"
    save_checkpoint(file, "mine", STATE)
    whole = file.read_bytes()
    flips = [(place, 1 << place % 8) for place in range(len(whole))]
    for damaged in (*(whole[:k] for k in range(len(whole))), *(whole[:k] + bytes([whole[k] ^ bit]) + whole[k + 1 :] for k, bit in flips)):
        file.write_bytes(damaged)
        try:
            saved = load_checkpoint(file, "mine")
        except InputError as error:
            assert str(error).startswith("checkpoint ")  # noqa: PT017
            continue
        assert saved is not None
        assert all(np.array_equal(saved[name], STATE[name]) for name in saved)


@pytest.mark.parametrize("content", [b"", b"text", "array", "pickle", "foreign"])
def test_foreign_files_are_refused_and_closed(content: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.npz"
    with file.open("wb") as stream:
        if content == "array":
            np.save(stream, np.eye(2))
        elif content == "pickle":
            np.savez(stream, run=np.array([{}], dtype=object))
        elif content == "foreign":
            np.savez(stream, X=np.eye(2))
        else:
            stream.write(content)
    with pytest.raises(InputError, match=r"^checkpoint = .* can't be read"):
        load_checkpoint(file, "mine")
    gc.collect()  # a file that is left open warns, which is an error here
