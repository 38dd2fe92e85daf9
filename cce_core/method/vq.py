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
from cce_core.storage.packed import bits_for

MOST_ROWS, _MOST_STAGES, _RANK = 2**16, 16, 4
_PART = 1 << 20  # floats that are drawn at a time


class VectorQuantization(SizedMethod):
    """T[i] = Σ_s M_s[pointer_s(i)] · W + b, s < stages; before `cluster()` T[i] = M[i] · W + b.

    A table begins in the phase "rows": every id has a narrow row, and a counter of one byte. `cluster()` makes the phase "codes"
    of it, whose bytes are those of the budget; `reopen()` gives every id a row again, that of its centroid.
    """

    name = "vq"
    paper = "Gray, IEEE ASSP Magazine 1 (1984)"
    summary = "a narrow row an id while it learns, then one learned pointer to shared rows"
    stores = "1.06·stages·rows·rank, the projection, and stages·⌈log₂ rows⌉ bits an id; 1.06·rank + 1 an id before `cluster()`"
    takes = "stages pointers, stages·rank bytes decoded and rank·dim multiplications"
    learns = True
    learner = "pointers"
    phased = True
    default_codec = "int8"
    default_rounding = "stochastic"
    options = {"phase": ROWS, "stages": 1}

    def check(self, request: Request) -> None:
        """A pointer an id needs a last id."""
        if request.vocab is None:
            raise ValueError("method 'vq' needs a vocab: it keeps a pointer for every id; 'hash' takes unbounded ids")
        _check.choice("phase", request.options["phase"], (ROWS, CODES))
        _check.integer("stages", request.options["stages"], 1, _MOST_STAGES)

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
        """The spec after `cluster()`."""
        return spec.with_option("phase", CODES)

    # --- sizes --------------------------------------------------------------------------------------------------------

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
        if spec.option("phase") == CODES:
            return super().nbytes(spec)
        request, vocab = Request.of(spec), spec.vocab or 0
        return request.codec.nbytes(vocab * spec.inner) + vocab + 8 + 4 * request.projection

    # --- arrays -------------------------------------------------------------------------------------------------------

    def layout(self, spec: TableSpec) -> Layout:
        """The id itself, or a pointer a stage, each into a codebook of its own; what they name is summed."""
        inner, vocab = spec.inner, spec.vocab or 0
        if spec.option("phase") == ROWS:
            return Layout((Column(IDENTITY, 0, inner, vocab),), terms=1, width=inner, size=vocab * inner, unit=inner)
        (rows,), stages = spec.sizes, spec.option("stages")
        bits, size = bits_for(rows), rows * inner
        columns = tuple(Column(POINTER, s * size, inner, rows, a=s * bits, b=bits) for s in range(stages))
        return Layout(columns, stages, width=inner, size=stages * size, unit=inner, bits_per_id=stages * bits)

    def arrays(self, spec: TableSpec) -> dict[str, ArraySpec]:
        """In rows, a counter an id beside them."""
        out = super().arrays(spec)
        if spec.option("phase") == ROWS:
            out["counts"] = ArraySpec(np.uint8, (spec.vocab or 0,))
        return out

    def fresh(self, spec: TableSpec, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """No id was met yet; rows are drawn and encoded some at a time, for there is one an id."""
        if spec.option("phase") == CODES:
            return super().fresh(spec, rng)
        size, kept = self.layout(spec).size, codec(spec.codec)
        parts = (self.drawn(spec, 1, min(_PART, size - low), rng) for low in range(0, size, _PART))
        made = {name: array for name, array in zip(("memory", "scales"), kept.encode_parts(parts, size)) if array.size}
        return {**made, "generation": np.zeros(1, np.int64), "counts": np.zeros(spec.vocab or 0, np.uint8)}
