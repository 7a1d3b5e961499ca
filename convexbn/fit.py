"""The whole line on one screen: whiten, take the arrangements, build the program, solve, recover, certify."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from convexbn.arrangements import Arrangements
from convexbn.certificate import Certificate, certify_on
from convexbn.choices import (
    BETA_FRACTION,
    check_arrangements,
    choose_arrangements,
    choose_beta,
    choose_solver,
    few_arrangements,
    without_rounding,
)
from convexbn.export import to_torch
from convexbn.features import Features, extract, stack
from convexbn.interrupts import held_interrupts
from convexbn.losses import Loss, get_loss
from convexbn.network import Network, merge, recover, simplest
from convexbn.patches import Patches, Pooling, check_input, pooling_of
from convexbn.pricing import affordable, evolve, is_square, known_price, local_search, price_dual, random_directions
from convexbn.program import Program
from convexbn.progress import stage
from convexbn.pruning import prune_network
from convexbn.solution import Solution, Solver, Status
from convexbn.solvers import ClosedForm, SlidingFrankWolfe
from convexbn.streaming import whiten_input
from convexbn.validation import FloatArray, check_budget, check_targets
from convexbn.whitening import Whitening

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Fit:
    """A trained network with everything that led to it.

    Attributes
    ----------
    network : the network with batch normalisation
    certificate : its objective, a bound, and what the bound rests on
    solution : the solver's neurons and status
    program : the convex program that was solved
    whitening : the basis and the way back to raw weights
    beta_max : the smallest beta with the zero network as optimum, over the program's arrangements
    seconds : time of each stage
    features : what stands below the last two layers; `network` and `certificate` are those of features(X)
    """

    network: Network
    certificate: Certificate
    solution: Solution
    program: Program
    whitening: Whitening
    beta_max: float
    seconds: Mapping[str, float] = field(repr=False)
    features: Features | None = None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the solver or the proof early; network and bound are the best so far."""
        return self.solution.status is Status.INTERRUPTED or self.certificate.interrupted

    def predict(self, X: npt.ArrayLike) -> FloatArray:
        """Outputs (k,), or (k, C), for the rows of X (k, d), or for k images, with the training statistics.

        For logistic and hinge loss their sign is the label, for softmax loss the largest one.
        """
        return self.network.predict(extract(self.features, X))

    def to_torch(self, *, dtype: torch.dtype | None = None) -> torch.nn.Sequential:
        """The network as a plain PyTorch module: see `convexbn.to_torch`. With features it is Sequential(features, *layers)."""
        head = to_torch(self.network, dtype=dtype)
        return head if self.features is None else stack(self.features, head)

    def __str__(self) -> str:
        program, certificate = self.program, self.certificate
        n, rank = len(program.y), self.whitening.rank
        stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items())
        arrangements = program.arrangements if program.arrangements is not None else "all of them, none had to be listed"
        estimated = program.arrangements is None and known_price(program.basis, _pull(program.y, program.loss, program.pooling)) is None
        known = "the estimated" if estimated else "the"
        features = f"{self.network.weights.shape[1]} features"
        if self.network.patches is not None:
            features = f"{self.network.pooling.patches} patches each of {features}"
        ended = ", the proof was interrupted" if certificate.interrupted else ""
        cut = f", {100 * self.whitening.energy:.4g} % of the variance" if self.whitening.energy < 1 else ""
        fraction = f"{program.beta / self.beta_max:.3g} of {known} beta_max {self.beta_max:.6g}" if self.beta_max > 0 else "beta_max is 0"
        lines = [
            f"ReLU network with batch normalisation: {n} samples, {features} of rank {rank}{cut}, {program.loss.name} loss",
            f"  beta          {program.beta:.6g} ({fraction})",
            f"  objective     {certificate.objective:.10g}  (of the network, from the raw data)",
            f"  bound         {certificate.bound:.10g}  (relative gap {certificate.relative_gap:.1e}, {certificate.evidence.value}{ended})",
            f"  estimate      {certificate.estimate:.10g}  (relative gap {certificate.estimated_gap:.1e}, estimated)",
            f"  neurons       {self.network.neurons}",
            f"  arrangements  {arrangements}",
            f"  solver        {self.solution.solver}: {self.solution.status.value}",
            f"  time          {sum(self.seconds.values()):.2f} s ({stages})",
        ]
        return "\n".join(lines)

    __repr__ = __str__  # a notebook shows what an object says, not its arrays


