"""Full normalisation in training: on batches that batch normalisation can't use, in low precision, and over several processes."""

from __future__ import annotations

import copy
import datetime
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from convexbn.training.full_norm import convert_batch_norm, full_norm_gradient, full_norm_objective, set_exact_statistics

CLASSES, STEPS = 4, 5


def network(**settings) -> nn.Module:
    torch.manual_seed(0)
    hidden = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU()]
    return convert_batch_norm(nn.Sequential(*hidden, nn.Linear(8, CLASSES)), **settings)


def data(samples: int = 64) -> tuple[Tensor, Tensor]:
    """Images with a mean of their class, and labels."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(samples) % CLASSES
    means = 2.0 * torch.randn(CLASSES, 1, 5, 5, generator=generator)
    return torch.randn(samples, 1, 5, 5, generator=generator) + means[y], y


def one_class_batches(X: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(X[y == k], y[y == k]) for k in range(CLASSES)]


def train(model: nn.Module, batches: list[tuple[Tensor, Tensor]], epochs: int, rate: float = 0.05, bfloat16: bool = False) -> nn.Module:
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(epochs):
        for x, y in batches:
            optimiser.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                loss = cross_entropy(model(x), y)
            loss.backward()
            optimiser.step()
    return model


def flat(values: list[Tensor]) -> Tensor:
    return torch.cat([value.detach().double().flatten() for value in values])


def relative_error(one: list[Tensor], other: list[Tensor]) -> float:
    return float((flat(one) - flat(other)).norm() / flat(other).norm())


def test_it_learns_from_batches_of_one_class_and_batch_normalisation_doesnt():
    X, y = data()
    batches = one_class_batches(X, y)
    losses = {
        momentum: full_norm_objective(train(network(momentum=momentum), batches, 40), [(X, y)], cross_entropy) for momentum in (0.1, 1.0)
    }
    assert losses[0.1] < 0.2
    assert losses[1.0] > 1.0


def test_it_learns_from_batches_of_one_sample():
    X, y = data(32)
    batches = [(X[i : i + 1], y[i : i + 1]) for i in range(32)]
    assert full_norm_objective(train(network(momentum=0.05), batches, 12, rate=0.03), [(X, y)], cross_entropy) < 0.3


def test_accumulated_gradients_of_scaled_losses_are_the_scaled_gradients():
    X, y = data()
    plain, scaled = network().double(), network().double()
    for model, factor in ((plain, 1.0), (scaled, 0.25)):
        for x, labels in 3 * one_class_batches(X.double(), y):
            (factor * cross_entropy(model(x), labels)).backward()
    assert relative_error([4.0 * p.grad for p in scaled.parameters()], [p.grad for p in plain.parameters()]) < 1e-12


def test_autocast_to_bfloat16_keeps_statistics_in_float32_and_the_gradient():
    X, y = data()
    model = network(momentum=0.0)
    set_exact_statistics(model, [(X, y)], cross_entropy)
    truth = full_norm_gradient(model, [(X, y)], cross_entropy)
    batches = one_class_batches(X, y)
    for x, labels in batches:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model[:2](x)
            loss = cross_entropy(model(x), labels)
        assert hidden.dtype == torch.bfloat16
        loss.backward()
    assert {buffer.dtype for name, buffer in model.named_buffers() if "num" not in name} == {torch.float32}
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    assert relative_error([parameter.grad / len(batches) for parameter in model.parameters()], list(truth.values())) < 0.03


def test_training_under_autocast_learns():
    X, y = data()
    losses = [
        full_norm_objective(train(network(), one_class_batches(X, y), 40, bfloat16=low), [(X, y)], cross_entropy) for low in (True, False)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert losses[0] < 0.1


def scaled_steps(model: nn.Module, scaler: torch.amp.GradScaler, batches: list[tuple[Tensor, Tensor]], factor: float = 1.0) -> nn.Module:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for x, y in batches:
        optimiser.zero_grad()
        scaler.scale(factor * cross_entropy(model(x), y)).backward()
        scaler.step(optimiser)
        scaler.update()
    return model


def test_a_gradient_scaler_of_constant_scale_changes_nothing():
    X, y = data()
    batches = 5 * one_class_batches(X.double(), y)
    scaled = scaled_steps(network().double(), torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**6), batches)
    plain = train(network().double(), batches, 1)
    assert relative_error(list(scaled.parameters()), list(plain.parameters())) < 1e-12
    torch.testing.assert_close(scaled[1].adjoint_weight, 1024.0 * plain[1].adjoint_weight)


def test_an_overflow_leaves_the_adjoints_finite():
    X, y = data()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=10**6)
    model = network()
    before = copy.deepcopy(list(model.parameters()))
    scaled_steps(model, scaler, [(X, y)], factor=1e6)
    assert scaler.get_scale() == 2.0**119
    for one, other in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=0.0)
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def halves(X: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The samples of the first two classes and of the last two: processes whose data differ."""
    return [(X[rows], y[rows]) for rows in (y < CLASSES // 2, y >= CLASSES // 2)]


def work(rank: int, folder: str) -> None:
    """One of two processes, which sees half of the classes."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timeout)
    try:
        X, y = data()
        model = network().double()
        train(DistributedDataParallel(model), [halves(X.double(), y)[rank]], STEPS)
        torch.save([*model.parameters(), *model.buffers()], f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> list[list[Tensor]]:
    """Parameters and buffers of each process after the same steps."""
    folder: Path = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_processes_agree(two_processes):
    for one, other in zip(*two_processes, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=0.0)


def test_two_processes_are_one_with_the_joined_batch(two_processes):
    X, y = data()
    model = train(network().double(), [(X.double(), y)], STEPS)
    for one, other in zip([*model.parameters(), *model.buffers()], two_processes[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
