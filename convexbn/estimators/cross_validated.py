"""Regression and classification with beta chosen by cross-validation along regularisation paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, check_scoring, mean_squared_error
from sklearn.model_selection import check_cv
from sklearn.utils.parallel import Parallel, delayed

from convexbn.choices import choose_betas
from convexbn.estimators.plain import Classification, Regression, Shell
from convexbn.fit import beta_max
from convexbn.losses import Loss
from convexbn.network import Network
from convexbn.path import networks_along
from convexbn.progress import console
from convexbn.validation import FloatArray, InputError, IntArray
from convexbn.whitening import check_rank

Scorer = Callable[[Any, npt.ArrayLike, npt.ArrayLike], float]


class CrossValidated(Shell):
    """A path of networks for each fold and rank, the beta and rank with the best mean score, and the certified fit of all data there.

    A fold of k among n samples is trained at beta sqrt(k / n): the loss is a sum over samples and a function of given size on k
    of them has neurons of length sqrt(k), so this is the same trade between mean loss and size of the function.
    """

    beta_: float
    rank_: float | None
    betas_: FloatArray
    scores_: FloatArray

    def __init__(
        self,
        *,
        betas: int | npt.ArrayLike = 20,
        fractions: npt.ArrayLike | None = None,
        smallest: float = 0.01,
        ranks: Sequence[float | None] | None = None,
        loss: str | Loss = "squared",
        cv: Any = None,
        scoring: str | Scorer | None = None,
        n_jobs: int | None = None,
        seed: int = 0,
        proof_seconds: float = 0.0,
        verbose: bool = False,
    ) -> None:
        self.betas = betas
        self.fractions = fractions
        self.smallest = smallest
        self.ranks = ranks
        self.loss = loss
        self.cv = cv
        self.scoring = scoring
        self.n_jobs = n_jobs
        self.seed = seed
        self.proof_seconds = proof_seconds
        self.verbose = verbose

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Choose beta, and the rank where there is a choice, for X (n, d) and y, and train on all of them there."""
        rows, labels = self._validated(X, y)
        targets, loss = self._encoded(labels), self._objective()
        chosen, ranks = choose_betas(self.betas, self.fractions, self.smallest), self._ranks()
        limits = [beta_max(rows, targets, loss=loss, rank=rank) for rank in ranks] if chosen.relative else [1.0]
        self.betas_ = chosen.at(max(limits))
        splits = check_cv(self.cv, labels, classifier=isinstance(self, Classification)).split(rows, labels)
        scorer = self._default_score if self.scoring is None else check_scoring(self, scoring=self.scoring)
        found = Parallel(n_jobs=self.n_jobs)(delayed(_scores_of_fold)(self, rows, labels, *split, scorer, ranks) for split in splits)
        means = np.mean(found, axis=0)
        best = np.unravel_index(np.argmax(means), means.shape)
        self.rank_, self.beta_ = ranks[best[0]], float(self.betas_[best[1]])
        self.scores_ = np.array(found) if self.ranks is not None else np.array(found)[:, 0]
        if self.verbose:
            rank = "" if self.ranks is None else f" and rank {self.rank_} of {len(ranks)}"
            console().print(f"convexbn: beta {self.beta_:.6g} of {len(self.betas_)}{rank} has the best mean score, {np.max(means):.4g}")
        return self._train(rows, targets, beta=self.beta_, rank=self.rank_)

    def _ranks(self) -> list[float | None]:
        """The ranks to choose among; None alone, which is all directions, where no choice is asked for."""
        if self.ranks is None:
            return [None]
        if isinstance(self.ranks, str) or not np.iterable(self.ranks) or not len(self.ranks):
            raise InputError(f"ranks = {self.ranks!r} must be a list of ranks, such as [10, 50, 0.99, None], or None")
        return [check_rank(rank) for rank in self.ranks]

    @staticmethod
    def _default_score(model: Any, X: npt.ArrayLike, y: npt.ArrayLike) -> float:
        """The score where `scoring` is None; the larger the better."""
        raise NotImplementedError


def _scores_of_fold(
    estimator: CrossValidated,
    X: FloatArray,
    y: npt.NDArray[Any],
    train: IntArray,
    test: IntArray,
    scorer: Scorer,
    ranks: list[float | None],
) -> list[list[float]]:
    """The scores (ranks, betas) on the `test` rows of the networks that the `train` rows give; every class keeps its output."""
    model = copy(estimator)
    model.__dict__.pop("feature_names_in_", None)  # the rows are an array by now
    rows, targets = X[train], model._encoded(y[train])
    betas = estimator.betas_ * np.sqrt(len(rows) / len(X))

    def score(network: Network) -> float:
        model.network_ = network
        return float(scorer(model, X[test], y[test]))

    settings: dict[str, Any] = {"loss": model._objective(), "seed": model.seed}
    return [[score(network) for network in networks_along(rows, targets, betas, rank=rank, **settings)] for rank in ranks]


