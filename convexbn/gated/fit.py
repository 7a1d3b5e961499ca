"""The whole line for the gated model: whiten, draw gates, build the program, solve, bound."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy.typing as npt

from convexbn.certificate import Certificate, Evidence
from convexbn.choices import BETA_FRACTION, choose_beta, choose_betas
from convexbn.devices import check_device, need_torch
from convexbn.gated.cones import Conversion, to_relu
from convexbn.gated.gates import LocalGates, choose_gates
from convexbn.gated.network import GatedNetwork
from convexbn.gated.penalties import Penalty, get_penalty
from convexbn.gated.program import GatedProgram
from convexbn.gated.solver import GatedSolution, GatedSolver
from convexbn.losses import Loss, get_loss
from convexbn.patches import Patches, check_input, pooling_of
from convexbn.shards import Shards, whiten_shards
from convexbn.solution import Status
from convexbn.solvers.masked import MAX_MEMORY
from convexbn.streaming import whiten_input
from convexbn.validation import FloatArray, InputError, check_data, check_targets, real_array
from convexbn.whitening import Whitening

if TYPE_CHECKING:
    import torch

    from convexbn.gated.module import GatedConvolution, GatedModule


@dataclass(frozen=True)
class GatedFit:
    """A trained gated network with everything that led to it.

    Attributes
    ----------
    network : the gated network, of the gates that carry weight
    certificate : its objective on the raw data, and a bound that is proved for the program of these gates
    solution : weights of all gates, status and trace
    program : the gated program
    whitening : the basis and the way back to raw weights
    beta_max : the smallest beta for which no gate carries weight
    seconds : time of each stage
    """

    network: GatedNetwork
    certificate: Certificate
    solution: GatedSolution
    program: GatedProgram
    whitening: Whitening
    beta_max: float
    seconds: Mapping[str, float] = field(repr=False)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the solver early; network and bound are the best so far."""
        return self.solution.status is Status.INTERRUPTED

    def predict(self, X: npt.ArrayLike) -> FloatArray:
        """Outputs (k,), or (k, C), for the rows of X (k, d), or for k images, through the gates."""
        return self.network.predict(X)

    def to_torch(self, *, dtype: torch.dtype | None = None) -> GatedModule | GatedConvolution:
        """The network as a small PyTorch module: see `GatedNetwork.to_torch`."""
        return self.network.to_torch(dtype=dtype)

    def to_relu(self, X: npt.ArrayLike) -> Conversion:
        """A genuine ReLU network with the same outputs on the training data X (n, d), and the price of it in the objective.

        Each weight becomes a difference of two in the cone of its gate (`convexbn.gated.cones`), by a non-negative least-squares
        problem in n unknowns for each gate and output. On other data the two models differ. Thin cones cost dearly.

        Raises
        ------
        InputError
            For unusable X, a fit on patches, and a cone that is too thin for float64.
        """
        program = self.program
        y = program.y[:, 0] if program.y.shape[1] == 1 else program.y
        network, objective = self.network, self.certificate.objective
        if network.patches is not None:
            raise InputError("X has patches, whose cones are too many to split weights in: fit_convex_bn(patches=...) trains ReLUs")
        data = check_data(X)
        return to_relu(self.whitening, network.gates, network.weights, data, y, program.loss, program.beta, objective)

    def __str__(self) -> str:
        program, certificate = self.program, self.certificate
        fraction = f"{program.beta / self.beta_max:.3g} of beta_max {self.beta_max:.6g}" if self.beta_max > 0 else "beta_max is 0"
        patches = f", {program.pooling.patches} patches each" if self.network.patches is not None else ""
        stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items())
        lines = [
            f"GATED network with batch normalisation, not a ReLU network: {len(program.y)} samples{patches}, rank {self.whitening.rank}, "
            f"{program.loss.name} loss, {program.penalty.name} penalty",
            f"  beta          {program.beta:.6g} ({fraction})",
            f"  objective     {certificate.objective:.10g}  (of the gated network, from the raw data)",
            f"  bound         {certificate.bound:.10g}  (relative gap {certificate.relative_gap:.1e}, {certificate.evidence.value})",
            f"  gates         {len(self.network.gates)} of {program.total} carry weight",
            f"  solver        {self.solution.iterations} steps: {self.solution.status.value}",
            f"  time          {sum(self.seconds.values()):.2f} s ({stages})",
        ]
        return "\n".join(lines)

    __repr__ = __str__  # a notebook shows what an object says, not its arrays


