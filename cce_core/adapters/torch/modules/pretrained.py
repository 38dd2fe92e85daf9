"""Compressing a trained table: the pointers that a method learns, or the memory that comes nearest by least squares."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core.learning.targets import Source
from cce_core.method.block import BlockMethod
from cce_core.sketching import blocks
from cce_core.sketching.descriptors import Memory
from cce_core.storage.codec import FLOAT32
from cce_core.tables.table import Table

_BATCH = 1 << 16
_STEPS = 100
_ENOUGH = 1e-6  # of the first residual


def learn(table: Table, vectors: NDArray[np.float32], **settings: Any) -> None:
    """Make a table come near to given vectors (vocab, dim), in place.

    Methods that learn their sketch do so by `cluster(vectors=…)`. For others that are linear in their memory the sketch is what
    it is, and the memory is the least-squares solution of H · M = X, by conjugate gradients; where there is a projection, X is
    first reduced to its main directions.

    Raises:
        ValueError: the method is not linear in its memory; it can be trained to imitate a table, but not solved for.
    """
    method, spec = table.method, table.spec
    if method.learns:
        table.cluster(vectors=vectors, **settings)
        return
    if not isinstance(method, BlockMethod) or method.weights_in_memory or not method.is_linear(spec):
        raise ValueError(
            f"method {spec.method!r} is not linear in its memory, so a trained table cannot be solved for: "
            "take 'pq', 'cce', 'sparse' or a linear method, or train it to imitate the table"
        )
    if method.appends_weights(spec):
        raise ValueError("weights='concat' makes coordinates of the weights: take another kind of weights")
    source = Source(table, vectors, _BATCH)
    if source.projection is not None:
        table.parameters()["projection"][:] = source.projection
    table.parameters()["memory"][:] = _solved(table, source)
    table.settle()


def _solved(table: Table, source: Source) -> NDArray[np.float32]:
    """argmin ‖H · M − X‖², of least norm: conjugate gradients on Hᵀ·H·M = Hᵀ·X, all in passes over the vocabulary."""
    assert isinstance(table.method, BlockMethod)
    method, vocab = table.method, table.spec.vocab or 0
    starts = range(0, vocab, _BATCH)

    def batches() -> Any:
        for low in starts:
            ids = np.arange(low, min(low + _BATCH, vocab), dtype=np.uint64)
            yield ids, method.weights_of(table, ids)[0]

    def down(vectors: Any) -> NDArray[np.float64]:
        total = np.zeros(table.layout.size)
        for ids, weights in batches():
            total += blocks.scatter(table.sketch, ids, np.ascontiguousarray(vectors(ids, weights)), weights)
        return total

    def across(memory: NDArray[np.float64]) -> NDArray[np.float64]:
        kept = Memory(FLOAT32, memory.astype(np.float32))
        return down(lambda ids, weights: blocks.lookup(table.sketch, kept, ids, weights))

    rest = down(lambda ids, weights: source.rows(ids))
    memory, step, square = np.zeros_like(rest), rest.copy(), float(rest @ rest)
    enough = square * _ENOUGH**2
    for _ in range(_STEPS):
        if square <= enough:
            break
        image = across(step)
        curve = float(step @ image)
        if curve <= 0:
            break
        rate = square / curve
        memory += rate * step
        rest -= rate * image
        before, square = square, float(rest @ rest)
        step = rest + square / before * step
    return memory.astype(np.float32)
