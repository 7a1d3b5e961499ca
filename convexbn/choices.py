"""Every "auto" choice of `fit_convex_bn`: the beta, the arrangements and the solver that its arguments stand for; the betas of paths."""

from __future__ import annotations

from reprlib import repr as shortened
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from convexbn.arrangements import Arrangements, count_arrangements, enumerate_arrangements, sample_arrangements
from convexbn.devices import has_torch
from convexbn.losses import Loss
from convexbn.solution import Solver
from convexbn.solvers import ActiveSet, ClosedForm, Conic, SlidingFrankWolfe, obstacle
from convexbn.validation import FloatArray, InputError, check_count, check_positive, real_array
from convexbn.whitening import Whitening

BETA_FRACTION = 0.1  # of beta_max, where beta is None
ROUNDING = 1e-12  # a beta_max below this fraction of the gradient at 0 is a sum that should vanish
ENUMERATE_UP_TO = 1_000  # arrangements, by Cover's bound; beyond that the global solver needs no list, and a conic one a sample
SAMPLE_SIZE = 50  # arrangements
# Entries 2 P n (r+1) of the matrix of cones, up to which an interior-point method is quicker than the active set: smooth losses, kinks.
WRITE_OUT_UP_TO = 20_000, 200_000


def choose_beta(beta: float | None, fraction: float, largest: float) -> float:
    """The beta that is given, or that fraction of beta_max, the `largest`; 1 where that is 0, as nothing is to be learnt."""
    if beta is not None:
        return check_positive(beta, "beta")
    return check_positive(fraction, "fraction") * largest or 1.0


class Betas(NamedTuple):
    """The betas of a path while beta_max is unknown: numbers (points,), falling, each once; `relative` are fractions of beta_max."""

    numbers: FloatArray
    relative: bool

    def at(self, largest: float) -> FloatArray:
        """(points,) absolute, for that beta_max; where it is 0, as nothing is to be learnt, 1 stands for it."""
        return (largest or 1.0) * self.numbers if self.relative else self.numbers


def choose_betas(betas: int | npt.ArrayLike, fractions: npt.ArrayLike | None, smallest: float) -> Betas:
    """What the arguments of `fit_path` stand for."""
    counted = np.isscalar(betas)
    if fractions is None and not counted:
        return Betas(np.unique(check_betas(betas, "betas"))[::-1], relative=False)
    if not counted:
        raise InputError("betas are given, and fractions too: pass one of them")
    shares = _evenly(check_count(betas, "betas"), smallest) if fractions is None else check_betas(fractions, "fractions")
    return Betas(np.unique(shares)[::-1], relative=True)


def check_betas(betas: npt.ArrayLike, name: str) -> FloatArray:
    """Positive finite numbers (points,), at least one."""
    array = real_array(betas, name)
    if array.ndim != 1 or not len(array):
        raise InputError(f"{name} have shape {array.shape}, not (points,): pass a list of at least one positive number")
    if array.min() <= 0:
        raise InputError(f"{name} hold {array.min():g}, which is not positive: pass numbers above 0")
    return array


def _evenly(count: int, smallest: float) -> FloatArray:
    """Fractions (count,) from 1 to `smallest`, evenly on a log scale."""
    if check_positive(smallest, "smallest") > 1.0:
        raise InputError(f"smallest = {smallest} is a fraction of beta_max, beyond which every network is zero: pass a float up to 1")
    shares: FloatArray = np.geomspace(1.0, smallest, count)
    return shares


def without_rounding(largest: float, gradient: float) -> float:
    """beta_max, of a gradient at 0 of that length; 0 where it is nothing but rounding, as of targets that cancel on equal samples."""
    return largest if largest > ROUNDING * gradient else 0.0


def few_arrangements(whitening: Whitening) -> bool:
    """Whether the arrangements are few enough to be listed unasked."""
    return count_arrangements(whitening.samples, whitening.rank) <= ENUMERATE_UP_TO


