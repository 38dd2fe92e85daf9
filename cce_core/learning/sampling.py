"""Ids drawn for k-means, in memory that grows with the sample and not with the vocabulary."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cce_core import _check

_BLOCK = 1 << 16  # rows or weights at a time


class Weights(Protocol):
    """What ids count, (vocab,): an array, or what gives slices of one when it is asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


class SomeWeights:
    """The weights of some ids, 0 for all others: an array to read, a block at a time; None says that all count 1."""

    def __init__(self, weights: Any, which: NDArray[np.bool_]) -> None:
        self._weights, self._which = weights, which

    def __len__(self) -> int:
        return len(self._which)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        which = self._which[rows]
        return (
            which.astype(np.float32) if self._weights is None else np.where(which, self._weights[rows], np.float32(0))
        )


def _fresh(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the sorted ids differ from the one before."""
    fresh = np.ones(len(ids), bool)
    np.not_equal(ids[1:], ids[:-1], out=fresh[1:])
    return fresh


def some_ids(rng: np.random.Generator, vocab: int, n: int) -> NDArray[np.uint64]:
    """n of the ids below vocab, each set of n as likely as another, in order: uint64 (n,)."""
    if 2 * n > vocab:  # those that are left out are fewer
        kept = np.ones(vocab, bool)
        kept[some_ids(rng, vocab, vocab - n).view(np.int64)] = False
        return np.flatnonzero(kept).astype(np.uint64)
    ids = np.empty(0, np.int64)
    while len(ids) < n:
        left = n - len(ids)
        ids = np.concatenate([ids, rng.integers(0, vocab, left + left // 8 + 8)])
        ids.sort()
        ids = ids[_fresh(ids)]
    if len(ids) > n:
        ids = np.delete(ids, rng.choice(len(ids), len(ids) - n, replace=False))
    return ids.view(np.uint64)


def weighted_ids(rng: np.random.Generator, weights: Weights, n: int) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """n draws of ids by their weights, with replacement: the ids that came, uint64, in order, and how often, float32."""
    starts = range(0, len(weights), _BLOCK)
    ends = np.cumsum([weights[low : low + _BLOCK].sum(dtype=np.float64) for low in starts])
    draws = np.sort(rng.random(n)) * ends[-1]
    last = np.searchsorted(ends, ends[-1])  # the last block with a weight: rounding must lead to none beyond
    bounds = np.searchsorted(draws, ends[:last])
    ids = np.empty(n, np.int64)
    for block, (start, stop) in enumerate(zip((0, *bounds), (*bounds, n))):
        if start < stop:
            part = weights[starts[block] : starts[block] + _BLOCK]
            inner = np.cumsum(part, dtype=np.float64)
            at = np.searchsorted(inner, draws[start:stop] - (ends[block - 1] if block else 0.0), side="right")
            ids[start:stop] = starts[block] + np.minimum(at, np.flatnonzero(part)[-1])
    fresh = np.flatnonzero(_fresh(ids))
    return ids[fresh].astype(np.uint64), np.diff(fresh, append=n).astype(np.float32)


def as_rows(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """`value` as an array of real numbers of this shape whose every number float32 can hold; it is not copied as a whole."""
    array = _check.array(name, value, "real numbers")
    if (
        array.shape != shape
        or array.dtype.kind not in "fiu"
        or (array.dtype == np.float32 and array.flags.c_contiguous)
    ):
        return _check.as_float32(name, array, shape)
    for low in range(0, len(array), _BLOCK):
        part = array[low : low + _BLOCK]
        try:
            _check.as_float32(name, part, part.shape)
        except ValueError:
            _check.as_float32(name, array, shape)  # which says where in the whole
            raise
    return array
