"""Orthogonal matching pursuit by its definition: one row at a time, each residual from a least-squares fit of its own."""

from __future__ import annotations

import numpy as np


def omp(X, D, s, like=None):
    """Indices (n, s) and float64 weights (n, s). Among atoms that differ by rounding alone, that of `like` is taken,
    where it is given: a list of indices a row."""
    X, D = np.asarray(X, np.float32).astype(np.float64), np.asarray(D, np.float32).astype(np.float64)
    codes = [row_code(x, D, s, None if like is None else like[i]) for i, x in enumerate(X)]
    return np.array([c[0] for c in codes], int).reshape(-1, s), np.array([c[1] for c in codes]).reshape(-1, s)


def row_code(x, D, s, like=None):
    size = np.sqrt(sum(x * x))
    taken, weights, residual = [], [], x
    while len(taken) < s:
        products = {}
        for j, d in enumerate(D):
            if d.any() and j not in taken:
                products[j] = abs(residual @ d) / np.sqrt(sum(d * d))
        most = max(products.values(), default=0.0)
        if most <= 1e-6 * size:
            break
        equal = [j for j in products if products[j] >= most - 1e-12 * size]
        best = like[len(taken)] if like is not None and like[len(taken)] in equal else equal[0]
        if distance_from_span(D[best] / np.sqrt(sum(D[best] ** 2)), D[taken]) < 0.01:
            break
        taken.append(best)
        weights = list(np.linalg.lstsq(D[taken].T, x, rcond=None)[0])
        residual = x - weights @ D[taken]
    unused = [j for j in range(len(D)) if j not in taken]
    return taken + unused[: s - len(taken)], weights + [0.0] * (s - len(taken))


def distance_from_span(d, others):
    if not len(others):
        return 1.0
    return np.linalg.norm(d - np.linalg.lstsq(others.T, d, rcond=None)[0] @ others)
