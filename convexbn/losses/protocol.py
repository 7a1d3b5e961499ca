"""What a loss is: a convex function of the predictions, with what duality needs of it."""

from __future__ import annotations

from typing import Protocol

from convexbn.validation import FloatArray


class Loss(Protocol):
    """A convex loss L(f, y) = sum_i l(f_i, y_i); predictions f and targets y are float64 arrays of one shape,
    (n,) or, for C outputs, (n, C); the sum runs over samples, and over outputs where the loss treats them one by one.

    Everything else in the package meets a loss through these members alone, so a new loss is one class here and one
    line in the conic solver (`docs/add-a-loss.md`).
    """

    @property
    def name(self) -> str:
        """The word by which `fit_convex_bn(loss=...)` finds it."""
        ...

    @property
    def smoothness(self) -> float:
        """Lipschitz constant of the gradient in f; infinity where the loss has a kink."""
        ...

    def check(self, y: FloatArray) -> FloatArray:
        """Return the targets, or raise `InputError` where the loss can't use them."""
        ...

    def value(self, f: FloatArray, y: FloatArray) -> float:
        """L(f, y)."""
        ...

    def gradient(self, f: FloatArray, y: FloatArray) -> FloatArray:
        """A (sub)gradient of L in f, of the shape of f."""
        ...

    def conjugate(self, v: FloatArray, y: FloatArray) -> float:
        """L*(v) = sup_f <v, f> - L(f, y); infinity outside its domain."""
        ...

    def conjugate_gradient(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """The gradient of L* at v in its domain: an f that attains the supremum."""
        ...

    def project(self, v: FloatArray, y: FloatArray) -> FloatArray:
        """The point nearest to v in the domain of the conjugate."""
        ...

    def prox(self, z: FloatArray, y: FloatArray, step: float) -> FloatArray:
        """The minimiser over f of L(f, y) + ||f - z||^2 / (2 step)."""
        ...

    def scale(self, y: FloatArray) -> float:
        """A natural unit of the predictions: solvers work on y / scale, so that their tolerances mean the same for all."""
        ...

    def rescaled(self, unit: float) -> Loss:
        """The loss l' with unit^2 l'(f / unit, y / unit) = l(f, y), for the unit that `scale` gave."""
        ...
