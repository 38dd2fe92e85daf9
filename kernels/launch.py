"""Tables as the kernels read them: one row of 64-bit numbers a member, two a column, and what all members have in common.

A member is a layout on a memory that fills some columns of the output. A table is one member, or two where its weights are also
coordinates of its vectors. The rows hold addresses of device memory, so a member keeps its tensors alive.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from cce_core.method import block_method
from cce_core.method.spec import TableSpec
from cce_core.sketching.layout import HASH, KIND, MAP, Layout
from cce_core.storage.codec import BFLOAT16, FLOAT32, INT4, INT8
from cce_core.storage.codec import codec as get_codec
from cce_kernels.addresses import COLUMN, GIVEN, MARKED, MIXED, NONE
from cce_kernels.runtime import floats, on_device, power_of_two, torch, triton

FIELDS = 19
(
    VOCAB,
    TERMS,
    WIDTH,
    CHUNKS,
    LEFT,
    FIRST,
    CODEC,
    MEMORY,
    SCALES,
    KEYS,
    POINTERS,
    WEIGHTS,
    WSCALES,
    WCODEC,
    SOURCE,
    COLUMNS,
    FINAL,
    PROJECTION,
    DIM,
) = range(FIELDS)
Arrays = Mapping[str, torch.Tensor]
# Of memory, keys, pointers and weights, added to what a member's row says: 0 where it says it all.
Addresses = tuple[int, int, int, int]
OWN: Addresses = (0, 0, 0, 0)
_WORDS = (torch.uint64, torch.int64)
_DTYPES = {
    FLOAT32: (torch.float32,),
    BFLOAT16: (torch.uint16, torch.bfloat16, torch.int16),
    INT8: (torch.int8,),
    INT4: (torch.uint8,),
}


@dataclasses.dataclass(frozen=True)
class Member:
    """A layout on tensors.

    Attributes:
        layout: where the blocks of an id lie.
        memory: codes, (layout.size,) in float32, bfloat16 (or its bits), int8, or int4 two to a byte.
        keys, pointers: 64-bit words (uint64 or int64), where the layout hashes or points.
        scales: float32, of int8 and int4.
        codec: number of the memory's codec.
        vocab: ids are below it; None takes every 64-bit id.
        weighing: the layout of the columns' weights, if they have any; `weights` is its float32 array, None where the
            weights lie in the memory itself.
        source: which of the tables this member belongs to: whose ids it reads.
        left: the first of its columns among the vectors of all memories.
        final: the first of its columns among the vectors that come out; −1 where torch makes those later.
        projection: float32 (layout.dim + 1, dim), if the kernel is to make the vectors dim wide.
    """

    layout: Layout
    memory: torch.Tensor
    keys: torch.Tensor | None = None
    pointers: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    codec: int = FLOAT32
    vocab: int | None = None
    weight_layout: Layout | None = None
    weights: torch.Tensor | None = None
    source: int = 0
    left: int = 0
    final: int = 0
    projection: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self.device  # noqa: B018 - checked once
        if self.memory.dtype not in _DTYPES[self.codec]:
            raise TypeError(f"memory must be {' or '.join(map(str, _DTYPES[self.codec]))}, got {self.memory.dtype}")
        size = -(-self.layout.size // 2) if self.codec == INT4 else self.layout.size
        if self.memory.numel() != size:
            raise ValueError(f"memory must hold {size:,} codes, got {self.memory.numel():,}")
        if self.codec in (INT8, INT4):
            if self.scales is None:
                raise ValueError("an int8 or int4 memory needs its scales, one float32 for each 64 floats")
            floats("scales", self.scales, (-(-self.layout.size // 64),))
        columns = self.layout.columns + (() if self.weight_layout is None else self.weight_layout.columns)
        if any(c.kind == MAP for c in columns):
            raise ValueError("addresses by a map of own rows are found on the CPU, by the compiled loops, alone")
        n_keys = 1 + max((c.b for c in columns if c.kind == HASH), default=-1)
        n_words = max(one.n_words(self.vocab or 0) for one in (self.layout, self.weight_layout) if one is not None)
        for name, words, needed in (("keys", self.keys, n_keys), ("pointers", self.pointers, n_words)):
            if words is not None and words.dtype not in _WORDS:
                raise TypeError(f"{name} must be 64-bit words (torch.uint64 or torch.int64), got {words.dtype}")
            if needed > (0 if words is None else words.numel()):
                raise ValueError(f"{name} must hold {needed:,} words, got {0 if words is None else words.numel():,}")
        if self.weights is not None and self.weight_layout is not None:
            floats("weights", self.weights, (self.weight_layout.size,))

    @property
    def device(self) -> torch.device:
        """Where all tensors are."""
        return on_device(
            memory=self.memory, keys=self.keys, pointers=self.pointers, scales=self.scales, weights=self.weights,
            projection=self.projection,
        )  # fmt: skip

    @property
    def aligned(self) -> bool:
        """Whether the memory begins at a multiple of 16 bytes."""
        return self.memory.data_ptr() % 16 == 0

    @property
    def projected(self) -> bool:
        """Whether the kernel is to widen the vectors."""
        return self.projection is not None

    @property
    def dim(self) -> int:
        """Floats of a vector that comes out."""
        return self.layout.dim if self.projection is None else self.projection.shape[1]

    def columns(self) -> np.ndarray:
        """int64 (columns, 2, COLUMN): each column, and where its weight lies."""
        out = np.zeros((len(self.layout.columns), 2, COLUMN), np.int64)
        out[:, 0, :-1] = self.layout.array
        if self.layout.marks:
            out[:, 0, KIND] = MARKED
        out[:, 1, KIND] = NONE
        if self.weight_layout is not None:
            w = self.weight_layout.width
            for j in range(len(out)):
                out[j, 1, :-1] = self.weight_layout.array[j // w]
                out[j, 1, -1] = j % w
        return out

    def row(self, first: int) -> list[int]:
        """The member's numbers; its columns begin at row `first`."""
        inside = self.weights is None
        weights = self.memory if inside else self.weights
        scales, wcodec = (_at(self.scales), self.codec) if inside else (0, FLOAT32)
        layout = self.layout
        return [
            self.vocab or 0, layout.terms, layout.width, layout.n_chunks, self.left, first, self.codec, _at(self.memory),
            _at(self.scales), _at(self.keys), _at(self.pointers), _at(weights), scales, wcodec, self.source,
            len(layout.columns), self.final, _at(self.projection), self.dim,
        ]  # fmt: skip