def choose_arrangements(arrangements: str | int | Arrangements, whitening: Whitening, y: FloatArray, *, seed: int = 0) -> Arrangements:
    """The list of arrangements that the argument of `fit_convex_bn` stands for."""
    if y.ndim > 1:
        raise InputError(
            f"arrangements would have to be listed, but y has {y.shape[1]} outputs, for which a list makes no conic program: "
            "leave them out, and use solver='sliding'"
        )
    if isinstance(arrangements, Arrangements):
        if arrangements.active.shape[1] != whitening.samples or (arrangements.complete and not arrangements.fits(whitening.basis)):
            raise InputError("arrangements are patterns of other data: make them by enumerate_arrangements(whiten(X).basis)")
        return arrangements
    check_arrangements(arrangements)
    if not isinstance(arrangements, str):
        return sample_arrangements(whitening.basis, check_count(arrangements, "arrangements"), seed=seed)
    if arrangements == "all" or few_arrangements(whitening):
        return enumerate_arrangements(whitening.basis)
    return sample_arrangements(whitening.basis, SAMPLE_SIZE, seed=seed)


def check_arrangements(arrangements: Any) -> None:
    """Refuse what can't stand for arrangements, also where no solver will need them."""
    number = isinstance(arrangements, (int, np.integer)) and not isinstance(arrangements, bool)
    word = isinstance(arrangements, str) and arrangements in ("auto", "all")
    if not (number or word or isinstance(arrangements, Arrangements)):
        given = shortened(arrangements)
        raise InputError(f"arrangements = {given} can't be used: pass 'auto', 'all', a number of arrangements to sample, or Arrangements")


def choose_solver(
    solver: str | Solver,
    arrangements: str | int | Arrangements,
    whitening: Whitening,
    y: FloatArray,
    loss: Loss,
    *,
    seed: int = 0,
    verbose: bool = False,
) -> Solver:
    """The solver that the arguments of `fit_convex_bn` stand for."""
    if not isinstance(solver, str) and (isinstance(solver, type) or not hasattr(solver, "solve")):
        raise InputError(f"solver = {solver!r} is neither a name nor has it a method `solve`: pass 'auto', 'CLARABEL' or Conic(...)")
    named = _automatic(arrangements, whitening, y, loss) if isinstance(solver, str) and solver == "auto" else solver
    chosen = _solver_of(named, seed, verbose) if isinstance(named, str) else named
    if arrangements not in ("auto", "all") and isinstance(chosen, SlidingFrankWolfe):
        raise InputError(
            "arrangements are given, but the solver 'sliding' solves over all of them: use solver='active set', or leave them out"
        )
    return chosen


def _solver_of(name: str, seed: int, verbose: bool) -> Solver:
    if name == "closed form":
        return ClosedForm()
    if name == "active set":
        return ActiveSet(verbose=verbose)
    return SlidingFrankWolfe(seed=seed, verbose=verbose) if name == "sliding" else Conic(name)


def _automatic(arrangements: str | int | Arrangements, whitening: Whitening, y: FloatArray, loss: Loss) -> str:
    """The name of the solver that "auto" stands for. Without PyTorch, which the active set needs, no list is made unasked."""
    if obstacle(whitening.basis, y, loss) is None:
        return "closed form"
    given = isinstance(arrangements, (int, np.integer, Arrangements))
    if y.ndim > 1 or not (given or few_arrangements(whitening)):
        return "sliding"
    if isinstance(arrangements, Arrangements):
        count = len(arrangements)
    else:
        count = int(arrangements) if given else count_arrangements(whitening.samples, whitening.rank)
    smooth = np.isfinite(loss.smoothness)
    if 2 * count * whitening.basis.size <= WRITE_OUT_UP_TO[0 if smooth else 1]:
        return "CLARABEL"
    return "active set" if given or has_torch() else "sliding"