def fit_gated_bn(
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    gates: int | LocalGates | npt.ArrayLike = 100,
    beta: float | None = None,
    fraction: float = BETA_FRACTION,
    loss: str | Loss = "squared",
    penalty: str | Penalty = "group",
    rank: float | None = None,
    lean: float = 0.0,
    solver: GatedSolver | None = None,
    start: FloatArray | None = None,
    seed: int = 0,
    device: str = "cpu",
    max_memory: int = MAX_MEMORY,
    shards: Shards | None = None,
    patches: Patches | None = None,
    verbose: bool = False,
) -> GatedFit:
    """Train a two-layer GATED network with batch normalisation to the optimum of

        min  L( sum_i D_i U' S_i, Y ) + beta sum_i ||S_i||,       D_i = diag(1[U' g_i >= 0])

    over fixed gates g_i, and bound the distance to it. L is a sum over samples; U' is the whitened X. This is another model than the
    ReLU network of `fit_convex_bn`: its gates don't follow its weights. It scales to far more data, and its objective says
    nothing about that of ReLU networks. Source: Mishkin, Sahiner and Pilanci 2022 (gated ReLU), on the whitened basis.

    With `patches` the gates read patches of images: U' has the K patches of all images as rows, and predictions are averaged or summed
    over those of an image. Patches are whitened block by block and never held; the basis is, n K (r+1) numbers.

    Parameters
    ----------
    X : (n, d) real numbers, n >= 2; with `patches` images (n, c, h, w) of any real type
    y : (n,) targets, or (n, C) for C outputs; -1 and +1 for logistic and hinge loss, one-hot rows for softmax
    gates : how many, drawn from a Gaussian on the basis; or `LocalGates`, which look at a window of an image each; patterns that repeat
        or are empty are left out. Or (P, r+1) the g_i themselves
    beta : absolute; None takes `fraction` of beta_max
    fraction : of beta_max, the smallest beta for which no gate carries weight; not read where beta is given
    loss : as in `fit_convex_bn`
    penalty : "group" is the Frobenius norm of each S_i. "nuclear" is its nuclear norm, the relaxation of weight decay; for one output
        they are the same
    rank : of the whitening: None reads all directions of X, a number k or a share of the variance only the leading ones
    lean : of drawn gates towards strong directions: their components along the singular directions have a standard deviation of
        Sigma^lean. 0 treats all directions alike; 1 draws Gaussian weights on the centred X, as networks begin with. Data may fit
        better in between (`docs/cifar.md`)
    solver : a `GatedSolver` with its tolerance, limits, precision and checkpoint; None takes the default, a relative gap of 1e-4
    start : (P, r+1, C) weights to begin with, as `solution.weights` of a fit with a larger beta
    seed : of the gates
    device : "cpu", or "cuda" for products on a GPU
    max_memory : bytes for masks and temporary arrays of products, beyond basis and weights
    shards : under torchrun, how the work is spread. Arrangements: every process passes all of X and y. Samples: each passes rows of
        its own. The network and certificate are those of all processes, `solution` and `program` have this one's part (`docs/scale.md`)
    patches : as in `fit_convex_bn`
    verbose : show a bar with the gap and the time left

    Raises
    ------
    InputError
        For an argument that can't be used; the message names it and says what to do.
    """
    the_solver = _solver_of(solver, verbose)
    place = _Place(device, max_memory, shards or Shards())
    prepared = _prepare(X, y, loss, penalty, rank, patches, _Gates(gates, seed, lean), place)
    return prepared.fit(choose_beta(beta, fraction, prepared.beta_max), the_solver, start)


def fit_gated_path(
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    gates: int | LocalGates | npt.ArrayLike = 100,
    betas: int | npt.ArrayLike = 20,
    fractions: npt.ArrayLike | None = None,
    smallest: float = 0.01,
    loss: str | Loss = "squared",
    penalty: str | Penalty = "group",
    rank: float | None = None,
    lean: float = 0.0,
    solver: GatedSolver | None = None,
    seed: int = 0,
    device: str = "cpu",
    max_memory: int = MAX_MEMORY,
    shards: Shards | None = None,
    patches: Patches | None = None,
    verbose: bool = False,
) -> tuple[GatedFit, ...]:
    """Solve the problem of `fit_gated_bn` for many beta, from the largest down, each from the weights of the one before.

    Parameters
    ----------
    X, y, gates, loss, penalty, rank, lean, seed, device, max_memory, shards, patches : as in `fit_gated_bn`;
        gates are drawn once
    betas, fractions, smallest : as in `fit_path`
    solver : as in `fit_gated_bn`, without a checkpoint
    verbose : show a bar for each point

    Returns
    -------
    One fit for each beta, the largest beta first, each with its gap. Ctrl-C ends the path early; the points before it are returned.

    Raises
    ------
    InputError
        For an argument that can't be used.
    """
    chosen, the_solver = choose_betas(betas, fractions, smallest), _solver_of(solver, verbose)
    if the_solver.checkpoint is not None:
        raise InputError("solver has a checkpoint, which would be one for all points: leave it out, or call fit_gated_bn for each beta")
    place = _Place(device, max_memory, shards or Shards())
    prepared = _prepare(X, y, loss, penalty, rank, patches, _Gates(gates, seed, lean), place)
    fits: list[GatedFit] = []
    for beta in chosen.at(prepared.beta_max):
        try:
            fit = prepared.fit(float(beta), the_solver, fits[-1].solution.weights if fits else None)
            if fit.interrupted:
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            if not fits:
                raise
            break
        fits.append(fit)
    return tuple(fits)


