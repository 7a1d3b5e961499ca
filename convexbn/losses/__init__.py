"""The losses: convex functions L(f, y) = sum_i l(f_i, y_i) of the predictions, with what duality needs of each.

A sum over samples, never a mean: `docs/conventions.md` gives the scaling beside PyTorch's.
"""

from __future__ import annotations

from convexbn.losses.classification import Hinge, Logistic, Softmax
from convexbn.losses.protocol import Loss
from convexbn.losses.regression import Huber, Squared
from convexbn.losses.scaling import of_unit_size
from convexbn.validation import InputError

__all__ = ["LOSSES", "Hinge", "Huber", "Logistic", "Loss", "Softmax", "Squared", "get_loss", "of_unit_size"]

LOSSES: dict[str, Loss] = {loss.name: loss for loss in (Squared(), Logistic(), Hinge(), Huber(), Softmax())}


def get_loss(loss: str | Loss) -> Loss:
    """The loss of that name, or the loss itself.

    Raises
    ------
    InputError
        For a name that no loss has.
    """
    if not isinstance(loss, str):
        if isinstance(loss, type) or not hasattr(loss, "prox"):
            names = ", ".join(LOSSES)
            raise InputError(f"loss = {loss!r} is neither a name ({names}) nor a Loss: pass one of the names, or Huber(delta=0.5)")
        return loss
    if loss not in LOSSES:
        raise InputError(f"loss = {loss!r} is unknown: choose one of {', '.join(LOSSES)}, or pass a Loss such as Huber(delta=0.5)")
    return LOSSES[loss]
