"""The program of batch normalisation after the ReLU over listed arrangements, by a conic solver."""

from __future__ import annotations

from typing import Any

import numpy as np

from convexbn.losses import Loss, of_unit_size
from convexbn.post_bn.program import Cell
from convexbn.solution import SolverError, Status
from convexbn.solvers.conic import Conic, loss_expression
from convexbn.validation import FloatArray

Neurons = tuple[FloatArray, FloatArray, FloatArray]  # s (m, r) on the basis of X, t (m,), outputs (m, C)


def solve_cells(cells: tuple[Cell, ...], y: FloatArray, loss: Loss, beta: float, solver: Conic) -> tuple[Neurons, FloatArray | None]:
    """The optimum, for one output, of

        min  L( sum_i P_i (q_i - q_i') + 1/sqrt(n) sum_i (t_i - t_i'), y ) + beta sum_i ( ||(q_i; t_i)|| + ||(q_i'; t_i')|| )
        s.t.  q_i = S_i Q_i^T s_i,  E_i U s_i >= 0, and the same for s_i'.

    s_i stands for q_i and the z of the null space together, so that none has to be written down.

    Returns
    -------
    The neurons, 2 P of them with outputs 1 and -1, and the solver's dual point or None.

    Raises
    ------
    SolverError
        Where no attempt of the solver ends usably.
    """
    import cvxpy as cp

    scaled = of_unit_size(y, loss, beta)
    f, variables = cp.Variable(len(y)), cp.Variable(2 * len(cells) * (cells[0].cone.shape[1] + 1))
    penalty, constraints = _formulate(cp, cells, f, variables)
    problem = cp.Problem(cp.Minimize(loss_expression(cp, scaled, f) + scaled.beta * penalty), constraints)
    status = Status.NUMERICAL
    for status in solver.attempts(problem):
        if status is Status.OPTIMAL:
            break
    if variables.value is None or status not in solver.accept:
        raise SolverError(f"{solver.name}: {status.value} (it said {problem.status!r})", status)
    found = scaled.unit * variables.value.reshape(2 * len(cells), -1)
    dual = None if constraints[0].dual_value is None else scaled.unit * constraints[0].dual_value
    return (found[:, :-1], found[:, -1], np.repeat([[1.0], [-1.0]], len(cells), axis=0)), dual


def _formulate(cp: Any, cells: tuple[Cell, ...], f: Any, variables: Any) -> tuple[Any, list[Any]]:
    """The sum of norms, and the constraints, the first of which ties f to the variables (s_i; t_i)."""
    from scipy import sparse

    images, norms, cones = zip(*map(_block, cells), strict=True)
    forward = sparse.csr_array(np.hstack([*images, *(-image for image in images)]))
    sizes = cp.Variable(2 * len(cells))
    lengths = cp.reshape(sparse.block_diag(norms * 2, format="csr") @ variables, (len(norms[0]), sizes.size), order="F")
    inside = sparse.block_diag(cones * 2, format="csr") @ variables >= 0
    return cp.sum(sizes), [f == forward @ variables, inside, cp.SOC(sizes, lengths, axis=0)]


def _block(cell: Cell) -> tuple[FloatArray, FloatArray, FloatArray]:
    """For (s; t) of one cell: its hidden column, (q; t) filled up with zeros to r + 1 entries, and the cone constraints."""
    n, r = cell.cone.shape
    image = np.column_stack([cell.hidden @ cell.visible, np.full(n, 1.0 / np.sqrt(n))])
    norm = np.zeros((r + 1, r + 1))
    norm[: len(cell.visible), :r] = cell.visible
    norm[r, r] = 1.0
    return image, norm, np.column_stack([cell.cone, np.zeros(n)])
