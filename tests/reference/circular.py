"""Circular k-means by its definition: every window of the memory written out."""

from __future__ import annotations

import math

import numpy as np


def windows(memory, w, stride=1):
    """(offsets, w): window p holds memory[(p + i) mod m]."""
    m = len(memory)
    return np.array([[memory[(p + i) % m] for i in range(w)] for p in range(0, m, stride)], np.float32)


def assign(X, memory, stride=1):
    """The nearest offset (the lowest of equals) and the squared distance, float32 in the order of the coordinates."""
    X, labels, costs = np.asarray(X, np.float32), [], []
    for x in X:
        distances = []
        for window in windows(memory, X.shape[1], stride):
            total = np.float32(0)
            for a, b in zip(x, window):
                total += (a - b) * (a - b)
            distances.append(total)
        labels.append(int(np.argmin(distances)) * stride)
        costs.append(distances[labels[-1] // stride])
    return np.array(labels, np.int32), np.array(costs, np.float32)


def update(X, labels, memory, weights=None):
    """Each cell the weighted mean of the coordinates on it; a cell without weight keeps its value."""
    memory = np.array(memory, np.float32)
    sums, mass = np.zeros(len(memory)), np.zeros(len(memory))
    for n, (x, label) in enumerate(zip(np.asarray(X, np.float32).astype(float), labels)):
        weight = 1.0 if weights is None else float(np.float32(weights[n]))
        for i, value in enumerate(x):
            sums[(label + i) % len(memory)] += weight * value
            mass[(label + i) % len(memory)] += weight
    for j in range(len(memory)):
        if mass[j] > 0:
            memory[j] = sums[j] / mass[j]
    return memory


def inertia(costs, weights=None):
    weights = [1.0] * len(costs) if weights is None else weights
    return math.fsum(float(c) * float(w) for c, w in zip(costs, weights))


def k_means(X, memory, n_iter, weights=None, stride=1):
    """Lloyd's iteration until nothing changes or the inertia rises: (memory, labels, inertia)."""
    memory = np.array(memory, np.float32)
    labels, costs = assign(X, memory, stride)
    for _ in range(n_iter):
        moved = update(X, labels, memory, weights)
        new_labels, new_costs = assign(X, moved, stride)
        if inertia(new_costs, weights) > inertia(costs, weights):
            break
        memory, labels, costs = moved, new_labels, new_costs
    return memory, labels, inertia(costs, weights)
