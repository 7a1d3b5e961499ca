"""The plain estimators, alone and among pipelines, searches and pandas."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from estimator_data import CHEAP, CONIC, SLIDING, classification, regression, three_classes, unproved
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from convexbn import Fit, InputError, Logistic, SlidingFrankWolfe, fit_convex_bn
from convexbn.estimators import ConvexBNClassifier, ConvexBNRegressor


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


@pytest.fixture(scope="module")
def softmax() -> ConvexBNClassifier:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convexbn.fit.certify_on", unproved)
        return ConvexBNClassifier(beta=0.05, solver=SlidingFrankWolfe(tolerance=1e-3)).fit(*three_classes())


def test_three_classes_are_softmax_cross_entropy_on_one_hot_rows(softmax: ConvexBNClassifier) -> None:
    X, y = three_classes()
    one_hot = (y[:, None] == np.array(["a", "b", "c"])).astype(float)
    assert softmax.fit_.program.loss.name == "softmax"
    assert softmax.classes_.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(softmax.fit_.program.y, one_hot)
    decision, probabilities = softmax.decision_function(X), softmax.predict_proba(X)
    assert decision.shape == probabilities.shape == (18, 3)
    np.testing.assert_array_equal(decision, softmax.fit_.predict(X))
    weights = np.exp(decision)
    np.testing.assert_allclose(probabilities, weights / weights.sum(axis=1, keepdims=True), rtol=1e-10)
    np.testing.assert_array_equal(softmax.predict(X), np.array(["a", "b", "c"])[decision.argmax(axis=1)])
    assert softmax.score(X, y) > 0.9


def test_a_loss_object_counts_like_its_name(monkeypatch: pytest.MonkeyPatch, softmax: ConvexBNClassifier) -> None:
    monkeypatch.setattr("convexbn.fit.certify_on", unproved)
    model = ConvexBNClassifier(loss=Logistic(), beta=0.05, solver=softmax.solver).fit(*three_classes())
    np.testing.assert_array_equal(model.decision_function(three_classes()[0]), softmax.decision_function(three_classes()[0]))


@pytest.mark.usefixtures("rough")
@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_outputs_of_one_hot_regression_become_the_nearest_probabilities(loss: str) -> None:
    X, y = three_classes()
    model = ConvexBNClassifier(loss=loss, beta=0.05, **SLIDING).fit(X, y)
    decision, probabilities = model.decision_function(3.0 * X), model.predict_proba(3.0 * X)
    assert (probabilities >= 0.0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(model.predict(3.0 * X), model.classes_[probabilities.argmax(axis=1)])
    corners = np.eye(3)  # the nearest point p of a convex set has <f - p, corner - p> <= 0 for every corner
    gap = np.einsum("kc,kjc->kj", decision - probabilities, corners[None] - probabilities[:, None])
    assert gap.max() < 1e-12


def test_probabilities_of_squared_loss_are_clipped_for_two_classes() -> None:
    X, y = classification()
    model = ConvexBNClassifier(loss="squared", beta=0.05, **CONIC).fit(X, y)
    expected = np.clip(0.5 * (1.0 + model.decision_function(2.0 * X)), 0.0, 1.0)
    np.testing.assert_allclose(model.predict_proba(2.0 * X)[:, 1], expected, rtol=1e-12)


def test_softmax_of_two_classes_is_logistic_with_half_the_output_on_either_side() -> None:
    """f_2 - f_1 = f at f = (-f/2, f/2), which has 1/sqrt(2) of the length of f: the same as logistic loss at beta / sqrt(2)."""
    X, y = classification()
    two = ConvexBNClassifier(loss="softmax", beta=0.5, solver=SlidingFrankWolfe(tolerance=1e-5)).fit(X, y)
    one = ConvexBNClassifier(beta=0.5 / np.sqrt(2.0), **CONIC).fit(X, y)
    assert two.decision_function(X).shape == (16,)
    np.testing.assert_allclose(two.decision_function(X), one.decision_function(X), atol=2e-2)
    assert two.fit_.certificate.objective == pytest.approx(one.fit_.certificate.objective, rel=1e-4)
    np.testing.assert_allclose(two.predict_proba(X), one.predict_proba(X), atol=5e-3)


def test_hinge_of_three_classes_is_refused_with_advice() -> None:
    X, y = three_classes()
    with pytest.raises(InputError, match=r"^loss = 'hinge' is for two classes, but y has 3: .*'logistic'.*OneVsRestClassifier"):
        ConvexBNClassifier(loss="hinge", **CONIC).fit(X, y)
    assert OneVsRestClassifier(ConvexBNClassifier(loss="hinge", **CHEAP)).fit(X, y).predict(X).shape == (18,)


@pytest.mark.usefixtures("rough")
def test_several_outputs_are_centred_one_by_one() -> None:
    X, y = regression()
    targets = np.column_stack([y, 100.0 - y])
    model = ConvexBNRegressor(beta=0.1, **SLIDING).fit(X, targets)
    np.testing.assert_array_equal(model.intercept_, targets.mean(axis=0))
    np.testing.assert_array_equal(model.predict(X), model.fit_.predict(X) + targets.mean(axis=0))
    assert model.score(X, targets) > 0.9


def test_one_column_of_targets_is_predicted_as_one_column() -> None:
    X, y = regression()
    column, plain = (ConvexBNRegressor(beta=0.1, **CHEAP).fit(X, targets) for targets in (y[:, None], y))
    assert column.predict(X).shape == (16, 1)
    np.testing.assert_allclose(column.predict(X)[:, 0], plain.predict(X), rtol=1e-12)


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
