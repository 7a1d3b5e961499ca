"""The one console that progress goes to, on the standard error: lines printed beside a spinner must share it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@cache
def console() -> Console:
    """The console; rich is imported with its first use."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)
