"""The certificate: how far a network can be from the global optimum, judged from the raw data in float64, by no solver's word."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convexbn.arrangements import Arrangements
from convexbn.losses import Loss, get_loss
from convexbn.network import Network
from convexbn.pricing import is_square, price_dual
from convexbn.validation import FloatArray, InputError, check_data, check_positive, check_targets
from convexbn.whitening import Whitening, whiten


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
    price : h(V), the largest |V^T (U's)_+| over those arrangements, before V was scaled
    dual : (n,) the feasible dual point t V of the bound
    """

    objective: float
    bound: float
    evidence: Evidence
    scope: str
    price: float
    dual: FloatArray

    @property
    def gap(self) -> float:
        """Objective minus bound, not below 0."""
        return max(0.0, self.objective - self.bound)

    @property
    def relative_gap(self) -> float:
        """gap / objective; 0 for an objective of 0."""
        return self.gap / self.objective if self.objective > 0 else 0.0

    def accepts(self, tolerance: float = 1e-4) -> bool:
        """Whether the network is within the relative `tolerance` of the optimum that `evidence` names."""
        return self.relative_gap <= tolerance

    def __str__(self) -> str:
        return (
            f"objective {self.objective:.10g}, bound {self.bound:.10g}, relative gap {self.relative_gap:.1e}: "
            f"{self.evidence.value}, over {self.scope}"
        )


def certify(
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    network: Network,
    *,
    beta: float,
    loss: str | Loss = "squared",
    arrangements: Arrangements | None = None,
    dual: FloatArray | None = None,
) -> Certificate:
    """Bound the distance of any network to the global optimum of  L(f(X), y) + (beta/2) sum_j (g_j^2 + a_j^2 + ||v_j||^2).

    Weak duality: with h(V) = max over ||s|| <= 1 of |V^T (U's)_+|, every t V with t h(V) <= beta has -L*(-t V) <= optimum. V is
    minus the gradient of the loss at the network's outputs, t the best admissible scale. The maximum is taken over all cells
    where the arrangements are complete or the data have rank n - 1 (then it is known in closed form): the bound is proved.
    Over a sample, to which the network's own neurons are added, it is proved for the sampled program and says nothing about
    networks outside of it.

    Parameters
    ----------
    X : (n, d) training data, raw
    y : (n,) targets
    network : of any origin; `from_torch` reads one that somebody else has trained
    beta, loss : the objective's
    arrangements : of the whitened X; not needed at rank n - 1
    dual : (n,) another candidate for V, for losses with kinks whose gradient says little; it is checked, not believed

    Raises
    ------
    InputError
        For unusable data, and where arrangements are needed and missing.
    """
    data = check_data(X)
    the_loss = get_loss(loss)
    targets = the_loss.check(check_targets(y, len(data)))
    check_positive(beta, "beta")
    whitening = whiten(data)
    _check_basis(whitening, data)
    objective = network.objective(data, targets, the_loss, beta)
    evidence, scope = _evidence(whitening.basis, arrangements)
    if arrangements is not None and arrangements.active.shape[1] != len(data):
        raise InputError(
            f"arrangements are patterns of {arrangements.active.shape[1]} samples, but X has {len(data)}: make them from this X"
        )
    candidates = [-the_loss.gradient(network.on(data).predict(data), targets)]
    if dual is not None:
        candidates.append(np.asarray(dual, dtype=np.float64))
    best: tuple[float, float, FloatArray] | None = None
    for candidate in candidates:
        v = -the_loss.project(-candidate, targets)
        price = max(price_dual(whitening.basis, v, arrangements).upper, _own_price(network, data, v))
        t, bound = _best_scale(the_loss, targets, v, beta / price if price > 0 else np.inf)
        if best is None or bound > best[0]:
            best = bound, price, t * v
    assert best is not None
    return Certificate(objective, best[0], evidence, scope, best[1], best[2])


def _evidence(basis: FloatArray, arrangements: Arrangements | None) -> tuple[Evidence, str]:
    if is_square(basis):
        return Evidence.PROVED, "all arrangements, in closed form (rank n - 1)"
    if arrangements is not None and arrangements.complete:
        return Evidence.PROVED, str(arrangements)
    return Evidence.SAMPLED, f"{arrangements} and the network's own neurons"


def _own_price(network: Network, data: FloatArray, v: FloatArray) -> float:
    """The largest |v^T (U's)_+| / ||s|| of the network's own neurons: with it, the bound can't pass the network's objective."""
    present = network.on(data)
    size = np.hypot(present.gain, present.shift)
    worth = np.abs(v @ np.maximum(present.hidden(data), 0.0))
    return float(np.max(worth / np.where(size > 0, size, 1.0), initial=0.0))


def _best_scale(loss: Loss, y: FloatArray, v: FloatArray, limit: float) -> tuple[float, float]:
    """The t in [0, min(1, limit)] with a large -L*(-t v), and that value: concave in t, and any t is valid."""
    from scipy.optimize import minimize_scalar

    top = min(1.0, limit)

    def value(t: float) -> float:
        return -loss.conjugate(-t * v, y)

    inner = minimize_scalar(lambda t: -value(t), bounds=(0.0, top), method="bounded").x if top > 0 else 0.0
    best = max((0.0, float(inner), top), key=value)
    return best, value(best)


def _check_basis(whitening: Whitening, data: FloatArray) -> None:
    """The basis is orthonormal, and centred data lie in its span: what the bound takes from whitening is checked here."""
    basis = whitening.basis
    orthonormal = np.max(np.abs(basis.T @ basis - np.eye(basis.shape[1])))
    scaled = data / whitening.scale - whitening.mean / whitening.scale
    outside = np.max(np.abs(scaled - basis @ (basis.T @ scaled)), initial=0.0)
    if orthonormal > 1e-10 or outside > 1e-6 * max(1.0, float(np.max(np.abs(scaled)))):
        raise InputError("X can't be whitened accurately in float64: remove nearly collinear columns or rescale them")
