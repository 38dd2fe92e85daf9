"""K-SVD with the approximate update of an atom, by its definition: float64 loops, rounded to float32 once an iteration."""

from __future__ import annotations

import numpy as np
from reference import omp as coder


def left(X, D, indices, weights):
    """What the codes leave of the rows, float64."""
    rows = [x - sum(w * D[j].astype(float) for j, w in zip(js, ws)) for x, js, ws in zip(X, indices, weights)]
    return np.array(rows).reshape(X.shape)


def iterate(X, D, s, n_iter):
    """From the atoms D of length 1: (atoms, indices, weights, errors). Unused atoms stay as they are."""
    X, D = np.asarray(X, np.float32).astype(float), np.asarray(D, np.float32)
    indices, weights = coder.omp(X, D, s)
    errors = [np.sum(left(X, D, indices, weights) ** 2)]
    for _ in range(n_iter):
        exact, weights = D.astype(float), weights.astype(np.float32).astype(float)
        for j, d in enumerate(exact):
            users = [(n, t) for n, t in np.argwhere(indices == j) if weights[n, t] != 0]
            # Rows without the part of atom j: what atom j alone has to explain.
            alone = {n: left(X[n : n + 1], exact, indices[n : n + 1], weights[n : n + 1])[0] for n, _ in users}
            alone = {n: alone[n] + weights[n, t] * d for n, t in users}
            new = sum((weights[n, t] * alone[n] for n, t in users), np.zeros(len(d)))
            if new.any():
                exact[j] = new / np.sqrt(sum(new * new))
                for n, t in users:
                    weights[n, t] = alone[n] @ exact[j]
        D = exact.astype(np.float32)
        again, fitted = coder.omp(X, D, s)
        old = np.sum(left(X, D, indices, weights) ** 2, axis=1)
        better = np.sum(left(X, D, again, fitted) ** 2, axis=1) < old
        indices, weights = np.where(better[:, None], again, indices), np.where(better[:, None], fitted, weights)
        errors.append(np.sum(left(X, D, indices, weights) ** 2))
    return D, indices, weights, errors
