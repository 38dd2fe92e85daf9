"""Orthogonal matching pursuit on the device, in plain torch: the sparse codes of `cce_core.clustering.pursuit.omp`.

    x ≈ Σ_t weight_t · D[index_t],   each index the atom with the largest |⟨residual, D_j⟩| / |D_j|, weights by least squares

A turn is one product of all residuals with all atoms, which belongs to the vendor's library, and a Gram-Schmidt step a row. All
is float64, so that choices are the CPU's but where products agree to the last bits.
"""

from __future__ import annotations

from cce_kernels.runtime import torch

_AT_ONCE = 1 << 26  # products of rows and atoms held at a time
_LEAST, _APART = 1e-6, 0.01  # the CPU's: what an atom must explain, how far from the others it must be


def omp(X: torch.Tensor, D: torch.Tensor, n_nonzero: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices, int64 (n, s), distinct within a row, in the order taken; weights, float32 (n, s).

    Args:
        X: float32 (n, dim), finite.
        D: float32 (K, dim); atoms of length 0 are never taken.
        n_nonzero: s, 1 to K.

    Cost:
        2·n·s·K·dim float64 operations; scratch of half a gigabyte at most, beside that of the rows.
    """
    norms = D.double().norm(dim=1)
    atoms = D.double() / torch.where(norms > 0, norms, 1.0)[:, None]
    parts = [_coded(x, atoms, norms, n_nonzero) for x in X.split(max(1, _AT_ONCE // len(D)))]
    return torch.cat([index for index, _ in parts]), torch.cat([weights for _, weights in parts])


def _coded(x: torch.Tensor, atoms: torch.Tensor, norms: torch.Tensor, s: int) -> tuple[torch.Tensor, torch.Tensor]:
    (n, dim), device = x.shape, x.device
    residual = x.double()
    sizes = residual.norm(dim=1)
    residual = residual / torch.where(sizes > 0, sizes, 1.0)[:, None]
    basis = torch.zeros((n, s, dim), dtype=torch.float64, device=device)
    triangle = torch.zeros((n, s, s), dtype=torch.float64, device=device)
    heights = torch.zeros((n, s), dtype=torch.float64, device=device)
    index = torch.zeros((n, s), dtype=torch.int64, device=device)
    counts = torch.zeros(n, dtype=torch.int64, device=device)
    for turn in range(s):
        products = (residual @ atoms.T).abs_()
        top = products.amax(1, keepdim=True)
        # the lowest of equal atoms, however their sums were rounded
        best = (products >= top - 2.0**-52 * dim).to(torch.uint8).argmax(1)
        live = (counts == turn) & (products.gather(1, best[:, None])[:, 0] > _LEAST)
        new = atoms[best]
        again = torch.ones_like(live)
        for _ in range(2):  # once more where much was taken away
            for t in range(turn):
                share = torch.where(again, (basis[:, t] * new).sum(1), 0.0)
                triangle[:, t, turn] += share
                new = new - share[:, None] * basis[:, t]
            again = again & (new.square().sum(1) <= 0.5)
        size = new.norm(dim=1)
        live = live & (size >= _APART)
        new = torch.where(live[:, None], new / torch.where(live, size, 1.0)[:, None], 0.0)
        height = (new * residual).sum(1)
        residual = residual - height[:, None] * new
        basis[:, turn], heights[:, turn], triangle[:, turn, turn] = new, height, torch.where(live, size, 1.0)
        index[:, turn] = torch.where(live, best, 0)
        counts += live
    return _filled(index, counts, s), _weights(triangle, heights, counts, sizes, norms, index)


def _weights(
    triangle: torch.Tensor, heights: torch.Tensor, counts: torch.Tensor, sizes: torch.Tensor, norms: torch.Tensor,
    index: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Least-squares weights by back-substitution; 0 from a row's end on."""
    s = heights.shape[1]
    out = torch.zeros_like(heights)
    for t in reversed(range(s)):
        known = heights[:, t] - (triangle[:, t, t + 1 :] * out[:, t + 1 :]).sum(1)
        out[:, t] = torch.where(counts > t, known / triangle[:, t, t], 0.0)
    length = norms[index]
    return (out * sizes[:, None] / torch.where(length > 0, length, 1.0)).float()


def _filled(index: torch.Tensor, counts: torch.Tensor, s: int) -> torch.Tensor:
    """Rows that ended early filled up with the lowest atoms that they have not."""
    first = torch.arange(s, device=index.device)
    for t in range(s):
        used = (index[:, :t, None] == first).any(1)
        index[:, t] = torch.where(counts > t, index[:, t], used.int().argmin(1))
    return index
