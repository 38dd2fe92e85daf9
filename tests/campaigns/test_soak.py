"""Lookups for a long time, from eight threads, of tables in memory and of mapped files, alone and in a collection.

No wrong vector, no crash, and no memory that is not given back.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from campaigns.trial import Tally, many, memory_folder, together

import cce_core as cce

VOCAB, DIM, WORKERS = 5000, 8, 8
MOST_GROWTH = 64 << 20


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _tables(folder: Path) -> list[cce.Table]:
    make = cce.make_table
    fresh = [
        make("cce", VOCAB, DIM, num_params=2000, n_chunks=2, rank=0, seed=1),
        make("cce", VOCAB, DIM, num_params=4000, codec="int8", seed=2),
        make("full", VOCAB, DIM, seed=3),
        make("hash", VOCAB, DIM, num_params=2000, codec="int4", seed=4),
    ]
    for table in fresh[:2]:
        table.cluster(n_iter=2)
    mapped = []
    for k, table in enumerate(fresh):
        table.save(folder / f"mapped {k}")
        mapped.append(cce.load(folder / f"mapped {k}", mmap=True))
    return fresh + mapped


def soak(tally: Tally, lookups: int) -> None:
    """Ids at random, one at a time, hundreds, and bags, while the tables are saved; each vector is held against the truth."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        tables = _tables(Path(folder))
        truths = [table.lookup(np.arange(VOCAB)) for table in tables]
        all_of_them = cce.Collection(tables)
        wide = all_of_them.lookup(np.repeat(np.arange(VOCAB)[:, None], len(tables), 1))

        def look(worker: int) -> Callable[[], None]:
            rng, turn = np.random.default_rng(worker), [worker]

            def one() -> None:
                turn[0] += 1
                t = turn[0] % (len(tables) + 1)
                ids = rng.integers(0, VOCAB, (1, 100, 3000)[turn[0] % 3])
                if t == len(tables):
                    got, truth = all_of_them.lookup(np.repeat(ids[:, None], t, 1)), wide
                else:
                    got, truth = tables[t].lookup(ids), truths[t]
                if not np.array_equal(got, truth[ids]) and not np.allclose(got, truth[ids], rtol=1e-5, atol=1e-6):
                    tally.lose("table", t, "gives wrong vectors")
                tally.add("lookups", len(ids) * (t if t == len(tables) else 1))

            return one

        def save() -> None:
            k = tally["saves"] % len(tables)
            tables[k].save(Path(folder, f"saved {k}"))
            tally.add("saves")

        jobs = [*map(look, range(WORKERS)), save]
        for _ in range(30):
            for job in jobs:
                job()
        before = _resident()
        together(jobs, lambda: tally["lookups"] >= lookups)
        tally["grown by kB"] = max(0, _resident() - before) // 1000
        if tally["grown by kB"] * 1000 > MOST_GROWTH:
            tally.lose("memory has grown by", tally["grown by kB"], "kB")


def test_lookups_without_end(campaign):
    campaign(soak, many(20_000_000, 1_000_000_000))
