"""The house's hash in Triton: the same bits as `cce_core.hashing.mix`.

    hash(x; key) = F(G(x) ^ key)            bucket(x; key, n) = floor(hash · n / 2^64)

`premix`, `keyed` and `multiply_high` are device functions for other kernels; `mix_hash` launches them alone. On the CPU
they run under Triton's interpreter (`TRITON_INTERPRET=1`, set before this file is imported).
"""

from __future__ import annotations

from cce_core.hashing.mix import F1, F2, F3, G1, derive_key
from cce_kernels.runtime import INTEGERS, call, tl, torch, triton

# A product with a uint64 is one, whatever these are.
_G1, _F1, _F2, _F3 = tl.constexpr(G1), tl.constexpr(F1), tl.constexpr(F2), tl.constexpr(F3)

_BLOCK = 1024


@triton.jit
def premix(x):
    """G of uint64 `x`: the keyless half, once an id."""
    x = x ^ (x >> 32)
    x = x * _G1
    return x ^ (x >> 29)


@triton.jit
def keyed(premixed, key):
    """F(G(x) ^ key) of uint64 words: the keyed half, once a hash."""
    z = (premixed ^ key) * _F1
    z = z ^ (z >> 32)
    z = z * _F2
    z = z ^ (z >> 29)
    z = z * _F3
    return z ^ (z >> 32)


@triton.jit
def multiply_high(a, b):
    """floor(a·b / 2^64) of uint64 `a` and `b`, in one instruction."""
    return tl.umulhi(a, b)


@triton.jit
def as_word(ids):
    """Ids of any integer type as 64-bit words: signed types are extended by their sign, as in `cce_core`."""
    return ids.to(tl.uint64)


@triton.jit
def _mix_hash(ids, keys, n_buckets, out, n_ids, n_keys: tl.constexpr, BLOCK: tl.constexpr):
    """out[n, k] = bucket(ids[n]; keys[k], n_buckets[0]), or the whole hash where n_buckets[0] is 0."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < n_ids
    x = premix(as_word(tl.load(ids + n, mask=inside, other=0)))
    # Keys and the range come from memory: a scalar argument's type would change with its value.
    buckets = tl.load(n_buckets)
    for k in tl.static_range(n_keys):
        h = keyed(x, tl.load(keys + k))
        h = tl.where(buckets == 0, h, multiply_high(h, buckets))
        tl.store(out + n * n_keys + k, h, mask=inside)


def mix_hash(
    ids: torch.Tensor, n_buckets: int | None = None, *, seed: int = 0, streams: tuple[int, ...] = (0,)
) -> torch.Tensor:
    """Hash ids under several streams at once: `[..., k]` equals `cce_core.hashing.mix_hash(..., stream=streams[k])`.

    Args:
        ids: integers of any type and shape, on a GPU (or anywhere under the interpreter).
        n_buckets: 1 to 2^63; None gives the whole 64-bit hash.
        seed: 0 to 2^64 − 1.
        streams: which hashes; G is computed once for all of them.

    Returns:
        uint64 tensor of shape (*ids.shape, len(streams)) on the device of `ids`; `.view(torch.int64)` to index with it.

    Raises:
        TypeError: ids are not integers.
        ValueError: `n_buckets`, `seed` or a stream is out of range, or there are no streams.

    Cost:
        One multiplication an id, three a hash and one for the range; memory traffic decides.

    Example:
        >>> mix_hash(torch.arange(1000, device="cuda"), 10, streams=(0, 1)).shape  # doctest: +SKIP
        torch.Size([1000, 2])
    """
    if ids.dtype not in INTEGERS:
        raise TypeError(f"ids must be integers, got {ids.dtype}; ids = ids.to(torch.int64)")
    if n_buckets is not None and not 1 <= n_buckets <= 2**63:
        raise ValueError(f"n_buckets must be between 1 and {2**63:,}, got {n_buckets:,}")
    if not streams:
        raise ValueError("streams must name at least one hash, got none; use streams=(0,)")
    flat = ids.contiguous().view(-1)
    out = torch.empty((flat.numel(), len(streams)), dtype=torch.uint64, device=ids.device)
    if flat.numel():
        keys = torch.tensor([derive_key(seed, s) for s in streams], dtype=torch.uint64).to(ids.device)
        buckets = torch.tensor([n_buckets or 0], dtype=torch.uint64).to(ids.device)
        grid = (triton.cdiv(flat.numel(), _BLOCK),)
        call(_mix_hash, grid, flat, keys, buckets, out, flat.numel(), n_keys=len(streams), BLOCK=_BLOCK)
    return out.view(*ids.shape, len(streams))
