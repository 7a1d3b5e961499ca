"""Every bad input in one table, with the argument that the message names first; and odd inputs that are right, with the right answer."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from convexbn import (
    ActiveSet,
    Conic,
    ConvexBNError,
    ConvexBNRegressor,
    InputError,
    Network,
    SlidingFrankWolfe,
    SolverUnavailable,
    Squared,
    beta_max,
    certify,
    enumerate_arrangements,
    fit_convex_bn,
    fit_gated_bn,
    fit_gated_path,
    fit_post_bn,
    neural_collapse,
    recover,
    sample_arrangements,
    whiten,
)

X = np.random.default_rng(0).standard_normal((8, 2))
y = np.random.default_rng(1).standard_normal(8)
CONIC = {"arrangements": "all", "solver": "CLARABEL"}
DATES = np.array(["2020-01-01"] * 16, dtype="datetime64[D]").reshape(8, 2)
CATEGORIES = pd.Categorical(list("abababab"))
MASKED = np.ma.masked_greater(X, 1.0)


def with_entry(array: np.ndarray, value: float) -> np.ndarray:
    """A copy with another number in one place."""
    copy = array.copy()
    copy.flat[3] = value
    return copy


BAD = {
    "NaN in X": ({"X": with_entry(X, np.nan)}, "X"),
    "infinity in X": ({"X": with_entry(X, np.inf)}, "X"),
    "minus infinity in X": ({"X": with_entry(X, -np.inf)}, "X"),
    "NaN in y": ({"y": with_entry(y, np.nan)}, "y"),
    "infinity in y": ({"y": with_entry(y, -np.inf)}, "y"),
    "integers beyond float64": ({"X": np.array([[1, 10**400]] * 8, dtype=object)}, "X"),
    "long doubles beyond float64": ({"X": X.astype(np.longdouble) * np.longdouble("1e400")}, "X"),
    "X without columns": ({"X": X[:, 0]}, "X"),
    "X a number": ({"X": 3.0}, "X"),
    "X of three dimensions": ({"X": X[None]}, "X"),
    "time below zero": ({"proof_seconds": -1.0}, "proof_seconds"),
    "time that is no number": ({"proof_seconds": float("nan")}, "proof_seconds"),
    "time as text": ({"proof_seconds": "5"}, "proof_seconds"),
    "y too short": ({"y": y[:-1]}, "y"),
    "y too long": ({"y": np.append(y, 1.0)}, "y"),
    "y of three dimensions": ({"y": y[:, None, None]}, "y"),
    "y without columns": ({"y": np.zeros((8, 0))}, "y"),
    "several outputs for a conic solver": ({"y": np.column_stack([y, y])}, "(arrangements|solver|y)"),
    "several outputs on a list": ({"y": np.column_stack([y, y]), "arrangements": enumerate_arrangements(whiten(X).basis)}, "arrangements"),
    "several outputs on a sample": ({"y": np.column_stack([y, y]), "arrangements": 5, "solver": "auto"}, "arrangements"),
    "several outputs in closed form": ({"X": np.eye(8), "y": np.column_stack([y, y]), "solver": "closed form"}, "solver"),
    "NaN in the second output": ({"y": np.column_stack([y, with_entry(y, np.nan)])}, "y"),
    "one column for softmax": ({"y": np.arange(8) % 2, "loss": "softmax"}, "y"),
    "numbers for softmax": ({"y": np.column_stack([y, y]), "loss": "softmax"}, "y"),
    "labels -1 and 1 in columns for softmax": ({"y": np.sign(np.column_stack([y, -y])), "loss": "softmax"}, "y"),
    "numbers in columns for logistic": ({"y": np.column_stack([y, y]), "loss": "logistic"}, "y"),
    "y a row": ({"y": y[None]}, "y"),
    "y a number": ({"y": 3.0}, "y"),
    "X None": ({"X": None}, "X"),
    "y None": ({"y": None}, "y"),
    "None among numbers": ({"X": np.array([[1, None]] * 8, dtype=object)}, "X"),
    "X a word": ({"X": "data.csv"}, "X"),
    "X bytes": ({"X": b"data"}, "X"),
    "X of text": ({"X": X.astype(str)}, "X"),
    "y of text": ({"y": y.astype(str)}, "y"),
    "X objects of text": ({"X": np.array([[1, "a"]] * 8, dtype=object)}, "X"),
    "X objects of text that spells numbers": ({"X": np.array([["1.5", "2"], ["2", "1"]] * 4, dtype=object)}, "X"),
    "y objects of text": ({"y": np.array(list("abababab"), dtype=object)}, "y"),
    "X a dictionary": ({"X": {"a": 1}}, "X"),
    "X a generator": ({"X": (row for row in X)}, "X"),
    "X a record": ({"X": np.zeros((8, 2), dtype=[("a", float)])}, "X"),
    "complex X": ({"X": X + 0j}, "X"),
    "complex y": ({"y": y + 1j}, "y"),
    "complex objects": ({"X": np.array([[1, 1j]] * 8, dtype=object)}, "X"),
    "sparse array X": ({"X": sparse.csr_array(X)}, "X"),
    "sparse matrix X": ({"X": sparse.csc_matrix(X)}, "X"),
    "sparse y": ({"y": sparse.coo_array(y)}, "y"),
    "masked X": ({"X": MASKED}, "X"),
    "masked y": ({"y": np.ma.masked_less(y, 0.0)}, "y"),
    "empty X": ({"X": []}, "X"),
    "X of an empty row": ({"X": [[]]}, "X"),
    "no samples": ({"X": np.zeros((0, 2)), "y": []}, "X"),
    "no features": ({"X": np.zeros((8, 0))}, "X"),
    "empty y": ({"y": []}, "y"),
    "one sample": ({"X": X[:1], "y": y[:1]}, "X"),
    "X of ones": ({"X": np.ones((8, 2))}, "X"),
    "X of zeros": ({"X": np.zeros((8, 2))}, "X"),
    "constant columns of great size": ({"X": np.full((8, 2), [1e300, 0.1])}, "X"),
    "X below the units of float64": ({"X": 1e-310 * X}, "X"),
    "X at the end of float64": ({"X": 5e307 * X}, "X"),
    "one column below the units of float64": ({"X": X * [1.0, 1e-310]}, "X"),
    "a column that varies by 3e-14 of its size": ({"X": np.column_stack([X[:, 0], 1.0 + 3e-14 * X[:, 1]])}, "X"),
    "ragged X": ({"X": [[1, 2], [3]] * 4}, "X"),
    "ragged y": ({"y": [[1], [2, 3]] * 4}, "y"),
    "dates": ({"X": DATES}, "X"),
    "differences of dates": ({"X": DATES - DATES[0, 0]}, "X"),
    "date objects": ({"X": [[datetime.date(2020, 1, 1), 1]] * 8}, "X"),
    "pandas dates": ({"X": pd.DataFrame({"a": pd.date_range("2020", periods=8)})}, "X"),
    "pandas text": ({"X": pd.DataFrame({"a": list("abababab")})}, "X"),
    "pandas categories": ({"X": pd.DataFrame({"a": CATEGORIES, "b": range(8)})}, "X"),
    "pandas missing value": ({"X": pd.DataFrame({"a": pd.array([1, None] * 4, dtype="Int64")})}, "X"),
    "pandas categories for y": ({"y": pd.Series(CATEGORIES)}, "y"),
    "beta zero": ({"beta": 0}, "beta"),
    "beta negative": ({"beta": -1.0}, "beta"),
    "beta NaN": ({"beta": np.nan}, "beta"),
    "beta infinite": ({"beta": np.inf}, "beta"),
    "beta beyond float64": ({"beta": 10**400}, "beta"),
    "beta text": ({"beta": "big"}, "beta"),
    "beta text that spells a number": ({"beta": "1.0"}, "beta"),
    "beta a list": ({"beta": [1.0]}, "beta"),
    "beta complex": ({"beta": 1j}, "beta"),
    "beta True": ({"beta": True}, "beta"),
    "numbers for logistic": ({"loss": "logistic"}, "y"),
    "numbers for hinge": ({"loss": "hinge"}, "y"),
    "labels 0 and 1 for logistic": ({"loss": "logistic", "y": y > 0}, "y"),
    "labels 1 and 2 for hinge": ({"loss": "hinge", "y": 1.0 + (y > 0)}, "y"),
    "labels in words": ({"loss": "hinge", "y": np.where(y > 0, "yes", "no")}, "y"),
    "huge y": ({"y": 1e300 * y}, "y"),
    "tiny y": ({"y": 1e-300 * y}, "y"),
    "one huge target": ({"y": with_entry(y, 1e200)}, "y"),
    "loss None": ({"loss": None}, "loss"),
    "loss a number": ({"loss": 3}, "loss"),
    "loss a class": ({"loss": Squared}, "loss"),
    "unknown loss": ({"loss": "mse"}, "loss"),
    "unknown solver": ({"solver": "NOPE"}, "solver"),
    "solver that takes no cones": ({"solver": "SCIPY"}, "solver"),
    "solver None": ({"solver": None}, "solver"),
    "solver a number": ({"solver": 3}, "solver"),
    "solver a class": ({"solver": Conic}, "solver"),
    "closed form where there is none": ({"solver": "closed form"}, "solver"),
    "unknown option of a solver": ({"solver": Conic("CLARABEL", {"nonsense": 1})}, "options"),
    "unknown arrangements": ({"arrangements": "some"}, "arrangements"),
    "no arrangements": ({"arrangements": 0}, "arrangements"),
    "less than no arrangements": ({"arrangements": -3}, "arrangements"),
    "arrangements an array": ({"arrangements": np.ones((4, 8), dtype=bool)}, "arrangements"),
    "arrangements of other samples": ({"arrangements": enumerate_arrangements(whiten(X[:7]).basis)}, "arrangements"),
    "arrangements of other data": ({"arrangements": enumerate_arrangements(whiten(X[:, :1]).basis)}, "arrangements"),
    "arrangements of as many other data": ({"arrangements": enumerate_arrangements(whiten(X**3).basis)}, "arrangements"),
    "unknown arrangements that nobody needs": ({"X": np.eye(8), "solver": "auto", "arrangements": "some"}, "arrangements"),
    "arrangements None": ({"arrangements": None}, "arrangements"),
    "arrangements True": ({"arrangements": True}, "arrangements"),
    "arrangements a fraction": ({"arrangements": 2.5}, "arrangements"),
    "too many arrangements": ({"X": np.random.default_rng(0).standard_normal((60, 9)), "y": np.arange(60.0)}, "arrangements"),
    "seed text": ({"seed": "a", "arrangements": 5}, "seed"),
    "seed negative": ({"seed": -1, "arrangements": 5}, "seed"),
    "a warm start of three": ({"solver": ActiveSet(warm_start=(X, y, X))}, "warm_start"),
    "a warm start on raw data": ({"solver": ActiveSet(warm_start=(X, y[:, None]))}, "warm_start"),
    "a warm start without columns": ({"solver": ActiveSet(warm_start=(np.eye(3), np.ones(3)))}, "warm_start"),
    "a warm start of NaN": ({"solver": ActiveSet(warm_start=(np.eye(3), np.full((3, 1), np.nan)))}, "warm_start"),
    "a warm start of two outputs": (
        {"solver": SlidingFrankWolfe(warm_start=(np.eye(3), np.ones((3, 2)))), "arrangements": "auto"},
        "warm_start",
    ),
}
ADVICE = re.compile(
    r"[:;,.] .*\b(pass|use|add|give|encode|impute|drop|reshape|map|choose|change|sample|see|must be|fill|make)\b", re.IGNORECASE
)


@pytest.mark.parametrize("name", list(BAD))
def test_message_names_the_argument_and_says_what_to_do(name: str) -> None:
    overrides, argument = BAD[name]
    arguments: dict[str, Any] = {"X": X, "y": y, **CONIC, **overrides}
    unavailable = ("unknown solver", "solver that takes no cones", "closed form where there is none", "several outputs in closed form")
    expected = SolverUnavailable if name in unavailable else InputError
    with pytest.raises(ConvexBNError) as caught:
        fit_convex_bn(arguments.pop("X"), arguments.pop("y"), **arguments)
    assert type(caught.value) is expected
    assert re.match(rf"{argument}\b", str(caught.value)), str(caught.value)
    assert ADVICE.search(str(caught.value)), str(caught.value)


LISTED = enumerate_arrangements(whiten(X).basis)
PAIRS = np.column_stack([y, -y])
NEURON = recover(whiten(X), np.eye(3)[:1], np.ones((1, 2)))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: certify(X, PAIRS, NEURON, beta=0.3, arrangements=LISTED), "(arrangements|y)"),
        (lambda: certify(X, PAIRS, NEURON, beta=0.3, dual=y), "dual"),
        (lambda: certify(X, y, NEURON, beta=0.3), "y"),
        (lambda: certify(X, PAIRS[:, [0, 1, 1]], NEURON, beta=0.3), "y"),
        (lambda: beta_max(X, PAIRS, arrangements=LISTED), "(arrangements|y)"),
        (lambda: beta_max(X, PAIRS, arrangements=5), "(arrangements|y)"),
    ],
    ids=[
        "certify on a list",
        "dual of one output",
        "network of two outputs",
        "network of two for three",
        "beta_max on a list",
        "on a sample",
    ],
)
def test_several_outputs_where_they_do_not_fit_are_named(call: Callable[[], object], argument: str) -> None:
    with pytest.raises(InputError, match=rf"^{argument}\b"):
        call()


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: beta_max(X, y, arrangements=X), "arrangements"),
        (lambda: fit_gated_bn(X, y, solver="CLARABEL"), "solver"),
        (lambda: fit_gated_path(X, y, solver=3), "solver"),
        (lambda: fit_post_bn(X, y, arrangements=X), "arrangements"),
        (lambda: fit_post_bn(X, y, solver=3), "solver"),
        (lambda: certify(X, y, from_fit(), beta=0.1, arrangements=5), "arrangements"),
        (lambda: Conic(3), "name"),
        (lambda: ConvexBNRegressor().fit(X, list("abcdefgh")), "y"),
    ],
)
def test_what_other_functions_take_is_named_where_it_is_not(call: Callable[[], object], argument: str) -> None:
    with pytest.raises(InputError, match=f"^{argument}\\b.*: (pass|list|encode)"):
        call()


def from_fit() -> Network:
    return fit_convex_bn(X, y, proof_seconds=0.0).network


def test_no_cone_solver_is_said_for_both_models() -> None:
    for call in (fit_convex_bn, fit_post_bn):
        with pytest.raises(SolverUnavailable, match=r"^solver 'NOPE' is no second-order cone solver"):
            call(X, y, solver="nope", arrangements=5)


def test_no_more_is_drawn_than_there_can_be() -> None:
    """A sample of ten thousand million arrangements, of which there are 72 here, takes no memory for them."""
    listed, sampled = enumerate_arrangements(whiten(X).basis), sample_arrangements(whiten(X).basis, 10**10)
    assert len(listed) - 2 <= len(sampled) <= len(listed)  # thin cells are rarely hit


@pytest.mark.parametrize("fit", [fit_convex_bn, fit_post_bn, lambda X, y: fit_gated_bn(X, y, gates=5)])
def test_targets_that_cancel_on_equal_samples_have_no_beta_max(fit: Callable[..., Any]) -> None:
    """Their sums are 1e-17 by rounding, and a share of that is no beta: the zero network is optimal for every one."""
    found = fit([[0.0, 1.0]] * 3 + [[1.0, 1.0]] * 2, [0.1, 0.2, -0.3, 0.7, -0.7])
    assert found.beta_max == 0.0
    assert found.certificate.objective == pytest.approx(0.56, rel=1e-14)
    assert found.certificate.gap <= 1e-14


@pytest.mark.parametrize("unit", [1e200, 1e300, 1e-200])
def test_a_network_on_data_of_another_size_and_its_collapse(unit: float) -> None:
    """Batch statistics don't overflow: the network has the same objective, as its first layer has no scale."""
    network = from_fit()
    assert network.objective(unit * X, y, Squared(), 0.1) == pytest.approx(network.objective(X, y, Squared(), 0.1), rel=1e-12)
    collapse, expected = neural_collapse(unit * X, y > 0), neural_collapse(X, y > 0)
    numbers = [expected.within, expected.angles, expected.inequality]
    assert [collapse.within, collapse.angles, collapse.inequality] == pytest.approx(numbers, rel=1e-10)
    assert collapse.lengths / unit == pytest.approx(expected.lengths, rel=1e-10)


