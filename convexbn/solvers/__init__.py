"""One file a method; each is a frozen record of settings with `solve(program) -> Solution`."""

from convexbn.solvers.closed_form import ClosedForm
from convexbn.solvers.conic import Conic

__all__ = ["ClosedForm", "Conic"]
