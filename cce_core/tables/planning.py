"""How much of a stream own rows would serve at each budget, told from a sample of ids before anything is trained."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.method import get_method
from cce_core.storage.ledger import readable
from cce_core.tables.make import resolve

_STEPS = 12  # budgets, where the caller names none


@dataclasses.dataclass(frozen=True)
class Plan:
    """What own rows serve at each budget.

    Attributes:
        num_bytes: the budgets, int64 (n,).
        own_rows: what `make_table("tiered", …)`, or `make_collection` of several tables, has of them for that.
        served: the share of the sample's second half whose ids are the `own_rows` most frequent of the first half: what
            can be hoped for, also of a stream that drifts.
        at_best: the share of the whole sample that its own most frequent ids have: no choice of rows serves more of it.
        n_ids: different ids in the sample, of all tables.
        n_met: how many ids the sample has.
    """

    num_bytes: NDArray[np.int64]
    own_rows: NDArray[np.int64]
    served: NDArray[np.float64]
    at_best: NDArray[np.float64]
    n_ids: int
    n_met: int

    def __str__(self) -> str:
        lines = [
            f"{self.n_met:,} ids, {self.n_ids:,} of them different",
            f"{'budget':>12} {'own rows':>12} {'served':>8} {'at best':>8}",
        ]
        for b, n, served, best in zip(self.num_bytes, self.own_rows, self.served, self.at_best):
            lines.append(f"{readable(int(b)):>12} {n:>12,} {100 * served:>6.1f} % {100 * best:>6.1f} %")
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """The same as a picture; written to a file, if one is named.

        Returns:
            matplotlib's figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plot() needs matplotlib: pip install 'cce-core[plot]'") from error
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.num_bytes, 100 * self.at_best, "--", color="0.6", label="at best")
        axes.plot(self.num_bytes, 100 * self.served, "o-", color="C0", label="served, second half by the first")
        axes.set(xscale="log", xlabel="bytes of the whole table", ylabel="% of all ids met", ylim=(0, 100))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        if path is not None:
            figure.savefig(_check.path("path", path))
        return figure


def plan(sample: Any, dim: int, *, num_bytes: Sequence[int] | None = None, **settings: Any) -> Plan:
    """The share of a stream that own rows would serve at each budget, from a sample of its ids.

    The most frequent ids have the rows, whichever table they are of. In training they are found on the way, so that less is
    served
    until they are.

    Args:
        sample: ids in the order in which they come: integers (n,) of one table, or (n, tables), or a list of flat
            arrays, one per table.
        dim: floats of a vector.
        num_bytes: budgets; None: twelve, up to one for which every id of the sample has a row.
        settings: as for `make_table("tiered", …)`: rank, codec, bits, …

    Raises:
        TypeError, ValueError: the sample is empty or holds no integers, or a budget is too small.

    Cost:
        A sort of the sample.

    Example:
        >>> import numpy as np, cce_core as cce
        >>> ids = np.random.default_rng(0).zipf(1.5, 20_000)
        >>> print(cce.plan(ids, 16, num_bytes=[2_000, 10_000]))
        20,000 ids, 1,041 of them different
              budget     own rows   served  at best
            1.95 KiB          196   93.8 %   94.8 %
            9.77 KiB        1,164   95.3 %  100.0 %
    """
    columns = [_check.as_ids(part, "sample").reshape(-1) for part in _columns(sample)]
    firsts, laters, n_met = [], [], sum(map(len, columns))
    if n_met < 2:
        raise ValueError(f"a sample needs ids, the more the better: got {n_met}")
    for words in columns:
        _, where = np.unique(words, return_inverse=True)
        half, n = len(words) // 2, int(where.max(initial=-1)) + 1
        firsts.append(np.bincount(where[:half], minlength=n))
        laters.append(np.bincount(where[half:], minlength=n))
    first, later = np.concatenate(firsts), np.concatenate(laters)
    several: dict[str, Any] = {} if len(columns) == 1 else {"tables": len(columns)}
    if num_bytes is None:
        least = resolve("tiered", None, dim, num_params=1 << 40, **several, **settings)
        rule, most = get_method("tiered"), max(8, -(-len(first) // 4) * 4)
        rows = np.unique(4 * np.geomspace(1, most // 4, _STEPS).round().astype(np.int64))
        budgets = [rule.nbytes(dataclasses.replace(least, sizes=(int(n),))) for n in rows]
    else:
        budgets = [_check.size("num_bytes", b) for b in _check.sequence("num_bytes", num_bytes, "budgets in bytes")]
        found = [resolve("tiered", None, dim, num_bytes=b, **several, **settings) for b in budgets]
        rows = np.array([spec.sizes[0] for spec in found], np.int64)

    def share(order: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
        sums = np.concatenate([[0], np.cumsum(counts[order])])
        return sums[np.minimum(rows, len(order))] / max(1, int(counts.sum()))

    met = np.flatnonzero(first)  # of the first half, which are all that can have rows by then
    served = share(met[np.argsort(-first[met], kind="stable")], later)
    at_best = share(np.argsort(-(first + later), kind="stable"), first + later)
    return Plan(np.array(budgets, np.int64), rows, served, at_best, len(first), n_met)


def _columns(sample: Any) -> list[Any]:
    """The ids of each table."""
    if isinstance(sample, np.ndarray) and sample.ndim == 2:
        return list(sample.T)
    if isinstance(sample, (list, tuple)) and sample and _check.array("sample[0]", sample[0]).ndim == 1:
        return list(sample)
    return [sample]
