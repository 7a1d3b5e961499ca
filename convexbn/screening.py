"""Gap-safe screening: arrangements that carry no weight at any optimum, known before the optimum is."""

from __future__ import annotations

import numpy as np

from convexbn.losses import Loss

MARGIN = 1e-9  # of beta, for rounding


def safe_radius(loss: Loss, gap: float) -> float:
    """How far the optimal dual point is at most from a feasible one: sqrt(2 kappa gap), kappa the Lipschitz constant of grad L.

    L* is strongly convex with 1/kappa, so the dual objective -L*(-V) falls below its maximum at V* by at least ||V - V*||^2 / (2 kappa),
    and the gap of V to any primal objective is no smaller. So an arrangement whose price at V is less than beta by more than the norm of
    D_i U' times the radius prices below beta at V*, and carries no weight at any optimum. For losses with kinks the radius is infinite.
    Source: Ndiaye, Fercoq, Gramfort and Salmon 2017 (gap safe rules).

    Parameters
    ----------
    loss : L
    gap : objective of any weights, minus the dual objective of the feasible point
    """
    return float(np.sqrt(2.0 * loss.smoothness * max(gap, 0.0))) if np.isfinite(loss.smoothness) else np.inf
