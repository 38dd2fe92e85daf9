"""Losses of dot products, with their gradients in the same pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import sliced

_GRAIN = 1 << 15
_0, _1 = np.float32(0.0), np.float32(1.0)
_one, _four, _lanes = np.uint64(1), np.uint64(4), np.uint64(8)


@jit
def _dot(a: Any, b: Any, low: np.uint64, high: np.uint64) -> np.float32:
    """Σ a[i]·b[i] over [low, high), in eight sums side by side: each need not wait for the one before."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = _0
    whole = high - (high - low) % _lanes
    for i in range(low, whole, _lanes):
        j, k, m = i + _one, i + _four, i + _four + _one
        s0 += a[i] * b[i]
        s1 += a[j] * b[j]
        s2 += a[j + _one] * b[j + _one]
        s3 += a[j + _one + _one] * b[j + _one + _one]
        s4 += a[k] * b[k]
        s5 += a[m] * b[m]
        s6 += a[m + _one] * b[m + _one]
        s7 += a[m + _one + _one] * b[m + _one + _one]
    for i in range(whole, high):
        s0 += a[i] * b[i]
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@jit
def _logistic(start: int, stop: int, u: Any, v: Any, d: int, labels: Any, share: np.float32, scores: Any) -> None:
    dim = np.uint64(d)
    for n in range(np.uint64(start), np.uint64(stop)):
        low, high = n * dim, (n + _one) * dim
        score = _dot(u, v, low, high)
        small = np.exp(-abs(score))  # never overflows
        chance = (_1 if score >= _0 else small) / (_1 + small)
        slope = (chance - labels[n]) * share
        scores[n] = score
        for i in range(low, high):
            here = u[i]
            u[i] = slope * v[i]
            v[i] = slope * here


def logistic_dot(u: Any, v: Any, labels: Any) -> NDArray[np.float32]:
    """Turn pairs of vectors into the gradients of their mean logistic loss, in place; gives their dot products.

        s_n = ⟨u_n, v_n⟩        loss = mean_n ( log(1 + e^{s_n}) − y_n · s_n )
        u_n ← (σ(s_n) − y_n) / N · v_n        v_n ← (σ(s_n) − y_n) / N · u_n

    Args:
        u, v: contiguous, writeable float32 (N, d), such as two lookups gave; overwritten by the gradients.
        labels: real numbers (N,), y: 1 for a like, 0 for a dislike, or a chance between.

    Returns:
        The dot products s (logits), float32 (N,).

    Raises:
        TypeError: u or v are not such arrays.
        ValueError: shapes that do not agree, or labels that are not finite.

    Cost:
        One pass over u and v; nothing of their size is allocated.

    Example:
        >>> import numpy as np
        >>> from cce_core.training import logistic_dot
        >>> u, v = np.array([[1.0, 2.0]], np.float32), np.array([[0.5, -0.25]], np.float32)
        >>> logistic_dot(u, v, [1.0]), u, v
        (array([0.], dtype=float32), array([[-0.25 ,  0.125]], dtype=float32), array([[-0.5, -1. ]], dtype=float32))
    """
    for name, array in (("u", u), ("v", v)):
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != 2:
            raise TypeError(f"{name} must be a float32 array (pairs, dim), got {getattr(array, 'dtype', type(array))}")
        flags = array.flags
        if not (flags.c_contiguous and flags.writeable):
            raise ValueError(f"{name} must be contiguous and writeable: it is overwritten by its gradient; pass a copy")
    if u.shape != v.shape:
        raise ValueError(f"u and v must have the same shape, got {u.shape} and {v.shape}")
    if np.may_share_memory(u, v):
        raise ValueError("u and v must be two arrays, not views of one: each is overwritten; pass a copy")
    y = _check.as_float32("labels", labels, (len(u),))
    scores = np.empty(len(u), np.float32)
    if len(u):
        share, d = np.float32(1.0 / len(u)), u.shape[1]
        sliced(_logistic, len(u), _GRAIN // max(1, d), u.reshape(-1), v.reshape(-1), d, y, share, scores)
    return scores
