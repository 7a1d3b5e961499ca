"""Normalisation by the statistics of the whole data set, trained on batches of any composition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from convexbn.validation import InputError

Gradient = Literal["adjoint", "straight-through", "stop"]


class FullNorm(_BatchNorm):
    """What `FullNorm1d` and `FullNorm2d` share; see there."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    adjoint_bias: Tensor
    adjoint_weight: Tensor
    momentum: float

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        gradient: Gradient = "adjoint",
        process_group: distributed.ProcessGroup | None = None,
    ) -> None:
        if not track_running_stats:
            raise InputError("track_running_stats = False leaves full normalisation nothing to normalise by: leave it True")
        if not isinstance(momentum, int | float) or not 0.0 <= momentum <= 1.0:
            raise InputError(f"momentum = {momentum!r} is no share of a batch in an average: pass a number from 0 (frozen) to 1")
        if gradient not in get_args(Gradient):
            raise InputError(f"gradient = {gradient!r} is unknown: pass one of {', '.join(map(repr, get_args(Gradient)))}")
        super().__init__(num_features, eps, momentum, affine, True, device, dtype)
        self.gradient = gradient
        self.process_group = process_group
        self.observer: Callable[[Tensor], None] | None = None  # is told the derivatives (2, C) of every backward pass
        # Not in the state dict, which is thereby the one of BatchNorm.
        self.register_buffer("adjoint_bias", torch.zeros_like(self.running_mean), persistent=False)
        self.register_buffer("adjoint_weight", torch.zeros_like(self.running_mean), persistent=False)

    def reset_running_stats(self) -> None:
        """Mean 0 and variance 1, as in BatchNorm, and adjoints 0."""
        super().reset_running_stats()
        if hasattr(self, "adjoint_weight"):  # not yet, when the base class fills its own buffers
            self.adjoint_bias.zero_()
            self.adjoint_weight.zero_()

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input`, (N, C) or (N, C, ...), by the tracked statistics; in training the batch joins them first."""
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        if not self.training:
            return super().forward(input)
        if self.momentum > 0.0:
            self._track_statistics(input)
        output: Tensor = _Normalise.apply(input, self.weight, self.bias, self)  # type: ignore[no-untyped-call]
        return output

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        return f"{super().extra_repr()}, gradient={self.gradient!r}"  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _track_statistics(self, h: Tensor) -> None:
        """Mean and variance of a mixture, (1 - a) parts the data so far and a parts this batch."""
        a = self.momentum
        var, mean = torch.var_mean(h.to(self.running_mean.dtype), all_but_channels(h), correction=0)
        if self._processes() > 1:
            # In float64, as the variance of all processes' samples comes from a difference here.
            mean = mean.double()
            mean, square = self._mean_over_processes(torch.stack([mean, var + mean.square()]))
            var = square - mean.square()
        shift = mean.to(self.running_mean) - self.running_mean
        self.running_mean.add_(shift, alpha=a)
        self.running_var.lerp_(var.to(self.running_var) + (1.0 - a) * shift.square(), a)
        self.num_batches_tracked.add_(1)

    def adjoints(self, derivatives: Tensor) -> Tensor:
        """The adjoints (2, C) that a backward pass uses, which join the derivatives (2, C) of its batch first."""
        if self.observer is not None:
            self.observer(derivatives)
        if self.gradient == "straight-through":
            return derivatives
        buffers = (self.adjoint_bias, self.adjoint_weight)
        if self.momentum > 0.0:
            derivatives = self._mean_over_processes(derivatives.clone())
            # After an overflow in float16 a gradient scaler skips the step; infinity would stay in a channel's average for good.
            share = self.momentum * derivatives.isfinite().all(dim=0)
            for buffer, value in zip(buffers, derivatives.nan_to_num(), strict=True):
                buffer.lerp_(value, share.to(buffer.dtype))
        return torch.stack(buffers)

    def _processes(self) -> int:
        """How many processes train together."""
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_world_size(self.process_group)
        return 1

    def _mean_over_processes(self, values: Tensor) -> Tensor:
        """Their mean; overwrites `values`."""
        if self._processes() > 1:
            distributed.all_reduce(values, group=self.process_group)
            values /= self._processes()
        return values


class FullNorm1d(FullNorm, nn.BatchNorm1d):
    """Normalise each channel by the mean and variance of the whole data set D, and descend on the objective of that network:

        minimise   F(theta) = (1/N) sum_{i in D} loss_i( theta; m(D, theta), v(D, theta) ),
        y = gamma z + beta,   z = (h - m) / sqrt(v + eps),   m = mean_D h,   v = mean_D (h - m)^2.

    Batch normalisation trains the mean over batches B of the same with m(B, theta) and v(B, theta), and uses m(D, theta) and
    v(D, theta) afterwards: a different function where batches are small or made of few classes. With g = dF/dy, the gradient is

        dF/dh = gamma / sqrt(v + eps) ( g - mean_D(g) - z mean_D(g z) ).

    Batch normalisation takes these two means over the batch. Here they are adjoints, tracked by moving averages as m and v are.
    With exact averages and a = 0, the mean over an epoch of the gradients of the batches is the gradient of F, whatever the
    batches are made of, as each is linear in expectations over the data. With a > 0 a batch has the share a in its own averages,
    which keeps training stable: a = 1 is batch normalisation, and the bias falls with a.

    Parameters
    ----------
    num_features, eps, affine, device, dtype : as in `torch.nn.BatchNorm1d`
    momentum : the share a, from 0 (all averages frozen) to 1 (batch normalisation); averages follow the network 1/a steps behind
    gradient : "adjoint" as above; "straight-through" takes the batch's own means of g and g z; "stop" takes 0, for statistics that
        are constants. The last two are biased also with exact averages
    process_group : of distributed training, over which averages are taken; all processes by default

    Attributes
    ----------
    running_mean, running_var : (C,) m and v; the variance is divided by the count, not by the count - 1
    adjoint_bias, adjoint_weight : (C,) sum g and sum g z, averaged over batches, of a loss that is a mean over its batch:
        the derivatives of F in beta and gamma

    Input (N, C) or (N, C, length), from one sample on. The loss has to be a mean over samples, and each layer is to be used once.
    The state dict is that of `torch.nn.BatchNorm1d`, which computes the same in eval mode; the adjoints aren't part of it.

    Raises
    ------
    InputError
        For `track_running_stats=False`, a momentum outside of [0, 1] (None included), or an unknown gradient.

    Source: F from Lian and Liu 2019; tracked inner expectations from compositional optimisation, Wang, Fang and Liu 2017.
    """


class FullNorm2d(FullNorm, nn.BatchNorm2d):
    """`FullNorm1d` for images: input (N, C, height, width), means over N, height and width. All images are to have one size."""


class _Normalise(torch.autograd.Function):
    """y = gamma z + beta with z = (h - m) / sqrt(v + eps), and the derivatives through m and v as adjoints.

    The adjoints cost no pass, as sum g and sum g z of the batch are the gradients of beta and gamma.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor | None, bias: Tensor | None, layer: FullNorm) -> Tensor:
        # Copies, as the buffers may move on before the backward pass.
        mean, var = layer.running_mean.clone(), layer.running_var.clone()
        ctx.save_for_backward(h, weight, mean, var)
        ctx.layer = layer
        return nn.functional.batch_norm(h, mean, var, weight, bias, training=False, momentum=0.0, eps=layer.eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        h, weight, mean, var = ctx.saved_tensors
        layer: FullNorm = ctx.layer
        of_input, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, h, weight, mean, var, None, None, False, layer.eps, [True, True, True]
        )
        if layer.gradient != "stop":
            shape, inverse = (1, -1, *[1] * (h.dim() - 2)), (var + layer.eps).rsqrt()
            scale = inverse if weight is None else inverse * weight
            means = layer.adjoints(torch.stack([of_bias, of_weight])) * (scale * h.shape[1] / h.numel())
            through_statistics = (h - mean.view(shape)).mul_((means[1] * inverse).view(shape)).add_(means[0].view(shape))
            of_input = torch.sub(of_input, through_statistics, out=through_statistics).to(h.dtype)
        needs = ctx.needs_input_grad
        return of_input, of_weight if needs[1] else None, of_bias if needs[2] else None, None


def all_but_channels(h: Tensor) -> list[int]:
    """The axes over which h (N, C, ...) is averaged."""
    return [0, *range(2, h.dim())]