def test_what_is_no_network_is_named_with_the_way_to_one() -> None:
    with pytest.raises(InputError, match=r"network is a Fit, not a Network: pass fit\.network"):
        certify(X, y, fit_convex_bn(X, y, **CONIC), beta=0.3)  # type: ignore[arg-type]


def objective(data: Any, targets: Any, **keywords: Any) -> float:
    """The optimum by the conic solver over all arrangements."""
    return fit_convex_bn(data, targets, **{"beta": 0.3, **CONIC, **keywords}).certificate.objective


def shrunk(norms: list[float], beta: float = 0.3) -> float:
    """The sum of min over w >= 0 of (N - w)^2 / 2 + beta w."""
    return sum(beta * norm - beta**2 / 2 if norm > beta else norm**2 / 2 for norm in norms)


INTEGERS = np.random.default_rng(2).integers(0, 9, (8, 2))
ROOT = np.sqrt(8.0)
ODD: dict[str, tuple[Any, Any, dict[str, Any], Callable[[], float]]] = {
    "one value for y": (X, np.full(8, 2.5), {}, lambda: shrunk([2.5 * ROOT])),
    "one negative value for y": (X, np.full(8, -2.5), {}, lambda: shrunk([2.5 * ROOT])),
    "one small value for y": (X, np.full(8, 0.1), {}, lambda: shrunk([0.1 * ROOT])),
    "y of zeros": (X, np.zeros(8), {}, lambda: 0.0),
    "all labels +1, logistic": (
        X,
        np.ones(8),
        {"loss": "logistic"},
        lambda: -8 * np.log1p(-0.3 / ROOT) + 0.3 * ROOT * np.log(ROOT / 0.3 - 1),
    ),
    "all labels -1, hinge": (X, -np.ones(8), {"loss": "hinge"}, lambda: 0.3 * ROOT),
    "two samples of one feature": ([[1.0], [5.0]], [3.0, -4.0], {}, lambda: shrunk([3.0, 4.0])),
    "two samples, equal signs": ([[1.0, 2.0], [5.0, 1.0]], [3.0, 4.0], {}, lambda: shrunk([5.0])),
    "one feature with two values": ([[0]] * 3 + [[1]] * 5, [2.0] * 3 + [-1.0] * 5, {}, lambda: shrunk([2.0 * 3**0.5, 5**0.5])),
    "one feature, repeated": (X[:, [0, 0, 0]] * [1, -2, 1e6] + [0, 3, 0], y, {}, lambda: objective(X[:, :1], y)),
    "units of 1e-300 and 1e300": (X * [1e-300, 1e300], y, {}, lambda: objective(X, y)),
    "units of 1e300": (X * 1e300, y, {}, lambda: objective(X, y)),
    "units of 1e-300": (X * 1e-300, y, {}, lambda: objective(X, y)),
    "targets of 1e100": (X, 1e100 * y, {"beta": 3e99}, lambda: 1e200 * objective(X, y)),
    "targets of 1e-100": (X, 1e-100 * y, {"beta": 3e-101}, lambda: 1e-200 * objective(X, y)),
    "integers": (INTEGERS, INTEGERS[:, 0], {}, lambda: objective(INTEGERS.astype(float), INTEGERS[:, 0].astype(float))),
    "small integers": (INTEGERS.astype(np.uint8), y, {}, lambda: objective(INTEGERS.astype(float), y)),
    "float32": (X.astype(np.float32), y, {}, lambda: objective(X.astype(np.float32).astype(float), y)),
    "bool": (X > 0, y > 0, {}, lambda: objective((X > 0).astype(float), (y > 0).astype(float))),
    "lists": (X.tolist(), y.tolist(), {}, lambda: objective(X, y)),
    "objects that are numbers": (X.astype(object), y.astype(object), {}, lambda: objective(X, y)),
    "a masked array without masked entries": (np.ma.masked_array(X), y, {}, lambda: objective(X, y)),
    "pandas": (pd.DataFrame(X, columns=["a", "b"]), pd.Series(y, index=list("hgfedcba")), {}, lambda: objective(X, y)),
    "pandas with nullable types": (pd.DataFrame(INTEGERS).convert_dtypes(), y, {}, lambda: objective(INTEGERS.astype(float), y)),
    "every row twice": (np.vstack([X, X]), np.append(y, y), {"beta": 0.3 * 2**0.5}, lambda: 2 * objective(X, y)),
    "every row three times": (np.repeat(X, 3, axis=0), np.repeat(y, 3), {"beta": 0.3 * 3**0.5}, lambda: 3 * objective(X, y)),
    "constant columns beside good ones": (np.column_stack([np.ones(8), X, np.full(8, 0.1)]), y, {}, lambda: objective(X, y)),
    "a column of zeros": (np.column_stack([X, np.zeros(8)]), y, {}, lambda: objective(X, y)),
    "a column that is the sum of others": (np.column_stack([X, X.sum(axis=1)]), y, {}, lambda: objective(X, y)),
    "beta beyond what solvers take": (X, y, {"beta": 1e300}, lambda: 0.5 * float(y @ y)),
    "nearly collinear columns": (X @ [[1.0, 1.0], [0.0, 1e-8]], y, {}, lambda: objective(X, y)),
    "targets that cancel": ([[0]] * 3 + [[1]] * 2, [0.1, 0.2, -0.3, 0.7, -0.7], {"beta": None}, lambda: 0.56),
    "beta beyond what the closed form takes": ([[1.0], [5.0]], [3.0, -4.0], {"beta": 1e300}, lambda: 12.5),
    "targets in a column": (X, y[:, None], {}, lambda: objective(X, y)),
    "beta as a zero-dimensional array": (X, y, {"beta": np.float32(0.25)}, lambda: objective(X, y, beta=0.25)),
    "arrangements of the same data": (X, y, {"arrangements": enumerate_arrangements(whiten(X).basis)}, lambda: objective(X, y)),
}


@pytest.mark.parametrize("name", list(ODD))
def test_odd_but_right_input_has_the_right_answer(name: str) -> None:
    data, targets, keywords, expected = ODD[name]
    fit = fit_convex_bn(data, targets, **{"beta": 0.3, **CONIC, **keywords})
    unit = 0.5 * float(np.sum(np.asarray(targets, dtype=float) ** 2)) or 1.0
    assert fit.certificate.objective == pytest.approx(expected(), rel=1e-7, abs=1e-15 * unit)
    assert fit.certificate.gap <= 1e-6 * fit.certificate.objective + 1e-15 * unit
    assert np.isfinite(fit.predict(data)).all()
    assert f"{fit.certificate.objective:.10g}" in str(fit)
