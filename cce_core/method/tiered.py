"""Ids without end: own rows for those that earn them while the stream goes by, shared rows for all others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.method.base import Request
from cce_core.method.block import BlockMethod
from cce_core.method.spec import ArraySpec, BudgetError, TableSpec
from cce_core.sketching.layout import MAP, Column, Layout, map_tables
from cce_core.storage.packed import Packing, bits_for
from cce_core.tiers import Owners, Policy
from cce_core.tiers.buckets import BITS, MOST_SLOTS, MOST_TABLES, SLOTS, map_keys
from cce_core.tiers.settled import MOST_BUCKET, MOST_POINTER

_RANK = 4
_SHARED, _MOST_SHARED = (
    16,
    8,
)  # own rows per shared one of a table, and the most of these: ids that are new have much in common
_POLICY = ("admission", "eviction", "half_life", "lead", "grace", "admit_threshold", "admit_probability", "ttl")
OWN = {  # arrays of owners, and what a table calls them
    "map": "pointers",
    "counts": "own_counts",
    "seen": "own_seen",
    "young": "own_young",
    "sketch": "sketch",
    "clock": "clock",
}


class Tiered(BlockMethod):
    """T[i] = M[row(i)] · W + b, where row(i) is the id's own row, if it has one, or else a row that ids share by hash.

    With the option `tables`, which `make_collection` sets, several tables have one M and one map, and each its own W, b and
    shared rows. The option `shared` is how many of these a table has; None: one for 16 own rows, and 8 at the most.

    Training counts ids, and between steps gives own rows to those that are met more often than the owners of such rows. Lookups
    count nothing.

    `cluster()` lets owners settle: T[i] = M[centroid(table of i, pointer(i))] · W + b, with a fingerprint and a pointer of a few
    bits each, found in the buckets that an owner has. A settled id may own a row again, and those without either share rows by
    hash as before. A table without settled ids has one size, its own rows, and one with settled ids the five of `Tiers`.
    """

    name = "tiered"
    paper = "arXiv:1704.07463"
    summary = "own rows for the ids that earn them while training, shared rows by hash for all others"
    stores = "1.06·rank + 4 per own row, 8 rows to share, and the projection"
    takes = "two hashes, 8 fingerprints, rank bytes decoded and rank·dim multiplications"
    default_codec = "int8"
    default_rounding = "stochastic"
    owned = True
    options = {
        "admission": "duel", "eviction": "lfu_decay", "half_life": None, "lead": 2, "grace": 0, "admit_threshold": 2,
        "admit_probability": 0.1, "ttl": 1000, "bits": 16, "fold": True, "shared": None, "tables": None, "names": None,
    }  # fmt: skip

    def check(self, request: Request) -> None:
        """The policy's settings, the bits of a fingerprint, and tables that share it all."""
        options = request.options
        _policy(options)
        if _check.integer("bits", options["bits"]) not in BITS:
            raise ValueError(f"bits must be 16 or 32, got {options['bits']}")
        if options["shared"] is not None:
            _check.integer("shared", options["shared"], 1, MOST_SLOTS)
        if options["tables"] is not None:
            _check.integer("tables", options["tables"], 1, MOST_TABLES)
            if request.vocab is not None:
                raise ValueError(
                    f"tables with one memory take every 64-bit id: vocab must be None, got {request.vocab}"
                )
        names = names_of(options["names"])
        if names is not None and len(names) != options["tables"]:
            raise ValueError(f"names must be those of {options['tables']} tables, got {len(names)}")

    def rank(self, request: Request) -> int:
        """4, or 0 for vectors as narrow."""
        return _RANK if request.dim > _RANK else 0

    # --- sizes --------------------------------------------------------------------------------------------------------

    def sizes(self, request: Request) -> tuple[int, ...]:
        """Own rows, a multiple of 4: the most that fit, with all that comes with them."""

        def fits(buckets: int) -> bool:
            n = SLOTS * buckets
            if request.num_params is not None:
                return _floats(request, n) + request.projection <= request.num_params
            return self._bytes(request, n) <= (request.num_bytes or 0)

        if not fits(1):
            params = _floats(request, SLOTS) + request.projection
            raise BudgetError(request.too_small(self.name, params, self._bytes(request, SLOTS)))
        low, high = 1, MOST_SLOTS // SLOTS + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return (SLOTS * low,)

    def check_sizes(self, request: Request, sizes: tuple[int, ...]) -> None:
        """One number of own rows; once ids have settled those of `Tiers`."""
        if len(sizes) not in (1, 5):
            raise ValueError(
                f"a {self.name!r} table has one size, its own rows, or five once clustered, got {len(sizes)}"
            )
        own = _check.integer("sizes[0], the own rows,", sizes[0], SLOTS, MOST_SLOTS)
        if own % SLOTS:
            raise ValueError(f"sizes[0], the own rows, must be a multiple of {SLOTS}, got {own}")
        if len(sizes) == 5:
            buckets = _check.integer("sizes[1], the buckets,", sizes[1], own // SLOTS, MOST_SLOTS // SLOTS)
            if folded(buckets, own) != own:
                raise ValueError(f"{own} own rows are not those of {buckets} buckets: take {folded(buckets, own)}")
            _check.integer("sizes[2], the slots of a bucket,", sizes[2], 1, MOST_BUCKET)
            _check.integer("sizes[3], the bits of a pointer,", sizes[3], 1, MOST_POINTER)
            _check.integer("sizes[4], the shared rows of a table,", sizes[4], 1, MOST_SLOTS)

    def nbytes(self, spec: TableSpec) -> int:
        """As `sizes` reckons."""
        tiers, request = Tiers.of(spec), Request.of(spec)
        if not tiers.slots:
            return self._bytes(request, tiers.own)
        settled = 8 * -(-tiers.places * (int(spec.option("bits")) + tiers.pointer_bits) // 64)
        return self._bytes(request, tiers.own, tiers) + settled + 8

    def _bytes(self, request: Request, n: int, tiers: Tiers | None = None) -> int:
        policy, bits = _policy(request.options), int(request.options["bits"] or BITS[0])
        per_row = 1 + 4 * policy.uses_steps + bool(policy.grace)
        width = bits if tiers is None else bits + bits_for(tiers.fold)
        fingerprints = 8 * -(-n * width // 64)
        floats = _floats(request, n) if tiers is None else tiers.rows(request) * request.inner
        keys = 8 * request.n_tables
        memory = request.codec.nbytes(floats)
        return memory + 4 * request.projection + keys + fingerprints + n * per_row + _sketch_bytes(n)

    # --- arrays -------------------------------------------------------------------------------------------------------

    def layout(self, spec: TableSpec) -> Layout:
        """One column: an own row or a shared one; of several tables that of the first."""
        return self.layout_of(spec, 0)

    def layout_of(self, spec: TableSpec, table: int) -> Layout:
        """That of one of several tables."""
        tiers, inner, tables = Tiers.of(spec), spec.inner, spec.n_tables
        rows, marks = tiers.rows(Request.of(spec)), tiers.buckets if tiers.slots else 0
        served = map_tables(table, tables, tiers.slots, tiers.pointer_bits)
        column = Column(MAP, 0, inner, rows, a=tiers.own, b=served)
        sizes: Any = {"width": inner, "size": rows * inner, "unit": inner, "bits_per_id": spec.option("bits")}
        return Layout((column,), 1, **sizes, marks=marks)

    def is_plain(self, spec: TableSpec) -> bool:
        """Where it is one table."""
        return spec.option("tables") is None

    def packing(self, spec: TableSpec) -> Packing:
        """The fingerprints of owners."""
        tiers = Tiers.of(spec)
        return Packing(tiers.own, (spec.option("bits") + bits_for(tiers.fold),))

    def keys(self, spec: TableSpec, generation: int) -> NDArray[np.uint64]:
        """The map's, and a salt for each further table."""
        return map_keys(spec.seed, spec.n_tables)

    def arrays(self, spec: TableSpec) -> dict[str, ArraySpec]:
        """And all that is counted."""
        tiers, policy = Tiers.of(spec), _policy(dict(spec.options))
        out, n = super().arrays(spec), tiers.own
        if tiers.slots:
            settled = Packing(tiers.places, (spec.option("bits") + tiers.pointer_bits,))
            out["pointers"] = ArraySpec(np.uint64, (self.packing(spec).n_words + settled.n_words,))
            out["generation"] = ArraySpec(np.int64, (1,))
        out["own_counts"] = ArraySpec(np.uint8, (n,))
        if policy.uses_steps:
            out["own_seen"] = ArraySpec(np.uint32, (n,))
        if policy.grace:
            out["own_young"] = ArraySpec(np.uint8, (n,))
        out["sketch"] = ArraySpec(np.uint64, (_sketch_bytes(n) // 8 - 2,))
        out["clock"] = ArraySpec(np.int64, (2,))
        return out

    def fresh(self, spec: TableSpec, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """No id was met yet."""
        out = super().fresh(spec, rng)
        return {name: out[name] if name in out else np.zeros(a.shape, a.dtype) for name, a in self.arrays(spec).items()
                if name != "scales"}  # fmt: skip

    def first_pointers(self, spec: TableSpec) -> NDArray[np.uint64]:
        """Nobody has a row, and nobody has settled."""
        return np.zeros(self.arrays(spec)["pointers"].shape, np.uint64)

    def owners(self, spec: TableSpec, arrays: Mapping[str, NDArray[Any]]) -> Owners:
        """Who owns which row, over the arrays of a table."""
        tiers = Tiers.of(spec)
        empty: dict[str, NDArray[Any]] = {"own_seen": np.empty(0, np.uint32), "own_young": np.empty(0, np.uint8)}
        held = {name: arrays[own] if own in arrays else empty[own] for name, own in OWN.items()}
        policy = _policy(dict(spec.options))
        more: Any = {"bits": spec.option("bits"), "seed": spec.seed, "n_tables": spec.n_tables}
        if tiers.slots:
            more |= {"buckets": tiers.buckets, "settled": (tiers.slots, tiers.pointer_bits)}
        return Owners(tiers.own, _sketch_bytes(tiers.own), policy, **more, arrays=held)


class Tiers(NamedTuple):
    """The sizes of a table.

    Attributes:
        own: own rows, a multiple of 4.
        buckets: that ids are known by.
        slots: of a bucket, for settled ids; 0 where there are none.
        pointer_bits: of a pointer: 2^pointer_bits rows of each table are those that settled ids share.
        shared: rows of each table that are found by hash; 0 says as many as the request does.
    """

    own: int
    buckets: int
    slots: int = 0
    pointer_bits: int = 0
    shared: int = 0

    @classmethod
    def of(cls, spec: TableSpec) -> Tiers:
        """Those of a spec."""
        sizes = spec.sizes
        return cls(*sizes) if len(sizes) > 1 else cls(sizes[0], sizes[0] // SLOTS)

    @property
    def fold(self) -> int:
        """Neighbouring buckets that share the slots of one."""
        return -(-self.buckets // (self.own // SLOTS))

    @property
    def places(self) -> int:
        """Of settled ids."""
        return self.slots * self.buckets

    def rows(self, request: Request) -> int:
        """All of them: own ones, those of settled ids, and those that are found by hash."""
        tables, shared = request.n_tables, self.shared or _shared(request, SLOTS * self.buckets)
        return self.own + tables * ((1 << self.pointer_bits) * bool(self.slots) + shared)


def folded(buckets: int, own: int) -> int:
    """The most own rows, of at most so many, into which so many buckets can be folded evenly."""
    fold = -(-buckets // (own // SLOTS))
    return SLOTS * -(-buckets // fold)


def names_of(option: Any) -> list[str] | None:
    """The names of tables from the option that holds them, a list in JSON; None where they have numbers alone."""
    if option is None:
        return None
    try:
        names = json.loads(_check.instance("names", option, str, "a JSON list of names, or None"))
    except json.JSONDecodeError:
        names = None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) != len(names):
        raise ValueError(f"names must be a JSON list of different names, got {_check.shown(option)}")
    return names


def _policy(options: Mapping[str, Any]) -> Policy:
    return Policy(**{name: options[name] for name in _POLICY})


def _shared(request: Request, n: int) -> int:
    """Shared rows of each table beside `n` own ones."""
    return int(request.options["shared"] or min(_MOST_SHARED, max(1, n // (_SHARED * request.n_tables))))


def _floats(request: Request, n: int) -> int:
    return (n + request.n_tables * _shared(request, n)) * request.inner


def _sketch_bytes(n: int) -> int:
    """One byte for each own row, two cells, and the clock."""
    return 16 + 8 * -(-n // 8)
