"""What batch normalisation and full normalisation minimise, and the exact gradient of the latter, in the memory of one batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convexbn.training.full_norm.statistics import (
    Batches,
    MeanLoss,
    checked,
    evaluation,
    normalised_layers,
    seen,
    set_exact_statistics,
    settle_adjoints,
    take_statistics,
    unchanged,
)


def batch_norm_objective(model: nn.Module, batches: Batches, loss: MeanLoss) -> float:
    """What SGD with batch normalisation minimises, a mean over batches B that depends on how they are made:

        F_BN(theta) = sum_B |B|/N loss_B( theta; m(B, theta), v(B, theta) ).

    Parameters
    ----------
    model : with `BatchNorm` or `FullNorm` layers, which take each batch's statistics; everything else it does in eval mode
    batches : the partition of the N samples, as pairs of inputs and targets
    loss : (outputs, targets) to the mean over the samples of a batch

    Returns
    -------
    F_BN, in the unit of the loss. The model stays as it is. A batch of one sample is allowed; the normalised values of a
    `BatchNorm1d` layer are then 0, as each is its own mean.

    Raises
    ------
    InputError
        If a layer has no running statistics, or `batches` is empty or can be run through only once.

    Source: Lian and Liu 2019.
    """
    total = count = 0.0
    with unchanged(model), evaluation(model), torch.no_grad(), seen(normalised_layers(model), take_statistics):
        for x, y in checked(batches):
            total += len(x) * float(loss(model(x), y))
            count += len(x)
    return total / count


def full_norm_objective(model: nn.Module, batches: Batches, loss: MeanLoss) -> float:
    """What full normalisation minimises: the mean loss of the network with the exact statistics of all samples D,

        F_FN(theta) = (1/N) sum_{i in D} loss_i( theta; m(D, theta), v(D, theta) ).

    It is F_BN of the one batch D, and the same for every partition into batches, which only says how much fits in memory.
    Parameters, returned number and errors are those of `batch_norm_objective`; a layer that is used more than once is an error too.

    Source: Lian and Liu 2019.
    """
    total = count = 0.0
    with unchanged(model), evaluation(model), torch.no_grad():
        set_exact_statistics(model, batches)
        for x, y in checked(batches):
            total += len(x) * float(loss(model(x), y))
            count += len(x)
    return total / count


def full_norm_gradient(model: nn.Module, batches: Batches, loss: MeanLoss) -> dict[str, Tensor]:
    """The exact gradient of F_FN: of the network with batch normalisation over all samples, in the memory of one batch.

    Parameters
    ----------
    model : whose normalised layers are all `FullNorm`, with any `gradient` setting
    batches, loss : as in `full_norm_objective`

    Returns
    -------
    The derivative of F_FN in each parameter that requires one, by its name. The model stays as it is, `grad` included.

    Raises
    ------
    InputError
        As in `set_exact_statistics` with a loss.

    Source: the adjoint equations of `FullNorm1d`, solved by passes over the data.
    """
    with unchanged(model), evaluation(model):
        set_exact_statistics(model, batches)
        return settle_adjoints(model, batches, loss)
