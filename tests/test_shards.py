"""Two processes find what one finds: arrangements spread, samples spread, and whitening across processes."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing

import convexbn.gated.fit as gated
from convexbn import ActiveSet, Arrangements, GatedProgram, GatedSolver, Program, Squared, fit_gated_bn, sample_arrangements, whiten
from convexbn.gated import Shards, whiten_shards
from convexbn.gated.descent import Descent
from convexbn.losses import get_loss
from convexbn.solution import Solution, Status
from convexbn.solvers.active_set.state import State

SOLVER = GatedSolver(tolerance=1e-6, method="steps", precision="float64")
CASES = {  # loss, penalty, fraction of beta_max: the last leaves a small working set, spread unevenly
    "squared": ("squared", "group", 0.1),
    "nuclear": ("squared", "nuclear", 0.1),
    "softmax": ("softmax", "group", 0.2),
    "few": ("squared", "group", 0.7),
}
RELU = {  # loss, beta as a fraction of ||y||, arrangements, whether there is a start: of one arrangement the second process has none
    "squared": ("squared", 0.03, 41, False),
    "warm": ("squared", 0.03, 41, True),
    "one": ("squared", 0.003, 1, True),
    "logistic": ("logistic", 0.05, 41, False),
    "hinge": ("hinge", 0.1, 41, False),
}


def data() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    X = generator.standard_normal((61, 5)) @ generator.standard_normal((5, 5)) + 7.0
    return X, np.eye(3)[generator.integers(3, size=61)]


def gates() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((13, 6))


def relu_program(loss: str, fraction: float, count: int) -> Program:
    generator = np.random.default_rng(2)
    basis = whiten(generator.standard_normal((150, 6))).basis
    y = np.maximum(basis @ generator.standard_normal((7, 5)), 0.0) @ generator.standard_normal(5) + 0.02 * generator.standard_normal(150)
    y = y if loss == "squared" else np.where(y > np.median(y), 1.0, -1.0)
    return Program(basis, y, get_loss(loss), fraction * float(np.linalg.norm(y)), sample_arrangements(basis, count))


def relu_start() -> tuple[np.ndarray, np.ndarray]:
    """Neurons of some of the arrangements, and one of none: 41 patterns are few of all."""
    program = relu_program("squared", 0.03, 41)
    solution = ActiveSet(rounds=2).solve(program)
    return np.vstack([solution.directions, np.eye(7)[:1]]), np.vstack([solution.outputs, [[1.0]]])


def reductions(kind: str, group: object) -> list[float]:
    """All-reduces a step of 300 samples, 60 gates and three outputs: large ones, short ones, and those of a few numbers; their lengths."""
    lengths: list[int] = []
    all_reduce = torch.distributed.all_reduce

    def counted(tensor: torch.Tensor, **options: object) -> None:
        lengths.append(tensor.numel())
        all_reduce(tensor, **options)

    generator = np.random.default_rng(0)
    X, Y = generator.standard_normal((300, 12)), np.eye(3)[generator.integers(3, size=300)]
    rank = torch.distributed.get_rank()
    rows = slice(rank * 150, rank * 150 + 150) if kind == "samples" else slice(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "all_reduce", counted)
        fit = fit_gated_bn(X[rows], Y[rows], gates=60, solver=SOLVER, shards=Shards(**{kind: group}))
    size = np.array(lengths)
    large = 300 * 3 if kind == "arrangements" else 60 * 13 * 3
    short = (size > 8) & (size < large // 2)
    return [*(float(part.sum()) / fit.solution.iterations for part in (size >= large // 2, short, size <= 8)), float(size[short].max())]


def interrupted_runs(group: object) -> dict[str, list[float]]:
    """Both solvers, whose first process gets Ctrl-C in its seventh step or second round: what every process has at its end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
    calls = itertools.count(1)

    def struck(method: Callable[..., Any], when: int) -> Callable[..., Any]:
        def call(self: object, *arguments: Any) -> Any:
            if next(calls) == when and torch.distributed.get_rank() == 0:
                os.kill(os.getpid(), signal.SIGINT)
            return method(self, *arguments)

        return call

    X, Y = data()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Descent, "step", struck(Descent.step, 7))
        fit = fit_gated_bn(X, Y, gates=gates(), shards=Shards(group), solver=replace(SOLVER, tolerance=1e-15, seconds=1e6))
        calls = itertools.count(1)
        patch.setattr(State, "round", struck(State.round, 2))
        program = relu_program("squared", 0.03, 41)
        active = Shards(group).part_of(program.arrangements.active)
        part = replace(program, arrangements=Arrangements(active, complete=False, possible=10**9))
        relu = ActiveSet(tolerance=1e-15, shards=Shards(group)).solve(part)
    found = {
        "gated": [fit.certificate.objective, fit.certificate.bound, fit.solution.iterations],
        "relu": [relu.trace[-1].objective, relu.trace[-1].gap, relu.iterations],
    }
    assert {fit.solution.status, relu.status} == {Status.INTERRUPTED}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return found


