"""Regression and classification at a given beta: thin shells around `fit_convex_bn`."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from convexbn.arrangements import Arrangements
from convexbn.choices import BETA_FRACTION
from convexbn.fit import Fit, fit_convex_bn
from convexbn.losses import Loss, Softmax, get_loss
from convexbn.network import Network
from convexbn.solution import Solver
from convexbn.validation import FloatArray, InputError, check_targets, real_array


class Shell(BaseEstimator):  # type: ignore[misc]
    """What all estimators share: the fit, and the outputs of its network."""

    loss: str | Loss
    seed: int
    proof_seconds: float
    verbose: bool
    fit_: Fit
    network_: Network
    n_features_in_: int

    def _validated(self, X: npt.ArrayLike, y: npt.ArrayLike) -> tuple[FloatArray, npt.NDArray[Any]]:
        """X and y as arrays, with what has to be known of them remembered."""
        raise NotImplementedError

    def _encoded(self, y: npt.NDArray[Any]) -> FloatArray:
        """The targets that the network is trained on."""
        raise NotImplementedError

    def _objective(self) -> Loss:
        """The loss that the network is trained on."""
        return get_loss(self.loss)

    def _train(self, X: FloatArray, y: FloatArray, **settings: Any) -> Self:
        self.fit_ = fit_convex_bn(
            X, y, loss=self._objective(), seed=self.seed, proof_seconds=self.proof_seconds, verbose=self.verbose, **settings
        )
        self.network_ = self.fit_.network
        return self

    def _scores(self, X: npt.ArrayLike) -> FloatArray:
        check_is_fitted(self, "network_")
        return self.network_.predict(validate_data(self, X, reset=False, dtype=np.float64))


class Regression(RegressorMixin, Shell):  # type: ignore[misc]
    """What regressors share: centred targets."""

    intercept_: float | FloatArray

    def __sklearn_tags__(self) -> Any:
        """Any number of outputs."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def predict(self, X: npt.ArrayLike) -> FloatArray:
        """Predictions for X (k, d), of shape (k,) or (k, C) as the targets were."""
        scores = self._scores(X)
        return scores.reshape(-1, *np.shape(self.intercept_)) + self.intercept_

    def _validated(self, X: npt.ArrayLike, y: npt.ArrayLike) -> tuple[FloatArray, npt.NDArray[Any]]:
        return validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, ensure_min_samples=2)  # type: ignore[no-any-return]

    def _encoded(self, y: npt.NDArray[Any]) -> FloatArray:
        targets = real_array(y, "y")
        check_targets(targets, len(targets))
        self.intercept_ = float(np.mean(targets)) if targets.ndim == 1 else np.mean(targets, axis=0)
        return targets - self.intercept_


