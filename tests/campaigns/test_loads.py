"""Loads beside saves: other processes and threads replace a file while it is opened, mapped and read."""

from __future__ import annotations

import os
import signal
import tempfile
from collections import deque
from pathlib import Path

import numpy as np
from campaigns.trial import Tally, many, memory_folder, together

import cce_core as cce


def _tables() -> list[cce.Table]:
    """Files of other lengths, and of one length with other numbers."""
    plain = [cce.make_table("full", vocab, 16, seed=k) for k, vocab in enumerate((3000, 3500, 3000, 40))]
    learned = [cce.make_table("cce", vocab, 16, num_params=4000, seed=k) for k, vocab in enumerate((500, 600, 500))]
    for table in learned:
        table.cluster(n_iter=1)
    return plain + learned


def _same(one: cce.Table, other: cce.Table) -> bool:
    mine, its = one.arrays(), other.arrays()
    return one.spec == other.spec and all(np.array_equal(mine[name], its[name]) for name in mine)


def beside_saves(tally: Tally, loads: int) -> None:
    """Every load gives one of the tables that take each other's place, whole; a mapped one stays what it was."""
    tables = _tables()
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        path = Path(folder, "table")
        tables[0].save(path)
        child = os.fork()  # before there are threads
        while child == 0:
            for table in tables:
                table.save(path)
        rest = deque(tables)

        def save() -> None:
            rest.rotate()
            rest[0].save(path)
            tally.add("saves of one of the two savers")

        def loader(mmap: bool):
            kept: deque[tuple[cce.Table, cce.Table]] = deque(maxlen=20)

            def load() -> None:
                tally.add("loads")
                try:
                    got = cce.load(path, mmap=mmap)
                except cce.FileFormatError as error:
                    tally.lose("refused, mmap", mmap, error)
                    return
                truth = next((table for table in tables if _same(got, table)), None)
                if truth is None:
                    tally.lose("wrong in silence, mmap", mmap, got.spec)
                else:
                    kept.append((got, truth))
                    if not _same(*kept[0]):
                        tally.lose("changed after it was loaded, mmap", mmap)

            return load

        try:
            together([save, loader(False), loader(True)], lambda: tally["loads"] >= loads)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_load_beside_saves_gives_one_table_or_the_other(campaign):
    campaign(beside_saves, many(3000, 100_000))
