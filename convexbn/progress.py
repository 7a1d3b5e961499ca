"""The one console that progress goes to, on the standard error: lines printed beside a spinner must share it."""

from __future__ import annotations

import math
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


@contextmanager
def gap_bar(tolerance: float, *, shown: bool) -> Iterator[Callable[[float], None]]:
    """A function to call with each new relative gap; where `shown`, a bar that is full at the tolerance, and the time left.

    A gap that falls by the same factor in the same time moves the bar evenly.
    """
    if not shown:
        yield lambda gap: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("convexbn: relative gap {task.fields[gap]:.1e}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True) as progress:
        task = progress.add_task("gap", total=1.0, gap=float("nan"))
        first = 1.0

        def show(gap: float) -> None:
            done = math.log(first / max(gap, tolerance)) / math.log(first / tolerance) if tolerance < first else 1.0
            progress.update(task, completed=min(1.0, max(0.0, done)), gap=gap)

        yield show
