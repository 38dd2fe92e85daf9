"""What a clustering is given, checked: points, their weights and their labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.clustering.nearest.tiles import Points

_MOST = np.finfo(np.float32).max


def as_array(name: str, value: Any, d: int | None = None) -> NDArray[Any]:
    """`value` as finite real numbers (n, d): contiguous float32 where that holds them exactly, else as they are.

    ValueError or TypeError says what is wrong with it.
    """
    if hasattr(value, "tocsr"):
        raise TypeError(f"{name} must be a dense array, got a sparse one, which is not supported; use {name}.toarray()")
    array = _check.array(name, value, "real numbers")
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be real numbers, got {array.dtype}")
    if array.ndim != 2 or array.shape[1] == 0:
        fix = f". Reshape your data: {name}.reshape(-1, 1) for points on a line" if array.ndim == 1 else ""
        raise ValueError(
            f"{name} must have shape (points, coordinates), at least one coordinate, got {array.shape}{fix}"
        )
    if d is not None and array.shape[1] != d:
        raise ValueError(f"{name} must have {d} coordinates a point, got {array.shape[1]}")
    if np.can_cast(array.dtype, np.float32):
        array = np.ascontiguousarray(array, dtype=np.float32)
    if array.size and not (array.max() <= _MOST and array.min() >= -_MOST):
        outside = ~(np.abs(array, dtype=np.float64) <= _MOST)
        place = tuple(int(i) for i in np.argwhere(outside)[0])
        value = array[place]
        fix = "scale it down, or drop such rows" if np.isfinite(value) else "drop or mend rows with NaN or inf"
        raise ValueError(f"{name} must be finite in float32, got {value} at {place}; {fix}")
    return array


def as_points(name: str, value: Any, d: int | None = None) -> Points:
    """`value` as contiguous finite float32 (n, d), rounded where it is wider; the errors of `as_array`."""
    return np.ascontiguousarray(as_array(name, value, d), dtype=np.float32)


def as_weights(value: Any, n: int) -> Points:
    """Sample weights as float32 (n,), none negative, one positive; None gives an empty array: all points count one."""
    if value is None:
        return np.empty(0, np.float32)
    given = _check.array("sample_weight", value, "real numbers")
    weights = as_points("sample_weight", given.reshape(-1, 1))[:, 0]
    if given.shape != (n,):
        raise ValueError(f"sample_weight must have shape ({n},), one weight a point, got {given.shape}")
    if weights.min() < 0:
        raise ValueError(f"sample_weight must not be negative, got {weights.min():g} at {int(weights.argmin())}")
    if weights.max() == 0:
        what = "zeros only" if not given.any() else f"{given.max():g} at most, which is 0 in float32; scale them up"
        raise ValueError(f"sample_weight must be positive for one point at least, got {what}")
    return weights


def kind_of(*arrays: NDArray[Any]) -> type[np.floating[Any]]:
    """float32 where all arrays are, else float64: the type of what is made of them."""
    return np.float32 if all(array.dtype == np.float32 for array in arrays) else np.float64


def as_labels(value: Any, n: int, k: int) -> NDArray[np.int32]:
    """Labels as int32 (n,), each below k; ValueError, TypeError or IndexError says what is wrong with them."""
    words = _check.as_ids(value, "labels")
    if words.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), one label a point, got {words.shape}")
    if words.size and words.max() >= k:
        place = int(np.argmax(words >= k))
        raise IndexError(f"labels must be between 0 and {k - 1}, got {np.asarray(value)[place]} at {place}")
    return words.astype(np.int32)
