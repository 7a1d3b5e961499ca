"""Ctrl-C where several processes work on one problem, or work would be lost: it is held back until all know, or until that is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def held_interrupts(held: bool) -> Iterator[Callable[[], bool]]:
    """A function that tells whether Ctrl-C came inside, where it is `held` back; the second one interrupts as ever.

    A process that leaves a sum over processes on its own lets the others wait for it for ever. Where nothing is to be held, in a thread
    that gets no signals, and where signals are ignored or somebody else's, everything is as ever.
    """
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not (held and main and callable(before)):
        yield lambda: False
        return
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)
