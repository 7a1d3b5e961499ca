"""Whole models from batch normalisation to full normalisation."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from convexbn.training.full_norm.layers import FullNorm, FullNorm1d, FullNorm2d, Gradient
from convexbn.validation import InputError

LAYERS: dict[type[nn.Module], type[FullNorm]] = {nn.BatchNorm1d: FullNorm1d, nn.BatchNorm2d: FullNorm2d}


def convert_batch_norm(model: nn.Module, *, momentum: float | None = None, gradient: Gradient = "adjoint") -> nn.Module:
    """Replace every `BatchNorm1d` and `BatchNorm2d` of a model by the `FullNorm1d` or `FullNorm2d` with its parameters and statistics.

    In eval mode the result computes what the model computed, to the last bit. It shares the parameters with the model, so that an
    optimiser made before stays valid, and layers inside of a model are replaced in place, as by PyTorch's
    `SyncBatchNorm.convert_sync_batchnorm`. Layers that are full normalisation already stay as they are.

    Parameters
    ----------
    model : any module, or a single layer
    momentum : rate of the moving averages; by default that of each layer
    gradient : "adjoint", "straight-through" or "stop", see `FullNorm1d`

    Returns
    -------
    The model, or a new layer if the model is a single one.

    Raises
    ------
    InputError
        For batch normalisation of another kind (three dimensions, synchronised, lazy), without running statistics, or whose
        momentum is None, as a cumulative average never forgets the statistics of old weights.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, FullNorm):
            _check(name or "model", layer)
    replaced: dict[nn.Module, nn.Module] = {}
    return _convert(model, momentum, gradient, replaced)


def _check(name: str, layer: _BatchNorm) -> None:
    """Refuse what has no counterpart before anything is replaced."""
    if type(layer) not in LAYERS:
        kinds = " and ".join(kind.__name__ for kind in LAYERS)
        raise InputError(f"model has the layer {name!r} of type {type(layer).__name__}: only {kinds} can be converted")
    if layer.running_mean is None:
        raise InputError(f"model has the layer {name!r} without running statistics: make it with track_running_stats=True")


def _convert(module: nn.Module, momentum: float | None, gradient: Gradient, replaced: dict[nn.Module, nn.Module]) -> nn.Module:
    """Depth first; a layer that is used in two places stays one."""
    if module in replaced:
        return replaced[module]
    replaced[module] = module
    if type(module) in LAYERS:
        assert isinstance(module, _BatchNorm)
        replaced[module] = _full_norm(module, momentum, gradient)
    for name, child in list(module._modules.items()):
        if child is not None:
            setattr(module, name, _convert(child, momentum, gradient, replaced))
    return replaced[module]


def _full_norm(layer: _BatchNorm, momentum: float | None, gradient: Gradient) -> FullNorm:
    """One layer, which takes over parameters, buffers and mode."""
    assert layer.running_mean is not None
    rate = layer.momentum if momentum is None else momentum
    place = {"device": layer.running_mean.device, "dtype": layer.running_mean.dtype}
    full = LAYERS[type(layer)](layer.num_features, layer.eps, rate, layer.affine, gradient=gradient, **place)  # type: ignore[arg-type]
    full.weight, full.bias = layer.weight, layer.bias
    for name, buffer in layer.named_buffers(recurse=False):
        setattr(full, name, buffer)
    full.train(layer.training)
    return full
