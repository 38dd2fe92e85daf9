"""Codes and scales of a memory on the device: the bits of `cce_core.storage.codec`, rounded to the nearest or at random."""

from __future__ import annotations

from typing import Any

from cce_core.storage.codec import BFLOAT16, BLOCK, FLOAT32, INT4, Codec
from cce_kernels.addresses import fetch
from cce_kernels.hashing import keyed, premix
from cce_kernels.runtime import INTERPRETED, call, tl, torch, triton

_BFLOAT16, _INT4, _BLOCK = tl.constexpr(BFLOAT16), tl.constexpr(INT4), tl.constexpr(BLOCK)
_BLOCKS = 256 if INTERPRETED else 16  # of 64 floats, a program


@triton.jit
def _drawn(place, key, SHIFT: tl.constexpr):
    return keyed(premix(place.to(tl.uint64)), tl.load(key)) >> SHIFT


@triton.jit
def _encode_bfloat16(bits, codes, key, size, N: tl.constexpr, RANDOM: tl.constexpr):
    """The upper halves of float32 words, never rounded up to infinity."""
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    word = tl.load(bits + i, mask=i < size, other=0).to(tl.uint32, bitcast=True)
    if RANDOM:
        more = _drawn(i, key, 48).to(tl.uint32)
    else:
        more = 0x7FFF + ((word >> 16) & 1)
    up = (word + more) >> 16
    up = tl.where((up & 0x7F80) == 0x7F80, word >> 16, up)
    tl.store(codes + i, up.to(tl.uint16), mask=i < size)


@triton.jit
def _whole(value, place, largest, most, key, RANDOM: tl.constexpr):
    """value / largest · most, rounded, within [−most, most]; 0 where the largest is."""
    safe = tl.where(largest > 0.0, largest, 1.0) + tl.zeros_like(value)
    exact = tl.where(largest > 0.0, tl.div_rn(value, safe) * most, 0.0)
    half = tl.full([1, 1], 0.5, tl.float32)
    if RANDOM:
        half = _drawn(place, key, 40).to(tl.float32) * 5.9604644775390625e-08
    return tl.minimum(tl.maximum(tl.floor(exact + half), -most), most)


@triton.jit
def _encode_scaled(values, codes, scales, key, size, most, N: tl.constexpr, FOUR: tl.constexpr, RANDOM: tl.constexpr):
    """Blocks of 64 floats, each with its scale; int4 puts an even float and the odd one after it into a byte."""
    block = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    place = block[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    value = tl.load(values + place, mask=place < size, other=0.0)
    largest = tl.max(tl.abs(value), 1)
    scale = tl.div_rn(largest, most + tl.zeros_like(largest))
    finite = tl.abs(scale * most) < float("inf")
    scale = tl.where(finite, scale, scale * 0.99999988079071044921875)
    tl.store(scales + block, scale, mask=block * _BLOCK < size)
    largest = tl.where(scale > 0.0, largest, 0.0)  # floats so small that their scale is 0 are 0
    if FOUR:
        even = block[:, None] * _BLOCK + 2 * tl.arange(0, _BLOCK // 2)[None, :]
        low = tl.load(values + even, mask=even < size, other=0.0)
        high = tl.load(values + even + 1, mask=even + 1 < size, other=0.0)
        low = _whole(low, even, largest[:, None], most, key, RANDOM) + 8.0
        high = tl.where(even + 1 < size, _whole(high, even + 1, largest[:, None], most, key, RANDOM) + 8.0, 0.0)
        both = low.to(tl.int32) | (high.to(tl.int32) << 4)
        tl.store(codes + (even >> 1), both.to(tl.uint8), mask=even < size)
    else:
        whole = _whole(value, place, largest[:, None], most, key, RANDOM)
        tl.store(codes + place, whole.to(tl.int32).to(tl.int8), mask=place < size)


@triton.jit
def _decode(codes, scales, out, size, N: tl.constexpr, CODEC: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    start = codes.to(tl.int64, bitcast=True)
    value = fetch(start, scales.to(tl.int64, bitcast=True), 0, i.to(tl.uint64), i < size, CODEC, 1)
    tl.store(out + i, value, mask=i < size)


def encode_into(codec: Codec, values: torch.Tensor, codes: torch.Tensor, scales: Any, key: int | None = None) -> None:
    """Round flat float32 values into codes and scales, with the bits of `Codec.encode_into`; at random under a key."""
    size = values.numel()
    if codec.number == FLOAT32:
        codes.copy_(values)
        return
    word = torch.tensor([key or 0], dtype=torch.uint64).to(values.device)
    block = _BLOCKS * BLOCK
    if codec.number == BFLOAT16:
        call(
            _encode_bfloat16,
            (triton.cdiv(size, block),),
            values.view(torch.int32),
            codes.view(torch.uint16),
            word,
            size,
            N=block,
            RANDOM=key is not None,
        )
    else:
        call(_encode_scaled, (triton.cdiv(size, block),),
            values, codes, scales, word, size, float(codec.most), N=_BLOCKS, FOUR=codec.number == INT4,
            RANDOM=key is not None,
        )  # fmt: skip


def decode(codec: Codec, codes: torch.Tensor, scales: torch.Tensor | None, size: int) -> torch.Tensor:
    """The `size` floats that codes and scales stand for, float32."""
    out = torch.empty(size, dtype=torch.float32, device=codes.device)
    block = _BLOCKS * BLOCK
    codes = codes.view(torch.uint16) if codec.number == BFLOAT16 else codes
    call(
        _decode,
        (triton.cdiv(size, block),),
        codes,
        out if scales is None else scales,
        out,
        size,
        N=block,
        CODEC=codec.number,
    )
    return out
