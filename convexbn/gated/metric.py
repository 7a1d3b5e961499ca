"""The metric of the gated solver: what all arrangements have in common is stiff, and is taken out of the step size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from convexbn.gated.penalties import Penalty, Slope
from convexbn.shards import Shards
from convexbn.solvers.pooled import Operator

if TYPE_CHECKING:
    import torch

NEWTON, CONJUGATE = 30, 60  # at most so many steps of either
ACCURACY = 3e-2  # of the multiplier of a step
FIRST_REST = 2.0  # of b, in units of the squared norm of a block: for Gaussian gates on an orthonormal basis it ends between 3 and 6
FLATTEST = 1e-4  # of the largest curvature


@dataclass(frozen=True, eq=False)
class Metric:
    """M = b I + W diag(h) W^T, W^T W = I, close to A^T A from above, in which a proximal step is still cheap.

    A^T A of P arrangements has r+2 eigenvalues near P/4 or P/6, and all others are some fifteen times smaller, for Gaussian gates
    on an orthonormal basis. The large ones belong to weights that all arrangements share, S_i = s, and to weights along the
    gates, S_i = a g_i: the same features, seen through all masks. With W spanning those, b is as small as the rest allows.

    A proximal step min <G, S - Y> + ||S - Y||_M^2 / 2 + beta sum_i ||S_i|| is S = prox(Y - (G + W l)/b), with l (r+2, C) the root of
    the monotone map l/h - W^T (S(l) - Y), found by Newton's method with conjugate gradients: no sample takes part in it.

    Attributes
    ----------
    along : (P, r+1) g_i, of unit length
    mix : (r+2, q) brings W's columns [I; g_i^T] to orthonormal ones that diagonalise; in float64, as TF32 would leave Newton's method
        no digits to converge to
    curvature : (q,) h
    rest : b
    shards : the arrangements of other processes
    """

    along: torch.Tensor
    mix: torch.Tensor
    curvature: torch.Tensor
    rest: float
    shards: Shards

    def read(self, sums: torch.Tensor) -> torch.Tensor:
        """W^T S, shape (q, C), of the `sums` of weights S over all arrangements."""
        return (self.mix.T @ sums.double()).to(sums.dtype)

    def sums(self, weights: torch.Tensor) -> torch.Tensor:
        """(r+2, C) the sums of S_i and of g_i^T S_i over all arrangements, of weights (P, r+1, C)."""
        return self.shards.over_arrangements(self._part(weights))

    def _part(self, weights: torch.Tensor) -> torch.Tensor:
        """The sums over the arrangements of this process."""
        import torch

        return torch.cat([weights.sum(0), (self.along[:, :, None] * weights).sum((0, 1))[None]])

    def spread(self, multiplier: torch.Tensor) -> torch.Tensor:
        """W l, shape (P, r+1, C), of l (q, C)."""
        both = (self.mix @ multiplier.double()).to(multiplier.dtype)
        return both[:-1] + self.along[:, :, None] * both[-1]

    def products(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """What this process knows of <S, M S> and <S, M T>: once it is summed over arrangements, `inners` reads them."""
        import torch

        return torch.cat([self._part(one).flatten(), self._part(other).flatten(), (one * one).sum()[None], (one * other).sum()[None]])

    def inners(self, products: torch.Tensor) -> tuple[float, float]:
        """<S, M S> and <S, M T>."""
        left, right = (self.read(sums) for sums in products[:-2].view(2, len(self.mix), -1))
        stiff = self.curvature[:, None] * left
        return float(self.rest * products[-2] + (stiff * left).sum()), float(self.rest * products[-1] + (stiff * right).sum())

    def times(self, factor: float) -> Metric:
        """The metric times a number."""
        return self if factor == 1.0 else replace(self, rest=factor * self.rest, curvature=factor * self.curvature)

    def raised(self, ratio: float) -> Metric:
        """The metric after a step whose curvature was `ratio` > 1 times what it claims: mostly b is raised, which is a guess at first."""
        import math

        return replace(
            self, rest=self.rest * min(max(1.1 * ratio, 1.15), 3.0), curvature=self.curvature * min(max(1.05, math.sqrt(ratio)), 1.5)
        )

    def step(
        self, point: torch.Tensor, sums: torch.Tensor, gradient: torch.Tensor, beta: float, penalty: Penalty, start: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The weights after a proximal step from a point whose `sums` are known, their sums, and l, looked for from `start`."""
        import torch

        multiplier, centre = start, point - gradient / self.rest
        spring = (1.0 / self.curvature)[:, None]
        target = self.read(sums)
        rounding = (8.0 * torch.finfo(point.dtype).eps) ** 2 * float((target * target / spring).sum())

        def tried(at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Slope, torch.Tensor]:
            weights, slope = penalty.prox(centre - self.spread(at) / self.rest, beta / self.rest)
            after = self.sums(weights)
            return weights, after, slope, spring * at - self.read(after) + target

        weights, after, slope, rest = tried(multiplier)
        for _ in range(NEWTON):
            size = float((rest * rest / spring).sum())
            moved = float(((spring * multiplier) ** 2 / spring).sum())
            if size <= ACCURACY**2 * moved + rounding:
                break
            direction = self._newton(slope, rest, spring)
            length = 1.0
            while True:
                trial = multiplier - length * direction
                weights, after, slope, left = tried(trial)
                if length < 1e-3 or float((left * left / spring).sum()) <= (1.0 - 0.1 * length) * size:
                    break
                length *= 0.5
            multiplier, rest = trial, left
        return weights, after, multiplier

    def _newton(self, slope: Slope, residual: torch.Tensor, spring: torch.Tensor) -> torch.Tensor:
        """Conjugate gradients for (1/h + W^T J W / b) x = residual, to a tenth, preconditioned by its likely diagonal."""
        likely = spring + 0.5 / self.rest
        rest, x = residual, 0.0 * residual
        z = rest / likely
        direction, energy = z, float((rest * z).sum())
        first = energy
        for _ in range(CONJUGATE):
            if energy <= 1e-3 * first:
                break
            image = self._slope_of(slope, direction, spring)
            length = energy / float((direction * image).sum())
            x, rest = x + length * direction, rest - length * image
            z = rest / likely
            energy, before = float((rest * z).sum()), energy
            direction = z + (energy / before) * direction
        return x

    def _slope_of(self, slope: Slope, x: torch.Tensor, spring: torch.Tensor) -> torch.Tensor:
        return spring * x + self.read(self.sums(slope(self.spread(x)))) / self.rest


