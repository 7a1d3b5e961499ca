"""Adam on the network's own objective."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import LOSSES, Problem, objective_of, random_problem, targets_for

from convexbn import Evidence, InputError, Squared, fit_convex_bn, whiten
from convexbn.training import TrainingRun, train_adam
from convexbn.training.adam import TORCH_LOSSES, network_objectives


def run(problem: Problem, beta: float = 0.2, **settings) -> list[TrainingRun]:
    return train_adam(problem.X, problem.y, beta=beta, loss=problem.loss, **{"width": 8, "steps": 60, **settings})


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
    found = [result.network.objective(problem.X, problem.y, loss, beta) for result in run(problem, beta, width=30, starts=8, steps=800)]
    assert min(found) >= bound
    assert min(found) <= 1.05 * bound


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_the_gradient_matches_finite_differences(loss):
    problem = random_problem(loss, 9, 2, seed=8)
    basis, y = torch.as_tensor(whiten(problem.X).basis), torch.as_tensor(problem.y)
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 2), (2, 4), (2, 4), (2, 4)
    parameters = [torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(lambda *p: network_objectives(p, basis, y, loss, 0.3, 0.7), parameters, eps=1e-6, atol=1e-7)


def test_every_built_in_loss_has_a_form():
    assert {type(loss) for loss in LOSSES} <= set(TORCH_LOSSES)


def test_other_floating_types_are_computed_in():
    problem = random_problem(Squared(), 12, 2, seed=9)
    (result,) = run(problem, dtype=torch.float32)
    assert objective_of(result.network, problem, 0.2) == pytest.approx(result.history.min(), rel=1e-5)


def test_zero_targets_need_no_network():
    problem = Problem("zero", np.random.default_rng(0).standard_normal((8, 2)), np.zeros(8), Squared())
    (result,) = run(problem, steps=300)
    assert 0.0 <= result.history.min() < 1e-3 * result.history[0]


@pytest.mark.parametrize(
    "settings",
    [{"beta": 0.0}, {"width": 0}, {"starts": 0}, {"steps": 0}, {"learning_rate": -1.0}, {"seed": -1}],
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
