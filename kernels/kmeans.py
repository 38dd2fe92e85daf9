"""k-means on the device: the labels of `cce_core.clustering`, with no matrix of distances.

    label[n] = argmin_c Σ_j (X[n, j] − C[c, j])²,  ties to the lowest c;        C[c] = Σ_{label n = c} w_n X[n] / Σ w_n

Each lane of a tile (points, centroids) keeps the least distance that it has met, and where; the lanes are compared once, at the
end. Distances are float32 sums in the order of j, each step rounded, as on the CPU: exact, and 3 operations where the
expanded square would take 2 on a matrix unit that rounds more coarsely than labels can bear.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core import _check
from cce_core.hashing import derive_key
from cce_core.storage.packed import Packing
from cce_kernels.ordered import sum_runs
from cce_kernels.packing import put_bits
from cce_kernels.runtime import INTERPRETED, call, floats, on_device, power_of_two, tl, torch, triton

# Of a tile; with 32 centroids registers spill (sm_80, sm_90).
_POINTS, _CENTROIDS = (1024, 64) if INTERPRETED else (128, 16)
_NOBODY = tl.constexpr(2**31 - 1)  # past every centroid


@triton.jit
def _assign(
    x, centroids, labels, distances, words, n, k, first, per_id, offset, bits,
    N: tl.constexpr, K: tl.constexpr, D: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """N points to the nearest of all centroids, (D, k); with PACK, the labels go into the words of the ids from `first` on."""
    p = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    lane = tl.arange(0, K)
    inside = p < n
    best = tl.full([N, K], float("inf"), tl.float32)
    which = tl.full([N, K], _NOBODY, tl.int32)
    for low in range(0, k, K):
        c = low + lane
        distance = tl.zeros([N, K], tl.float32)
        if D <= 32:
            for j in tl.static_range(D):
                a = tl.load(x + p * D + j, mask=inside, other=0.0)
                b = tl.load(centroids + j * k + c, mask=c < k, other=float("inf"))
                apart = a[:, None] - b[None, :]
                distance += apart * apart
        else:
            for j in range(D):
                a = tl.load(x + p * D + j, mask=inside, other=0.0)
                b = tl.load(centroids + j * k + c, mask=c < k, other=float("inf"))
                apart = a[:, None] - b[None, :]
                distance += apart * apart
        nearer = distance < best
        which = tl.where(nearer, c[None, :] + tl.zeros([N, K], tl.int32), which)
        best = tl.where(nearer, distance, best)
    least = tl.min(best, 1)
    label = tl.min(tl.where(best == least[:, None], which, _NOBODY), 1)
    tl.store(labels + p, label, mask=inside)
    tl.store(distances + p, least, mask=inside)
    if PACK:
        put_bits(words, (first + p) * per_id + offset, bits + tl.zeros_like(p), label.to(tl.uint64), inside)


@triton.jit
def _add_up(x, labels, weights, sums, n, N: tl.constexpr, D: tl.constexpr, U: tl.constexpr, WEIGHTED: tl.constexpr):
    """sums[label, :D] += weight · x and sums[label, D] += weight, float64, by atomic additions."""
    p = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    j = tl.arange(0, U)[None, :]
    inside = p < n
    label = tl.load(labels + p, mask=inside, other=0).to(tl.int64)
    value = tl.load(x + p[:, None] * D + j, mask=inside[:, None] & (j < D), other=1.0).to(tl.float64)
    if WEIGHTED:
        value = value * tl.load(weights + p, mask=inside, other=0.0).to(tl.float64)[:, None]
    tl.atomic_add(sums + label[:, None] * (D + 1) + j, value, mask=inside[:, None] & (j <= D), sem="relaxed")


def assign(
    X: torch.Tensor, centroids: torch.Tensor, *, check: bool = True,
    pack: tuple[Packing, torch.Tensor, int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The nearest centroid of each point, with the labels of `cce_core.clustering.assign`.

    Args:
        X: float32 (n, d).
        centroids: float32 (k, d), k at least 1.
        check: refuse NaN and infinity, and scale values whose squares would leave float32 (this waits for the device).
        pack: (packing, words, field, first): also write the labels as pointers of the ids from `first` on; that field must
            hold zeros there.

    Returns:
        Labels, int32 (n,), and squared distances, float32 (n,).

    Raises:
        TypeError, ValueError: other types, shapes or devices; NaN or infinity.

    Cost:
        3·n·k·d operations; points, centroids (from cache), labels and distances cross device memory once.
    """
    device = on_device(X=X, centroids=centroids)
    for name, value in (("X", X), ("centroids", centroids)):
        if value.dim() != 2 or value.shape[1] == 0:
            raise ValueError(f"{name} must have shape (points, coordinates), got {tuple(value.shape)}")
    (n, d), k = X.shape, centroids.shape[0]
    if not 1 <= k < 2**31 - _CENTROIDS:
        raise ValueError(f"there must be at least one centroid and fewer than 2^31, got {k}")
    if k * d >= 2**31:
        raise ValueError(f"centroids must hold fewer than 2^31 floats, got {k:,} · {d:,}")
    floats("X", X, (n, d))
    floats("centroids", centroids, (k, d))
    exponent = _scale_of(X, centroids) if check else 0
    if exponent:
        X, centroids = _times_power(X, -exponent), _times_power(centroids, -exponent)
    labels = torch.empty(n, dtype=torch.int32, device=device)
    distances = torch.empty(n, dtype=torch.float32, device=device)
    place: tuple[Any, ...] = (labels, 0, 0, 0, 0)
    if pack is not None:
        packing, words, field, first = pack
        place = words.view(torch.uint64), first, packing.bits_per_id, packing.offsets[field], packing.bits[field]
    if n:
        words, *numbers = place
        call(_assign, (triton.cdiv(n, _POINTS),),
            X, centroids.T.contiguous(), labels, distances, words, n, k, *numbers, N=_POINTS, K=_CENTROIDS, D=d,
            PACK=pack is not None,
        )  # fmt: skip
    if exponent:
        distances = _times_power(distances, 2 * exponent).clamp_(max=torch.finfo(torch.float32).max)
    return labels, distances


