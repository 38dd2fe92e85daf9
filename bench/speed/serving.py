"""The reader that needs NumPy alone against the library's compiled lookups in the same mapped file, on one thread; its start.

Both give the same bits first. Times are the processor's (`time.thread_time`), which others on the machine lengthen little. A
start is that of a process of its own which has imported NumPy: to import the reader, to open a file, and to look one id up.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import cce_core as cce
from bench.speed.timing import Figures, Row
from cce_core.serving import Reader, reader

VOCAB, DIM, IDS, ROWS = 1_000_000, 32, 4096, 4096
_START = """
import importlib, json, sys, time
import numpy
sys.path.insert(0, sys.argv[1])
times = [time.process_time()]
reader = importlib.import_module("reader")
times.append(time.process_time())
table = reader.Reader(sys.argv[2])
times.append(time.process_time())
table.lookup([7])
times.append(time.process_time())
print(json.dumps([after - before for before, after in zip(times, times[1:])]))
"""


def tables() -> Iterator[tuple[str, float, cce.Table]]:
    """Tables by name, and how many times longer than the library the reader may take."""
    yield "full", 3, cce.make_table("full", VOCAB, DIM, seed=0)
    rows = cce.make_table("vq", VOCAB, DIM, num_bytes=2 * VOCAB, seed=0)
    every, *marked = rows.method.clustered(rows.spec)
    yield "vq, rows", 3, rows
    yield "vq, a pointer for every id", 3, cce.Table(every)
    yield "vq, pointers for marked ids", 3, cce.Table(marked[-1])
    yield "cce", 6, cce.make_table("cce", VOCAB, DIM, num_params=2 * ROWS * DIM, n_chunks=4, rank=0, seed=0)
    yield "cce, rank 8", 6, cce.make_table("cce", VOCAB, DIM, num_params=2 * ROWS * DIM, n_chunks=4, rank=8, seed=0)
    yield "tiered", 6, cce.make_table("tiered", None, DIM, num_bytes=2 * VOCAB, seed=0)


def run(quick: bool) -> Iterator[Row | Figures]:
    """All tables."""
    cce.set_num_threads(1)
    ids, turns = np.random.default_rng(0).integers(0, VOCAB, IDS), 50 if quick else 300
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table")
        for name, most, table in tables():
            table.save(path)
            found, peer = Reader(path), cce.load(path, mmap=True)
            if not np.array_equal(found.lookup(ids), peer.lookup(ids)):
                raise AssertionError(f"{name}: bits differ; nothing is timed")
            for n in (IDS, 1):
                some = ids[:n]
                ours, theirs = in_turn(turns, lambda: found.lookup(some), lambda: peer.lookup(some))  # noqa: B023
                yield Row("serving", f"{name}, {n:,} ids of {VOCAB:,}", ours, "compiled", theirs, 1 / most)
            yield start(name, path, 5 if quick else 21)
    cce.set_num_threads(None)


def in_turn(n: int, *programs: Callable[[], Any]) -> list[list[float]]:
    """Seconds of the thread that each program takes, n times A B A B …, after five rounds that are not counted."""
    times: list[list[float]] = [[] for _ in programs]
    for turn in range(n + 5):
        for program, seconds in zip(programs, times, strict=True):
            start = time.thread_time()
            program()
            if turn >= 5:
                seconds.append(time.thread_time() - start)
    return times


def start(name: str, path: Path, n: int) -> Figures:
    """Medians of what a start takes, in milliseconds; the reader's bytecode is kept, as that of installed files is."""
    command = [sys.executable, "-c", _START, str(Path(reader.__file__).parent), str(path)]
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(path.parent), "PYTHONDONTWRITEBYTECODE": ""}
    times = []
    for _ in range(n + 1):
        done = subprocess.run(command, capture_output=True, check=True, env=environment)
        times.append(json.loads(done.stdout))
    del times[0]  # which compiled it
    names = ("import_ms", "open_ms", "first_lookup_ms")
    medians = {what: 1e3 * statistics.median(of) for what, of in zip(names, zip(*times))}
    return Figures("serving", f"{name}, start", {**medians, "all_ms": 1e3 * statistics.median(map(sum, times))})
