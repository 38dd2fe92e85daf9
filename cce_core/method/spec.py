"""What a table is, apart from its numbers: the frozen spec that is written into files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

Option = bool | int | float | str | None

ROUNDINGS = ("straight-through", "stochastic")
ROWS, CODES = "rows", "codes"  # phases: what a table is before `cluster()` and after it, for methods that change

# Streams of the table's seed, one a purpose: part of the file format, since a loaded table goes on drawing from them.
STREAMS = KEYS, POINTERS, VALUES, SAMPLES, ROUNDING, COUNTS = 1, 2, 3, 4, 5, 6


class BudgetError(ValueError):
    """A budget that is too small for the table asked for; the message says the least that fits.

    Example:
        >>> import cce_core as cce
        >>> cce.make_table("full", vocab=100, dim=8, num_params=100)
        Traceback (most recent call last):
        ...
        cce_core.method.spec.BudgetError: 100 parameters are too few for 'full': it takes 800 parameters
    """


@dataclasses.dataclass(frozen=True)
class TableSpec:
    """All sizes and seeds of a table, resolved: hashable, and enough to rebuild every address.

    Attributes:
        method: the method's name.
        vocab: ids go from 0 to vocab − 1; None for a table that takes every 64-bit id.
        dim: floats of a vector.
        rank: floats of the vectors in the memory where a projection stands behind it, rank × dim and a bias; 0 for none.
        n_chunks: chunks of a vector.
        sizes: the method's own sizes (rows, digits' bases, or floats).
        seed: of the hashes, the first pointers and the first values.
        options: the method's own options, sorted by name.
        codec: how the memory is kept: "float32", "bfloat16", "int8" or "int4".
        rounding: how it is rounded into the codec while training: "straight-through" or "stochastic"; see `QuantizedMemory`.

    Example:
        >>> import cce_core as cce
        >>> spec = cce.make_table("robe", vocab=100, dim=8, num_params=64).spec
        >>> cce.TableSpec.from_json(spec.as_json()) == spec
        True
    """

    method: str
    vocab: int | None
    dim: int
    rank: int
    n_chunks: int
    sizes: tuple[int, ...]
    seed: int
    options: tuple[tuple[str, Option], ...] = ()
    codec: str = "float32"
    rounding: str = "straight-through"

    @property
    def n_tables(self) -> int:
        """Tables that share its memory: 1 but for what `make_collection` makes."""
        return int(dict(self.options).get("tables") or 1)

    @property
    def inner(self) -> int:
        """Floats of the vectors that the memory gives: the rank, or dim where there is no projection."""
        return self.rank or self.dim

    def option(self, name: str) -> Any:
        """The value of one of the method's own options."""
        return dict(self.options)[name]

    def with_option(self, name: str, value: Option) -> TableSpec:
        """The spec with another value of one of the method's options."""
        return dataclasses.replace(self, options=tuple(sorted({**dict(self.options), name: value}.items())))

    def as_json(self) -> dict[str, Any]:
        """Plain types for a file's header."""
        return {**dataclasses.asdict(self), "sizes": list(self.sizes), "options": dict(self.options)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TableSpec:
        """The spec of a file's header or of a state, which may be anyone's.

        The fields are there and are a spec's; what their numbers may be, `Table` and `load` see before anything is made of them.

        Raises:
            TypeError: it is no mapping, or sizes and options are of another type.
            ValueError: a field is missing or unknown.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"a spec must be a mapping, got {type(values).__name__}")
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(map(repr, values.keys() - set(names))):
            raise ValueError(f"a spec has no field {unknown[0]}")
        if missing := [name for name in names if name not in values]:
            raise ValueError(f"a spec must have the field {missing[0]!r}; its fields are {', '.join(names)}")
        fields = {name: values[name] for name in names}
        sizes, options = fields["sizes"], fields["options"]
        if not isinstance(sizes, (list, tuple)) or not isinstance(options, Mapping):
            raise TypeError("sizes must be a list, and options a mapping")
        if not all(isinstance(name, str) for name in options):
            raise TypeError("options must be named by text")
        return cls(**{**fields, "sizes": tuple(sizes), "options": tuple(sorted(options.items()))})


class ArraySpec(NamedTuple):
    """One array of a table.

    Attributes:
        dtype: its type.
        shape: its shape.
        unit: for a trained array, the floats of its blocks: what "row" means to sparse gradients and optimisers. 0 for an
            array that is learned or drawn but not trained.
    """

    dtype: Any
    shape: tuple[int, ...]
    unit: int = 0
