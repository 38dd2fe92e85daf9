"""k-means and entropies by their definitions: loops over points, distances one coordinate after the other."""

from __future__ import annotations

import collections
import math

import numpy as np


def distances(X, C):
    """float32 (n, k): Σ_j (X[n, j] − C[c, j])², each step rounded, in the order of j."""
    X, C = np.asarray(X, np.float32), np.asarray(C, np.float32)
    out = np.zeros((len(X), len(C)), np.float32)
    for j in range(X.shape[1]):
        apart = X[:, j, None] - C[None, :, j]
        out = out + apart * apart
    return out


def assign(X, C):
    """Nearest centroids (argmin takes the first of equals) and the squared distances to them."""
    table = distances(X, C)
    labels = table.argmin(axis=1)
    return labels.astype(np.int32), table[np.arange(len(table)), labels]


def update(X, labels, k, weights=None):
    """Weighted means and weights of the labels, 0 for those without weight."""
    X = np.asarray(X, np.float32).astype(np.float64)
    weights = np.ones(len(X)) if weights is None else np.asarray(weights, np.float32).astype(np.float64)
    centroids, counts = np.zeros((k, X.shape[1])), np.zeros(k)
    for x, label, weight in zip(X, labels, weights):
        centroids[label] += weight * x
        counts[label] += weight
    for c in range(k):
        if counts[c] > 0:
            centroids[c] /= counts[c]
    return centroids.astype(np.float32), counts


def inertia(costs, weights=None):
    weights = [1.0] * len(costs) if weights is None else weights
    return math.fsum(float(c) * float(w) for c, w in zip(costs, weights))


def lloyd(X, C, n_iter):
    """The textbook: n_iter times means, then nearest centroids, with no rule for stopping or for empty clusters.

    An empty cluster stays where it is. Returns (centroids, labels).
    """
    C = np.asarray(C, np.float32)
    labels, _ = assign(X, C)
    for _ in range(n_iter):
        moved, counts = update(X, labels, len(C))
        C = np.where(counts[:, None] > 0, moved, C)
        labels, _ = assign(X, C)
    return C, labels


def refill(X, labels, costs, k, weights=None):
    """Give each empty cluster, in order, the costliest point that costs anything, whose like has not been given yet and
    that is not the last with weight of its cluster."""
    weights = np.ones(len(X)) if weights is None else np.asarray(weights, np.float64)
    labels = labels.copy()
    left = collections.Counter(int(c) for c, w in zip(labels, weights) if w > 0)
    shares = [float(c) * float(w) for c, w in zip(costs, weights)]
    order = sorted(range(len(X)), key=lambda n: (-shares[n], n))
    empty, seen = [c for c in range(k) if not left[c]], set()
    for n in order:
        value = tuple(float(v) for v in X[n])
        if empty and shares[n] > 0 and left[int(labels[n])] > 1 and value not in seen:
            left[int(labels[n])] -= 1
            labels[n] = empty.pop(0)
            seen.add(value)
    return labels


def kmeans(X, C, n_iter, weights=None):
    """Lloyd's iteration with empty clusters refilled, until nothing changes. Returns (centroids, labels)."""
    X, C = np.asarray(X, np.float32), np.asarray(C, np.float32)
    labels, costs = assign(X, C)
    for _ in range(n_iter):
        moved, counts = update(X, refill(X, labels, costs, len(C), weights), len(C), weights)
        moved = np.where(counts[:, None] > 0, moved, C)
        if (moved == C).all():
            break
        new_labels, new_costs = assign(X, moved)
        if inertia(new_costs, weights) > inertia(costs, weights):
            break
        C, labels, costs = moved, new_labels, new_costs
    return C, labels


def stream(batches, C):
    """Each batch's points to their nearest centroids, then these to the mean of all they have seen; empty ones refilled."""
    C, counts = np.asarray(C, np.float32), np.zeros(len(C))
    for X, weights in batches:
        labels, costs = assign(X, C)
        now = np.bincount(labels, weights, minlength=len(C))
        spare = [c for c in range(len(C)) if now[c] == 0 and counts[c] == 0]
        if spare:  # those that have seen points before are not refilled: they take no part
            names = {c: i for i, c in enumerate([c for c in range(len(C)) if now[c] > 0] + spare)}
            back = {i: c for c, i in names.items()}
            mine = np.array([names[int(c)] for c in labels])
            labels = np.array([back[int(i)] for i in refill(X, mine, costs, len(names), weights)])
        sums, mass = update(X, labels, len(C), weights)
        total = counts + mass
        C = np.where(mass[:, None] > 0, C + (sums - C) * (mass / np.maximum(total, 1e-300))[:, None], C).astype(
            np.float32
        )
        counts = total
    return C, counts


def entropy(items):
    """−Σ p log p over the shares of equal items."""
    items = list(items)
    return -math.fsum(c / len(items) * math.log(c / len(items)) for c in collections.Counter(items).values())


def least_entropies(columns):
    columns = [[int(v) for v in column] for column in columns]
    pairs = [entropy(zip(a, b)) for i, a in enumerate(columns) for b in columns[:i]]
    first = min(entropy(column) for column in columns)
    return first, min(pairs, default=first)


def spread(X, k, uniforms, weights=None, trials=1):
    """k-means++ by the cumulative sum of weight · squared distance, one given uniform number a draw.

    After the first draw, `trials` are made each time; the one that leaves the least sum of costs counts, the first among
    equals.
    """
    weights = np.ones(len(X)) if weights is None else np.asarray(weights, np.float64)
    picked, shares, uniforms = [], weights, list(uniforms)
    while len(picked) < k:
        ends = np.cumsum(shares)
        if ends[-1] == 0:
            break
        drawn = [
            int(np.searchsorted(ends, uniforms.pop(0) * ends[-1], side="right")) for _ in range(trials if picked else 1)
        ]
        left = [weights * distances(X, np.asarray(X)[[*picked, point]]).min(axis=1) for point in drawn]
        best = min(range(len(drawn)), key=lambda i: left[i].sum())
        picked.append(drawn[best])
        shares = left[best]
    return [picked[i % len(picked)] for i in range(k)]


def wide(X, C, weights=None):
    """In float64: distances (n, k), the nearest centroids, and the inertia."""
    X, C = np.asarray(X, np.float64), np.asarray(C, np.float64)
    table = ((X[:, None, :] - C[None, :, :]) ** 2).sum(axis=2)
    weights = np.ones(len(X)) if weights is None else np.asarray(weights, np.float64)
    return np.sqrt(table), table.argmin(axis=1), float((table.min(axis=1) * weights).sum())
