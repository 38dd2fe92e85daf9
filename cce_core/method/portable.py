"""Lookups over any library of arrays: one formulation, which JAX traces, ONNX writes down, and NumPy runs to check it.

The caller brings the functions (`xp`: NumPy, `jax.numpy`, or what has the same few), the ids as 64-bit words of its own kind
(`hashing.halves.Halves`, or anything with the same methods), and arrays by name. Of a method that is made of blocks

    T[i] = [ Σ_t f_ct(i) · M[address_ct(i) : +width]  for each chunk c ] · W + b

Columns that differ in nothing but constants are one operation, so that a graph stays small however many chunks there are. The
library's own loops are the fast way on a CPU; they and this have the same addresses, and sums to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core.hashing.halves import MASK32, keyed, premix
from cce_core.method import deep_hash, get_method
from cce_core.method.block import BlockMethod
from cce_core.method.spec import TableSpec
from cce_core.method.state import TableState
from cce_core.method.tensor_train import core_shapes
from cce_core.sketching.layout import DIGIT, HASH, IDENTITY, POINTER, Column, Layout
from cce_core.storage import marks
from cce_core.storage.codec import BLOCK

Arrays = Mapping[str, Any]
_MOST_UNITS = 2**31 - 1
_LANES = np.arange(2 * marks.WORDS, dtype=np.uint32)


def sketch_arrays(table: TableState) -> dict[str, NDArray[Any]]:
    """What addresses follow from: `keys`, uint64, and `pointers`, packed in uint32 with a word more than they need."""
    arrays, out = table.arrays(), {}
    if table.spec.method == "dhe":
        out["keys"] = deep_hash.hash_keys(table.spec)
    elif "keys" in arrays:
        out["keys"] = arrays["keys"].copy()
    if "pointers" in arrays:
        out["pointers"] = np.append(arrays["pointers"].astype("<u8").view("<u4"), np.uint32(0)).astype(np.uint32)
    return out


def trained_arrays(table: TableState) -> dict[str, NDArray[np.float32]]:
    """The trained values, blocks as rows: with a codec those that training goes on from."""
    arrays, shapes = table.arrays(), PortableLookup(table.spec).shapes
    out = {name: arrays[name] for name in table.shapes()}
    if table.spec.codec != "float32":
        out["memory"] = table.stored.read_rows(np.arange(table.layout.n_units), table.layout.unit)
    return {name: values.reshape(shapes.get(name, values.shape)) for name, values in out.items()}


class _Group(NamedTuple):
    """Columns of one kind: the index of each comes by the same operation, from constants of its own."""

    kind: int
    stride: int
    rows: int
    bits: int
    base: NDArray[np.uint32]
    of: NDArray[np.uint32]


class _Blocks:
    """The blocks of a layout, read in units.

    Args:
        layout: the addresses.
        grain: floats that are read at once; it divides the layout's unit.
    """

    def __init__(self, layout: Layout, grain: int) -> None:
        self.layout, self.grain, columns = layout, grain, layout.columns
        groups: dict[tuple[int, ...], list[int]] = {}
        for n, c in enumerate(columns):
            groups.setdefault((c.kind, c.stride, c.rows, c.b if c.kind == POINTER else 0), []).append(n)
        self.groups = [self._group([columns[n] for n in own], key) for key, own in groups.items()]
        order = np.argsort([n for own in groups.values() for n in own])
        self.order = None if (order == np.arange(len(order))).all() else order
        self.steps = np.arange(layout.width // grain, dtype=np.uint32)
        end = np.array([c.base + c.size for c in columns], np.int64) // grain
        self.end, self.region = (
            a.astype(np.uint32)[:, None] for a in (end, np.array([c.size for c in columns]) // grain)
        )
        self.wraps = any(c.rows * c.stride > c.size - layout.width + c.stride for c in columns)

    def _group(self, columns: list[Column], key: tuple[int, ...]) -> _Group:
        kind, stride, rows, bits = key
        base = np.array([c.base // self.grain for c in columns], np.uint32)
        of = np.array([c.b if kind == HASH else c.a for c in columns], np.uint32)
        return _Group(kind, stride // self.grain, rows, bits, base, of)

    def places(self, xp: Any, arrays: Arrays, words: Any) -> Any:
        """The units of every block: indices (n, columns, width / grain)."""
        found = [np.uint32(g.stride) * self._index(g, xp, arrays, words) + g.base for g in self.groups]
        place = found[0] if len(found) == 1 else xp.concatenate(found, axis=1)
        place = (place if self.order is None else xp.take(place, self.order, axis=1))[:, :, None]
        if len(self.steps) > 1:
            place = place + self.steps
        return xp.where(place >= self.end, place - self.region, place) if self.wraps else place

    def _index(self, group: _Group, xp: Any, arrays: Arrays, words: Any) -> Any:
        """The index of every column of a group: (n, columns)."""
        if group.kind == HASH:
            return keyed(premix(words)[:, None], arrays["keys"][group.of]).high_product(group.rows)
        low = words.low_half()[:, None]
        if group.kind == IDENTITY:
            return low + np.zeros(1, np.uint32)
        if group.kind == DIGIT:
            return (low // group.of) % np.uint32(group.rows)
        if not group.bits:
            return (low ^ low) + np.zeros(len(group.of), np.uint32)
        marked, entry = None, words
        if self.layout.marks:
            marked, found = _entries(xp, arrays["pointers"], words.low_half())
            entry = words.of(found)
        first = group.of.astype(np.uint64) + np.uint64(64 * self.layout.marks)
        position = (entry * self.layout.bits_per_id)[:, None] + entry.constants(first)
        index = _read_bits(arrays["pointers"], position, group.bits)
        index = xp.minimum(index, np.uint32(group.rows - 1))  # of a damaged file
        return index if marked is None else index * marked[:, None]

    def read(self, xp: Any, arrays: Arrays, words: Any, name: str, codec: str) -> Any:
        """The blocks themselves, from an array and how it is kept: float32 (n, columns, width)."""
        found = self._floats(xp, arrays, name, codec, self.places(xp, arrays, words))
        return found.reshape((-1, len(self.layout.columns), self.layout.width))

    def _floats(self, xp: Any, arrays: Arrays, name: str, codec: str, units: Any) -> Any:
        """The floats of units: (n, columns, units, grain)."""
        stored, grain = arrays[name], self.grain
        if codec == "float32":
            return stored[units]
        if codec == "bfloat16":
            return stored[units].astype(np.float32)
        scales = arrays["scales"][(units * np.uint32(grain)) // np.uint32(BLOCK)][..., None]
        if codec == "int8":
            return stored[units].astype(np.float32) * scales
        low, four = np.uint8(15), np.uint8(4)
        if grain == 1:
            odd = (units & np.uint32(1)).astype(np.uint8)
            codes = ((stored[units >> np.uint32(1)] >> (odd * four)) & low)[..., None]
        else:
            pairs = stored[units]
            codes = xp.stack([pairs & low, pairs >> four], axis=-1)
            codes = codes.reshape((-1, len(self.layout.columns), len(self.steps), grain))
        return (codes.astype(np.float32) - np.float32(8)) * scales


def _read_bits(pointers: Any, position: Any, bits: int) -> Any:
    """`storage.packed.read_bits`, of up to 32 bits."""
    at, shift = (position >> 5).low_half(), position.low_half() & np.uint32(31)
    here, after = pointers[at], pointers[at + np.uint32(1)]
    shift = shift.astype(np.uint32)
    found = (here >> shift) | ((after << np.uint32(1)) << (np.uint32(31) - shift))
    return found & np.uint32((1 << bits) - 1)


def _entries(xp: Any, words: Any, ids: Any) -> tuple[Any, Any]:
    """`storage.marks.entry`: 1 where an id has an entry and 0 elsewhere, and its number among all entries."""
    block = ids // np.uint32(marks.IDS)
    bit = ids - block * np.uint32(marks.IDS) + np.uint32(marks.COUNT_BITS)
    line = words[block[:, None] * np.uint32(len(_LANES)) + _LANES]
    own, shift = (bit >> np.uint32(5))[:, None], (bit & np.uint32(31)).astype(np.uint32)[:, None]
    here, nothing = own == _LANES, np.uint32(0)
    below = xp.where(here, line & ((np.uint32(1) << shift) - np.uint32(1)), xp.where(own > _LANES, line, nothing))
    counts = xp.where(_LANES == 0, line, _ones(below))  # the first says how many the lines before have
    marked = xp.where(here, (line >> shift) & np.uint32(1), nothing)
    marked = marked.sum(1).astype(np.uint32)
    return marked, counts.sum(1).astype(np.uint32) * marked


def _ones(words: Any) -> Any:
    """How many bits of uint32 words are 1."""
    words = words - ((words >> np.uint32(1)) & np.uint32(0x55555555))
    words = (words & np.uint32(0x33333333)) + ((words >> np.uint32(2)) & np.uint32(0x33333333))
    words = (words + (words >> np.uint32(4))) & np.uint32(0x0F0F0F0F)
    return (words * np.uint32(0x01010101)) >> np.uint32(24)


class PortableLookup:
    """The vectors of ids, from a table's spec and arrays, in whatever library of arrays there is.

    Args:
        spec: of the table; what follows from its seed is among the arrays.
        coded: whether the memory comes as codes and scales; else as float32, whatever the codec.

    Attributes:
        shapes: of the memory and the weights as they are to come: blocks as rows.

    Raises:
        ValueError: the method is `tiered`, or the table has more units than indices of 32 bits can tell apart.
    """

    def __init__(self, spec: TableSpec, coded: bool = False) -> None:
        method = get_method(spec.method)
        if method.owned:
            raise ValueError(
                f"method {spec.method!r} finds rows by a map that training changes, which is in the compiled loops alone: serve "
                "its file with cce_core.serving.Reader, or take 'hash' or 'cce'"
            )
        self.spec, self.codec = spec, spec.codec if coded else "float32"
        self.shapes: dict[str, tuple[int, int]] = {}
        if not isinstance(method, BlockMethod):
            self._vectors = self._train if spec.method == "tt" else self._network
            self._check(only_hashes=spec.method == "dhe")
            return
        layout, weights = method.layout(spec), method.weight_layout(spec)
        scaled = self.codec in ("int8", "int4")  # a scale is of 64 floats, whose units may be larger
        self._blocks = _Blocks(layout, math.gcd(layout.unit, BLOCK) if scaled else layout.unit)
        self._weights = None
        if weights is not None:
            self._weights = _Blocks(weights, self._blocks.grain if method.weights_in_memory else weights.unit)
        self._weights_in = "memory" if method.weights_in_memory else "weights"
        self._appends = method.appends_weights(spec)
        self._factors = 0 if method.is_linear(spec) else spec.n_chunks
        self._vectors = self._linear
        self.shapes["memory"] = (layout.size // self._blocks.grain, self._blocks.grain)
        if weights is not None and not method.weights_in_memory:
            self.shapes["weights"] = (weights.n_units, weights.unit)
        columns = layout.columns + (() if weights is None else weights.columns)
        self._check(all(c.kind == HASH for c in columns))

    def _check(self, only_hashes: bool) -> None:
        units = max((n for n, _ in self.shapes.values()), default=0)
        if units > _MOST_UNITS or (not only_hashes and (self.spec.vocab or 0) > MASK32):
            raise ValueError(
                "indices have 32 bits here: ids that are not hashed must be below 2^32, and blocks fewer than 2^31, "
                f"got vocab {self.spec.vocab} and {units:,} blocks: take a method that only hashes, or fewer parameters"
            )

    def __call__(self, xp: Any, arrays: Arrays, words: Any) -> Any:
        """The vectors of one row of words, float32 (n, dim); NaN for an id outside the vocabulary.

        Args:
            xp: functions of arrays.
            arrays: by name: those of `sketch_arrays`, the keys as words; `memory` and `weights` in the shapes of `shapes`, and
                all other parameters of the table as they are.
            words: the ids.
        """
        if self.spec.vocab is None:
            return self._vectors(xp, arrays, words)
        words, inside = words.within(self.spec.vocab)
        return xp.where(inside[:, None], self._vectors(xp, arrays, words), np.float32(np.nan))

    # --- blocks -------------------------------------------------------------------------------------------------------

    def _linear(self, xp: Any, arrays: Arrays, words: Any) -> Any:
        blocks = self._blocks
        layout = blocks.layout
        found = factors = None
        if self._weights is not None:
            name = self._weights_in
            kept = self.codec if name == "memory" else "float32"
            found = factors = self._weights.read(xp, arrays, words, name, kept).reshape((-1, len(layout.columns)))
        if layout.signed:
            signs = self._signs(arrays, words)
            factors = signs if factors is None else factors * signs
        parts = blocks.read(xp, arrays, words, "memory", self.codec)
        if factors is not None:
            parts = parts * factors[:, :, None]
        if layout.terms > 1:
            parts = parts.reshape((-1, layout.n_chunks, layout.terms, layout.width)).sum(2)
        vectors = parts.reshape((-1, layout.dim))
        if self._appends:
            vectors = xp.concatenate([vectors, found], axis=1)
        if self._factors:
            vectors = vectors.reshape((-1, self._factors, self.spec.inner)).prod(1)
        if self.spec.rank:
            vectors = vectors @ arrays["projection"][:-1] + arrays["projection"][-1]
        return vectors

    def _signs(self, arrays: Arrays, words: Any) -> Any:
        """1 or −1 of every column: float32 (n, columns)."""
        key = np.array([c.b for c in self._blocks.layout.columns], np.uint32)
        drawn = keyed(premix(words)[:, None], arrays["keys"][key]).low_half() & np.uint32(1)
        return np.float32(1) - np.float32(2) * drawn.astype(np.float32)

    # --- what is more than blocks -------------------------------------------------------------------------------------

    def _train(self, xp: Any, arrays: Arrays, words: Any) -> Any:
        """Products of the digits' matrices, the first core first."""
        rest, m = words.low_half(), 1
        vectors: Any = None
        for k, (base, left, d, right) in enumerate(core_shapes(self.spec)):
            core = arrays[f"core{k}"][rest % np.uint32(base)].reshape((-1, left, d * right))
            rest, m = rest // np.uint32(base), m * d
            vectors = (core if k == 0 else vectors @ core).reshape((-1, m, right))
        return vectors.reshape((-1, m))

    def _network(self, xp: Any, arrays: Arrays, words: Any) -> Any:
        """Hashes through the layers."""
        hashes, _, depth = self.spec.sizes
        mixed, m = premix(words)[:, None], deep_hash.BUCKETS

        def hashed(first: int, step: int) -> Any:
            own = np.arange(first, hashes, step, dtype=np.uint32)
            return keyed(mixed, arrays["keys"][own]).high_product(m).astype(np.float32)

        if self.spec.option("transform") == "uniform":
            x = hashed(0, 1) * np.float32(2.0 / (m - 1)) - np.float32(1)
        else:
            radius = xp.sqrt(np.float32(-2) * xp.log((hashed(0, 2) + np.float32(1)) * np.float32(1.0 / m)))
            angle = hashed(1, 2) * np.float32(2.0 * math.pi / m)
            x = xp.stack([radius * xp.cos(angle), radius * xp.sin(angle)], axis=-1).reshape((-1, hashes))
        for layer in range(depth + 1):
            x = x @ arrays[f"w{layer}"] + arrays[f"b{layer}"]
            if layer < depth:
                x = x * xp.tanh(xp.logaddexp(x, np.float32(0)))
        return x
