"""Fixtures that several files share."""

from __future__ import annotations

import pytest


@pytest.fixture
def rough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither proofs nor last digits, for tests of the shell."""
    from estimator_data import unproved

    monkeypatch.setattr("convexbn.fit.certify_on", unproved)
    monkeypatch.setattr("convexbn.solvers.sliding.POLISH", (1e-3,))