def members_of(spec: TableSpec, arrays: Arrays, source: int = 0, left: int = 0, final: int = 0) -> list[Member]:
    """The members of one table; a table whose weights are coordinates of its vectors has a second one for them.

    Products of chunks (`final` is −1), and projections of two members, are left to torch.
    """
    method = block_method(spec.method)
    layout, weight_layout = method.layout(spec), method.weight_layout(spec)
    expected = {name: array for name, array in method.arrays(spec).items() if name != "generation"}
    missing = sorted(set(expected) - set(arrays)) + (["projection"] if spec.rank and "projection" not in arrays else [])
    if missing:
        raise ValueError(f"a {spec.method!r} table needs the array {missing[0]!r}; got {sorted(arrays)}")
    if spec.rank:
        floats("projection", arrays["projection"], (spec.rank + 1, spec.dim))
    keys, pointers = arrays.get("keys"), arrays.get("pointers")
    weights = None if weight_layout is None or method.weights_in_memory else arrays["weights"]
    member = Member(
        layout, arrays["memory"], keys, pointers, arrays.get("scales"), get_codec(spec.codec).number, spec.vocab,
        weight_layout, weights, source, left, final,
    )  # fmt: skip
    if not method.appends_weights(spec):
        return [dataclasses.replace(member, projection=arrays["projection"])] if spec.rank and final >= 0 else [member]
    assert weight_layout is not None
    assert weights is not None
    final = -1 if spec.rank else final
    more = Member(
        weight_layout, weights, keys, pointers, vocab=spec.vocab, source=source, left=left + layout.dim,
        final=final if final < 0 else final + layout.dim,
    )  # fmt: skip
    return [dataclasses.replace(member, final=final), more]


