"""A saved table in words: what it is, every byte, who uses which row, and its digest."""

from __future__ import annotations

import itertools

import numpy as np

from cce_core.method import get_method
from cce_core.storage.files import digest
from cce_core.tables import Table, TieredCollection

_MOST = 5_000_000  # ids of which the sketch is built to count their rows
_BARS = "▁▂▃▄▅▆▇█"


def described(table: Table | TieredCollection) -> str:
    """What `cce inspect` prints, of a table or of several with one memory."""
    spec, parts, ledger = table.spec, [repr(table), ""], str(table.ledger())
    method, options = get_method(spec.method), dict(spec.options)
    facts = {
        "method": f"{spec.method}: {method.summary}",
        "paper": method.paper,
        "seed": spec.seed,
        "codec": spec.codec,
        **options,
        "digest": digest(table.arrays(), repr(spec)),
    }
    width = max(map(len, facts))
    parts += [f"{name:<{width}}  {value}" for name, value in facts.items()]
    return "\n".join([*parts, "", ledger, *(use(table) if isinstance(table, Table) else [])])


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