def update(
    X: torch.Tensor,
    labels: torch.Tensor,
    k: int,
    weights: torch.Tensor | None = None,
    *,
    deterministic: bool | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of each label's points, and its weight: float32 (k, d) and float64 (k,); 0 for a label without weight.

    Args:
        X: float32 (n, d).
        labels: int32 (n,) in [0, k), as `assign` gives them.
        weights: float32 (n,), not negative; None lets each point count one.
        deterministic: add in a fixed order; None does so under `torch.use_deterministic_algorithms(True)`. Otherwise the
            float64 sums are atomic, and may differ in their last bit, seldom one of the float32 means.
    """
    device = on_device(X=X, labels=labels, weights=weights)
    n, d = X.shape
    if labels.dtype != torch.int32 or labels.shape != (n,):
        raise ValueError(f"labels must be int32 of shape ({n},), got {labels.dtype} {tuple(labels.shape)}")
    if weights is not None:
        floats("weights", weights, (n,))
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    sums = torch.zeros((k, d + 1), dtype=torch.float64, device=device)
    if deterministic and n:
        rows = torch.cat([X.double(), torch.ones((n, 1), dtype=torch.float64, device=device)], 1)
        rows = rows if weights is None else rows * weights.double()[:, None]
        index, found = sum_runs(
            labels.to(torch.int64), torch.arange(n, device=device) * (d + 1), None, rows.view(-1), d + 1
        )
        sums[index] = found
    elif n:
        wide = power_of_two(d + 1)
        block = max(1, _POINTS * _CENTROIDS // 2 // wide)
        call(
            _add_up,
            (triton.cdiv(n, block),),
            X,
            labels,
            X if weights is None else weights,
            sums,
            n,
            N=block,
            D=d,
            U=wide,
            WEIGHTED=weights is not None,
        )
    counts = sums[:, d].clone()
    return (sums[:, :d] / torch.where(counts > 0, counts, 1.0)[:, None]).float(), counts


def k_means(
    X: torch.Tensor, start: torch.Tensor, n_iter: int = 25, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, float, int]:
    """Lloyd's iteration from a start, with the rules of `cce_core.KMeans`: empty clusters refilled, inertia never higher.

    Returns:
        Centroids, float32 (k, d), labels, int32 (n,), their inertia, and the iterations made. Sums are in a fixed order.

    Raises:
        TypeError, ValueError: as for `assign`, or no point.

    Cost:
        An `assign` and an `update` an iteration; each waits for the device once.
    """
    if X.shape[0] == 0:
        raise ValueError("X must hold at least one point, got none")
    centroids, k = start.clone(), start.shape[0]
    labels, costs = assign(X, centroids)
    inertia, made = total(costs, weights), 0
    for _ in range(_check.integer("n_iter", n_iter, 0)):
        filled = refill(X, labels, costs, k, weights)
        moved, counts = update(X, filled, k, weights, deterministic=True)
        moved = torch.where(counts[:, None] > 0, moved, centroids)
        if torch.equal(moved, centroids):
            break
        new_labels, new_costs = assign(X, moved, check=False)
        cost = total(new_costs, weights)
        if cost > inertia:
            break
        unchanged = torch.equal(new_labels, labels)
        centroids, labels, costs, inertia, made = moved, new_labels, new_costs, cost, made + 1
        if unchanged:
            break
    return centroids, labels, inertia, made


def refill(
    X: torch.Tensor, labels: torch.Tensor, costs: torch.Tensor, k: int, weights: torch.Tensor | None
) -> torch.Tensor:
    """Labels in which each empty cluster has one of the points that cost most: distinct ones, never the last of its cluster."""
    heavy = labels if weights is None else labels[weights > 0]
    left = torch.bincount(heavy.to(torch.int64), minlength=k)
    empty = (left == 0).nonzero().view(-1).tolist()
    if not empty:
        return labels
    shares = costs.double() if weights is None else costs.double() * weights.double()
    order = torch.sort(shares, descending=True, stable=True).indices
    labels, counts, seen, taken = labels.clone(), left.tolist(), set(), 0
    step = 4 * len(empty) + 64
    for low in range(0, len(order), step):  # a few candidates at a time come to the host
        some = order[low : low + step]
        for n, share, label, point in zip(
            some.tolist(), shares[some].tolist(), labels[some].tolist(), X[some].cpu().numpy()
        ):
            if taken == len(empty) or share <= 0:
                return labels
            if counts[label] > 1 and (value := tuple(point.tolist())) not in seen:
                counts[label] -= 1
                labels[n] = empty[taken]
                seen.add(value)
                taken += 1
    return labels


def spread_out(X: torch.Tensor, k: int, seed: int = 0, weights: torch.Tensor | None = None) -> torch.Tensor:
    """k points drawn far from each other (k-means++, one draw each): float32 (k, d).

    Each is drawn with a chance in proportion to weight · squared distance from those before. Where fewer than k differ,
    they come again from the first on. Not the same draws as `cce_core.KMeans`, which tries several each time.

    Cost:
        k passes over X, without waiting for the device.
    """
    n = X.shape[0]
    uniforms = [derive_key(seed, j) / 2.0**64 for j in range(k)]
    draws = torch.tensor(uniforms, dtype=torch.float64).to(X.device)
    mass = torch.ones(n, dtype=torch.float64, device=X.device) if weights is None else weights.double()
    picked = torch.zeros(k, dtype=torch.int64, device=X.device)
    nearest, shares = None, mass
    for j in range(k):
        ends = ends_of(shares)
        place = torch.searchsorted(ends, (draws[j] * ends[-1]).long().view(1), right=True).clamp_(max=n - 1)
        # Nothing is left to draw from where all distances are 0: an earlier point again.
        place = torch.where(ends[-1] > 0, place, picked[j // 2])
        picked[j] = place[0]
        away = (X - X[place]).square().sum(1, dtype=torch.float64)
        nearest = away if nearest is None else torch.minimum(nearest, away)
        shares = mass * nearest
    return X[picked]


def ends_of(shares: torch.Tensor) -> torch.Tensor:
    """Where the share of each point ends, whole numbers that add up to about 2^53: their sums have no order to depend on."""
    total = shares.sum()
    return (shares * (2.0**53 / torch.where(total > 0, total, 1.0))).long().cumsum(0)


def total(costs: torch.Tensor, weights: torch.Tensor | None) -> float:
    """Σ w_n · cost_n, in float64."""
    return float((costs.double() if weights is None else costs.double() * weights.double()).sum())


def _scale_of(*arrays: torch.Tensor) -> int:
    """The exponent by which values must be scaled so that their squares stay within float32, as `cce_core` has it."""
    peaks = [array.abs().max() for array in arrays if array.numel()]
    largest = float(torch.stack(peaks).max()) if peaks else 0.0  # NaN wins
    if not np.isfinite(largest):
        raise ValueError("X and centroids must be finite, got NaN or infinity; drop or mend those rows")
    return 0 if largest == 0 or 2.0**-30 <= largest <= 2.0**50 else int(np.frexp(np.float32(largest))[1])


def _times_power(x: torch.Tensor, exponent: int) -> torch.Tensor:
    """x · 2^exponent, in two steps, since 2^exponent itself may be beyond float32."""
    half = exponent // 2
    return x * 2.0**half * 2.0 ** (exponent - half)
