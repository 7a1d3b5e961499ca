"""Whole models from batch normalisation to full normalisation and back."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from full_norm_models import every_model, problem
from torch import nn
from torch.nn.functional import cross_entropy

from convexbn import InputError
from convexbn.training.full_norm import FullNorm1d, convert_batch_norm


@every_model
def test_conversion_keeps_parameters_modes_and_the_network_in_eval_mode(make):
    model, X, _ = problem(make)
    model(X)
    reference, parameters = copy.deepcopy(model), list(model.parameters())
    next(module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)).eval()
    modes = [module.training for module in model.modules()]
    full = convert_batch_norm(model)
    assert all(one is two for one, two in zip(full.parameters(), parameters, strict=True))
    assert [module.training for module in full.modules()] == modes
    assert not any(type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) for module in full.modules())
    torch.testing.assert_close(full.eval()(X), reference.eval()(X), rtol=0.0, atol=0.0)
    assert convert_batch_norm(full) is full


@every_model
def test_state_dicts_are_interchangeable_with_batch_normalisation(make):
    model, X, y = problem(make)
    full, fresh, back = convert_batch_norm(copy.deepcopy(model)), problem(make, seed=1)[0], convert_batch_norm(problem(make, seed=2)[0])
    for _ in range(3):
        cross_entropy(full(X), y).backward()
    stream = io.BytesIO()
    torch.save(full.state_dict(), stream)
    stream.seek(0)
    fresh.load_state_dict(torch.load(stream))
    back.load_state_dict(fresh.state_dict())
    for network in (fresh, back):
        torch.testing.assert_close(network.eval()(X), full.eval()(X), rtol=0.0, atol=0.0)


def test_a_single_layer_and_a_shared_one_are_converted():
    assert type(convert_batch_norm(nn.BatchNorm1d(3))) is FullNorm1d
    shared = nn.BatchNorm1d(3)
    model = convert_batch_norm(nn.Sequential(shared, nn.Linear(3, 3), shared), momentum=0.2, gradient="stop")
    assert model[0] is model[2]
    assert (model[0].momentum, model[0].gradient) == (0.2, "stop")
    assert "gradient='stop'" in repr(model)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm3d(2), nn.SyncBatchNorm(2), nn.LazyBatchNorm1d(), nn.BatchNorm1d(2, track_running_stats=False)]
)
def test_what_has_no_counterpart_is_refused_before_anything_is_replaced(layer):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(layer))
    with pytest.raises(InputError, match=r"model has the layer '1\.0'"):
        convert_batch_norm(model)
    assert type(model[0]) is nn.BatchNorm1d
