"""k-means on the device whose centroids are the windows of one circular memory: the rules of `cce_core.clustering.circular`.

    window[p, i] = memory[(p + i) mod m]        memory[j] = Σ w_n X[n, i] / Σ w_n   over all n, i with (label_n + i) mod m = j

The windows are laid out, m · w floats, and searched as centroids: labels are those of `circular_assign`, ties and all. Sums are
float64, in a fixed order.
"""

from __future__ import annotations

from cce_kernels import kmeans
from cce_kernels.ordered import sum_runs
from cce_kernels.runtime import torch


def windows(memory: torch.Tensor, width: int) -> torch.Tensor:
    """All windows of a flat memory: float32 (m, width)."""
    m = len(memory)
    place = torch.arange(m, device=memory.device)[:, None] + torch.arange(width, device=memory.device)
    return memory[place % m]


def update(
    X: torch.Tensor, labels: torch.Tensor, memory: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """The memory nearest to points at given offsets, float32 (m,); a cell on which nothing with weight lies keeps its value.

    Args:
        X: float32 (n, w).
        labels: int32 (n,) in [0, m).
        memory: float32 (m,); it is not changed.
        weights: float32 (n,), not negative; None lets each point count one.

    Cost:
        A sort of n·w numbers; 40 bytes each.
    """
    (n, w), m = X.shape, len(memory)
    cells = (labels.long()[:, None] + torch.arange(w, device=X.device)) % m
    mass = torch.ones(n, dtype=torch.float64, device=X.device) if weights is None else weights.double()
    both = torch.stack([X.double() * mass[:, None], mass[:, None].expand(n, w)], 2)
    sources = 2 * torch.arange(n * w, device=X.device)
    index, sums = sum_runs(cells.view(-1), sources, None, both.view(-1), 2)
    out, there = memory.clone(), sums[:, 1] > 0
    out[index[there]] = (sums[there, 0] / sums[there, 1]).float()
    return out


def k_means(
    X: torch.Tensor, memory: torch.Tensor, n_iter: int = 25, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, float, int]:
    """Lloyd's iteration from a start, as `cce_core.clustering.circular_k_means` makes it; the inertia is never higher.

    Returns:
        The memory, float32 (m,), offsets of the nearest windows, int32 (n,), their inertia, and the iterations made.
    """
    width = X.shape[1]
    labels, costs = kmeans.assign(X, windows(memory, width))
    inertia, made = kmeans.total(costs, weights), 0
    while made < n_iter:
        moved = update(X, labels, memory, weights)
        if torch.equal(moved, memory):
            break
        new_labels, costs = kmeans.assign(X, windows(moved, width))
        cost, before = kmeans.total(costs, weights), inertia
        if cost > inertia:
            break
        unchanged = torch.equal(new_labels, labels)
        labels, memory, inertia, made = new_labels, moved, cost, made + 1
        if unchanged or before <= inertia:
            break
    return memory.clone(), labels, inertia, made
