"""The scikit-learn estimators: its own checks one by one, and life among pipelines, searches and pandas."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from convexbn import Conic, ConvexBNClassifier, ConvexBNRegressor, Fit, InputError, fit_convex_bn

# The checks test the shell, not the optimum: ten arrangements and solutions of medium accuracy take a tenth of the time.
CHEAP: dict[str, Any] = {"arrangements": 10, "solver": Conic("CLARABEL", {"tol_gap_abs": 1e-6, "tol_gap_rel": 1e-6, "tol_feas": 1e-6})}
CONIC: dict[str, Any] = {"arrangements": "all", "solver": "CLARABEL"}


def regression() -> tuple[np.ndarray, np.ndarray]:
    """A bent function of two features, with an offset."""
    X = np.random.default_rng(0).standard_normal((16, 2))
    return X, 5.0 + np.maximum(X[:, 0], 0.0) - 0.5 * X[:, 1]


def classification() -> tuple[np.ndarray, np.ndarray]:
    """Words for the sign of a linear function."""
    X = np.random.default_rng(1).standard_normal((16, 2))
    return X, np.where(X[:, 0] > 0.3 * X[:, 1], "yes", "no")


def checks_of_scikit_learn(array_api: bool) -> list[Any]:
    """Its checks of both estimators; those of the array API need an environment variable before SciPy is imported."""
    pairs = [pair for kind in (ConvexBNRegressor, ConvexBNClassifier) for pair in estimator_checks_generator(kind(**CHEAP))]
    named = [(f"{type(estimator).__name__}, {name_of(check)}", estimator, check) for estimator, check in pairs]
    return [pytest.param(estimator, check, id=name) for name, estimator, check in named if ("array_api" in name) == array_api]


def name_of(check: Any) -> str:
    """The name of a check and its settings."""
    settings = [f"{key}={value}" for key, value in check.keywords.items()]
    return " ".join([check.func.__name__, *settings])


@pytest.mark.parametrize(("estimator", "check"), checks_of_scikit_learn(array_api=False))
def test_check_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def test_array_api_dispatch_changes_nothing() -> None:
    script = "import test_estimators as t; c = t.checks_of_scikit_learn(True); [one.values[1](one.values[0]) for one in c]; print(len(c))"
    environment = {**os.environ, "SCIPY_ARRAY_API": "1", "PYTHONPATH": str(Path(__file__).parent)}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True).stdout == "2\n"


@pytest.mark.parametrize("estimator", [ConvexBNRegressor(), ConvexBNClassifier()], ids=lambda estimator: type(estimator).__name__)
def test_defaults_are_those_of_the_function(estimator: Any) -> None:
    X, y = regression() if isinstance(estimator, ConvexBNRegressor) else classification()
    estimator.fit(X[:6], y[:6])
    assert isinstance(estimator.fit_, Fit)
    loss = "squared" if isinstance(estimator, ConvexBNRegressor) else "logistic"
    targets = y[:6] - np.mean(y[:6]) if loss == "squared" else np.where(y[:6] == "yes", 1.0, -1.0)
    assert estimator.fit_.certificate.objective == fit_convex_bn(X[:6], targets, loss=loss).certificate.objective


def test_parameters_reach_the_fit() -> None:
    X, y = regression()
    model = ConvexBNRegressor(beta=0.7, loss="huber", arrangements=7, solver="CLARABEL", seed=3).fit(X, y)
    direct = fit_convex_bn(X, y - y.mean(), beta=0.7, loss="huber", arrangements=7, solver="CLARABEL", seed=3)
    assert model.fit_.certificate.objective == direct.certificate.objective
    assert model.intercept_ == y.mean()
    np.testing.assert_array_equal(model.predict(X), direct.predict(X) + y.mean())


def test_offset_of_the_targets_costs_the_regressor_nothing() -> None:
    X, y = regression()
    models = [ConvexBNRegressor(beta=0.1, **CONIC).fit(X, y + offset) for offset in (0.0, 1e4)]
    np.testing.assert_allclose(models[1].predict(X) - 1e4, models[0].predict(X), atol=1e-5)
    assert models[0].score(X, y) == r2_score(y, models[0].predict(X)) > 0.9


def test_constant_targets_are_predicted_exactly() -> None:
    X, _ = regression()
    np.testing.assert_allclose(ConvexBNRegressor(**CONIC).fit(X, np.full(16, 0.1)).predict(X), 0.1, rtol=1e-12)


def test_sign_of_the_decision_is_the_class() -> None:
    X, y = classification()
    model = ConvexBNClassifier(beta=0.05, **CONIC).fit(X, y)
    decision = model.decision_function(X)
    assert model.classes_.tolist() == ["no", "yes"]
    np.testing.assert_array_equal(model.predict(X), np.where(decision > 0, "yes", "no"))
    np.testing.assert_array_equal(decision, model.fit_.predict(X))
    assert model.score(X, y) > 0.9


def test_probabilities_sum_to_one_and_follow_the_log_odds() -> None:
    X, y = classification()
    model = ConvexBNClassifier(beta=0.5, **CONIC).fit(X, y)
    probabilities = model.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-15)
    np.testing.assert_allclose(probabilities[:, 1], 1.0 / (1.0 + np.exp(-model.decision_function(X))), rtol=1e-12)
    assert ((probabilities >= 0.0) & (probabilities <= 1.0)).all()


@pytest.mark.parametrize("labels", [(0, 1), (-1.0, 1.0), (False, True), (7, 3), ("b", "a")], ids=str)
@pytest.mark.parametrize("loss", ["logistic", "hinge", "squared"])
def test_labels_of_any_kind(labels: tuple[Any, Any], loss: str) -> None:
    X, words = classification()
    y = np.array([labels[int(word == "yes")] for word in words])
    model = ConvexBNClassifier(loss=loss, beta=0.005, **CONIC).fit(X, y)
    assert model.classes_.tolist() == sorted(labels)
    np.testing.assert_array_equal(model.predict(X), y)
    assert model.predict(X).dtype == y.dtype


def test_exchanged_classes_exchange_the_sign() -> None:
    X, y = classification()
    models = [ConvexBNClassifier(beta=0.5, **CONIC).fit(X, labels) for labels in (y, np.where(y == "yes", "no", "yes"))]
    np.testing.assert_allclose(models[0].decision_function(X), -models[1].decision_function(X), atol=1e-4)


def test_more_than_two_classes_are_refused_with_advice() -> None:
    X, _ = classification()
    y = np.arange(16) % 3
    with pytest.raises(InputError, match=r"^y has 3 classes\. Only binary .*: wrap .*OneVsRestClassifier"):
        ConvexBNClassifier(**CONIC).fit(X, y)
    assert OneVsRestClassifier(ConvexBNClassifier(**CHEAP)).fit(X, y).predict(X).shape == (16,)


def test_one_class_is_refused() -> None:
    X, _ = classification()
    with pytest.raises(InputError, match=r"^y has one class\. .*: pass samples of two classes"):
        ConvexBNClassifier(**CONIC).fit(X, np.ones(16))


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
def test_classifier_without_fit_says_so(method: str) -> None:
    with pytest.raises(NotFittedError):
        getattr(ConvexBNClassifier(), method)(classification()[0])


def test_pipeline_with_scaler_gives_the_same_as_without() -> None:
    X, y = regression()
    alone, piped = ConvexBNRegressor(beta=0.1, **CONIC), make_pipeline(StandardScaler(), ConvexBNRegressor(beta=0.1, **CONIC))
    np.testing.assert_allclose(piped.fit(X * [1.0, 1e3] + 5.0, y).predict(X * [1.0, 1e3] + 5.0), alone.fit(X, y).predict(X), atol=1e-4)


def test_search_over_beta_and_cross_validation() -> None:
    X, y = regression()
    search = GridSearchCV(ConvexBNRegressor(**CHEAP), {"beta": [1e-2, 1.0, 1e3]}, cv=3, error_score="raise").fit(X, y)
    assert search.best_params_["beta"] < 1e3
    scores = cross_val_score(ConvexBNRegressor(beta=search.best_params_["beta"], **CHEAP), X, y, cv=3, error_score="raise")
    assert np.mean(scores) == pytest.approx(search.best_score_, rel=1e-12)
    assert np.mean(scores) > 0.5


def test_clone_keeps_the_parameters_and_drops_the_fit() -> None:
    X, y = regression()
    model = ConvexBNRegressor(beta=0.3, loss="huber", **CONIC).fit(X, y)
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert not hasattr(copy, "fit_")


@pytest.mark.parametrize("kind", [ConvexBNRegressor, ConvexBNClassifier])
def test_pickle_gives_the_model_back(kind: Any) -> None:
    X, y = regression() if kind is ConvexBNRegressor else classification()
    model = kind(beta=0.3, **CONIC).fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    assert str(again.fit_) == str(model.fit_)


def test_names_of_pandas_columns_are_kept_and_checked() -> None:
    X, y = regression()
    frame = pd.DataFrame(X, columns=["width", "height"])
    model = ConvexBNRegressor(beta=0.3, **CONIC).fit(frame, pd.Series(y))
    assert model.feature_names_in_.tolist() == ["width", "height"]
    assert model.n_features_in_ == 2
    np.testing.assert_array_equal(model.predict(frame), ConvexBNRegressor(beta=0.3, **CONIC).fit(X, y).predict(X))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["height", "width"]])


def test_certificate_is_at_hand() -> None:
    X, y = regression()
    certificate = ConvexBNRegressor(beta=0.3, **CONIC).fit(X, y).fit_.certificate
    assert certificate.accepts(1e-6)
    assert certificate.bound <= certificate.objective
