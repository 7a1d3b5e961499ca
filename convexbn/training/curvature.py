"""How strongly the layers of a network depend on each other: norms of the off-diagonal blocks of the Hessian."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from convexbn.validation import FloatArray, InputError, check_count


def cross_dependency(
    loss: torch.Tensor, centre: torch.Tensor, others: Sequence[torch.Tensor], *, probes: int = 32, seed: int = 0
) -> FloatArray:
    """Estimates of the Frobenius norms || d^2 loss / d centre d other ||, shape (k,), one for each of the k `others`.

    H_i being the block of the Hessian with the entries of `centre` as columns, ||H_i||^2 = E ||H_i v||^2 for random signs v
    (Hutchinson). One gradient of the gradient gives H_i v for all i at once. The estimate of the square is unbiased.

    Parameters
    ----------
    loss : a scalar with its graph, twice differentiable in the parameters
    centre : the parameter v multiplies
    others : parameters; `centre` itself may be among them
    probes : random vectors v
    seed : of the v

    Raises
    ------
    InputError
        For a loss that is no scalar or has no graph. Where a parameter has no effect on the gradient, its norm is 0.

    Units: that of the loss, by those of the two parameters. A layer before batch normalisation may be rescaled at will, and its
    blocks by the inverse: ||centre|| ||other|| ||H|| is the number that doesn't depend on that.

    Source: Kohler et al. 2019, section 5, for the quantity.
    """
    if loss.dim() != 0 or not loss.requires_grad:
        raise InputError("loss is no scalar with a graph: compute it from the parameters, without no_grad, and average over samples")
    generator = torch.Generator(device=centre.device).manual_seed(check_count(seed, "seed", 0))
    (gradient,) = torch.autograd.grad(loss, centre, create_graph=True)
    squares = torch.zeros(len(others), dtype=torch.float64)
    for _ in range(check_count(probes, "probes")):
        signs = torch.randint(2, centre.shape, generator=generator, device=centre.device).to(centre.dtype) * 2.0 - 1.0
        products = torch.autograd.grad((gradient * signs).sum(), list(others), retain_graph=True, materialize_grads=True)
        squares += torch.stack([product.detach().square().sum() for product in products]).cpu().double()
    norms: FloatArray = (squares / probes).sqrt().numpy()
    return norms
