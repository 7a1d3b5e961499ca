"""The judge: a proof is valid whenever its time is up, and what is tried first is what wins most."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import pytest
from problems import random_network, several_targets

from convexbn import Network, beta_max, certify, fit_convex_bn, judge
from convexbn.losses import Squared


def problem(outputs: int, features: int) -> tuple[np.ndarray, np.ndarray, Network, float]:
    """Thirty samples, some network, and half of beta_max."""
    X = np.random.default_rng(0).standard_normal((30, features))
    y = several_targets(Squared(), 30, outputs, 1) if outputs > 1 else X[:, 0] + np.abs(X[:, 1])
    return X, y, random_network(X, 0, outputs=outputs), 0.5 * beta_max(X, y)


def forbidden(*arguments: Any, **settings: Any) -> NoReturn:
    raise AssertionError("this takes time that there isn't")


@pytest.mark.parametrize(("outputs", "features"), [(1, 2), (1, 5), (1, 9), (2, 3), (7, 3)])
def test_without_time_nothing_begins_and_the_bound_holds(outputs: int, features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, network, beta = problem(outputs, features)
    best = fit_convex_bn(X, y, beta=beta, proof_seconds=0.0).certificate.objective
    for name in ("improve_dual", "RelaxedTraining", "MomentTraining", "JointTraining", "bound_by_tree"):
        monkeypatch.setattr(judge, name, forbidden)
    without = certify(X, y, network, beta=beta, seconds=0.0)
    assert 0.0 < without.bound <= best * (1.0 + 1e-9) <= without.objective
    assert "proved" in str(without)


@pytest.mark.parametrize(("outputs", "features", "first"), [(7, 3, "RelaxedTraining"), (1, 9, "MomentTraining"), (1, 7, "improve_dual")])
def test_what_is_tried_first(outputs: int, features: int, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products for many outputs, moments for some ten columns, better dual points for fewer."""
    X, y, network, beta = problem(outputs, features)
    monkeypatch.setattr(judge, first, forbidden)
    with pytest.raises(AssertionError, match="time"):
        certify(X, y, network, beta=0.3 * beta, seconds=100.0)


def test_moments_take_over_from_boxes_that_are_far_from_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not from those that have come near it, however far the network is from both."""
    X, y, network, beta = problem(1, 4)
    monkeypatch.setattr(judge, "MomentTraining", forbidden)
    found = certify(X, y, network, beta=0.3 * beta, seconds=10.0)
    assert found.relative_gap > judge.FAR_GAP
    assert found.estimate - found.bound < judge.FAR_GAP * found.objective
    monkeypatch.setattr(judge, "FAR_GAP", -1.0)
    with pytest.raises(AssertionError, match="time"):
        certify(X, y, network, beta=0.3 * beta, seconds=10.0)


@pytest.mark.parametrize(("size", "halves"), [(95, [2]), (1_000, [2, 3])], ids=["smaller", "larger"])
def test_joint_moments_take_what_moments_leave(size: int, halves: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Degree 6 begins where degree 4 has come, unless its matrix is larger than the joint one; with no patience that is next."""
    X, y, network, beta = problem(1, 9)
    begun: list[int] = []
    moments = judge.MomentTraining

    class Counted(moments):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, half: int, **settings: Any) -> None:
            begun.append(half)
            super().__init__(*arguments, half=half, **settings)

        def raised(self) -> Any:
            begun.append(self.half + 1)
            return super().raised()

    monkeypatch.setattr(judge, "HASTY", 1.0)
    monkeypatch.setattr(judge, "PATIENCE", 0)
    assert judge.joint_size(30, 10) == 95
    monkeypatch.setattr(judge, "joint_size", lambda rows, width: size)
    monkeypatch.setattr(judge, "MomentTraining", Counted)
    monkeypatch.setattr(judge, "JointTraining", forbidden)
    with pytest.raises(AssertionError, match="time"):
        certify(X, y, network, beta=0.3 * beta, seconds=100.0)
    assert begun == halves


def test_what_is_left_of_the_time_goes_to_finer_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two outputs where all else stops above the gap that is wanted: cuts in the space of outputs close it."""
    X = np.random.default_rng(0).standard_normal((12, 1))
    y = several_targets(Squared(), 12, 2, 1)
    beta = 0.5 * beta_max(X, y)
    fit = fit_convex_bn(X, y, beta=0.6 * beta, proof_seconds=0.0)
    for name in ("_by_products", "_by_dual_points"):
        monkeypatch.setattr(judge.Judge, name, lambda self, found, objective: found)
    monkeypatch.setattr(judge, "SHORT", 0.0)
    finer = certify(X, y, fit.network, beta=0.6 * beta, seconds=60.0)
    assert certify(X, y, fit.network, beta=0.6 * beta, seconds=0.0).relative_gap > 0.02
    assert finer.relative_gap <= judge.PROOF_GAP
    assert finer.bound <= finer.objective
