"""What the optimisers do to numbers: their formulas as compiled loops."""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core._jit import jit

SGD, ADAGRAD, ROWWISE, ADAM = range(4)  # how compiled loops know the formulas
_1 = np.float32(1.0)


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
def sgd_touched(start: int, stop: int, p: Any, index: Any, g: Any, lr: Any) -> None:
    for n in range(start, stop):
        at = index[n] * g.shape[1]
        for i in range(g.shape[1]):
            p[at + i] -= lr * g[n, i]


@jit
def adagrad(start: int, stop: int, p: Any, index: Any, g: Any, sums: Any, lr: Any, eps: Any, rowwise: bool) -> None:
    unit = g.shape[1]
    for n in range(start, stop):
        row = n if index is None else index[n]
        if rowwise:
            mean = np.float32(0.0)
            for i in range(unit):
                mean += g[n, i] * g[n, i]
            sums[row] += mean / np.float32(unit)
            scale = lr / (np.sqrt(sums[row]) + eps)
            for i in range(unit):
                p[row * unit + i] -= scale * g[n, i]
        else:
            for i in range(unit):
                at = row * unit + i
                sums[at] += g[n, i] * g[n, i]
                p[at] -= lr * g[n, i] / (np.sqrt(sums[at]) + eps)


@jit
def adam(
    start: int, stop: int, p: Any, g: Any, m: Any, v: Any,
    beta1: float, beta2: float, keep: float, rate: float, correct: float, eps: float,
) -> None:  # fmt: skip
    b1, b2, k, r = np.float32(beta1), np.float32(beta2), np.float32(keep), np.float32(rate)
    c, e, a1, a2 = np.float32(correct), np.float32(eps), _1 - b1, _1 - b2
    for i in range(np.uint64(start), np.uint64(stop)):  # unsigned, so that the loop becomes vector instructions
        mean = b1 * m[i] + a1 * g[i]
        square = b2 * v[i] + a2 * g[i] * g[i]
        m[i] = mean
        v[i] = square
        p[i] = k * p[i] - r * mean / (np.sqrt(square) * c + e)


@jit
def adam_touched(
    start: int, stop: int, p: Any, index: Any, g: Any, m: Any, v: Any,
    beta1: float, beta2: float, keep: float, rate: float, correct: float, eps: float,
) -> None:  # fmt: skip
    unit = g.shape[1]
    for n in range(start, stop):
        at = index[n] * unit
        own = slice(at, at + unit)
        adam(0, unit, p[own], g[n], m[own], v[own], beta1, beta2, keep, rate, correct, eps)
