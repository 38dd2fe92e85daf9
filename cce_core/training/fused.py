"""Backward pass and step of many tables at once, compiled together: what a recommender does 26 times becomes one call.

Two ways, as the optimiser's formula asks. Where a step moves what a batch did not touch (Adam), the gradients of all memories are
summed into one flat array, and the formula runs over it. Where it does not (SGD, Adagrad, lazy Adam), a thread numbers the
touched units of its own range of the memories, sums their gradients in the order of the ids, and applies the formula to
them at once. Either way a thread owns what it writes, so that results do not depend on how many there are.
"""

from __future__ import annotations

import dataclasses
import math
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._guard import Writer
from cce_core._jit import jit
from cce_core._threads import get_num_threads, parallel_for
from cce_core.sketching import blocks
from cce_core.sketching.block_ops import array_at
from cce_core.sketching.descriptors import COLUMNS, COUNT, MEMORY_OFFSET, NO_ADDRESSES, UNIT, WIDTH, address_of
from cce_core.sketching.descriptors import SIZE as SIZE_OF_PART
from cce_core.sketching.gradient import Gradient
from cce_core.sketching.group import TableGroup
from cce_core.sketching.projection import narrow_rows, slope_rows, unwidened
from cce_core.sketching.scatter import compact_rows, owned, places_for, scatter_range
from cce_core.tables.collection import Collection
from cce_core.tables.passes import ForwardPass
from cce_core.training.rules import ADAM, ADAM_HALF, ROWWISE, ROWWISE_HALF, SGD, update_dense, update_rows
from cce_core.training.state import Fused, State

# Of a parameter's row: the addresses of its values and of two arrays of state, where its gradient begins, its floats and its
# unit.
VALUES, FIRST, SECOND, START, SIZE, GRAIN = range(6)

_OWNERS = attrgetter("owners")
_FLOATS_A_THREAD = 1 << 15
_SMALL = 1 << 12  # words: a batch below it is one call of one thread
_SAFE = 1e37  # sums below it cannot overflow
_CROWDED = 4  # blocks, times this, against units
_NOTHING = np.empty(0, np.float32)


@dataclasses.dataclass
class Prepared:
    """The parameters of a group as the compiled loops read them.

    Attributes:
        rule: the formula.
        rows: int64 (parameters, 6): the memories, then the projections.
        states: theirs.
        numbers: float64 (parameters, 7), the constants of a step.
        held: the arrays whose addresses stand in `rows`.
        projections: the rows of the projections, whose gradients here begin at 0.
        call_args: where the words of the last batch lay.
        whole: whether that batch took whole gradients: the step moves all, or it touched most of the memories.
    """

    kernel_id: int
    rows: NDArray[np.int64]
    states: list[State]
    numbers: NDArray[np.float64]
    held: list[Any]
    projections: NDArray[np.int64]
    call_args: Any = None
    whole: bool = False


@jit
def _rule_range(low: int, high: int, kernel_id: int, rows: Any, numbers: Any, g: Any) -> None:
    """The formula over the floats [low, high) of all gradients."""
    for s in range(rows.shape[0]):
        start, size = rows[s, START], rows[s, SIZE]
        begin, end = max(low, start), min(high, start + size)
        if begin < end:
            p, a, b = _arrays(kernel_id, rows[s])
            update_dense(
                begin - start, end - start, kernel_id, rows[s, GRAIN], p, g[start : start + size], a, b, numbers[s]
            )


@jit
def _arrays(kernel_id: int, row: Any) -> Any:
    """Values and state of a parameter."""
    size = row[SIZE]
    n_rows = size // row[GRAIN]
    first, second = size, size if kernel_id == ADAM else 0
    if kernel_id == SGD:
        first = 0
    elif kernel_id == ROWWISE:
        first = n_rows
    elif kernel_id == ROWWISE_HALF:
        first = (n_rows + 1) // 2
    elif kernel_id == ADAM_HALF:
        first, second = (size + 1) // 2, (n_rows + 1) // 2
    p, a = array_at(row[VALUES], size, np.float32), array_at(row[FIRST], first, np.float32)
    return p, a, array_at(row[SECOND], second, np.float32)


