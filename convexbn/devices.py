"""PyTorch and its devices: whether they are there, asked before any work is done on the way to them."""

from __future__ import annotations

from importlib.util import find_spec

from convexbn.validation import InputError


def has_torch() -> bool:
    """Whether PyTorch is installed, which is no part of the smallest installation; it isn't imported."""
    return find_spec("torch") is not None


def need_torch(what: str, otherwise: str = "") -> None:
    """Raise `InputError` where PyTorch is missing; `what` needs it, and `otherwise` says what does without."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        advice = "pip install 'convexbn[torch]'" + (f", or {otherwise}" if otherwise else "")
        raise InputError(f"PyTorch is missing, which {what} needs: {advice}") from error


def check_device(device: object) -> str:
    """Return the name of a device that PyTorch can compute on, such as "cpu", "cuda" or "cuda:1", or raise `InputError`."""
    name = str(device)
    if name == "cpu":
        return name
    need_torch(f"device = {name!r}", "pass 'cpu'")
    import torch

    try:
        float(torch.ones(1, device=name))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise InputError(f"device = {name!r} can't be used here ({reason}): pass 'cpu', or install a PyTorch that knows it") from error
    return name
