"""The certificate: how far a network can be from the global optimum, judged from the raw data in float64, by no solver's word."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from convexbn.arrangements import Arrangements
from convexbn.devices import check_device
from convexbn.dual import residuals
from convexbn.interrupts import held_interrupts
from convexbn.judge import Judge
from convexbn.losses import Loss, get_loss, of_unit_size
from convexbn.network import Network
from convexbn.pricing import is_square
from convexbn.solution import relative_gap
from convexbn.streaming import Stream, whiten_stream
from convexbn.threads import few_threads
from convexbn.validation import LARGEST_TARGET, FloatArray, InputError, check_budget, check_positive, check_targets
from convexbn.whitening import Whitening, powers_of_two, whiten

CHECKED = 8_192  # rows at a time, as data can be larger than half of the memory


class Evidence(enum.Enum):
    """What a bound rests on; the value is the word that people read."""

    PROVED = "proved"
    SAMPLED = "proved for the sampled program"
    ESTIMATED = "estimated"


@dataclass(frozen=True)
class Certificate:
    """objective - bound limits the distance of a network to the optimum of the program that `evidence` names.

    Attributes
    ----------
    objective : the network's own weight-decay objective on the raw data, an upper bound on the optimum
    bound : the dual value, a lower bound on the optimum
    evidence : over all arrangements and every width, over a sample of arrangements, or only estimated
    scope : the arrangements that were priced, for people to read
    price : an upper bound on h(V), the largest ||V^T (U's)_+|| over those arrangements, before V was scaled
    dual : of the shape of y; the feasible dual point t V of the bound
    estimate : the bound if the hardest neuron that a local search found is the hardest one; above `bound` where the proof is loose
    interrupted : whether Ctrl-C ended proof and search early: the bound holds all the same, and with more time it may be better
    """

    objective: float
    bound: float
    evidence: Evidence
    scope: str
    price: float
    dual: FloatArray
    estimate: float
    interrupted: bool = False

    @property
    def gap(self) -> float:
        """Objective minus bound, not below 0."""
        return max(0.0, self.objective - self.bound)

    @property
    def relative_gap(self) -> float:
        """gap / objective; 0 for an objective of 0."""
        return relative_gap(self.objective, self.bound)

    @property
    def estimated_gap(self) -> float:
        """(objective - estimate) / objective, not below 0: what the gap is likely to be."""
        return relative_gap(self.objective, self.estimate)

    def accepts(self, tolerance: float = 1e-4) -> bool:
        """Whether the network is within the relative `tolerance` of the optimum that `evidence` names."""
        return self.relative_gap <= tolerance

    @property
    def _estimated(self) -> str:
        return f"; gap {self.estimated_gap:.1e} estimated" if self.estimated_gap < 0.5 * self.relative_gap else ""

    def __str__(self) -> str:
        return (
            f"objective {self.objective:.10g}, bound {self.bound:.10g}, relative gap {self.relative_gap:.1e}: "
            f"{self.evidence.value}, over {self.scope}{self._estimated}{'; the proof was interrupted' if self.interrupted else ''}"
        )

    __repr__ = __str__  # a notebook shows what an object says, not its arrays


def certify(
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    network: Network,
    *,
    beta: float,
    loss: str | Loss = "squared",
    arrangements: Arrangements | None = None,
    dual: FloatArray | None = None,
    rank: float | None = None,
    seconds: float = 5.0,
    device: str = "cpu",
) -> Certificate:
    """Bound the distance of any network to the global optimum of  L(f(X), y) + (beta/2) sum_j (g_j^2 + a_j^2 + ||v_j||^2).

    Weak duality: with h(V) = max over ||s|| <= 1 of ||V^T (U's)_+||, every t V with t h(V) <= beta has -L*(-t V) <= optimum. V is
    minus the gradient of the loss at the network's outputs, and at 0 where the zero network has the lower objective; t is the best
    admissible scale. Over all arrangements h(V) is known at rank n - 1 and where they are listed, and else bounded from above by a
    relaxation, for which a better V is looked for as well, and by branch and bound, on boxes for up to 7 features; for some ten
    features, and for few numbers in a patch, the whole training problem is relaxed to moments of degree 4 and 6, and up to some
    hundred samples to joint ones with all |u_i^T s|, for several outputs to doubly nonnegative matrices, up to 2500 samples: the
    bound is proved, and less tight for small beta. Over a sample, to which the network's own neurons are added, it is proved for the
    sampled program and says nothing about networks outside of it.

    Parameters
    ----------
    X : (n, d) training data, raw; images (n, c, h, w) for a network on patches
    y : (n,) targets, or (n, C) for C outputs
    network : of any origin; `from_torch` reads one that somebody else has trained
    beta, loss : the objective's
    arrangements : of the whitened X, to be listed one by one; None stands for all of them
    dual : of the shape of y; another candidate for V, for losses with kinks whose gradient says little; it is checked, not believed
    rank : None for networks that read all of X; else the bound holds for networks that read only its leading principal directions,
        as in `fit_convex_bn`, and for the given network
    seconds : for the proof over all arrangements, unlisted, as long as its relative gap is above 1e-3; 0 leaves it to the relaxation,
        which has a second for each candidate of V anyway. The proof is valid whenever it ends, and ends in time, give or take
        that and one step of what runs; the local search that it begins with is not cut short. Ctrl-C ends it at once, with the best
        bound so far
    device : where proofs for many samples and one output multiply by U': "cpu", by numpy, or "cuda", by PyTorch; bounds are evaluated
        in float64 on the CPU

    Raises
    ------
    InputError
        For data, targets or arrangements that can't be used.
    """
    if not isinstance(network, Network):
        raise InputError(f"network is a {type(network).__name__}, not a Network: pass fit.network, or from_torch(model, X)")
    whitening = whiten(network.rows(X), rank=rank) if network.patches is None else whiten_stream(lambda: network.blocks(X), rank=rank)
    if arrangements is not None and not isinstance(arrangements, Arrangements):
        raise InputError("arrangements are neither Arrangements nor None: list them by sample_arrangements or enumerate_arrangements")
    the_loss = get_loss(loss)
    targets = the_loss.check(check_targets(y, whitening.samples // network.pooling.patches))
    return certify_on(
        whitening, X, targets, network, beta=beta, loss=the_loss, arrangements=arrangements, dual=dual, seconds=seconds, device=device
    )


def certify_on(
    whitening: Whitening,
    data: npt.ArrayLike,
    targets: FloatArray,
    network: Network,
    *,
    beta: float,
    loss: Loss,
    arrangements: Arrangements | None,
    dual: FloatArray | None,
    seconds: float,
    device: str = "cpu",
    interrupted: bool = False,
) -> Certificate:
    """`certify` on data and checked targets with their whitening, of which only what is verified here is believed.

    Where Ctrl-C has `interrupted` already there is no proof, and the bound is a trivial one.
    """
    check_positive(beta, "beta")
    check_budget(seconds, "seconds")
    with held_interrupts(True) as came:  # a certificate needs the objective in any case
        _check_network(network)
        _check_basis(whitening, lambda: network.blocks(data))
        _check_arrangements(arrangements, whitening, targets)
        objective, same = network.objective(data, targets, loss, beta), network.on(data)
        candidates = residuals(loss, targets, same.predict(data), objective)
        if dual is not None:
            candidates += _usable(dual, targets)
        # A power of two, and 1 for scale 1: pricing goes up to fourth powers of V, which float64 holds in that unit, and no digit changes.
        problem = of_unit_size(targets, loss, beta, 0.5 * float(powers_of_two(loss.scale(targets))))
        unit = problem.unit
        same = replace(same, outputs=same.outputs / unit)
        judge = Judge(whitening.basis, problem.y, problem.loss, problem.beta, arrangements, same, data, seconds, check_device(device))
        lowest = min(objective, loss.value(np.zeros(targets.shape), targets))
    points = [candidate / unit for candidate in candidates]
    with few_threads(whitening.basis.size):
        found, interrupted = judge.prove(points, lowest / unit**2, interrupted=interrupted or came())
    bound, estimate = found.proved * unit**2, min(objective, judge.best_estimate * unit**2)
    price, point, estimate = found.price.upper * unit, found.dual * unit, max(bound, estimate)
    return Certificate(objective, bound + 0.0, *_evidence(whitening, targets, arrangements), price, point, estimate + 0.0, interrupted)


def _check_network(network: Network) -> None:
    """It has the form that is judged, and numbers."""
    if network.relu_first:
        raise InputError("network has its batch normalisation after the ReLU: use convexbn.certify_post_bn")
    if not all(np.isfinite(part).all() for part in (network.weights, network.gain, network.shift, network.outputs)):
        raise InputError("network holds NaN or infinity, so its training diverged: lower the learning rate and train again")


def _check_arrangements(arrangements: Arrangements | None, whitening: Whitening, targets: FloatArray) -> None:
    """They are of these data, all of them where they say so, and for one output."""
    if arrangements is None:
        return
    if targets.ndim > 1:
        raise InputError(f"arrangements are listed, but y has {targets.shape[1]} outputs: leave them out to bound over all arrangements")
    if arrangements.active.shape[1] != whitening.samples:
        rows = f"{arrangements.active.shape[1]} rows, but X has {whitening.samples}"
        raise InputError(f"arrangements are patterns of {rows}: make them from this X")
    if arrangements.complete and not arrangements.fits(whitening.basis):
        raise InputError("arrangements are not known to be all those of X: make them by enumerate_arrangements(whiten(X).basis)")


def _usable(dual: FloatArray, y: FloatArray) -> list[FloatArray]:
    """The suggested dual point, or nothing where a solver broke down and left numbers that can't be squared."""
    point = np.asarray(dual, dtype=np.float64)
    if point.shape != y.shape:
        raise InputError(f"dual has shape {point.shape}, not {y.shape}: pass one number for each target")
    return [point] if np.isfinite(point).all() and np.max(np.abs(point)) <= LARGEST_TARGET else []


def _evidence(whitening: Whitening, y: FloatArray, arrangements: Arrangements | None) -> tuple[Evidence, str]:
    """What the bound rests on, and the arrangements and networks that it is meant for."""
    evidence, scope = _over(whitening.basis, y, arrangements)
    if whitening.energy < 1:
        share = f"{100 * whitening.energy:.4g} % of the variance"
        scope += f", for networks that read only the {whitening.rank} leading principal direction(s) of X ({share})"
    if whitening.dropped:
        scope += f", for networks that don't read the {whitening.dropped} nearly collinear direction(s) of X that whitening drops"
    return evidence, scope


def _over(basis: FloatArray, y: FloatArray, arrangements: Arrangements | None) -> tuple[Evidence, str]:
    if is_square(basis, y):
        return Evidence.PROVED, "all arrangements, in closed form (rank n - 1)"
    if arrangements is None:
        return Evidence.PROVED, "all arrangements, none of them listed"
    if arrangements.complete:
        return Evidence.PROVED, str(arrangements)
    return Evidence.SAMPLED, f"{arrangements} and the network's own neurons"


def _check_basis(whitening: Whitening, stream: Stream) -> None:
    """The basis is orthonormal, and centred data lie in its span: what the bound takes from whitening is checked here.

    Of truncated data, their part in the directions that are kept.
    """
    basis, centre = whitening.basis, whitening.mean / whitening.scale
    orthonormal = np.max(np.abs(basis.T @ basis - np.eye(basis.shape[1])))
    columns = whitening.components if whitening.energy < 1 else None

    def scaled() -> Iterator[tuple[FloatArray, FloatArray]]:
        """Some rows of the basis, and of the data, centred."""
        start = 0
        for block in stream():
            for first in range(0, len(block), CHECKED):
                rows = block[first : first + CHECKED] / whitening.scale - centre
                yield basis[start : start + len(rows)], rows if columns is None else rows @ columns
                start += len(rows)

    inside = sum(some.T @ rows for some, rows in scaled())
    outside, size = 0.0, 1.0
    for some, rows in scaled():
        outside = max(outside, float(np.max(np.abs(rows - some @ inside), initial=0.0)))
        size = max(size, float(np.max(np.abs(rows), initial=0.0)))
    if orthonormal > 1e-10 or outside > 1e-6 * size:
        raise InputError("X can't be whitened accurately in float64: remove nearly collinear columns or rescale them")
