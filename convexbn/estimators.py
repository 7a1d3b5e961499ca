"""The scikit-learn estimators: thin shells around `fit_convex_bn`."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from convexbn.arrangements import Arrangements
from convexbn.fit import Fit, fit_convex_bn
from convexbn.losses import Loss
from convexbn.solution import Solver
from convexbn.validation import FloatArray, InputError, check_targets


class _ConvexBN(BaseEstimator):  # type: ignore[misc]
    """What both estimators share: the parameters and the fit."""

    fit_: Fit
    n_features_in_: int

    def __init__(
        self,
        *,
        beta: float | None = None,
        loss: str | Loss,
        arrangements: str | int | Arrangements = "auto",
        solver: str | Solver = "auto",
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        self.beta = beta
        self.loss = loss
        self.arrangements = arrangements
        self.solver = solver
        self.seed = seed
        self.verbose = verbose

    def _train(self, X: npt.ArrayLike, y: FloatArray) -> Self:
        self.fit_ = fit_convex_bn(
            X,
            y,
            beta=self.beta,
            loss=self.loss,
            arrangements=self.arrangements,
            solver=self.solver,
            seed=self.seed,
            verbose=self.verbose,
        )
        return self

    def _scores(self, X: npt.ArrayLike) -> FloatArray:
        check_is_fitted(self, "fit_")
        rows = validate_data(self, X, reset=False, dtype=np.float64)
        return self.fit_.predict(rows)


class ConvexBNRegressor(RegressorMixin, _ConvexBN):  # type: ignore[misc]
    """Regression by a globally optimal two-layer ReLU network with batch normalisation.

    The targets are centred by their mean first, as the networks have no output bias; everything else is `fit_convex_bn`.

    Parameters
    ----------
    beta, loss, arrangements, solver, seed, verbose : as in `convexbn.fit_convex_bn`; loss is "squared" or "huber"

    Attributes
    ----------
    fit_ : the `Fit`, certificate included, of the centred targets
    intercept_ : the mean of the targets
    """

    intercept_: float

    def __init__(
        self,
        *,
        beta: float | None = None,
        loss: str | Loss = "squared",
        arrangements: str | int | Arrangements = "auto",
        solver: str | Solver = "auto",
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(beta=beta, loss=loss, arrangements=arrangements, solver=solver, seed=seed, verbose=verbose)

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Train on X (n, d) and y (n,)."""
        rows, targets = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        targets = check_targets(targets, len(rows))
        self.intercept_ = float(np.mean(targets))
        return self._train(rows, targets - self.intercept_)

    def predict(self, X: npt.ArrayLike) -> FloatArray:
        """Predictions (k,) for X (k, d)."""
        scores = self._scores(X)
        return scores + self.intercept_


class ConvexBNClassifier(ClassifierMixin, _ConvexBN):  # type: ignore[misc]
    """Binary classification by a globally optimal two-layer ReLU network with batch normalisation.

    Parameters
    ----------
    beta, loss, arrangements, solver, seed, verbose : as in `convexbn.fit_convex_bn`; loss is "logistic" (default), "hinge" or "squared"

    Attributes
    ----------
    fit_ : the `Fit`, certificate included, of the labels -1 and +1
    classes_ : the two classes; +1 stands for the second
    """

    classes_: npt.NDArray[Any]

    def __init__(
        self,
        *,
        beta: float | None = None,
        loss: str | Loss = "logistic",
        arrangements: str | int | Arrangements = "auto",
        solver: str | Solver = "auto",
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(beta=beta, loss=loss, arrangements=arrangements, solver=solver, seed=seed, verbose=verbose)

    def __sklearn_tags__(self) -> Any:
        """Binary only."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Train on X (n, d) and y (n,) of two classes of any type."""
        rows, labels = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) > 2:
            raise InputError(
                f"y has {len(self.classes_)} classes. Only binary classification is supported. The type of the target is multiclass: "
                "wrap the estimator in sklearn.multiclass.OneVsRestClassifier"
            )
        if len(self.classes_) < 2:
            raise InputError("y has one class. Classifier can't train when only one class is present: pass samples of two classes")
        return self._train(rows, np.where(codes == 1, 1.0, -1.0))

    def decision_function(self, X: npt.ArrayLike) -> FloatArray:
        """Outputs (k,) of the network for X (k, d); positive for the second class."""
        return self._scores(X)

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """Classes (k,) for X (k, d)."""
        second = self._scores(X) > 0
        labels: npt.NDArray[Any] = self.classes_[second.astype(int)]
        return labels

    def predict_proba(self, X: npt.ArrayLike) -> FloatArray:
        """Probabilities (k, 2) of the classes, by the logistic function of the output: meant for the logistic loss."""
        positive = 0.5 * (1.0 + np.tanh(0.5 * self._scores(X)))
        return np.column_stack([1.0 - positive, positive])
