"""The estimators by scikit-learn's own checks, one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from estimator_data import FOLDS, SLIDING
from sklearn.utils.estimator_checks import estimator_checks_generator

from convexbn.estimators import ConvexBNClassifier, ConvexBNClassifierCV, ConvexBNRegressor, ConvexBNRegressorCV

CHECKED = (ConvexBNRegressor(**SLIDING), ConvexBNClassifier(**SLIDING), ConvexBNRegressorCV(**FOLDS), ConvexBNClassifierCV(**FOLDS))


def checks_of_scikit_learn() -> list[Any]:
    """Its checks of all estimators; those of the array API alone where SciPy is told of that, as it has to be before it is imported."""
    array_api = "SCIPY_ARRAY_API" in os.environ
    pairs = [pair for estimator in CHECKED for pair in estimator_checks_generator(estimator)]
    named = [(f"{type(estimator).__name__}, {name_of(check)}", estimator, check) for estimator, check in pairs]
    return [pytest.param(estimator, check, id=name) for name, estimator, check in named if ("array_api" in name) == array_api]


def name_of(check: Any) -> str:
    """The name of a check and its settings."""
    settings = [f"{key}={value}" for key, value in check.keywords.items()]
    return " ".join([check.func.__name__, *settings])


@pytest.mark.usefixtures("rough")
@pytest.mark.parametrize(("estimator", "check"), checks_of_scikit_learn())
def test_check_of_scikit_learn(estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PREDICTION_ROUNDS": 1, "PREDICTIONS": 1e-12}.items():  # as in SLIDING
        monkeypatch.setattr(f"convexbn.path.{name}", value)
    monkeypatch.setattr("convexbn.choices._solver_of", lambda *_: SLIDING["solver"])
    check(estimator)


def test_array_api_dispatch_changes_nothing() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", "test_check_of_scikit_learn"]
    result = subprocess.run(command, env={**os.environ, "SCIPY_ARRAY_API": "1"}, capture_output=True, text=True)
    assert (result.returncode, result.stdout[:5]) == (0, "....\x20"), result.stdout
