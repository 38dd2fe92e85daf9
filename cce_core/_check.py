"""Checks of what callers hand in. Each error says what came, what was expected, and how to mend it."""

from __future__ import annotations

import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core._jit import jit

_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def shown(value: Any) -> str:
    """A value and its type, short enough for an error."""
    text = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) and value.ndim else repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} of type {type(value).__name__}"


def instance(name: str, value: Any, kind: Any, what: str) -> Any:
    """`value` if it is of that class (or of one of those); TypeError says `what` was expected."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {what}, got {shown(value)}")
    return value


def flag(name: str, value: Any) -> bool:
    """`value` as a bool, of True, False, 1 or 0."""
    if not isinstance(value, (bool, np.bool_)) and not (isinstance(value, int) and value in (0, 1)):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def path(name: str, value: Any) -> Path:
    """`value` as a path."""
    try:
        text = os.fsdecode(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a path (a str or pathlib.Path), got {shown(value)}") from None
    if not text or "\0" in text:
        raise ValueError(f"{name} must be a path, got {text!r}")
    return Path(text)


def callback(name: str, value: Any) -> Any:
    """`value` if it is None or can be called."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a function or None, got {shown(value)}")
    return value


def sequence(name: str, value: Any, what: str) -> list[Any]:
    """`value` as a list; TypeError says `what` was expected."""
    if isinstance(value, (str, bytes)) or getattr(value, "ndim", 1) == 0:
        raise TypeError(f"{name} must be {what}, got {shown(value)}")
    try:
        return list(value)
    except TypeError:
        raise TypeError(f"{name} must be {what}, got {shown(value)}") from None


