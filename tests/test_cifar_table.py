"""The tables on CIFAR: choices never see the test images, results survive an interrupt, and accuracies are those of PyTorch models."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import ENVIRONMENT, assert_drawn, command
from torch import nn

import cifar_table as table
import cifar_table_convex as convex
import cifar_table_rows as rows
from cifar_table_data import Part, Row, Split, Trained, load, principal
from cifar_table_descent import on_the_program
from cifar_table_report import markdown
from convexbn import GatedSolver, LocalGates, Squared, fit_convex_bn, fit_gated_bn
from convexbn.training import evaluate

EXACT = os.environ.get("CONVEXBN_CIFAR")


def batch(samples: int, seed: int) -> dict[str, object]:
    """Noise around a colour for each class, in the official format."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(samples) % 10)
    colours = np.random.default_rng(0).integers(60, 200, (10, 3072))
    noise = generator.integers(-60, 60, (samples, 3072))
    return {"data": np.clip(colours[labels] + noise, 0, 255).astype(np.uint8), "labels": labels.tolist()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-py"
    place.mkdir()
    files = {f"data_batch_{i}": batch(20, i) for i in range(1, 6)}
    files |= {"test_batch": batch(30, 9), "batches.meta": {"label_names": [f"class {i}" for i in range(10)]}}
    for name, content in files.items():
        (place / name).write_bytes(pickle.dumps(content))
    return place.parent


@pytest.fixture(scope="module")
def split(folder, tmp_path_factory) -> Split:
    return load("cifar10", folder, tmp_path_factory.mktemp("cache"))


def run(*arguments: str) -> None:
    result = subprocess.run(command("cifar_table.py", *arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def test_the_parts_have_no_image_in_common_and_the_whole_is_two_of_them(split):
    images = {part.images.tobytes() for part in (split.train.first(1), split.validation.first(1), split.test.first(1))}
    assert len(images) == 3
    assert [len(part.labels) for part in (split.train, split.validation, split.whole, split.test)] == [90, 10, 100, 30]
    np.testing.assert_array_equal(np.concatenate([split.train.labels, split.validation.labels]), split.whole.labels)


def test_the_script_writes_the_tables_and_goes_on_where_it_stopped(folder, tmp_path):
    numbers = "0", "3", "4", "19", "21"
    arguments = "--data", str(folder), "--quick", "--output", str(tmp_path), "--only"
    run(*arguments, *numbers[:2])
    first = json.loads((tmp_path / "results.json").read_text())
    run(*arguments, *numbers)
    second = json.loads((tmp_path / "results.json").read_text())
    assert all(second[key] == record for key, record in first.items())
    assert len(second) == 5
    chosen, following = (second[f"{rows.WHOLE}: convex, gated, truncated{name}"]["settings"] for name in ("", ", half the gates"))
    assert all(following[name] == chosen[name] for name in ("loss", "rank", "fraction"))
    for record in second.values():
        for outcome in record["runs"]:
            assert 0.9 <= outcome["test"] <= 1.0
            assert outcome["bound"] is None or outcome["bound"] <= outcome["objective"] * (1.0 + 1e-9)
    optima = [second[f"{rows.SQUARE}: closed form, depth {depth}"]["runs"][0]["objective"] for depth in (2, 3)]
    assert optima[0] == pytest.approx(optima[1], rel=1e-9)
    text = (tmp_path / "table.md").read_text()
    assert text.count("| ") > 5
    assert all(record["name"] in text for record in second.values())
    assert_drawn(tmp_path / "table.png")


@pytest.mark.skipif(EXACT is None, reason="CONVEXBN_CIFAR is not set to a folder with CIFAR-10")
def test_on_real_images_the_models_are_better_than_chance(tmp_path):
    run("--data", str(EXACT), "--quick", "--output", str(tmp_path), "--only", "0", "3")
    for record in json.loads((tmp_path / "results.json").read_text()).values():
        assert record["runs"][0]["test"] > 0.15


def test_the_seed_draws_other_images_where_they_are_a_part(split):
    drawn = [split.whole.drawn(20, seed) for seed in (0, 1, 0)]
    assert all(len(np.unique(part.images, axis=0)) == 20 for part in drawn)
    np.testing.assert_array_equal(drawn[0].images, drawn[2].images)
    assert not np.array_equal(np.sort(drawn[0].images, axis=0), np.sort(drawn[1].images, axis=0))
    assert split.whole.drawn(100, 1) is split.whole is split.whole.drawn(None, 1)


def test_a_row_takes_over_the_choice_of_another_and_is_fitted_anew_where_that_changes(split, tmp_path):
    asked: list[int] = []

    def fit(part: Part, settings, seed: int, device: str) -> Trained:
        asked.append(settings["answer"])
        return Trained(Constant(settings["answer"], []))

    best = int(np.argmax(np.bincount(split.validation.labels, minlength=10)))
    store = table.Store.at(tmp_path / "results.json")
    leader = Row("table", "leader", fit, rows.grid(answer=tuple(range(10))))
    follower = Row("table", "follower", fit, choice_of="leader", samples=50, seeds=2)
    with pytest.raises(SystemExit, match="'leader': run that row first"):
        table.complete(follower, split, store, "", "cpu")
    for row in (leader, follower):
        table.complete(row, split, store, "", "cpu")
    assert asked == [*range(10), best, best, best]
    table.complete(replace(leader, grid=rows.grid(answer=(3, 3))), split, store, "", "cpu")
    table.complete(follower, split, store, "", "cpu")
    assert asked[13:] == [3] * 5
    assert store.records["table: follower"]["samples"] == 50


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cifar_table.py", "--data", str(tmp_path / "nowhere"), "--device", "cuda:99"])
    with pytest.raises(SystemExit, match="2"):
        table.main()
    assert "device = 'cuda:99' can't be used here" in capsys.readouterr().err


def test_every_way_to_fit_has_an_output_for_each_class_though_some_have_no_image(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, 3, 32, 32), dtype=np.uint8)
    ways = {row.fit: {**row.shared, **row.grid[0], **row.final} for row in map(rows.quickened, rows.all_rows(30))}
    ways[on_the_program] |= {"rank": 2, "fraction": 0.5}
    small = {"directions": 20, "rank": 2, "fraction": 0.5, "rounds": 1, "arrangements": 2, "gates": 5, "width": 70, "epochs": 2}
    assert len(ways) == 7
    for fit, settings in ways.items():
        classes = 3 if fit is convex.sampled_arrangements else 100  # it has a program for each class
        part = Part(images, generator.integers(0, classes - 1, 30), classes, tmp_path)
        capped = {name: min(value, small.get(name, value)) if value is not None else None for name, value in settings.items()}
        outputs = evaluate(fit(part, {**capped, "proof_seconds": 0.01}, 0, "cpu").model, part.inputs)
        assert outputs.shape == (30, classes)
        assert np.isfinite(outputs).all()


class Constant(nn.Module):
    """Answers one class, and tells which images it has seen."""

    def __init__(self, answer: int, seen: list[int]) -> None:
        super().__init__()
        self.answer, self.seen = answer, seen
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(images))
        return nn.functional.one_hot(torch.full((len(images),), self.answer), 10).double()


def test_validation_chooses_and_the_test_images_are_read_once_a_seed(split, tmp_path):
    seen: list[int] = []
    fitted: list[tuple[int, int, int]] = []

    def fit(part: Part, settings, seed: int, device: str) -> Trained:
        fitted.append((len(part.labels), settings["answer"], seed))
        return Trained(Constant(settings["answer"], seen))

    row = Row("table", "row", fit, rows.grid(answer=tuple(range(10))), seeds=2, choice_samples=50)
    store = table.Store.at(tmp_path / "results.json")
    table.complete(row, split, store, "", "cpu")
    best = int(np.argmax(np.bincount(split.validation.labels, minlength=10)))
    assert seen == [10] * 10 + [30] * 2
    assert fitted == [(50, answer, 0) for answer in range(10)] + [(100, best, seed) for seed in (0, 1)]
    table.complete(row, split, table.Store.at(tmp_path / "results.json"), "", "cpu")
    assert len(seen) == 12
    table.complete(replace(row, seeds=3), split, table.Store.at(tmp_path / "results.json"), "", "cpu")
    assert len(seen) == 13, "one more seed"
    table.complete(replace(row, choice_samples=40), split, table.Store.at(tmp_path / "results.json"), "", "cpu")
    assert len(seen) == 25, "another row is fitted anew"


def test_an_interrupt_loses_one_result(split, tmp_path):
    asked: list[int] = []

    def fit(part: Part, settings, seed: int, device: str) -> Trained:
        asked.append(settings["answer"])
        if len(asked) == 4:
            raise KeyboardInterrupt
        return Trained(Constant(settings["answer"], []))

    row = Row("table", "row", fit, rows.grid(answer=(0, 1, 2, 3, 4)))
    with pytest.raises(KeyboardInterrupt):
        table.complete(row, split, table.Store.at(tmp_path / "results.json"), "", "cpu")
    table.complete(row, split, table.Store.at(tmp_path / "results.json"), "", "cpu")
    assert asked[:-1] == [0, 1, 2, 3, 3, 4]


def test_programs_side_by_side_have_each_others_outputs(split):
    pixels, targets = split.train.pixels[:40], split.train.targets[:40, :2]
    fits = [fit_convex_bn(pixels, column, rank=3, beta=0.3, proof_seconds=0.1) for column in targets.T]
    both = convex.side_by_side([fit.network for fit in fits])
    expected = np.column_stack([fit.predict(split.test.pixels) for fit in fits])
    np.testing.assert_allclose(both.predict(split.test.pixels), expected, rtol=1e-9, atol=1e-12)
    objective = both.objective(pixels, targets, Squared(), 0.3)
    assert objective == pytest.approx(sum(fit.certificate.objective for fit in fits), rel=1e-9)


def test_all_principal_directions_are_a_rotation(split):
    part = split.train.first(20)
    inputs = part.inputs.flatten(1)
    for project in (principal(part, 3072), principal(part, 3072)):  # computed, and read
        turned = project(part.inputs)
        torch.testing.assert_close(torch.cdist(turned, turned), torch.cdist(inputs, inputs), rtol=1e-4, atol=1e-3)
    assert principal(split.train.first(19), 3072)[1].out_features == 19


def test_gates_with_windows_are_those_on_the_pixels(split):
    part, solver = split.train.first(30), GatedSolver(1e-6)
    settings = {"gates": 6, "fraction": 0.02, "loss": "squared", "rank": 5, "lean": 0.3, "tolerance": 1e-6, "iterations": 5000}
    by_window, by_noise = (convex.gated(part, {**settings, "directions": 20, **windows}, 3, "cpu").model for windows in ({"window": 8}, {}))
    gates = LocalGates(6, (3, 32, 32), 8)
    pixels = fit_gated_bn(part.pixels, part.targets, gates=gates, fraction=0.02, rank=5, lean=0.3, solver=solver, seed=3)
    values = pixels.predict(part.pixels)
    assert np.abs(evaluate(by_window, part.inputs) - values).max() < 0.01
    assert np.abs(evaluate(by_noise, part.inputs) - values).max() > 0.1


def test_a_loose_proof_is_called_an_estimate(split):
    certificate = fit_convex_bn(split.train.pixels[:30], split.train.labels[:30] - 4.5, rank=2, proof_seconds=0.1).certificate
    loose = replace(certificate, bound=0.1 * certificate.objective)
    assert convex.trained(nn.Identity(), loose).evidence == "estimated"
    assert convex.trained(nn.Identity(), loose).bound == certificate.estimate
    assert convex.trained(nn.Identity(), certificate).evidence == certificate.evidence.value


def test_the_table_shows_means_spreads_and_the_word_of_a_bound():
    runs = [{"test": 0.5, "seconds": 1.0, "cpu": 2.0, "objective": 10.0, "bound": 9.0, "evidence": "proved"} for _ in range(2)]
    runs[1] = {**runs[1], "test": 0.52}
    record = {"table": "T", "name": "row", "samples": 1000, "settings": {"rank": 3}, "device": "cpu", "trials": [], "runs": runs}
    lines = markdown([record, {**record, "device": "cuda:1"}], "title", 10, "machine").splitlines()
    line, other = (line for line in lines if line.startswith("| row"))
    assert line == "| row | 1,000 | 51.00 ± 1.41 % | 2 | 1 ± 0 | 2 ± 0 | 10 ± 0 | 1.0e-01, proved | rank 3 |"
    assert other == line.replace("rank 3", "rank 3, on cuda:1")
