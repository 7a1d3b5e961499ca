"""One thread for linear algebra on small matrices, where more only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LARGE = 2_000_000  # entries of a basis from which BLAS keeps all its threads


@contextmanager
def few_threads(entries: int) -> Iterator[None]:
    """Hold BLAS to one thread inside, for a basis of so many entries, unless it is large.

    Searches and proofs call it tens of thousands of times on small matrices; beside another busy process, threads that wait for
    each other made such calls five times slower.
    """
    if entries >= LARGE:
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield
