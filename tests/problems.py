"""Small problems with known traps, and references that share no code with convexbn. Tests import it: `from problems import ...`."""

from __future__ import annotations

import os
import signal
import warnings
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from torch.nn import functional

from convexbn.arrangements import enumerate_arrangements
from convexbn.losses import Hinge, Huber, Logistic, Loss, Softmax, Squared
from convexbn.network import Network, recover
from convexbn.pricing import Price, price_arrangements, price_dual
from convexbn.program import Program
from convexbn.solution import Solution
from convexbn.whitening import Whitening, whiten

LOSSES: tuple[Loss, ...] = (Squared(), Huber(0.7), Logistic(), Hinge())
CLASSIFICATION = ("logistic", "hinge")


@dataclass(frozen=True, eq=False)
class Problem:
    """Raw data, targets and a loss; beta is chosen by `program_of`."""

    name: str
    X: np.ndarray
    y: np.ndarray
    loss: Loss

    def __str__(self) -> str:
        return f"{self.name}, {self.loss.name}"


def targets_for(loss: Loss, samples: int, seed: int) -> np.ndarray:
    """Random labels -1 and +1, both present, or random numbers of both signs."""
    values = np.random.default_rng(seed).standard_normal(samples)
    values[:2] = 1.3, -0.4
    return np.sign(values) if loss.name.endswith(CLASSIFICATION) else 2.0 * values


def several_targets(loss: Loss, samples: int, outputs: int, seed: int) -> np.ndarray:
    """Targets (n, C): one-hot rows with every class for softmax, else columns of `targets_for`."""
    if loss.name == "softmax":
        return np.eye(outputs)[np.random.default_rng(seed).permutation(np.arange(samples) % outputs)]
    return np.stack([targets_for(loss, samples, seed + column) for column in range(outputs)], axis=1)


def random_problem(loss: Loss, n: int, d: int, seed: int) -> Problem:
    """Gaussian data in general position."""
    X = np.random.default_rng(seed).standard_normal((n, d))
    return Problem(f"random {n} x {d}", X, targets_for(loss, n, seed + 1), loss)


def strike() -> None:
    """Press Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


class Interrupting(Squared):
    """The squared loss, which presses Ctrl-C at a given call of its gradient or of its prox."""

    def __init__(self, calls: int) -> None:
        object.__setattr__(self, "left", [calls])

    def _count(self) -> None:
        self.left[0] -= 1
        if self.left[0] == 0:
            raise KeyboardInterrupt

    def gradient(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        self._count()
        return super().gradient(f, y)

    def prox(self, z: np.ndarray, y: np.ndarray, step: float) -> np.ndarray:
        self._count()
        return super().prox(z, y, step)

    def __repr__(self) -> str:
        return "interrupting"


def random_problems(seeds: int = 2) -> list[Problem]:
    """For each loss and seed ten problems, n from 4 to 12 and d from 1 to 3."""
    shapes = [(4, 1), (12, 1), (7, 2), (10, 2), (5, 3), (12, 2), (9, 1), (6, 3), (8, 2), (8, 3)]
    return [random_problem(loss, *shapes[k % 10], seed=k) for loss in LOSSES for k in range(10 * seeds)]


def wide(samples: int) -> np.ndarray:
    """Data of rank n - 1."""
    return np.random.default_rng(samples).standard_normal((samples, samples + 2))


def grid(side: int, dimension: int) -> np.ndarray:
    """The points of {0, ..., side - 1}^dimension."""
    return np.stack(np.meshgrid(*[np.arange(float(side))] * dimension), axis=-1).reshape(-1, dimension)


def degenerate_data() -> dict[str, np.ndarray]:
    """Data that break what holds in general position."""
    X = np.random.default_rng(5).standard_normal((7, 2))
    return {
        "duplicate rows": np.vstack([X[:4], X[:3]]),
        "lattice with ties": np.delete(grid(3, 2), [4, 7], axis=0),
        "integers, one feature": np.array([[0.0], [0.0], [1.0], [1.0], [1.0], [3.0]]),
        "collinear columns": np.column_stack([X[:, 0], -2.0 * X[:, 0], 1.0 + X[:, 0] / 3.0]),
        "constant column": np.column_stack([X[:, 0], np.full(7, 0.1), X[:, 1]]),
        "more features than samples": np.random.default_rng(6).standard_normal((5, 9)),
        "one feature": X[:, :1],
        "two samples": X[:2],
        "large mean": X + 1e6,
    }


def degenerate_problems() -> list[Problem]:
    """Every degenerate data set with every loss, and degenerate targets on data in general position."""
    problems = [Problem(name, X, targets_for(loss, len(X), 3), loss) for name, X in degenerate_data().items() for loss in LOSSES]
    X = np.random.default_rng(7).standard_normal((6, 2))
    targets = {"constant targets": np.full(6, 2.5), "negative targets": -np.arange(1.0, 7.0), "zero targets": np.zeros(6)}
    problems += [Problem(name, X, y, loss) for name, y in targets.items() for loss in LOSSES[:2]]
    return problems + [Problem("all labels +1", X, np.ones(6), loss) for loss in LOSSES[2:]]


def lattices(samples: int, features: int) -> st.SearchStrategy[np.ndarray]:
    """Integer data up to that size with ties, duplicates and rank deficiency in plenty; at least one column varies."""
    shapes = st.tuples(st.integers(2, samples), st.integers(1, features))
    data = shapes.flatmap(lambda shape: arrays(np.float64, shape, elements=st.integers(-2, 2).map(float)))
    return data.filter(lambda X: bool(np.ptp(X, axis=0).any()))


def listed_price(basis: np.ndarray, v: np.ndarray) -> Price:
    """h(V) by projections on all cones, one by one, for V of shape (n,)."""
    return price_arrangements(basis, v, enumerate_arrangements(basis).active)


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A basis of up to 12 samples and 3 features, and a dual point."""
    generator = np.random.default_rng(seed)
    n, d = int(generator.integers(4, 13)), int(generator.integers(1, 4))
    return whiten(generator.standard_normal((n, d))).basis, generator.standard_normal(n)