def interrupted_around(group: object) -> dict[str, list[bool]]:
    """Ctrl-C to the first process as it whitens rows or draws gates, or as it judges: who ends by it."""
    X, Y = data()
    ended: dict[str, list[bool]] = {}
    for stage, kind in (("whiten_shards", "samples"), ("choose_gates", "arrangements"), ("judge", "samples")):
        whole = getattr(gated, stage)

        def struck(*arguments: Any, whole: Callable[..., Any] = whole, **options: Any) -> Any:
            if torch.distributed.get_rank() == 0:
                os.kill(os.getpid(), signal.SIGINT)
            return whole(*arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gated, stage, struck)
            try:
                fit_gated_bn(X, Y, gates=gates(), shards=Shards(**{kind: group}))
            except KeyboardInterrupt:
                ended[stage] = [True]
            else:
                ended[stage] = [False]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return ended


def numbers_of(solution: Solution) -> dict[str, np.ndarray]:
    """What a run found, and its way."""
    trace = np.array([[entry.objective, entry.neurons] for entry in solution.trace])
    return {"directions": solution.directions, "outputs": solution.outputs, "dual": solution.dual, "trace": trace}


def upright(components: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The signs that turn the columns of one basis into those of the other, and 1 for the constant."""
    return np.append(np.sign(np.sum(components * reference, axis=0)), 1.0)


def work(rank: int, folder: str) -> None:
    """What each of the two processes does; it writes what it finds."""
    torch.set_num_threads(1)
    place = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    group = torch.distributed.group.WORLD
    X, Y = data()
    mine = slice(0, 40) if rank == 0 else slice(40, None)
    whitening = whiten_shards(X[mine], group)
    signs = upright(whitening.components, whiten(X).components)
    found = {"basis": whitening.basis * signs, "values": whitening.singular_values, "energy": whiten_shards(X[mine], group, rank=2).energy}
    for name, (loss, penalty, fraction) in CASES.items():
        options = {"loss": loss, "penalty": penalty, "fraction": fraction, "solver": SOLVER}
        spread = fit_gated_bn(X, Y, gates=gates(), shards=Shards(arrangements=group), **options)
        rows = fit_gated_bn(X[mine], Y[mine], gates=gates() * signs, shards=Shards(samples=group), **options)
        found[f"{name} arrangements"] = spread.solution.weights
        found[f"{name} samples"] = rows.solution.weights * signs[:, None]
        for kind, fit in (("arrangements", spread), ("samples", rows)):
            found[f"{name} {kind} numbers"] = [fit.certificate.objective, fit.certificate.bound, fit.solution.iterations, fit.beta_max]
            found[f"{name} {kind} predictions"] = fit.predict(X[:5])
    for name, (loss, fraction, count, warm) in RELU.items():
        program = relu_program(loss, fraction, count)
        active = Shards(group).part_of(program.arrangements.active)
        part = replace(program, arrangements=Arrangements(active, complete=False, possible=10**9))
        solution = ActiveSet(tolerance=1e-9, shards=Shards(group), warm_start=relu_start() if warm else None).solve(part)
        found.update({f"relu {name} {key}": value for key, value in numbers_of(solution).items()})
    found.update({f"reductions {kind}": reductions(kind, group) for kind in ("arrangements", "samples")})
    found.update({f"interrupted {name}": value for name, value in interrupted_runs(group).items()})
    found.update({f"ended {name}": value for name, value in interrupted_around(group).items()})
    np.savez(Path(folder) / f"{rank}.npz", **found)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, np.ndarray]]:
    folder = str(tmp_path_factory.mktemp("processes"))
    torch.multiprocessing.spawn(work, args=(folder,), nprocs=2)
    return [dict(np.load(Path(folder) / f"{rank}.npz")) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["arrangements", "samples"])
def test_two_processes_find_what_one_finds(found: list[dict[str, np.ndarray]], name: str, kind: str):
    X, Y = data()
    loss, penalty, fraction = CASES[name]
    single = fit_gated_bn(X, Y, gates=gates(), loss=loss, penalty=penalty, fraction=fraction, solver=SOLVER)
    weights = np.empty_like(single.solution.weights)
    if kind == "arrangements":
        weights[0::2], weights[1::2] = (part[f"{name} {kind}"] for part in found)
    else:
        weights = found[0][f"{name} {kind}"]
        assert found[1][f"{name} {kind}"] == pytest.approx(weights, abs=1e-12)
    assert weights == pytest.approx(single.solution.weights, abs=1e-10)
    expected = [single.certificate.objective, single.certificate.bound, single.solution.iterations, single.beta_max]
    for part in found:
        assert part[f"{name} {kind} numbers"] == pytest.approx(expected, rel=1e-10)
        assert part[f"{name} {kind} predictions"] == pytest.approx(single.predict(X[:5]), abs=1e-10)


@pytest.mark.parametrize("name", RELU)
def test_two_processes_find_the_relu_program_of_one(found: list[dict[str, np.ndarray]], name: str):
    """Round for round, as every process prices its own arrangements in an order that is common; at kinks rounding parts the ways."""
    loss, fraction, count, warm = RELU[name]
    single = ActiveSet(tolerance=1e-9, warm_start=relu_start() if warm else None).solve(relu_program(loss, fraction, count))
    assert len(single.outputs) > (3 if count > 1 else 0)
    for part in found:
        assert part[f"relu {name} trace"][-1] == pytest.approx([single.trace[-1].objective, len(single.outputs)], rel=1e-8)
        for key, value in numbers_of(single).items() if loss != "hinge" else ():
            assert part[f"relu {name} {key}"] == pytest.approx(value, abs=1e-10 * np.max(np.abs(value)))


def test_what_travels_is_packed(found: list[dict[str, np.ndarray]]):
    """A step sends its predictions or its gradient round, with all that is known by then; the Newton steps of the metric the rest."""
    large, short, few, longest = found[0]["reductions arrangements"]
    assert large < 1.25
    assert short < 5.0
    assert few < 0.7
    assert longest <= 60 * 13  # once, the Gram matrix of the metric
    large, short, few, _ = found[0]["reductions samples"]
    assert large < 1.25
    assert short < 0.1
    assert few < 6.0


def test_an_interrupt_of_one_process_ends_all(found: list[dict[str, np.ndarray]]):
    """After the same step, the one that brings the news, with the same iterate and its gap."""
    for name, count in (("gated", 8), ("relu", 2)):
        one, other = (part[f"interrupted {name}"] for part in found)
        assert one == pytest.approx(other, rel=1e-12)
        assert one[2] == count
    objective, bound, _ = found[0]["interrupted gated"]
    assert 0.0 < bound < objective


@pytest.mark.parametrize("stage", ["whiten_shards", "choose_gates", "judge"])
def test_an_interrupt_outside_of_the_solve_ends_all_as_well(found: list[dict[str, np.ndarray]], stage: str):
    assert [bool(part[f"ended {stage}"][0]) for part in found] == [True, True]


def test_whitening_across_processes(found: list[dict[str, np.ndarray]]):
    whitening = whiten(data()[0])
    assert np.vstack([part["basis"] for part in found]) == pytest.approx(whitening.basis, abs=1e-12)
    for part in found:
        assert part["values"] == pytest.approx(whitening.singular_values, rel=1e-12)
        assert float(part["energy"]) == pytest.approx(whiten(data()[0], rank=2).energy, rel=1e-12)


@pytest.mark.parametrize("total", ["total_over_arrangements", "total_over_samples", "count", "largest"])
def test_numbers_are_summed_on_the_device_of_the_program(total: str, monkeypatch: pytest.MonkeyPatch):
    def all_reduce(tensor: torch.Tensor, **options: object) -> None:
        raise RuntimeError(f"on {tensor.device}")

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    group = object()
    program = GatedProgram(np.eye(3), np.eye(3), np.ones((3, 1)), Squared(), 0.1, device="meta", shards=Shards(group, group))
    argument = {"count": torch.ones(2, dtype=torch.bool), "largest": torch.zeros(0, device="meta")}.get(total, 1.0)
    with pytest.raises(RuntimeError, match="on meta"):
        getattr(program.shards, total)(argument)


@pytest.mark.parametrize("options", [["--spread", "samples"], ["--network", "relu"]], ids=["gated", "relu"])
def test_the_example_runs_under_torchrun(options: list[str]):
    script = Path(__file__).parents[1] / "examples" / "distributed.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), *options]
    result = subprocess.run([*command, "--images", "120", "--gates", "10"], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert "2 processes" in result.stdout
    assert float(result.stdout.split()[-1]) < 1e-8
