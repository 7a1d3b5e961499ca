"""Ctrl-C during a proof ends it with the best bound so far, which holds, and the fit is returned and says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from problems import random_network, several_targets, strike

from convexbn import Certificate, Fit, Network, beta_max, certify, fit, fit_convex_bn, fit_path, judge
from convexbn.losses import Squared
from convexbn.pricing import outputs, tree
from convexbn.pricing.boxes import BoxSearch
from convexbn.pricing.joint import JointTraining
from convexbn.pricing.moments import MomentTraining
from convexbn.pricing.nonnegative import RelaxedTraining

AGES = 1_000.0  # seconds for a proof that nobody waits for


pytestmark = pytest.mark.usefixtures("usual_handler")


def raised() -> None:
    raise KeyboardInterrupt


def interrupt(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int = 1, by: Callable[[], None] = raised) -> None:
    """The call of that number interrupts, and every other one is as ever."""
    usual, numbers = getattr(owner, name), iter(range(1, 1_000_000))

    def interrupting(*arguments: Any, **settings: Any) -> Any:
        if next(numbers) == call:
            by()
        return usual(*arguments, **settings)

    patch.setattr(owner, name, interrupting)


def problem(outputs: int, features: int) -> tuple[np.ndarray, np.ndarray, Fit]:
    """Thirty samples, and their fit with hardly a proof."""
    X = np.random.default_rng(0).standard_normal((30, features))
    y = several_targets(Squared(), 30, outputs, 1) if outputs > 1 else X[:, 0] + np.abs(X[:, 1])
    return X, y, fit_convex_bn(X, y, beta=0.15 * beta_max(X, y), proof_seconds=0.0)


def judged(X: np.ndarray, y: np.ndarray, network: Network, best: Fit, seconds: float = AGES) -> Certificate:
    """The certificate of a network; no bound is above the objective of the best network."""
    found = certify(X, y, network, beta=best.program.beta, seconds=seconds)
    assert 0.0 < found.bound <= best.certificate.objective * (1.0 + 1e-9)
    assert found.bound <= found.estimate <= found.objective
    assert ("the proof was interrupted" in str(found)) == found.interrupted
    return found


@pytest.mark.parametrize(
    ("outputs", "features", "owner", "name", "call"),
    [
        (1, 2, judge, "price_dual", 2),
        (1, 5, judge, "improve_dual", 1),
        (1, 9, MomentTraining, "advance", 1),
        (1, 9, MomentTraining, "advance", 3),
        (1, 9, JointTraining, "advance", 2),
        (7, 3, RelaxedTraining, "advance", 2),
        (2, 3, RelaxedTraining, "price", 2),
    ],
)
def test_the_best_bound_before_an_interrupt_is_kept(
    outputs: int, features: int, owner: Any, name: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the trivial one, and below that of the proof that goes on."""
    X, y, best = problem(outputs, features)
    network = random_network(X, 0, outputs=outputs)
    with monkeypatch.context() as patch:
        interrupt(patch, judge, "price_dual")
        trivial = judged(X, y, network, best)
    interrupt(monkeypatch, owner, name, call)
    found = judged(X, y, network, best)
    assert found.interrupted
    assert trivial.interrupted
    assert found.bound > trivial.bound


