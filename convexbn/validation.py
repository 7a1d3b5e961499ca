"""What enters the package: the checks of arguments, and the error that names the argument and says what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
AnyFloats = npt.NDArray[np.floating]  # float64, or float32 where products are large
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# The square of a target has to be a normal float64: squared losses, norms and beta_max are sums of such squares.
LARGEST_TARGET = 1e140
SMALLEST_TARGET = 1e-140


class ConvexBNError(Exception):
    """Base class of every error that convexbn raises on purpose."""


class InputError(ConvexBNError, ValueError):
    """An argument can't be used; the message begins with its name and ends with what to do."""


def real_array(values: Any, name: str) -> FloatArray:
    """Convert numbers of any real type to a new float64 array, rows contiguous: rounding doesn't depend on the layout in memory.

    Raises
    ------
    InputError
        For sparse, masked, complex, text or ragged input, and for NaN or infinity.
    """
    if values is None:
        raise InputError(f"{name} is None: pass an array of numbers")
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise InputError(f"{name} has masked entries, which would count as data: drop those samples or fill them with {name}.filled(...)")
    if hasattr(values, "toarray") and hasattr(values, "nnz"):
        raise InputError(f"{name} is a sparse matrix: centring makes it dense anyway, so pass {name}.toarray()")
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} can't be made an array ({error}): pass numbers, every row of the same length") from error
    if array.dtype.kind == "c":
        raise InputError(f"{name} holds complex numbers. Complex data not supported: pass real and imaginary parts as columns")
    if array.dtype.kind not in "biufO":
        raise InputError(f"{name} has dtype {array.dtype}, not numbers: encode text, dates and categories first")
    if array.dtype.kind == "O" and any(isinstance(entry, (str, bytes)) for entry in array.flat):
        raise InputError(f"{name} holds text: encode it, or pass {name}.astype(float) where it spells numbers")
    try:
        with np.errstate(over="ignore"):
            result = np.array(array, dtype=np.float64, order="C")
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} holds values that are no numbers ({error}): encode or remove them") from error
    if not np.isfinite(result).all():
        raise InputError(f"{name} holds NaN or infinity (or a number beyond float64): impute, drop or rescale those entries")
    return result


def check_data(X: Any, *, samples: int = 2) -> FloatArray:
    """Return `X` as a float64 array (n, d) with n >= `samples` and d >= 1, or raise `InputError`."""
    array = real_array(X, "X")
    if array.ndim != 2:
        raise InputError(
            f"X has {array.ndim} dimension(s), not 2 (samples, features). Reshape your data: "
            "X.reshape(-1, 1) for one feature, X.reshape(1, -1) for one sample"
        )
    n, d = array.shape
    if d < 1:
        raise InputError(f"X has 0 feature(s) (shape={array.shape}) while a minimum of 1 is required: pass at least one column")
    if n < samples:
        raise InputError(
            f"X has {n} sample(s) (shape={array.shape}) while a minimum of {samples} is required: pass at least that many rows"
        )
    return array


def check_targets(y: Any, samples: int) -> FloatArray:
    """Return `y` as finite numbers (n,), or (n, C) for C >= 2 outputs, whose squares float64 can hold, or raise `InputError`."""
    array = real_array(y, "y")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2) or 0 in array.shape[1:]:
        raise InputError(f"y has shape {array.shape}, not ({samples},) or ({samples}, outputs): pass one row for each sample")
    if len(array) != samples:
        raise InputError(f"y has {len(array)} targets, but X has {samples} samples: pass one target for each sample")
    largest = float(np.max(np.abs(array), initial=0.0))
    if largest > LARGEST_TARGET or 0.0 < largest < SMALLEST_TARGET:
        raise InputError(f"y has magnitude {largest:.1e}, whose square float64 can't hold: change its unit, for instance y / {largest:.1e}")
    return array


def check_positive(value: Any, name: str) -> float:
    """Return `value` as a finite float > 0, or raise `InputError`."""
    if isinstance(value, (str, bytes, bool, np.bool_)):
        raise InputError(f"{name} = {value!r} is not a number: pass a positive float")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} = {value!r} is not a number of float64: pass a positive float") from error
    if not 0.0 < number < float("inf"):
        raise InputError(f"{name} = {number} is not positive and finite: pass a float above 0")
    return number


def check_budget(seconds: Any, name: str) -> float:
    """Return `seconds` as a float >= 0, infinity being no limit, or raise `InputError`."""
    if not isinstance(seconds, (int, float, np.integer, np.floating)) or isinstance(seconds, bool) or not seconds >= 0:
        raise InputError(f"{name} = {seconds!r} is no time: pass seconds, 0 or more")
    return float(seconds)


def check_count(value: Any, name: str, smallest: int = 1) -> int:
    """Return `value` as an int >= `smallest`, or raise `InputError`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise InputError(f"{name} = {value!r} is not a whole number: pass an int of at least {smallest}")
    if value < smallest:
        raise InputError(f"{name} = {value} is too small: pass an int of at least {smallest}")
    return int(value)
