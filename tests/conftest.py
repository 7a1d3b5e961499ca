"""What all tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, and no clock: a busy machine fails no test.
settings.register_profile("steady", max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture
def rough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither proofs nor last digits, for tests of the shell."""
    from estimator_data import unproved

    monkeypatch.setattr("convexbn.fit.certify_on", unproved)
    monkeypatch.setattr("convexbn.solvers.rounds.POLISH", (1e-3,))


@pytest.fixture
def usual_handler() -> Iterator[None]:
    """Of Ctrl-C, which a test leaves as it was: a shell's background jobs are born deaf to the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)