@jit
def _scatter_zeroed(
    low: int, high: int, parts: Any, columns: Any, words: Any, call_args: Any, offsets: Any, per_sample_weights: Any, kept: Any,
    stride: int, vectors: Any, out: Any,
) -> None:  # fmt: skip
    for p in range(parts.shape[0]):
        begin, end = owned(low, high, parts[p])
        out[parts[p, MEMORY_OFFSET] + begin : parts[p, MEMORY_OFFSET] + end] = np.float32(0.0)
    scatter_range(
        low, high, parts, columns, words, call_args, offsets, per_sample_weights, None, kept, None, None, False,
        stride, vectors, out,
    )  # fmt: skip


@jit
def _small_step(
    kernel_id: int, n_rows: int, parts: Any, columns: Any, words: Any, call_args: Any, offsets: Any, per_sample_weights: Any,
    kept: Any,
    projections: Any, inner: Any, within: int, grads: Any, stride: int, size: int, g: Any, rows: Any, numbers: Any,
) -> int:  # fmt: skip
    """The whole of it for a small batch; 1, and nothing is changed, where a gradient is not finite."""
    if projections is None:
        _scatter_zeroed(0, size, parts, columns, words, call_args, offsets, per_sample_weights, kept, stride, grads, g)
    else:
        narrow = np.empty(n_rows * within, np.float32)
        narrow_rows(0, n_rows, projections, grads, stride, narrow, within)
        slopes = g[size:].reshape((1, g.shape[0] - size))
        slope_rows(0, 1, n_rows, projections, inner, within, grads, stride, size, slopes)
        _scatter_zeroed(0, size, parts, columns, words, call_args, offsets, per_sample_weights, kept, within, narrow, g)
    if _check.first_not_finite(g) >= 0:
        return 1
    _rule_range(0, g.shape[0], kernel_id, rows, numbers, g)
    return 0


