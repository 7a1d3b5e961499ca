"""Training to optimality with batch normalisation after the ReLU, and the certificate of such networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from reprlib import repr as shortened
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from convexbn.arrangements import Arrangements
from convexbn.certificate import Certificate, Evidence
from convexbn.choices import BETA_FRACTION, ENUMERATE_UP_TO, choose_beta, without_rounding
from convexbn.dual import best_scale, dual_values, residuals
from convexbn.export import to_torch
from convexbn.losses import Loss, Squared, get_loss
from convexbn.network import Network, largest_worth, simplest
from convexbn.post_bn.conic import Neurons, solve_cells
from convexbn.post_bn.program import Reach, Span, arrangements_of, count_of, reach_of, span_of
from convexbn.progress import stage
from convexbn.solvers import Conic, shrink
from convexbn.validation import FloatArray, InputError, check_count, check_data, check_positive, check_targets

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PostFit:
    """A network with batch normalisation after the ReLU, trained to optimality.

    Attributes
    ----------
    network : the network, `relu_first`
    certificate : its objective, a bound, and what the bound rests on
    beta, beta_max : the regularisation, and the smallest one with the zero network as optimum
    arrangements : of X, that were listed; None where none had to be
    solver : "closed form", or the conic solver
    seconds : time of each stage
    """

    network: Network
    certificate: Certificate
    beta: float
    beta_max: float
    arrangements: Arrangements | None
    solver: str
    seconds: Mapping[str, float] = field(repr=False)

    def predict(self, X: npt.ArrayLike) -> FloatArray:
        """Outputs (k,), or (k, C), for the rows of X (k, d), with the training statistics."""
        return self.network.predict(X)

    def to_torch(self, *, dtype: torch.dtype | None = None) -> torch.nn.Sequential:
        """The network as Sequential(Linear, ReLU, BatchNorm1d, Linear): see `convexbn.to_torch`."""
        return to_torch(self.network, dtype=dtype)

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items())
        return (
            f"ReLU network with batch normalisation after the ReLU: beta {self.beta:.6g} of beta_max {self.beta_max:.6g}, "
            f"{self.network.neurons} neurons by {self.solver} in {sum(self.seconds.values()):.2f} s ({stages})\n  {self.certificate}"
        )

    __repr__ = __str__  # a notebook shows what an object says, not its arrays


def fit_post_bn(
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    beta: float | None = None,
    fraction: float = BETA_FRACTION,
    loss: str | Loss = "squared",
    arrangements: str | int = "auto",
    solver: str | Conic = "auto",
    seed: int = 0,
    verbose: bool = False,
) -> PostFit:
    """Train a two-layer ReLU network with batch normalisation after the ReLU, and weight decay, to the optimum of

        min  L( sum_j BN_{g_j,a_j}( (X w_j)_+ ) v_j^T, y ) + (beta/2) sum_j ( g_j^2 + a_j^2 + ||v_j||^2 )

    by its equivalent convex program, and certify it. L is a sum over samples; BN divides by the l2 norm over the full batch and
    has no epsilon; the first layer has no bias (append a column of ones to X for one). Source: Ergen et al. 2022.

    Where X has full row rank (n <= d), it is solved in closed form, F* = argmin L(F, y) + beta ||F||_* in nuclear norm: for
    one output with any loss, for several with squared loss, when F* is Y with its singular values reduced by beta. Else the
    program over the arrangements of X is given to a conic solver, for one output and few features.

    Parameters
    ----------
    X : (n, d) real numbers, n >= 2; not centred by anything
    y : (n,) targets, or (n, C) in closed form; -1 and +1 for logistic and hinge loss
    beta : absolute; None takes `fraction` of beta_max
    fraction : of beta_max, the smallest beta with the zero network as optimum; not read where beta is given
    loss : "squared", "logistic", "hinge", "huber", or a `Loss`
    arrangements : "auto" lists all of X; a number is a sample of that size, whose optimum is an upper bound
    solver : "auto" is the closed form where there is one, and else Clarabel; or a name that CVXPY knows, or `Conic(...)`
    seed : of the sample
    verbose : show each stage

    Raises
    ------
    InputError
        For an argument that can't be used, and where there are too many arrangements to list.
    SolverError
        Where the solver fails.
    """
    if not isinstance(solver, (str, Conic)):
        raise InputError(f"solver = {solver!r} can't be used: pass 'auto', a name that CVXPY knows, or Conic(...)")
    seconds: dict[str, float] = {}
    with stage("arrange", seconds, verbose):
        data, the_loss = check_data(X), get_loss(loss)
        targets = the_loss.check(check_targets(y, len(data)))
        reach = _reach(data, targets, arrangements, seed, closed=solver == "auto")
        pull = -the_loss.gradient(np.zeros(targets.shape), targets)
        largest = without_rounding(reach.price(pull), float(np.linalg.norm(pull)))
    strength = choose_beta(beta, fraction, largest)
    with stage("solve", seconds, verbose):
        if strength < largest:
            name, network, dual = _solved(data, targets, the_loss, strength, reach, solver)
        else:
            name, network, dual = "none, as beta is at least beta_max", _recovered(data, reach.span, _no_neurons(reach.span, targets)), pull
    with stage("certify", seconds, verbose):
        certificate = _certified(data, targets, network, strength, the_loss, reach, dual)
    return PostFit(network, certificate, strength, largest, reach.arrangements, name, seconds)


def certify_post_bn(
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    network: Network,
    *,
    beta: float,
    loss: str | Loss = "squared",
    arrangements: str | int = "auto",
    dual: FloatArray | None = None,
    seed: int = 0,
) -> Certificate:
    """Bound the distance of any network with batch normalisation after the ReLU to the global optimum of `fit_post_bn`'s problem.

    The duality is that of `certify`; the price is h(V)^2 = max over u of ||V^T [u, 1/sqrt(n)]||^2 over the normalised hidden columns
    u = Pi (Xw)_+ / ||.||. Where X has full row rank it is sigma_max(V)^2; over listed arrangements, for one output, u is priced
    cone by cone, for neurons with ||Pi (X w)_+|| >= 1e-6 ||X w||: others are below the rounding of their own mean.

    Parameters
    ----------
    X, y, loss, arrangements, seed : as in `fit_post_bn`
    network : with `relu_first`, of any origin; `from_torch` reads one
    beta : the objective's
    dual : of the shape of y; another candidate for V; it is checked, not believed

    Raises
    ------
    InputError
        For an argument that can't be used, a network with its batch normalisation before the ReLU, and too many arrangements to list.
    """
    data, the_loss = check_data(X), get_loss(loss)
    targets = the_loss.check(check_targets(y, len(data)))
    if not network.relu_first:
        raise InputError("network has its batch normalisation before the ReLU: use convexbn.certify")
    reach = _reach(data, targets, arrangements, seed, closed=True)
    return _certified(data, targets, network, check_positive(beta, "beta"), the_loss, reach, dual)


def _reach(data: FloatArray, y: FloatArray, arrangements: str | int, seed: int, *, closed: bool) -> Reach:
    """In closed form where that is allowed, nothing else is asked for, and X has full row rank; else over listed arrangements."""
    if not (isinstance(arrangements, (int, np.integer)) or (isinstance(arrangements, str) and arrangements == "auto")):
        raise InputError(f"arrangements = {shortened(arrangements)} can't be used: pass 'auto', or a number of arrangements to sample")
    span = span_of(data)
    return reach_of(span, None if closed and arrangements == "auto" and span.full else _listed(span, y, arrangements, seed))


def _listed(span: Span, y: FloatArray, arrangements: str | int, seed: int) -> Arrangements:
    if y.ndim > 1:
        raise InputError(
            f"y has {y.shape[1]} outputs, which batch normalisation after the ReLU solves only in closed form, for data of full row rank "
            f"{len(span.basis)}, here {span.basis.shape[1]}: pass one output, or more features than samples"
        )
    if arrangements == "auto" and count_of(span.basis) > ENUMERATE_UP_TO:
        raise InputError(
            f"arrangements: X may have {count_of(span.basis)}, more than {ENUMERATE_UP_TO}: sample them (arrangements=100), take fewer "
            "samples or features, or d >= n features, for which there is a closed form"
        )
    if arrangements == "auto":
        return arrangements_of(span.basis, limit=ENUMERATE_UP_TO)
    return arrangements_of(span.basis, sample=check_count(arrangements, "arrangements"), seed=seed)


def _solved(
    data: FloatArray, y: FloatArray, loss: Loss, beta: float, reach: Reach, solver: str | Conic
) -> tuple[str, Network, FloatArray | None]:
    """The name of the solver, its network, and its dual point."""
    if reach.arrangements is None:
        neurons, dual = _closed_form(reach.span, y, loss, beta)
        return "closed form", _recovered(data, reach.span, neurons), dual
    conic = solver if isinstance(solver, Conic) else Conic("CLARABEL" if solver == "auto" else solver)
    neurons, found = solve_cells(reach.cells, y, loss, beta, conic)
    candidates = [_recovered(data, reach.span, neurons, smallest) for smallest in (1e-4, 1e-6, 1e-8, 0.0)]
    return conic.name, simplest(candidates, data, y, loss, beta, slack=1e-8), found


def _closed_form(span: Span, y: FloatArray, loss: Loss, beta: float) -> tuple[Neurons, FloatArray]:
    """argmin L(F, y) + beta ||F||_* as neurons, each hidden column a multiple of a left singular vector of F; and the dual point."""
    n = len(y)
    if y.ndim == 1:
        f = shrink(loss, y, beta, np.ones(n, dtype=np.bool_))
        size = float(np.linalg.norm(f)) or 1.0
        left, values, right, dual = f[:, None] / size, np.array([size]), np.ones((1, 1)), beta * f / size
    elif isinstance(loss, Squared):
        left, found, right = np.linalg.svd(y, full_matrices=False)
        values = np.maximum(found - beta, 0.0)
        dual = (left * np.minimum(found, beta)) @ right
    else:
        raise InputError(f"loss = {loss.name!r} has no closed form for several outputs: use squared loss, or one output")
    alive = values > 0
    left, values, right = left[:, alive], values[alive], right[alive]
    mean = left.mean(axis=0)
    # Any column is reached from above: u - min(u) >= 0 passes the ReLU, and batch normalisation takes the constant away again.
    s = (left - left.min(axis=0)).T @ span.basis
    return (s, np.sqrt(n) * mean, values[:, None] * right), dual


def _no_neurons(span: Span, y: FloatArray) -> Neurons:
    return np.zeros((1, span.basis.shape[1])), np.zeros(1), np.zeros((1, y.reshape(len(y), -1).shape[1]))


def _recovered(data: FloatArray, span: Span, neurons: Neurons, smallest: float = 0.0) -> Network:
    """The network of the neurons, g = ||Pi (U s)_+||, a = t, balanced, without those of a penalty below `smallest` of the largest.

    A neuron with g = 0 keeps some w, which has no effect.
    """
    s, t, outputs = neurons
    hidden = np.maximum(span.basis @ s.T, 0.0)
    gain = np.linalg.norm(hidden - hidden.mean(axis=0), axis=0)
    penalty = np.hypot(gain, t) * np.linalg.norm(outputs, axis=1)
    kept = penalty > smallest * np.max(penalty)
    kept[np.argmax(penalty)] = True
    length = np.linalg.norm(s[kept], axis=1, keepdims=True)
    unit = np.where(length > 0, s[kept] / np.where(length > 0, length, 1.0), np.eye(1, s.shape[1]))
    zeros = np.zeros(int(kept.sum()))
    parts = unit @ span.weights, zeros, zeros + 1.0, gain[kept], t[kept], outputs[kept]
    return Network(*parts, len(data), relu_first=True).on(data).balanced()


def _certified(
    data: FloatArray,
    y: FloatArray,
    network: Network,
    beta: float,
    loss: Loss,
    reach: Reach,
    dual: FloatArray | None,
) -> Certificate:
    objective, same = network.objective(data, y, loss, beta), network.on(data)
    candidates, activations = residuals(loss, y, same.predict(data), objective), same.activations(data)
    if dual is not None and np.shape(dual) == y.shape and np.isfinite(dual).all():
        candidates.append(np.asarray(dual, dtype=np.float64))
    best, price, point = -np.inf, 0.0, candidates[0]
    for candidate in candidates:
        v = -loss.project(-candidate, y)
        found = max(reach.price(v), largest_worth(same, activations, v))
        scale, value = best_scale(dual_values(loss, y, v), beta, found)
        if value > best:
            best, price, point = value, found, scale * v
    complete = reach.arrangements is None or reach.arrangements.complete
    return Certificate(objective, best, Evidence.PROVED if complete else Evidence.SAMPLED, str(reach), price, point, best)
