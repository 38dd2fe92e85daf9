"""What a forward pass must know of a table's spec, as plain constants that a compiler can trace through."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cce_core.method import block_method, get_method
from cce_core.method.arrays import array_specs as array_specs
from cce_core.method.block import BlockMethod
from cce_core.method.checked import checked
from cce_core.method.spec import ROUNDINGS, TableSpec
from cce_core.method.tensor_train import TensorTrain
from cce_core.method.tiered import OWN
from cce_core.sketching.layout import POINTER, Layout

MEMORY, WEIGHTS = "memory", "weights"
COUNTED = tuple(name for name in OWN.values() if name != "pointers")  # of tables whose ids earn rows
_UNREAD = ("generation", "scales", "counts", *COUNTED)  # by a lookup
POINTED, HASHED = ":pointed", ":hashed"  # the columns of a part that read pointers, and those that do not


class Facts(NamedTuple):
    """A spec, resolved for forward passes.

    Attributes:
        text: the spec as operators take it, its seed aside: everything that is drawn from the seed is a buffer.
        kind: "blocks", "train" or "network".
        arrays: names of the tensors that a lookup reads.
        plain: whether a vector is a plain sum of blocks before the projection.
        weighed: the array that the blocks' weights are read from, "" where they are all 1.
        signed: whether signs are drawn.
        appends: whether the weights follow the sum as further coordinates.
        factors: vectors that are multiplied with each other; 0 where there is no product.
        inner: floats of a vector before the projection.
        rank: of the projection; 0 for none.
        coded: whether the memory is rounded into a codec.
        stored: whether it lies in its codec while it is trained, too.
        layers: hidden layers of a network.
        cores: (left, d · right) of each core of a train.
        halves: the parts, by kind of column, that a lookup with pointers from elsewhere is made of.
        owned: whether training gives rows to ids and takes them away.
    """

    text: str
    kind: str
    arrays: tuple[str, ...]
    plain: bool = False
    weighed: str = ""
    signed: bool = False
    appends: bool = False
    factors: int = 0
    inner: int = 0
    rank: int = 0
    coded: bool = False
    stored: bool = False
    layers: int = 0
    cores: tuple[tuple[int, int], ...] = ()
    halves: tuple[str, ...] = ()
    owned: bool = False


def text_of(spec: TableSpec) -> str:
    """The spec as one line, with seed 0."""
    return json.dumps(dataclasses.replace(spec, seed=0).as_json(), separators=(",", ":"))


@functools.lru_cache(maxsize=4096)
def spec_of(text: str) -> TableSpec:
    """The spec of such a line."""
    return checked(TableSpec.from_json(json.loads(text)))


class Part(NamedTuple):
    """A layout and the end of the ids that it takes (None where it takes every id)."""

    layout: Layout
    end: np.uint64 | None


@functools.lru_cache(maxsize=4096)
def part_of(text: str, part: str) -> Part:
    """The layout of the memory or of the weights; or, with `POINTED` or `HASHED` behind the name, of those columns alone.

    Pointed columns by themselves read rows of whole words, one row an id that is the row's number.
    """
    spec = spec_of(text)
    method = block_method(spec.method)
    name, _, kind = part.partition(":")
    layout = method.layout(spec) if name == MEMORY else method.weight_layout(spec)
    if layout is None:
        raise ValueError(f"a {spec.method!r} table has no {part}")
    if not kind:
        return Part(layout, end_of(text))
    columns = tuple(c for c in layout.columns if (c.kind == POINTER) == (":" + kind == POINTED))
    bits = -(-layout.bits_per_id // 64) * 64 if ":" + kind == POINTED else 0
    half = dataclasses.replace(layout, columns=columns, terms=len(columns) // layout.n_chunks, bits_per_id=bits)
    return Part(half, None if bits else end_of(text))


@functools.lru_cache(maxsize=4096)
def end_of(text: str) -> np.uint64 | None:
    """The vocabulary of a spec."""
    vocab = spec_of(text).vocab
    return None if vocab is None else np.uint64(vocab)


@functools.lru_cache(maxsize=4096)
def bases_of(text: str) -> tuple[int, ...]:
    """The bases of a train's digits, the least significant first."""
    spec = spec_of(text)
    method = get_method(spec.method)
    return tuple(shape[0] for shape in (s.shape for s in method.arrays(spec).values()))


def _halves(method: BlockMethod, spec: TableSpec) -> Iterator[str]:
    for name, layout in ((MEMORY, method.layout(spec)), (WEIGHTS, method.weight_layout(spec))):
        kinds = set() if layout is None else {column.kind == POINTER for column in layout.columns}
        yield from (name + (POINTED if pointed else HASHED) for pointed in sorted(kinds))


def facts_of(spec: TableSpec) -> Facts:
    """A spec, resolved."""
    method, text = get_method(spec.method), text_of(spec)
    names = tuple(name for name in array_specs(spec) if name not in _UNREAD)
    stored = spec.codec != "float32" and spec.rounding == ROUNDINGS[1]
    names += ("codes", "scales") if stored else ()
    base: dict[str, Any] = {"text": text, "arrays": names, "inner": spec.inner, "rank": spec.rank}
    if isinstance(method, BlockMethod):
        weighed = "" if method.weight_layout(spec) is None else (MEMORY if method.weights_in_memory else WEIGHTS)
        return Facts(
            kind="blocks",
            plain=method.is_plain(spec) and method.is_linear(spec),
            weighed=weighed,
            signed=method.layout(spec).signed,
            appends=method.appends_weights(spec),
            factors=0 if method.is_linear(spec) else spec.n_chunks,
            coded=spec.codec != "float32",
            stored=stored,
            halves=tuple(_halves(method, spec)),
            owned=method.owned,
            **base,
        )
    if isinstance(method, TensorTrain):
        lefts = (1, *spec.sizes)
        widths = [s.shape[1] // left for s, left in zip(method.arrays(spec).values(), lefts, strict=True)]
        return Facts(kind="train", cores=tuple(zip(lefts, widths, strict=True)), **base)
    return Facts(kind="network", layers=spec.sizes[2], **{**base, "arrays": (*names, "keys")})
