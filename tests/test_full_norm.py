"""Full normalisation: its layers, the objectives, exact statistics and the gradient, against PyTorch's batch normalisation of all data."""

from __future__ import annotations

import copy
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
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

SAMPLES, CLASSES = 24, 3
GRADIENTS = ("adjoint", "straight-through", "stop")


class Residual(nn.Module):
    """Two branches, each with a normalised layer, so that layers don't follow one another in a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()) for _ in range(2))
        self.last = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.first(x) + self.second(x.square()))


def dense() -> nn.Module:
    hidden = [nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, CLASSES))


def images() -> nn.Module:
    hidden = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4, eps=1e-3), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*hidden, nn.Linear(16, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, CLASSES))


def sequences() -> nn.Module:
    hidden = [nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.ReLU(), nn.Conv1d(3, 3, 2), nn.BatchNorm1d(3), nn.Flatten()]
    return nn.Sequential(*hidden, nn.Linear(9, CLASSES))


SHAPES = {dense: (6,), Residual: (6,), images: (1, 5, 5), sequences: (2, 5)}
every_model = pytest.mark.parametrize("make", list(SHAPES), ids=lambda make: make.__name__)


def problem(make, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A model with random gains and shifts in training mode, inputs whose mean depends on their class, and labels, in float64."""
    torch.manual_seed(seed)
    model = make().double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.affine:
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    y = torch.arange(SAMPLES) % CLASSES
    X = torch.randn(SAMPLES, *SHAPES[make]).double() + y.reshape(-1, *[1] * len(SHAPES[make])).double()
    return model, X, y


def split(X: Tensor, y: Tensor, parts: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(X[part], y[part]) for part in parts]


def by_class(y: Tensor) -> list[Tensor]:
    return [(y == k).nonzero()[:, 0] for k in range(CLASSES)]


def partitions(y: Tensor) -> dict[str, list[Tensor]]:
    return {
        "all": [torch.arange(SAMPLES)],
        "one sample": list(torch.arange(SAMPLES).split(1)),
        "one class": by_class(y),
        "ragged": list(torch.arange(SAMPLES).split([1, 2, 7, 14])),
        "ragged classes": [part for rows in by_class(y) for part in rows.split([1, 3, 4])],
    }


PARTITIONS = list(partitions(torch.arange(SAMPLES) % CLASSES))


def truth(model: nn.Module, X: Tensor, y: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of PyTorch's batch normalisation over all samples."""
    reference = copy.deepcopy(model).train()
    loss = cross_entropy(reference(X), y)
    loss.backward()
    return float(loss.detach()), {name: parameter.grad for name, parameter in reference.named_parameters()}


def relative_error(gradient: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert list(gradient) == list(other)
    one, two = (torch.cat([value.flatten() for value in values.values()]) for values in (gradient, other))
    return float((one - two).norm() / two.norm())


def set_momentum(model: nn.Module, momentum: float) -> nn.Module:
    for layer in model.modules():
        if isinstance(layer, FullNorm1d | FullNorm2d):
            layer.momentum = momentum
    return model


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


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(list(SHAPES)), st.lists(st.integers(0, 4), min_size=SAMPLES, max_size=SAMPLES))
def test_the_exact_gradient_asks_for_no_kind_of_batches(seed, make, places):
    model, X, y = problem(make, seed)
    _, gradient = truth(model, X, y)
    parts = [rows for k in range(5) if len(rows := (torch.tensor(places) == k).nonzero()[:, 0])]
    full = convert_batch_norm(model, gradient="stop")
    before = copy.deepcopy(full.state_dict())
    assert relative_error(full_norm_gradient(full, split(X, y, parts), cross_entropy), gradient) < 1e-10
    torch.testing.assert_close(full.state_dict(), before, rtol=0.0, atol=0.0)
    assert all(parameter.grad is None for parameter in full.parameters())


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
    "layer", [nn.BatchNorm3d(2), nn.SyncBatchNorm(2), nn.LazyBatchNorm1d(), nn.BatchNorm1d(2, track_running_stats=False)]
)
def test_what_has_no_counterpart_is_refused_before_anything_is_replaced(layer):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(layer))
    with pytest.raises(InputError, match=r"model has the layer '1\.0'"):
        convert_batch_norm(model)
    assert type(model[0]) is nn.BatchNorm1d


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


def test_the_example_measures_and_draws(tmp_path):
    script = Path(__file__).parents[1] / "examples/full_norm.py"
    picture = tmp_path / "new" / "full_norm.png"
    arguments = [sys.executable, str(script), "--quick", "--picture", str(picture)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=300)
    assert result.stderr == ""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if line.startswith("│")]
    assert len(rows) == 20
    for row in rows:
        assert row[2] != "full normalisation" or float(row[10]) < float(row[9])
        assert row[2] != "batch normalisation" or row[1] != "1" or float(row[5]) < 30
    assert float(re.search(r"frozen averages.*error (\S+)", result.stdout)[1]) < 1e-12
    assert picture.stat().st_size > 20_000
