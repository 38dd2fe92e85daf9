"""What the optimisers do to numbers: their formulas as compiled loops."""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core._jit import jit
from cce_core.hashing.mix import keyed, premix
from cce_core.sketching.block_ops import array_at, copy_blocks
from cce_core.storage.codec import FLOAT32, upper_half, wide

# How compiled loops know the formulas; the last two have their state in bfloat16.
SGD, ADAGRAD, ROWWISE, ADAM, ROWWISE_HALF, ADAM_HALF = range(6)
_0, _1, _FLOATS = np.uint64(0), np.float32(1.0), 1 << 10
_two, _three, _four = np.uint64(2), np.uint64(3), np.uint64(4)


@jit
def sgd(start: int, stop: int, p: Any, g: Any, lr: Any, decay: Any) -> None:
    for i in range(np.uint64(start), np.uint64(stop)):  # unsigned, so that the loop becomes vector instructions
        p[i] -= lr * (g[i] + decay * p[i])


@jit
def sgd_momentum(start: int, stop: int, p: Any, g: Any, b: Any, lr: Any, decay: Any, mu: Any) -> None:
    for i in range(np.uint64(start), np.uint64(stop)):  # unsigned, so that the loop becomes vector instructions
        b[i] = mu * b[i] + g[i] + decay * p[i]
        p[i] -= lr * b[i]


@jit
def _adam(start: int, stop: int, p: Any, g: Any, m: Any, v: Any, c: Any) -> None:
    b1, b2, k, r = np.float32(c[0]), np.float32(c[1]), np.float32(c[2]), np.float32(c[3])
    correct, e, a1, a2 = np.float32(c[4]), np.float32(c[5]), _1 - np.float32(c[0]), _1 - np.float32(c[1])
    for i in range(np.uint64(start), np.uint64(stop)):
        mean = b1 * m[i] + a1 * g[i]
        square = b2 * v[i] + a2 * g[i] * g[i]
        m[i] = mean
        v[i] = square
        p[i] = k * p[i] - r * mean / (np.sqrt(square) * correct + e)


@jit
def _adagrad(start: int, stop: int, p: Any, g: Any, sums: Any, c: Any) -> None:
    lr, eps = np.float32(c[0]), np.float32(c[1])
    for i in range(np.uint64(start), np.uint64(stop)):
        sums[i] += g[i] * g[i]
        p[i] -= lr * g[i] / (np.sqrt(sums[i]) + eps)


@jit
def _adagrad_rows(start: int, stop: int, unit: int, p: Any, g: Any, sums: Any, c: Any) -> None:
    lr, eps, u = np.float32(c[0]), np.float32(c[1]), np.uint64(unit)
    for row in range(np.uint64(start), np.uint64(stop)):
        mean, at = np.float32(0.0), row * u
        for i in range(u):
            mean += g[at + i] * g[at + i]
        sums[row] += mean / np.float32(u)
        scale = lr / (np.sqrt(sums[row]) + eps)
        for i in range(u):
            p[at + i] -= scale * g[at + i]


@jit
def _narrow(x: np.float32, i: np.uint64, key: np.uint64) -> np.uint16:
    """bfloat16 of x, rounded up or down with the chance that makes the mean right, drawn for place i.

    Rounded to nearest, what is less than a 256th of a sum would never be added to it.
    """
    word = keyed(premix(i >> _two), key)
    return upper_half(np.float32(x).view(np.uint32), np.uint32((word >> ((i & _three) << _four)) & np.uint64(0xFFFF)))


