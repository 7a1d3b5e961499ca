"""The objective: what every solver is judged by, in float64, from its weights and the problem alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from problems import Problem


@dataclass(frozen=True)
class Verdict:
    """The objective of some weights, the part of it that no better weights can save, and how far they break the cones.

    Attributes
    ----------
    objective : the problem's, at the weights
    violation : the largest breach of a cone, relative to the largest |B s|; 0 for gated problems
    """

    objective: float
    violation: float

    def error(self, reference: float) -> float:
        """The larger of (objective - reference) / reference, its absolute value, and the violation."""
        return max(abs(self.objective - reference) / reference, self.violation)


def judge(problem: Problem, weights: np.ndarray) -> Verdict:
    """`weights` (P, k) of a gated problem, (2, P, k) of s and s' for ReLU."""
    both = np.asarray(weights, dtype=np.float64).reshape(-1, *problem.gates.shape)
    net = both[0] - (both[1] if problem.cones else 0.0)
    f, violation, largest = np.zeros(len(problem.y)), 0.0, 1e-300
    for pattern, w, parts in zip(problem.patterns, net, both.transpose(1, 0, 2), strict=True):
        f += pattern * (problem.basis @ w)
        if problem.cones:
            images = problem.basis @ parts.T
            largest = max(largest, float(np.max(np.abs(images))))
            violation = max(violation, float(np.max(np.where(pattern[:, None], -images, images))))
    value = 0.5 * np.sum((f - problem.y) ** 2) + problem.beta * np.sum(np.linalg.norm(both, axis=-1))
    return Verdict(float(value), violation / largest)
