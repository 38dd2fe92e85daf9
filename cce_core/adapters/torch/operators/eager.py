"""The operators in plain torch operations, on any device and in any float type; the core's own loops are the fast way.

Sums and products are taken in float32 at least, and returned so: with half types an operator reads what is stored in 16 bits,
and its caller rounds, once, at the end. A count or a sum that is kept in bfloat16 stops growing at 256.

Words of 64 bits are held in int64: products and sums wrap round there too, and a logical shift is an arithmetic one, masked.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cce_core import _check
from cce_core.adapters.torch.operators.facts import bases_of, part_of, spec_of
from cce_core.hashing import mix
from cce_core.method import deep_hash
from cce_core.sketching.layout import DIGIT, HASH, IDENTITY, POINTER, Column, Layout
from cce_core.storage import marks
from cce_core.storage.codec import BLOCK, codec

# torch 2.6 cannot tell exporting from compiling.
exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)

HALVES = (torch.float16, torch.bfloat16)
_LOW = 0xFFFFFFFF


def wide_type(kind: torch.dtype) -> torch.dtype:
    """The type that sums of a type are taken in: float32, or float64 for its own."""
    return torch.float64 if kind == torch.float64 else torch.float32


def wide(tensor: Tensor) -> Tensor:
    """A tensor in the type of its sums; itself where it is that already."""
    kind = wide_type(tensor.dtype)
    return tensor if tensor.dtype == kind else tensor.to(kind)


def narrow(grad: Tensor, kind: torch.dtype) -> Tensor:
    """A gradient in the type of its parameter: the entries of a sparse one are added up first."""
    if grad.dtype == kind:
        return grad
    return (grad.coalesce() if grad.is_sparse else grad).to(kind)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


_G1, _F1, _F2, _F3 = (_signed(c) for c in (mix.G1, mix.F1, mix.F2, mix.F3))


def _down(x: Tensor, n: int) -> Tensor:
    """The logical shift to the right by 0 < n < 64."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def premix(x: Tensor) -> Tensor:
    """`hashing.mix.premix`."""
    x = (x ^ _down(x, 32)) * _G1
    return x ^ _down(x, 29)


def keyed(premixed: Tensor, key: Tensor) -> Tensor:
    """`hashing.mix.keyed`."""
    z = (premixed ^ key) * _F1
    z = (z ^ _down(z, 32)) * _F2
    z = (z ^ _down(z, 29)) * _F3
    return z ^ _down(z, 32)


def multiply_high(a: Tensor, b: int) -> Tensor:
    """⌊a · b / 2^64⌋ of an unsigned word a and 0 < b < 2^63."""
    low, high = a & _LOW, _down(a, 32)
    b_low, b_high = b & _LOW, b >> 32
    middle = high * b_low + _down(low * b_low, 32)
    other = low * b_high + (middle & _LOW)
    return high * b_high + _down(middle, 32) + _down(other, 32)


def read_bits(words: Tensor, position: Tensor, bits: int) -> Tensor:
    """`storage.packed.read_bits`."""
    if bits == 0:
        return torch.zeros_like(position)
    word, shift = position >> 6, position & 63
    after = words[word + (shift + bits > 64)]
    here = words[word].bitwise_right_shift(shift) & ~torch.full_like(shift, -2).bitwise_left_shift(63 - shift)
    return (here | (after << 1).bitwise_left_shift(63 - shift)) & ((1 << bits) - 1)


