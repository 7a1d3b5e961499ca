"""The objectives of batch and full normalisation, and exact statistics, against PyTorch's batch normalisation of all data."""

from __future__ import annotations

import copy

import pytest
import torch
from full_norm_models import CLASSES, PARTITIONS, SAMPLES, dense, every_model, images, partitions, problem, split, truth
from torch import nn
from torch.nn.functional import cross_entropy

from convexbn import InputError
from convexbn.training.full_norm import (
    FullNorm1d,
    FullNorm2d,
    batch_norm_objective,
    convert_batch_norm,
    full_norm_gradient,
    full_norm_objective,
    set_exact_statistics,
)


@every_model
@pytest.mark.parametrize("name", PARTITIONS)
def test_exact_statistics_ask_for_no_kind_of_batches(make, name):
    model, X, y = problem(make)
    value, _ = truth(model, X, y)
    set_exact_statistics(model, split(X, y, partitions(y)[name]))
    assert float(cross_entropy(model.eval()(X), y).detach()) == pytest.approx(value, rel=1e-12)
    assert full_norm_objective(model, split(X, y, partitions(y)[name]), cross_entropy) == pytest.approx(value, rel=1e-12)


def test_exact_statistics_survive_large_means():
    layer = FullNorm1d(1).double()
    h = torch.arange(12.0).double()[:, None] + 1e9
    set_exact_statistics(layer, [(h[:5], h), (h[5:], h)])
    torch.testing.assert_close(layer.running_var, h.var(0, correction=0), rtol=1e-6, atol=0.0)


@every_model
def test_the_objective_of_batch_normalisation_is_the_mean_over_the_batches(make):
    model, X, y = problem(make)
    parts = list(torch.arange(SAMPLES).split([3, 5, 16]))
    expected = sum(len(part) / SAMPLES * truth(model, X[part], y[part])[0] for part in parts)
    assert batch_norm_objective(model, split(X, y, parts), cross_entropy) == pytest.approx(expected, rel=1e-12)
    full = convert_batch_norm(copy.deepcopy(model))
    assert batch_norm_objective(full, split(X, y, parts), cross_entropy) == pytest.approx(expected, rel=1e-12)


def test_with_all_samples_in_one_batch_both_objectives_are_one():
    model, X, y = problem(images)
    assert batch_norm_objective(model, [(X, y)], cross_entropy) == full_norm_objective(model, [(X, y)], cross_entropy)


def test_a_batch_of_one_sample_shows_batch_normalisation_nothing():
    model, X, y = problem(dense)
    singles = split(X, y, partitions(y)["one sample"])
    other = [(torch.randn_like(x), labels) for x, labels in singles]
    assert batch_norm_objective(model, singles, cross_entropy) == pytest.approx(
        batch_norm_objective(model, other, cross_entropy), rel=1e-14
    )
    assert full_norm_objective(model, singles, cross_entropy) != pytest.approx(full_norm_objective(model, other, cross_entropy), rel=1e-3)


def test_objectives_leave_the_model_as_it_is():
    model, X, y = problem(images)
    model[2].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    for objective in (batch_norm_objective, full_norm_objective):
        objective(model, [(X, y)], cross_entropy)
    torch.testing.assert_close(model.state_dict(), before, rtol=0.0, atol=0.0)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_without_normalised_layers_has_its_mean_loss_as_objective():
    model, X, y = nn.Linear(6, CLASSES), torch.randn(9, 6), torch.arange(9) % CLASSES
    expected = pytest.approx(float(cross_entropy(model(X), y).detach()), rel=1e-6)
    for objective in (batch_norm_objective, full_norm_objective):
        assert objective(model, [(X[:2], y[:2]), (X[2:], y[2:])], cross_entropy) == expected


def test_unusable_batches_and_models_are_refused():
    model, X, y = problem(dense)
    full = convert_batch_norm(copy.deepcopy(model))
    with pytest.raises(InputError, match="batches is empty"):
        set_exact_statistics(full, [])
    with pytest.raises(InputError, match="batches is an iterator"):
        full_norm_objective(full, iter([(X, y)]), cross_entropy)
    with pytest.raises(InputError, match="plain batch normalisation"):
        full_norm_gradient(model, [(X, y)], cross_entropy)
    shared = nn.BatchNorm1d(6)
    with pytest.raises(InputError, match="more than once"):
        set_exact_statistics(nn.Sequential(shared, nn.Linear(6, 6), shared).double(), [(X, y)])
    with pytest.raises(InputError, match="without running statistics"):
        batch_norm_objective(nn.BatchNorm1d(6, track_running_stats=False), [(X, y)], cross_entropy)
    with pytest.raises(ValueError, match="expected 4D input"):
        FullNorm2d(6)(X)
