"""To and from PyTorch: a plain nn.Sequential that needs no convexbn to load, and the reading of such a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from convexbn.network import Network
from convexbn.validation import InputError, check_data

if TYPE_CHECKING:
    import torch

# Standard deviation that exported pre-activations get by the free scale of the first layer. At 2^17 PyTorch's default
# eps = 1e-5 is below the rounding of the variance 2^34, so its weight is g / sqrt(n) and its weight decay is ours.
DEVIATION = 2.0**17


def to_torch(network: Network, *, dtype: torch.dtype | None = None) -> torch.nn.Sequential:
    """Return Sequential(Linear(d, m, bias=False), BatchNorm1d(m), ReLU(), Linear(m, C, bias=False)) with the network's function.

    In `eval()` it equals `Network.predict`; in `train()` it does so on the full training batch. With lambda = beta, its weight-decay
    objective is L + (beta n / 2)(||weight||^2 + ||bias||^2) of the BatchNorm1d + (beta / 2) ||W_2||^2, equal to the network's.
    The momentum of the running statistics is PyTorch's default: a forward pass in `train()` on other data moves them.

    Parameters
    ----------
    network : the network
    dtype : torch.float64 (default) or another floating type

    Raises
    ------
    InputError
        Where the weights don't fit into `dtype`, as for float32 and features of size 1e300.
    """
    import torch

    dtype = torch.float64 if dtype is None else dtype
    width, features = network.weights.shape
    n = network.samples
    model = torch.nn.Sequential(
        torch.nn.Linear(features, width, bias=False),
        torch.nn.BatchNorm1d(width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, network.outputs.shape[1], bias=False),
    ).to(dtype)
    stretch = DEVIATION * np.sqrt(n) / network.norm
    variance = np.full(width, DEVIATION**2)
    correction = np.sqrt(1.0 + model[1].eps / variance)
    values = {
        "0.weight": network.weights * stretch[:, None],
        "1.weight": network.gain / np.sqrt(n) * correction,
        "1.bias": network.shift / np.sqrt(n),
        "1.running_mean": network.centre * stretch,
        "1.running_var": variance,
        "3.weight": network.outputs.T,
    }
    state = model.state_dict()
    for key, value in values.items():
        tensor = torch.as_tensor(np.ascontiguousarray(value)).to(dtype)
        lost = not bool(torch.isfinite(tensor).all()) or (value.any() and not bool((tensor != 0).any()))
        if lost:
            raise InputError(f"dtype = {dtype} can't hold {key} of size {np.max(np.abs(value)):.1e}: rescale X, or export in float64")
        state[key] = tensor
    model.load_state_dict(state)
    return model


def from_torch(model: Any, X: npt.ArrayLike) -> Network:
    """Read Sequential(Linear, BatchNorm1d, ReLU, Linear) as a network with the batch statistics of X (n, d).

    The gain is g = sqrt(n) weight sqrt(var / (var + eps)), so that the network is the model in training mode on X, eps included.
    A bias of the first layer has no effect and is dropped. The result can be certified: how far from optimal is it?

    Raises
    ------
    InputError
        For another architecture, an affine-free BatchNorm1d, or an output bias other than 0.
    """
    import torch

    kinds = [torch.nn.Linear, torch.nn.BatchNorm1d, torch.nn.ReLU, torch.nn.Linear]
    layers = list(model) if isinstance(model, torch.nn.Sequential) else []
    if len(layers) != 4 or not all(isinstance(layer, kind) for layer, kind in zip(layers, kinds, strict=True)):
        raise InputError("model must be nn.Sequential(Linear, BatchNorm1d, ReLU, Linear): rebuild it in that form")
    first, norm, _, last = (cast(Any, layer) for layer in layers)
    if norm.weight is None or norm.bias is None:
        raise InputError("model has a BatchNorm1d with affine=False: its gains and shifts are needed, use affine=True")
    if last.bias is not None and bool((last.bias != 0).any()):
        raise InputError("model has an output bias, which these networks don't have: train the last Linear with bias=False")

    def array(tensor: torch.Tensor) -> npt.NDArray[np.float64]:
        return tensor.detach().cpu().numpy().astype(np.float64)

    data = check_data(X)
    n, width = len(data), first.out_features
    if data.shape[1] != first.in_features:
        raise InputError(f"X has {data.shape[1]} features, but the model expects {first.in_features}")
    plain = Network(array(first.weight), np.zeros(width), np.ones(width), np.ones(width), np.zeros(width), array(last.weight).T, n).on(data)
    variance = plain.norm**2 / n
    gain = plain.gain * np.sqrt(n) * array(norm.weight) * np.sqrt(variance / (variance + norm.eps))
    return Network(plain.weights, plain.centre, plain.norm, gain, np.sqrt(n) * array(norm.bias), plain.outputs, n)