def needle() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A basis, V and a direction: one outlier gives a thin cell with the only high price, and the direction is far away from it."""
    generator = np.random.default_rng(2)
    basis = whiten(np.concatenate([generator.standard_normal((60, 2)), [[1e4, 1e4]]])).basis
    v = np.full(61, -0.2)
    v[-1] = 5.0
    return basis, v, -basis[-1] / np.linalg.norm(basis[-1])


def spoilt(kind: str, dual: np.ndarray, seed: int) -> np.ndarray:
    """A good dual point spoilt in one way or another."""
    noise = np.random.default_rng(seed).standard_normal(dual.shape)
    kinds = {
        "zero": 0.0 * dual,
        "random": noise,
        "wrong sign": -dual,
        "stretched": 1e3 * dual,
        "huge": 1e100 * noise,
        "tiny": 1e-300 * noise,
        "one entry": np.where(np.arange(dual.size).reshape(dual.shape) == seed % dual.size, 1e9, dual),
    }
    return kinds[kind]


def program_of(problem: Problem, fraction: float = 0.1) -> tuple[Whitening, Program]:
    """The program over all arrangements with beta a fraction of beta_max, or 1 where the zero network is optimal for every beta."""
    whitening = whiten(problem.X)
    arrangements = enumerate_arrangements(whitening.basis)
    pull = -problem.loss.gradient(np.zeros(len(problem.y)), problem.y)
    beta = fraction * price_dual(whitening.basis, pull, arrangements).upper or 1.0
    return whitening, Program(whitening.basis, problem.y, problem.loss, beta, arrangements)


def random_network(X: np.ndarray, seed: int, size: float = 1.0, width: int = 4, outputs: int = 1) -> Network:
    """A few random neurons."""
    generator = np.random.default_rng(seed)
    weights, values = generator.standard_normal((width, X.shape[1])), size * generator.standard_normal((width, outputs))
    gain, shift = generator.standard_normal((2, width))
    return Network(weights, np.zeros(width), np.ones(width), gain, shift, values, len(X)).on(X)


def zero_network(X: np.ndarray, outputs: int = 1) -> Network:
    """No neurons."""
    whitening = whiten(X)
    return recover(whitening, np.zeros((0, whitening.rank + 1)), np.zeros((0, outputs)))


def raw_loss(loss: Loss, f: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The loss summed over samples (the last axis), written again from the definitions; softmax has its classes on the axis before."""
    match loss:
        case Squared():
            return 0.5 * ((f - y) ** 2).sum(-1)
        case Huber(delta=delta):
            return functional.huber_loss(f, y.expand_as(f), reduction="none", delta=delta).sum(-1)
        case Logistic():
            return functional.softplus(-y * f, threshold=700.0).sum(-1)
        case Softmax():
            return -(y * functional.log_softmax(f, dim=-2)).sum(-1)
        case _:
            return torch.relu(1.0 - y * f).sum(-1)