def fit_convex_bn(
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    beta: float | None = None,
    fraction: float = BETA_FRACTION,
    loss: str | Loss = "squared",
    arrangements: str | int | Arrangements = "auto",
    solver: str | Solver = "auto",
    rank: float | None = None,
    seed: int = 0,
    proof_seconds: float = 5.0,
    patches: Patches | None = None,
    features: Features | None = None,
    verbose: bool = False,
) -> Fit:
    """Train a two-layer ReLU network with batch normalisation and weight decay to the optimum of

        min  L( sum_j (BN_{g_j,a_j}(X w_j))_+ v_j^T, y ) + (beta/2) sum_j ( g_j^2 + a_j^2 + ||v_j||^2 )

    by its equivalent convex program, and certify it. L is a sum over samples; BN divides by the l2 norm over the full batch and
    has no epsilon (`docs/conventions.md` has PyTorch's scaling beside it). Source: Ergen et al. 2022.

    Ctrl-C ends the solver or the proof, whichever runs, and the fit is returned with the best so far: `Fit.interrupted` tells. Conic
    solvers and what comes before the solver have nothing to return, and raise.

    With `patches` the first layer is a convolution of images, X w_j runs over all their K n patches, whose statistics BN takes, and
    the K activations of an image are averaged or summed. With `features` the network is a deep one: features(X) takes the place of
    X, and the last two layers are optimal for these features. Where they have rank n - 1 no depth and no other features do better.

    Parameters
    ----------
    X : (n, d) real numbers, n >= 2; with `patches` images (n, c, h, w)
    y : (n,) targets, or (n, C) for C outputs; -1 and +1 for logistic and hinge loss, one-hot rows for softmax
    beta : absolute; None takes `fraction` of `beta_max`
    fraction : of `beta_max`, the smallest beta with the zero network as optimum; not read where beta is given
    loss : "squared", "logistic", "hinge", "huber", "softmax", or a `Loss` such as `Huber(delta=0.5)`
    arrangements : "auto" and "all" stand for all of them; a number for a sample of that size; or `Arrangements`. Conic solvers and
        the active set need a list: "auto" then samples 50 where Cover's bound is above 1000, "all" insists
    solver : "auto" takes the closed form at rank n - 1, where arrangements are given or at most 1000 Clarabel if they are a small
        program and else the active set, and sliding Frank-Wolfe elsewhere; "closed form"; "active set"; "sliding"; a name that CVXPY
        knows, such as "SCS" or "MOSEK"; or a `Solver` such as `ActiveSet(tolerance=1e-9)`, `Conic("SCS", {"eps_abs": 1e-9})` or
        `SlidingFrankWolfe(tolerance=1e-5)`
    rank : None reads all directions of X; a number k, or a share of the variance in (0, 1), only the leading principal directions
        of the centred X, in its own units: see `whiten`. The network runs on X as it is, and its optimality is meant and proved
        among networks that read those directions
    seed : of the sample and of the searches
    proof_seconds : for the proof where all arrangements are unlisted, as long as its gap is above 1e-3: the `seconds` of `certify`
    patches : of the convolution, such as `Patches(5, stride=2)`: their size, stride, padding and pooling, as in PyTorch's Conv2d and
        an average or a sum over the image. The memory is that of the basis, n K rows of r+1 numbers, and that of some images' patches
    features : a torch.nn.Module, trained or random (`random_layers`), or a function of X; it runs in `eval()` and is not trained
    verbose : show each stage

    Raises
    ------
    InputError
        For an argument that can't be used; the message names it and says what to do.
    SolverError
        Where the solver fails; its `status` says how.
    """
    check_budget(proof_seconds, "proof_seconds")
    ready = prepare(
        X, y, loss=loss, arrangements=arrangements, solver=solver, rank=rank, seed=seed, patches=patches, features=features, verbose=verbose
    )
    return ready.fit(choose_beta(beta, fraction, ready.beta_max), proof_seconds=proof_seconds)


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that doesn't depend on beta: what the first layer reads, whitened, and the choices."""

    data: npt.NDArray[Any]
    patches: Patches | None
    features: Features | None
    targets: FloatArray
    loss: Loss
    whitening: Whitening
    solver: Solver
    arrangements: Arrangements | None
    beta_max: float
    seconds: Mapping[str, float]
    verbose: bool

    def fit(self, beta: float, *, proof_seconds: float) -> Fit:
        """Solve and certify."""
        whitening, largest, seconds = self.whitening, self.beta_max, dict(self.seconds)
        program = Program(whitening.basis, self.targets, self.loss, beta, self.arrangements, pooling_of(self.patches))
        with stage("solve", seconds, self.verbose):
            solution = self.solver.solve(program) if beta < largest else _nothing(program)
        with stage("certify", seconds, self.verbose):
            with held_interrupts(True) as came:  # or the solver's work would be lost
                network = _simplest(whitening, solution, self.data, program, self.patches)
            certificate = certify_on(
                whitening,
                self.data,
                self.targets,
                network,
                beta=beta,
                loss=self.loss,
                arrangements=self.arrangements,
                dual=solution.dual,
                seconds=proof_seconds,
                device=self.solver.device if isinstance(self.solver, SlidingFrankWolfe) else "cpu",
                interrupted=came(),
            )
        return Fit(network, certificate, solution, program, whitening, largest, seconds, self.features)