class ConvexBNRegressorCV(CrossValidated, Regression):
    """`ConvexBNRegressor` with beta chosen by cross-validation, as `LassoCV` chooses its alpha.

    Each fold's networks are solved along the path, each from the one before; then the chosen beta is solved and certified on all
    data. A fold of k among n samples is trained at beta sqrt(k / n), which weighs its mean loss alike.

    Parameters
    ----------
    betas : how many betas, evenly on a log scale from beta_max of all data down; or the betas, absolute, in any order
    fractions : of beta_max of all data, in any order, in place of betas
    smallest : the last of so many, as a fraction of beta_max
    ranks : the ranks of `convexbn.whiten` to choose among, such as [10, 50, 0.99, None]; None reads all directions. All have the
        same betas; those of the rank with the largest beta_max, where they are not given
    loss : "squared" or "huber"
    cv : folds, as scikit-learn takes them: a number (None stands for 5), a splitter, or pairs of indices, such as
        `GroupKFold().split(X, y, groups)`
    scoring : a name or scorer of scikit-learn's; None stands for minus the mean squared error
    n_jobs : folds at once, as joblib takes it
    seed, proof_seconds, verbose : as in `ConvexBNRegressor`

    Attributes
    ----------
    beta_ : the one with the best mean score, the largest of those that tie
    rank_ : the rank with the best mean score, the first of those that tie; None without `ranks`
    betas_ : (betas,) falling
    scores_ : (folds, betas), or (folds, ranks, betas) where `ranks` are given
    fit_, network_, intercept_ : of all data at beta_ and rank_, as in `ConvexBNRegressor`
    """

    @staticmethod
    def _default_score(model: Any, X: npt.ArrayLike, y: npt.ArrayLike) -> float:
        return -float(mean_squared_error(y, model.predict(X)))


class ConvexBNClassifierCV(CrossValidated, Classification):
    """`ConvexBNClassifier` with beta chosen by cross-validation, as `LogisticRegressionCV` chooses its C.

    Each fold's networks are solved along the path, each from the one before; then the chosen beta is solved and certified on all
    data. A fold of k among n samples is trained at beta sqrt(k / n), which weighs its mean loss alike.

    Parameters
    ----------
    betas, fractions, smallest, ranks, n_jobs, seed, proof_seconds, verbose : as in `ConvexBNRegressorCV`
    loss : as in `ConvexBNClassifier`
    cv : folds, as there; stratified by class where it is a number or None
    scoring : a name or scorer of scikit-learn's; None stands for the mean log-likelihood of the held-out classes (minus the log
        loss) with logistic and softmax loss, and else for the accuracy

    Attributes
    ----------
    beta_, rank_, betas_, scores_ : as in `ConvexBNRegressorCV`
    fit_, network_, classes_ : of all data at beta_ and rank_, as in `ConvexBNClassifier`
    """

    def __init__(
        self,
        *,
        betas: int | npt.ArrayLike = 20,
        fractions: npt.ArrayLike | None = None,
        smallest: float = 0.01,
        ranks: Sequence[float | None] | None = None,
        loss: str | Loss = "logistic",
        cv: Any = None,
        scoring: str | Scorer | None = None,
        n_jobs: int | None = None,
        seed: int = 0,
        proof_seconds: float = 0.0,
        verbose: bool = False,
    ) -> None:
        given = {
            "ranks": ranks,
            "cv": cv,
            "scoring": scoring,
            "n_jobs": n_jobs,
            "seed": seed,
            "proof_seconds": proof_seconds,
            "verbose": verbose,
        }
        super().__init__(betas=betas, fractions=fractions, smallest=smallest, loss=loss, **given)

    @staticmethod
    def _default_score(model: Any, X: npt.ArrayLike, y: npt.ArrayLike) -> float:
        if model._objective().name not in ("logistic", "softmax"):
            return float(accuracy_score(y, model.predict(X)))
        shares = model.predict_proba(X)[np.arange(len(np.asarray(y))), np.searchsorted(model.classes_, y)]
        return float(np.mean(np.log(np.maximum(shares, np.finfo(float).tiny))))