class _Gates(NamedTuple):
    """What gates are drawn by: arguments of `fit_gated_bn`."""

    gates: int | LocalGates | npt.ArrayLike
    seed: int
    lean: float


class _Place(NamedTuple):
    """Where products are taken, and with whom: arguments of `fit_gated_bn`."""

    device: str
    max_memory: int
    shards: Shards


@dataclass(frozen=True, eq=False)
class _Prepared:
    """Everything that doesn't depend on beta."""

    data: npt.ArrayLike
    whitening: Whitening
    program: GatedProgram
    beta_max: float
    seconds: Mapping[str, float]
    patches: Patches | None

    def fit(self, beta: float, solver: GatedSolver, start: FloatArray | None) -> GatedFit:
        """Solve and judge."""
        clock, seconds = time.perf_counter(), dict(self.seconds)
        program, whitening = self.program.with_beta(beta), self.whitening
        solution = solver.solve(program, _checked_start(start, program.gates, program.y))
        seconds["solve"], clock = time.perf_counter() - clock, time.perf_counter()
        alive = solution.weights.any(axis=(1, 2))
        with program.shards.together():
            gates, weights = program.shards.gather((program.gates[alive], solution.weights[alive]))
            network = GatedNetwork(whitening, gates, weights, self.patches)
            certificate = judge(network, self.data, program, solution)
        seconds["certify"] = time.perf_counter() - clock
        return GatedFit(network, certificate, solution, program, whitening, self.beta_max, seconds)


def _prepare(
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    loss: str | Loss,
    penalty: str | Penalty,
    rank: float | None,
    patches: Patches | None,
    drawn: _Gates,
    place: _Place,
) -> _Prepared:
    """Check, whiten, draw gates, and build the program with beta 1."""
    need_torch("the gated model")
    device = check_device(place.device)
    shards = replace(place.shards, device=device)
    clock, seconds = time.perf_counter(), {}
    data, cut = check_input(X, patches)
    the_loss = get_loss(loss)
    targets = the_loss.check(check_targets(y, len(data)))
    with shards.together():
        whitening = _whitened(data, rank, shards, cut, device)
        seconds["whiten"], clock = time.perf_counter() - clock, time.perf_counter()
        chosen = shards.part_of(choose_gates(drawn.gates, whitening, drawn.seed, drawn.lean, distinct=shards.samples is None))
        columns, where = targets.reshape(len(data), -1), (device, place.max_memory, shards)
        program = GatedProgram(whitening.basis, chosen, columns, the_loss, 1.0, get_penalty(penalty), *where, pooling_of(cut))
        largest = program.beta_max()
    seconds["gates"] = time.perf_counter() - clock
    return _Prepared(data, whitening, program, largest, seconds, cut)


def _whitened(data: FloatArray, rank: float | None, shards: Shards, patches: Patches | None, device: str) -> Whitening:
    """In this process, or with the rows of several."""
    if shards.samples is None:
        return whiten_input(data, patches, rank=rank)
    if patches is not None:
        raise InputError("shards spread samples, but X is cut into patches: spread arrangements instead")
    return whiten_shards(data, shards.samples, rank=rank, device=device)


def _solver_of(solver: GatedSolver | None, verbose: bool) -> GatedSolver:
    if solver is not None and not isinstance(solver, GatedSolver):
        raise InputError(f"solver = {solver!r} is no GatedSolver: pass GatedSolver(tolerance=1e-6), for instance, or leave it out")
    return solver or GatedSolver(verbose=verbose)


def _checked_start(start: FloatArray | None, gates: FloatArray, y: FloatArray) -> FloatArray | None:
    if start is None:
        return None
    weights, shape = real_array(start, "start"), (*gates.shape, y.shape[1])
    if weights.shape != shape:
        raise InputError(f"start has shape {weights.shape}, not {shape}: pass the weights of all gates, in their order")
    return weights


def judge(network: GatedNetwork, X: npt.ArrayLike, program: GatedProgram, solution: GatedSolution) -> Certificate:
    """Objective of the network on the raw data, in float64, and the solution's bound, which is proved for these gates."""
    import torch

    predictions = network.predict(X).reshape(program.y.shape)
    penalty = float(program.penalty.norms(torch.as_tensor(network.weights)).sum())
    objective = program.shards.total_over_samples(program.loss.value(predictions, program.y)) + program.beta * penalty
    scope = f"the gated model of {program.total} gates, which is not the ReLU network"
    dual = solution.dual[:, 0] if program.y.shape[1] == 1 else solution.dual
    return Certificate(objective, solution.bound, Evidence.SAMPLED, scope, program.beta, dual, solution.bound)
