"""Dense and sparse CCE for least squares as the paper writes them: X·H and Y handed to a solver, sums by loops."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

RCOND = 1e-12  # singular values of X·H below this share of the largest are left out


class Step(NamedTuple):
    H: np.ndarray
    M: np.ndarray
    T: np.ndarray
    loss: float


def loss(X, T, Y):
    """Σ over all rows and columns of (X·T − Y)²."""
    return math.fsum(
        (math.fsum(float(x) * float(t) for x, t in zip(row, column)) - float(y)) ** 2
        for row, targets in zip(X, Y)
        for column, y in zip(T.T, targets)
    )


def solved(X, H, Y):
    M = np.linalg.lstsq(X @ H, Y, rcond=RCOND)[0]
    return Step(H, M, H @ M, loss(X, H @ M, Y))


def dense(X, Y, k, steps, seed, noise="plain"):
    """The steps of Algorithm 1, that of T = 0 first."""
    X, Y = np.asarray(X, float), np.asarray(Y, float)
    (n, d1), d2 = X.shape, Y.shape[1]
    rng = np.random.default_rng(seed)
    T = np.zeros((d1, d2))
    out = [Step(np.zeros((d1, k)), np.zeros((k, d2)), T, loss(X, T, Y))]
    for _ in range(steps):
        if noise == "plain":
            G = rng.standard_normal((d1, k - d2))
        else:
            G = np.linalg.pinv(X, rcond=RCOND) @ rng.standard_normal((n, k - d2))
        out.append(solved(X, np.hstack([out[-1].T, G]), Y))
    return out


def sparse(X, Y, k, steps, seed, cluster, sketch="count"):
    """The steps of Algorithm 2; `cluster(T, clusters, seed)` gives the cluster of each row of T."""
    X, Y = np.asarray(X, float), np.asarray(Y, float)
    d1, d2 = X.shape[1], Y.shape[1]
    rng = np.random.default_rng(seed)
    T = np.zeros((d1, d2))
    out = [Step(np.zeros((d1, k)), np.zeros((k, d2)), T, loss(X, T, Y))]
    for _ in range(steps):
        H = np.zeros((d1, k))
        clusters = cluster(out[-1].T, k // 2, int(rng.integers(2**63)))
        hashes = rng.integers(k - k // 2, size=d1)
        signs = rng.choice([-1.0, 1.0], size=d1) if sketch == "count" else [1.0] * d1
        for row in range(d1):
            H[row, clusters[row]] = 1.0
            H[row, k // 2 + hashes[row]] = signs[row]
        out.append(solved(X, H, Y))
    return out


def rho(X, noise="plain"):
    """σ_min² / Σσ² over the singular values that are not 0, or one over their number."""
    values = [float(s) for s in np.linalg.svd(np.asarray(X, float), compute_uv=False)]
    values = [s for s in values if s > RCOND * max(values)]
    return 1.0 / len(values) if noise == "shaped" else min(values) ** 2 / math.fsum(s**2 for s in values)


def bound(X, Y, noise_columns, steps, noise="plain"):
    """(1 − ρ)^(i·m)·‖X·T*‖² + ‖X·T* − Y‖² for i = 0 … steps."""
    X, Y = np.asarray(X, float), np.asarray(Y, float)
    best = np.linalg.lstsq(X, Y, rcond=RCOND)[0]
    explained, left = loss(X, best, np.zeros_like(Y)), loss(X, best, Y)
    return [(1.0 - rho(X, noise)) ** (i * noise_columns) * explained + left for i in range(steps + 1)]
