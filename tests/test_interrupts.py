"""Ctrl-C is held back where that is asked for, once, and its handler comes back."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from problems import strike

from convexbn.interrupts import held_interrupts

pytestmark = pytest.mark.usefixtures("usual_handler")


def test_the_first_is_told_and_the_second_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt), held_interrupts(True) as came:  # noqa: PT012
        assert not came()
        strike()
        assert came()
        strike()


def test_nothing_is_held_where_nothing_is_asked_for() -> None:
    with pytest.raises(KeyboardInterrupt), held_interrupts(False):
        strike()


def test_other_threads_and_deaf_processes_are_left_alone() -> None:
    def inside() -> bool:
        with held_interrupts(True) as came:
            return came() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler

    with ThreadPoolExecutor(1) as threads:
        assert not threads.submit(inside).result()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held_interrupts(True) as came:
        strike()
        assert not came()
    signal.signal(signal.SIGINT, signal.default_int_handler)
