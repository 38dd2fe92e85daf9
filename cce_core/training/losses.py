"""Losses of dot products, with their gradients in the same pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.sketching.block_ops import array_at

_GRAIN = 1 << 15
_0, _1 = np.float32(0.0), np.float32(1.0)
_one, _four, _lanes = np.uint64(1), np.uint64(4), np.uint64(8)


@jit
def _dot(a: Any, b: Any, n: np.uint64) -> np.float32:
    """Σ a[i]·b[i] over [0, n), in eight sums side by side: each need not wait for the one before."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = _0
    whole = n - n % _lanes
    for i in range(np.uint64(0), whole, _lanes):
        j, k, m = i + _one, i + _four, i + _four + _one
        s0 += a[i] * b[i]
        s1 += a[j] * b[j]
        s2 += a[j + _one] * b[j + _one]
        s3 += a[j + _one + _one] * b[j + _one + _one]
        s4 += a[k] * b[k]
        s5 += a[m] * b[m]
        s6 += a[m + _one] * b[m + _one]
        s7 += a[m + _one + _one] * b[m + _one + _one]
    for i in range(whole, n):
        s0 += a[i] * b[i]
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@jit
def _logistic(start: int, stop: int, us: Any, vs: Any, labels: Any, share: float, scores: Any) -> int:
    """1, and nothing is written, where the matrices overlap; 2 where the floats of a row do not lie side by side; 3 where a label
    is not finite."""
    n_rows, d = us.shape
    row, u_at, v_at, u_step, v_step = 4 * d, us.ctypes.data, vs.ctypes.data, us.strides[0], vs.strides[0]
    if (d > 1 and (us.strides[1] != 4 or vs.strides[1] != 4)) or (n_rows > 1 and min(u_step, v_step) < row):
        return 2
    last = n_rows - 1
    if u_at + last * u_step + row > v_at and v_at + last * v_step + row > u_at:
        apart = (v_at - u_at) % max(u_step, row)  # the rows of two parts of one matrix lie between each other's
        if u_step != v_step or apart < row or apart > u_step - row:
            return 1
    dim, s = np.uint64(d), np.float32(share)
    wrong = _0
    for n in range(np.uint64(labels.shape[0])):
        wrong += labels[n] * _0  # NaN or infinity times zero is NaN
    if wrong != _0:
        return 3
    # The type of a matrix does not say that a row's floats lie side by side; these arrays do.
    for n in range(start, stop):
        u, v = array_at(u_at + n * u_step, d, np.float32), array_at(v_at + n * v_step, d, np.float32)
        score = _dot(u, v, dim)
        small = np.exp(-abs(score))  # never overflows
        chance = (_1 if score >= _0 else small) / (_1 + small)
        slope = (chance - labels[n]) * s
        scores[n] = score
        for i in range(dim):
            here = u[i]
            u[i] = slope * v[i]
            v[i] = slope * here
    return 0


def logistic_dot(u: Any, v: Any, labels: Any) -> NDArray[np.float32]:
    """Turn pairs of vectors into the gradients of their mean logistic loss, in place; gives their dot products.

        s_n = ⟨u_n, v_n⟩        loss = mean_n ( log(1 + e^{s_n}) − y_n · s_n )
        u_n ← (σ(s_n) − y_n) / N · v_n        v_n ← (σ(s_n) − y_n) / N · u_n

    Args:
        u, v: writeable float32 (N, d), such as two lookups gave, the floats of a vector side by side (they may be the columns of
            one array that belong to two tables); overwritten by the gradients.
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
        if not array.flags.writeable:
            raise ValueError(f"{name} must be writeable: it is overwritten by its gradient; pass a copy")
    if u.shape != v.shape:
        raise ValueError(f"u and v must have the same shape, got {u.shape} and {v.shape}")
    y = labels
    if not (isinstance(y, np.ndarray) and y.dtype == np.float32 and y.shape == u.shape[:1] and y.flags.c_contiguous):
        y = _check.as_float32("labels", labels, (len(u),))
    (n, d), scores = u.shape, np.empty(len(u), np.float32)
    fault = parallel_for(_logistic, n, _GRAIN // max(1, d), u, v, y, 1.0 / max(1, n), scores)
    if fault == 3:
        _check.as_float32("labels", labels, (n,))  # which says where
    if fault == 1:
        raise ValueError("u and v must not overlap: each is overwritten; pass a copy")
    if fault == 2:
        raise ValueError("the floats of each vector must lie side by side: u and v are overwritten; pass a copy")
    return scores
