"""What is looked up for many tables at once, as the kernels read it: the forms of `cce_core.Collection`, with tensors."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from cce_kernels.lookup import MEAN, SUM
from cce_kernels.runtime import INTEGERS, floats, on_device, torch

MODES = {"sum": SUM, "mean": MEAN}


@dataclasses.dataclass(eq=False)
class JaggedBatch:
    """The ids of a call, checked but for their vocabularies.

    Attributes:
        came: ids as they came.
        ids: flat, all of table 0, then all of table 1, …
        offsets: int64 (tables · bags + 1), where each bag begins in `ids`, and the end; None where an id is a row.
        weights: float32, one per id, or None.
        mode: SUM or MEAN.
        counts: ids of each table.
        bags: rows of the result.
        shape: of the result without its last axis.
    """

    came: Any
    ids: torch.Tensor
    offsets: torch.Tensor | None
    weights: torch.Tensor | None
    mode: int
    counts: list[int]
    bags: int
    shape: tuple[int, ...]

    def as_came(self, values: torch.Tensor) -> Any:
        """A number per id, in the form of the ids."""
        if not isinstance(self.came, torch.Tensor):
            return list(values.split(self.counts))
        if len(self.counts) == 1:
            return values.view(self.came.shape)
        return values.view(len(self.counts), len(self.came), *self.came.shape[2:]).transpose(0, 1)


def read(ids: Any, offsets: Any, lengths: Any, weights: Any, mode: str, n: int, check: bool = True) -> JaggedBatch:
    """What a caller hands in for n tables, flat, table after table; the errors say what came and what was expected.

    `check` looks at the values of offsets, which waits for the device.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    if offsets is not None and lengths is not None:
        raise ValueError("give offsets or lengths, not both")
    bags = offsets is not None or lengths is not None
    each, shape = _by_table("ids", ids, n, bags)
    for one in each:
        if one.dtype not in INTEGERS:
            raise TypeError(f"ids must be an integer tensor, got {one.dtype}; ids = ids.to(torch.int64)")
    counts = [one.numel() for one in each]
    factors = None
    if weights is not None:
        if mode != "sum":
            raise ValueError(f'weights go with mode="sum" only, got mode={mode!r}')
        heavy, _ = _by_table("weights", weights, n, bags)
        for one, count in zip(heavy, counts):
            floats("weights", one.contiguous().view(-1), (count,))
        factors = torch.cat([one.reshape(-1) for one in heavy])
    flat = torch.cat([one.reshape(-1) for one in each])
    ends = None
    if isinstance(ids, torch.Tensor) and n > 1 and ids.dim() == 3:
        ends = [torch.arange(len(ids) + 1, device=ids.device) * ids.shape[2]] * n
    elif bags:
        ends = _ends(offsets, lengths, n)
    elif len(set(counts)) > 1:
        raise ValueError(f"without offsets every table needs as many ids as the others, got {counts}")
    on_device(ids=flat, offsets=None if ends is None else ends[0], weights=factors)
    if ends is None:
        return JaggedBatch(ids, flat, None, factors, MODES[mode], counts, counts[0], shape)
    if len({len(one) for one in ends}) > 1:
        raise ValueError(f"every table needs as many bags as the others, got {[len(one) - 1 for one in ends]}")
    if check:
        for one, count in zip(ends, counts):
            edges = torch.stack([one[0] == 0, one[-1] == count, (one.diff() >= 0).all()]).tolist()
            if not all(edges):
                raise ValueError(
                    f"offsets must begin at 0, never fall, and end at the number of ids, {count}; "
                    f"got {int(one[0])} … {int(one[-1])}{'' if edges[2] else ', falling'}"
                )
    starts = [0, *itertools.accumulate(counts)]
    whole = torch.cat([*(one[:-1] + start for one, start in zip(ends, starts)), ends[-1][-1:] + starts[-2]])
    return JaggedBatch(ids, flat, whole, factors, MODES[mode], counts, len(ends[0]) - 1, (len(ends[0]) - 1,))


def _by_table(name: str, given: Any, n: int, bags: bool) -> tuple[list[torch.Tensor], tuple[int, ...]]:
    """A tensor for each of n tables, and the shape of what is looked up where every id is a row."""
    if isinstance(given, torch.Tensor):
        if n == 1:
            if bags and given.dim() != 1:
                raise ValueError(f"{name} of bags must be flat, got shape {tuple(given.shape)}; use {name}.view(-1)")
            return [given], tuple(given.shape)
        if bags or given.dim() not in (2, 3) or given.shape[1] != n:
            raise ValueError(
                f"{name} of {n} tables must have shape (batch, {n}), (batch, {n}, size), or be a list of {n} flat tensors; "
                f"got {tuple(given.shape)}{' with offsets' if bags else ''}"
            )
        return list(given.unbind(1)), (len(given),)
    if not isinstance(given, (list, tuple)) or not all(isinstance(one, torch.Tensor) for one in given):
        raise TypeError(f"{name} must be a tensor, or a list of tensors, one per table; got {_kind(given)}")
    if len(given) != n or any(one.dim() != 1 for one in given):
        raise ValueError(f"{name} must be {n} flat tensors, one per table; got {[tuple(one.shape) for one in given]}")
    return list(given), (len(given[0]),)


def _kind(value: Any) -> str:
    inside = {type(one).__name__ for one in value} if isinstance(value, (list, tuple)) else set()
    return type(value).__name__ + (f" of {', '.join(sorted(inside))}" if inside else "")


def _ends(offsets: Any, lengths: Any, n: int) -> list[torch.Tensor]:
    """Where the bags of each table begin, and the end."""
    name, given = ("offsets", offsets) if lengths is None else ("lengths", lengths)
    rows = [given] * n if isinstance(given, torch.Tensor) and given.dim() == 1 else list(given)
    if len(rows) != n:
        raise ValueError(f"{name} must be one row of numbers, or one per table ({n}); got {len(rows)}")
    for row in rows:
        if not isinstance(row, torch.Tensor) or row.dtype != torch.int64:
            came = row.dtype if isinstance(row, torch.Tensor) else type(row).__name__
            raise TypeError(f"{name} must be int64, got {came}; {name} = {name}.to(torch.int64)")
        if row.dim() != 1 or (lengths is None and not len(row)):
            raise ValueError(
                f"{name} must be rows of numbers, at least the end of the last bag; got {tuple(row.shape)}"
            )
    if lengths is None:
        return rows
    return [torch.cat([row.new_zeros(1), row.cumsum(0)]) for row in rows]
