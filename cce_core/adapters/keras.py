"""`Embedding`: keras.layers.Embedding, its table compressed, on Keras 3 with JAX or torch behind it.

from cce_core.adapters.keras import Embedding

model = keras.Sequential([Embedding(1_000_000, 32, method="cce", num_params=65_536, seed=0), …])
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from cce_core.learning.cluster import ClusterReport
from cce_core.method.portable import sketch_arrays, trained_arrays
from cce_core.method.spec import TableSpec
from cce_core.tables.make import make_table
from cce_core.tables.table import Table

_BACKENDS = ("jax", "torch")


class Embedding(keras.layers.Layer):
    """A layer around one table, in place of `keras.layers.Embedding`: ids of any shape to `T[ids]`, float32.

    Trained arrays are trainable weights under the table's own names (`memory`, `projection`, …), hash keys and pointers weights
    that are not. A file of weights is of the backend that wrote it. With a codec, weights are the float32 values behind it.

    Args:
        input_dim: ids go from 0 to input_dim − 1.
        output_dim: floats of a vector.
        method: a name among `cce_core.methods()`, but `tiered`.
        seed: of hashes and first values.
        num_params, num_bytes, options: as for `cce_core.make_table`.
        name, trainable, dtype: as of any layer.

    Raises:
        BudgetError, ValueError, TypeError: as for `cce_core.make_table`.
        NotImplementedError: another backend than JAX or torch is behind Keras.

    Example:
        >>> import keras, numpy as np
        >>> from cce_core.adapters.keras import Embedding
        >>> emb = Embedding(1000, 16, method="cce", num_params=2048)
        >>> tuple(emb(np.array([[1, 2], [3, 4]])).shape)
        (2, 2, 16)
        >>> emb.cluster().generation
        1
    """

    def __init__(
        self, input_dim: int, output_dim: int, *, method: str = "cce", seed: int = 0, name: str | None = None,
        trainable: bool = True, dtype: Any = None, **options: Any,
    ) -> None:  # fmt: skip
        if keras.backend.backend() not in _BACKENDS:
            raise NotImplementedError(
                f"tables run on the backends {' and '.join(_BACKENDS)}, got {keras.backend.backend()!r}: set KERAS_BACKEND=jax "
                "before Keras is imported"
            )
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        table = make_table(method, input_dim, output_dim, seed=seed, **options)
        self._config = {"input_dim": input_dim, "output_dim": output_dim, "method": method, "seed": seed, **options}
        self._spec: TableSpec = table.spec
        self._kept: dict[str, Any] = {}
        for name_, values in self._arrays(table).items():
            own = {"shape": values.shape, "dtype": values.dtype.name, "trainable": name_ in table.shapes()}
            self._kept[name_] = self.add_weight(name=name_, initializer="zeros", **own)
            self._kept[name_].assign(values)
        self.built = True

    @staticmethod
    def _arrays(table: Table) -> dict[str, Any]:
        """The arrays of a table as the backend takes them, and how often it was clustered."""
        # In halves of 32 bits, lower ones first: of 64 bits JAX has no integers, and of 32 torch's are signed.
        words: dict[str, Any] = {name: values.view(np.int32) for name, values in sketch_arrays(table).items()}
        words = {name: values[: len(values) // 2 * 2] for name, values in words.items()}
        return {**trained_arrays(table), **words, "generation": np.array([table.generation], np.int32)}

    def call(self, inputs: Any) -> Any:
        """The vectors of ids."""
        kept = {name: variable.value for name, variable in self._kept.items() if name != "generation"}
        return (_by_jax if keras.backend.backend() == "jax" else _by_torch)(self._spec, kept, inputs)

    def compute_output_spec(self, inputs: Any) -> Any:
        """The shape and type of what `call` gives."""
        return keras.KerasTensor((*inputs.shape, self._spec.dim), "float32")

    def get_config(self) -> dict[str, Any]:
        """What the layer was made of."""
        return {**super().get_config(), **self._config}

    @property
    def table(self) -> Table:
        """The table as it is now, for itself: to save it, or to see its `ledger()`."""
        made = Table(self._spec)
        values = {name: keras.ops.convert_to_numpy(variable.value) for name, variable in self._kept.items()}
        for name, own in made.buffers().items():
            if name == "generation":
                own[...] = values[name]
            elif name in ("keys", "pointers"):
                own[...] = np.ascontiguousarray(values[name]).view(np.uint64)
        for name, own in made.parameters().items():
            own[...] = values[name].reshape(own.shape)
        made.requantize()
        return made

    def cluster(self, **settings: Any) -> ClusterReport:
        """Learn the sketch from the vectors as they are now, in place: between calls of `fit`, with the model compiled anew.

        Args:
            settings: as for `cce_core.Table.cluster`.

        Raises:
            ValueError: the method learns nothing; or it is `vq`, whose weights then have another shape.
        """
        if self._spec.method == "vq":
            raise ValueError(
                "cluster() gives the memory of 'vq' another shape, which a layer keeps: take 'cce' or 'pq'"
            )
        table = self.table
        report = table.cluster(**settings)
        for name, values in self._arrays(table).items():
            self._kept[name].assign(values)
        return report


def _by_jax(spec: TableSpec, kept: dict[str, Any], ids: Any) -> Any:
    import jax.numpy as jnp

    from cce_core.adapters.jax.lookup import Lookup

    halves: dict[str, Any] = {name: kept.pop(name).astype(jnp.uint32) for name in ("keys", "pointers") if name in kept}
    if "keys" in halves:
        halves["keys"] = jnp.stack([halves["keys"][1::2], halves["keys"][::2]])
    if "pointers" in halves:
        halves["pointers"] = jnp.pad(halves["pointers"], (0, 1))
    return Lookup(spec, halves)(kept, ids)


def _by_torch(spec: TableSpec, kept: dict[str, Any], ids: Any) -> Any:
    import torch

    from cce_core.adapters.torch.modules.forward import lookup
    from cce_core.adapters.torch.operators.facts import facts_of

    arrays = {name: value.view(torch.int64) if name in ("keys", "pointers") else value for name, value in kept.items()}
    vectors = lookup(facts_of(spec)._replace(stored=False), arrays, ids.reshape(-1).to(torch.int64), False)
    return vectors.view(*ids.shape, spec.dim)
