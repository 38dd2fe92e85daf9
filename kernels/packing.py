"""Packed pointers on the device: the same words as `cce_core.storage.packed`, read and written."""

from __future__ import annotations

from cce_core.storage.packed import Packing
from cce_kernels.addresses import read_bits
from cce_kernels.runtime import INTERPRETED, tl, torch, triton

_BLOCK = 1 << 13 if INTERPRETED else 1 << 10


@triton.jit
def put_bits(words, position, bits, value, live):
    """Set the `bits` bits from bit `position` on, which must all be 0: atomic, so that fields of one word never race."""
    live = live & (bits > 0)
    word, shift = position >> 6, (position & 63).to(tl.uint64)
    tl.atomic_or(words + word, value << shift, mask=live, sem="relaxed")
    over = (position & 63) + bits > 64
    tl.atomic_or(words + word + 1, (value >> 1) >> (63 - shift), mask=live & over, sem="relaxed")


@triton.jit
def _read(words, ids, out, n, per_id, offset, bits, N: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    live = i < n
    position = (tl.load(ids + i, mask=live, other=0) * per_id + offset).to(tl.uint64)
    field = read_bits(words, position, (bits + tl.zeros_like(i)).to(tl.uint64), live)
    tl.store(out + i, field.to(tl.int32), mask=live)


@triton.jit
def _write(words, values, n, first, per_id, offset, bits, N: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    live = i < n
    value = tl.load(values + i, mask=live, other=0).to(tl.uint64)
    put_bits(words, (first + i) * per_id + offset, bits + tl.zeros_like(i), value, live)


def read(packing: Packing, words: torch.Tensor, field: int, ids: torch.Tensor) -> torch.Tensor:
    """Field `field` of int64 ids (all within the packing): int32 (n,)."""
    out = torch.empty(ids.shape, dtype=torch.int32, device=ids.device)
    if ids.numel():
        _read[(triton.cdiv(ids.numel(), _BLOCK),)](
            words.view(torch.uint64), ids, out, ids.numel(), packing.bits_per_id, packing.offsets[field],
            packing.bits[field], N=_BLOCK,
        )  # fmt: skip
    return out


def write(packing: Packing, words: torch.Tensor, field: int, first: int, values: torch.Tensor) -> None:
    """Put int32 values, which fit their bits, into field `field` of the ids from `first` on; it must hold zeros there."""
    if values.numel():
        _write[(triton.cdiv(values.numel(), _BLOCK),)](
            words.view(torch.uint64), values, values.numel(), first, packing.bits_per_id, packing.offsets[field],
            packing.bits[field], N=_BLOCK,
        )  # fmt: skip
