"""Gradient methods beside a proved bound: the bound holds for every curve, and what the example measures is what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad
from scripts import assert_drawn, printed, rows

import judged
import judged_training as training
from convexbn import from_torch
from convexbn.losses import Squared
from convexbn.network import neurons_of
from judged_picture import spread


@pytest.fixture(scope="module")
def problem():
    generator = np.random.default_rng(0)
    X = generator.standard_normal((22, 2))
    return training.problem("small", X, np.where(X[:, 0] * X[:, 1] > 0, 1.0, -1.0), 0.2)


def test_the_script_prints_a_proof_and_no_number_below_it(tmp_path):
    picture = tmp_path / "new" / "judged.png"
    text = printed("judged.py", "--quick", "--picture", str(picture))
    words = text.split()
    bound, objective = float(words[words.index("bound") + 1].strip(",;")), float(words[words.index("program") + 1].strip(",;"))
    assert "proved" in text.split("convex program")[0]
    assert bound <= objective <= 1.001 * bound
    table = rows(text)
    assert [row[0] for row in table] == list(judged.QUICK)
    for row in table:
        end, worst, again, slower, _, descended, hardest, gap, _ = (float(cell.strip(" %") or "0") for cell in row[2:])
        assert 0.0 <= end <= worst
        assert min(again, slower, gap) >= 0.0
        assert 0.0 <= descended <= hardest < end
    assert_drawn(picture)


def test_the_convex_program_lies_within_its_proved_gap_of_the_bound(problem):
    certificate = problem.fit.certificate
    assert certificate.evidence.value == "proved"
    assert 0.0 <= problem.excess(problem.fit.network) <= 1.001 * certificate.relative_gap + 1e-12
    assert certificate.relative_gap <= 1e-3


@pytest.mark.parametrize("name", training.METHODS)
def test_no_curve_goes_below_the_bound(problem, name):
    run = training.train(problem, name, training.networks(2, 2, training.METHODS[name].full_norm), 0.1, 30)
    assert run.excess.shape == (len(run.epochs), 2)
    assert (run.epochs[0], run.epochs[-1]) == (0, 30)
    assert np.min(run.excess) >= 0.0
    assert np.max(run.excess[-1]) < 0.5 * np.min(run.excess[0])
    assert run.excess[-1] == pytest.approx(training.judge(problem, run.model), abs=0.0)


def test_the_judged_objective_is_n_times_the_trained_one(problem):
    model = training.networks(2, 3, full_norm=False)
    plain, n = training.alone(model, 1), len(problem.y)
    loss = training.mean_loss(plain(torch.as_tensor(problem.X))[:, 0], torch.as_tensor(problem.y))
    penalty = sum(decay * p.square().sum() for decay, p in zip(training.decays(problem), plain.parameters(), strict=True))
    objective = from_torch(plain, problem.X).objective(problem.X, problem.y, Squared(), problem.beta)
    assert objective == pytest.approx(n * (loss + 0.5 * penalty).item(), rel=1e-3)  # apart from the epsilon of batch normalisation
    plain[1].eps = 1e-14
    objective = from_torch(plain, problem.X).objective(problem.X, problem.y, Squared(), problem.beta)
    loss = training.mean_loss(plain(torch.as_tensor(problem.X))[:, 0], torch.as_tensor(problem.y))
    assert objective == pytest.approx(n * (loss + 0.5 * penalty).item(), rel=1e-12)


@pytest.mark.parametrize("name", ["SGD, full batch", "DecoupledSGD, full batch", "Adam, full batch"])
def test_networks_side_by_side_train_as_they_do_alone(problem, name):
    several = training.train(problem, name, training.networks(2, 3, full_norm=False), 0.03, 20).excess
    single = training.train(problem, name, training.networks(2, 1, full_norm=False), 0.03, 20).excess
    assert several[:, 0] == pytest.approx(single[:, 0], rel=1e-9)


@pytest.mark.parametrize("kind", ["full", "shuffled", "sorted"])
def test_an_epoch_is_a_partition_of_the_samples(problem, kind):
    batches = list(training.orders(problem.y, kind, 2, np.random.default_rng(0)))
    for seed in range(2):
        assert sorted(np.concatenate([batch[seed] for batch in batches])) == list(range(len(problem.y)))
        mixed = [len(set(problem.y[batch[seed]])) > 1 for batch in batches]
        assert sum(mixed) <= 1 if kind == "sorted" else all(mixed)


def test_the_true_gradient_is_that_of_the_judged_objective(problem):
    run = training.train(problem, "full norm., sorted", training.networks(2, 1, full_norm=True), 0.03, 5)
    run.model[1].eps = 1e-14
    gradient = len(problem.y) * training.mean_gradient(problem, run, "full")[0]
    plain, step = training.alone(run.model, 0), 1e-6
    values = []
    for sign in (1.0, -1.0):
        moved = training.alone(run.model, 0)
        for parameter, start, part in zip(moved.parameters(), plain.parameters(), parts(gradient, plain), strict=True):
            size = start.norm(dim=1, keepdim=True) if parameter is moved[0].weight else 1.0
            parameter.data = start.data + sign * step * size * part
        values.append(from_torch(moved, problem.X).objective(problem.X, problem.y, Squared(), problem.beta))
    assert (values[0] - values[1]) / (2.0 * step) == pytest.approx(float(gradient @ gradient), rel=1e-5)


def parts(flat, model):
    """A flat vector in the shapes of the model's parameters."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    pieces = np.split(flat, np.cumsum(sizes)[:-1])
    return [torch.as_tensor(piece).reshape(parameter.shape) for piece, parameter in zip(pieces, model.parameters(), strict=True)]


def test_the_descent_has_the_objective_of_the_networks_and_its_gradient(problem):
    network = from_torch(training.alone(training.networks(2, 1, full_norm=False), 0), problem.X).balanced()
    directions, outputs = neurons_of(problem.fit.whitening, network)
    size = np.sqrt(np.abs(outputs))
    neurons = np.hstack([size * directions, np.sign(outputs) * size])
    basis, y, beta = problem.fit.whitening.basis, problem.y, problem.beta

    def value(flat):
        return judged.value_and_gradient(flat.reshape(neurons.shape), basis, y, beta)[0]

    def gradient(flat):
        return judged.value_and_gradient(flat.reshape(neurons.shape), basis, y, beta)[1]

    assert value(neurons.ravel()) == pytest.approx(network.objective(problem.X, y, Squared(), beta), rel=1e-10)
    assert check_grad(value, gradient, neurons.ravel(), seed=0) <= 1e-5 * np.linalg.norm(gradient(neurons.ravel()))
    assert 0.0 <= problem.excess(judged.descend(problem, network)) < problem.excess(network)


def test_labels_keep_their_order_and_distance():
    placed = spread([0.0, 1.0, 1.01, 0.99, 5.0], 0.1)
    assert np.argsort(placed).tolist() == [0, 3, 1, 2, 4]
    assert np.min(np.diff(np.sort(placed))) >= 0.1 - 1e-9
