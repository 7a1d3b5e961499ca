"""The one console that progress goes to, on the standard error: lines printed beside a spinner must share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@cache
def console() -> Console:
    """The console; rich is imported with its first use."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextmanager
def progress_bar(label: str, steps: int, show: bool) -> Iterator[Callable[[str], None]]:
    """A bar of so many steps; call what it gives after each, with a word on how it stands. Where `show` is false it shows nothing."""
    if not show:
        yield lambda state: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[state]}")
    with Progress(*columns, console=console(), transient=True) as progress:
        task = progress.add_task(label, total=steps, state="")
        yield lambda state: progress.update(task, advance=1, state=state)