def prepare(
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    loss: str | Loss,
    arrangements: str | int | Arrangements,
    rank: float | None,
    seed: int,
    solver: str | Solver = "auto",
    patches: Patches | None = None,
    features: Features | None = None,
    verbose: bool = False,
) -> Prepared:
    """Check the arguments of `fit_convex_bn`, whiten, and choose arrangements and solver."""
    seconds: dict[str, float] = {}
    with stage("whiten", seconds, verbose):
        data, cut = check_input(extract(features, X), patches)
        the_loss, targets, whitening = _whitened(data, y, loss, cut, rank)
    with stage("arrange", seconds, verbose):
        check_arrangements(arrangements)
        the_solver = choose_solver(solver, arrangements, whitening, targets, the_loss, seed=seed, verbose=verbose)
        listed = not isinstance(the_solver, (ClosedForm, SlidingFrankWolfe))
        chosen = choose_arrangements(arrangements, whitening, targets, seed=seed) if listed else None
        largest = _beta_max(whitening, targets, the_loss, chosen, pooling_of(cut))
    return Prepared(data, cut, features, targets, the_loss, whitening, the_solver, chosen, largest, seconds, verbose)


def beta_max(
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    loss: str | Loss = "squared",
    arrangements: str | int | Arrangements = "auto",
    rank: float | None = None,
    seed: int = 0,
    patches: Patches | None = None,
    features: Features | None = None,
) -> float:
    """The smallest beta for which the zero network is optimal, h(V) at V = -grad L(0): max over ||s|| <= 1 of ||V^T (U's)_+||.

    Exact at rank n - 1 and over arrangements that are listed; over a sample it is that sample's. Over all of them, where they are
    too many to list, it is estimated by local search, from below. Parameters as in `fit_convex_bn`.
    """
    check_arrangements(arrangements)
    data, cut = check_input(extract(features, X), patches)
    the_loss, targets, whitening = _whitened(data, y, loss, cut, rank)
    too_many = targets.ndim > 1 or not few_arrangements(whitening)
    unlisted = is_square(whitening.basis, targets) or (arrangements in ("auto", "all") and too_many)
    chosen = None if unlisted else choose_arrangements(arrangements, whitening, targets, seed=seed)
    return _beta_max(whitening, targets, the_loss, chosen, pooling_of(cut))


def _whitened(
    data: npt.NDArray[Any], y: npt.ArrayLike, loss: str | Loss, patches: Patches | None, rank: float | None
) -> tuple[Loss, FloatArray, Whitening]:
    """The loss, its targets, and what the first layer reads, whitened."""
    the_loss = get_loss(loss)
    targets = the_loss.check(check_targets(y, len(data)))
    return the_loss, targets, whiten_input(data, patches, rank=rank)


def _beta_max(whitening: Whitening, y: FloatArray, loss: Loss, arrangements: Arrangements | None, pooling: Pooling) -> float:
    """The smallest beta with the zero network as optimum."""
    pull = _pull(y, loss, pooling)
    return without_rounding(_price_of(pull, whitening, arrangements), float(np.linalg.norm(pull)))


def _pull(y: FloatArray, loss: Loss, pooling: Pooling) -> FloatArray:
    """V = -grad L(0), on the rows of the basis."""
    return pooling.spread(-loss.gradient(np.zeros(y.shape), y))


def _price_of(pull: FloatArray, whitening: Whitening, arrangements: Arrangements | None) -> float:
    known = known_price(whitening.basis, pull)
    if known is not None:
        return known.lower
    if arrangements is None:
        starts, children = (affordable(whitening.basis, most) for most in (256, 64))
        directions = random_directions(starts, whitening.rank + 1, (0,))
        columns = pull.reshape(len(pull), -1)
        found = local_search(whitening.basis, columns, directions)[0]
        directions = np.concatenate([found, directions])
        return float(np.max(evolve(whitening.basis, columns, directions, seed=(0,), children=children, generations=2)[1]))
    return price_dual(whitening.basis, pull, arrangements).lower


def _nothing(program: Program) -> Solution:
    """The zero network, which is optimal from beta_max on: there solvers would only meet bad scaling."""
    dual = -program.loss.gradient(np.zeros(program.y.shape), program.y)
    empty = np.zeros((0, program.basis.shape[1])), np.zeros((0, program.y.reshape(len(program.y), -1).shape[1]))
    return Solution(*empty, Status.OPTIMAL, "none, as beta is at least beta_max", dual=dual)


def _simplest(whitening: Whitening, solution: Solution, data: npt.NDArray[Any], program: Program, patches: Patches | None) -> Network:
    """The network with the fewest neurons whose objective is, to 1e-7, the best that the solver's neurons give.

    No network needs more than n + 1 neurons (for each output): what a solver leaves beyond that is pruned.
    """
    thresholds = ((1e-3, 1e-4), (1e-4, 1e-6), (1e-5, 1e-8), (0.0, 0.0))
    merged = [merge(solution.directions, solution.outputs, angle=a, smallest=s) for a, s in thresholds]
    networks = [recover(whitening, *neurons, patches) for neurons in merged]
    network = simplest(networks, data, program.y, program.loss, program.beta, slack=1e-7)
    return prune_network(network, data) if network.neurons > program.y.size + 1 else network
