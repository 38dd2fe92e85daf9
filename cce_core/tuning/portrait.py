"""The data in a few numbers: how many ids there are, how unevenly they are met, and how many are met once."""

from __future__ import annotations

import numpy as np

from cce_core.datasets import Split


def portrait(split: Split) -> list[tuple[str, str]]:
    """What decides how small a table can be, as pairs of a name and a text; of the training rows.

    Example:
        >>> from cce_core.datasets import Synthetic
        >>> dict(portrait(Synthetic(2000, 50, 40, dim=4, seed=1).split(400)))["rows to learn from"]
        '2,000'
    """
    rows = split.train
    found = [("rows to learn from", f"{len(rows):,}"), ("rows to judge by", f"{len(split.valid):,}")]
    for name, ids, n in (("users", rows.users, split.n_users), ("items", rows.items, split.n_items)):
        counts = np.sort(np.bincount(ids, minlength=n))[::-1]
        top = counts[: max(1, n // 100)].sum() / max(1, counts.sum())
        found += [
            (name, f"{n:,}"),
            (f"{name}: met at most once", f"{np.mean(counts <= 1):.0%}"),
            (f"{name}: times met, median", f"{np.median(counts):,.0f}"),
            (f"{name}: rows of the top 1 %", f"{top:.0%}"),
        ]
    return found
