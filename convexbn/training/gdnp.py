"""GDNP, gradient descent in normalised parameters: steps of the direction, an exact length after each."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convexbn.training.halfspaces import Line, Risk
from convexbn.training.rayleigh import RayleighQuotient, check_direction
from convexbn.validation import FloatArray, InputError, check_count, check_positive

# Below this g h counts as 0: the gradient in w vanishes with it, and the direction stays.
SMALLEST_PRODUCT = 1e-200


class LengthStatus(enum.Enum):
    """How the search for the length along a direction ended; the value is the advice."""

    BOUNDED = "the risk is stationary at a bounded length"
    UNBOUNDED = (
        "the risk falls up to the largest length that was tried: the direction separates the data, or the activation has no best "
        "length, as the sigmoid on Gaussian data, or a longer one; the gradient shrinks because the weights grow. Take softplus or "
        "a squared sigmoid on Gaussian data, or a larger largest_length"
    )


@dataclass(frozen=True)
class Length:
    """A length g along a direction, whether the risk is stationary there, and the width of the last bracket."""

    value: float
    status: LengthStatus
    width: float


@dataclass(frozen=True)
class GDNPRun:
    """A run of GDNP of T direction steps.

    Attributes
    ----------
    direction : (d,) w with ||w||_S = 1
    length : g; the normalised weights are g w
    status : of the last search for a length
    values : (T + 1,) the risk at the start and after each step
    gaps : (T + 1,) rho(w_t) - rho*, the distance of the direction from that of S^{-1} u
    bounds : (T + 1,) (1 - mu/L)^{2t} gap of the start, which `gaps` doesn't pass with adaptive steps where the data are Gaussian
    gradients : (T + 1,) v^T S^{-1} v of the gradient v, a square
    factors : (T + 1,) c_1
    lengths : (T + 1,) the g_t
    unbounded : how many of the T + 1 searches found no bounded length
    """

    direction: FloatArray
    length: float
    status: LengthStatus
    values: FloatArray
    gaps: FloatArray
    bounds: FloatArray
    gradients: FloatArray
    factors: FloatArray
    lengths: FloatArray
    unbounded: int

    @property
    def weights(self) -> FloatArray:
        """The normalised weights g w, shape (d,)."""
        return self.length * self.direction


def best_length(line: Line, *, halvings: int = 50, largest: float = 256.0) -> Length:
    """A root g of the derivative of f(g w), downhill from g = 0: the first change of sign among 1, 2, 4, ..., then bisection.

    Parameters
    ----------
    line : f along a direction with ||w||_S = 1, so that g is the deviation of the pre-activations, and needs no unit
    halvings : T_s of the bracket; |f'(g)| is at most sup|f''| times its last width
    largest : where the search for a bracket ends; the answer then is this length, and UNBOUNDED
    """
    downhill = -np.sign(line.slope(0.0))
    if downhill == 0.0:
        return Length(0.0, LengthStatus.BOUNDED, 0.0)
    near, far = 0.0, 1.0
    while downhill * line.slope(downhill * far) < 0.0:
        if far >= largest:
            return Length(float(downhill * far), LengthStatus.UNBOUNDED, np.inf)
        near, far = far, min(2.0 * far, largest)
    for _ in range(halvings):
        middle = 0.5 * (near + far)
        near, far = (middle, far) if downhill * line.slope(downhill * middle) < 0.0 else (near, middle)
    return Length(float(downhill * 0.5 * (near + far)), LengthStatus.BOUNDED, far - near)


def train_gdnp(
    risk: Risk,
    *,
    start: npt.ArrayLike | None = None,
    steps: int = 100,
    step: str = "adaptive",
    step_size: float = 1.0,
    halvings: int = 50,
    largest_length: float = 256.0,
    seed: int = 0,
) -> GDNPRun:
    """Minimise f(g w / ||w||_S) by gradient steps of the direction w and bisection of the length g.

    The adaptive step s = -||w||_S^3 / (L g h), h = (u^T w) c_1, undoes the scalar by which the gradient in w of Gaussian data
    differs from that of rho(w) = -(u^T w)^2 / (w^T S w). The direction then takes the steps of `rayleigh_descent`, whatever
    the activation is, and with the gradient v of f and mu, L the extreme eigenvalues of S,

        v^T S^{-1} v  =  c_1^2 ( rho(w_t) - rho* ) + (df/dg)^2,      rho(w_t) - rho*  <=  (1 - mu/L)^{2t} ( rho(w_0) - rho* ).

    It is a rate towards a critical point, which need not be a good minimum. On a sample the gradient has a third part and the
    bound is a guide only.

    Parameters
    ----------
    risk : f, from `gaussian_halfspaces`, `empirical_halfspaces` or a unit of a `GaussianNetwork`
    start : (d,) w_0 with u^T w_0 != 0; None draws one from the standard normal distribution
    steps : T_d
    step : "adaptive", or "constant" for s = step_size / L at ||w||_S = 1
    step_size : of constant steps; it needs no unit of x
    halvings : T_s, of each bisection
    largest_length : where the search for a length gives up; see `LengthStatus`
    seed : of the start

    Raises
    ------
    InputError
        For unusable arguments.

    Source: Kohler et al. 2019, algorithm 1 and theorem 2; formulas, h and constants are derived anew.
    """
    if step not in ("adaptive", "constant"):
        raise InputError(f'step = {step!r} is unknown: take "adaptive" or "constant"')
    quotient, size = risk.quotient, check_positive(step_size, "step_size")
    check_count(halvings, "halvings")
    check_positive(largest_length, "largest_length")
    if start is None:
        start = np.random.default_rng(check_count(seed, "seed", 0)).standard_normal(len(quotient.mean))
    w = quotient.normalised(check_direction(quotient, start))
    visited = [_visit(risk, w, halvings, largest_length)]
    for _ in range(check_count(steps, "steps", 0)):
        w = _moved(visited[-1], quotient, size if step == "constant" else None)
        visited.append(_visit(risk, w, halvings, largest_length))
    return _run(quotient, visited)


@dataclass(frozen=True)
class _Visit:
    """A direction with its best length, and what the risk is there."""

    direction: FloatArray
    length: Length
    value: float
    factor: float
    gradient: FloatArray


def _visit(risk: Risk, w: FloatArray, halvings: int, largest: float) -> _Visit:
    line = risk.line(w)
    length = best_length(line, halvings=halvings, largest=largest)
    g = length.value
    return _Visit(w, length, line.value(g), line.factor(g), risk.gradient(g * w))


def _moved(here: _Visit, quotient: RayleighQuotient, size: float | None) -> FloatArray:
    """The direction after one step along grad_w f = g (v - (w^T v) S w), ||w||_S = 1; it stays where the adaptive step is infinite."""
    w, g = here.direction, here.length.value
    scale = size / quotient.largest if size is not None else _adaptive(quotient, g * float(quotient.mean @ w) * here.factor)
    gradient = g * (here.gradient - float(w @ here.gradient) * (quotient.covariance @ w))
    return quotient.normalised(w - scale * gradient)


def _adaptive(quotient: RayleighQuotient, product: float) -> float:
    """s = -1 / (L g h), from g h; 0 where that is 0 or so small that s overflows."""
    return -1.0 / (quotient.largest * product) if abs(product) > SMALLEST_PRODUCT else 0.0


def _run(quotient: RayleighQuotient, visited: list[_Visit]) -> GDNPRun:
    last = visited[-1]
    gaps = np.array([quotient.gap(visit.direction) for visit in visited])
    return GDNPRun(
        direction=last.direction,
        length=last.length.value,
        status=last.length.status,
        values=np.array([visit.value for visit in visited]),
        gaps=gaps,
        bounds=quotient.bound(float(gaps[0]), len(visited) - 1),
        gradients=np.array([quotient.dual_square(visit.gradient) for visit in visited]),
        factors=np.array([visit.factor for visit in visited]),
        lengths=np.array([visit.length.value for visit in visited]),
        unbounded=sum(visit.length.status is LengthStatus.UNBOUNDED for visit in visited),
    )
