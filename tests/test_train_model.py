"""Any module by mini-batches, in the usual practice and on the objective of the convex program."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import random_problem
from torch import nn

from convexbn import Evidence, InputError, Logistic, Softmax, Squared, certify, fit_convex_bn, from_torch
from convexbn.training import LBFGS, SGD, Adam, evaluate, train_model

INPUTS = np.random.default_rng(1).standard_normal((24, 4))
CLASSES = np.eye(3)[np.random.default_rng(0).integers(0, 3, 24)]


def two_layers(features: int, width: int, outputs: int, *, eps: float = 1e-30, seed: int = 0) -> nn.Sequential:
    """In float64; an epsilon of 1e-30 is below rounding."""
    torch.manual_seed(seed)
    layers = nn.Linear(features, width, bias=False), nn.BatchNorm1d(width, eps=eps), nn.ReLU(), nn.Linear(width, outputs, bias=False)
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("method", [SGD(0.01), Adam(0.01), LBFGS(iterations=4)], ids=lambda method: type(method).__name__)
@pytest.mark.parametrize(
    ("loss", "y"),
    [(Squared(), CLASSES), (Squared(), CLASSES[:, 0]), (Softmax(), CLASSES), (Logistic(), 2.0 * CLASSES[:, 1] - 1.0)],
    ids=["squared", "one output", "softmax", "logistic"],
)
def test_with_beta_it_descends_on_the_objective_of_the_convex_program(loss, y, method):
    model = two_layers(4, 6, y[0].size)
    run = train_model(model, INPUTS, y, loss=loss, beta=0.05, method=method, epochs=8, batch_size=None)
    start, end = (from_torch(m, INPUTS).objective(INPUTS, y, loss, 0.05) / 24 for m in (model, run.model))
    assert len(run.history) == 9
    assert run.history[[0, -1]] == pytest.approx([start, end], rel=1e-11)
    assert end < start


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weight_decay_is_that_of_pytorchs_optimiser(momentum):
    model = two_layers(4, 6, 3, eps=1e-5)
    run = train_model(model, INPUTS, CLASSES, weight_decay=0.03, method=SGD(0.1, momentum, "constant"), epochs=5, batch_size=None)
    X, labels = torch.as_tensor(INPUTS), torch.as_tensor(CLASSES).argmax(dim=1)
    optimiser = torch.optim.SGD(model.train().parameters(), lr=0.1, momentum=momentum, weight_decay=0.03)
    for _ in range(5):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(X), labels).backward()
        optimiser.step()
    for one, other in zip(model.parameters(), run.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_an_epoch_takes_every_sample_once_in_a_new_order():
    seen: list[torch.Tensor] = []

    class Watched(nn.Sequential):
        def forward(self, X: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.append(X[:, 0].clone())
            return super().forward(X)

    X = np.column_stack([np.arange(23.0), np.random.default_rng(3).standard_normal(23)])
    train_model(Watched(*two_layers(2, 3, 3)), X, CLASSES[:23], epochs=2, batch_size=5)
    assert [len(rows) for rows in seen] == [6, 6, 6, 5] * 2
    first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
    assert not torch.equal(first, second)
    for epoch in (first, second):
        torch.testing.assert_close(epoch.sort().values, torch.arange(23.0, dtype=torch.float64))


def test_the_cosine_falls_over_the_whole_run():
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = SGD(1.0).scheduler(optimiser, 10)
    rates = []
    for _ in range(11):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    np.testing.assert_allclose(rates, 0.5 + 0.5 * np.cos(np.pi * np.arange(11) / 10), atol=1e-12)


def test_the_penalty_of_an_image_counts_the_rows_that_the_norm_sees():
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(nn.Conv2d(2, 5, 3, stride=2), nn.BatchNorm2d(5), nn.ReLU(), pool, nn.Flatten(), nn.Linear(5, 3)).double()
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    images = torch.randn(6, 2, 9, 7, dtype=torch.float64)
    run = train_model(model, images, CLASSES[:6], beta=0.4, loss="squared", epochs=1, batch_size=None)
    with torch.no_grad():
        residual = model.train()(images) - torch.as_tensor(CLASSES[:6])
    rows = 6 * 4 * 3
    decay = rows * (model[1].weight.square().sum() + model[1].bias.square().sum()) + model[5].weight.square().sum()
    objective = 0.5 * residual.square().sum() + 0.5 * 0.4 * decay
    assert run.history[0] == pytest.approx(objective.item() / 6, rel=1e-12)


def test_lbfgs_reaches_the_proved_optimum_and_no_run_passes_it():
    problem = random_problem(Squared(), 12, 2, seed=7)
    fit = fit_convex_bn(problem.X, problem.y, arrangements="all", solver="CLARABEL")
    beta, bound = fit.program.beta, fit.certificate.bound
    assert fit.certificate.evidence is Evidence.PROVED
    settings = {"loss": "squared", "beta": beta}
    best = np.inf
    for seed in range(2):
        model = two_layers(2, 30, 1, seed=seed)
        by_lbfgs = train_model(model, problem.X, problem.y, method=LBFGS(), epochs=20, batch_size=None, **settings)
        by_batches = train_model(model, problem.X, problem.y, method=SGD(0.05), epochs=20, batch_size=4, **settings)
        for run in (by_lbfgs, by_batches):
            objective = from_torch(run.model, problem.X).objective(problem.X, problem.y, Squared(), beta)
            assert objective >= bound
            best = min(best, objective)
    assert best <= (1.0 + 1e-3) * bound


def test_a_trained_module_can_be_certified():
    run = train_model(two_layers(4, 10, 1), INPUTS, CLASSES[:, 0], loss="squared", beta=0.3, method=Adam(0.01), epochs=300, batch_size=None)
    certificate = certify(INPUTS, CLASSES[:, 0], from_torch(run.model, INPUTS), beta=0.3, seconds=1.0)
    assert certificate.objective == pytest.approx(24 * run.history[-1], rel=1e-10)
    assert 0.0 <= certificate.relative_gap < 0.5


def test_the_epoch_that_is_best_on_the_validation_set_is_returned():
    X, y = INPUTS[16:], CLASSES[16:]
    model = two_layers(4, 30, 3, eps=1e-5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = train_model(model, INPUTS[:16], CLASSES[:16], epochs=60, batch_size=4, validation=(X, y), patience=10, method=SGD(0.3))
    assert Softmax().value(evaluate(run.model, X), y) / 8 == pytest.approx(run.validation.min(), rel=1e-12)
    assert len(run.validation) == int(np.argmin(run.validation)) + 11 < 61
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_same_seed_gives_the_same_module():
    runs = [train_model(two_layers(4, 5, 3), INPUTS, CLASSES, epochs=3, batch_size=6, seed=seed) for seed in (1, 1, 2)]
    assert runs[0].history.tolist() == runs[1].history.tolist() != runs[2].history.tolist()


def test_single_precision_is_the_modules_choice():
    run = train_model(two_layers(4, 5, 3).float(), INPUTS, CLASSES, epochs=2, batch_size=6)
    assert next(run.model.parameters()).dtype == torch.float32
    assert evaluate(run.model, INPUTS).dtype == np.float64


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"beta": 0.1, "weight_decay": 0.1}, "beta"),
        ({"beta": -1.0}, "beta"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 1}, "batch_size"),
        ({"patience": 2}, "patience"),
        ({"loss": "unknown"}, "loss"),
        ({"method": LBFGS()}, "batch_size"),
        ({"y": np.arange(24)}, "y"),
        ({"y": CLASSES[:5]}, "y"),
        ({"X": np.full((24, 4), np.nan)}, "X"),
        ({"model": nn.Sequential(nn.Linear(4, 3)).double(), "beta": 0.1}, "model"),
        ({"model": nn.Sequential(nn.ReLU())}, "model"),
    ],
    ids=str,
)
def test_unusable_arguments_are_named(settings, name):
    arguments = {"model": two_layers(4, 5, 3), "X": INPUTS, "y": CLASSES, **settings}
    with pytest.raises(InputError, match=f"^{name}"):
        train_model(arguments.pop("model"), arguments.pop("X"), arguments.pop("y"), **arguments)
