"""A saved table in words: what it is, every byte, who uses which row, and its digest."""

from __future__ import annotations

import itertools

import numpy as np
import xxhash

from cce_core.tables import Table

_MOST = 5_000_000  # ids of which the sketch is built to count their rows
_BARS = "▁▂▃▄▅▆▇█"


def described(table: Table) -> str:
    """What `cce inspect` prints."""
    spec, parts, ledger = table.spec, [repr(table), ""], str(table.ledger())
    options = dict(spec.options)
    facts = {
        "method": f"{spec.method}: {table.method.summary}",
        "paper": table.method.paper,
        "seed": spec.seed,
        "codec": spec.codec,
        **options,
        "digest": digest(table),
    }
    width = max(map(len, facts))
    parts += [f"{name:<{width}}  {value}" for name, value in facts.items()]
    return "\n".join([*parts, "", ledger, *use(table)])


def digest(table: Table) -> str:
    """Sixteen hexadecimal digits that change with any number of the table.

    Example:
        >>> from cce_core import make_table
        >>> digest(make_table("hash", 100, 8, num_params=64, seed=1)) == digest(make_table("hash", 100, 8, num_params=64, seed=1))
        True
    """
    found = xxhash.xxh3_64(repr(table.spec).encode())
    for name, array in sorted({**table.parameters(), **table.buffers()}.items()):
        found.update(name.encode())
        found.update(np.ascontiguousarray(array).view(np.uint8).data)
    return found.hexdigest()


def use(table: Table) -> list[str]:
    """How many ids share a row: a histogram over the rows of the memory, from the most used to the least."""
    vocab = table.spec.vocab
    if vocab is None or vocab > _MOST or not table.method.linear:
        return []
    counts = np.diff(table.sketch_matrix().tocsc().indptr)
    counts = np.sort(counts[:-1] if table.spec.rank else counts)[::-1]  # the last column is the bias's
    if not counts.size or counts[0] <= 1:
        return []
    edges = np.linspace(0, counts.size, min(48, counts.size) + 1).astype(int)
    heights = [counts[a:b].mean() / counts[0] for a, b in itertools.pairwise(edges)]
    bars = "".join(_BARS[min(7, int(8 * height))] for height in heights)
    return [
        "",
        f"rows: {counts.size:,}, used {np.count_nonzero(counts):,}; ids per row: most {counts[0]:,}, "
        f"median {np.median(counts):,.0f}, least {counts[-1]:,}",
        bars,
    ]
