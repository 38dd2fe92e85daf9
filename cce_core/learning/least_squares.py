"""The memory that brings a table nearest to given vectors, by least squares; or the sketch too, for methods that learn it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg

from cce_core.learning.cluster import cluster
from cce_core.learning.targets import Source
from cce_core.method import block_method, get_method
from cce_core.method.block import BlockMethod
from cce_core.method.spec import TableSpec
from cce_core.method.state import TableState
from cce_core.sketching import blocks
from cce_core.sketching.batch import JaggedBatch
from cce_core.sketching.descriptors import Memory
from cce_core.sketching.group import TableGroup
from cce_core.storage.codec import FLOAT32

_BATCH = 1 << 16
_STEPS = 100

Floats = NDArray[np.float32]


def learn(table: TableState, vectors: Floats, **settings: Any) -> None:
    """Make a table come near to given vectors (vocab, dim), in place.

    Methods that learn their sketch do so by `cluster(vectors=…)`. For others that are linear in their memory the sketch is what
    it is, and the memory is the least-squares solution of H · M = X, by conjugate gradients; where there is a projection, X is
    first reduced to its main directions.

    Raises:
        ValueError: the method is not linear in its memory; it can be trained to imitate a table, but not solved for.
    """
    spec = table.spec
    method = get_method(spec.method)
    if method.learns:
        cluster(table, vectors=vectors, **settings)
        return
    if not linear_in_memory(spec):
        raise ValueError(
            f"method {spec.method!r} is not linear in its memory, so a trained table cannot be solved for: "
            "take 'pq', 'cce', 'sparse' or a linear method, or train it to imitate the table"
        )
    if block_method(spec.method).appends_weights(spec):
        raise ValueError("weights='concat' makes coordinates of the weights: take another kind of weights")
    source = Source(table, vectors, _BATCH)
    if source.projection is not None:
        table.parameters()["projection"][:] = source.projection
    table.parameters()["memory"][:] = _solved(table, block_method(spec.method), source)
    table.requantize()


def linear_in_memory(spec: TableSpec) -> bool:
    """Whether a table's vectors, before any projection, are linear in its memory."""
    method = get_method(spec.method)
    return isinstance(method, BlockMethod) and not method.weights_in_memory and method.is_linear(spec)


def _solved(table: TableState, method: BlockMethod, source: Source) -> Floats:
    """argmin ‖H · M − X‖², of least norm: conjugate gradients on Hᵀ·H·M = Hᵀ·X, all in passes over the vocabulary."""
    size, vocab = table.layout.size, table.spec.vocab or 0

    def transposed(rows: Callable[[NDArray[np.uint64], Any], Floats], out: NDArray[np.float64]) -> NDArray[np.float64]:
        """Hᵀ · rows, which are asked for by their ids and these ids' weights."""
        out[:] = 0.0
        for low in range(0, vocab, _BATCH):
            ids = np.arange(low, min(low + _BATCH, vocab), dtype=np.uint64)
            weights, _ = method.weights_of(table, ids)
            out += blocks.scatter(
                table.group, JaggedBatch.alone(ids), np.ascontiguousarray(rows(ids, weights)), weights
            )
        return out

    def normal(memory: NDArray[np.float64]) -> NDArray[np.float64]:
        """Hᵀ · H · memory."""
        group = TableGroup.of(table.sketch, Memory(FLOAT32, memory.astype(np.float32)))
        return transposed(lambda ids, weights: blocks.lookup(group, ids, weights), image)

    right = transposed(lambda ids, weights: source.rows(ids), np.empty(size))
    image = np.empty(size)  # one for all steps: each is used up before the next
    # SciPy's own relative tolerance, 1e-5: its keyword was renamed between the versions that we support.
    memory, _ = cg(LinearOperator((size, size), normal, dtype=np.float64), right, maxiter=_STEPS, atol=0.0)
    return np.asarray(memory, np.float32)
