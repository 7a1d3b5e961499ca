"""To and from PyTorch: a plain nn.Sequential that needs no convexbn to load, and the reading of such a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from convexbn.devices import need_torch
from convexbn.network import Network
from convexbn.patches import Patches
from convexbn.validation import InputError

if TYPE_CHECKING:
    import torch

# Standard deviation that exported pre-activations get by the free scale of the first layer. At 2^17 PyTorch's default
# eps = 1e-5 is below the rounding of the variance 2^34, so its weight is g / sqrt(n) and its weight decay is ours. Narrower types
# round more, so that less will do: 2^6 is within reach of float16, in which autocast multiplies.
DEVIATION, NARROW = 2.0**17, 2.0**6


def to_torch(network: Network, *, dtype: torch.dtype | None = None) -> torch.nn.Sequential:
    """Return Sequential(Linear(d, m, bias=False), BatchNorm1d(m), ReLU(), Linear(m, C, bias=False)) of the network's function, in `eval()`.

    A network on patches becomes Sequential(Conv2d, BatchNorm2d, ReLU, AdaptiveAvgPool2d, Flatten, Linear); where it sums over them,
    the number of patches is in the last weights. With `relu_first` the ReLU stands before BatchNorm1d.

    In `eval()` it equals `Network.predict`; in `train()` it does so on the full training batch. With lambda = beta, its weight-decay
    objective is L + (beta n / 2)(||weight||^2 + ||bias||^2) of the BatchNorm1d + (beta / 2) ||W_2||^2, equal to the network's, but for sum
    pooling; n is the number of rows of a batch, of all patches where there are any.
    The momentum of the running statistics is PyTorch's default: a forward pass in `train()` moves them, on the training batch as well,
    as PyTorch's running variance has n - 1 in place of n.

    Parameters
    ----------
    network : the network
    dtype : torch.float64 (default) or another floating type; what is exported in float32 runs under `torch.autocast` too

    Raises
    ------
    InputError
        For a `dtype` that is no floating type, and where the weights don't fit into it, as for float32 and features of size 1e300.
    """
    need_torch("to_torch")
    import torch

    dtype = torch.float64 if dtype is None else dtype
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"dtype = {dtype!r} is no floating type of PyTorch: pass torch.float32, for instance")
    model, n = _layers(network).to(dtype), network.samples
    norm = next(k for k, layer in enumerate(model) if hasattr(layer, "running_var"))
    deviation = DEVIATION if dtype == torch.float64 else NARROW
    stretch = deviation * np.sqrt(n) / network.norm
    variance = np.full(len(stretch), deviation**2)
    correction = np.sqrt(1.0 + model[norm].eps / variance)
    values = {
        "0.weight": (network.weights * stretch[:, None]).reshape(model[0].weight.shape),
        f"{norm}.weight": network.gain / np.sqrt(n) * correction,
        f"{norm}.bias": network.shift / np.sqrt(n),
        f"{norm}.running_mean": network.centre * stretch,
        f"{norm}.running_var": variance,
        f"{len(model) - 1}.weight": network.outputs.T * (network.pooling.patches * network.pooling.weight),
    }
    state = model.state_dict()
    for key, value in values.items():
        tensor = torch.as_tensor(np.ascontiguousarray(value)).to(dtype)
        lost = not bool(torch.isfinite(tensor).all()) or (value.any() and not bool((tensor != 0).any()))
        if lost:
            raise InputError(f"dtype = {dtype} can't hold {key} of size {np.max(np.abs(value)):.1e}: rescale X, or export in float64")
        state[key] = tensor
    model.load_state_dict(state)
    return model.eval()


def _layers(network: Network) -> torch.nn.Sequential:
    """The modules, with weights still to be filled in."""
    from torch import nn

    (width, features), outputs, patches = network.weights.shape, network.outputs.shape[1], network.patches
    last = nn.Linear(width, outputs, bias=False)
    if network.relu_first:
        return nn.Sequential(nn.Linear(features, width, bias=False), nn.ReLU(), nn.BatchNorm1d(width), last)
    if patches is None:
        return nn.Sequential(nn.Linear(features, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), last)
    first = nn.Conv2d(patches.channels, width, patches.size, patches.stride, patches.padding, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


def from_torch(model: Any, X: npt.ArrayLike) -> Network:
    """Read Sequential(Linear, BatchNorm1d, ReLU, Linear) as a network with the batch statistics of X (n, d), or
    Sequential(Conv2d, BatchNorm2d, ReLU, AdaptiveAvgPool2d(1), Flatten, Linear) with those of all patches of images X (n, c, h, w).

    The gain is g = sqrt(n) weight sqrt(var / (var + eps)), so that the network is the model in training mode on X, eps included.
    A bias of the first layer has no effect and is dropped. Sequential(Linear, ReLU, BatchNorm1d, Linear) is read too, as a network
    with `relu_first`; there the first layer may have no bias. The result can be certified: how far from optimal is it?

    Raises
    ------
    InputError
        For another architecture, an affine-free normalisation, or a bias other than 0 that these networks don't have.
    """
    need_torch("from_torch")
    import torch

    first, norm, last = _known(model)
    if norm.weight is None or norm.bias is None:
        raise InputError(f"model has a {type(norm).__name__} with affine=False: its gains and shifts are needed, use affine=True")
    if last.bias is not None and bool((last.bias != 0).any()):
        raise InputError("model has an output bias, which these networks don't have: train the last Linear with bias=False")

    after = isinstance(model[1], torch.nn.ReLU)
    if after and first.bias is not None and bool((first.bias != 0).any()):
        raise InputError(
            "model has a bias before its ReLU, which these networks don't have: append a column of ones to X, and use bias=False"
        )

    def array(tensor: torch.Tensor) -> npt.NDArray[np.float64]:
        values: npt.NDArray[np.float64] = tensor.detach().cpu().double().numpy()
        return values

    patches = _patches(first, X) if isinstance(first, torch.nn.Conv2d) else None
    weights, outputs = array(first.weight).reshape(len(first.weight), -1), array(last.weight).T
    ones, zeros = np.ones(len(weights)), np.zeros(len(weights))
    plain = Network(weights, zeros, ones, ones, zeros, outputs, 0, patches, after).on(X)
    n = plain.samples
    variance = plain.norm**2 / n
    gain = plain.gain * np.sqrt(n) * array(norm.weight) * np.sqrt(variance / (variance + norm.eps))
    return replace(plain, gain=gain, shift=np.sqrt(n) * array(norm.bias))


def _known(model: Any) -> tuple[Any, Any, Any]:
    """First layer, normalisation and last layer of the architectures that can be read."""
    from torch import nn

    plain = (nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear)
    after = (nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Linear)
    convolution = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear)
    layers = list(model) if isinstance(model, nn.Sequential) else []
    for kinds in (plain, after, convolution):
        if len(layers) == len(kinds) and all(map(isinstance, layers, kinds)) and _whole_images(layers):
            return layers[0], next(layer for layer in layers if hasattr(layer, "running_var")), layers[-1]
    raise InputError(
        "model must be nn.Sequential(Linear, BatchNorm1d, ReLU, Linear), the same with the ReLU first, or "
        "nn.Sequential(Conv2d, BatchNorm2d, ReLU, AdaptiveAvgPool2d(1), Flatten, Linear): rebuild it in that form"
    )


def _whole_images(layers: list[Any]) -> bool:
    """Whether the last layer reads one number of each channel, as global pooling leaves it, or of each unit, and they are as many."""
    normalised = next(layer for layer in layers if hasattr(layer, "running_var")).num_features
    return bool(layers[-1].in_features == normalised == len(layers[0].weight))


def _patches(layer: Any, X: npt.ArrayLike) -> Patches:
    """What the convolution reads of the images."""
    usual = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if not usual:
        raise InputError("model has a Conv2d with groups, dilation or a padding by name or mode: use the defaults of all but the numbers")
    patches = Patches(layer.kernel_size, layer.stride, layer.padding).on(X)
    if patches.channels != layer.in_channels:
        raise InputError(f"X has images of {patches.channels} channels, but the model expects {layer.in_channels}")
    return patches