def common_metric(operator: Operator, gates: torch.Tensor, shards: Shards) -> Metric:
    """The metric of an operator whose arrangements have the given gates (P, r+1), in float64 for the Gram matrix of one gate alone."""
    import torch

    dtype = operator.basis.dtype
    units = gates.double() / torch.linalg.vector_norm(gates.double(), dim=1, keepdim=True)
    along = units.to(dtype)
    images = shards.over_arrangements(torch.cat([operator.total(), operator.forward(along[:, :, None])], dim=1)).double()
    curvature = shards.over_samples(images.T @ images)
    gram = shards.over_arrangements(_gram(units))
    root = torch.linalg.inv(torch.linalg.cholesky(gram)).mT
    values, vectors = torch.linalg.eigh(root.mT @ curvature @ root)
    values = values.clamp_min(FLATTEST * float(values[-1]))
    return Metric(along, root @ vectors, values.to(dtype), FIRST_REST * operator.norm**2, shards)


def _gram(along: torch.Tensor) -> torch.Tensor:
    """W^T W of W's columns [I; g_i^T], with a hair that keeps it invertible where all gates are one."""
    import torch

    count, columns = along.shape
    total = along.sum(0, keepdim=True)
    gram = torch.cat(
        [
            torch.cat([count * torch.eye(columns, device=along.device, dtype=along.dtype), total]),
            torch.cat([total.mT, total.new_full((1, 1), count)]),
        ],
        dim=1,
    )
    return gram * (1.0 + 1e-9 * torch.eye(columns + 1, device=along.device, dtype=along.dtype))
