"""The examples of truncation and batch normalisation after the ReLU print what holds."""

from __future__ import annotations

import re
from pathlib import Path

from scripts import assert_drawn, printed

NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]\d+)?")


def numbers(text: str) -> list[list[float]]:
    """The numbers with a point of each row of a table."""
    return [[float(number) for number in NUMBER.findall(line)] for line in text.splitlines() if line.startswith("│")]


def test_no_start_ends_below_the_optimum_with_normalisation_after_the_relu(tmp_path: Path) -> None:
    target = tmp_path / "post_bn.png"
    program, best, median, closed = numbers(printed("post_bn.py", "--quick", "--picture", str(target)))
    assert program[0] <= best[0] <= median[0]
    assert max(program[1], closed[1]) <= 1e-6
    assert_drawn(target)


def test_truncation_prints_a_row_for_each_rank(tmp_path: Path) -> None:
    target = tmp_path / "truncation.png"
    text = printed("truncation.py", "--quick", "--picture", str(target))
    found = numbers(text)
    shares = [row[0] for row in found]
    assert shares == sorted(shares)
    assert shares[-1] == 100.0
    chosen = next(row for row, line in zip(found, [line for line in text.splitlines() if line.startswith("│")], strict=True) if "*" in line)
    assert chosen[2] == min(row[2] for row in found)
    assert "for networks that read only" in text or "rank 30" in text
    assert_drawn(target)
