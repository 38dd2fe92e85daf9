"""Vector quantisation: rows of their own while ids learn, one pointer each to shared centroids once they have settled."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.method.base import Request
from cce_core.method.sizing import SizedMethod
from cce_core.method.spec import CODES, ROWS, ArraySpec, TableSpec
from cce_core.sketching.layout import IDENTITY, POINTER, Column, Layout
from cce_core.storage.codec import codec
from cce_core.storage.marks import mark, n_words
from cce_core.storage.packed import Packing, bits_for

MOST_ROWS, _MOST_STAGES, _RANK = 2**16, 16, 4
_MOST_BITS = 57  # of the pointers of an id, where not every id has some
_PART = 1 << 20  # floats that are drawn at a time


class VectorQuantization(SizedMethod):
    """T[i] = Σ_s M_s[pointer_s(i)] · W + b, s < stages; before `cluster()` T[i] = M[i] · W + b.

    A table begins in the phase "rows": every id has a narrow row, and a counter of one byte. `cluster()` makes the phase "codes"
    of it, whose bytes are at most those of the budget; `reopen()` gives every id a row again, that of its centroid.

    Where most ids are rare, bits are better spent on more centroids for the frequent than on a pointer for every id. `cluster()`
    may find that: then as many ids as the bytes allow, those that count most, have pointers of `bits` bits, a bit an id marks
    them, and all other ids share row 0. With `share=False`, and where the budget is one of parameters, every id has a pointer.
    """

    name = "vq"
    paper = "Gray, IEEE ASSP Magazine 1 (1984)"
    summary = "a narrow row an id while it learns, then one learned pointer to shared rows"
    stores = (
        "1.06·stages·rows·rank, the projection, and stages·⌈log₂ rows⌉ bits an id, or an id that has pointers, and 1.07 bits for "
        "every id; 1.06·rank + 1 an id before `cluster()`"
    )
    takes = "stages pointers, stages·rank bytes decoded and rank·dim multiplications"
    learns = True
    learner = "pointers"
    phased = True
    default_codec = "int8"
    default_rounding = "stochastic"
    options = {"phase": ROWS, "stages": 1, "bits": 0, "share": True}

    def check(self, request: Request) -> None:
        """A pointer an id needs a last id."""
        if request.vocab is None:
            raise ValueError("method 'vq' needs a vocab: it keeps a pointer for every id; 'hash' takes unbounded ids")
        _check.choice("phase", request.options["phase"], (ROWS, CODES))
        _check.integer("stages", request.options["stages"], 1, _MOST_STAGES)
        _check.integer("bits", request.options["bits"], 0, (MOST_ROWS - 1).bit_length())
        if request.options["bits"] and request.options["phase"] == ROWS:
            raise ValueError("bits is what cluster() finds: leave it at 0 while ids have rows")

    def rank(self, request: Request) -> int:
        """4, or the most below it whose projection takes at most two fifths of the budget; 0 for vectors as narrow.

        On MovieLens 100K in 2,500 bytes for both tables ranks 2 and 2 reach AUC 0.8325, 2 and 3 0.8300, 1 and 2 0.8294, 3 and 3
        0.8267, and 0 0.8248.
        """
        room = request.num_params if request.num_params is not None else (request.num_bytes or 0) // 4
        for rank in range(_RANK if request.dim > _RANK else 0, 0, -1):
            asked = dataclasses.replace(request, rank=rank)
            if 5 * asked.projection <= 2 * room and self.rows(asked) >= self.least_rows(asked):
                return rank
        return 0

    def served(self, spec: TableSpec) -> TableSpec:
        """The spec after `cluster()`, if every id has a pointer then; others take no more bytes."""
        return spec.with_option("phase", CODES).with_option("bits", 0)

    def clustered(self, spec: TableSpec) -> list[TableSpec]:
        """First that in which every id has a pointer; then one for each number of bits, where other ids share a row."""
        every, request = self.served(spec), Request.of(spec)
        bits = range(1, 1 + (MOST_ROWS - 1).bit_length() if len(spec.sizes) == 1 else 1)
        return [every, *(every.with_option("bits", b) for b in bits if self._fits(request, spec.sizes[0], b))]

    def reopened(self, spec: TableSpec) -> TableSpec:
        """The spec before `cluster()`."""
        return spec.with_option("phase", ROWS).with_option("bits", 0)

    # --- sizes --------------------------------------------------------------------------------------------------------

    def sizes(self, request: Request) -> tuple[int, ...]:
        """The most rows that fit if every id has a pointer; and the vocabulary, where it is to stay so."""
        every = not request.options["share"] or request.num_params is not None
        return (*super().sizes(request), *([request.vocab or 0] if every else ()))

    def check_sizes(self, request: Request, sizes: tuple[int, ...]) -> None:
        """Rows, or rows and the vocabulary."""
        if len(sizes) not in (1, 2) or sizes[1:] not in ((), (request.vocab,)):
            raise ValueError(
                f"sizes of a 'vq' table are (rows,) or (rows, vocab), vocab {request.vocab:,}, got {sizes}"
            )
        self._check_rows(request, sizes[0])
        if bits := int(request.options["bits"] or 0):
            if len(sizes) > 1:
                raise ValueError(f"every id of a 'vq' table of sizes {sizes} has a pointer: bits must be 0, got {bits}")
            if not self._fits(request, sizes[0], bits):
                raise ValueError(f"no ids fit that have pointers of {bits} bits while others share a row: take bits=0")

    def shape(self, spec: TableSpec) -> tuple[int, ...]:
        """Rows; and how many ids have pointers, where others share a row."""
        return self.split(spec) if spec.option("bits") else spec.sizes

    def split(self, spec: TableSpec) -> tuple[int, int]:
        """Rows of a codebook, and ids that have pointers, once it is clustered."""
        bits = spec.option("bits")
        if not bits:
            return spec.sizes[0], spec.vocab or 0
        return 2**bits, self._ids(Request.of(spec), spec.sizes[0], bits)

    def _ids(self, request: Request, rows: int, bits: int) -> int:
        """How many ids can have pointers of so many bits in the bytes that every id's to so many rows would take: whole words."""
        room = self._bytes(request, bits_for(rows), rows) - self._bytes(request, 0, 2**bits)
        per_id = bits * self.pointers(request)
        return max(0, room // 8 - n_words(request.vocab or 0)) // per_id * 64

    def _fits(self, request: Request, rows: int, bits: int) -> bool:
        """Whether such a table is there: its pointers fit in a word, and it has more of them than rows, but not for every id."""
        if bits * self.pointers(request) > _MOST_BITS or 2**bits > self.most_rows(request):
            return False
        return 2**bits <= self._ids(request, rows, bits) < (request.vocab or 0)

    def floats_per_row(self, request: Request) -> int:
        """A row in each of the stages' codebooks."""
        return request.inner * self.pointers(request)

    def pointers(self, request: Request) -> int:
        """One a stage."""
        return int(request.options["stages"] or 1)

    def hashes(self, request: Request) -> int:
        """None."""
        return 0

    def least_rows(self, request: Request) -> int:
        """Two: with one, all ids would have the same vector."""
        return min(2, request.vocab or 2)

    def most_rows(self, request: Request) -> int:
        """One an id, and no more than 2^16."""
        return min(request.vocab or MOST_ROWS, MOST_ROWS)

    def nbytes(self, spec: TableSpec) -> int:
        """Those of the phase that the spec is in."""
        request, vocab = Request.of(spec), spec.vocab or 0
        if spec.option("phase") == ROWS:
            return request.codec.nbytes(vocab * spec.inner) + vocab + 8 + 4 * request.projection
        (rows, ids), bits = self.split(spec), spec.option("bits")
        if not bits:
            return self._bytes(request, bits_for(rows), rows)
        return self._bytes(request, 0, rows) + 8 * (n_words(vocab) + ids * bits * self.pointers(request) // 64)

    # --- arrays -------------------------------------------------------------------------------------------------------

    def layout(self, spec: TableSpec) -> Layout:
        """The id itself, or a pointer a stage, each into a codebook of its own; what they name is summed."""
        inner, vocab = spec.inner, spec.vocab or 0
        if spec.option("phase") == ROWS:
            return Layout((Column(IDENTITY, 0, inner, vocab),), terms=1, width=inner, size=vocab * inner, unit=inner)
        (rows, ids), stages = self.split(spec), spec.option("stages")
        bits, size = bits_for(rows), rows * inner
        columns = tuple(Column(POINTER, s * size, inner, rows, a=s * bits, b=bits) for s in range(stages))
        marked = {"marks": n_words(vocab), "pointed": ids} if ids < vocab else {}
        return Layout(columns, stages, inner, stages * size, unit=inner, bits_per_id=stages * bits, **marked)

    def packing(self, spec: TableSpec) -> Packing:
        """Of the ids that have pointers, in their order."""
        return Packing(self.split(spec)[1], super().packing(spec).bits)

    def arrays(self, spec: TableSpec) -> dict[str, ArraySpec]:
        """In rows, a counter an id beside them; in codes, the marks before the pointers."""
        out = super().arrays(spec)
        if spec.option("phase") == ROWS:
            out["counts"] = ArraySpec(np.uint8, (spec.vocab or 0,))
        elif marks := self.layout(spec).marks:
            out["pointers"] = ArraySpec(np.uint64, (marks + self.packing(spec).n_words,))
        return out

    def first_pointers(self, spec: TableSpec) -> NDArray[np.uint64]:
        """Hashed ones; where not every id has pointers, of the first."""
        words, size = super().first_pointers(spec), self.layout(spec).marks
        marks = np.zeros(size, np.uint64)
        if size:
            mark(marks, 0, np.arange(spec.vocab or 0) < self.packing(spec).n, 0)
        return np.concatenate([marks, words])

    def fresh(self, spec: TableSpec, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """No id was met yet; rows are drawn and encoded some at a time, for there is one an id."""
        if spec.option("phase") == CODES:
            return super().fresh(spec, rng)
        size, coder = self.layout(spec).size, codec(spec.codec)
        parts = (self.drawn(spec, 1, min(_PART, size - low), rng) for low in range(0, size, _PART))
        made = {name: array for name, array in zip(("memory", "scales"), coder.encode_parts(parts, size)) if array.size}
        return {**made, "generation": np.zeros(1, np.int64), "counts": np.zeros(spec.vocab or 0, np.uint8)}
