"""Tensor trains from their definition, an id at a time, in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
from reference.tables import radix


def digits(i: int, bases) -> list[int]:
    """Least significant first."""
    out = []
    for base in bases:
        out.append(i % base)
        i //= base
    return out


def factors(dim: int, n: int) -> list[int]:
    """The n factors with the least sum, smaller ones in case of a tie; the largest first, the second largest last."""
    divisors = [d for d in range(1, dim + 1) if dim % d == 0]
    splits = [s for s in itertools.combinations_with_replacement(divisors, n) if math.prod(s) == dim]
    *middle, second, first = min(splits, key=lambda s: (sum(s), s))
    return [first, *sorted(middle, reverse=True), second]


def cores(arrays, vocab: int, dim: int, ranks) -> list[np.ndarray]:
    """G_k (v_k, r_(k−1), d_k, r_k) from flat rows."""
    n = len(ranks) + 1
    lefts, rights = [1, *ranks], [*ranks, 1]
    return [
        np.asarray(a, np.float64).reshape(v, left, d, right)
        for a, v, left, d, right in zip(arrays, radix(vocab, n), lefts, factors(dim, n), rights, strict=True)
    ]


def product(slices) -> np.ndarray:
    """The chain product of (r, d, r') slices: (r of the first, all d, r' of the last)."""
    out = slices[0]
    for s in slices[1:]:
        out = np.einsum("adb,bec->adec", out, s).reshape(out.shape[0], -1, s.shape[2])
    return out


def lookup(ids, train) -> np.ndarray:
    """Vectors of flat ids."""
    bases = [len(g) for g in train]
    dim = math.prod(g.shape[2] for g in train)
    out = np.zeros((len(ids), dim))
    for n, i in enumerate(ids):
        out[n] = product([g[j] for g, j in zip(train, digits(int(i), bases), strict=True)]).reshape(-1)
    return out


def backward(ids, grads, train) -> list[np.ndarray]:
    """The gradient of every core: what stands left and right of a slice, times the vector's gradient."""
    bases = [len(g) for g in train]
    out = [np.zeros_like(g) for g in train]
    for i, grad in zip(ids, np.asarray(grads, np.float64), strict=True):
        at = digits(int(i), bases)
        slices = [g[j] for g, j in zip(train, at, strict=True)]
        one = np.ones((1, 1, 1))
        for k, s in enumerate(slices):
            left = product([one, *slices[:k]])[0]  # (all d before, r)
            right = product([*slices[k + 1 :], one])[:, :, 0]  # (r', all d after)
            g = grad.reshape(len(left), s.shape[1], right.shape[1])
            out[k][at[k]] += np.einsum("ar,ade,se->rds", left, g, right)
    return out
