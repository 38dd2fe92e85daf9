"""Tables from files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from cce_core import _check
from cce_core.method import get_method
from cce_core.method.checked import checked
from cce_core.method.spec import TableSpec
from cce_core.method.state import TableState
from cce_core.storage.files import load_arrays
from cce_core.storage.header import FileFormatError
from cce_core.tables.table import Table
from cce_core.tables.tiered import SharedState, TieredCollection, TieredTable

_MOST_GENERATION = 2**48


def load(path: str | os.PathLike[str], *, mmap: bool = False, verify: str | None = None) -> Any:
    """Read a table that `Table.save` wrote, or tables that `TieredCollection.save` wrote: the same bits.

    Args:
        path: the file.
        mmap: map the file instead of reading it; the table is then read-only, and its pages come in as they are used.
        verify: "header" checks the header and the spec in it against their checksum, but not the data: what a disk or a copy
            did to them comes out as wrong vectors. "all" reads the data too, and checks them. None is "all", and "header" with
            `mmap`. Neither says who wrote the file; whoever did, a lookup reads nothing outside the table's arrays.

    A file that is replaced while it is opened (as `save` does) is read whole as it was, mapped or not.

    Raises:
        OSError: the file does not exist (FileNotFoundError) or cannot be opened, or is a directory, FIFO, socket or device.
        FileFormatError: the file is torn, truncated, damaged, foreign, or of a version that this library does not read. Within
            a second and a few megabytes beside the file's own bytes, whatever its header says.

    Example:
        >>> import os, tempfile, cce_core as cce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "item.safetensors")
        ...     cce.make_table("hash", vocab=100, dim=8, num_params=80, seed=3).save(path)
        ...     cce.load(path).spec.seed
        3
    """

    def fitting(make: Callable[..., Any], *found: Any) -> Any:
        try:
            return make(*found)
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{os.fspath(path)} does not fit together: {str(error)[:400]}") from error

    arrays, spec = load_arrays(path, mmap=mmap, verify=verify, accept=lambda *found: fitting(_spec, *found))
    several = dict(spec.options).get("tables") is not None
    kind = SharedState if several else TieredTable if get_method(spec.method).owned else Table
    table: TableState = fitting(kind, spec, arrays)
    fitting(_check.integer, "the generation", table.generation, 0, _MOST_GENERATION)
    return TieredCollection(table) if isinstance(table, SharedState) else table


def _spec(values: Any, nbytes: int) -> TableSpec:
    """The spec of a file whose arrays have `nbytes` in all, before anything is made of it."""
    spec = checked(TableSpec.from_json(values))
    if (expected := get_method(spec.method).nbytes(spec)) != nbytes:
        raise ValueError(f"a table of this spec has {expected:,} bytes, got {nbytes:,}")
    return spec