@jit
def _half_row(
    kernel_id: int, row: np.uint64, at: np.uint64, start: np.uint64, u: np.uint64, p: Any, g: Any, a: Any, b: Any, c: Any
) -> None:  # fmt: skip
    """One row, at p[at] with its gradient at g[start]; a and b hold two numbers of state in the room of a float32."""
    first = array_at(a.ctypes.data, 2 * a.shape[0], np.uint16)
    square = np.float32(0.0)
    for i in range(u):
        square += g[start + i] * g[start + i]
    square /= np.float32(u)
    if kernel_id == ROWWISE_HALF:
        key = premix(np.uint64(c[2]))
        total = wide(first[row]) + square
        first[row] = _narrow(total, row, key)
        scale = np.float32(c[0]) / (np.sqrt(total) + np.float32(c[1]))
        for i in range(u):
            p[at + i] -= scale * g[start + i]
        return
    second = array_at(b.ctypes.data, 2 * b.shape[0], np.uint16)
    b1, b2, k, key = np.float32(c[0]), np.float32(c[1]), np.float32(c[2]), premix(np.uint64(c[6]))
    total = b2 * wide(second[row]) + (_1 - b2) * square
    second[row] = _narrow(total, row, ~key)
    scale = np.float32(c[3]) / (np.sqrt(total) * np.float32(c[4]) + np.float32(c[5]))
    for i in range(u):
        mean = b1 * wide(first[row * u + i]) + (_1 - b1) * g[start + i]
        first[row * u + i] = _narrow(mean, row * u + i, key)
        p[at + i] = k * p[at + i] - scale * mean


@jit
def update_dense(start: int, stop: int, kernel_id: int, unit: int, p: Any, g: Any, a: Any, b: Any, c: Any) -> None:
    """The formula `kernel_id`, with the state a and b and the constants c, for the floats [start, stop) of p; row-wise, for
    the rows that begin there."""
    if kernel_id == SGD:
        lr = np.float32(c[0])
        for i in range(np.uint64(start), np.uint64(stop)):
            p[i] -= lr * g[i]
    elif kernel_id == ADAGRAD:
        _adagrad(start, stop, p, g, a, c)
    elif kernel_id == ROWWISE:
        _adagrad_rows(-(-start // unit), -(-stop // unit), unit, p, g, a, c)
    elif kernel_id >= ROWWISE_HALF:
        u = np.uint64(unit)
        for r in range(-(-start // unit), -(-stop // unit)):
            row = np.uint64(r)
            _half_row(kernel_id, row, row * u, row * u, u, p, g, a, b, c)
    else:
        _adam(start, stop, p, g, a, b, c)


@jit
def update_rows(
    start: int, stop: int, kernel_id: int, unit: int, index: Any, at: Any, p: Any, g: Any, a: Any, b: Any, c: Any
) -> None:
    """The same for the units index[start : stop] alone, whose gradients lie in g one after the other, and whose values lie in p
    where `at` says, or as all units do.

    Values and state of some units at a time are moved side by side, so that the formula becomes vector instructions.
    """
    some, u = max(1, _FLOATS // unit), np.uint64(unit)
    if kernel_id >= ROWWISE_HALF:
        for r in range(start, stop):
            row = np.uint64(index[r])
            _half_row(kernel_id, row, row * u if at is None else at[r], np.uint64(r) * u, u, p, g, a, b, c)
        return
    places, lines = np.empty(some, np.uint64), np.empty(some, np.uint64)
    values, first = np.empty(some * unit, np.float32), np.empty(some * unit, np.float32)
    second = np.empty(some * unit if kernel_id == ADAM else 0, np.float32)
    for low in range(start, stop, some):
        n = np.uint64(min(some, stop - low))
        for i in range(n):
            places[i], lines[i] = np.uint64(index[np.uint64(low) + i]) * u, i * u
        own = places if at is None else at[low : min(low + some, stop)]
        copy_blocks(values, lines, _0, p, p, own, _0, n, u, p, FLOAT32)
        if kernel_id == ROWWISE:
            for i in range(n):
                first[i] = a[index[np.uint64(low) + i]]
        elif kernel_id != SGD:
            copy_blocks(first, lines, _0, a, a, places, _0, n, u, p, FLOAT32)
        if kernel_id == ADAM:
            copy_blocks(second, lines, _0, b, b, places, _0, n, u, p, FLOAT32)
        floats = min(some, stop - low) * unit
        update_dense(0, floats, kernel_id, unit, values, g[low * unit : low * unit + floats], first, second, c)
        copy_blocks(p, own, _0, values, values, lines, _0, n, u, p, FLOAT32)
        if kernel_id == ROWWISE:
            for i in range(n):
                a[index[np.uint64(low) + i]] = first[i]
        elif kernel_id != SGD:
            copy_blocks(a, places, _0, first, first, lines, _0, n, u, p, FLOAT32)
        if kernel_id == ADAM:
            copy_blocks(b, places, _0, second, second, lines, _0, n, u, p, FLOAT32)
