"""The solvers of ReLU problems, with their cones: weights (2, P, k) of s and s' from a problem and an effort."""

from __future__ import annotations

import numpy as np
from problems import Problem, make_problem
from solvers import Contender

from convexbn import ActiveSet, Arrangements, Program, Squared
from convexbn.pricing import price_arrangements
from convexbn.solvers.active_set.blocks import blocks_of

NONZEROS = 10**7  # of the matrices that CVXPY's solvers are given
PATH = 20  # values of beta on adelie's way down: faster on M than a single one, no slower on S


def program_of(problem: Problem) -> Program:
    """The problem as convexbn takes it."""
    arrangements = Arrangements(problem.patterns, complete=False, possible=2 ** len(problem.y))
    return Program(problem.basis, problem.y, Squared(), problem.beta, arrangements)


def bounds_of(problem: Problem) -> tuple[float, float]:
    """A lower bound on the optimum, proved with a projection for each cone, and an upper one, the objective of a network."""
    program = program_of(problem)
    solution = ActiveSet(tolerance=1e-10).solve(program)
    assert solution.dual is not None
    price = price_arrangements(problem.basis, solution.dual, problem.patterns, complete=False).upper
    return program.dual_objective(solution.dual * min(1.0, problem.beta / price)), solution.trace[-1].objective


def _active_set(problem: Problem, prepared: None, rounds: float) -> np.ndarray:
    """ActiveSet, stopped after so many rounds; its neurons are sorted into their arrangements on the clock."""
    program = program_of(problem)
    solution = ActiveSet(rounds=int(rounds), tolerance=1e-10).solve(program)
    weights = np.zeros((2, *problem.gates.shape))
    sizes = solution.outputs[:, 0]
    homes = blocks_of(program).homes(solution.directions)
    np.add.at(weights, (np.where(sizes > 0, 0, 1), homes), np.abs(sizes)[:, None] * solution.directions)
    return weights


def _adelie(problem: Problem, prepared: None, effort: float) -> np.ndarray:
    """adelie with the cones as linear constraints, `tol` being the effort."""
    import adelie as ad

    n, k = problem.basis.shape
    patterns = problem.patterns
    features = ad.matrix.convex_relu(np.asfortranarray(problem.basis), np.asfortranarray(patterns.T), gated=False, n_threads=1)
    cones = [np.where(pattern, 1.0, -1.0)[:, None] * problem.basis for pattern in patterns] * 2
    state = ad.grpnet(
        features,
        ad.glm.gaussian(problem.y),
        constraints=[ad.constraint.linear(cone, np.zeros(n), np.full(n, np.inf)) for cone in cones],
        groups=k * np.arange(len(cones)),
        penalty=np.ones(len(cones)),
        lmda_path=problem.beta / n * np.geomspace(50.0, 1.0, PATH),
        tol=effort,
        intercept=False,
        early_exit=False,
        progress_bar=False,
        n_threads=1,
    )
    if len(state.lmdas) < PATH:
        raise RuntimeError(f"adelie stopped after {len(state.lmdas)} of {PATH} values of beta")
    found: np.ndarray = state.betas[-1].toarray().reshape(2, len(patterns), k)
    return found


def _written_out(problem: Problem) -> str | None:
    nonzeros = 2 * problem.basis.size * len(problem.gates)
    return f"cones of {nonzeros:.0e} nonzeros" if nonzeros > NONZEROS else None


def _conic(name: str, tolerances: tuple[str, ...]) -> Contender:
    """A cone solver on the sparse matrices that convexbn writes for CVXPY; CVXPY's own compilation would take longer."""

    def solve(problem: Problem, prepared: None, effort: float) -> np.ndarray:
        import cvxpy as cp

        from convexbn.solvers.conic import conic_matrices

        forward, cones = conic_matrices(program_of(problem))
        k = problem.basis.shape[1]
        weights, norms = cp.Variable(forward.shape[1]), cp.Variable(forward.shape[1] // k)
        constraints = [cones @ weights >= 0, cp.SOC(norms, cp.reshape(weights, (k, norms.size), order="F"), axis=0)]
        objective = 0.5 * cp.sum_squares(forward @ weights - problem.y) + problem.beta * cp.sum(norms)
        cp.Problem(cp.Minimize(objective), constraints).solve(solver=name, **dict.fromkeys(tolerances, effort))
        found: np.ndarray = weights.value.reshape(2, len(problem.gates), k)
        return found

    return Contender(lambda problem: None, solve, (1e-4, 1e-6, 1e-8), _written_out)


def _warm(problem: Problem) -> None:
    """What is imported with the first solve is not timed."""
    _active_set(make_problem("S", whitened=True, cones=True), None, 2)


RELU_CONTENDERS: dict[str, Contender] = {
    "convexbn": Contender(_warm, _active_set, tuple(range(1, 11))),
    "adelie": Contender(lambda problem: None, _adelie, 10.0 ** -np.arange(3, 11, 1.0)),
    "QOCO": _conic("QOCO", ("abstol", "reltol")),
    "Clarabel": _conic("CLARABEL", ("tol_gap_abs", "tol_gap_rel", "tol_feas")),
}
