"""Gradient methods on the network's own objective, many starts at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import LOSSES, Problem, objective_of, random_problem, targets_for

from convexbn import Evidence, InputError, Softmax, Squared, fit_convex_bn, to_torch, whiten
from convexbn.training import LBFGS, SGD, Adam, TrainingRun, train_networks
from convexbn.training.descent import Plan, descend
from convexbn.training.losses import TORCH_LOSSES
from convexbn.training.networks import Problem as Objective
from convexbn.training.networks import _initial, _network, _Networks, stretch_of


def run(problem: Problem, beta: float = 0.2, **settings) -> list[TrainingRun]:
    return train_networks(problem.X, problem.y, beta=beta, loss=problem.loss, **{"width": 8, "epochs": 60, **settings})


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_the_best_iterate_is_returned_with_its_objective(loss):
    problem = random_problem(loss, 15, 3, seed=1)
    for result in run(problem, starts=3):
        least = result.history.min()
        assert result.history.shape == (61,)
        assert result.network.objective(problem.X, problem.y, loss, 0.2) == pytest.approx(least, rel=1e-12)
        assert objective_of(result.network, problem, 0.2) == pytest.approx(least, rel=1e-12)
        assert least < result.history[0]
        assert result.seconds > 0


def test_large_units_and_means_leave_the_objective_exact():
    X = np.random.default_rng(2).standard_normal((20, 3)) * [1e-3, 1.0, 1e4] + [5.0, -2.0, 1e5]
    problem = Problem("units", X, 1e3 * targets_for(Squared(), 20, 3), Squared())
    (result,) = run(problem, beta=50.0)
    assert objective_of(result.network, problem, 50.0) == pytest.approx(result.history.min(), rel=1e-9)


def test_the_unit_of_the_targets_doesnt_matter():
    problem = random_problem(Squared(), 12, 2, seed=4)
    larger = Problem("larger", problem.X, 1024.0 * problem.y, problem.loss)
    (small,), (large,) = run(problem, beta=0.2), run(larger, beta=0.2 * 1024.0)
    np.testing.assert_allclose(large.history, 1024.0**2 * small.history, rtol=1e-6)


def test_the_same_seed_gives_the_same_networks():
    problem = random_problem(LOSSES[0], 10, 2, seed=5)
    first, second, other = (run(problem, starts=2, seed=seed) for seed in (3, 3, 4))
    for one, two, three in zip(first, second, other, strict=True):
        np.testing.assert_array_equal(one.history, two.history)
        np.testing.assert_array_equal(one.network.weights, two.network.weights)
        assert one.history[0] != three.history[0]


def test_starts_differ():
    runs = run(random_problem(LOSSES[0], 10, 2, seed=6), starts=4)
    assert len({result.history[0] for result in runs}) == 4


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_no_start_passes_a_proved_bound(loss):
    problem = random_problem(loss, 12, 2, seed=7)
    fit = fit_convex_bn(problem.X, problem.y, loss=loss, arrangements="all", solver="CLARABEL")
    beta, bound = fit.program.beta, fit.certificate.bound
    assert fit.certificate.evidence is Evidence.PROVED
    found = [result.network.objective(problem.X, problem.y, loss, beta) for result in run(problem, beta, width=30, starts=8, epochs=800)]
    assert min(found) >= bound
    assert min(found) <= 1.05 * bound


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_the_gradient_matches_finite_differences(loss):
    problem = random_problem(loss, 9, 2, seed=8)
    objective = objective_on(problem.X, problem.y, loss, beta=0.3, size=0.7)
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 2), (2, 4), (2, 4), (2, 4)
    parameters = [torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(lambda *p: objective.objectives(p), parameters, eps=1e-6, atol=1e-7)


def test_every_built_in_loss_has_a_form():
    assert {type(loss) for loss in LOSSES} <= set(TORCH_LOSSES)


def test_other_floating_types_are_computed_in():
    problem = random_problem(Squared(), 12, 2, seed=9)
    (result,) = run(problem, dtype=torch.float32)
    assert objective_of(result.network, problem, 0.2) == pytest.approx(result.history.min(), rel=1e-5)


def test_zero_targets_need_no_network():
    problem = Problem("zero", np.random.default_rng(0).standard_normal((8, 2)), np.zeros(8), Squared())
    (result,) = run(problem, epochs=300)
    assert 0.0 <= result.history.min() < 1e-3 * result.history[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.0},
        {"width": 0},
        {"starts": 0},
        {"epochs": 0},
        {"seed": -1},
        {"batch_size": 1},
        {"batch_size": 7},
        {"patience": 0},
        {"coordinates": "polar"},
    ],
    ids=str,
)
def test_unusable_settings_are_named(settings):
    (name,) = settings
    with pytest.raises(InputError, match=f"^{name}"):
        run(random_problem(Squared(), 6, 2, seed=0), **settings)


def test_a_loss_without_a_form_is_refused():
    class Unknown(Squared):
        pass

    problem = random_problem(Unknown(), 6, 2, seed=0)
    with pytest.raises(InputError, match="TORCH_LOSSES"):
        run(problem)


def objective_on(X, y, loss, *, beta: float, size: float, coordinates: str = "whitened") -> Objective:
    whitening = whiten(X, rank=X.shape[1] if coordinates == "raw" else None)
    stretch = torch.as_tensor(stretch_of(whitening, coordinates))
    return Objective(torch.as_tensor(whitening.basis), torch.as_tensor(y), stretch, loss, beta, size, 1.0)


CLASSES = np.eye(3)[np.random.default_rng(0).integers(0, 3, 24)]
INPUTS = np.random.default_rng(1).standard_normal((24, 4)) * [1.0, 3.0, 0.1, 20.0] + 5.0


@pytest.mark.parametrize("coordinates", ["whitened", "raw"])
@pytest.mark.parametrize("method", [SGD(), SGD(momentum=0.0, schedule="constant"), Adam(), LBFGS(iterations=3)], ids=str)
@pytest.mark.parametrize("loss", [Squared(), Softmax()], ids=lambda loss: loss.name)
def test_several_outputs_have_the_networks_objective_too(loss, method, coordinates):
    settings = {"beta": 0.05, "loss": loss, "width": 6, "epochs": 40, "method": method, "starts": 2, "coordinates": coordinates}
    for result in train_networks(INPUTS, CLASSES, **settings):
        assert result.network.objective(INPUTS, CLASSES, loss, 0.05) == pytest.approx(result.history.min(), rel=1e-11)
        assert result.history.min() < result.history[0]


def test_batches_are_normalised_as_in_pytorch():
    objective = objective_on(INPUTS, CLASSES, Softmax(), beta=0.2, size=0.6)
    parameters = _initial(1, 5, 4, (3,), seed=0)
    model = to_torch(_network(whiten(INPUTS), objective, [p[0] for p in parameters])).train()
    rows = torch.tensor([3, 1, 20, 7, 11])
    expected = model(torch.as_tensor(INPUTS)[rows]).detach()
    torch.testing.assert_close(objective.batch_predictions(parameters, rows)[0], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(objective.objectives(parameters, torch.arange(24)), objective.objectives(parameters), rtol=1e-12, atol=0)


def test_mini_batches_have_another_objective_and_stay_above_the_bound():
    problem = random_problem(Squared(), 40, 2, seed=3)
    fit = fit_convex_bn(problem.X, problem.y)
    beta = fit.program.beta
    runs = run(problem, beta, width=20, starts=2, method=SGD(0.05), batch_size=10, epochs=60)
    found = [result.network.objective(problem.X, problem.y, problem.loss, beta) for result in runs]
    assert fit.certificate.bound <= min(found) <= 1.3 * fit.certificate.bound


def raw_gradient(objective: Objective, parameters: list[torch.Tensor], X: np.ndarray) -> np.ndarray:
    """The gradient in the raw weights w, by code of its own, at w = V Sigma^{-1} q: shape (m, d)."""
    p, g, a, v = parameters
    weights = torch.as_tensor(whiten(X, rank=3).raw_weights((objective.stretch * p).numpy()[0])).requires_grad_()
    n, size = len(X), objective.size
    z = torch.as_tensor(X) @ weights.T
    normalised = (z - z.mean(0)) / (z - z.mean(0)).norm(dim=0)
    f = size**2 * torch.relu(normalised * g[0] + a[0] / n**0.5) @ v[0]
    (0.5 * (f - objective.targets).square().sum()).backward()
    return weights.grad.numpy()


def test_a_step_on_the_raw_weights_is_a_stretched_step_on_the_whitened_ones():
    X = np.random.default_rng(4).standard_normal((30, 3)) @ np.diag([100.0, 1.0, 0.01])
    y = np.random.default_rng(5).standard_normal(30)
    whitening = whiten(X, rank=3)
    objective = objective_on(X, y, Squared(), beta=0.1, size=0.8, coordinates="raw")
    parameters = [p.requires_grad_() for p in _initial(1, 4, 3, (), seed=2)]
    (gradient,) = torch.autograd.grad(objective.objectives(parameters).sum(), parameters[0])
    step_of_q = (objective.stretch * gradient)[0].numpy()
    raw = raw_gradient(objective, [p.detach() for p in parameters], X)
    mean = np.mean(whitening.singular_values**2)
    np.testing.assert_allclose(step_of_q, whitening.whitened_weights(raw) * whitening.scale[0] ** -2 / mean, rtol=1e-7)


def test_descent_in_whitened_coordinates_sees_only_the_span_of_the_data():
    problem = random_problem(Squared(), 20, 3, seed=6)
    mixed = problem.X @ np.array([[2.0, 1.0, 0.0], [0.0, 0.1, 5.0], [1.0, 0.0, 30.0]]) + [1.0, 2.0, 3.0]
    first, second = (objective_on(X, problem.y, Squared(), beta=0.2, size=0.5) for X in (problem.X, mixed))
    rotation = first.basis[:, :-1].T @ second.basis[:, :-1]
    p, *others = _initial(2, 5, 3, (), seed=1)
    histories = []
    for objective, initial in ((first, [p, *others]), (second, [p @ rotation, *others])):
        trainee = _Networks(objective, initial, None, frozenset())
        descend(trainee, SGD(0.01), Plan(50))
        histories.append(torch.stack(trainee.history))
    torch.testing.assert_close(histories[0], histories[1], rtol=1e-7, atol=0)


@pytest.mark.parametrize("loss", LOSSES[:2], ids=lambda loss: loss.name)
def test_lbfgs_reaches_the_proved_optimum(loss):
    problem = random_problem(loss, 12, 2, seed=7)
    fit = fit_convex_bn(problem.X, problem.y, loss=loss, arrangements="all", solver="CLARABEL")
    beta, bound = fit.program.beta, fit.certificate.bound
    assert fit.certificate.evidence is Evidence.PROVED
    runs = run(problem, beta, width=40, starts=4, method=LBFGS(), epochs=15)
    best = min(result.network.objective(problem.X, problem.y, loss, beta) for result in runs)
    assert bound <= best <= (1.0 + 2e-3) * bound


def test_the_best_iterate_on_the_validation_set_is_kept():
    problem = random_problem(Squared(), 30, 3, seed=8)
    X, y = problem.X[20:], problem.y[20:]
    runs = train_networks(
        problem.X[:20], problem.y[:20], beta=1e-3, width=40, starts=2, epochs=400, validation=(X, y), patience=20, method=Adam(0.05)
    )
    for result in runs:
        assert Squared().value(result.network.predict(X), y) / 10 == pytest.approx(result.validation.min(), rel=1e-10)
    assert len(runs[0].history) == len(runs[0].validation) < 401
    assert max(int(np.argmin(result.validation)) for result in runs) == len(runs[0].history) - 21


def test_snapshots_are_the_networks_of_their_epochs():
    problem = random_problem(Squared(), 15, 2, seed=9)
    for result in run(problem, starts=2, snapshots=(0, 7, 60), method=SGD(0.01)):
        assert list(result.snapshots) == [0, 7, 60]
        for epoch, network in result.snapshots.items():
            assert objective_of(network, problem, 0.2) == pytest.approx(result.history[epoch], rel=1e-11)


def test_progress_goes_to_the_console_alone(capfd):
    run(random_problem(Squared(), 6, 2, seed=0), verbose=True)
    assert capfd.readouterr().out == ""


def test_methods_refuse_unusable_settings():
    for name, make in {
        "learning_rate": lambda: SGD(0.0),
        "momentum": lambda: SGD(momentum=1.0),
        "schedule": lambda: Adam(schedule="linear"),
        "iterations": lambda: LBFGS(iterations=0),
    }.items():
        with pytest.raises(InputError, match=f"^{name}"):
            make()
    with pytest.raises(InputError, match=r"^batch_size"):
        run(random_problem(Squared(), 6, 2, seed=0), method=LBFGS(), batch_size=3)
