"""Truncation through the whole line: a network on the leading principal directions is the network on rank-k data, and runs on raw X."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problems import LOSSES, best_of_lbfgs, objective_of, random_network, random_problem, several_targets
from sklearn.model_selection import KFold

from convexbn import (
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    InputError,
    Loss,
    beta_max,
    certify,
    enumerate_arrangements,
    fit_convex_bn,
    fit_path,
    neurons_of,
    recover,
    whiten,
)

SCALES = np.array([20.0, 5.0, 1.0, 0.1])


def projected(X: np.ndarray, k: int) -> np.ndarray:
    """The k leading principal components of the data, (n, k)."""
    return (X - X.mean(axis=0)) @ np.linalg.svd(X - X.mean(axis=0))[2][:k].T


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("k", [1, 2])
def test_the_fit_is_that_of_the_principal_components_and_runs_on_raw_data(loss: Loss, k: int) -> None:
    problem = random_problem(loss, 10, 4, seed=k)
    X, y = problem.X * SCALES, problem.y
    fit, plain = fit_convex_bn(X, y, rank=k, loss=loss), fit_convex_bn(projected(X, k), y, loss=loss)
    assert fit.program.beta == pytest.approx(plain.program.beta, rel=1e-6)
    assert fit.certificate.objective == pytest.approx(plain.certificate.objective, rel=1e-6)
    assert fit.certificate.accepts(1e-5)
    assert fit.network.objective(X, y, loss, fit.program.beta) == pytest.approx(fit.certificate.objective, rel=1e-12)
    model = fit.to_torch()
    assert model.eval()(torch.as_tensor(X))[:, 0].detach().numpy() == pytest.approx(fit.predict(X), abs=1e-12)
    assert model.train()(torch.as_tensor(X))[:, 0].detach().numpy() == pytest.approx(fit.predict(X), abs=1e-12)


def test_no_training_of_the_network_on_rank_k_data_ends_below_the_optimum() -> None:
    problem = random_problem(LOSSES[0], 9, 3, seed=5)
    X = problem.X * SCALES[:3]
    fit = fit_convex_bn(X, problem.y, rank=2)
    best = best_of_lbfgs(projected(X, 2), problem.y, problem.loss, fit.program.beta, width=12, starts=20, seed=0)
    assert fit.certificate.objective <= best * (1.0 + 1e-6)
    assert best <= fit.certificate.objective * (1.0 + 0.05)


def test_the_certificate_says_what_the_networks_may_read() -> None:
    problem = random_problem(LOSSES[0], 12, 4, seed=1)
    X = problem.X * SCALES
    fit = fit_convex_bn(X, problem.y, rank=2)
    assert "for networks that read only the 2 leading principal direction(s) of X" in str(fit.certificate)
    assert "% of the variance" in str(fit)
    again = certify(X, problem.y, fit.network, beta=fit.program.beta, rank=2, arrangements=fit.program.arrangements)
    assert again.accepts(1e-5)
    assert again.bound == pytest.approx(fit.certificate.bound, rel=1e-7)
    with_all = certify(X, problem.y, fit.network, beta=fit.program.beta, seconds=0)
    assert with_all.bound < 0.9 * again.bound
    assert "leading" not in str(with_all)
    assert "leading" not in str(fit_convex_bn(X, problem.y, rank=4, proof_seconds=0))


@pytest.mark.parametrize("seed", range(2))
def test_the_bound_of_a_network_that_reads_more_never_exceeds_its_objective(seed: int) -> None:
    problem = random_problem(LOSSES[0], 12, 4, seed=seed)
    X = problem.X * SCALES
    trained = fit_convex_bn(X, problem.y, beta=0.2, solver="sliding", proof_seconds=0)
    judged = certify(X, problem.y, trained.network, beta=0.2, rank=1, seconds=0)
    assert judged.bound <= judged.objective == trained.certificate.objective
    random = random_network(X, seed)
    assert certify(X, problem.y, random, beta=0.2, rank=1, seconds=0).bound <= objective_of(random, problem_on(X, problem), 0.2)


def problem_on(X: np.ndarray, problem: Any) -> Any:
    """The problem with other data."""
    return type(problem)(problem.name, X, problem.y, problem.loss)


@pytest.mark.parametrize("outputs", [1, 3])
def test_recovery_and_its_inverse_stay_in_the_span(outputs: int) -> None:
    X = random_problem(LOSSES[0], 15, 4, seed=2).X * SCALES
    whitening = whiten(X, rank=2)
    directions = np.random.default_rng(0).standard_normal((5, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    values = np.random.default_rng(1).standard_normal((5, outputs))
    network = recover(whitening, directions, values)
    V = whitening.components
    assert network.weights @ V @ V.T == pytest.approx(network.weights, abs=1e-12)
    hidden = np.maximum(whitening.basis @ directions.T, 0.0) @ values
    assert network.on(X).predict(X).reshape(hidden.shape) == pytest.approx(hidden, abs=1e-12)
    back = neurons_of(whitening, network)
    assert np.linalg.norm(back[1], axis=1) == pytest.approx(np.linalg.norm(values, axis=1), rel=1e-12)
    assert back[0] == pytest.approx(directions, abs=1e-12)


def test_beta_max_and_the_path_see_the_truncated_data() -> None:
    problem = random_problem(LOSSES[0], 12, 3, seed=3)
    X = problem.X * SCALES[:3]
    largest = beta_max(X, problem.y, rank=1)
    assert largest == pytest.approx(beta_max(projected(X, 1), problem.y), rel=1e-9)
    assert largest < beta_max(X, problem.y)
    path = fit_path(X, problem.y, betas=3, smallest=0.1, rank=1)
    assert path.betas[0] == pytest.approx(largest, rel=1e-9)
    plain = fit_path(projected(X, 1), problem.y, betas=path.betas)
    assert path.objectives == pytest.approx(plain.objectives, rel=1e-6)
    assert path.bounds == pytest.approx(plain.bounds, rel=1e-6)


def test_rank_n_minus_one_of_few_samples_is_untouched_by_a_larger_rank() -> None:
    X = np.random.default_rng(0).standard_normal((6, 9))
    y = np.random.default_rng(1).standard_normal(6)
    assert fit_convex_bn(X, y, rank=8).certificate.objective == pytest.approx(fit_convex_bn(X, y).certificate.objective, rel=1e-12)
    assert fit_convex_bn(X, y, rank=3).certificate.objective > 1.01 * fit_convex_bn(X, y).certificate.objective


def test_several_outputs_read_the_leading_directions() -> None:
    X = np.random.default_rng(4).standard_normal((20, 4)) * SCALES
    Y = several_targets(LOSSES[0], 20, 2, seed=0)
    fit, plain = fit_convex_bn(X, Y, rank=2, proof_seconds=0), fit_convex_bn(projected(X, 2), Y, proof_seconds=0)
    assert fit.certificate.objective == pytest.approx(plain.certificate.objective, rel=1e-3)
    assert fit.certificate.bound <= min(fit.certificate.objective, plain.certificate.objective)


def noisy() -> tuple[np.ndarray, np.ndarray]:
    """A function of the two leading directions among many of little variance, for which there are too few samples."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((24, 8)) * np.array([5.0, 3.0, *[0.3] * 6])
    return X, np.maximum(X[:, 0], 0.0) + 0.5 * X[:, 1] + 0.3 * generator.standard_normal(24)


