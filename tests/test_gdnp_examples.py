"""The two examples run as their users run them, and print what the theory says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
ENVIRONMENT = {**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}


def rows(script: str, picture: Path) -> list[list[str]]:
    """The cells of all tables that the script prints."""
    command = [sys.executable, str(EXAMPLES / script), "--quick", "--picture", str(picture)]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=300)
    assert result.stderr == ""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if line.startswith("│")]


def assert_drawn(picture: Path) -> None:
    with Image.open(picture) as image:
        assert image.width >= 1200
        assert len(image.convert("RGB").resize((200, 150)).getcolors(30_000)) > 50


def test_every_activation_has_the_same_rate_and_only_the_sigmoid_no_length(tmp_path):
    table = rows("gdnp.py", tmp_path / "new" / "gdnp.png")
    rates = {row[0]: row[1:] for row in table[:4]}
    assert set(rates) == {"softplus", "squared", "sigmoid", "squared sigmoid"}
    assert len({(seen, gap) for seen, _, gap, _, _ in rates.values()}) == 1
    assert all(float(seen) < float(guaranteed) for seen, guaranteed, *_ in rates.values())
    assert [name for name, row in rates.items() if row[-1] == "unbounded"] == ["sigmoid"]
    methods = [row[0] for row in table[4:]]
    assert methods == ["GDNP", "gradient descent", "Nesterov", "batch normalisation", "weight normalisation"] * 3
    assert all(0.0 < float(row[-1]) < 0.1 for row in table[4:14])  # the optimum lies below every method
    assert_drawn(tmp_path / "new" / "gdnp.png")


def test_products_with_the_norms_of_the_weights_are_the_larger_numbers(tmp_path):
    table = rows("cross_dependency.py", tmp_path / "cross.png")
    assert [row[0] for row in table] == ["without", "without", "with", "with"] * 2
    plain, scaled = ([[float(cell) for cell in row[2:]] for row in half] for half in (table[:4], table[4:]))
    for one, other in zip(plain, scaled, strict=True):
        ratios = [b / a for a, b in zip(one, other, strict=True)]
        assert len(ratios) == 7
        assert min(ratios) > 1.0
    assert_drawn(tmp_path / "cross.png")
