"""The estimators by scikit-learn's own checks, one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from estimator_data import FOLDS, SLIDING
from sklearn.utils.estimator_checks import estimator_checks_generator

from convexbn.estimators import ConvexBNClassifier, ConvexBNClassifierCV, ConvexBNRegressor, ConvexBNRegressorCV

CHECKED = (ConvexBNRegressor(**SLIDING), ConvexBNClassifier(**SLIDING), ConvexBNRegressorCV(**FOLDS), ConvexBNClassifierCV(**FOLDS))


def checks_of_scikit_learn(array_api: bool) -> list[Any]:
    """Its checks of all estimators; those of the array API need an environment variable before SciPy is imported."""
    pairs = [pair for estimator in CHECKED for pair in estimator_checks_generator(estimator)]
    named = [(f"{type(estimator).__name__}, {name_of(check)}", estimator, check) for estimator, check in pairs]
    return [pytest.param(estimator, check, id=name) for name, estimator, check in named if ("array_api" in name) == array_api]


def name_of(check: Any) -> str:
    """The name of a check and its settings."""
    settings = [f"{key}={value}" for key, value in check.keywords.items()]
    return " ".join([check.func.__name__, *settings])


@pytest.mark.usefixtures("rough")
@pytest.mark.parametrize(("estimator", "check"), checks_of_scikit_learn(array_api=False))
def test_check_of_scikit_learn(estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convexbn.path.PREDICTION_ROUNDS", 1)
    check(estimator)


def test_array_api_dispatch_changes_nothing() -> None:
    steps = (
        "import test_scikit_learn as t, estimator_data as d, convexbn.fit as f",
        "f.certify_on = d.unproved",
        "c = t.checks_of_scikit_learn(True)",
        "[one.values[1](one.values[0]) for one in c]",
        "print(len(c))",
    )
    script = "; ".join(steps)
    folder = Path(__file__).parent
    environment = {**os.environ, "SCIPY_ARRAY_API": "1", "PYTHONPATH": os.pathsep.join(map(str, (folder, folder.parent)))}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True).stdout == "4\n"