def array(name: str, value: Any, what: str = "an array of numbers") -> NDArray[Any]:
    """`value` as an array of whatever NumPy makes of it; TypeError where that is nothing of use."""
    if not isinstance(value, np.ndarray):
        try:
            value = np.asarray(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise TypeError(f"{name} must be {what}, got {shown(value)}: {error}") from None
    return value


def integer(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """`value` as a Python int within [least, most]; TypeError for what is not a whole number, ValueError for the range."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number, got {shown(value)}")
    value = int(value)
    if value < least or (most is not None and value > most):
        bounds = f"at least {least:,}" if most is None else f"between {least:,} and {most:,}"
        raise ValueError(f"{name} must be {bounds}, got {value:,}")
    return value


def size(name: str, value: Any, least: int = 0, most: int = 2**48) -> int:
    """`integer` from `least` on, of which something is made: more than `most` is no size of anything."""
    value = integer(name, value, least)
    if value > most:
        raise ValueError(f"{name} must be at most {most:,}, got {value:,}")
    return value


def number(
    name: str,
    value: Any,
    least: float,
    most: float | None = None,
    *,
    open_at_least: bool = False,
    in_float32: bool = False,
) -> float:
    """`value` as a finite Python float within [least, most], or (least, most] where `open_at_least`.

    With `in_float32`, what float32 cannot hold is refused: 0 aside, 1.2e-38 to 3.4e38.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    try:
        value = float(value)
    except OverflowError:
        value = math.inf if value > 0 else -math.inf
    low = value > least if open_at_least else value >= least
    if not np.isfinite(value) or not low or (most is not None and value > most):
        bounds = f"{'above' if open_at_least else 'at least'} {least:g}"
        raise ValueError(f"{name} must be {bounds}{'' if most is None else f' and at most {most:g}'}, got {value:g}")
    if in_float32 and value and not _LEAST <= abs(value) <= _MOST:
        raise ValueError(f"{name} must be a number that float32 holds (1.2e-38 to 3.4e38, or 0), got {value:g}")
    return value


def seed(value: Any) -> int:
    """`value` as a seed: a whole number of 64 bits."""
    return integer("seed", value, 0, 2**64 - 1)


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """`value` if it is among `allowed`; TypeError for what is no string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(allowed)}; got {shown(value)}")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
    return str(value)


def warn(message: str) -> None:
    """A `UserWarning` at the line of the caller outside this package, so that it is shown once a line there."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def as_ids(ids: Any, name: str = "ids") -> NDArray[np.uint64]:
    """`ids` of any integer type as contiguous 64-bit words, shape kept; no copy is made of 64-bit arrays.

    A negative id becomes the 64-bit word with the same bits, so it is far above any vocabulary's end. Arrays, lists and numbers
    are taken, and what gives itself as an array: tensors of the CPU, columns and frames of pandas, arrays of Arrow. Missing
    values and categories are refused.
    """
    array = ids if type(ids) is np.ndarray else _as_array(ids, name)
    if array.dtype == np.int64 and array.flags.c_contiguous:  # the usual case
        return array.view(np.uint64)
    if array.size == 0 and (array.dtype == object or not hasattr(ids, "dtype")):
        array = array.astype(np.int64)  # np.asarray([]) is float64: an empty list holds no wrong id
    if array.dtype == np.float64 and isinstance(ids, (list, tuple)):
        exact = np.array(ids, object)  # np.asarray([-1, 2**64 - 1]) is float64 too
        array = exact if all(isinstance(value, (int, np.integer)) for value in exact.flat) else array
    if array.dtype == object:
        array = _as_words(array, name)
    if array.dtype.kind not in "iu":
        fix = f"{name} = {name}.astype(np.int64)"
        if array.dtype.kind in "SUT":
            fix = "hash strings with cce_core.hash_strings"
        elif array.dtype.kind == "f" and np.isnan(array).any():
            fix = f"NaN stands for what is missing: drop or fill it, then {fix}"
        raise TypeError(f"{name} must be integers, got {array.dtype}; {fix}")
    if array.dtype.itemsize < 8:
        array = array.astype(np.int64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.ascontiguousarray(array).view(np.uint64).reshape(array.shape)


def _as_array(ids: Any, name: str) -> NDArray[Any]:
    """What is no array of NumPy's as one: what would be lost on the way is an error."""
    if not isinstance(ids, (list, tuple, int, np.integer)):
        if hasattr(ids, "iloc") and getattr(ids, "ndim", 1) == 2 and ids.shape[1]:
            # A frame, whose columns may have types that only float64 would hold together.
            return np.stack([as_ids(ids.iloc[:, k], name) for k in range(ids.shape[1])], axis=1)
        categories = hasattr(getattr(ids, "dtype", None), "categories")
        if categories or str(getattr(ids, "type", "")).startswith("dictionary"):
            raise TypeError(
                f"{name} are categories, which are no integers: hand in their codes (of pandas {name}.cat.codes, of Arrow "
                f"{name}.indices), or what they stand for, as an integer type ({name}.astype(np.int64))"
            )
        missing = getattr(ids, "null_count", 0)  # of Arrow; polars has a method
        missing = missing() if callable(missing) else missing
        if isinstance(ids, np.ma.MaskedArray):
            missing = np.ma.count_masked(ids)
        if isinstance(missing, (int, np.integer)) and missing > 0:
            raise ValueError(f"{name} must be integers, but {missing} of them are missing: drop or fill these first")
    try:
        if hasattr(ids, "__dlpack__") and not hasattr(ids, "__array__"):
            return np.from_dlpack(ids)
        array = np.asarray(ids)
        if array.ndim or array.dtype != object or isinstance(ids, int):
            return array
        error: Exception = TypeError("it gives itself as no array")
    except (TypeError, ValueError, RuntimeError, BufferError, NotImplementedError) as raised:
        error = raised
    raise TypeError(
        f"{name} must be integers, in an array, a tensor on the CPU or a list; got {type(ids).__name__}: {error}"
    ) from error


def _as_words(array: NDArray[Any], name: str) -> NDArray[np.uint64]:
    """Python's integers as 64-bit words."""
    out = np.empty(array.size, np.uint64)
    for n, value in enumerate(array.reshape(-1)):
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            if value is None or type(value).__name__ == "NAType" or value != value:
                raise ValueError(
                    f"{name} must be integers, but {value} at position {n} is missing: drop or fill it first"
                )
            fix = "hash strings with cce_core.hash_strings" if isinstance(value, (str, bytes)) else "hand in integers"
            raise TypeError(f"{name} must be integers, got {type(value).__name__} at position {n}; {fix}")
        if not -(2**63) <= value < 2**64:
            raise TypeError(f"{name} must be integers of 64 bits, got {value} at position {n}")
        out[n] = int(value) & (2**64 - 1)
    return out.reshape(array.shape)


@jit
def _largest(ids: NDArray[np.uint64]) -> np.uint64:
    top = np.uint64(0)
    for n in range(np.uint64(ids.shape[0])):
        top = max(top, ids[n])
    return top


@jit
def _first_outside(ids: NDArray[np.uint64], end: np.uint64) -> int:
    for n in range(ids.shape[0]):
        if ids[n] >= end:
            return n
    return -1


def ids_within(ids: NDArray[np.uint64], vocab: int | np.uint64) -> None:
    """IndexError that names the first id outside [0, vocab) and its position."""
    flat = ids if ids.ndim == 1 else ids.reshape(-1)
    end = vocab if isinstance(vocab, np.uint64) else np.uint64(vocab)
    if flat.shape[0] and _largest(flat) >= end:
        where = _first_outside(flat, end)
        at = np.unravel_index(where, ids.shape) if ids.ndim > 1 else where
        place = tuple(int(i) for i in at) if isinstance(at, tuple) else int(at)
        raise IndexError(outside(int(flat[where]), place, int(vocab)))


def outside(word: int, place: Any, vocab: int) -> str:
    """What to say of a 64-bit word that is no id of a vocabulary: whether it was signed is not known here."""
    word &= 2**64 - 1
    shown, also = (word - 2**64, f" (without a sign it is {word})") if word >= 2**63 else (word, "")
    return f"id {shown} at position {place} is outside this table's vocabulary: ids go from 0 to {vocab - 1}{also}"


def as_float32(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """`value` as a contiguous float32 array of exactly `shape`; NaN and infinity are refused."""
    x = value if isinstance(value, np.ndarray) else array(name, value, "real numbers")
    if x.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be real numbers, got {x.dtype}")
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {x.shape}")
    if x.dtype != np.float32:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, which is refused below
            x = x.astype(np.float32)
    if not x.flags.c_contiguous:
        x = np.ascontiguousarray(x).reshape(shape)
    where = first_not_finite(x.reshape(-1))
    if where >= 0:
        place = tuple(int(i) for i in np.unravel_index(where, shape)) if shape else ()
        fix = "; a smaller learning rate may help" if "gradient" in name or "memory" in name else ""
        raise ValueError(f"{name} must be finite, got {x[place]} at {place}{fix}")
    return x


@jit
def first_not_finite(x: NDArray[np.float32]) -> int:
    """The first place that holds NaN or infinity; −1 where there is none."""
    # A finite number times zero is zero; NaN and infinity times zero are NaN, and a sum keeps NaN. Summed in lanes of
    # their own so that it becomes vector instructions.
    n, block = np.uint64(x.shape[0]), np.uint64(64)
    lanes = np.zeros(64, np.float32)
    whole = n - n % block
    for start in range(np.uint64(0), whole, block):
        for i in range(block):
            lanes[i] += x[start + i] * np.float32(0.0)
    for i in range(whole, n):
        lanes[0] += x[i] * np.float32(0.0)
    if lanes.sum() == np.float32(0.0):
        return -1
    for i in range(x.shape[0]):
        if not np.isfinite(x[i]):
            return i
    return -1
