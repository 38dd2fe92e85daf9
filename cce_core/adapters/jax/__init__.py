"""Compressed tables in JAX: pure functions over a pytree of parameters, and a module of Flax NNX.

from cce_core.adapters.jax import from_table, to_table

params, lookup = from_table(table)          # float32 arrays to train; a pytree that is not trained
vectors = lookup(params, ids)               # under jit, grad, vmap and shard_map
to_table(params, table)                     # back, so that table.cluster() runs; then from_table again
"""

from typing import TYPE_CHECKING, Any

from cce_core.adapters.jax.lookup import Lookup as Lookup
from cce_core.adapters.jax.lookup import as_ids as as_ids
from cce_core.adapters.jax.lookup import from_table as from_table
from cce_core.adapters.jax.lookup import to_table as to_table

if TYPE_CHECKING:
    from cce_core.adapters.jax.module import Embedding as Embedding


def __getattr__(name: str) -> Any:
    if name == "Embedding":  # which needs Flax
        from cce_core.adapters.jax.module import Embedding

        return Embedding
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
