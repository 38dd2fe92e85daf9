"""Processes that are killed, interrupted, or out of disk: the old file or table, or the new one, never something between."""

from __future__ import annotations

import copy
import itertools
import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from campaigns.trial import Tally, many, memory_folder, stride

import cce_core as cce
from cce_core.tables import load_delta
from cce_core.tables.deltas import COUNTS

# kill -9 in save()


def _numbered(table: cce.Table, k: int) -> cce.Table:
    """The table with all its trained numbers k, so that a file of it says which save it is of, and whether it is whole."""
    for array in table.parameters().values():
        array[:] = k
    table.requantize()
    return table


def _number_in(path: Path) -> int:
    """Which save a file is of; ValueError if it is of several."""
    numbers = {float(x) for array in cce.load(path).parameters().values() for x in np.unique(array)}
    if len(numbers) != 1:
        raise ValueError(f"one file holds {sorted(numbers)[:9]}")
    return int(numbers.pop())


def killed_saves(tally: Tally, kills: int) -> None:
    """A child that saves without end is killed; the file is whole, not older than any seen before, and nothing else is left."""
    rng = random.Random(1)
    small, large = (cce.make_table("cce", v, 8, num_params=n, rank=4) for v, n in ((500, 2000), (5000, 100_000)))
    for where in (memory_folder(), None):  # in memory, and on a disk
        for table in (small, large):
            with tempfile.TemporaryDirectory(dir=where) as folder:
                path, last = Path(folder, "table"), 0
                _numbered(table, 0).save(path)
                for _ in range(kills // 4):
                    pid = os.fork()
                    if pid == 0:
                        k = last
                        while True:
                            k += 1
                            _numbered(table, k).save(path)
                    time.sleep(0.001 + rng.random() * 0.02)
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    tally.add("kills")
                    try:
                        now = _number_in(path)
                    except (OSError, ValueError) as error:
                        tally.lose(repr(error))
                        return
                    if now < last:
                        tally.lose("save", now, "is back after", last)
                    last = now
                table.save(path)
                left = sorted(set(os.listdir(folder)) - {"table"})
                tally.add("temporary files left", len(left))
                if left:
                    tally.lose(len(left), "temporary files outlived the next save:", left[:3])


# kill -9 of copies that follow by deltas


def served(table: cce.Table) -> bytes:
    """What lookups read, as one string."""
    return b"".join(array.tobytes() for name, array in sorted(table.arrays().items()) if name not in COUNTS)


def chain(many: bool, folder: Path, n: int) -> tuple[dict[bytes, int], list[Path]]:
    """A table after each of n deltas, by its bytes, and the files of these; the first one's file is `replica`."""
    options = {"rank": 2, "seed": 1, "lead": 1, "half_life": 3}
    table = (
        cce.make_collection("tiered", 2, 4, num_bytes=20_000, **options)
        if many
        else cce.make_table("tiered", None, 4, num_bytes=100_000, **options)
    )
    rng, optimizer, signature = np.random.default_rng(1), cce.SGD(0.1), table.signature()
    moments, files = {served(table): 0}, []
    table.save(folder / "replica")
    for k in range(n):
        for _ in range(3):
            ids = rng.zipf(1.3, (200, 2)) % 2**40
            seen = table.forward(ids if many else ids[:, 0])
            optimizer.update(table, seen, np.cos(seen.vectors))
        table.erase(np.arange(k, k + 3))
        delta = table.delta(signature)
        signature = delta.signature
        files.append(folder / f"{k}.delta")
        delta.save(files[-1])
        moments[served(table)] = k + 1
    assert len(moments) == n + 1
    return moments, files


def _follow(folder: Path, moments: dict[bytes, int], files: list[Path], first: bytes, times: int = 1 << 62) -> None:
    """Load the replica, apply the delta that comes next, save it, and hand the delta on as `latest`; from the first one again."""
    path, latest = folder / "replica", folder / "latest"
    for _ in range(times):
        table = cce.load(path)
        k = moments[served(table)]
        if k == len(files):
            (folder / "again").write_bytes(first)
            os.replace(folder / "again", path)
            continue
        delta = load_delta(files[k])
        delta.save(latest)
        table.apply_delta(delta)
        table.save(path)


def killed_deltas(tally: Tally, kills: int) -> None:
    """A child whose replica follows deltas without end is killed: replica and delta are whole, old or new, and it goes on."""
    rng = random.Random(1)
    for both in (False, True):
        with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
            folder = Path(name)
            moments, files = chain(both, folder, 6)
            first = (folder / "replica").read_bytes()
            wanted = [file.read_bytes() for file in files]
            (folder / "latest").write_bytes(wanted[0])
            start, seen = time.perf_counter(), set[int]()
            _follow(folder, moments, files, first, 2)
            step = (time.perf_counter() - start) / 2
            for n in itertools.count():
                if n >= kills // 2 and (len(seen) > 1 or n >= 10 * kills):
                    break
                pid = os.fork()
                if pid == 0:
                    _follow(folder, moments, files, first)
                time.sleep(rng.random() * (4 + n / 2) * step)  # a busy machine is slower than it was
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                tally.add("kills")
                try:
                    moment = moments.get(served(cce.load(folder / "replica")))
                    sequence = load_delta(folder / "latest").sequence
                except (OSError, ValueError) as error:
                    tally.lose(repr(error))
                    return
                if moment is None:
                    tally.lose("the replica is between two deltas")
                    return
                if (folder / "latest").read_bytes() != wanted[sequence - 1]:
                    tally.lose("delta", sequence, "is another one")
                seen.add(moment)
            tally.add("moments met", len(seen))
            if len(seen) < 2:
                tally.lose("in", n, "kills the replica never got on")
            table = cce.load(folder / "replica")
            for file in files[moments[served(table)] :]:
                table.apply_delta(load_delta(file))
            table.save(folder / "replica")
            load_delta(files[0]).save(folder / "latest")
            if moments[served(cce.load(folder / "replica"))] != len(files):
                tally.lose("with the deltas that were left, the replica is another table")
            left = sorted(set(os.listdir(folder)) - {"replica", "latest", "again", *(file.name for file in files)})
            tally.add("temporary files left", len(left))
            if left:
                tally.lose(len(left), "temporary files outlived the next save:", left[:3])


# Interrupts


@contextmanager
def _interrupted(seconds: float) -> Iterator[None]:
    """What Ctrl-C does, so many seconds from now if the block is not over by then."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-5))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _bytes(table: cce.Table) -> bytes:
    return b"".join(table.arrays()[name].tobytes() for name in sorted(table.arrays()))


def _learners() -> dict[str, tuple[cce.Table, dict[str, object]]]:
    make, vectors = cce.make_table, np.random.default_rng(0).standard_normal((3000, 8)).astype(np.float32)
    return {
        "cce": (make("cce", 3000, 8, num_params=4000, rank=0, seed=1), {}),
        "cce rank auto": (make("cce", 3000, 8, num_params=4000, seed=1), {}),
        "cce int8": (make("cce", 3000, 8, num_params=4000, rank=0, codec="int8", seed=1), {}),
        "cce_robe": (make("cce_robe", 600, 8, num_params=2000, seed=1), {}),
        "pq of vectors": (make("pq", 3000, 8, num_params=4000, seed=1), {"vectors": vectors}),
        "sparse": (make("sparse", 300, 8, num_params=1000, seed=1), {}),
    }


def _changes(table: cce.Table, more: dict[str, object], path: Path) -> dict[str, Callable[[], object]]:
    ids = np.arange(table.spec.vocab or 1)
    grads, optimizer = np.ones((len(ids), 8), np.float32), cce.SGD(0.0)  # a step of 0: one that is cut off is none

    return {
        "cluster": lambda: table.cluster(n_iter=3, **more),
        "update": lambda: optimizer.update(table, ids, grads),
        "lookup": lambda: table.lookup(ids),
        "save": lambda: table.save(path),
        "deepcopy": lambda: copy.deepcopy(table),
    }


def interrupted(tally: Tally, times: int) -> None:
    """Ctrl-C at any moment of anything: the table and its file are the old or the new ones, and all goes on as before."""
    rng = random.Random(1)
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        path = Path(folder, "table")
        for name, (table, more) in _learners().items():
            for what, change in _changes(table, more, path).items():
                table.save(path)
                took = []
                for _ in range(3):  # compiles
                    start = time.perf_counter()
                    change()
                    took.append(time.perf_counter() - start)
                for _ in range(times):
                    old = _bytes(table)
                    twin = copy.deepcopy(table)
                    _changes(twin, more, path)[what]()
                    try:
                        with _interrupted(rng.random() * 1.2 * min(took)):
                            change()
                    except KeyboardInterrupt:
                        tally.add("interrupts")
                    if _bytes(table) not in (old, _bytes(twin)):
                        tally.lose(name, what, "stopped between the old table and the new one")
                    if _bytes(cce.load(path)) not in (old, _bytes(twin)) and what == "save":
                        tally.lose(name, "save stopped between the old file and the new one")
                for again in _changes(table, more, path).values():  # no lock was left locked
                    again()
                if os.listdir(folder) != ["table"]:
                    tally.lose(name, what, "left", os.listdir(folder))


# No space left


def full_disk(tally: Tally, step: int) -> None:
    """Room for so many bytes and no more, at every length of a file: an OSError, and the old file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old, new = cce.make_table("cce", 50, 8, num_params=200), cce.make_table("hash", 300, 8, num_params=1000)
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        path = Path(folder, "table")
        new.save(path)
        length = path.stat().st_size
        old.save(path)
        before = path.read_bytes()
        most = resource.getrlimit(resource.RLIMIT_FSIZE)
        for room in range(0, length, step):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, most[1]))
            try:
                new.save(path)
                tally.lose("a file of", length, "bytes was saved in", room)
            except OSError as error:
                if str(path) not in str(error):
                    tally.lose("no name in", repr(error))
            except Exception as error:
                tally.lose("not an OSError:", repr(error))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, most)
            tally.add("saves without room")
            if path.read_bytes() != before or os.listdir(folder) != ["table"]:
                tally.lose("with room for", room, "bytes, the folder holds", os.listdir(folder))
        new.save(path)
        if _bytes(cce.load(path)) != _bytes(new):
            tally.lose("with room again, the file is another one")


def test_a_save_that_is_killed_leaves_the_old_file_or_the_new_one(campaign):
    campaign(killed_saves, many(80, 3000))


def test_a_copy_that_is_killed_as_it_follows_deltas_is_the_old_one_or_the_new_one(campaign):
    campaign(killed_deltas, many(40, 1000))


def test_an_interrupt_leaves_the_old_table_or_the_new_one(campaign):
    campaign(interrupted, many(3, 100))


def test_a_full_disk_leaves_the_old_file(campaign):
    campaign(full_disk, stride(97))
