"""Copies and pickles of what other threads are using, by every way to copy: the same table, and never an error."""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from campaigns.tables import DIM, VOCAB, makers
from campaigns.trial import Tally, after, many, together

import cce_core as cce

IDS = np.arange(VOCAB)
WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "pickle, protocol 2": lambda thing: pickle.loads(pickle.dumps(thing, 2)),
    "a list of two": lambda thing: copy.deepcopy([thing, thing])[1],
}


def _duplicate(thing: Any, looked_up: Callable[[Any], Any], name: str, tally: Tally) -> Callable[[], None]:
    """Copies a thing by one way after the other; what is looked up in the copy must be what is looked up in it."""
    truth, ways = looked_up(thing), itertools.cycle(WAYS)

    def one() -> None:
        way = next(ways)
        tally.add("copies")
        try:
            twin = WAYS[way](thing)
        except Exception as error:
            tally.lose(f"{name}: {way} of a {type(thing).__name__}: {error!r}")
            return
        if not np.array_equal(looked_up(twin), truth):
            tally.lose(f"{name}: {way} of a {type(thing).__name__} gives other vectors")

    return one


def _use(table: cce.Table, both: cce.Collection) -> None:
    grads = np.ones((VOCAB, DIM), np.float32)
    table.lookup([1, 2])
    table.backward(IDS, grads)
    table.backward(table.forward([1, 2]), grads[:2])
    both.lookup(IDS[:, None])
    table.ledger(), table.parameters(), table.buffers()


def beside_lookups(tally: Tally, milliseconds: int) -> None:
    """Five threads look up, go back and train by nothing; three copy the table, a collection of it, and the optimiser."""
    sys.setswitchinterval(1e-5)
    for name, make in makers().items():
        table = make()
        both, optimizer = cce.Collection([table]), cce.Adam(0.0, lazy=True)
        use = partial(_use, table, both)
        exact = (table.spec.codec, table.spec.rounding) == ("float32", "straight-through")  # a step of 0 moves no bit
        train = partial(optimizer.update, table, IDS, np.ones((VOCAB, DIM), np.float32))
        jobs = [
            *[use] * 4,
            train if exact else use,
            _duplicate(table, lambda twin: twin.lookup(IDS), name, tally),
            _duplicate(both, lambda twin: twin.lookup(IDS[:, None]), name, tally),
            _duplicate(optimizer, lambda twin: twin.lr, name, tally),
        ]
        for job in jobs:  # compiles
            job()
        together(jobs, after(milliseconds / 1000))


def test_a_copy_beside_lookups_is_the_same_table(campaign):
    campaign(beside_lookups, many(60, 5000))
