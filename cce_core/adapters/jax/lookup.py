"""A table as JAX has it: parameters as a pytree, and a lookup that is a pytree itself, of all that is not trained."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cce_core import _check
from cce_core.hashing.halves import MASK32, Halves
from cce_core.method.portable import PortableLookup, sketch_arrays, trained_arrays
from cce_core.method.spec import TableSpec
from cce_core.storage.codec import BLOCK, codec
from cce_core.tables.table import Table

Params = dict[str, Any]
_portable = functools.lru_cache(maxsize=1024)(PortableLookup)
_NEGATIVE = np.uint32(MASK32)

jax.tree_util.register_pytree_node(
    Halves, lambda words: ((words.high, words.low), None), lambda _, parts: Halves(*parts)
)


@jax.tree_util.register_pytree_node_class
class Lookup:
    """`lookup(params, ids)`: the vectors of ids, as a pure function of parameters, ids, and the hashes and pointers within.

    It is a pytree: hand it to a function under `jit` as an argument, and one that `from_table` makes after `cluster()` runs in
    the same compiled program (but for `vq`, which then is another function). Nothing within is differentiated.

    Attributes:
        spec: sizes and method, its seed aside, by which nothing here is drawn.
        sketch: `keys`, uint32 (2, n), the upper and the lower halves; `pointers`, packed in uint32. Either may be missing.

    Example:
        >>> import jax, numpy as np, cce_core as cce
        >>> from cce_core.adapters.jax import from_table
        >>> params, lookup = from_table(cce.make_table("cce", vocab=1000, dim=16, num_params=2048, seed=0))
        >>> jax.jit(lookup)(params, np.array([[1, 2], [3, 4]], np.int32)).shape
        (2, 2, 16)
    """

    def __init__(self, spec: TableSpec, sketch: dict[str, Any]) -> None:
        self.spec, self.sketch = dataclasses.replace(spec, seed=0), sketch

    def __repr__(self) -> str:
        vocab = "unbounded" if self.spec.vocab is None else f"{self.spec.vocab:,}"
        return f"<{self.spec.method} lookup: vocab {vocab}, dim {self.spec.dim}>"

    def tree_flatten(self) -> tuple[tuple[dict[str, Any]], TableSpec]:
        """For JAX."""
        return (self.sketch,), self.spec

    @classmethod
    def tree_unflatten(cls, spec: TableSpec, children: tuple[dict[str, Any]]) -> Lookup:
        """For JAX."""
        made = cls.__new__(cls)
        made.spec, (made.sketch,) = spec, children
        return made

    def __call__(self, params: Params, ids: Any) -> jax.Array:
        """The vectors of ids: float32 (*ids.shape, dim).

        With a codec, vectors are those of the memory rounded into it; gradients pass straight through.

        Args:
            params: as `from_table` gives them.
            ids: as for `as_ids`.

        Raises:
            IndexError: one of NumPy's or Python's ids is outside the vocabulary. One of JAX's, whose numbers may not be known
                yet, gives NaN, as in `jax.numpy.take`.
            TypeError: ids are no integers.
        """
        return _vectors(self.spec, {**params, **self.sketch}, as_ids(ids, self.spec.vocab))


@functools.partial(jax.jit, static_argnums=0)  # so that a call outside of jit is one program, too
def _vectors(spec: TableSpec, arrays: dict[str, Any], words: Halves) -> jax.Array:
    if "keys" in arrays:
        arrays["keys"] = Halves(*arrays["keys"])
    if spec.codec != "float32":
        arrays["memory"] = _straight_through(arrays["memory"], spec.codec)
    flat = Halves(words.high.reshape(-1), words.low.reshape(-1))
    return _portable(spec)(jnp, arrays, flat).reshape(*words.low.shape, spec.dim)


def as_ids(ids: Any, vocab: int | None = None) -> Halves:
    """Ids as 64-bit words in halves, a pytree: what a function under `jit` takes where ids may need more than 32 bits.

    JAX makes 32-bit integers of whatever is handed to a compiled function, unless `jax_enable_x64` is set: call this outside.

    Args:
        ids: integers of any shape: of NumPy and Python of all types; of JAX those that it has; or what this has given before.
        vocab: ids of NumPy and Python must be below it; None takes every 64-bit id.

    Raises:
        IndexError: an id is outside the vocabulary; names the first and its position.
        TypeError: ids are no integers.

    Example:
        >>> from cce_core.adapters.jax import as_ids
        >>> words = as_ids([1, 2**40])
        >>> words.high.tolist(), words.low.tolist()
        ([0, 256], [1, 0])
    """
    if isinstance(ids, Halves):
        return ids
    if not isinstance(ids, jax.Array):
        words = _check.as_ids(ids)
        if vocab is not None:
            _check.ids_within(words, vocab)
        return Halves.split(words)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"ids must be integers, got {ids.dtype}: ids = ids.astype(jnp.int32)")
    if ids.dtype.itemsize == 8:
        return Halves((ids.astype(jnp.uint64) >> 32).astype(jnp.uint32), ids.astype(jnp.uint32))
    low = ids.astype(jnp.int32).astype(jnp.uint32) if ids.dtype != jnp.uint32 else ids
    if jnp.issubdtype(ids.dtype, jnp.unsignedinteger):
        return Halves(jnp.zeros_like(low), low)
    return Halves(jnp.where(ids < 0, _NEGATIVE, np.uint32(0)), low)


def from_table(table: Table) -> tuple[Params, Lookup]:
    """A table's trained arrays as JAX's, and its lookup.

    Args:
        table: of any method but `tiered`. It stays as it is, and shares nothing with what is returned.

    Returns:
        params: a dict of float32 arrays: `memory` (blocks, floats of a block) and whatever else the method trains, such as
            `weights` or `projection` (rank + 1, dim), whose last row is the bias. With a codec these are the values behind it.
        lookup: a `Lookup`.

    Raises:
        TypeError: it is no table.
        ValueError: the method is `tiered`, or the table too large for indices of 32 bits.

    Example:
        >>> import jax, cce_core as cce
        >>> from cce_core.adapters.jax import from_table, to_table
        >>> table = cce.make_table("cce", vocab=1000, dim=16, num_params=2048, seed=0)
        >>> params, lookup = from_table(table)
        >>> grads = jax.grad(lambda p: lookup(p, [1, 2, 3]).sum())(params)
        >>> params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        >>> to_table(params, table)
        >>> report = table.cluster()
        >>> params, lookup = from_table(table)
    """
    _check.instance("table", table, Table, "a table that make_table or load has made")
    params = {name: jnp.array(values) for name, values in trained_arrays(table).items()}
    sketch = sketch_arrays(table)
    if "keys" in sketch:
        keys = Halves.split(sketch["keys"])
        sketch["keys"] = np.stack([keys.high, keys.low])
    return params, Lookup(table.spec, {name: jnp.array(values) for name, values in sketch.items()})


def to_table(params: Mapping[str, Any], table: Table) -> None:
    """Write trained arrays into the table that they came from, in place, as its own training would have left them.

    Then `table.cluster()`, `save` and all else; `from_table` again after a change of the sketch. An optimiser's state of before
    `cluster()` speaks of rows that mean something else now: begin it anew.

    Args:
        params: as `from_table` gives them.
        table: of the same spec.

    Raises:
        ValueError: names or shapes are not those of this table, as after `cluster()` of `vq`, or it is mapped read-only.
    """
    _check.instance("table", table, Table, "a table that make_table or load has made")
    shapes = table.shapes()
    if set(params) != set(shapes):
        raise ValueError(f"this {table.spec.method!r} table has the parameters {sorted(shapes)}, got {sorted(params)}")
    arrays = {name: np.asarray(values, np.float32) for name, values in params.items()}
    for name, shape in shapes.items():
        if arrays[name].size != math.prod(shape):
            raise ValueError(
                f"{name} must have {math.prod(shape):,} floats, got shape {arrays[name].shape}: params are those of from_table"
            )
    if not table.writeable:
        raise ValueError("the table is mapped read-only; load it with mmap=False to change it")
    for name, own in table.parameters().items():
        own[...] = arrays[name].reshape(own.shape)
    table.requantize()


def _straight_through(memory: jax.Array, name: str) -> jax.Array:
    """The memory as its codec gives it back, with the gradient of the memory itself."""
    held = jax.lax.stop_gradient(memory)
    return _rounded(held, name) + (memory - held)


def _rounded(memory: jax.Array, name: str) -> jax.Array:
    """Rounded to the nearest of its codec; the whole of it, whatever the ids."""
    most = codec(name).most
    if not most:
        return memory.astype(jnp.bfloat16).astype(jnp.float32)
    flat = memory.reshape(-1)
    blocks = jnp.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK)
    largest = jnp.abs(blocks).max(1, keepdims=True)
    exact = jnp.where(largest > 0, blocks / jnp.where(largest > 0, largest, 1) * most, 0)
    codes = jnp.clip(jnp.floor(exact + 0.5), -most, most)
    return (codes * (largest / most)).reshape(-1)[: flat.size].reshape(memory.shape)
