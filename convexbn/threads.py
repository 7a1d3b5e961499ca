"""Threads: one for linear algebra on small matrices, where more only wait for each other, and two for two large tasks."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

LARGE = 2_000_000  # entries of a basis from which BLAS keeps all its threads

_lock, _inside = threading.Lock(), set[object]()
_limits: list[tuple[ThreadpoolController, Any]] = []  # of BLAS, those of libraries that came later after the others


@contextmanager
def few_threads(entries: int) -> Iterator[None]:
    """Hold BLAS and PyTorch to one thread inside, for a basis of so many entries, unless it is large.

    Searches and proofs call it tens of thousands of times on small matrices; beside another busy process, threads that wait for
    each other made such calls five times slower. BLAS has its number for the whole process: where several threads of it come here, it
    has one thread from the first that enters until the last has left, and then what it had.
    """
    if entries >= LARGE:
        yield
        return
    blas, openmp = _libraries(len(sys.modules))
    me = object()
    try:
        with _lock:
            _inside.add(me)
            if not _limits or _limits[-1][0] is not blas:
                _limits.append((blas, blas.limit(limits=1)))
        with openmp.limit(limits=1):
            yield
    finally:
        with _lock:
            _inside.discard(me)
            while _limits and not _inside:
                _limits.pop()[1].restore_original_limits()


@lru_cache(maxsize=1)
def _libraries(modules: int) -> tuple[ThreadpoolController, ThreadpoolController]:
    """BLAS and OpenMP in this process; looking for them takes a millisecond, and only imports bring new ones."""
    from threadpoolctl import ThreadpoolController

    found = ThreadpoolController()
    return found.select(user_api="blas"), found.select(user_api="openmp")


def _cores() -> int:
    """How many threads are welcome."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(asked) if asked.isdigit() else 2, os.cpu_count() or 1)


@contextmanager
def side_by_side(entries: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` whose calls run in two threads where each works on a large basis of so many entries, with one BLAS thread a call. In one
    where OMP_NUM_THREADS asks for that or there is one core.

    On smaller bases two threads take turns in the interpreter, and take longer than one. Threads of BLAS wait for each other at each
    product, busily; those of two independent tasks, here the two signs of V, don't.
    """
    if entries < LARGE or _cores() < 2:
        yield map
        return
    with few_threads(0), ThreadPoolExecutor(2) as threads:
        yield threads.map
