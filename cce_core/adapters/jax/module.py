"""`Embedding`: flax.nnx.Embed, its table compressed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cce_core.adapters.jax.lookup import Lookup, from_table, to_table
from cce_core.learning.cluster import ClusterReport
from cce_core.method.spec import TableSpec
from cce_core.tables.make import make_table
from cce_core.tables.table import Table


class Sketch(nnx.Variable):
    """What addresses follow from, and what `cluster()` counts by: learned or drawn, but not trained."""


class Embedding(nnx.Module):
    """A module of Flax NNX around one table, in place of `nnx.Embed`: `T[ids]`.

    Trained arrays are `nnx.Param`s under the table's own names (`memory`, `projection`, …); hash keys and pointers are `Sketch`
    variables. With a codec, parameters are the float32 values behind it, and lookups see them rounded.

    Args:
        num_embeddings: ids go from 0 to num_embeddings − 1; None, for methods that only hash, takes every 64-bit id.
        features: floats of a vector.
        method: a name among `cce_core.methods()`, but `tiered`.
        seed: of hashes and first values; None draws it from `rngs`.
        rngs: as of any module.
        options: `num_params` or `num_bytes`, and all that `cce_core.make_table` takes.

    Raises:
        BudgetError, ValueError, TypeError: as for `cce_core.make_table` and `from_table`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from cce_core.adapters.jax import Embedding
        >>> emb = Embedding(1000, 16, method="cce", num_params=2048, rngs=nnx.Rngs(0))
        >>> emb(jnp.array([[1, 2], [3, 4]])).shape
        (2, 2, 16)
        >>> emb.cluster().generation
        1
    """

    def __init__(
        self,
        num_embeddings: int | None,
        features: int,
        *,
        method: str = "cce",
        seed: int | None = None,
        rngs: nnx.Rngs | None = None,
        **options: Any,
    ) -> None:
        if seed is None:
            if rngs is None:
                raise ValueError("a table is drawn from a seed: rngs=nnx.Rngs(0), or seed=")
            seed = int(jax.random.randint(rngs.params(), (), 0, 2**31 - 1))
        table = make_table(method, num_embeddings, features, seed=seed, **options)
        self.spec: TableSpec = table.spec
        self._take(table)

    def _take(self, table: Table) -> None:
        """Be this table, in the variables that are here, or in new ones."""
        params, lookup = from_table(table)
        sketch: dict[str, Any] = dict(lookup.sketch)
        sketch |= {n: jnp.array(values) for n, values in table.buffers().items() if n in ("generation", "counts")}
        kinds: list[tuple[Any, dict[str, Any]]] = [(nnx.Param, params), (Sketch, sketch)]
        for kind, arrays in kinds:
            for name, values in arrays.items():
                held = getattr(self, name, None)
                if held is None:
                    setattr(self, name, kind(values))
                else:
                    held[...] = values
        self.spec = table.spec

    def _params(self) -> dict[str, Any]:
        return {name: array[...] for name, array in vars(self).items() if isinstance(array, nnx.Param)}

    def __call__(self, ids: Any) -> jax.Array:
        """The vectors of ids, as of `Lookup`: float32 (*ids.shape, features)."""
        sketch = {name: getattr(self, name)[...] for name in ("keys", "pointers") if hasattr(self, name)}
        return Lookup(self.spec, sketch)(self._params(), ids)

    @property
    def table(self) -> Table:
        """The table as it is now, for itself: to save it, or to see its `ledger()`."""
        made = Table(self.spec)
        for name, own in made.buffers().items():
            if name in ("memory", "scales"):  # codes, which follow from the parameters
                continue
            values = np.asarray(getattr(self, name)[...])
            if name == "keys":
                values = values[0].astype(np.uint64) << np.uint64(32) | values[1]
            elif name == "pointers":
                values = values[:-1].astype("<u4").view("<u8")
            own[...] = values
        to_table(self._params(), made)
        return made

    def cluster(self, **settings: Any) -> ClusterReport:
        """Learn the sketch from the vectors as they are now, in place: outside of `jit`, now and then while training.

        An optimiser's state speaks of rows that mean something else afterwards: begin it anew. A compiled function goes on as it
        is, with the new pointers.

        Args:
            settings: as for `cce_core.Table.cluster`.

        Raises:
            ValueError: the method learns nothing; or it is `vq`, whose parameters then have another shape: cluster a table, and
                take it up by `from_table`.
        """
        if self.spec.method == "vq":
            raise ValueError(
                "cluster() gives the memory of 'vq' another shape, which a module keeps: cluster a table, table = emb.table, and "
                "take it up by from_table, or use 'cce'"
            )
        table = self.table
        report = table.cluster(**settings)
        self._take(table)
        return report
