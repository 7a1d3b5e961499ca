"""The one console that progress goes to, on the standard error: lines printed beside a spinner must share it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@cache
def console() -> Console:
    """The console; rich is imported with its first use. Lines stay whole: a log is no page of 80 columns."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def stage(name: str, seconds: dict[str, float], verbose: bool) -> Iterator[None]:
    """Time a stage of a fit, and show it while it runs."""
    start = time.perf_counter()
    if verbose:
        try:
            with console().status(f"convexbn: {name}"):
                yield
        except KeyboardInterrupt:
            console().print(f"convexbn: interrupted in the stage '{name}'; nothing was kept")
            raise
        console().print(f"convexbn: {name} {time.perf_counter() - start:.2f} s")
    else:
        yield
    seconds[name] = time.perf_counter() - start


@contextmanager
def progress_bar(label: str, steps: int, show: bool) -> Iterator[Callable[[str], None]]:
    """A bar of so many steps; call what it gives after each, with a word on how it stands. Where `show` is false it shows nothing.

    In a log there is no bar, and a line for each tenth of the steps.
    """
    if not show:
        yield lambda state: None
        return
    if not console().is_terminal:
        yield from _step_lines(label, steps)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[state]}")
    with Progress(*columns, console=console(), transient=True) as progress:
        task = progress.add_task(label, total=steps, state="")
        yield lambda state: progress.update(task, advance=1, state=state)


@contextmanager
def gap_bar(tolerance: float, *, shown: bool) -> Iterator[Callable[[float], None]]:
    """A function to call with each new relative gap; where `shown`, a bar that is full at the tolerance, and the time left.

    A gap that falls by the same factor in the same time moves the bar evenly. In a log there is no bar, and a line for each gap that is
    ten times smaller, and for the last.
    """
    if not shown:
        yield lambda gap: None
        return
    if not console().is_terminal:
        yield from _gap_lines(tolerance)
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


def _step_lines(label: str, steps: int) -> Iterator[Callable[[str], None]]:
    """The same as lines of a log."""
    done = 0

    def advance(state: str) -> None:
        nonlocal done
        done += 1
        if 10 * done // steps > 10 * (done - 1) // steps:
            console().print(f"{label}, {done} of {steps}{f', {state}' if state else ''}")

    yield advance


def _gap_lines(tolerance: float) -> Iterator[Callable[[float], None]]:
    """The same as lines of a log."""
    written = math.inf

    def show(gap: float) -> None:
        nonlocal written
        if gap < written and (gap <= 0.1 * written or gap <= tolerance):
            console().print(f"convexbn: relative gap {gap:.1e}")
            written = gap

    yield show
