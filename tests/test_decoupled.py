"""The optimiser that moves directions and lengths apart."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from decoupled_models import MODELS, TINY, batch, convolutional, multilayer
from torch import nn

from convexbn import InputError
from convexbn.training.decoupled import DecoupledSGD, normalised_pairs
from convexbn.training.full_norm import convert_batch_norm
from convexbn.training.gdnp import train_gdnp
from convexbn.training.halfspaces import empirical_halfspaces

every_model = pytest.mark.parametrize("name", list(MODELS))


def closure_of(model: nn.Module, optimiser: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor):
    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def losses(model: nn.Module, optimiser: torch.optim.Optimizer, name: str, steps: int) -> list[float]:
    closure = closure_of(model, optimiser, *batch(name))
    return [optimiser.step(closure).item() for _ in range(steps)]


def rows(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().flatten(1)


# ---- identities -----------------------------------------------------------------------------------------------------------------


@every_model
def test_weights_before_batch_normalisation_are_orthogonal_to_their_gradients_and_keep_their_norms(name):
    model = MODELS[name][0]()
    optimiser = DecoupledSGD(model, 0.5, momentum=0.5)
    closure = closure_of(model, optimiser, *batch(name))
    weights = optimiser.param_groups[0]["params"]
    assert len(weights) == 2
    before = [rows(weight).norm(dim=1) for weight in weights]
    for _ in range(10):
        optimiser.step(closure)
        closure()
        for weight, norm in zip(weights, before, strict=True):
            assert torch.all((rows(weight) * rows(weight.grad)).sum(dim=1).abs() < 1e-10)
            assert rows(weight.grad).abs().max() > 1e-6
            torch.testing.assert_close(rows(weight).norm(dim=1), norm, rtol=1e-12, atol=0.0)


@every_model
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_scale_of_the_weights_has_no_effect_on_the_network(name, momentum):
    model = MODELS[name][0]()
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for layer, _ in normalised_pairs(scaled):
            shape = (-1, *[1] * (layer.weight.dim() - 1))
            layer.weight.mul_(10.0 ** torch.linspace(-3.0, 3.0, len(layer.weight), dtype=torch.float64).reshape(shape))
            if layer.bias is not None:
                layer.bias.zero_()  # of no effect either
    runs = [losses(m, DecoupledSGD(m, 0.3, momentum=momentum), name, 15) for m in (model, scaled)]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-9)
    assert runs[0][-1] < 0.9 * runs[0][0]
    x, _ = batch(name)
    torch.testing.assert_close(model(x), scaled(x), rtol=1e-8, atol=1e-9)


def test_plain_descent_depends_on_that_scale():
    runs = []
    for factor in (1.0, 10.0):
        model = multilayer()
        with torch.no_grad():
            model[0].weight.mul_(factor)
        runs.append(losses(model, torch.optim.SGD(model.parameters(), lr=0.3), "multilayer", 15))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-12)
    assert abs(runs[0][-1] - runs[1][-1]) > 1e-3


@every_model
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_step_is_that_of_plain_descent_from_normalised_weights(name, decay):
    ours, plain = MODELS[name][0](), MODELS[name][0]()
    optimiser = DecoupledSGD(ours, 0.2, length_lr=0.1, lr=0.05, weight_decay=decay)
    weights = [layer.weight for layer, _ in normalised_pairs(plain)]
    lengths = [norm.weight for _, norm in normalised_pairs(plain)]
    special = {id(p) for p in weights + lengths}
    rest = [p for p in plain.parameters() if id(p) not in special]
    groups = [{"params": weights, "lr": 0.2, "weight_decay": 0.0}, {"params": lengths, "lr": 0.1}, {"params": rest, "lr": 0.05}]
    reference = torch.optim.SGD(groups, lr=1.0, weight_decay=decay)
    closure, (x, y) = closure_of(plain, reference, *batch(name)), batch(name)
    for _ in range(5):
        for weight in weights:
            weight.data /= rows(weight).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1))
        expected = reference.step(closure)
        assert optimiser.step(closure_of(ours, optimiser, x, y)).item() == pytest.approx(expected.item(), rel=1e-10)


def test_one_neuron_on_whitened_data_takes_the_constant_steps_of_gdnp():
    generator = np.random.default_rng(2)
    Q, y = np.linalg.qr(generator.standard_normal((40, 3)) - 0.1)[0], np.sign(generator.standard_normal(40))
    X = np.linalg.qr(Q - Q.mean(axis=0))[0] * np.sqrt(40.0)  # columns of mean 0, S = I
    start = np.array([1.0, -2.0, 0.5])
    runs = [train_gdnp(empirical_halfspaces(X, y), start=start, steps=k, step="constant", step_size=0.7) for k in (0, 1)]
    model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.BatchNorm1d(1, eps=TINY)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.as_tensor(start))
        model[1].weight.fill_(runs[0].length)
    optimiser = DecoupledSGD(model, 0.7, remaining=[])
    margins = -torch.as_tensor(y) * model(torch.as_tensor(X))[:, 0]
    nn.functional.softplus(margins, threshold=40.0).mean().backward()
    assert model[1].weight.grad.abs().item() < 1e-12  # GDNP's length is optimal
    optimiser.step()
    moved = model[0].weight.detach().numpy()[0]
    np.testing.assert_allclose(moved / np.linalg.norm(moved), runs[1].direction, rtol=1e-10)
    assert model[1].weight.item() == pytest.approx(runs[0].length, rel=1e-12)


@every_model
def test_velocities_are_tangent_to_the_sphere_even_where_epsilon_bends_the_gradient(name):
    model = MODELS[name][0]()
    pairs = normalised_pairs(model)
    for _, norm in pairs:
        norm.eps = 1.0
    optimiser = DecoupledSGD(model, 0.5, momentum=0.5)
    radial = 0.0
    for _ in range(5):
        before = [rows(layer.weight).clone() for layer, _ in pairs]
        optimiser.step(closure_of(model, optimiser, *batch(name)))
        for (layer, _), row in zip(pairs, before, strict=True):
            radial = max(radial, float((row * rows(layer.weight.grad)).sum(dim=1).abs().max()))
            assert torch.all((row * rows(optimiser.state[layer.weight]["velocity"])).sum(dim=1).abs() < 1e-14)
    assert radial > 1e-4


def test_further_length_steps_move_lengths_only():
    once, often = multilayer(), multilayer()
    results = [DecoupledSGD(once, 0.2), DecoupledSGD(often, 0.2, length_steps=200, length_lr=2.0)]
    for model, optimiser in zip((once, often), results, strict=True):
        losses(model, optimiser, "multilayer", 1)
    for (key, one), other in zip(once.state_dict().items(), often.state_dict().values(), strict=True):
        length = key in ("1.weight", "4.weight")
        if "running" not in key and "tracked" not in key:
            assert torch.equal(one, other) != length, key
    ends = [closure_of(model, optimiser, *batch("multilayer"))().item() for model, optimiser in zip((once, often), results, strict=True)]
    assert ends[1] < ends[0]


# ---- as PyTorch's optimisers do -------------------------------------------------------------------------------------------------


def test_the_state_survives_a_file():
    straight, stopped = multilayer(), multilayer()
    first = DecoupledSGD(straight, 0.3, momentum=0.9, length_lr=0.1, length_steps=2)
    half = DecoupledSGD(stopped, 0.3, momentum=0.9, length_lr=0.1, length_steps=2)
    expected = losses(straight, first, "multilayer", 10)
    assert losses(stopped, half, "multilayer", 5) == expected[:5]
    file = io.BytesIO()
    torch.save((stopped.state_dict(), half.state_dict()), file)
    file.seek(0)
    resumed = multilayer(seed=9)
    other = DecoupledSGD(resumed, 1.0)
    for target, state in zip((resumed, other), torch.load(file, weights_only=True), strict=True):
        target.load_state_dict(state)
    assert losses(resumed, other, "multilayer", 5) == expected[5:]
    assert [group["lr"] for group in other.param_groups] == [0.3, 0.1, 0.3]


def test_schedulers_change_the_rate_of_each_group():
    model = multilayer()
    optimiser = DecoupledSGD(model, 0.4, length_lr=0.2, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, [lambda t: 0.5**t, lambda t: 1.0, lambda t: 0.0 if t else 1.0])
    losses(model, optimiser, "multilayer", 1)
    schedule.step()
    assert [group["lr"] for group in optimiser.param_groups] == [0.2, 0.2, 0.0]
    frozen = model[6].weight.detach().clone()
    losses(model, optimiser, "multilayer", 1)
    assert torch.equal(model[6].weight, frozen)
    torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.5, total_steps=5)  # it asks for a momentum to cycle


def test_a_step_without_a_closure_takes_the_gradients_that_are_there():
    with_closure, without = multilayer(), multilayer()
    expected = losses(with_closure, DecoupledSGD(with_closure, 0.3), "multilayer", 4)
    optimiser = DecoupledSGD(without, 0.3)
    for value in expected:
        assert closure_of(without, optimiser, *batch("multilayer"))().item() == value
        assert optimiser.step() is None


def test_frozen_parameters_rows_of_zeros_and_norms_without_a_length_are_left_alone():
    model = multilayer(affine=False)
    model[3].weight.requires_grad_(False)
    with torch.no_grad():
        model[0].weight[2] = 0.0
    kept = model[3].weight.clone()
    optimiser = DecoupledSGD(model, 0.3)
    assert [len(group["params"]) for group in optimiser.param_groups] == [2, 0, 4]
    model[1].eps = 1e-5  # a neuron that is constant has no normalisation without
    losses(model, optimiser, "multilayer", 3)
    assert torch.equal(model[3].weight, kept)
    assert torch.all(model[0].weight[2] == 0.0)
    assert all(torch.isfinite(p).all() for p in model.parameters())


# ---- pairs ----------------------------------------------------------------------------------------------------------------------


def test_pairs_are_those_of_the_forward_pass():
    model = convolutional()
    assert normalised_pairs(model) == [(model.first, model.first_norm), (model.second, model.second_norm)]
    groups = DecoupledSGD(model, 0.1).param_groups
    assert [group["role"] for group in groups] == ["direction", "length", "remaining"]
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())


def test_pairs_of_full_normalisation_are_found_and_trained():
    model = convert_batch_norm(convolutional())
    assert normalised_pairs(model) == [(model.first, model.first_norm), (model.second, model.second_norm)]
    values = losses(model, DecoupledSGD(model, 0.3), "convolutional", 15)
    assert values[-1] < 0.9 * values[0]


def test_a_layer_whose_scale_has_an_effect_is_no_pair():
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm, self.other, self.last = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.layer(x)
            return self.last(torch.relu(self.other(self.norm(hidden) + hidden)))

    assert normalised_pairs(Skip()) == []
    tied = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    assert len(normalised_pairs(tied)) == 1
    tied[2].weight = tied[0].weight
    assert normalised_pairs(tied) == []
    layer = nn.Linear(3, 3)
    assert normalised_pairs(nn.Sequential(layer, nn.BatchNorm1d(3), layer, nn.BatchNorm1d(3))) == []


def test_pairs_can_be_given_where_the_model_cant_be_traced():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.layer(x)) if x.sum() > 0 else self.layer(x)

    model = Branching()
    with pytest.raises(InputError, match=r"^model can't be traced"):
        DecoupledSGD(model, 0.1)
    groups = DecoupledSGD(model, 0.1, pairs=[(model.layer, model.norm)]).param_groups
    assert [len(group["params"]) for group in groups] == [1, 1, 2]


def test_bad_input_names_the_argument():
    model = multilayer()
    linear, norm = model[0], model[1]
    for call, message in [
        (lambda: DecoupledSGD(nn.Linear(2, 2), 0.1), "model has no linear"),
        (lambda: DecoupledSGD(model, 0.0), "direction_lr = 0.0"),
        (lambda: DecoupledSGD(model, 0.1, length_lr=-1.0), "length_lr = -1.0"),
        (lambda: DecoupledSGD(model, 0.1, momentum=1.0), "momentum = 1.0"),
        (lambda: DecoupledSGD(model, 0.1, weight_decay=-1.0), "weight_decay = -1.0"),
        (lambda: DecoupledSGD(model, 0.1, length_steps=0), "length_steps = 0"),
        (lambda: DecoupledSGD(model, 0.1, pairs=[(norm, linear)]), r"pairs has \(BatchNorm1d, Linear\)"),
        (lambda: DecoupledSGD(model, 0.1, pairs=[(linear, model[4])]), "pairs has a layer of 6"),
        (lambda: DecoupledSGD(model, 0.1, pairs=[(linear, norm), (linear, norm)]), "pairs share"),
        (lambda: DecoupledSGD(model, 0.1, length_steps=2).step(), "closure is None"),
    ]:
        with pytest.raises(InputError, match=f"^{message}"):
            call()