def test_cross_validation_chooses_the_rank() -> None:
    X, y = noisy()
    model = ConvexBNRegressorCV(ranks=[1, 2, None], betas=2, smallest=0.1, cv=3).fit(X, y)
    assert model.rank_ == 2
    assert model.scores_.shape == (3, 3, 2)
    means = model.scores_.mean(axis=0)
    assert means[1].max() == means.max()
    assert model.beta_ == model.betas_[np.argmax(means[1])]
    assert model.fit_.whitening.rank == 2
    assert model.betas_[0] == pytest.approx(max(beta_max(X, y - y.mean(), rank=rank) for rank in (1, 2, None)), rel=1e-9)
    train, test = next(KFold(3).split(X))
    alone = ConvexBNRegressor(rank=2, beta=model.betas_[1] * np.sqrt(len(train) / 24)).fit(X[train], y[train])
    assert model.scores_[0, 1, 1] == pytest.approx(-np.mean((alone.predict(X[test]) - y[test]) ** 2), rel=0.05)


def test_classifiers_read_the_leading_directions_too() -> None:
    X, y = noisy()
    labels = np.where(y > 1.0, "high", "low")
    model = ConvexBNClassifierCV(ranks=[2, 0.5], betas=2, smallest=0.2, cv=2).fit(X, labels)
    assert model.rank_ in (2, 0.5)
    assert model.scores_.shape == (2, 2, 2)
    assert ConvexBNClassifier(rank=0.5).fit(X, labels).fit_.whitening.rank == 1


@pytest.mark.parametrize("ranks", [[], "all", 3, [0], [1.5]], ids=str)
def test_bad_ranks_are_refused(ranks: Any) -> None:
    with pytest.raises(InputError, match="rank"):
        ConvexBNRegressorCV(ranks=ranks).fit(*noisy())


def test_arrangements_of_all_of_the_data_are_no_list_for_truncated_data() -> None:
    problem = random_problem(LOSSES[0], 8, 2, seed=0)
    listed = enumerate_arrangements(whiten(problem.X).basis)
    with pytest.raises(InputError, match="arrangements"):
        fit_convex_bn(problem.X, problem.y, rank=1, arrangements=listed)
