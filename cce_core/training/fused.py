"""Backward pass and step of many tables at once, compiled together: what a recommender does 26 times becomes one call.

Two ways, as the optimiser's formula asks. Where a step moves what a batch did not touch (Adam), the gradients of all memories are
summed into one flat array, and the formula runs over it. Where it does not (SGD, Adagrad, lazy Adam), a thread numbers the
touched units of its own range of the memories, sums their gradients in the order of the ids, and applies the formula to
them at once. Either way a thread owns what it writes, so that results do not depend on how many there are.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._guard import Changing, Writer
from cce_core._jit import jit
from cce_core._threads import sliced
from cce_core.sketching.block_ops import array_at
from cce_core.sketching.descriptors import COLUMNS, COUNT, SPAN, UNIT, WIDTH
from cce_core.sketching.descriptors import SIZE as SIZE_OF_PART
from cce_core.sketching.gradient import Gradient
from cce_core.sketching.projection import narrow_rows, slope_rows, unwidened
from cce_core.sketching.scatter import owned, scatter_range, touch, untouch
from cce_core.tables.collection import Collection, Group, Seen
from cce_core.tables.table import Table
from cce_core.training.rules import ADAM, ROWWISE, SGD, dense, touched
from cce_core.training.state import Fused, State

# Of a parameter's row: the addresses of its values, of two arrays of state and of its slots, where its gradient begins, its
# floats and its unit.
VALUES, FIRST, SECOND, SLOTS, START, SIZE, GRAIN = range(7)

_FLOATS_A_THREAD = 1 << 15
_SMALL = 1 << 12  # words: a batch below it is one call of one thread
_SAFE = 1e37  # sums below it cannot overflow
_CROWDED = 4  # blocks, times this, against units


@dataclasses.dataclass
class Plan:
    """The parameters of a group as the compiled loops read them.

    Attributes:
        rows: int64 (parameters, 7): the memories, then the projections.
        states: theirs.
        numbers: float64 (parameters, 6), the constants of a step.
        held: the arrays whose addresses stand in `rows`.
    """

    rows: NDArray[np.int64]
    states: list[State]
    numbers: NDArray[np.float64]
    held: list[Any]


@jit
def _rule_range(low: int, high: int, rule: int, rows: Any, numbers: Any, g: Any) -> None:
    """The formula over the floats [low, high) of all gradients."""
    for s in range(rows.shape[0]):
        start, size = rows[s, START], rows[s, SIZE]
        begin, end = max(low, start), min(high, start + size)
        if begin < end:
            p, a, b = _arrays(rule, rows[s])
            dense(begin - start, end - start, rule, rows[s, GRAIN], p, g[start : start + size], a, b, numbers[s])


@jit
def _arrays(rule: int, row: Any) -> Any:
    """Values and state of a parameter."""
    size = row[SIZE]
    first = 0 if rule == SGD else size // row[GRAIN] if rule == ROWWISE else size
    second = size if rule == ADAM else 0
    p, a = array_at(row[VALUES], size, np.float32), array_at(row[FIRST], first, np.float32)
    return p, a, array_at(row[SECOND], second, np.float32)


@jit
def _scatter_zeroed(
    low: int, high: int, parts: Any, columns: Any, words: Any, places: Any, offsets: Any, amounts: Any, kept: Any,
    stride: int, vectors: Any, out: Any,
) -> None:  # fmt: skip
    for p in range(parts.shape[0]):
        begin, end = owned(low, high, parts[p])
        out[parts[p, SPAN] + begin : parts[p, SPAN] + end] = np.float32(0.0)
    scatter_range(low, high, parts, columns, words, places, offsets, amounts, None, kept, None, stride, vectors, out)


@jit
def _small_step(
    rule: int, n_rows: int, parts: Any, columns: Any, words: Any, places: Any, offsets: Any, amounts: Any, kept: Any,
    projections: Any, inner: Any, within: int, grads: Any, stride: int, size: int, g: Any, rows: Any, numbers: Any,
) -> int:  # fmt: skip
    """The whole of it for a small batch; 1, and nothing is changed, where a gradient is not finite."""
    if projections is None:
        _scatter_zeroed(0, size, parts, columns, words, places, offsets, amounts, kept, stride, grads, g)
    else:
        narrow = np.empty(n_rows * within, np.float32)
        narrow_rows(0, n_rows, projections, grads, stride, narrow, within)
        slopes = g[size:].reshape((1, g.shape[0] - size))
        slope_rows(0, 1, n_rows, projections, inner, within, grads, stride, size, slopes)
        _scatter_zeroed(0, size, parts, columns, words, places, offsets, amounts, kept, within, narrow, g)
    if _check.first_not_finite(g) >= 0:
        return 1
    _rule_range(0, g.shape[0], rule, rows, numbers, g)
    return 0


@jit
def _touched_range(
    low: int, high: int, rule: int, parts: Any, columns: Any, words: Any, places: Any, offsets: Any, amounts: Any, kept: Any,
    stride: int, vectors: Any, rows: Any, numbers: Any,
) -> None:  # fmt: skip
    """Gradients of the touched units that begin in the floats [low, high) of all memories, and the formula on each."""
    for k in range(parts.shape[0]):
        part, size, unit, span = parts[k], rows[k, SIZE], rows[k, GRAIN], parts[k, SPAN]
        begin, end = owned(low, high, part)
        if begin >= end or places[k, COUNT] == 0:
            continue
        slots = array_at(rows[k, SLOTS], size // unit, np.int32)
        most = min((end - begin) // unit, places[k, COUNT] * part[COLUMNS] * (part[WIDTH] // unit))
        units = np.empty(most, np.int64)
        count = touch(begin, end, part, columns, words, places[k], kept, slots, units)
        index, flat = units[:count], np.zeros(count * unit, np.float32)
        scatter_range(
            span + begin, span + end, parts[k : k + 1], columns, words, places[k : k + 1], offsets, amounts, None, kept,
            slots, stride, vectors, flat,
        )  # fmt: skip
        untouch(slots, index)
        p, a, b = _arrays(rule, rows[k])
        touched(0, count, rule, unit, index, p, flat, a, b, numbers[k])


def update(optimizer: Fused, both: Collection, seen: Any, grads: Any) -> None:
    """`Optimizer.update` for a collection; see there. Nothing is changed before all gradients are known to be finite."""
    with Writer(both.guards):
        seen, grads = both.checked(seen, grads)
        if not _fits(optimizer, both, seen):
            return one_by_one(optimizer, both, seen, grads)
        plans = optimizer.plans(both, seen.generations, _plan)
        if optimizer.moves_all() or _crowded(optimizer, both, seen):
            _dense(optimizer, both, seen, grads, plans)
        elif not _touched(optimizer, both, seen, grads, plans):
            one_by_one(optimizer, both, seen, grads)


def _fits(optimizer: Fused, both: Collection, seen: Seen) -> bool:
    return optimizer.rule is not None and optimizer.max_norm is None and both.is_plain and seen.batch.mode != "max"


def _crowded(optimizer: Fused, both: Collection, seen: Seen) -> bool:
    """Whether a batch touches so much that the whole gradient is the quicker one, where it gives the same."""
    if optimizer.rule == ADAM:
        return False
    units = blocks = 0
    for group, places in zip(both.groups, seen.places):
        parts = group.bundle.parts
        units += int((parts[:, SIZE_OF_PART] // parts[:, UNIT]).sum())
        blocks += int((places[:, COUNT] * parts[:, COLUMNS] * (parts[:, WIDTH] // parts[:, UNIT])).sum())
    return _CROWDED * blocks >= units


def _plan(optimizer: Fused, both: Collection, group: Group) -> Plan:
    """The parameters of a group, with the state that the optimiser keeps of them."""
    rows, states, held, start = [], [], [], 0
    for name in ("memory", "projection"):
        for t in group.tables:
            table = both.tables[t]
            if not table.writeable:
                raise ValueError("a table is mapped read-only; load it with mmap=False to train it")
            if name in table.parameters():
                values, unit = table.parameters()[name].reshape(-1), table.units()[name]
                state = optimizer.state_of(table, name)
                arrays = optimizer.state_arrays(values.size, unit, state)
                addresses = [int(a.__array_interface__["data"][0]) for a in (values, *arrays)]
                rows.append((*addresses, *[0] * (4 - len(addresses)), start, values.size, unit))
                states.append(state)
                held += [values, *arrays]
                start += values.size
                table.training_bytes["optimiser"] = optimizer.state_bytes(table)
                gradient = 0 if name == "memory" else table.training_bytes["gradient"]
                table.training_bytes["gradient"] = gradient + values.nbytes  # at most
    return Plan(np.array(rows, np.int64), states, np.zeros((len(rows), 6)), held)


def _begin_step(optimizer: Fused, plan: Plan) -> None:
    """Count the step, and work out its constants."""
    known, numbers = -1, plan.numbers
    for s, state in enumerate(plan.states):
        state.step += 1
        if state.step != known:
            known = state.step
            constants = optimizer.constants(known)
            numbers[s:, : len(constants)] = constants


def _dense(optimizer: Fused, both: Collection, seen: Seen, grads: NDArray[np.float32], plans: list[Plan]) -> None:
    batch, offsets = seen.batch, seen.batch.flat_offsets
    flat, found = grads.reshape(-1), []
    rule = SGD if optimizer.rule is None else optimizer.rule  # it is not None here
    small = len(both.groups) == 1 and len(batch.words) <= _SMALL
    for group, plan, kept, inner, places in zip(both.groups, plans, seen.kept, seen.inner, seen.places):
        bundle, size = group.bundle, group.bundle.size
        g = np.empty(size + group.n_projected, np.float32)
        if small:
            _begin_step(optimizer, plan)
            with Changing(both.guards):
                failed = _small_step(
                    rule, batch.rows, bundle.parts, bundle.columns, batch.words, places, offsets, batch.amounts, kept,
                    group.projections, None if inner is None else inner.reshape(-1), group.within, flat, both.dim, size,
                    g, plan.rows, plan.numbers,
                )  # fmt: skip
            if failed:
                for state in plan.states:
                    state.step -= 1
                _refuse(grads, g)
            return
        source = grads
        if inner is not None:
            source, g[size:] = unwidened(group.projections, inner, grads, size, group.n_projected, group.within)
        sliced(
            _scatter_zeroed, size, min(_FLOATS_A_THREAD, -(-size // 2)), bundle.parts, bundle.columns, batch.words, places,
            offsets, batch.amounts, kept, source.shape[1], source.reshape(-1), g,
        )  # fmt: skip
        if _check.first_not_finite(g) >= 0:
            _refuse(grads, g)
        found.append(g)
    with Changing(both.guards):
        for plan, g in zip(plans, found):
            _begin_step(optimizer, plan)
            sliced(_rule_range, g.size, _FLOATS_A_THREAD, rule, plan.rows, plan.numbers, g)


def _touched(optimizer: Fused, both: Collection, seen: Seen, grads: NDArray[np.float32], plans: list[Plan]) -> bool:
    """Whether it was done: not where sums of so large gradients might overflow, which is for the slower way to tell."""
    batch, found = seen.batch, []
    for group, inner in zip(both.groups, seen.inner):
        source, slopes = grads, np.empty(0, np.float32)
        if inner is not None:
            source, slopes = unwidened(
                group.projections, inner, grads, group.bundle.size, group.n_projected, group.within
            )
        most = max(float(np.abs(x).max(initial=0.0)) for x in (source, slopes))
        share = 1.0 if batch.amounts is None else max(1.0, float(np.abs(batch.amounts).max(initial=0.0)))
        if not most * share * max(1, len(batch.words)) * max(group.bundle.n_columns) <= _SAFE:
            return False
        found.append((source, slopes))
    with Changing(both.guards):
        _apply_touched(optimizer, both, seen, plans, found)
    return True


def _apply_touched(optimizer: Fused, both: Collection, seen: Seen, plans: list[Plan], found: list[Any]) -> None:
    batch = seen.batch
    for group, plan, kept, places, (source, slopes) in zip(both.groups, plans, seen.kept, seen.places, found):
        _begin_step(optimizer, plan)
        bundle = group.bundle
        with contextlib.ExitStack() as stack:
            for row, t in zip(plan.rows, group.tables):
                slots = stack.enter_context(both.tables[t].slots("memory", both.tables[t].layout))
                row[SLOTS] = slots.__array_interface__["data"][0]
            grain = bundle.size if len(batch.words) < _SMALL else -(-bundle.size // 64)
            sliced(
                _touched_range, bundle.size, grain, optimizer.rule, bundle.parts, bundle.columns, batch.words, places,
                batch.flat_offsets, batch.amounts, kept, source.shape[1], source.reshape(-1), plan.rows, plan.numbers,
            )  # fmt: skip
        start = 0
        for t, state in zip(group.tables, plan.states[len(group.tables) :]):
            values = both.tables[t].parameters()["projection"].reshape(-1)
            optimizer.apply(values, None, slopes[start : start + values.size], both.tables[t].spec.dim, state)
            start += values.size


def _refuse(grads: NDArray[np.float32], g: NDArray[np.float32]) -> None:
    _check.as_float32("gradients", grads, grads.shape)
    _check.as_float32("summed gradients", g, g.shape)


def one_by_one(optimizer: Fused, both: Collection, seen: Any, grads: Any) -> None:
    """The same table by table: for any method, mode and optimiser."""
    gradients: dict[int, dict[str, Gradient]] = {}
    for table, given in zip(both.tables, both.backward(seen, grads, dense=optimizer.moves_all())):
        own = gradients.setdefault(id(table), {})
        for name, gradient in given.items():  # the same table may come more than once
            own[name] = own[name] + gradient if name in own else gradient  # type: ignore[operator]
    by_id: dict[int, Table] = {id(table): table for table in both.tables}
    optimizer.take([(by_id[key], given) for key, given in gradients.items()])
