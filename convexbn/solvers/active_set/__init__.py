"""The active-set solver for programs over listed arrangements."""

from convexbn.solvers.active_set.solver import ActiveSet

__all__ = ["ActiveSet"]
