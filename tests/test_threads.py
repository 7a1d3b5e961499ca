"""One thread for small work, whoever computes, and all of them again afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from threading import Barrier, get_ident

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from convexbn import threads
from convexbn.threads import LARGE, few_threads, side_by_side


def test_small_work_has_one_thread_and_large_work_keeps_its_threads():
    before = torch.get_num_threads(), threadpool_info()
    assert np.isfinite(np.eye(2) @ np.eye(2)).all()
    with few_threads(LARGE - 1):
        assert torch.get_num_threads() == 1
        assert {library["num_threads"] for library in threadpool_info()} == {1}
    with few_threads(LARGE):
        assert (torch.get_num_threads(), threadpool_info()) == before
    assert (torch.get_num_threads(), threadpool_info()) == before


OVERLAP = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
import numpy, scipy.linalg
from threadpoolctl import threadpool_info
from convexbn.threads import few_threads

entered, left = Barrier(2, timeout=10.0), Event()
blas = lambda: {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

def first():
    with few_threads(1):
        entered.wait()
        entered.wait()
    left.set()

def second():
    entered.wait()
    with few_threads(1):
        entered.wait()
        left.wait(10.0)
        return blas()

before = blas()
with ThreadPoolExecutor(2) as pool:
    inside = [pool.submit(task) for task in (first, second)][1].result()
print(before, inside, blas())
"""


def test_threads_that_overlap_leave_blas_as_it_was():
    """The second to come finds the limit of the first, and would leave it to the process for good."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parents[1])}
    answer = subprocess.run([sys.executable, "-c", OVERLAP], env=environment, capture_output=True, text=True, check=True)
    cores = min(2, os.cpu_count() or 1)
    assert answer.stdout == f"{ {cores} } { {1} } { {cores} }\n"


def test_libraries_are_looked_for_again_after_an_import(monkeypatch: pytest.MonkeyPatch):
    with few_threads(1):
        before = threads._libraries(len(sys.modules))
    with few_threads(1):
        assert threads._libraries(len(sys.modules)) is before
    monkeypatch.setitem(sys.modules, "a_module_that_was_not_there", threads)
    with few_threads(1):
        assert threads._libraries(len(sys.modules)) is not before


@pytest.mark.parametrize(
    ("entries", "asked", "cores", "expected"), [(LARGE, "2", 2, 2), (LARGE, "1", 2, 1), (LARGE, "", 1, 1), (1, "2", 2, 1)]
)
def test_two_large_tasks_have_two_threads_where_two_are_welcome(
    entries: int, asked: str, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: cores)
    barrier = Barrier(expected, timeout=10.0)  # passed only by tasks that run at the same time

    def task(_: int) -> int:
        barrier.wait()
        return get_ident()

    with side_by_side(entries) as mapped:
        assert len(set(mapped(task, range(2)))) == expected
