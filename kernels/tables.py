"""Tables on a GPU: the specs and arrays of `cce_core`, as torch tensors; lookups and gradients of many in one launch."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import Any

from cce_core import _check
from cce_core.method import get_method
from cce_core.method.block import BlockMethod
from cce_core.method.spec import TableSpec
from cce_core.storage.codec import FLOAT32
from cce_kernels import lookup as forward
from cce_kernels import ordered, scatter
from cce_kernels.batch import JaggedBatch, read
from cce_kernels.launch import Arrays, Launch, Member, launches, members_of
from cce_kernels.runtime import floats, on_device, torch


class Tables:
    """Compressed tables on one device, looked up together.

    Args:
        tables: pairs of a table's spec and its arrays, as `Table.spec` and `Table.arrays()` have them, but torch tensors
            (`from_table` copies them). They stay the caller's own and are read at each call; training changes them in place.

    Raises:
        TypeError, ValueError: an array is missing, or of another type, size or device than the spec says; or the method
            is not made of blocks (`tt`: see `trains`; `dhe`: see `dhe`).

    Example:
        >>> import cce_core as cce
        >>> table = cce.make_table("cce", vocab=1000, dim=16, num_params=1024)
        >>> tables = Tables([(table.spec, from_table(table, "cuda"))])  # doctest: +SKIP
        >>> tables.lookup(torch.tensor([1, 2], device="cuda")).shape  # doctest: +SKIP
        torch.Size([2, 16])
    """

    def __init__(self, tables: Sequence[tuple[TableSpec, Arrays]]) -> None:
        if not tables:
            raise ValueError("tables must hold at least one pair of spec and arrays, got none")
        self.specs = [spec for spec, _ in tables]
        self.arrays = [dict(arrays) for _, arrays in tables]
        self._inner: list[int] = []
        self._products: list[int] = []
        for spec in self.specs:
            method = get_method(spec.method)
            if not isinstance(method, BlockMethod):
                home = {"tt": "cce_kernels.trains", "dhe": "cce_kernels.dhe"}.get(spec.method, "cce_core")
                raise ValueError(f"a {spec.method!r} table is not made of blocks: use {home}")
            product = method.chunked and dict(spec.options).get("combine") == "mul"
            self._products.append(spec.n_chunks if product else 0)
            self._inner.append(spec.inner * (spec.n_chunks if product else 1))
        self.generations = [0] * len(tables)  # how often each was clustered here
        self._placed: tuple[int, ...] = ()
        self._launches: list[Launch] = []
        self.launches()
        self.device = self._launches[0].device

    @property
    def dims(self) -> list[int]:
        """Floats of a vector, a table each."""
        return [spec.dim for spec in self.specs]

    def launches(self) -> list[Launch]:
        """What is handed to the kernels; made anew where a tensor was moved."""
        placed = tuple(array.data_ptr() for arrays in self.arrays for array in arrays.values())
        if placed != self._placed:
            left, final, self._members = 0, 0, list[Member]()
            for source, (spec, arrays) in enumerate(zip(self.specs, self.arrays)):
                self._members += members_of(spec, arrays, source, left, -1 if self._products[source] else final)
                left, final = left + self._inner[source], final + spec.dim
            self._launches = launches(self._members)
            self._slots = self._gradient_slots()
            self._placed = placed
        return self._launches

    @property
    def members(self) -> list[Member]:
        """The members of all tables, in their order."""
        self.launches()
        return self._members

    @property
    def direct(self) -> bool:
        """Whether a gradient may be added straight into the memories: float32, no weights, no projections, no products."""
        plain = all(
            p.codec == FLOAT32 and p.weight_layout is None and p.projection is None and p.final >= 0
            for p in self.members
        )
        return plain and len(self.members) == len(self.specs)

    def units(self, k: int) -> dict[str, int]:
        """Floats of the blocks that each parameter of table `k` is made of, as `Table.block_sizes()` says."""
        units = {name: array.unit for name, array in get_method(self.specs[k].method).arrays(self.specs[k]).items()}
        units |= {"projection": self.specs[k].dim} if self.specs[k].rank else {}
        return {name: unit for name, unit in units.items() if unit}

    def size_of(self, k: int) -> int:
        """Floats of the memory of table `k`."""
        return next(member.layout.size for member in self.members if member.source == k)

    # --- the way of an id ---------------------------------------------------------------------------------------------

    def lookup(
        self, ids: Any, offsets: Any = None, weights: Any = None, mode: str = "sum", *, lengths: Any = None,
        padding_id: Any = None, check: bool = True,
    ) -> torch.Tensor:  # fmt: skip
        """The vectors of ids, or of bags of ids, of all tables side by side.

            out[b] = [ Σ_{n in bag b of table 0} weights[n] · T₀[ids[n]],  the same of table 1,  … ]

        As for `Collection.lookup` of cce_core, with tensors for arrays.

        Args:
            ids: integers, a tensor (batch, tables), a column per table; or a list of flat tensors, one per table; or, for bags of
                one size, a tensor (batch, tables, size). Of one table alone, a tensor of any shape; flat with offsets.
            offsets: int64, for bags, where each begins in the ids of its table, and the end: (bags + 1,), one row for all
                tables, or one per table. Without them (and without lengths) every id is a row.
            weights: float32, in the form of ids, `mode="sum"` only: what each vector is multiplied by.
            mode: "sum" or "mean" of a bag. An empty bag is 0.
            lengths: int64, ids of each bag, instead of offsets.
            padding_id: an id that counts for nothing, its vector 0; or one per table, None for none.
            check: raise for ids out of range (this waits for the device). Without it such an id counts for nothing:
                memory is safe, but nobody is told.

        Returns:
            float32 (batch or bags, Σ dim); of one table alone (*shape, dim). Without a projection the bits are those of
            `cce_core`'s lookup.

        Raises:
            TypeError, ValueError: wrong types, devices or shapes.
            IndexError: an id is not below its table's vocabulary; names table, id and position.

        Cost:
            One launch, the projection in it. Ids, offsets, pointers' words, blocks and vectors cross device memory once; the
            factors of a product, and the sums of `hemb` with both a rank and weights in the vector, once more each way.
        """
        return self._forward(self._given(ids, offsets, weights, mode, lengths, check), padding_id, check, keep=False)[0]

    def forward(
        self, ids: Any, offsets: Any = None, weights: Any = None, mode: str = "sum", *, lengths: Any = None,
        padding_id: Any = None, check: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """`lookup`, and what `backward` needs of it: the memories' vectors (rows, Σ inner), and each row's count of biases.

        The second is the first itself where no table has a projection or a product, and else filled for those tables alone; the
        third is None where there is no projection.
        """
        return self._forward(self._given(ids, offsets, weights, mode, lengths, check), padding_id, check, keep=True)

    def _forward(
        self, given: JaggedBatch, padding_id: Any, check: bool, keep: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        flat, offsets, shape = given.ids, given.offsets, given.shape
        rows = given.bags
        out = torch.empty((rows, sum(self.dims)), dtype=torch.float32, device=self.device)
        later = {member.source for member in self.members if member.final < 0}
        projected = any(spec.rank for spec in self.specs)
        inner = mass = None
        if later or (keep and projected):
            inner = torch.empty((rows, sum(self._inner)), dtype=torch.float32, device=self.device)
        if inner is not None and projected:
            mass = torch.empty((len(self.specs), rows), dtype=torch.float32, device=self.device)
        if rows:
            padding, error = self._padding(padding_id), torch.full((1,), forward.GOOD, device=self.device)
            for launch in self.launches():
                forward.run(launch, flat, offsets, padding, given.weights, given.mode, out, error, inner, mass)
            if check and any(spec.vocab is not None for spec in self.specs):
                self._refuse(int(error), given)
        if inner is not None:
            for k, (piece, into) in enumerate(zip(inner.split(self._inner, 1), out.split(self.dims, 1))):
                if k in later:
                    into.copy_(self._made(k, piece, mass))
        return out.view(*shape, sum(self.dims)), out if inner is None else inner, mass

    def _made(self, k: int, piece: torch.Tensor, mass: torch.Tensor | None) -> torch.Tensor:
        """The vectors of table `k` from its memory's: their product, and its projection, where torch makes them."""
        if self._products[k]:
            piece = piece.view(len(piece), self._products[k], self.specs[k].inner).prod(1)
        if not self.specs[k].rank:
            return piece
        assert mass is not None
        w = self.arrays[k]["projection"]
        return torch.addmm(mass[k][:, None] * w[-1], piece, w[:-1])

    def _refuse(self, place: int, given: JaggedBatch) -> None:
        if place == forward.GOOD:
            return
        starts = [0, *itertools.accumulate(given.counts)]
        k = bisect.bisect_right(starts, place) - 1
        word = int(given.ids[place : place + 1].to(torch.int64))
        where = f"table {k}: " if len(self.specs) > 1 else ""
        raise IndexError(where + _check.outside(word, place - starts[k], self.specs[k].vocab or 0))

    # --- the way of a gradient ----------------------------------------------------------------------------------------

    def backward(
        self, ids: Any, grads: torch.Tensor, offsets: Any = None, weights: Any = None, mode: str = "sum", *,
        lengths: Any = None, padding_id: Any = None, check: bool = True,
        seen: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None, deterministic: bool | None = None,
        touched: bool = False, slopes: bool = False,
    ) -> tuple[list[dict[str, Any]], Any]:  # fmt: skip
        """The gradients of all parameters, given those of the vectors: the adjoint of `lookup`.

        Args:
            ids, offsets, weights, mode, lengths, padding_id, check: as for `lookup`; ids out of range count for nothing.
            grads: float32, of the shape of the vectors.
            seen: what `forward` of the same ids gave; without it, tables with a projection or a product are looked up again.
            deterministic: sum in a fixed order; None does so under `torch.use_deterministic_algorithms(True)`.
            touched: give the gradients of memory and weights as `(units, values)`, int64 (m,) and float32 (m, unit), ascending:
                of the touched units alone. Takes the fixed order.
            slopes: give the gradient of `weights` too, in the form of ids.

        Returns:
            A dict a table with the gradients of its parameters, float32, of the arrays' shapes (with a codec, `memory`'s is
            of the floats that are stored); and the gradient of the weights, or None.

        Raises:
            TypeError, ValueError, IndexError: as for `lookup`; gradients of another shape or type.

        Cost:
            One launch; ids, offsets, pointers' words and gradients cross device memory once, and each block is added to in
            place. In the fixed order, 20 bytes and a place in a sort for each block of each id besides.
        """
        found = self._given(ids, offsets, weights, mode, lengths, check)
        flat = found.ids
        floats("grads", grads, (*found.shape, sum(self.dims)))
        on_device(ids=flat, grads=grads.contiguous())
        if deterministic is None:
            deterministic = torch.are_deterministic_algorithms_enabled()
        if slopes and mode != "sum":
            raise ValueError(f'weights go with mode="sum" only, got mode={mode!r}')
        given = grads = grads.reshape(-1, sum(self.dims))
        out: list[dict[str, Any]] = [{} for _ in self.specs]
        if any(spec.rank for spec in self.specs) or any(self._products):
            if seen is None:
                seen = self._forward(found, padding_id, False, keep=True)
            grads = self._inward(grads, seen, out)
        grads, padding = grads.contiguous(), self._padding(padding_id)
        if check and grads.shape[0] and any(spec.vocab is not None for spec in self.specs):
            self._within(found)
        slope = None
        if slopes:
            slope = self._bias_slopes(flat, found.offsets, padding, given)
        if deterministic or touched:
            if slope is not None:
                raise ValueError("slopes=True sums by atomic additions: ask for it without deterministic or touched")
            self._deterministic(found, padding, grads, touched, out)
        else:
            self._atomic(found, padding, grads, slope, out)
        return out, None if slope is None else found.as_came(slope)

    def add_into_memory(
        self, ids: Any, grads: torch.Tensor, offsets: Any = None, weights: Any = None, mode: str = "sum", *,
        scale: float, lengths: Any = None, padding_id: Any = None, check: bool = True,
    ) -> None:  # fmt: skip
        """Add `scale` times the gradient into the memories themselves, where `direct` says that this is all there is to do."""
        found = self._given(ids, offsets, weights, mode, lengths, check)
        grads = floats("grads", grads, (*found.shape, sum(self.dims))).reshape(-1, sum(self.dims)).contiguous()
        if not self.direct:
            raise ValueError("these tables have codecs, weights, projections or products: use backward")
        if check:
            self._within(found)
        padding, anchor = self._padding(padding_id), self.members[0].memory
        for launch in self.launches():
            apart = [[(member.memory.data_ptr() - anchor.data_ptr()) // 4] * 2 for member in launch.members]
            into = torch.tensor(apart, dtype=torch.int64).to(self.device)
            if grads.shape[0]:
                scatter.run(
                    launch,
                    found.ids,
                    found.offsets,
                    padding,
                    found.weights,
                    found.mode,
                    grads,
                    into,
                    anchor,
                    None,
                    scale,
                )

    def _inward(self, grads: torch.Tensor, seen: Any, out: list[dict[str, Any]]) -> torch.Tensor:
        """The gradients of the memory's vectors; those of the projections go into `out`."""
        _, inner, mass = seen
        pieces = []
        for k, (g, x) in enumerate(zip(grads.split(self.dims, 1), inner.split(self._inner, 1))):
            spec, product = self.specs[k], self._products[k]
            factors = x.view(len(x), product, spec.inner) if product else None
            if "projection" in self.arrays[k]:
                w, wide = self.arrays[k]["projection"], x if factors is None else factors.prod(1)
                out[k]["projection"] = torch.cat([wide.T @ g, (mass[k] @ g)[None]])
                g = g @ w[:-1].T
            if factors is not None:  # each factor's gradient is the product's times all other factors
                others = [torch.cat([factors[:, :c], factors[:, c + 1 :]], 1).prod(1) * g for c in range(product)]
                g = torch.stack(others, 1).flatten(1)
            pieces.append(g)
        return torch.cat(pieces, 1)

    def _bias_slopes(
        self, flat: torch.Tensor, offsets: torch.Tensor | None, padding: torch.Tensor | None, grads: torch.Tensor
    ) -> torch.Tensor:
        """What the weights owe to the projections' biases, which come once for each id: ⟨b, G⟩; 0 where there are none."""
        bags = len(grads)
        each = torch.zeros((len(self.specs), bags), dtype=torch.float32, device=self.device)
        for k, g in enumerate(grads.split(self.dims, 1)):
            if "projection" in self.arrays[k]:
                each[k] = g @ self.arrays[k]["projection"][-1]
        rows = torch.arange(each.numel(), device=self.device)
        if offsets is not None:
            rows = rows.repeat_interleave(offsets.diff())
        slope = each.view(-1)[rows]
        if padding is not None:
            slope = torch.where(flat.to(torch.int64) == padding[rows // max(1, bags)], 0.0, slope)
        return slope

    def _gradient_slots(self) -> tuple[dict[tuple[int, str], tuple[int, int]], int, list[torch.Tensor]]:
        """Where in one flat buffer each table's gradients of `memory` and `weights` lie; its size; the same for the kernels."""
        places, end = {}, 0
        for member in self._members:
            sizes = member.layout.size, 0 if member.weight_layout is None else member.weight_layout.size
            for name, size in zip(self._names(member), sizes):
                if size and (member.source, name) not in places:
                    places[member.source, name] = end, size
                    end += size + -size % 4  # each begins at a multiple of 16 bytes
        into = [
            torch.tensor(
                [[places[p.source, name][0] for name in self._names(p)] for p in launch.members], dtype=torch.int64
            )
            for launch in self._launches
        ]
        return places, end, [where.to(launch.device) for where, launch in zip(into, self._launches)]

    def _names(self, member: Member) -> tuple[str, str]:
        """Which parameters a member's memory and weights are."""
        own = "memory" if member.memory is self.arrays[member.source]["memory"] else "weights"
        return own, "weights" if member.weights is not None else own

    def _atomic(self, given: JaggedBatch, padding: Any, grads: Any, slope: Any, out: Any) -> None:
        launches = self.launches()
        places, size, into = self._slots
        total = torch.zeros(size, dtype=torch.float32, device=self.device)
        for launch, where in zip(launches, into):
            if grads.shape[0]:
                scatter.run(
                    launch, given.ids, given.offsets, padding, given.weights, given.mode, grads, where, total, slope
                )
        for (source, name), (start, n) in places.items():
            out[source][name] = total[start : start + n]

    def _deterministic(self, given: JaggedBatch, padding: Any, grads: Any, touched: bool, out: Any) -> None:
        found: dict[tuple[int, str], list[tuple[torch.Tensor, torch.Tensor]]] = {name: [] for name in self._slots[0]}
        units = {}
        for member in self.members:
            memory, weights = ordered.run(
                Launch([member]), given.ids, given.offsets, padding, given.weights, given.mode, grads
            )
            own, other = self._names(member)
            found[member.source, own].append(memory)
            units.setdefault((member.source, own), member.layout.unit)
            if weights is not None and member.weight_layout is not None:
                found[member.source, other].append(weights)
                units.setdefault((member.source, other), member.weight_layout.unit)
        for (source, name), sums in found.items():
            unit, size = units[source, name], self._slots[0][source, name][1]
            if touched and len(sums) == 1 and sums[0][1].shape[1] == unit:
                out[source][name] = sums[0]
                continue
            total = torch.zeros(size, dtype=torch.float32, device=self.device)
            for index, values in sums:  # several sums of one array, or of finer units than it is made of
                rows = total.view(-1, values.shape[1])
                rows[index] = rows[index] + values
            out[source][name] = total
            if touched:
                index = torch.cat([index * values.shape[1] // unit for index, values in sums]).unique()
                out[source][name] = index, total.view(-1, unit)[index]

    def _within(self, given: JaggedBatch) -> None:
        """IndexError for the first id that its table does not have."""
        ends, start = list(itertools.accumulate(given.counts)), 0
        for end, spec in zip(ends, self.specs):
            words = given.ids[start:end].to(torch.int64)
            if spec.vocab is not None and len(words):
                bad = (words < 0) | (words >= spec.vocab)
                if bool(bad.any()):
                    self._refuse(start + int(bad.nonzero()[0, 0]), given)
            start = end

    # --- checks -------------------------------------------------------------------------------------------------------

    def _given(self, ids: Any, offsets: Any, weights: Any, mode: str, lengths: Any, check: bool) -> JaggedBatch:
        batch = read(ids, offsets, lengths, weights, mode, len(self.specs), check)
        if batch.ids.device != self.device:
            raise ValueError(
                f"ids are on {batch.ids.device} and the tables on {self.device}; move one to the other's device"
            )
        if batch.offsets is not None and any(self._products):
            raise ValueError(
                'bags of a combine="mul" table are not a sum of blocks: look ids up, then add their vectors'
            )
        return batch

    def _padding(self, padding_id: Any) -> torch.Tensor | None:
        if padding_id is None:
            return None
        each = [padding_id] * len(self.specs) if isinstance(padding_id, int) else list(padding_id)
        if len(each) != len(self.specs):
            raise ValueError(f"padding_id must be one id, or one for each of {len(self.specs)} tables, got {len(each)}")
        if all(id is None for id in each):
            return None
        words = []
        for id, spec in zip(each, self.specs):
            if id is None and spec.vocab is None:
                raise ValueError(
                    "a table without a vocab takes every id: give it a padding_id of its own, or give none"
                )
            words.append(-1 if id is None else id + (spec.vocab or 0) if id < 0 else id)
        return torch.tensor(words, dtype=torch.int64).to(self.device)


def lookup(spec: TableSpec, arrays: Arrays, ids: Any, offsets: Any = None, **settings: Any) -> torch.Tensor:
    """`Tables.lookup` of one table, once: a pass that is repeated keeps its `Tables`."""
    return Tables([(spec, arrays)]).lookup(ids, offsets, **settings)


def from_table(table: Any, device: str | torch.device) -> dict[str, torch.Tensor]:
    """A table's arrays as tensors on a device: copies with the same bits."""
    return {name: torch.from_numpy(array.copy()).to(device) for name, array in table.arrays().items()}