@jit
def _touched_range(
    low: int, high: int, kernel_id: int, parts: Any, columns: Any, words: Any, call_args: Any, offsets: Any,
    per_sample_weights: Any, kept: Any,
    stride: int, vectors: Any, rows: Any, numbers: Any,
) -> None:  # fmt: skip
    """Gradients of the touched units that begin in the floats [low, high) of all memories, and the formula on each."""
    for k in range(parts.shape[0]):
        part, unit, memory_offset = parts[k], rows[k, GRAIN], parts[k, MEMORY_OFFSET]
        begin, end = owned(low, high, part)
        if begin >= end or call_args[k, COUNT] == 0:
            continue
        own = (end - begin) // unit
        most = min(own, call_args[k, COUNT] * part[COLUMNS] * (part[WIDTH] // unit))
        units, slots = np.empty(most, np.int64), np.full(places_for(most, own), -1, np.int32)
        spread = len(slots) < own
        count = compact_rows(begin, end, part, columns, words, call_args[k], kept, slots, units, spread)
        index, flat = units[:count], np.zeros(count * unit, np.float32)
        scatter_range(
            memory_offset + begin, memory_offset + end, parts[k : k + 1], columns, words, call_args[k : k + 1], offsets,
            per_sample_weights, None, kept,
            slots, units, spread, stride, vectors, flat,
        )  # fmt: skip
        p, a, b = _arrays(kernel_id, rows[k])
        update_rows(0, count, kernel_id, unit, index, None, p, flat, a, b, numbers[k])


def update(optimizer: Fused, both: Collection, seen: Any, grads: Any) -> None:
    """`Optimizer.update` for a collection; see there. Nothing is changed before all gradients are known to be finite."""
    with Writer(both.guards) as writer:
        seen, grads = both.checked(seen, grads)
        kernel_id = optimizer.kernel_id
        if kernel_id is None or optimizer.max_norm is not None or not both.is_plain or seen.batch.mode == "max":
            return one_by_one(optimizer, both, seen, grads)
        whose, then, all_prepared = optimizer.last
        if whose() is not both or then != seen.generations:
            all_prepared = optimizer.prepare(both, seen.generations, _plan)
        first, call_args = all_prepared[0], seen.left[0].call_args
        if first.call_args is not call_args:  # batches are mostly of one size
            first.call_args = call_args
            first.whole = optimizer.updates_all() or (kernel_id not in (ADAM, ADAM_HALF) and _crowded(both, seen))
            _note(both, seen, first.whole)
        if first.whole:
            _dense(optimizer, writer, both, seen, grads, all_prepared)
        elif not _touched(optimizer, writer, both, seen, grads, all_prepared):
            return one_by_one(optimizer, both, seen, grads)
        if both.counting:
            both.count(seen)
            for table in filter(_OWNERS, both.tables):
                table.settle(optimizer.states_of_memory(table))


def _crowded(both: Collection, seen: ForwardPass) -> bool:
    """Whether a batch touches so much that the whole gradient is the quicker one, where it gives the same."""
    units = blocks = 0
    for group, left in zip(both.groups, seen.left):
        parts = group.parts
        units += int((parts[:, SIZE_OF_PART] // parts[:, UNIT]).sum())
        blocks += int((left.call_args[:, COUNT] * parts[:, COLUMNS] * (parts[:, WIDTH] // parts[:, UNIT])).sum())
    return _CROWDED * blocks >= units


def _note(both: Collection, seen: ForwardPass, whole: bool) -> None:
    """Bytes that a step of such a batch takes, and gives back; each thread numbers the units of its range by itself."""
    threads = 0 if whole else 1 if len(seen.batch.ids) < _SMALL else get_num_threads()
    for group, left in zip(both.groups, seen.left):
        for t, place in zip(group.tables, left.call_args):
            table, n = both.tables[t], int(place[COUNT])
            shapes, layout = table.shapes(), table.layout
            sparse = blocks.most_touched(layout, n) * (8 + 4 * layout.unit)
            memory = 4 * layout.size if whole else sparse
            table.training_bytes["gradient"] = memory + 4 * math.prod(shapes.get("projection", (0,)))
            table.training_bytes["scratch"] = threads * blocks.scratch_bytes(layout, n)


def _plan(optimizer: Fused, both: Collection, group: TableGroup) -> Prepared:
    """The parameters of a group, with the state that the optimiser keeps of them."""
    rows, states, held, start = [], [], [], 0
    for name in ("memory", "projection"):
        for t in group.tables:
            table = both.tables[t]
            if not table.writeable:
                raise ValueError("a table is mapped read-only; load it with mmap=False to train it")
            if name in table.parameters():
                values, unit = table.parameters()[name].reshape(-1), table.block_sizes()[name]
                state = optimizer.state_of(table, name)
                arrays = optimizer.state_arrays(values.size, unit, state)
                addresses = [address_of(a) for a in (values, *arrays)]
                rows.append((*addresses, *[0] * (3 - len(addresses)), start, values.size, unit))
                states.append(state)
                held += [values, *arrays]
                start += values.size
                table.training_bytes["optimiser"] = optimizer.state_bytes(table)
    array = np.array(rows, np.int64)
    projections = array[len(group.parts) :].copy()
    projections[:, START] -= group.size
    return Prepared(optimizer.kernel_id, array, states, np.zeros((len(rows), 7)), held, projections)


def _begin_step(optimizer: Fused, prepared: Prepared) -> None:
    """Count the step, and work out its constants."""
    known, numbers, own = (-1, False), prepared.numbers, optimizer.projection_lr
    for s, state in enumerate(prepared.states):
        state.step += 1
        now = state.step, own is not None and state.projection
        if now != known:
            known, constants = now, optimizer.constants(state.step, own if now[1] else None)
            numbers[s:, : len(constants)] = constants


def _dense(
    optimizer: Fused,
    writer: Writer,
    both: Collection,
    seen: ForwardPass,
    grads: NDArray[np.float32],
    all_prepared: list[Prepared],
) -> None:
    batch, flat, found = seen.batch, grads.reshape(-1), []
    offsets = None if batch.offsets is None else batch.offsets.reshape(-1)
    small = len(both.groups) == 1 and len(batch.ids) <= _SMALL
    for group, prepared, (kept, inner, call_args, _) in zip(both.groups, all_prepared, seen.left):
        size, kept = group.size, NO_ADDRESSES if kept is None else kept
        g = np.empty(size + group.n_projected, np.float32)
        if small:
            writer.begin()
            _begin_step(optimizer, prepared)
            failed = _small_step(
                prepared.kernel_id, batch.rows, group.parts, group.columns, batch.ids, call_args, offsets, batch.weights, kept,
                group.projections, None if inner is None else inner.reshape(-1), group.within, flat, both.dim, size, g,
                prepared.rows, prepared.numbers,
            )  # fmt: skip
            if failed:
                for state in prepared.states:
                    state.step -= 1
                _refuse(grads, g)
            return
        source = grads
        if inner is not None and group.projections is not None:
            source, g[size:] = unwidened(group.projections, inner, grads, size, group.n_projected, group.within)
        parallel_for(
            _scatter_zeroed, size, min(_FLOATS_A_THREAD, -(-size // 2)), group.parts, group.columns, batch.ids, call_args,
            offsets, batch.weights, kept, source.shape[1], source.reshape(-1), g,
        )  # fmt: skip
        if _check.first_not_finite(g) >= 0:
            _refuse(grads, g)
        found.append(g)
    writer.begin()
    for prepared, g in zip(all_prepared, found):
        _begin_step(optimizer, prepared)
        parallel_for(_rule_range, g.size, _FLOATS_A_THREAD, prepared.kernel_id, prepared.rows, prepared.numbers, g)


def _touched(
    optimizer: Fused,
    writer: Writer,
    both: Collection,
    seen: ForwardPass,
    grads: NDArray[np.float32],
    all_prepared: list[Prepared],
) -> bool:
    """Whether it was done: not where sums of so large gradients might overflow, which is for the slower way to tell."""
    batch, found = seen.batch, []
    offsets = None if batch.offsets is None else batch.offsets.reshape(-1)
    share = 1.0 if batch.weights is None else max(1.0, float(np.abs(batch.weights).max(initial=0.0)))
    for group, left in zip(both.groups, seen.left):
        source, slopes = grads, _NOTHING
        if left.inner is not None and group.projections is not None:
            source, slopes = unwidened(
                group.projections, left.inner, grads, group.size, group.n_projected, group.within
            )
        most = max(float(np.abs(source).max(initial=0.0)), float(np.abs(slopes).max(initial=0.0)))
        if not most * share * max(1, len(batch.ids)) * max(group.n_columns) <= _SAFE:
            return False
        found.append((source, slopes))
    writer.begin()
    for group, prepared, left, (source, slopes) in zip(both.groups, all_prepared, seen.left, found):
        _begin_step(optimizer, prepared)
        args = (
            prepared.kernel_id, group.parts, group.columns, batch.ids, left.call_args, offsets, batch.weights,
            NO_ADDRESSES if left.kept is None else left.kept, source.shape[1], source.reshape(-1),
            prepared.rows, prepared.numbers,
        )  # fmt: skip
        if len(batch.ids) < _SMALL:
            _touched_range(0, group.size, *args)
        else:
            parallel_for(_touched_range, group.size, -(-group.size // 64), *args)
        parallel_for(
            _rule_range, slopes.size, _FLOATS_A_THREAD, prepared.kernel_id, prepared.projections,
            prepared.numbers[len(group.parts) :], slopes,
        )  # fmt: skip
    return True


def _refuse(grads: NDArray[np.float32], g: NDArray[np.float32]) -> None:
    _check.as_float32("gradients", grads, grads.shape)
    _check.as_float32("summed gradients", g, g.shape)


def one_by_one(optimizer: Fused, both: Collection, seen: Any, grads: Any) -> None:
    """The same table by table: for any method, mode and optimiser."""
    gradients: dict[int, dict[str, Gradient]] = {}
    for table, given in zip(both.trained, both.backward(seen, grads, dense=optimizer.updates_all())):
        own = gradients.setdefault(id(table), {})
        for name, gradient in given.items():  # the same table may come more than once
            own[name] = own[name] + gradient if name in own else gradient  # type: ignore[operator]
    by_id = {id(table): table for table in both.trained}
    optimizer.apply_gradients([(by_id[key], given) for key, given in gradients.items()])
