"""The regularisation path: certified optima from beta_max down, each solved from the one before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from convexbn.arrangements import Arrangements
from convexbn.choices import check_betas, choose_betas
from convexbn.features import Features, extract
from convexbn.fit import Fit, Prepared, prepare
from convexbn.losses import Loss
from convexbn.network import Network, recover
from convexbn.patches import Patches
from convexbn.program import Program
from convexbn.progress import console
from convexbn.solution import Solver, Status
from convexbn.solvers import ActiveSet, ClosedForm, SlidingFrankWolfe, obstacle
from convexbn.validation import FloatArray, InputError, check_budget, check_data, check_targets
from convexbn.whitening import whiten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Estimated relative gaps: of a point of the path where the solver is named, and of a network whose predictions alone matter.
TOLERANCE = 1e-4
PREDICTIONS = 3e-3
PREDICTION_ROUNDS = 8


@dataclass(frozen=True)
class Path:
    """The optima p(beta) = min over networks of L + beta R along a falling beta, R = (1/2) sum_j ( g_j^2 + a_j^2 + ||v_j||^2 ).

    Attributes
    ----------
    fits : one for each beta, the largest beta first
    interrupted : whether Ctrl-C ended the path early; the points that are here are complete
    """

    fits: tuple[Fit, ...]
    interrupted: bool = False

    @property
    def beta_max(self) -> float:
        """The smallest beta with the zero network as optimum, as the fits estimate it."""
        return self.fits[0].beta_max

    @property
    def betas(self) -> FloatArray:
        """(points,) falling."""
        return np.array([fit.program.beta for fit in self.fits])

    @property
    def objectives(self) -> FloatArray:
        """(points,) of the networks, from the raw data."""
        return np.array([fit.certificate.objective for fit in self.fits])

    @property
    def bounds(self) -> FloatArray:
        """(points,) proved, below p(beta)."""
        return np.array([fit.certificate.bound for fit in self.fits])

    @property
    def neurons(self) -> npt.NDArray[np.int_]:
        """(points,) how many."""
        return np.array([fit.network.neurons for fit in self.fits])

    def predict(self, X: npt.ArrayLike) -> FloatArray:
        """Outputs (points, k), or (points, k, C), of every network for the rows of X (k, d), or for k images."""
        read = extract(self.fits[0].features, X)
        return np.stack([fit.network.predict(read) for fit in self.fits])

    def interval(self, betas: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Proved lower and upper bounds on the optimum p at any betas (q,) within the path, also between its points.

        p is an infimum of the lines L + beta R, one for each network: every network of the path bounds it from above at every
        beta, and as p is concave every chord between two bounds lies below it.

        Raises
        ------
        InputError
            For a beta outside of the path, where there are no chords.
        """
        wanted, points = check_betas(betas, "betas"), self.betas
        if wanted.min() < points[-1] * (1.0 - 1e-12) or wanted.max() > points[0] * (1.0 + 1e-12):
            raise InputError(f"betas leave the path, which reaches from {points[-1]:.6g} to {points[0]:.6g}: ask for betas in there")
        penalties = np.array([fit.network.penalty() for fit in self.fits])
        upper = np.min(self.objectives + np.subtract.outer(wanted, points) * penalties, axis=1)
        points, bounds = points[::-1], self.bounds[::-1]
        corners = _concave_corners(points, bounds)
        return np.interp(wanted, points[corners], bounds[corners]), upper

    def plot(self, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
        """Draw objective and proved bound, and below it the neurons, against beta / beta_max; needs matplotlib.

        Parameters
        ----------
        axes : for the objective and for the neurons; None makes a figure with both
        """
        if axes is None:
            try:
                import matplotlib.pyplot as plt
            except ImportError as error:
                raise InputError("matplotlib is missing, which plot needs: pip install 'convexbn[plot]', or pass axes") from error

            axes = tuple(plt.subplots(2, 1, sharex=True, layout="constrained", height_ratios=(2, 1))[1])
        above, below = axes
        unit = self.beta_max or 1.0
        between = np.geomspace(self.betas[0], self.betas[-1], 400)
        lower, upper = self.interval(between)
        above.fill_between(between / unit, lower, upper, color="#1f5fa8", alpha=0.18, lw=0, label="the optimum is in here, proved")
        above.plot(self.betas / unit, self.objectives, "o", color="#1f5fa8", ms=4, label="objective")
        above.plot(between / unit, upper, color="#1f5fa8", lw=1.2)
        above.set(xscale="log", ylabel="objective")
        above.legend(frameon=False, loc="lower right")
        below.plot(self.betas / unit, self.neurons, "o-", color="#444444", ms=4, lw=1.2)
        below.set(xscale="log", ylabel="neurons", xlabel=r"$\beta\,/\,\beta_{\max}$")
        return above, below

    def __str__(self) -> str:
        first = self.fits[0]
        lines = [f"Path of {len(self.fits)} networks{', interrupted' if self.interrupted else ''}: {first.program.loss.name} loss"]
        return "\n".join([*lines, *(f"  {_line(fit)}" for fit in self.fits)])

    __repr__ = __str__  # a notebook shows what an object says, not its arrays


def fit_path(
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    betas: int | npt.ArrayLike = 20,
    fractions: npt.ArrayLike | None = None,
    smallest: float = 0.01,
    loss: str | Loss = "squared",
    arrangements: str | int | Arrangements = "auto",
    solver: str | Solver = "auto",
    rank: float | None = None,
    seed: int = 0,
    proof_seconds: float = 0.0,
    patches: Patches | None = None,
    features: Features | None = None,
    verbose: bool = False,
) -> Path:
    """Solve the problem of `fit_convex_bn` for many beta, from the largest down.

        p(beta) = min  L( sum_j (BN_{g_j,a_j}(X w_j))_+ v_j^T, y ) + (beta/2) sum_j ( g_j^2 + a_j^2 + ||v_j||^2 )

    Every point is certified. Data are whitened and pass the `features` once. The active set and sliding Frank-Wolfe begin with the
    neurons of the point before. Ctrl-C keeps the points that are complete.

    Parameters
    ----------
    X, y, loss, arrangements, rank, seed, patches, features : as in `fit_convex_bn`; of a sample of arrangements the bounds hold for
        the sampled program
    betas : how many, evenly on a log scale from beta_max down; or the betas (points,), absolute, in any order, doubles count once
    fractions : (points,) of beta_max, likewise, in place of betas
    smallest : the last of so many, as a fraction of beta_max
    solver : as in `fit_convex_bn`, without a checkpoint. Sliding Frank-Wolfe goes to an estimated relative gap of 1e-4 where "auto" or
        "sliding" stands for it; `SlidingFrankWolfe(tolerance=1e-6)` and every other record keeps its own settings
    proof_seconds : of branch and bound for each point, as in `fit_convex_bn`; 0 leaves the proof to the relaxation
    verbose : print a line a point

    Raises
    ------
    InputError
        For an argument that can't be used.
    SolverError
        Where the solver fails.
    """
    check_budget(proof_seconds, "proof_seconds")
    chosen = choose_betas(betas, fractions, smallest)
    if getattr(solver, "checkpoint", None) is not None:
        raise InputError("solver has a checkpoint, which would be one for all points: leave it out, or call fit_convex_bn for each beta")
    ready = prepare(X, y, loss=loss, arrangements=arrangements, solver=solver, rank=rank, seed=seed, patches=patches, features=features)
    if isinstance(solver, str) and isinstance(ready.solver, SlidingFrankWolfe):
        ready = replace(ready, solver=replace(ready.solver, tolerance=TOLERANCE))
    strengths = chosen.at(ready.beta_max)
    fits: list[Fit] = []
    try:
        for fit in _points(ready, strengths, proof_seconds):
            if fit.interrupted:
                raise KeyboardInterrupt
            fits.append(fit)
            if verbose:
                console().print(f"convexbn: point {len(fits)} of {len(strengths)}, {_line(fit)}, {sum(fit.seconds.values()):.1f} s")
    except KeyboardInterrupt:
        if not fits:
            raise
    return Path(tuple(fits), interrupted=len(fits) < len(strengths))


def networks_along(
    X: npt.ArrayLike, y: npt.ArrayLike, betas: FloatArray, *, loss: Loss, rank: float | None = None, seed: int = 0
) -> Iterator[Network]:
    """The networks of a path without their certificates, to a tolerance that is enough for predictions: for cross-validation."""
    data = check_data(X)
    targets = loss.check(check_targets(y, len(data)))
    whitening = whiten(data, rank=rank)
    exact = obstacle(whitening.basis, targets, loss) is None
    warm_start = None
    for beta in betas:
        sliding = SlidingFrankWolfe(tolerance=PREDICTIONS, rounds=PREDICTION_ROUNDS, seed=seed, warm_start=warm_start)
        solver = ClosedForm() if exact else sliding
        solution = solver.solve(Program(whitening.basis, targets, loss, float(beta), None))
        if solution.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        warm_start = solution.directions, solution.outputs
        yield recover(whitening, *warm_start)


def _points(ready: Prepared, betas: FloatArray, proof_seconds: float) -> Iterator[Fit]:
    """A fit for each beta, each from the neurons of the one before."""
    solver = ready.solver
    for beta in betas:
        fit = replace(ready, solver=solver).fit(float(beta), proof_seconds=proof_seconds)
        yield fit
        if isinstance(solver, SlidingFrankWolfe | ActiveSet):
            solver = replace(solver, warm_start=(fit.solution.directions, fit.solution.outputs))


def _concave_corners(x: FloatArray, y: FloatArray) -> list[int]:
    """Indices of the corners of the least concave function above the points (x, y), x rising."""
    corners: list[int] = []

    def slope(i: int, j: int) -> float:
        return float((y[j] - y[i]) / (x[j] - x[i]))

    for k in range(len(x)):
        while len(corners) > 1 and slope(corners[-2], corners[-1]) <= slope(corners[-1], k):
            corners.pop()
        corners.append(k)
    return corners


def _line(fit: Fit) -> str:
    certificate = fit.certificate
    return (
        f"beta {fit.program.beta:.6g}: objective {certificate.objective:.8g}, bound {certificate.bound:.8g} "
        f"(relative gap {certificate.relative_gap:.1e}, {certificate.evidence.value}), {fit.network.neurons} neurons"
    )