class Classification(ClassifierMixin, Shell):  # type: ignore[misc]
    """What classifiers share: targets for the classes, and classes for the outputs."""

    classes_: npt.NDArray[Any]

    def decision_function(self, X: npt.ArrayLike) -> FloatArray:
        """For X (k, d): (k,) numbers that are positive for the second of two classes, or outputs (k, C), the largest for the class."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 and scores.ndim == 2 else scores

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """Classes (k,) for X (k, d)."""
        decision = self.decision_function(X)
        codes = (decision > 0).astype(int) if decision.ndim == 1 else np.argmax(decision, axis=1)
        labels: npt.NDArray[Any] = self.classes_[codes]
        return labels

    def predict_proba(self, X: npt.ArrayLike) -> FloatArray:
        """Probabilities (k, C) of the classes for X (k, d).

        For logistic and softmax loss those that maximise the likelihood. For squared and Huber loss the outputs estimate
        them (mapped from [-1, 1] to [0, 1] for two classes), and the nearest probabilities are given. For hinge and other losses
        the logistic function or softmax of the outputs: they rank, but are not calibrated; `CalibratedClassifierCV` does that.
        """
        decision = self.decision_function(X)
        direct = self._objective().name in ("squared", "huber")
        if decision.ndim == 1:
            second = np.clip(0.5 * (1.0 + decision), 0.0, 1.0) if direct else 0.5 * (1.0 + np.tanh(0.5 * decision))
            return np.column_stack([1.0 - second, second])
        return Softmax().project(decision, np.zeros(decision.shape)) if direct else softmax(decision, axis=1)

    def _validated(self, X: npt.ArrayLike, y: npt.ArrayLike) -> tuple[FloatArray, npt.NDArray[Any]]:
        rows, labels = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(labels)
        self.classes_ = np.unique(labels)
        if len(self.classes_) < 2:
            raise InputError("y has one class. Classifier can't train when only one class is present: pass samples of two classes")
        return rows, labels

    def _objective(self) -> Loss:
        loss = get_loss(self.loss)
        if len(self.classes_) == 2:
            return loss
        if loss.name == "hinge":
            raise InputError(
                f"loss = 'hinge' is for two classes, but y has {len(self.classes_)}: take loss='logistic', or wrap the estimator in "
                "sklearn.multiclass.OneVsRestClassifier"
            )
        return Softmax() if loss.name == "logistic" else loss

    def _encoded(self, y: npt.NDArray[Any]) -> FloatArray:
        """-1 and +1 for two classes, one-hot rows for more and for softmax."""
        codes = np.searchsorted(self.classes_, y)
        if len(self.classes_) > 2 or get_loss(self.loss).name == "softmax":
            return np.eye(len(self.classes_))[codes]
        return np.where(codes == 1, 1.0, -1.0)


class Plain(Shell):
    """One network, at a given beta."""

    def __init__(
        self,
        *,
        beta: float | None = None,
        fraction: float = BETA_FRACTION,
        loss: str | Loss = "squared",
        arrangements: str | int | Arrangements = "auto",
        solver: str | Solver = "auto",
        rank: float | None = None,
        seed: int = 0,
        proof_seconds: float = 0.0,
        verbose: bool = False,
    ) -> None:
        self.beta = beta
        self.fraction = fraction
        self.loss = loss
        self.arrangements = arrangements
        self.solver = solver
        self.rank = rank
        self.seed = seed
        self.proof_seconds = proof_seconds
        self.verbose = verbose

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Train on X (n, d) and y: targets (n,), or (n, C) for C outputs, or for a classifier (n,) of two or more classes of any type."""
        rows, targets = self._validated(X, y)
        strength = {"beta": self.beta, "fraction": self.fraction}
        settings = {"arrangements": self.arrangements, "solver": self.solver, "rank": self.rank}
        return self._train(rows, self._encoded(targets), **strength, **settings)


class ConvexBNRegressor(Plain, Regression):
    """Regression by a globally optimal two-layer ReLU network with batch normalisation, of any number of outputs.

    The targets are centred by their mean first, as the networks have no output bias; everything else is `fit_convex_bn`.

    Parameters
    ----------
    beta, fraction, loss, arrangements, solver, rank, seed, verbose : as in `convexbn.fit_convex_bn`; loss is "squared" or "huber". A grid
        search chooses `fraction`, which means the same on every fold
    proof_seconds : for branch and bound, as there; 0 leaves the proof to the relaxation

    Attributes
    ----------
    fit_ : the `Fit`, certificate included, of the centred targets
    network_ : its network
    intercept_ : the mean of the targets, (C,) for targets (n, C)
    """


class ConvexBNClassifier(Plain, Classification):
    """Classification by a globally optimal two-layer ReLU network with batch normalisation, of any number of classes.

    Two classes are the targets -1 and +1 of a network with one output. More are one-hot targets (0 and 1) of a network with one
    output for each class.

    Parameters
    ----------
    beta, fraction, arrangements, solver, rank, seed, verbose : as in `convexbn.fit_convex_bn`. A grid search chooses `fraction`, which
        means the same on every fold
    loss : "logistic" (default), which for more than two classes is softmax cross-entropy, "squared", "huber", or, for two classes,
        "hinge"
    proof_seconds : for branch and bound, as in `convexbn.fit_convex_bn`; 0 leaves the proof to the relaxation

    Attributes
    ----------
    fit_ : the `Fit`, certificate included, of those targets
    network_ : its network
    classes_ : the classes, sorted; +1 stands for the second of two
    """

    def __init__(
        self,
        *,
        beta: float | None = None,
        fraction: float = BETA_FRACTION,
        loss: str | Loss = "logistic",
        arrangements: str | int | Arrangements = "auto",
        solver: str | Solver = "auto",
        rank: float | None = None,
        seed: int = 0,
        proof_seconds: float = 0.0,
        verbose: bool = False,
    ) -> None:
        search: dict[str, Any] = {"arrangements": arrangements, "solver": solver, "rank": rank}
        super().__init__(beta=beta, fraction=fraction, loss=loss, **search, seed=seed, proof_seconds=proof_seconds, verbose=verbose)