@pytest.mark.parametrize(("outputs", "features"), [(1, 2), (3, 2), (1, 40)])
def test_before_any_bound_is_known_it_is_that_of_the_trivial_price(outputs: int, features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """h(V) <= ||V||, in closed form for squared loss: max over t ||V|| <= beta of t V^T y - t^2 ||V||^2 / 2."""
    X, y, best = problem(outputs, features)
    network = random_network(X, 0, outputs=outputs)
    interrupt(monkeypatch, judge, "price_dual")
    found = judged(X, y, network, best)
    V = y - network.predict(X)
    scale = min(best.program.beta / np.linalg.norm(V, 2), max(0.0, float(np.sum(V * y) / np.sum(V**2))))
    assert found.bound == pytest.approx(scale * np.sum(V * y) - 0.5 * scale**2 * np.sum(V**2), rel=1e-6)
    np.testing.assert_allclose(found.dual, scale * V, rtol=1e-6)
    assert found.estimate == found.bound


@pytest.mark.parametrize("by", [raised, strike])
def test_boxes_in_both_threads_stop_and_keep_what_they_have(by: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes to the thread that waits for them, in the middle of the proof of both signs."""
    X, y, best = problem(1, 5)
    without = judged(X, y, best.network, best, seconds=0.0)
    usual, searches, times = BoxSearch._halve_the_worst, set(), []

    def interrupting(self: BoxSearch, deadline: float) -> None:
        usual(self, deadline)
        searches.add(self)
        if len(searches) == 2 and not times and all(search.upper < 1.02 * search._samples.goal for search in searches):
            times.append(deadline)
            by()

    monkeypatch.setattr(BoxSearch, "_halve_the_worst", interrupting)
    found = judged(X, y, best.network, best)
    assert len(times) == 1
    assert found.interrupted
    assert without.bound < found.bound


@pytest.mark.parametrize(
    ("shape", "method", "constant", "value", "owner", "name"),
    [
        ((1, 4), "_by_tree", "TREE_GAP", 1.0, tree, "_parts"),
        ((2, 1), "_by_outputs", "SHORT", 0.0, outputs._Cuts, "add"),  # 5 without time, then 5 and up to 8 a look
    ],
)
def test_the_bound_of_the_last_split_or_look_is_kept(
    shape: tuple[int, int], method: str, constant: str, value: float, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y, best = problem(*shape)
    monkeypatch.setattr(judge.Judge, "_methods", lambda self: [getattr(self, method)])
    monkeypatch.setattr(judge, constant, value)
    without = judged(X, y, best.network, best, seconds=0.0)
    interrupt(monkeypatch, owner, name, 20)
    found = judged(X, y, best.network, best)
    assert found.interrupted
    assert without.bound < found.bound


@pytest.mark.parametrize(("owner", "name"), [(judge, "price_dual"), (BoxSearch, "_halve_the_worst"), (judge, "thorough_search")])
def test_the_fit_is_returned_with_its_network(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """First look, middle and last."""
    X, y, best = problem(1, 5)
    interrupt(monkeypatch, owner, name, by=strike)
    found = fit_convex_bn(X, y, beta=best.program.beta)
    assert found.interrupted
    assert found.solution.status is best.solution.status
    assert "proved, the proof was interrupted)" in str(found)
    np.testing.assert_array_equal(found.predict(X), best.predict(X))
    assert found.certificate.objective == best.certificate.objective
    assert 0.0 < found.certificate.bound <= best.certificate.objective
    assert not best.interrupted
    assert "interrupted" not in str(best)


@pytest.mark.parametrize(("owner", "name"), [(fit, "simplest"), (judge.Network, "objective")])
def test_what_comes_before_the_proof_is_finished_first(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, best = problem(1, 2)
    monkeypatch.setattr(judge, "price_dual", None)  # nothing is priced
    interrupt(monkeypatch, owner, name, by=strike)
    found = fit_convex_bn(X, y, beta=best.program.beta)
    assert found.interrupted
    np.testing.assert_array_equal(found.predict(X), best.predict(X))
    assert 0.0 < found.certificate.bound <= best.certificate.objective


def test_the_second_interrupt_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, best = problem(1, 2)
    interrupt(monkeypatch, fit, "simplest", by=lambda: [strike(), strike()])  # type: ignore[arg-type, func-returns-value]
    with pytest.raises(KeyboardInterrupt):
        fit_convex_bn(X, y, beta=best.program.beta)


def test_a_path_ends_at_the_point_whose_proof_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the points before, which are complete."""
    X, y, best = problem(1, 2)
    betas = best.beta_max * np.array([0.5, 0.4, 0.3])
    whole = fit_path(X, y, betas=betas)
    assert not whole.interrupted
    certify_on, calls = fit.certify_on, iter(range(3))

    def second(*arguments: Any, **settings: Any) -> Certificate:
        with monkeypatch.context() as patch:
            if next(calls) == 1:
                interrupt(patch, judge, "price_dual")
            return certify_on(*arguments, **settings)

    monkeypatch.setattr(fit, "certify_on", second)
    path = fit_path(X, y, betas=betas)
    assert path.interrupted
    assert path.betas.tolist() == [betas[0]]
    assert next(calls) == 2
