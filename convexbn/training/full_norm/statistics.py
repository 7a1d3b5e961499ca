"""Exact statistics and adjoints of a network with normalised layers, in the memory of one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convexbn.training.full_norm.layers import FullNorm, all_but_channels
from convexbn.validation import InputError

# Inputs and targets, as a `DataLoader` yields them; run through several times.
Batches = Iterable[tuple[Tensor, Tensor]]
# (outputs, targets) to the mean over the samples.
MeanLoss = Callable[[Tensor, Tensor], Tensor]


def set_exact_statistics(model: nn.Module, batches: Batches, loss: MeanLoss | None = None) -> None:
    """Set m = mean_D h and v = mean_D (h - m)^2 of every normalised layer over all samples D; with a loss, also the adjoints.

    The statistics of a layer are exact once those below it are, and its adjoints once those above it are: each takes as many
    passes over the data as layers follow one another, and one more that finds nothing changed.

    Use it before training (the moving averages start right), after it (the network that F_FN is about), and after loading a
    checkpoint, which holds no adjoints. In distributed training every process is to run through all samples.

    Parameters
    ----------
    model : with `BatchNorm` or `FullNorm` layers, each used once; everything else it does in eval mode (no dropout)
    batches : the N samples as pairs of inputs and targets, in batches of any kind; the same samples at every run through them
    loss : (outputs, targets) to the mean over the samples of a batch; adjoints need `FullNorm` layers. They are in the unit of this
        loss: if training divides its loss by a number, to accumulate gradients for instance, divide this one too

    Raises
    ------
    InputError
        If a layer has no running statistics or is used more than once, if `batches` is empty or can be run through only once,
        or if there is a loss and a layer that isn't full normalisation.
    """
    layers = normalised_layers(model)
    with evaluation(model):
        _settle_statistics(model, layers, batches)
        if loss is not None:
            settle_adjoints(model, batches, loss)


def normalised_layers(model: nn.Module) -> list[_BatchNorm]:
    """The layers with statistics, all of which have to be running ones."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
    for name, layer in layers.items():
        if layer.running_mean is None:
            raise InputError(f"model has the layer {name!r} without running statistics: make it with track_running_stats=True")
    return list(layers.values())


