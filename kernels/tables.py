"""Tables on a GPU: the specs and arrays of `cce_core`, as torch tensors; lookups and gradients of many in one launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cce_core.sketching.block_method import BlockMethod
from cce_core.sketching.methods import get_method
from cce_core.sketching.spec import TableSpec
from cce_core.storage.codec import codec as get_codec
from cce_kernels import lookup as forward
from cce_kernels.needs import floats, on_device, torch
from cce_kernels.parts import Launch, Part, launches

INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
MODES = {"sum": forward.SUM, "mean": forward.MEAN}
Arrays = Mapping[str, torch.Tensor]


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
            self._placed, self._launches = placed, launches(self.parts())
        return self._launches

    def parts(self) -> list[Part]:
        """The parts of all tables, in their order."""
        out, left = [], 0
        for source, (spec, arrays) in enumerate(zip(self.specs, self.arrays)):
            out += parts_of(spec, arrays, source, left)
            left += self._inner[source]
        return out

    # --- the way of an id ---------------------------------------------------------------------------------------------

    def lookup(self, ids: torch.Tensor, offsets: torch.Tensor | None = None, **settings: Any) -> torch.Tensor:
        """The vectors of ids, or of bags of ids, of all tables side by side.

            out[b] = [ Σ_{n in bag b of table 0} factors[n] · T₀[ids[n]],  the same of table 1,  … ]

        Args:
            ids: integers. Of one table, any shape; of several without bags, (tables, *shape). With bags, flat: all ids of
                table 0, then all of table 1, …
            offsets: int64 (tables · bags + 1): where each bag begins in `ids`, and their end; None looks up ids.
            factors: float32, one an id, `mode="sum"` only: what each vector is multiplied by.
            mode: "sum" or "mean" of a bag. An empty bag is 0.
            padding_idx: an id that counts for nothing, its vector 0; or one a table, None for none.
            check: raise for ids out of range (this waits for the device). Without it such an id counts for nothing:
                memory is safe, but nobody is told.

        Returns:
            float32 (*shape, Σ dim) or (bags, Σ dim). Without a projection the bits are those of `cce_core`'s lookup.

        Raises:
            TypeError, ValueError: wrong types, devices or shapes.
            IndexError: an id is not below its table's vocabulary; names it and its place.

        Cost:
            One launch. Ids, offsets, pointers' words, blocks and vectors cross device memory once; behind a projection,
            the vectors of the memory (rank wide) once more.
        """
        return self.forward(ids, offsets, **settings)[0]

    def forward(
        self, ids: torch.Tensor, offsets: torch.Tensor | None = None, *, factors: torch.Tensor | None = None,
        mode: str = "sum", padding_idx: Any = None, check: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """`lookup`, and what `backward` needs of it: the memory's vectors (rows, Σ inner) and each row's count of biases.

        The second is the first itself where no table has a projection or a product; the third is None then.
        """
        flat, shape, offsets = self._given(ids, offsets, factors, mode, check)
        rows = (len(offsets) - 1 if offsets is not None else flat.numel()) // len(self.specs)
        wide = sum(self._inner)
        inner = torch.empty((rows, wide), dtype=torch.float32, device=self.device)
        projected = any("projection" in arrays for arrays in self.arrays)
        mass = torch.empty((len(self.specs), rows), dtype=torch.float32, device=self.device) if projected else None
        if rows:
            self._run(flat, offsets, self._padding(padding_idx), factors, MODES[mode], inner, mass, check)
        vectors = inner
        if projected or any(self._products):
            pieces = zip(inner.split(self._inner, 1), self.specs, self.arrays, self._products)
            done = []
            for k, (piece, spec, arrays, product) in enumerate(pieces):
                if product:
                    piece = piece.view(rows, product, spec.inner).prod(1)
                if mass is not None and "projection" in arrays:
                    w = arrays["projection"]
                    piece = torch.addmm(mass[k][:, None] * w[-1], piece, w[:-1])
                done.append(piece)
            vectors = torch.cat(done, 1)
        return vectors.view(*shape, sum(self.dims)), inner, mass

    def _run(
        self, flat: Any, offsets: Any, padding: Any, factors: Any, mode: int, out: Any, mass: Any, check: bool
    ) -> None:
        error = torch.full((1,), forward.GOOD, dtype=torch.int64, device=self.device)
        for launch in self.launches():
            forward.run(launch, flat, offsets, padding, factors, mode, out, mass, error)
        if check and any(spec.vocab is not None for spec in self.specs):
            self._refuse(int(error), flat, offsets)

    def _refuse(self, place: int, flat: torch.Tensor, offsets: torch.Tensor | None) -> None:
        if place == forward.GOOD:
            return
        bags = (flat.numel() if offsets is None else len(offsets) - 1) // len(self.specs)
        bag = place if offsets is None else int(torch.searchsorted(offsets, place, right=True)) - 1
        vocab, word = self.specs[bag // bags].vocab, int(flat[place : place + 1].to(torch.int64))
        raise IndexError(f"id {word} at place {place} must be between 0 and {(vocab or 0) - 1}, the table's last id")

    # --- checks -------------------------------------------------------------------------------------------------------

    def _given(
        self, ids: torch.Tensor, offsets: torch.Tensor | None, factors: torch.Tensor | None, mode: str, check: bool
    ) -> tuple[torch.Tensor, tuple[int, ...], torch.Tensor | None]:
        """Flat ids, the shape of the result without its last axis, and checked offsets."""
        if not isinstance(ids, torch.Tensor) or ids.dtype not in INTEGERS:
            came = ids.dtype if isinstance(ids, torch.Tensor) else type(ids).__name__
            raise TypeError(f"ids must be an integer tensor, got {came}; ids = ids.to(torch.int64)")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
        ids, n_tables = ids.contiguous(), len(self.specs)
        device = on_device(ids=ids, offsets=offsets, factors=factors)
        if device != self.device:
            raise ValueError(f"ids are on {device} and the tables on {self.device}; move one to the other's device")
        if factors is not None:
            floats("factors", factors, tuple(ids.shape))
            if mode != "sum":
                raise ValueError(f'factors go with mode="sum" only, got mode={mode!r}')
        if offsets is None:
            if n_tables > 1 and (ids.dim() == 0 or ids.shape[0] != n_tables):
                raise ValueError(f"ids of {n_tables} tables must have shape ({n_tables}, …), got {tuple(ids.shape)}")
            return ids.view(-1), tuple(ids.shape if n_tables == 1 else ids.shape[1:]), None
        if any(self._products):
            raise ValueError(
                'bags of a combine="mul" table are not a sum of blocks: look ids up, then add their vectors'
            )
        if ids.dim() != 1:
            raise ValueError(f"ids of bags must be flat, got shape {tuple(ids.shape)}; use ids.view(-1)")
        if offsets.dtype != torch.int64:
            raise TypeError(f"offsets must be int64, got {offsets.dtype}; offsets = offsets.to(torch.int64)")
        if offsets.dim() != 1 or len(offsets) < 1 or (len(offsets) - 1) % n_tables:
            raise ValueError(
                f"offsets must have shape ({n_tables} · bags + 1,), the last one the number of ids, got {tuple(offsets.shape)}"
            )
        if check:
            edges = torch.stack([offsets[0] == 0, offsets[-1] == ids.numel(), (offsets.diff() >= 0).all()]).tolist()
            if not all(edges):
                raise ValueError(
                    f"offsets must begin at 0, never fall, and end at the number of ids, {ids.numel()}; "
                    f"got {int(offsets[0])} … {int(offsets[-1])}{'' if edges[2] else ', falling'}"
                )
        return ids, ((len(offsets) - 1) // n_tables,), offsets

    def _padding(self, padding_idx: Any) -> torch.Tensor | None:
        if padding_idx is None:
            return None
        each = [padding_idx] * len(self.specs) if isinstance(padding_idx, int) else list(padding_idx)
        if len(each) != len(self.specs):
            raise ValueError(
                f"padding_idx must be one id, or one for each of {len(self.specs)} tables, got {len(each)}"
            )
        if all(id is None for id in each):
            return None
        words = []
        for id, spec in zip(each, self.specs):
            if id is None and spec.vocab is None:
                raise ValueError(
                    "a table without a vocab takes every id: give it a padding_idx of its own, or give none"
                )
            words.append(-1 if id is None else id + (spec.vocab or 0) if id < 0 else id)
        return torch.tensor(words, dtype=torch.int64).to(self.device)


def parts_of(spec: TableSpec, arrays: Arrays, source: int = 0, left: int = 0) -> list[Part]:
    """The parts of one table; a table whose weights are coordinates of its vectors has a second one for them."""
    method = get_method(spec.method)
    assert isinstance(method, BlockMethod)
    layout, weighing = method.layout(spec), method.weighing(spec)
    expected = {name: array for name, array in method.arrays(spec).items() if name != "generation"}
    missing = sorted(set(expected) - set(arrays)) + (["projection"] if spec.rank and "projection" not in arrays else [])
    if missing:
        raise ValueError(f"a {spec.method!r} table needs the array {missing[0]!r}; got {sorted(arrays)}")
    if spec.rank:
        floats("projection", arrays["projection"], (spec.rank + 1, spec.dim))
    keys, pointers = arrays.get("keys"), arrays.get("pointers")
    weights = None if weighing is None or method.weights_in_memory else arrays["weights"]
    part = Part(
        layout, arrays["memory"], keys, pointers, arrays.get("scales"), get_codec(spec.codec).number, spec.vocab,
        weighing, weights, source, left,
    )  # fmt: skip
    if not method.appends_weights(spec):
        return [part]
    assert weighing is not None
    assert weights is not None
    return [part, Part(weighing, weights, keys, pointers, vocab=spec.vocab, source=source, left=left + layout.dim)]


def from_table(table: Any, device: str | torch.device) -> dict[str, torch.Tensor]:
    """A table's arrays as tensors on a device: copies with the same bits."""
    return {name: torch.from_numpy(array.copy()).to(device) for name, array in table.arrays().items()}
