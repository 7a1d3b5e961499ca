"""The whole line, from data to a certified network: defaults, scales, invariances, solvers of one's own and what people read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import CLASSIFICATION, LOSSES, objective_of, random_problem, targets_for

from convexbn import (
    Arrangements,
    ConvexBNRegressor,
    Evidence,
    Fit,
    Huber,
    InputError,
    Loss,
    Program,
    Solution,
    Status,
    beta_max,
    enumerate_arrangements,
    fit_convex_bn,
    sample_arrangements,
    whiten,
)

SQUARED, HUBER, LOGISTIC, HINGE = LOSSES
CONIC = {"arrangements": "all", "solver": "CLARABEL"}


@dataclass(frozen=True)
class OneNeuron:
    """A solver that always answers with one constant neuron."""

    output: float = 0.0

    def solve(self, program: Program) -> Solution:
        """That neuron."""
        direction = np.eye(program.basis.shape[1])[-1:]
        return Solution(direction, np.array([[self.output]]), Status.OPTIMAL, "one neuron")


@dataclass(frozen=True)
class Interrupted:
    """A solver during which somebody presses Ctrl-C."""

    def solve(self, program: Program) -> Solution:
        """Never returns."""
        raise KeyboardInterrupt


@cache
def solved(loss: Loss) -> tuple[np.ndarray, np.ndarray, Fit]:
    """Nine samples with two features, by Clarabel over all arrangements."""
    problem = random_problem(loss, 9, 2, seed=11)
    return problem.X, problem.y, fit_convex_bn(problem.X, problem.y, loss=loss, **CONIC)


def by_name(loss: Loss) -> str:
    """The name of a loss."""
    return loss.name


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_objective_printed_is_the_objective_of_the_returned_network(loss: Loss) -> None:
    _, _, fit = solved(loss)
    problem = random_problem(loss, 9, 2, seed=11)
    assert fit.certificate.objective == pytest.approx(objective_of(fit.network, problem, fit.program.beta), rel=1e-12)
    assert fit.certificate.accepts(1e-6)
    assert fit.certificate.evidence is Evidence.PROVED


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_predictions_on_the_training_data_give_the_objective(loss: Loss) -> None:
    problem = random_problem(loss, 6, 2, seed=12)
    fit = fit_convex_bn(problem.X, problem.y, loss=loss)
    value = loss.value(fit.predict(problem.X), problem.y) + fit.program.beta * fit.network.penalty()
    assert value == pytest.approx(fit.certificate.objective, rel=1e-12)
    assert fit.certificate.bound <= fit.certificate.objective * (1.0 + 1e-12)
    assert fit.certificate.objective <= loss.value(np.zeros(6), problem.y)


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_names_of_losses_and_losses_are_one(loss: Loss) -> None:
    X, y, _ = solved(loss)
    standard = Huber() if loss.name == "huber" else loss
    objectives = [fit_convex_bn(X, y, loss=one, beta=0.3, **CONIC).certificate.objective for one in (standard, loss.name)]
    assert objectives[0] == objectives[1]


def test_text_says_what_people_need() -> None:
    _, _, fit = solved(SQUARED)
    text = str(fit)
    lines = {line.split()[0]: line for line in text.splitlines()[1:]}
    assert {"beta", "objective", "bound", "neurons", "arrangements", "solver", "time"} <= set(lines)
    assert f"{fit.certificate.objective:.10g}" in lines["objective"]
    assert f"{fit.certificate.bound:.10g}" in lines["bound"]
    assert lines["bound"].endswith(", proved)")
    assert [line for line in lines.values() if "proved" in line] == [lines["bound"]]
    assert lines["neurons"].split()[1] == str(fit.network.neurons)
    assert "all 74 arrangements" in lines["arrangements"]
    assert "CLARABEL: solved" in lines["solver"]
    assert all(f"{stage} {seconds:.2f} s" in lines["time"] for stage, seconds in fit.seconds.items())
    assert text.startswith("ReLU network with batch normalisation: 9 samples, 2 features of rank 2, squared loss")


def test_text_of_a_sample_does_not_call_it_proved() -> None:
    X, y, _ = solved(SQUARED)
    text = str(fit_convex_bn(X, y, arrangements=7, solver="CLARABEL"))
    assert "proved for the sampled program)" in text
    assert text.count("proved") == 1
    assert "a sample of 7 out of at most 74 arrangements" in text


def test_module_of_the_fit_predicts_the_same() -> None:
    X, _, fit = solved(SQUARED)
    with torch.no_grad():
        outputs = fit.to_torch().eval()(torch.as_tensor(X)).numpy()[:, 0]
    np.testing.assert_allclose(outputs, fit.predict(X), atol=1e-12)
    assert fit.to_torch(dtype=torch.float32)[0].weight.dtype is torch.float32


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_default_beta_is_a_tenth_of_beta_max(loss: Loss) -> None:
    X, y, fit = solved(loss)
    largest = beta_max(X, y, loss=loss, arrangements="all")
    assert fit.beta_max == largest
    assert fit.program.beta == pytest.approx(0.1 * largest, rel=1e-15)


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_beta_max_is_the_threshold_of_the_zero_network(loss: Loss) -> None:
    X, y, fit = solved(loss)
    origin = loss.value(np.zeros(9), y)
    above = fit_convex_bn(X, y, loss=loss, beta=1.01 * fit.beta_max, **CONIC)
    below = fit_convex_bn(X, y, loss=loss, beta=0.99 * fit.beta_max, **CONIC)
    assert above.certificate.objective == pytest.approx(origin, rel=1e-9)
    np.testing.assert_array_equal(above.predict(X), 0.0)
    assert above.network.neurons == 0
    assert above.certificate.relative_gap <= 1e-12
    assert below.certificate.objective < origin * (1.0 - 1e-5)
    assert np.max(np.abs(below.predict(X))) > 1e-3


def test_beta_max_of_one_feature_by_hand() -> None:
    X, y = np.array([[-1.0], [1.0]]), np.array([3.0, -4.0])
    assert beta_max(X, y) == pytest.approx(4.0, rel=1e-11)
    assert beta_max(X, np.array([3.0, 4.0])) == pytest.approx(5.0, rel=1e-11)


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
@settings(max_examples=6)
@given(st.integers(0, 10**6), st.sampled_from([1e-4, 1.0, 1e4]), st.sampled_from([0.0, -7.0, 1e3]))
def test_affine_maps_of_the_features_change_nothing(loss: Loss, seed: int, stretch: float, shift: float) -> None:
    X, y, fit = solved(loss)
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((2, 2)))[0]
    moved = fit_convex_bn((X @ turn) * [stretch, 1.0] + shift, y, loss=loss, **CONIC)
    assert moved.program.beta == pytest.approx(fit.program.beta, rel=1e-7)
    assert moved.certificate.objective == pytest.approx(fit.certificate.objective, rel=1e-7)


@pytest.mark.parametrize("loss", [SQUARED, HUBER], ids=by_name)
@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e3, 1e6])
def test_unit_of_the_targets_squares_the_objective(loss: Loss, unit: float) -> None:
    X, y, fit = solved(loss)
    same_loss = loss if loss == SQUARED else Huber(unit * 0.7)
    scaled = fit_convex_bn(X, unit * y, loss=same_loss, beta=unit * fit.program.beta, **CONIC)
    assert scaled.certificate.objective == pytest.approx(unit**2 * fit.certificate.objective, rel=1e-7)
    assert scaled.certificate.accepts(1e-6)
    np.testing.assert_allclose(scaled.predict(X), unit * fit.predict(X), atol=1e-5 * unit)


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_mirrored_targets_have_the_same_optimum(loss: Loss) -> None:
    X, y, fit = solved(loss)
    mirrored = fit_convex_bn(X, -y, loss=loss, **CONIC)
    assert mirrored.certificate.objective == pytest.approx(fit.certificate.objective, rel=1e-7)


@pytest.mark.parametrize("kind", ["float32", "float16", "int64", "uint8", "list", "pandas", "Fortran order", "column of targets"])
def test_every_kind_of_number_gives_the_result_of_float64(kind: str) -> None:
    generator = np.random.default_rng(2)
    X, y = generator.integers(0, 9, (7, 2)).astype(float), generator.integers(0, 9, 7).astype(float)
    data = {
        "list": (X.tolist(), y.tolist()),
        "pandas": (pd.DataFrame(X, columns=["a", "b"], index=list("tuvwxyz")), pd.Series(y, index=list("zyxwvut"))),
        "Fortran order": (np.asfortranarray(X), y[::-1].copy()[::-1]),
        "column of targets": (X, y[:, None]),
    }
    X_given, y_given = data[kind] if kind in data else (X.astype(kind), y.astype(kind))
    expected, obtained = fit_convex_bn(X, y, **CONIC), fit_convex_bn(X_given, y_given, **CONIC)
    assert obtained.certificate.objective == pytest.approx(expected.certificate.objective, rel=1e-13)
    np.testing.assert_allclose(obtained.predict(X_given), expected.predict(X), atol=1e-12)


def test_the_data_are_left_as_they_were() -> None:
    problem = random_problem(SQUARED, 6, 2, seed=3)
    X, y = problem.X.copy(), problem.y.copy()
    X.flags.writeable = y.flags.writeable = False
    fit_convex_bn(X, y, **CONIC)
    np.testing.assert_array_equal(X, problem.X)
    np.testing.assert_array_equal(y, problem.y)


def test_same_seed_same_fit_and_another_seed_another_sample() -> None:
    problem = random_problem(SQUARED, 12, 3, seed=3)
    fits = [fit_convex_bn(problem.X, problem.y, arrangements=6, solver="CLARABEL", seed=seed) for seed in (0, 0, 1)]
    assert fits[0].certificate.objective == fits[1].certificate.objective
    assert abs(fits[0].certificate.objective - fits[2].certificate.objective) > 1e-6 * fits[0].certificate.objective


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_closed_form_and_clarabel_agree_at_rank_n_minus_1(loss: Loss) -> None:
    X, y = np.random.default_rng(4).standard_normal((5, 7)), targets_for(loss, 5, 5)
    closed, conic = (fit_convex_bn(X, y, loss=loss, beta=0.2, arrangements="all", solver=one) for one in ("closed form", "CLARABEL"))
    assert closed.certificate.objective == pytest.approx(conic.certificate.objective, rel=1e-7)
    assert closed.certificate.accepts(1e-6)
    assert closed.program.arrangements is None


def test_more_arrangements_never_raise_the_optimum() -> None:
    problem = random_problem(SQUARED, 10, 2, seed=3)
    basis = whiten(problem.X).basis
    few, more, everything = sample_arrangements(basis, 4), sample_arrangements(basis, 30), enumerate_arrangements(basis)
    assert {pattern.tobytes() for pattern in few.active} < {pattern.tobytes() for pattern in more.active}
    values = [fit_convex_bn(problem.X, problem.y, beta=0.3, arrangements=a, solver="CLARABEL") for a in (few, more, everything)]
    objectives = [fit.certificate.objective for fit in values]
    assert objectives[0] > objectives[1] * (1.0 + 1e-6)
    assert objectives[1] >= objectives[2] * (1.0 - 1e-8)


def test_stages_are_shown_on_stderr_when_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    problem = random_problem(SQUARED, 5, 1, seed=3)
    fit = fit_convex_bn(problem.X, problem.y, verbose=True, **CONIC)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(f"convexbn: {stage} " in captured.err for stage in fit.seconds)
    fit_convex_bn(problem.X, problem.y, **CONIC)
    assert capsys.readouterr() == ("", "")


def test_interruption_propagates_and_names_the_stage(capsys: pytest.CaptureFixture[str]) -> None:
    problem = random_problem(SQUARED, 5, 1, seed=3)
    with pytest.raises(KeyboardInterrupt):
        fit_convex_bn(problem.X, problem.y, arrangements="all", solver=Interrupted(), verbose=True)
    assert "convexbn: interrupted in the stage 'solve'; nothing was kept" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        fit_convex_bn(problem.X, problem.y, arrangements="all", solver=Interrupted())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("output", [0.0, 2.0])
def test_solver_of_ones_own_is_judged_by_its_network(output: float) -> None:
    problem = random_problem(SQUARED, 9, 2, seed=11)
    fit = fit_convex_bn(problem.X, problem.y, beta=0.3, arrangements="all", solver=OneNeuron(output))
    expected = 0.5 * np.sum((output / 3.0 - problem.y) ** 2) + 0.3 * output
    assert fit.certificate.objective == pytest.approx(expected, rel=1e-12)
    assert fit.solution.solver == "one neuron"
    assert not fit.certificate.accepts()


def test_words_for_arrangements() -> None:
    problem = random_problem(SQUARED, 8, 2, seed=1)

    def listed(arrangements: object, seed: int = 0) -> Arrangements:
        return fit_convex_bn(problem.X, problem.y, arrangements=arrangements, solver="CLARABEL", seed=seed).program.arrangements

    everything = listed("all")
    assert everything.complete
    assert listed(everything) is everything
    sample = listed(np.int64(5), seed=3)
    assert (len(sample), sample.complete, sample.seed) == (5, False, 3)
    np.testing.assert_array_equal(sample.active, sample_arrangements(whiten(problem.X).basis, 5, seed=3).active)


def test_words_for_solvers() -> None:
    X, y = np.random.default_rng(4).standard_normal((4, 5)), targets_for(SQUARED, 4, 5)
    fits = {name: fit_convex_bn(X, y, beta=0.2, arrangements="all", solver=name) for name in ("scs", "Clarabel", "closed form")}
    assert [fit.solution.solver for fit in fits.values()] == ["SCS", "CLARABEL", "closed form"]
    objectives = [fit.certificate.objective for fit in fits.values()]
    np.testing.assert_allclose(objectives, objectives[-1], rtol=1e-5)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss.name in CLASSIFICATION], ids=by_name)
def test_separable_labels_are_learnt(loss: Loss) -> None:
    X = np.random.default_rng(6).standard_normal((12, 2))
    y = np.where(X[:, 0] + 0.5 * X[:, 1] > 0.2, 1.0, -1.0)
    fit = fit_convex_bn(X, y, loss=loss, beta=0.05, **CONIC)
    np.testing.assert_array_equal(np.sign(fit.predict(X)), y)


def test_a_fraction_is_that_of_beta_max():
    generator = np.random.default_rng(0)
    X, y = generator.standard_normal((20, 2)), generator.standard_normal(20)
    y -= y.mean()
    fit = fit_convex_bn(X, y, fraction=0.3, proof_seconds=0.0)
    assert fit.program.beta == 0.3 * fit.beta_max
    assert ConvexBNRegressor(fraction=0.3).fit(X, y).fit_.program.beta == pytest.approx(fit.program.beta)
    with pytest.raises(InputError, match=r"fraction = -0.3 is not positive"):
        fit_convex_bn(X, y, fraction=-0.3)


def test_a_notebook_shows_what_an_object_says():
    fit = fit_convex_bn(np.arange(6.0)[:, None], np.arange(6.0) ** 2)
    assert repr(fit) == str(fit)
    assert repr(fit.certificate) == str(fit.certificate)
