"""Deep Hash Embeddings on the device: the hashes by a Triton kernel, the network in plain torch.

    uniform:  x_j = 2·h_j(i) / (m − 1) − 1
    gaussian: x_j, x_{j+1} = √(−2 ln u) · (cos, sin)(2π·v)    with u = (h_j(i) + 1) / m, v = h_{j+1}(i) / m

Nearly all of the work is the network's matrix products, which belong to the vendor's library; a kernel of ours would have nothing
to fuse them with but the encoding, and that is n · k floats beside n · k · w multiplications. Not measured. Differentiable by
torch.
"""

from __future__ import annotations

import functools

from cce_core.method.deep_hash import BUCKETS, hash_keys
from cce_core.method.spec import TableSpec
from cce_kernels.hashing import as_word, keyed, multiply_high, premix
from cce_kernels.launch import Arrays
from cce_kernels.runtime import INTERPRETED, call, checked_ids, floats, on_device, power_of_two, tl, torch, triton

_BUCKETS = tl.constexpr(BUCKETS)
_TILE = 1 << 15 if INTERPRETED else 1 << 11


@triton.jit
def _encode(ids, keys, out, n, hashes, N: tl.constexpr, H: tl.constexpr, GAUSSIAN: tl.constexpr):
    """Program (block of ids, block of hashes); where GAUSSIAN, each lane draws its pair's two hashes and takes its own half."""
    p = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    j = tl.program_id(1) * H + tl.arange(0, H)
    here = j < hashes
    word = premix(as_word(tl.load(ids + p, mask=p < n, other=0)))[:, None]
    buckets = tl.full([1, 1], _BUCKETS, tl.uint64)
    if GAUSSIAN:
        first = (j // 2) * 2
        u = multiply_high(keyed(word, tl.load(keys + first, mask=here, other=0)[None, :]), buckets)
        v = multiply_high(keyed(word, tl.load(keys + first + 1, mask=here, other=0)[None, :]), buckets)
        radius = tl.sqrt_rn(-2.0 * tl.log((u.to(tl.float32) + 1.0) * (1.0 / _BUCKETS)))
        angle = v.to(tl.float32) * (6.283185307179586 / _BUCKETS)
        value = radius * tl.where((j % 2 == 0)[None, :], tl.cos(angle), tl.sin(angle))
    else:
        h = multiply_high(keyed(word, tl.load(keys + j, mask=here, other=0)[None, :]), buckets)
        value = h.to(tl.float32) * (2.0 / (_BUCKETS - 1)) - 1.0
    tl.store(out + p[:, None] * hashes + j[None, :], value, mask=(p < n)[:, None] & here[None, :])


@functools.lru_cache(maxsize=64)
def _keys(spec: TableSpec, device: torch.device) -> torch.Tensor:
    return torch.tensor(hash_keys(spec)).to(device)


def encode(spec: TableSpec, ids: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
    """The features of flat ids: float32 (n, hashes), under keys that follow from the spec's seed, or given ones (int64)."""
    hashes, (n,) = spec.sizes[0], ids.shape
    words = _keys(spec, ids.device) if keys is None else keys.view(torch.uint64)
    out = torch.empty((n, hashes), dtype=torch.float32, device=ids.device)
    wide = min(power_of_two(hashes), 256)
    block = max(1, min(_TILE // wide, power_of_two(max(1, n))))
    if n:
        call(_encode, (triton.cdiv(n, block), triton.cdiv(hashes, wide)),
            ids, words, out, n, hashes, N=block, H=wide,
            GAUSSIAN=spec.option("transform") == "gaussian",
        )  # fmt: skip
    return out


def lookup(spec: TableSpec, arrays: Arrays, ids: torch.Tensor, *, check: bool = True) -> torch.Tensor:
    """The vectors of ids, float32 (*ids.shape, dim); differentiable where the weights are.

    Args:
        spec, arrays: of a `dhe` table, the arrays as torch tensors.
        ids: integers of any shape.
        check: raise IndexError for ids out of range; without it they are clamped.

    Cost:
        k hashes an id and all of the network; the layers' values cross device memory.
    """
    if spec.method != "dhe":
        raise ValueError(f"a {spec.method!r} table is no deep hash; use cce_kernels.tables")
    depth, sides = spec.sizes[2], (spec.sizes[0], *[spec.sizes[1]] * spec.sizes[2], spec.dim)
    on_device(ids=ids.contiguous(), w0=arrays["w0"])
    x = encode(spec, checked_ids(ids, spec.vocab, check))
    for layer in range(depth + 1):
        w = floats(f"w{layer}", arrays[f"w{layer}"], sides[layer : layer + 2])
        x = torch.addmm(floats(f"b{layer}", arrays[f"b{layer}"], sides[layer + 1 : layer + 2]), x, w)
        if layer < depth:
            x = torch.nn.functional.mish(x)
    return x.view(*ids.shape, spec.dim)


def backward(
    spec: TableSpec, arrays: Arrays, ids: torch.Tensor, grads: torch.Tensor, *, check: bool = True
) -> dict[str, torch.Tensor]:
    """The gradients of all weights and biases, given those of the vectors; the forward pass is made again."""
    own = {name: array.detach().requires_grad_() for name, array in arrays.items()}
    with torch.enable_grad():
        vectors = lookup(spec, own, ids, check=check)
    floats("grads", grads, tuple(vectors.shape))
    return dict(zip(own, torch.autograd.grad(vectors, list(own.values()), grads)))
