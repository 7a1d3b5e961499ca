"""The examples as their users run them: what they print, the cells of their tables, and whether a picture shows something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
ENVIRONMENT = {**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(EXAMPLES / script), *arguments]


def printed(script: str, *arguments: str) -> str:
    result = subprocess.run(command(script, *arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def rows(text: str) -> list[list[str]]:
    """The cells of each row of the tables, without their headings."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def assert_drawn(picture: Path) -> None:
    with Image.open(picture) as image:
        assert image.width >= 900
        assert len(image.convert("RGB").resize((200, 150)).getcolors(30_000)) > 50
