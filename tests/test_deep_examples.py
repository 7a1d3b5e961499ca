"""The examples of convolution and neural collapse run as their users run them, and print only what holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts import assert_drawn, printed


def numbers(text: str, start: str) -> list[float]:
    """The objectives of the lines that begin so."""
    lines = [line for line in text.splitlines() if line.replace("│", " ").strip().startswith(start)]
    return [float(re.findall(r"\d+\.\d+", line)[0]) for line in lines]


def test_convolution_is_never_above_adam(tmp_path: Path) -> None:
    text = printed("convolution.py", "--quick", "--picture", str(tmp_path / "picture.png"))
    (ours,), (bound,), adam = numbers(text, "convexbn"), numbers(text, "optimum (proved"), numbers(text, "Adam")
    assert bound <= ours <= min(adam) * (1.0 + 1e-6)
    assert_drawn(tmp_path / "picture.png")


def test_neural_collapse_is_complete_at_the_optimum_alone(tmp_path: Path) -> None:
    text = printed("neural_collapse.py", "--quick", "--picture", str(tmp_path / "picture.png"))
    assert "closed form: solved" in text
    (optimum,), adam = numbers(text, "the optimum"), numbers(text, "Adam, step")
    # p* = sum over ten classes of beta sqrt(5) - beta^2 / 2 with beta = 0.1 sqrt(5)
    assert optimum == pytest.approx(10 * (0.5 - 0.025), abs=1e-4)
    assert min(adam) >= optimum
    assert float(re.findall(r"the optimum: .*angles (\S+),", text)[0]) <= 1e-12
    assert_drawn(tmp_path / "picture.png")