def _ones(words: Tensor) -> Tensor:
    """How many bits of each word are 1."""
    words = words - (_down(words, 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + (_down(words, 2) & 0x3333333333333333)
    return _down(((words + _down(words, 4)) & 0x0F0F0F0F0F0F0F0F) * 0x0101010101010101, 56)


def entries(words: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """`storage.marks.entry`: whether each id has an entry, and its number (0 where it has none)."""
    block = ids // marks.IDS
    bit = ids - block * marks.IDS + marks.COUNT_BITS
    last, each = (bit >> 6)[..., None], torch.arange(marks.WORDS, device=ids.device)
    line = words[(block * marks.WORDS)[..., None] + each]
    here, shift = line.gather(-1, last), (bit & 63)[..., None]
    own = line & ~torch.full_like(shift, -1).bitwise_left_shift(shift)
    below = torch.where(each == last, own, torch.where(each < last, line, 0))
    counted = _ones(torch.where(each == 0, below & ~_LOW, below)).sum(-1) + (line[..., 0] & _LOW)
    marked = (here.bitwise_right_shift(shift) & 1)[..., 0] == 1
    return marked, torch.where(marked, counted, 0)


def _column(
    column: Column, ids: Tensor, keys: Tensor | None, pointers: Tensor | None, first: Any, marked: Any
) -> Tensor:
    """Addresses in one column; `first` is the bit where the pointers of each id begin, if it is marked, or all are (None)."""
    if column.kind == HASH:
        assert keys is not None
        index = multiply_high(keyed(premix(ids), keys[column.b]), column.rows)
    elif column.kind == POINTER:
        assert pointers is not None
        index = read_bits(pointers, first + column.a, column.b).clamp(max=column.rows - 1)
        index = index if marked is None else torch.where(marked, index, 0)
    elif column.kind == IDENTITY:
        index = ids
    elif column.kind == DIGIT:
        index = (ids // column.a) % column.rows
    else:
        raise NotImplementedError("addresses by a map of own rows are found on the CPU, by the compiled loops, alone")
    return column.base + column.stride * index


def addresses(layout: Layout, ids: Tensor, keys: Tensor | None, pointers: Tensor | None) -> Tensor:
    """The address of every column, int64 (n, columns)."""
    marked, entry = None, ids
    if layout.marks:
        assert pointers is not None
        marked, entry = entries(pointers, ids)
    first = 64 * layout.marks + entry * layout.bits_per_id
    return torch.stack([_column(c, ids, keys, pointers, first, marked) for c in layout.columns], 1)


def _numbers(like: Tensor, numbers: list[int]) -> Tensor:
    """A row of constants; while tracing made by operations, since exported programs have no other tensors of their own."""
    if _traced():
        return torch.stack([like.new_full((), number) for number in numbers])
    return like.new_tensor(numbers)


def _units(layout: Layout, ids: Tensor, keys: Tensor | None, pointers: Tensor | None) -> Tensor:
    """The units that every block is made of, int64 (n, columns, width / unit)."""
    place = addresses(layout, ids, keys, pointers)[..., None]
    if layout.width > layout.unit:
        regions = [c.size for c in layout.columns]
        past = _numbers(ids, [c.base + r for c, r in zip(layout.columns, regions, strict=True)])[:, None]
        region = _numbers(ids, regions)[:, None]
        place = place + torch.arange(0, layout.width, layout.unit, device=ids.device)
        place = torch.where(place >= past, place - region, place)
    return place // layout.unit


def _traced() -> bool:
    """Whether operations are written down rather than done, so that no number may be looked at."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def transformed() -> bool:
    """Whether one of `torch.func`'s transforms is at work."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def bare(tensor: Tensor) -> Tensor:
    """The numbers themselves, of which `torch.func` gives wrappers that may not be looked into; batches come first."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        axis = functorch.maybe_get_bdim(tensor)
        tensor = functorch.get_unwrapped(tensor)
        tensor = tensor if axis < 0 else tensor.movedim(axis, 0)
    return tensor


def check_range(ids: Tensor, text: str) -> None:
    """IndexError for an id outside the vocabulary; on an accelerator its own assertion, later, as for torch's own."""
    vocab = spec_of(text).vocab
    if transformed():
        ids = bare(ids).reshape(-1)
    if vocab is None or ids.numel() == 0:
        return
    if ids.device.type == "cpu" and not _traced():
        low, high = (int(x) for x in ids.aminmax())
        if low < 0 or high >= vocab:
            wrong = high if high >= vocab else low
            at = int((ids == wrong).nonzero()[0])
            raise IndexError(_check.outside(wrong, at, vocab))
    else:
        torch._assert_async(((ids >= 0) & (ids < vocab)).all())


def _blocks(
    memory: Tensor, ids: Tensor, keys: Tensor | None, pointers: Tensor | None, text: str, part: str
) -> tuple[Layout, Tensor]:
    """Every block as it lies in the memory, in the type of its sums: (n, columns, width)."""
    check_range(ids, text)
    layout = part_of(text, part).layout
    units = _units(layout, ids, keys, pointers)
    found = wide(memory.reshape(-1, layout.unit)[units])
    return layout, found.reshape(ids.shape[0], len(layout.columns), layout.width)


def gather(
    memory: Tensor, ids: Tensor, weights: Tensor | None, keys: Tensor | None, pointers: Tensor | None,
    text: str, part: str, sparse: bool = False,
) -> Tensor:  # fmt: skip
    """`blocks.gather`."""
    layout, found = _blocks(memory, ids, keys, pointers, text, part)
    if weights is not None:
        found = found * weights[..., None]
    n = ids.shape[0]  # not len(ids), which tracing would take for a constant
    return found.reshape(n, layout.n_chunks, layout.terms, layout.width).sum(2).reshape(n, layout.dim)


def _spread(layout: Layout, grads: Tensor) -> Tensor:
    """Each column's part of the vectors, in the type of their sums: (n, columns, width)."""
    n = grads.shape[0]
    parts = wide(grads).reshape(n, layout.n_chunks, 1, layout.width)
    return parts.expand(-1, -1, layout.terms, -1).reshape(n, len(layout.columns), layout.width)


def _shares(
    layout: Layout, grads: Tensor, ids: Tensor, weights: Tensor | None, keys: Tensor | None, pointers: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Every unit of every block, flat, and its share of the gradient: (units of all blocks, unit)."""
    units, parts = _units(layout, ids, keys, pointers), _spread(layout, grads)
    parts = parts if weights is None else parts * weights[..., None]
    return units.reshape(-1), parts.reshape(-1, layout.unit)


def scatter(
    grads: Tensor, ids: Tensor, weights: Tensor | None, keys: Tensor | None, pointers: Tensor | None, text: str, part: str
) -> Tensor:  # fmt: skip
    """`blocks.scatter`."""
    check_range(ids, text)
    layout = part_of(text, part).layout
    units, parts = _shares(layout, grads, ids, weights, keys, pointers)
    return parts.new_zeros(layout.n_units, layout.unit).index_add_(0, units, parts)


def scatter_sparse(
    grads: Tensor, ids: Tensor, weights: Tensor | None, keys: Tensor | None, pointers: Tensor | None, text: str, part: str
) -> Tensor:  # fmt: skip
    """The scatter as a sparse tensor with an entry for every unit of every block, not coalesced."""
    layout = part_of(text, part).layout
    units, parts = _shares(layout, grads, ids, weights, keys, pointers)
    return torch.sparse_coo_tensor(units[None], parts, (layout.n_units, layout.unit), check_invariants=False)


def dot(
    memory: Tensor, grads: Tensor, ids: Tensor, keys: Tensor | None, pointers: Tensor | None, text: str, part: str
) -> Tensor:  # fmt: skip
    """`blocks.dot`."""
    layout, found = _blocks(memory, ids, keys, pointers, text, part)
    return (found * _spread(layout, grads)).sum(2)


def signs(ids: Tensor, keys: Tensor, like: Tensor, text: str) -> Tensor:
    """`blocks.signs`."""
    layout, words = part_of(text, "memory").layout, premix(ids)
    drawn = [
        1 - 2 * (keyed(words, keys[c.b]) & 1) if c.kind == HASH and c.a else torch.ones_like(ids)
        for c in layout.columns
    ]
    return torch.stack(drawn, 1).to(wide_type(like.dtype))


def digits(ids: Tensor, text: str) -> Tensor:
    """`blocks.digits`."""
    check_range(ids, text)
    out, rest = [], ids
    for base in bases_of(text):
        out.append(rest % base)
        rest = rest // base
    return torch.stack(out)


def features(ids: Tensor, keys: Tensor, text: str) -> Tensor:
    """`blocks.features`."""
    check_range(ids, text)
    spec, words, m = spec_of(text), premix(ids), deep_hash.BUCKETS
    hashed = multiply_high(keyed(words[:, None], keys), m).to(torch.float32)
    if spec.option("transform") == "uniform":
        return hashed * (2.0 / (m - 1)) - 1.0
    radius = (-2.0 * ((hashed[:, ::2] + 1.0) / m).log()).sqrt()
    angle = hashed[:, 1::2] * (2.0 * math.pi / m)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 2).flatten(1)


def rounded(memory: Tensor, ids: Tensor | None, keys: Tensor | None, pointers: Tensor | None, text: str) -> Tensor:
    """`blocks.rounded`, the whole of it whatever the ids."""
    memory = wide(memory)
    coder, flat = codec(spec_of(text).codec), memory.reshape(-1)
    if not coder.most:
        return memory.to(torch.bfloat16).to(memory.dtype)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    largest = padded.abs().amax(1, keepdim=True)
    exact = torch.where(largest > 0, padded / largest.clamp(min=torch.finfo(flat.dtype).tiny) * coder.most, 0.0)
    q = torch.floor(exact + 0.5).clamp(-coder.most, coder.most)
    return (q * (largest / coder.most)).view(-1)[: len(flat)].view_as(memory)


def decoded(
    memory: Tensor, codes: Tensor, scales: Tensor, ids: Tensor | None, keys: Tensor | None, pointers: Tensor | None, text: str
) -> Tensor:  # fmt: skip
    """`blocks.decoded`, the whole of it whatever the ids."""
    coder = codec(spec_of(text).codec)
    if not coder.most:
        return codes.view(torch.bfloat16).to(memory.dtype).view(memory.shape)
    if coder.name == "int8":
        q = codes.view(torch.int8).to(memory.dtype)
    else:
        q = (torch.stack([codes & 15, codes >> 4], 1).view(-1).to(memory.dtype) - 8)[: memory.numel()]
    return (q * scales.to(memory.dtype).repeat_interleave(BLOCK)[: len(q)]).view(memory.shape)


def check_ends(offsets: Tensor, n: int) -> None:
    """RuntimeError unless bags begin at 0, never fall and end with the last of n ids; off the CPU an assertion, later."""
    if not offsets.shape[0]:
        raise RuntimeError("offsets must hold at least the end of the last bag, got none")
    if offsets.device.type != "cpu":
        said = f"offsets must begin at 0, never fall, and the last bag must end with the number of ids, {n}"
        good = (offsets[0] == 0) & (offsets[-1] == n) & (offsets.diff() >= 0).all()
        torch.ops.aten._assert_async.msg(good, said)
        return
    if offsets[0] != 0:
        raise RuntimeError(
            "offsets[0] has to be 0, i.e., the first sequence in the mini-batch has to start from position 0. "
            f"However, got {int(offsets[0])}"
        )
    if (offsets > n).any():
        raise RuntimeError(
            f"offsets[-1] can not be greater than input's length {n} but got offsets[-1] of {int(offsets.max())}"
        )
    falls = offsets.diff() < 0
    if falls.any():
        at = int(falls.nonzero()[0])
        raise RuntimeError(
            f"offsets must not decrease, got {int(offsets[at])} and then {int(offsets[at + 1])} at {at + 1}"
        )
    end = int(offsets[-1])
    if end != n:
        raise RuntimeError(
            f"the last bag must end with the number of ids, {n}, got {end}: ids that follow would belong to no bag. Leave them "
            f"out, input[:{end}], or let offsets end with {n}"
        )


def bags(offsets: Tensor, ids: Tensor) -> Tensor:
    """`blocks.bags`."""
    n = ids.shape[0]
    if _traced():  # in operations that exported programs know
        begun = ids.new_zeros(n + 1).scatter_add(0, offsets, torch.ones_like(offsets))
        return begun[:n].cumsum(0) - 1
    if offsets.shape[0] and torch._C._functorch.is_functorch_wrapped_tensor(offsets):
        for one in bare(offsets).reshape(-1, offsets.shape[0]):
            check_ends(one, n)
    else:
        check_ends(offsets, n)
    return torch.searchsorted(offsets, torch.arange(n, device=ids.device), right=True) - 1
