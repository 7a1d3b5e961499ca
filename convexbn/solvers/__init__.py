"""One file or folder a method; each is a frozen record of settings with `solve(program) -> Solution`."""

from convexbn.solvers.active_set import ActiveSet
from convexbn.solvers.closed_form import ClosedForm, obstacle, shrink
from convexbn.solvers.conic import Conic
from convexbn.solvers.sliding import SlidingFrankWolfe

__all__ = ["ActiveSet", "ClosedForm", "Conic", "SlidingFrankWolfe", "obstacle", "shrink"]
