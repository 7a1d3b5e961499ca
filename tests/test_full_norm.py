"""Full normalisation: its layers and its gradient, against PyTorch's batch normalisation of all data."""

from __future__ import annotations

import copy

import pytest
import torch
from full_norm_models import (
    PARTITIONS,
    SAMPLES,
    SHAPES,
    by_class,
    dense,
    every_model,
    images,
    partitions,
    problem,
    relative_error,
    set_momentum,
    split,
    truth,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from convexbn import InputError
from convexbn.training.full_norm import FullNorm1d, FullNorm2d, convert_batch_norm, full_norm_gradient, set_exact_statistics


def epoch_average(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The mean over the samples of what `backward` puts into `grad`, batch by batch."""
    names = dict(model.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in names.items()}
    for x, y in batches:
        model.zero_grad()
        cross_entropy(model(x), y).backward()
        for name, parameter in names.items():
            total[name] += len(x) / SAMPLES * parameter.grad
    return total


@every_model
@pytest.mark.parametrize("name", PARTITIONS)
def test_the_epoch_average_is_the_gradient_of_the_full_batch_network(make, name):
    model, X, y = problem(make)
    _, gradient = truth(model, X, y)
    full = set_momentum(convert_batch_norm(model), 0.0)
    batches = split(X, y, partitions(y)[name])
    set_exact_statistics(full, [(X, y)], cross_entropy)
    assert relative_error(epoch_average(full, batches), gradient) < 1e-12


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(list(SHAPES)), st.lists(st.integers(0, 4), min_size=SAMPLES, max_size=SAMPLES))
def test_the_exact_gradient_and_the_epoch_average_ask_for_no_kind_of_batches(seed, make, places):
    model, X, y = problem(make, seed)
    _, gradient = truth(model, X, y)
    parts = [rows for k in range(5) if len(rows := (torch.tensor(places) == k).nonzero()[:, 0])]
    trained, full = set_momentum(convert_batch_norm(copy.deepcopy(model)), 0.0), convert_batch_norm(model, gradient="stop")
    before = copy.deepcopy(full.state_dict())
    batches = split(X, y, parts)
    assert relative_error(full_norm_gradient(full, batches, cross_entropy), gradient) < 1e-10
    torch.testing.assert_close(full.state_dict(), before, rtol=0.0, atol=0.0)
    assert all(parameter.grad is None for parameter in full.parameters())
    set_exact_statistics(trained, batches, cross_entropy)
    assert relative_error(epoch_average(trained, batches), gradient) < 1e-10


@every_model
@pytest.mark.parametrize("gradient", ["straight-through", "stop"])
def test_the_other_gradients_are_biased_on_batches_of_one_class(make, gradient):
    model, X, y = problem(make)
    _, true = truth(model, X, y)
    full = set_momentum(convert_batch_norm(model, gradient=gradient), 0.0)
    set_exact_statistics(full, [(X, y)])
    assert relative_error(epoch_average(full, split(X, y, by_class(y))), true) > 0.1


@every_model
def test_straight_through_is_exact_on_the_full_batch(make):
    model, X, y = problem(make)
    _, true = truth(model, X, y)
    full = set_momentum(convert_batch_norm(model, gradient="straight-through"), 0.0)
    set_exact_statistics(full, [(X, y)])
    assert relative_error(epoch_average(full, [(X, y)]), true) < 1e-12


@every_model
def test_stop_gradient_is_autograd_with_constant_statistics(make):
    model, X, y = problem(make)
    full = set_momentum(convert_batch_norm(model, gradient="stop"), 0.0)
    set_exact_statistics(full, [(X, y)])
    expected = epoch_average(full.eval(), [(X, y)])
    assert relative_error(epoch_average(full.train(), [(X, y)]), expected) < 1e-12


@every_model
def test_momentum_one_is_batch_normalisation(make):
    model, X, y = problem(make)
    reference, full = copy.deepcopy(model), convert_batch_norm(model, momentum=1.0)
    for x, labels in split(X, y, [torch.arange(10), torch.arange(10, 24)]):
        for network in (reference, full):
            network.zero_grad()
            cross_entropy(network(x), labels).backward()
        torch.testing.assert_close(full(x), reference(x), rtol=1e-12, atol=1e-12)
        gradients = [{name: p.grad for name, p in network.named_parameters()} for network in (full, reference)]
        assert relative_error(*gradients) < 1e-12


def test_the_bias_falls_with_the_momentum():
    model, X, y = problem(images)
    _, true = truth(model, X, y)
    full = convert_batch_norm(model)
    errors = []
    for momentum in (0.1, 0.01, 0.001):
        total = []
        for batch in split(X, y, by_class(y)):
            set_exact_statistics(full, [(X, y)], cross_entropy)
            total.append(epoch_average(set_momentum(full, momentum), [batch]))
        mean = {name: sum(part[name] for part in total) for name in true}
        errors.append(relative_error(mean, true))
    assert errors[1] == pytest.approx(0.1 * errors[0], rel=0.3)
    assert errors[2] == pytest.approx(0.1 * errors[1], rel=0.1)


def test_tracked_averages_settle_at_the_exact_ones():
    model, X, y = problem(dense)
    exact, tracked = convert_batch_norm(copy.deepcopy(model)), convert_batch_norm(model, momentum=0.2)
    set_exact_statistics(exact, [(X, y)], cross_entropy)
    for _ in range(300):
        cross_entropy(tracked(X), y).backward()
    for (name, one), two in zip(tracked.named_buffers(), exact.buffers(), strict=True):
        if name.endswith("num_batches_tracked"):
            assert one == 300
        else:
            torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-10)


def test_tracked_statistics_are_those_of_the_weighted_samples():
    layer = FullNorm1d(2, momentum=0.3).double()
    batches = [torch.randn(size, 2).double() for size in (1, 4, 2)]
    values, weights = [torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).double()], [torch.full((2,), 0.5).double()]  # mean 0, variance 1
    for h in batches:
        layer(h)
        weights = [0.7 * w for w in weights] + [torch.full((len(h),), 0.3 / len(h)).double()]
        values.append(h)
    samples, shares = torch.cat(values), torch.cat(weights)[:, None]
    mean = (shares * samples).sum(0)
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, (shares * (samples - mean).square()).sum(0))


def test_resetting_and_copying():
    layer = FullNorm1d(2)
    layer(torch.randn(4, 2, requires_grad=True)).square().sum().backward()
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(dict(twin.named_buffers()), dict(layer.named_buffers()))
    assert layer.adjoint_bias.abs().sum() > 0
    layer.reset_running_stats()
    torch.testing.assert_close(dict(layer.named_buffers()), dict(FullNorm1d(2).named_buffers()))


def test_no_gradient_is_needed_to_track_statistics():
    layer = FullNorm2d(2)
    with torch.no_grad():
        layer(torch.randn(1, 2, 3, 3) + 5.0)
    assert layer.running_mean.min() > 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": None}, "momentum = None is no share"),
        ({"momentum": 1.5}, r"momentum = 1\.5 is no share"),
        ({"momentum": float("nan")}, "momentum = nan"),
        ({"track_running_stats": False}, "track_running_stats = False leaves"),
        ({"gradient": "none"}, "gradient = 'none' is unknown: pass one of 'adjoint'"),
    ],
)
def test_unusable_settings_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        FullNorm1d(3, **arguments)
