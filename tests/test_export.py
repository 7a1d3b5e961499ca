"""PyTorch modules: the same function and the same objective as the network's, in both modes and both directions."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import LOSSES, degenerate_data, raw_loss, targets_for
from torch import nn

from convexbn import Fit, InputError, Loss, Network, certify, enumerate_arrangements, fit_convex_bn, from_torch, recover, to_torch, whiten

LOADER = """
import sys
import numpy as np
import torch

path, features, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = torch.nn.Sequential(
    torch.nn.Linear(features, width, bias=False), torch.nn.BatchNorm1d(width), torch.nn.ReLU(), torch.nn.Linear(width, 1, bias=False)
).double()
model.load_state_dict(torch.load(path + "/state.pt", weights_only=True))
rows = torch.as_tensor(np.load(path + "/rows.npy"))
np.save(path + "/predictions.npy", model.eval()(rows).detach().numpy()[:, 0])
print([name for name in sys.modules if name.startswith("convexbn")])
"""


def random_data(seed: int = 0, samples: int = 10, features: int = 2) -> np.ndarray:
    """Gaussian data with a mean."""
    return np.random.default_rng(seed).standard_normal((samples, features)) + 0.5


def random_network(X: np.ndarray, seed: int, outputs: int = 1) -> Network:
    """Six random neurons on the whitened data, the last one constant."""
    whitening, generator = whiten(X), np.random.default_rng(seed)
    directions = generator.standard_normal((6, whitening.rank + 1))
    directions[-1, :-1] = 0.0
    return recover(whitening, directions, generator.standard_normal((6, outputs)))


def solved(loss: Loss) -> tuple[np.ndarray, np.ndarray, Fit]:
    """A problem with 10 samples at its optimum."""
    X = random_data()
    y = targets_for(loss, len(X), 1)
    return X, y, fit_convex_bn(X, y, loss=loss, arrangements="all", solver="CLARABEL")


def outputs_of(model: nn.Module, X: np.ndarray, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """The module's outputs as float64; running statistics are left as they were."""
    result = copy.deepcopy(model)(torch.as_tensor(X).to(dtype)).detach().double().numpy()
    return result[:, 0] if result.shape[1] == 1 else result


def deviation(left: np.ndarray, right: np.ndarray) -> float:
    """The largest difference relative to the largest of the second."""
    return float(np.max(np.abs(left - right)) / np.max(np.abs(right)))


