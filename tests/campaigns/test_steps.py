"""Saves, copies and lookups beside training: what is kept is whole with respect to steps.

Every number of a table begins at 0 and every step takes 1 from each, by one of the ways to train: so a file or a copy tells
how many steps it holds, and whether it holds all of each. A lookup may see a step half done, never half a number, and never
less than the steps that were over before it.
"""

from __future__ import annotations

import copy
import pickle
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from campaigns.trial import Tally, many, memory_folder, together

import cce_core as cce


class Steps:
    """How many steps have begun and how many are over."""

    def __init__(self, kinds: list[Callable[[], None]]) -> None:
        self.kinds, self.begun, self.over, self._lock = kinds, 0, 0, threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.begun += 1
            kind = self.kinds[self.begun % len(self.kinds)]
        kind()
        with self._lock:
            self.over += 1


def _tables() -> list[list[cce.Table]]:
    """Tables that are trained together; more than one: as a collection, and each is saved alone."""
    make = cce.make_table
    return [
        [make("full", 20_000, 16)],
        [make("cce", 3000, 16, num_params=60_000, rank=4)],
        [make("cce", 3000, 16, num_params=60_000, rank=0, codec="int8")],
        [make("hash", 3000, 16, num_params=60_000, codec="bfloat16", rounding="stochastic")],
        [make("full", 9000, 16, seed=k) for k in range(3)],
    ]


def _ways(tables: list[cce.Table], sgd: cce.SGD) -> list[Callable[[], None]]:
    """The ways to take 1 from every number of the tables."""
    first, both = tables[0], cce.Collection(tables)
    ids, width = np.arange(first.spec.vocab or 0), first.spec.dim
    grads = {name: np.ones(p.shape, np.float32) for name, p in first.parameters().items()}
    ways = {
        "a dense step": lambda: sgd.step(first, grads),
        "an update of all ids": lambda: sgd.update(first, ids, np.ones((len(ids), width))),
        "a collection": lambda: sgd.update(
            both, both.forward(np.stack([ids] * len(tables), 1)), np.ones((len(ids), both.dim))
        ),
    }
    if len(tables) > 1:
        return [ways["a collection"]]
    return list(ways.values()) if first.spec.method == "full" else [ways["a dense step"]]


def _steps_in(table: cce.Table) -> int | None:
    """How many whole steps a table holds; None if some of its numbers hold more than others."""
    numbers = {round(float(-x)) for array in table.parameters().values() for x in (array.min(), array.max())}
    return numbers.pop() if len(numbers) == 1 else None


def _train(steps: Steps, coarse: bool, tally: Tally) -> Callable[[], None]:
    """Steps without end; in a coarse codec at most so many, slowly, as it holds whole numbers."""

    def train() -> None:
        if not coarse or steps.begun < 200:
            steps()
            tally.add("steps")
        time.sleep(0.005 if coarse else 0)

    return train


def _keep(tables: list[cce.Table], steps: Steps, how: str, keep: Callable[[cce.Table], cce.Table], tally: Tally):
    """Saves or copies without end, each held against the steps that were over before it and begun after it."""

    def one() -> None:
        for table in tables:
            least = steps.over
            tally.add(how)
            try:
                holds = _steps_in(keep(table))
            except (cce.FileFormatError, RuntimeError) as error:
                tally.lose(f"{table.spec}: {how}: {error!r}")
                continue
            if holds is None or not least <= holds <= steps.begun:
                tally.lose(f"{table.spec}: {how} hold {holds} steps, between {least} and {steps.begun} were done")

    return one


def _saved(path: Path) -> Callable[[cce.Table], cce.Table]:
    def keep(table: cce.Table) -> cce.Table:
        table.save(path)
        return cce.load(path)

    return keep


def _look(table: cce.Table, steps: Steps, tally: Tally) -> Callable[[], None]:
    ids, exact = np.arange(table.spec.vocab or 0), table.spec.method == "full"

    def look() -> None:
        least = steps.over
        seen = -table.lookup(ids)
        tally.add("lookups")
        if exact and not (least <= seen.min() and seen.max() <= steps.begun and np.array_equal(seen, np.round(seen))):
            tally.lose(f"{table.spec}: a lookup saw {seen.min()} to {seen.max()} steps of {least} to {steps.begun}")

    return look


def beside_training(tally: Tally, saves: int) -> None:
    """Two threads train, two save and load, two copy, two look up."""
    sys.setswitchinterval(1e-4)
    for tables in (kinds := _tables()):
        for table in tables:
            for array in table.parameters().values():
                array[:] = 0
            table.requantize()
        with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
            steps = Steps(_ways(tables, cce.SGD(1.0)))
            coarse = tables[0].spec.codec == "bfloat16"
            ways = [
                ("saves", _saved(Path(folder, "a"))),
                ("saves", _saved(Path(folder, "b"))),
                ("deep copies", copy.deepcopy),
            ]
            ways.append(("pickles", lambda table: pickle.loads(pickle.dumps(table))))
            jobs = [_keep(tables, steps, how, keep, tally) for how, keep in ways]
            jobs += [_train(steps, coarse, tally)] * 2 + [_look(tables[0], steps, tally)] * 2
            for job in jobs:  # compiles
                job()
            enough = tally["saves"] + saves // len(kinds)
            together(jobs, partial(_reached, tally, enough))


def _reached(tally: Tally, saves: int) -> bool:
    return tally["saves"] >= saves


def test_a_save_or_copy_beside_training_holds_whole_steps(campaign):
    campaign(beside_training, many(150, 1000))
