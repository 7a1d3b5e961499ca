"""The example of batch normalisation after the ReLU prints what holds."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image
from test_examples import printed

NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]\d+)?")


def rows(text: str) -> list[list[float]]:
    """The numbers with a point of each row of a table."""
    return [[float(number) for number in NUMBER.findall(line)] for line in text.splitlines() if line.startswith("│")]


def test_no_start_ends_below_the_optimum_with_normalisation_after_the_relu(tmp_path: Path) -> None:
    target = tmp_path / "post_bn.png"
    program, best, median, closed = rows(printed("post_bn.py", "--quick", "--picture", str(target)))
    assert program[0] <= best[0] <= median[0]
    assert max(program[1], closed[1]) <= 1e-6
    with Image.open(target) as picture:
        assert picture.width >= 1200