def module(X: np.ndarray, seed: int, width: int = 5, bias: bool = False) -> nn.Sequential:
    """A fresh module with affine parameters away from their initial 1 and 0."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(X.shape[1], width, bias=bias), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 1, bias=False)
    ).double()
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    return model


def train_briefly(model: nn.Sequential, X: np.ndarray, y: np.ndarray, beta: float) -> None:
    """Twenty full-batch gradient steps on the squared loss with weight decay."""
    data, targets = torch.as_tensor(X), torch.as_tensor(y)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=beta)
    for _ in range(20):
        optimiser.zero_grad()
        (0.5 * ((model(data)[:, 0] - targets) ** 2).sum()).backward()
        optimiser.step()


def test_module_has_the_stated_layers() -> None:
    model = to_torch(random_network(random_data(), 1, outputs=3))
    assert [type(layer) for layer in model] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert model[0].bias is None
    assert model[3].bias is None
    assert model[1].eps == nn.BatchNorm1d(1).eps
    assert (model[0].in_features, model[1].num_features, model[3].out_features) == (2, 6, 3)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("outputs", [1, 3])
def test_both_modes_give_the_predictions_of_the_network(dtype: torch.dtype, tolerance: float, outputs: int) -> None:
    X, rows = random_data(), random_data(2, samples=40)
    network = random_network(X, 1, outputs)
    model = to_torch(network, dtype=dtype)
    assert deviation(outputs_of(model.train(), X, dtype), network.predict(X)) <= tolerance
    assert deviation(outputs_of(model.eval(), X, dtype), network.predict(X)) <= tolerance
    assert deviation(outputs_of(model.eval(), rows, dtype), network.predict(rows)) <= tolerance


def test_the_module_predicts_new_samples_as_it_comes() -> None:
    """A first call on other data would otherwise be normalised by them, and move the running statistics."""
    X, rows = random_data(), random_data(2, samples=40)
    network = random_network(X, 1)
    model = to_torch(network)
    for data in (rows, X, rows):
        assert deviation(outputs_of(model, data, torch.float64), network.predict(data)) <= 1e-12


@pytest.mark.parametrize("name", sorted(set(degenerate_data()) - {"large mean"}))
def test_both_modes_agree_on_degenerate_data(name: str) -> None:
    X = degenerate_data()[name]
    network = random_network(X, 3)
    model = to_torch(network)
    assert deviation(outputs_of(model.train(), X), network.predict(X)) <= 1e-12
    assert deviation(outputs_of(model.eval(), X), network.predict(X)) <= 1e-12


@pytest.mark.parametrize("unit", [1e-150, 1e-6, 1e6, 1e150])
def test_units_of_the_features_do_not_matter(unit: float) -> None:
    X = random_data() * [unit, 1.0]
    network = random_network(X, 3)
    assert deviation(outputs_of(to_torch(network).train(), X), network.predict(X)) <= 1e-12


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_weight_decay_objective_in_torch_is_the_certified_one(loss: Loss) -> None:
    X, y, fit = solved(loss)
    model = fit.to_torch().train()
    norm, last, beta, n = model[1], model[3], fit.program.beta, len(X)
    with torch.no_grad():
        decay = beta * n / 2 * ((norm.weight**2).sum() + (norm.bias**2).sum()) + beta / 2 * (last.weight**2).sum()
        value = raw_loss(loss, model(torch.as_tensor(X))[:, 0], torch.as_tensor(y)) + decay
    assert float(value) == pytest.approx(fit.certificate.objective, rel=1e-10)


def test_state_loads_into_a_plain_module_where_convexbn_is_not_imported(tmp_path: Path) -> None:
    X, rows = random_data(), random_data(2, samples=7)
    network = random_network(X, 1)
    torch.save(to_torch(network).state_dict(), tmp_path / "state.pt")
    np.save(tmp_path / "rows.npy", rows)
    command = [sys.executable, "-c", LOADER, str(tmp_path), "2", "6"]
    assert subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout == "[]\n"
    assert deviation(np.load(tmp_path / "predictions.npy"), network.predict(rows)) <= 1e-12


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_reading_an_exported_module_gives_the_network_back(loss: Loss) -> None:
    X, y, fit = solved(loss)
    again = from_torch(fit.to_torch(), X)
    np.testing.assert_allclose(again.predict(X), fit.predict(X), rtol=1e-12, atol=1e-12)
    assert again.objective(X, y, loss, fit.program.beta) == pytest.approx(fit.certificate.objective, rel=1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_reading_a_fresh_module_gives_its_training_mode(bias: bool, eps: float) -> None:
    X = random_data()
    model = module(X, 0, bias=bias).train()
    model[1].eps = eps
    assert deviation(from_torch(model, X).predict(X), outputs_of(model, X)) <= 1e-12


def test_reading_a_trained_module_gives_its_training_mode() -> None:
    X = random_data()
    model = module(X, 1).train()
    train_briefly(model, X, targets_for(LOSSES[0], len(X), 1), beta=0.1)
    assert deviation(from_torch(model, X).predict(X), outputs_of(model, X)) <= 1e-12


def test_reading_leaves_the_module_as_it_was() -> None:
    X = random_data()
    model = module(X, 1).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    from_torch(model, X)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize("steps", [False, True])
def test_certificate_of_somebody_elses_module_is_a_bound(steps: bool) -> None:
    X, y, fit = solved(LOSSES[0])
    beta = fit.program.beta
    model = module(X, 2).train()
    if steps:
        train_briefly(model, X, y, beta)
    certificate = certify(X, y, from_torch(model, X), beta=beta, arrangements=enumerate_arrangements(whiten(X).basis))
    assert certificate.bound <= certificate.objective
    assert certificate.bound <= fit.certificate.objective * (1.0 + 1e-9)
    assert certificate.objective >= fit.certificate.bound
    assert not certificate.accepts()


def other_modules() -> dict[str, tuple[object, str]]:
    """Modules that can't be read, and what the message says to do."""
    linear, norm, relu, last = nn.Linear(2, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1, bias=False)
    return {
        "no sequence": (linear, "rebuild"),
        "no model": (None, "rebuild"),
        "missing normalisation": (nn.Sequential(linear, relu, last), "rebuild"),
        "another activation": (nn.Sequential(linear, norm, nn.Tanh(), last), "rebuild"),
        "activation first": (nn.Sequential(relu, linear, norm, last), "rebuild"),
        "one layer more": (nn.Sequential(linear, norm, relu, last, nn.ReLU()), "rebuild"),
        "no gains": (nn.Sequential(linear, nn.BatchNorm1d(5, affine=False), relu, last), "affine=True"),
        "widths that don't meet": (nn.Sequential(nn.Linear(2, 6), norm, relu, last), "rebuild"),
        "output bias": (nn.Sequential(linear, norm, relu, nn.Linear(5, 1)), "bias=False"),
        "several numbers of a channel": (
            nn.Sequential(nn.Conv2d(1, 5, 2), nn.BatchNorm2d(5), relu, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 1, bias=False)),
            r"AdaptiveAvgPool2d\(1\).*rebuild",
        ),
    }


@pytest.mark.parametrize("name", list(other_modules()))
def test_other_architectures_are_refused(name: str) -> None:
    model, advice = other_modules()[name]
    with pytest.raises(InputError, match=f"^model .*{advice}"):
        from_torch(model, random_data())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gives_the_network_to_its_digits_and_back(dtype: torch.dtype) -> None:
    """Exported in it, and exported in float32 under autocast: batch normalisation has no number beyond float16 to divide by."""
    X, rounding = random_data(), 8.0 * torch.finfo(dtype).eps
    network = random_network(X, 1)
    model = to_torch(network, dtype=dtype)
    assert deviation(outputs_of(model.eval(), X, dtype), network.predict(X)) <= rounding
    assert deviation(from_torch(model, X).predict(X), network.predict(X)) <= rounding
    with torch.autocast("cpu", dtype):
        under = to_torch(network, dtype=torch.float32).eval()(torch.as_tensor(X, dtype=torch.float32))
    assert deviation(under.detach().double().numpy()[:, 0], network.predict(X)) <= rounding


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, "float32", np.float32], ids=str)
def test_what_is_no_floating_type_is_refused(dtype: Any) -> None:
    with pytest.raises(InputError, match=r"^dtype = .* no floating type .*: pass torch\.float32"):
        to_torch(random_network(random_data(), 1), dtype=dtype)


def test_other_data_are_refused() -> None:
    with pytest.raises(InputError, match=r"^X has 3 features, but this network is expecting 2"):
        from_torch(module(random_data(), 0), random_data(features=3))


@pytest.mark.parametrize("size", [1e300, 1e-300])
def test_weights_beyond_float32_are_refused(size: float) -> None:
    network = random_network(random_data(features=1) * size, 1)
    with pytest.raises(InputError, match=r"^dtype = torch.float32 can't hold 0.weight .* export in float64"):
        to_torch(network, dtype=torch.float32)
    assert torch.isfinite(to_torch(network)[0].weight).all()
