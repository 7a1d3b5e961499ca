"""Estimators with cross-validation: scores of every fold against plain estimators, the choice of beta, and bad lists of betas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from estimator_data import CONIC, FOLDS, classification, regression, three_classes
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold, StratifiedKFold

from convexbn import InputError, beta_max
from convexbn.estimators import ConvexBNClassifier, ConvexBNClassifierCV, ConvexBNRegressor, ConvexBNRegressorCV


def folds(model: Any, X: np.ndarray, y: np.ndarray, splitter: Any, score: Any) -> np.ndarray:
    """The scores of plain estimators at the betas of a fitted one, each solved from nothing, with beta scaled to the fold."""
    rows = []
    for train, test in splitter.split(X, y):
        kind = ConvexBNRegressor if isinstance(model, ConvexBNRegressorCV) else ConvexBNClassifier
        betas = model.betas_ * np.sqrt(len(train) / len(X))
        rows.append([score(kind(beta=beta, loss=model.loss, **CONIC).fit(X[train], y[train]), X[test], y[test]) for beta in betas])
    return np.array(rows)


def test_scores_of_the_regressor_are_those_of_cold_fits() -> None:
    X, y = regression()
    model = ConvexBNRegressorCV(betas=4, smallest=0.03, cv=3).fit(X, y)
    expected = folds(model, X, y, KFold(3), lambda fitted, X, y: -np.mean((fitted.predict(X) - y) ** 2))
    np.testing.assert_allclose(model.scores_, expected, rtol=0.1, atol=0.02)
    assert model.beta_ == model.betas_[np.argmax(model.scores_.mean(axis=0))] < model.betas_[0]


def test_scores_of_the_classifier_are_those_of_cold_fits() -> None:
    X, y = classification()
    model = ConvexBNClassifierCV(betas=3, smallest=0.1, cv=3).fit(X, y)
    expected = folds(model, X, y, StratifiedKFold(3), lambda fitted, X, y: -log_loss(y, fitted.predict_proba(X)))
    np.testing.assert_allclose(model.scores_, expected, rtol=0.1, atol=0.02)


def test_the_chosen_beta_is_fitted_on_all_data() -> None:
    X, y = regression()
    model = ConvexBNRegressorCV(betas=3, smallest=0.1, cv=3).fit(X, y)
    plain = ConvexBNRegressor(beta=model.beta_).fit(X, y)
    np.testing.assert_array_equal(model.predict(X), plain.predict(X))
    assert model.fit_.certificate.bound == plain.fit_.certificate.bound
    assert model.fit_.program.beta == model.beta_
    assert model.betas_[0] == pytest.approx(beta_max(X, y - y.mean()), rel=1e-9)
    np.testing.assert_allclose(model.betas_ / model.betas_[0], [1.0, np.sqrt(0.1), 0.1], rtol=1e-12)


@pytest.mark.usefixtures("rough")
def test_betas_can_be_given_and_folds_and_scores_chosen() -> None:
    X, y = classification()
    splits = list(KFold(2, shuffle=True, random_state=0).split(X, y))
    model = ConvexBNClassifierCV(betas=[0.1, 100.0, 1.0], cv=splits, scoring="accuracy", n_jobs=2).fit(X, y)
    assert model.betas_.tolist() == [100.0, 1.0, 0.1]
    assert model.scores_.shape == (2, 3)
    assert (model.scores_ * 8 == np.round(model.scores_ * 8)).all()
    hinge = ConvexBNClassifierCV(betas=[0.1, 100.0, 1.0], cv=splits, loss="hinge").fit(X, y)
    assert (hinge.scores_ * 8 == np.round(hinge.scores_ * 8)).all()


@pytest.mark.usefixtures("rough")
def test_fractions_are_those_of_all_data() -> None:
    X, y = classification()
    model = ConvexBNClassifierCV(fractions=[0.2, 0.7], cv=2).fit(X, y)
    np.testing.assert_allclose(model.betas_, [share * beta_max(X, np.where(y == y[0], 1.0, -1.0), loss="logistic") for share in (0.7, 0.2)])


@pytest.mark.usefixtures("rough")
def test_a_class_that_a_fold_lacks_keeps_its_output() -> None:
    X, y = three_classes()
    rare = np.where(np.arange(18) == 0, "rare", np.where(y == "c", "b", y))
    halves = [(np.arange(9, 18), np.arange(9))]
    model = ConvexBNClassifierCV(betas=(100.0, 0.5), cv=halves).fit(X, rare)
    assert np.isfinite(model.scores_).all()
    assert model.scores_[0, 0] == pytest.approx(-np.log(3.0), rel=1e-9)


@pytest.mark.parametrize(
    ("betas", "message"), [([], "^betas have shape"), ([[1.0]], "^betas have shape"), (0, "^betas = 0"), (1.5, "^betas = 1.5")]
)
def test_bad_betas_are_refused(betas: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ConvexBNRegressorCV(betas=betas).fit(*regression())


@pytest.mark.usefixtures("rough")
def test_pandas_columns_go_through_cross_validation() -> None:
    X, y = regression()
    frame = pd.DataFrame(X, columns=["width", "height"])
    model = ConvexBNRegressorCV(**FOLDS).fit(frame, pd.Series(y))
    assert model.feature_names_in_.tolist() == ["width", "height"]
    np.testing.assert_array_equal(model.predict(frame), ConvexBNRegressorCV(**FOLDS).fit(X, y).predict(X))