def _at(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _all_one(values: Sequence[int]) -> int:
    return values[0] if len(set(values)) == 1 else MIXED


def _wraps(layout: Layout, width: int) -> bool:
    """Whether a block of `width` floats can pass the end of its region."""
    return any(c.stride * (c.rows - 1) + width > c.size for c in layout.columns)


class Launch:
    """Parts that one launch serves: their rows on the device, and what the kernels are compiled for.

    Args:
        members: at least one; tensors on one device.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        device = self.members[0].device
        for member in self.members:
            if member.device != device:
                raise ValueError(f"tables must be on one device, got {device} and {member.device}")
        self.device, self.n_columns = device, max(len(member.layout.columns) for member in self.members)
        layouts = [member.layout for member in self.members]
        chunks = power_of_two(max(layout.n_chunks for layout in layouts))
        width = power_of_two(max(layout.width for layout in layouts))
        # What only the lookup is compiled for. A product of tiles takes at least 16 of everything.
        project = any(member.projected for member in self.members)
        self.least = 16 if project else 1
        width = max(width, self.least // chunks)
        widest = max([member.dim for member in self.members if member.projected], default=1)
        self.wide = {"PROJECT": project, "D": max(self.least, min(64, power_of_two(widest)))}
        arrays = [member.columns() for member in self.members]
        firsts = np.cumsum([0, *map(len, arrays)])
        self.columns = torch.from_numpy(np.concatenate(arrays)).to(device)
        rows = np.array([member.row(int(first)) for member, first in zip(self.members, firsts)], np.int64)
        self.rows = torch.from_numpy(rows).to(device)
        terms = max(layout.terms for layout in layouts)
        # The kinds of each term, three bits each: where all columns agree, only that kind is compiled.
        kinds = 0
        for t in range(terms):
            found = [a[t :: p.layout.terms, 0, 0].tolist() for a, p in zip(arrays, self.members) if t < p.layout.terms]
            kinds |= _all_one([kind for member in found for kind in member]) << 3 * t
        weigh = [int(kind) for a in arrays for kind in a[:, 1, 0]]
        found = sorted({kind for kind in weigh if kind != NONE})
        self.weighted, self.learned = bool(found), found not in ([], [GIVEN])
        aligned = [p.aligned for p in self.members]
        steps = [v for p in self.members for c in p.layout.columns for v in (c.base, c.stride)]
        self.meta = {
            "C": chunks,
            "W": width,
            "TERMS": terms,
            "KINDS": kinds,
            "WKIND": NONE if not found else found[0] if len(found) == 1 else MIXED,
            "CODEC": _all_one([p.codec for p in self.members]),
            "WCODEC": _all_one(
                [row[WCODEC] for row, p in zip(rows.tolist(), self.members) if p.weight_layout] or [FLOAT32]
            ),
            "SIGNED": any(layout.signed for layout in layouts),
            "WRAP": any(_wraps(layout, layout.width) for layout in layouts),
            "WWRAP": any(_wraps(p.weight_layout, p.weight_layout.width) for p in self.members if p.weight_layout),
            "ALIGN": math.gcd(16, *steps) if all(aligned) else 1,
            "OUT": math.gcd(16, *(n for p in self.members for n in (p.layout.width, p.left, max(p.final, 0)))),
            "BOUNDED": any(p.vocab is not None for p in self.members),
        }

    @functools.cached_property
    def origin(self) -> torch.Tensor:
        """int64 (members, 2) of zeros: where all gradients begin with the buffer that they are added into."""
        return torch.zeros((len(self.members), 2), dtype=torch.int64, device=self.device)

    def rows_of_a_tile(self, tile: int, n_rows: int) -> int:
        """How many vectors a program takes, so that a tile holds about `tile` floats.

        A quarter of that where weights are found too, or the members differ in kind: what is in hand must fit the registers
        (as compiled for sm_80 and sm_90, a whole tile spilled up to 1,272 bytes a thread there).
        """
        if (
            self.weighted
            or self.meta["CODEC"] == MIXED
            or MIXED in (self.meta["KINDS"] >> 3 * t & 7 for t in range(64))
        ):
            tile //= 4
        return max(self.least, min(tile // (self.meta["C"] * self.meta["W"]), power_of_two(max(1, n_rows))))

    def grid(self, n_rows: int, block: int) -> tuple[int, int]:
        """Programs: blocks of rows, members."""
        return triton.cdiv(n_rows, block), len(self.members)


def launches(members: Sequence[Member]) -> list[Launch]:
    """One launch for all members; more only where vectors of very different shapes would fill a tile with nothing."""

    def floats_of(group: Sequence[Member]) -> int:
        chunks = max(power_of_two(p.layout.n_chunks) for p in group)
        return chunks * max(power_of_two(p.layout.width) for p in group)

    largest = max(floats_of([member]) for member in members)
    if floats_of(members) <= max(256, 4 * largest):
        return [Launch(members)]
    shapes: dict[tuple[int, int], list[Member]] = {}
    for member in members:
        shape = power_of_two(member.layout.n_chunks), power_of_two(member.layout.width)
        shapes.setdefault(shape, []).append(member)
    return [Launch(group) for group in shapes.values()]
