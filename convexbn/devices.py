"""Devices of PyTorch: whether one is there, asked before any work is done on the way to it."""

from __future__ import annotations

from convexbn.validation import InputError


def need_torch(otherwise: str) -> None:
    """Raise `InputError` where PyTorch is missing, which is no part of the smallest installation; `otherwise` says what does without."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise InputError(f"PyTorch is missing, which this solver computes with: pip install 'convexbn[torch]', or {otherwise}") from error


def check_device(device: object) -> str:
    """Return the name of a device that PyTorch can compute on, such as "cpu", "cuda" or "cuda:1", or raise `InputError`."""
    name = str(device)
    if name == "cpu":
        return name
    import torch

    try:
        float(torch.ones(1, device=name))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise InputError(f"device = {name!r} can't be used here ({reason}): pass 'cpu', or install a PyTorch that knows it") from error
    return name
