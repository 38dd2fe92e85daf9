"""Tables from files."""

from __future__ import annotations

import os

from cce_core.sketching.spec import TableSpec
from cce_core.sketching.table import Table
from cce_core.storage.files import FileFormatError, load_arrays


def load(path: str | os.PathLike[str], *, mmap: bool = False) -> Table:
    """Read a table that `Table.save` wrote: the same bits.

    Args:
        path: the file.
        mmap: map the file instead of reading it; the table is then read-only, and its pages come in as they are used.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is torn, truncated, foreign, or of a version that this library does not read.

    Example:
        >>> import os, tempfile, cce_core as cce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "item.safetensors")
        ...     cce.make_table("hash", vocab=100, dim=8, num_params=80, seed=3).save(path)
        ...     cce.load(path).spec.seed
        3
    """
    arrays, spec = load_arrays(path, mmap=mmap)
    try:
        return Table(TableSpec.from_json(spec), arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{os.fspath(path)} does not fit together: {error}") from error