def raw_objective(
    X: torch.Tensor, y: torch.Tensor, loss: Loss, beta: float, w: torch.Tensor, g: torch.Tensor, a: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """The weight-decay objective of networks with batch normalisation: w (..., d, m); g, a (..., m); v (..., C, m); y (n, C)."""
    z = X @ w
    z = z - z.mean(dim=-2, keepdim=True)
    z = z / torch.linalg.vector_norm(z, dim=-2, keepdim=True)
    hidden = torch.relu(g.unsqueeze(-2) * z + a.unsqueeze(-2) / len(X) ** 0.5)
    f = v @ hidden.mT
    decay = (g**2 + a**2).sum(-1) + (v**2).sum((-2, -1))
    return raw_loss(loss, f, y.mT).sum(-1) + 0.5 * beta * decay


def objective_of(network: Network, problem: Problem, beta: float) -> float:
    """The objective of a network on the raw data, from its weights, gains, shifts and outputs alone."""
    y = problem.y.reshape(len(problem.y), -1)
    arrays = problem.X, y, network.weights.T, network.gain, network.shift, network.outputs.T
    X, y, w, g, a, v = (torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float64) for array in arrays)
    return float(raw_objective(X, y, problem.loss, beta, w, g, a, v))


def objective_after(solution: Solution, whitening: Whitening, problem: Problem, beta: float) -> float:
    """The objective, on the raw data, of the network that is recovered from a solution."""
    return objective_of(recover(whitening, solution.directions, solution.outputs), problem, beta)


def best_of_lbfgs(
    X: np.ndarray, y: np.ndarray, loss: Loss, beta: float, width: int, starts: int, seed: int, iterations: int = 700
) -> float:
    """The lowest objective that L-BFGS reaches from random starts, all of them at once, on the network itself.

    Iterations cost time, starts hardly any: where digits don't count, many starts and few iterations find more.
    """
    data, targets = (torch.as_tensor(array, dtype=torch.float64) for array in (X, y.reshape(len(y), -1)))
    d = X.shape[1]
    parts = (d, 1, 1, targets.shape[1])
    best = np.inf

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        parameters = torch.tensor(flat.reshape(starts, sum(parts), width), requires_grad=True)
        w, g, a, v = parameters.split(parts, dim=1)
        values = raw_objective(data, targets, loss, beta, w, g[:, 0], a[:, 0], v)
        (slope,) = torch.autograd.grad(values.sum(), parameters)
        best = min(best, values.min().item())
        return values.sum().item(), slope.numpy().ravel()

    start = np.random.default_rng(seed).standard_normal(starts * sum(parts) * width)
    minimize(
        evaluate, start, jac=True, method="L-BFGS-B", options={"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 20, "ftol": 1e-13}
    )
    return best


def optimum_of(program: Program) -> float:
    """The optimum of the convex program, written densely as in the paper and solved by Clarabel."""
    active, loss, y = program.active, program.loss, program.y
    s, t = (cp.Variable((len(active), program.basis.shape[1])) for _ in range(2))
    rows = cp.sum(cp.multiply(active.T, program.basis @ (s - t).T), axis=1)
    f = program.pooling.pool(np.eye(len(program.basis))) @ rows
    expressions = {
        "squared": lambda: cp.sum_squares(f - y) / 2,
        "huber": lambda: cp.sum(cp.huber(f - y, getattr(loss, "delta", 1.0))) / 2,
        "logistic": lambda: cp.sum(cp.logistic(-cp.multiply(y, f))),
        "hinge": lambda: cp.sum(cp.pos(1 - cp.multiply(y, f))),
    }
    penalty = cp.sum(cp.norm(s, axis=1)) + cp.sum(cp.norm(t, axis=1))
    cones = [cp.multiply(2 * active - 1, x @ program.basis.T) >= 0 for x in (s, t)]
    problem = cp.Problem(cp.Minimize(expressions[loss.name]() + program.beta * penalty), cones)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 1e-9 on exponential cones may end "inaccurate"; the comparison tells if it is
        return float(problem.solve(solver="CLARABEL", tol_gap_rel=1e-9, tol_gap_abs=1e-9, tol_feas=1e-9))
