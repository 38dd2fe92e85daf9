"""Sparse codes: every row a weighted sum of a few atoms of one dictionary."""

from __future__ import annotations

from cce_core import _check
from cce_core.method.base import Request
from cce_core.method.sizing import SizedMethod
from cce_core.method.spec import TableSpec
from cce_core.sketching.layout import HASH, POINTER, Column, Layout
from cce_core.storage.packed import bits_for


class SparseCodes(SizedMethod):
    """T[i] = Σ_t L[q_t(i)] · M[pointer_t(i)], t < n_atoms: the weights are stored pointers to 2^weight_bits levels L.

    `cluster(vectors=…)` finds the dictionary M by K-SVD and every id's atoms by orthogonal matching pursuit; M and L can be
    trained on afterwards.
    """

    name = "sparse"
    paper = "Aharon et al., IEEE TSP 54 (2006)"
    summary = "a few learned atoms of a dictionary an id, with quantised weights, from a table that was trained before"
    stores = "4·rows·dim, and n_atoms·(⌈log₂ rows⌉ + weight_bits) bits an id"
    takes = "2·n_atoms pointers and n_atoms multiply-adds of dim floats"
    learns = True
    learner = "codes"
    post_training = True
    options = {"n_atoms": 2, "weight_bits": 4}

    def check(self, request: Request) -> None:
        """Pointers for every id; atoms and weights in sensible numbers."""
        if request.vocab is None:
            raise ValueError(
                f"method {self.name!r} needs a vocab: it keeps pointers for every id; 'hemb' takes unbounded ids"
            )
        atoms = _check.integer("n_atoms", request.options["n_atoms"], 1, 64)
        if atoms > request.inner:
            raise ValueError(
                f"n_atoms {atoms} must be at most the vector's {request.inner} floats, which give every vector exactly"
            )
        if atoms > request.vocab:
            raise ValueError(f"n_atoms {atoms} must be at most the vocabulary's {request.vocab} ids; take fewer atoms")
        if "weight_bits" in request.options:
            _check.integer("weight_bits", request.options["weight_bits"], 1, 12)

    def floats_per_row(self, request: Request) -> int:
        """One atom."""
        return request.inner

    def pointers(self, request: Request) -> int:
        """One an atom."""
        return int(request.options["n_atoms"] or 0)

    def fixed_bits(self, request: Request) -> tuple[int, ...]:
        """A level for each weight."""
        return (int(request.options["weight_bits"] or 0),) * self.pointers(request)

    def fixed_weights(self, request: Request) -> int:
        """The levels."""
        return 2 ** int(request.options["weight_bits"] or 0)

    def hashes(self, request: Request) -> int:
        """None."""
        return 0

    def least_rows(self, request: Request) -> int:
        """As many as an id has atoms."""
        return self.pointers(request)

    def most_rows(self, request: Request) -> int:
        """One an id: K-SVD needs a sample for each atom."""
        assert request.vocab is not None
        return max(request.vocab, self.least_rows(request))

    def layout(self, spec: TableSpec) -> Layout:
        """The atoms' pointers, then (for the weights) the levels'."""
        (rows,), atoms, bits = spec.sizes, spec.option("n_atoms"), bits_for(spec.sizes[0])
        columns = tuple(Column(POINTER, 0, spec.inner, rows, a=t * bits, b=bits) for t in range(atoms))
        size = rows * spec.inner
        return Layout(columns, atoms, width=spec.inner, size=size, unit=spec.inner, bits_per_id=self._bits(spec))

    def weight_layout(self, spec: TableSpec) -> Layout:
        """A level an atom."""
        atoms, bits = spec.option("n_atoms"), spec.option("weight_bits")
        first, levels = atoms * bits_for(spec.sizes[0]), 2**bits
        columns = tuple(Column(POINTER, 0, 1, levels, a=first + t * bits, b=bits) for t in range(atoms))
        return Layout(columns, terms=1, width=1, size=levels, unit=1, bits_per_id=self._bits(spec))

    def _bits(self, spec: TableSpec) -> int:
        return int(spec.option("n_atoms") * (bits_for(spec.sizes[0]) + spec.option("weight_bits")))


class SparseHashedCodes(SparseCodes):
    """T[i] = Σ_t P[h_t(i)] · M[pointer_t(i)]: the weights are hashed into an array that is trained, and cost an id nothing."""

    name = "sparse2"
    summary = "a few learned atoms of a dictionary an id, with hashed weights, from a table that was trained before"
    stores = "8·rows·dim, and n_atoms·⌈log₂ rows⌉ bits an id"
    takes = "n_atoms pointers, n_atoms hashes and n_atoms multiply-adds of dim floats"
    options = {"n_atoms": 2}

    def fixed_bits(self, request: Request) -> tuple[int, ...]:
        """None."""
        return ()

    def fixed_weights(self, request: Request) -> int:
        """None."""
        return 0

    def weights_per_row(self, request: Request) -> int:
        """As many weights as floats in the dictionary."""
        return request.inner

    def hashes(self, request: Request) -> int:
        """One an atom."""
        return self.pointers(request)

    def weight_layout(self, spec: TableSpec) -> Layout:
        """A hashed place an atom."""
        size = spec.sizes[0] * spec.inner
        columns = tuple(Column(HASH, 0, 1, size, b=t) for t in range(spec.option("n_atoms")))
        return Layout(columns, terms=1, width=1, size=size, unit=1, bits_per_id=self._bits(spec))

    def _bits(self, spec: TableSpec) -> int:
        return int(spec.option("n_atoms") * bits_for(spec.sizes[0]))