def checked(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, of which there has to be one at least."""
    if isinstance(batches, Iterator):
        raise InputError("batches is an iterator, which can be run through only once: pass a list or a DataLoader")
    empty = True
    for x, y in batches:
        empty = False
        yield x, y
    if empty:
        raise InputError("batches is empty: pass at least one pair of inputs and targets")


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; each module's own mode afterwards."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Statistics and adjoints afterwards as they were before."""
    buffers = [buffer for layer in normalised_layers(model) for buffer in layer.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


@contextmanager
def seen(layers: Iterable[_BatchNorm], see: Callable[[_BatchNorm, Tensor], None]) -> Iterator[None]:
    """Call `see` with each layer and its input, just before the layer works on it."""
    with ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_pre_hook(lambda layer, inputs: see(layer, inputs[0].detach()))
            stack.callback(handle.remove)
        yield


def take_statistics(layer: _BatchNorm, h: Tensor) -> None:
    """Make the mean and variance of h the layer's."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    var, mean = torch.var_mean(h.to(torch.float64), all_but_channels(h), correction=0)
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(var)


class _Moments:
    """Mean and variance of a layer's inputs, batch after batch."""

    def __init__(self) -> None:
        self.count, self.batches = 0, 0
        self.mean = self.var = torch.zeros(())

    def add(self, h: Tensor) -> None:
        """Pool with another batch, by the formula of Chan, Golub and LeVeque (1979), in which large means don't cancel."""
        var, mean = torch.var_mean(h.to(torch.float64), all_but_channels(h), correction=0)
        total = self.count + h.numel() // h.shape[1]
        old, new = self.count / total, 1.0 - self.count / total
        shift = mean - self.mean.to(mean)
        self.var = old * self.var.to(mean) + new * var + old * new * shift.square()
        self.mean = self.mean.to(mean) + new * shift
        self.count, self.batches = total, self.batches + 1


def _settle_statistics(model: nn.Module, layers: list[_BatchNorm], batches: Batches) -> None:
    """Pass over the data until nothing changes: the first pass settles the first layers, the next those that follow them.

    Where all samples are one batch, each layer can take its statistics before it works, and the first pass settles all.
    """
    if isinstance(batches, Sequence) and len(batches) == 1:
        with torch.no_grad(), seen(layers, take_statistics):
            model(batches[0][0])
    for _ in layers:
        moments = {layer: _Moments() for layer in layers}
        number = 0
        with torch.no_grad(), seen(layers, partial(_add, moments)):
            for x, _y in checked(batches):
                model(x)
                number += 1
        changed = [_set_statistics(layer, moments[layer], number) for layer in layers]
        if not any(changed):
            return


def _add(moments: dict[_BatchNorm, _Moments], layer: _BatchNorm, h: Tensor) -> None:
    moments[layer].add(h)


def _set_statistics(layer: _BatchNorm, moments: _Moments, batches: int) -> bool:
    """Set one layer's statistics, and say whether they changed. A layer that the network doesn't use keeps its own."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    if moments.batches > batches:
        raise InputError(f"model uses one and the same {type(layer).__name__} more than once: give each place a layer of its own")
    if not moments.batches:
        return False
    mean, var = moments.mean.to(layer.running_mean), moments.var.to(layer.running_var)
    changed = not (torch.equal(mean, layer.running_mean) and torch.equal(var, layer.running_var))
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(var)
    return changed


def settle_adjoints(model: nn.Module, batches: Batches, loss: MeanLoss) -> dict[str, Tensor]:
    """Pass over the data, backwards too, until no adjoint changes: the first pass settles the last layers, the next those before.

    Returns the gradient of the last pass, which is the exact one, by the names of the parameters.
    """
    layers = [layer for layer in normalised_layers(model) if isinstance(layer, FullNorm)]
    if len(layers) < len(normalised_layers(model)):
        raise InputError("model has layers of plain batch normalisation, which have no adjoints: use convert_batch_norm(model) first")
    with _observed(layers) as derivatives:
        gradient, means = _mean_gradient(model, batches, loss, derivatives)
        for _ in layers:
            changed = [_set_adjoints(layer, mean) for layer, mean in means.items()]
            if not any(changed):
                break
            gradient, means = _mean_gradient(model, batches, loss, derivatives)
    return gradient


@contextmanager
def _observed(layers: list[FullNorm]) -> Iterator[dict[FullNorm, Tensor]]:
    """Layers that add their adjoints and move no average, whatever their settings; each backward pass leaves its derivatives here."""
    settings = [(layer.momentum, layer.gradient) for layer in layers]
    derivatives: dict[FullNorm, Tensor] = {}
    try:
        for layer in layers:
            layer.training, layer.momentum, layer.gradient = True, 0.0, "adjoint"
            layer.observer = partial(derivatives.__setitem__, layer)
        yield derivatives
    finally:
        for layer, (momentum, gradient) in zip(layers, settings, strict=True):
            layer.training, layer.momentum, layer.gradient, layer.observer = False, momentum, gradient, None


def _mean_gradient(
    model: nn.Module, batches: Batches, loss: MeanLoss, derivatives: dict[FullNorm, Tensor]
) -> tuple[dict[str, Tensor], dict[FullNorm, Tensor]]:
    """One pass with the adjoints as they are: the means over the samples of the gradient and of each layer's derivatives."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradient = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    means: dict[FullNorm, Tensor] = {}
    count = 0
    for x, y in checked(batches):
        derivatives.clear()
        parts = torch.autograd.grad(loss(model(x), y), list(parameters.values()), allow_unused=True, materialize_grads=True)
        # From the mean of the samples so far to the mean with these.
        count += len(x)
        share = len(x) / count
        for name, part in zip(parameters, parts, strict=True):
            gradient[name].lerp_(part, share)
        for layer, value in derivatives.items():
            means[layer] = means.get(layer, torch.zeros_like(value)).lerp(value, share)
    return gradient, means


def _set_adjoints(layer: FullNorm, mean: Tensor) -> bool:
    """Set one layer's adjoints (2, C), and say whether they changed."""
    changed = not torch.equal(mean, torch.stack([layer.adjoint_bias, layer.adjoint_weight]))
    layer.adjoint_bias.copy_(mean[0])
    layer.adjoint_weight.copy_(mean[1])
    return changed
