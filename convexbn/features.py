"""Layers below the last two: any map from raw inputs to features, and random ones with batch normalisation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt

from convexbn.devices import need_torch
from convexbn.validation import FloatArray, InputError, check_count, check_data, real_array

if TYPE_CHECKING:
    import torch

Features = Callable[..., Any]

BATCH = 1_000  # samples that pass through a module at once


def extract(features: Features | None, X: npt.ArrayLike) -> npt.ArrayLike:
    """features(X), or X itself without features: what the last two layers read.

    A PyTorch module runs on a copy in float64, in `eval()` and without gradients, on the device where it is; any other callable is
    called as it is. The result has a row, or an image, for each sample.

    Raises
    ------
    InputError
        Where `features` is no callable, or returns something else than numbers with one row for each sample.
    """
    if features is None:
        return X
    if not callable(features):
        raise InputError(f"features = {features!r} can't be called: pass a torch.nn.Module, or a function of X that returns its features")
    values = real_array(_by_module(features, real_array(X, "X")) if _is_module(features) else features(X), "features(X)")
    samples = len(np.asarray(X))
    if values.ndim < 2 or len(values) != samples:
        raise InputError(f"features(X) has shape {values.shape}, but X has {samples} samples: return one row of features for each of them")
    return values


def stack(features: Features, head: torch.nn.Sequential) -> torch.nn.Sequential:
    """Sequential(features, *head): the whole network as one module, the features as a copy in the head's type, all in `eval()`.

    Raises
    ------
    InputError
        For features that are no torch.nn.Module.
    """
    from torch import nn

    if not _is_module(features):
        raise InputError("features are no torch.nn.Module, so they can't be exported: export the last layers by to_torch(fit.network)")
    return nn.Sequential(copy.deepcopy(features).to(head.state_dict()["0.weight"]), *head).eval()


def random_layers(X: npt.ArrayLike, widths: Sequence[int], *, seed: int = 0) -> torch.nn.Sequential:
    """Layers Linear, BatchNorm1d, ReLU of the given widths with Gaussian weights and shifts, as `features` of a deep network.

    Each sees the statistics of X (n, d), so that on X the module is the same in `train()` and `eval()`. If the centred features have
    rank n - 1, the optimum of the last two layers is that of the whole network, of every depth (`docs/theory.md`).

    Raises
    ------
    InputError
        For unusable X, or widths that are not whole numbers of at least 1.
    """
    need_torch("random_layers")
    import torch

    activations = torch.as_tensor(check_data(X))
    sizes = [check_count(width, "widths") for width in (widths if isinstance(widths, Sequence) else [widths])]
    generator = torch.Generator().manual_seed(check_count(seed, "seed", 0))
    layers: list[torch.nn.Module] = []
    for width in sizes:
        linear = torch.nn.Linear(activations.shape[1], width, bias=False, dtype=torch.float64)
        norm = torch.nn.BatchNorm1d(width, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.normal_(generator=generator)
            norm.bias.normal_(generator=generator)
            outputs = linear(activations)
            norm.running_mean, norm.running_var = outputs.mean(dim=0), outputs.var(dim=0, correction=0)
            activations = norm.eval()(outputs).relu()
        layers += [linear, norm, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers).eval()


def _is_module(features: object) -> TypeGuard[torch.nn.Module]:
    """Whether it is a PyTorch module, without importing PyTorch for what is none."""
    return any(kind.__module__ == "torch.nn.modules.module" and kind.__name__ == "Module" for kind in type(features).__mro__)


def _by_module(module: torch.nn.Module, X: FloatArray) -> FloatArray:
    """The module's outputs, batch by batch."""
    import torch

    exact = copy.deepcopy(module).double().eval()
    device = next((parameter.device for parameter in exact.parameters()), torch.device("cpu"))
    with torch.no_grad():
        batches = [exact(torch.as_tensor(X[start : start + BATCH], device=device)) for start in range(0, len(X), BATCH)]
        return np.asarray(torch.cat(batches).cpu().numpy(), dtype=np.float64)
