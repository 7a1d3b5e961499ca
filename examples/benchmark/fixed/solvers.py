"""The solvers: each a function from a problem and an effort to weights, its efforts, and the problems that it can take.

A solver gets the problem and, for each effort from small to large, starts anew; what it may do before the clock runs (writing the
matrix out, compiling on a small problem) it does in `prepare`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from problems import Problem, make_problem

DENSE_LIMIT = 10**9  # bytes of a matrix written out


@dataclass(frozen=True)
class Contender:
    """A solver of the benchmark.

    Attributes
    ----------
    prepare : what is done before the clock runs; its result is passed to `solve`
    solve : (problem, prepared, effort) -> weights
    efforts : from the smallest to the largest
    takes : whether it can be asked at all; a reason where not
    claims : the accuracy that it says it has reached at an effort, where it says anything, relative
    """

    prepare: Callable[[Problem], Any]
    solve: Callable[[Problem, Any, float], np.ndarray]
    efforts: Sequence[float]
    takes: Callable[[Problem], str | None] = lambda problem: None


def _gated_only(problem: Problem) -> str | None:
    return "gated problems only" if problem.cones else None


def _gated_and_small(problem: Problem) -> str | None:
    size = 8 * problem.basis.size * len(problem.gates)
    return _gated_only(problem) or (f"would need a matrix of {size / 1e9:.1f} GB" if size > DENSE_LIMIT else None)


def _gated_by_convexbn(precision: str) -> Contender:
    def prepare(problem: Problem) -> None:
        solve(make_problem("S", whitened=True), None, 1e-2)

    def solve(problem: Problem, prepared: None, effort: float) -> np.ndarray:
        from convexbn import GatedProgram, GatedSolver, Squared

        program = GatedProgram(problem.basis, problem.gates, problem.y[:, None], Squared(), problem.beta)
        weights: np.ndarray = GatedSolver(tolerance=effort, precision=precision).solve(program).weights[:, :, 0]
        return weights

    efforts = (1e-1, 1e-2, 1e-3, 1e-4) if precision == "float32" else (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-9)
    return Contender(prepare, solve, efforts, _gated_only)


def _scnn(dtype: str) -> Contender:
    """R-FISTA of scnn, `tol` being its squared subgradient norm."""

    def solve(problem: Problem, prepared: None, effort: float) -> np.ndarray:
        import scnn.optimize as so
        from scnn.metrics import Metrics
        from scnn.models import ConvexGatedReLU
        from scnn.regularizers import NeuronGL1
        from scnn.solvers import RFISTA

        model = ConvexGatedReLU(np.asfortranarray(problem.gates.T))
        solver = RFISTA(model, max_iters=20_000, tol=effort)
        X, y = problem.basis, problem.y[:, None]
        options: dict[str, Any] = {"regularizer": NeuronGL1(problem.beta / len(y)), "return_convex": True, "unitize_data": False}
        model, _ = so.optimize_model(model, solver, Metrics(), X, y, dtype=dtype, verbose=False, **options)
        order = np.unique(problem.patterns.T.astype(float), axis=1, return_index=True)[1]  # scnn's own order of the gates
        found = np.empty(problem.gates.shape)
        found[order] = np.asarray(model.parameters[0]).reshape(problem.gates.shape)
        return found

    def prepare(problem: Problem) -> None:
        solve(make_problem("S", whitened=True), None, 1e-2)

    finest = 16 if dtype == "float64" else 11  # below, its line search in float32 doesn't come back
    return Contender(prepare, solve, 10.0 ** -np.arange(3, finest, 1.0), _gated_only)


def _celer(problem: Problem, matrix: np.ndarray, effort: float) -> np.ndarray:
    from celer import GroupLasso

    model = GroupLasso(problem.gates.shape[1], alpha=problem.beta / len(problem.y), tol=effort, fit_intercept=False, max_iter=1000)
    found: np.ndarray = model.fit(matrix, problem.y).coef_.reshape(problem.gates.shape)
    return found


def _skglm(problem: Problem, matrix: np.ndarray, effort: float) -> np.ndarray:
    from skglm import GroupLasso

    model = GroupLasso(groups=problem.gates.shape[1], alpha=problem.beta / len(problem.y), tol=effort, fit_intercept=False, max_iter=1000)
    found: np.ndarray = model.fit(matrix, problem.y).coef_.reshape(problem.gates.shape)
    return found


def _adelie(problem: Problem, prepared: None, effort: float) -> np.ndarray:
    import adelie as ad

    n, k = problem.basis.shape
    masks = np.asfortranarray(problem.patterns.T)
    features = ad.matrix.convex_relu(np.asfortranarray(problem.basis), masks, gated=True, n_threads=1)
    state = ad.grpnet(
        features,
        ad.glm.gaussian(problem.y),
        groups=k * np.arange(len(problem.gates)),
        penalty=np.ones(len(problem.gates)),
        lmda_path=problem.beta / n * np.geomspace(50.0, 1.0, 10),
        tol=effort,
        intercept=False,
        early_exit=False,
        progress_bar=False,
        n_threads=1,
    )
    if len(state.lmdas) < 10:
        raise RuntimeError(f"adelie stopped after {len(state.lmdas)} of 10 values of beta")
    found: np.ndarray = state.betas[-1].toarray().reshape(problem.gates.shape)
    return found


def _compiled(solve: Callable[[Problem, np.ndarray, float], np.ndarray]) -> Callable[[Problem], np.ndarray]:
    """Preparation that runs the solver once on a small problem, so that it is compiled, and writes the matrix out."""

    def prepare(problem: Problem) -> np.ndarray:
        small = make_problem("S", whitened=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solve(small, small.matrix(), 1e-2)
        return problem.matrix()

    return prepare


FINER = 10.0 ** -np.arange(2, 13, 1.0)
CONTENDERS = {
    "convexbn": _gated_by_convexbn("mixed"),
    "convexbn, float32": _gated_by_convexbn("float32"),
    "scnn": _scnn("float64"),
    "scnn, float32": _scnn("float32"),
    "celer": Contender(_compiled(_celer), _celer, FINER, _gated_and_small),
    "skglm": Contender(_compiled(_skglm), _skglm, FINER, _gated_and_small),
    "adelie": Contender(lambda problem: None, _adelie, FINER, _gated_only),
}
