"""Progress in a log, which is no terminal: whole lines, and no bar."""

from __future__ import annotations

import re

import numpy as np
import pytest

from convexbn import fit_gated_bn, fit_path
from convexbn.training import train_networks

X = np.random.default_rng(0).standard_normal((50, 3))
y = X[:, 0] - X[:, 0].mean()


def test_lines_are_not_cut_at_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    fit_path(X, y, betas=2, verbose=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["convexbn: point 1 of 2", "convexbn: point 2 of 2"]
    assert max(map(len, lines)) > 80


def test_a_gap_is_told_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    fit_gated_bn(X, y, gates=5, verbose=True)
    lines = capsys.readouterr().err.splitlines()
    gaps = [float(re.fullmatch(r"convexbn: relative gap ([\d.e+-]+)", line).group(1)) for line in lines]  # type: ignore[union-attr]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] <= 1e-4
    assert 1 < len(gaps) < 8


def test_each_tenth_of_the_steps_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    train_networks(X, y, beta=1.0, width=3, starts=1, epochs=25, verbose=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("convexbn: training, 3 of 25")
    assert lines[-1].startswith("convexbn: training, 25 of 25")
