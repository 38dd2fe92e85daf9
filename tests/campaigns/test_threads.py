"""One table, eight threads: readers see one generation whole, writers come one at a time, and nothing crashes.

A lookup, a saved file or a copy that began after generation g was there must hold the bits of one generation from g on. The
truths are written down by the only thread that clusters. Steps of learning rate 0 go through every loop of training without
moving a bit, so that the rule can be held beside them too.
"""

from __future__ import annotations

import copy
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from campaigns.trial import Tally, after, many, memory_folder, together

import cce_core as cce

VOCAB, DIM = 600, 8
IDS = np.arange(VOCAB)
_VECTORS = np.random.default_rng(0).standard_normal((VOCAB, DIM)).astype(np.float32)


def _make(method: str, **more: Any) -> cce.Table:
    return cce.make_table(method, VOCAB, DIM, num_params=1600, seed=1, **more)


def learners() -> dict[str, tuple[cce.Table, dict[str, Any]]]:
    """Tables whose sketch is learned, and what `cluster` is to be told."""
    stochastic = {"rounding": "stochastic"}
    return {
        "cce": (_make("cce", n_chunks=2, rank=0), {}),
        "cce rank auto": (_make("cce"), {}),
        "cce int8": (_make("cce", n_chunks=2, rank=0, codec="int8"), {}),
        "cce rank auto int8 stochastic": (_make("cce", codec="int8", **stochastic), {}),
        "cce rank auto bfloat16 stochastic": (_make("cce", codec="bfloat16", **stochastic), {}),
        "cce_robe": (_make("cce_robe"), {}),
        "pq of vectors": (_make("pq"), {"vectors": _VECTORS}),
        "pq of vectors rank 4 int8 stochastic": (
            _make("pq", rank=4, codec="int8", **stochastic),
            {"vectors": _VECTORS},
        ),
        "sparse": (_make("sparse"), {}),
    }


class Truths:
    """What lookups may give: a digest of each view of a table at each of its generations."""

    def __init__(self, table: cce.Table, beside: cce.Table) -> None:
        both, pair = cce.Collection([table, beside]), np.stack([IDS, IDS], 1)
        lengths = np.full(VOCAB // 3, 3)
        self.table = table
        self.views: dict[str, Callable[[], Any]] = {
            "all ids": lambda: table.lookup(IDS),
            "one id": lambda: table.lookup(17),
            "a forward pass": lambda: table.forward(IDS).vectors,
            "a collection": lambda: both.split(both.lookup(pair))[0],
            "bags": lambda: both.split(both.lookup([IDS, IDS], lengths=[lengths, lengths]))[0],
        }
        self._known: list[dict[str, int]] = []
        self.write_down()

    def write_down(self) -> None:
        """Only by the thread that clusters, when it has."""
        now = {name: hash(view().tobytes()) for name, view in self.views.items()}
        assert self.table.generation == len(self._known)
        self._known.append(now)

    def least(self) -> int:
        """The generation from which on a reader that begins now may see."""
        return len(self._known) - 1

    def generations_of(self, view: str, vectors: Any, least: int) -> set[int]:
        """The generations, from `least` on, whose vectors these are: more than one where clustering again changed nothing."""
        told, most, late = hash(vectors.tobytes()), self.table.generation, after(30)
        while len(self._known) <= most and not late():  # clustered, and about to be written down
            time.sleep(0.0005)
        return {g for g in range(least, most + 1) if self._known[g][view] == told}


def _reader(truths: Truths, view: str, tally: Tally, name: str) -> Callable[[], None]:
    def read() -> None:
        least = truths.least()
        vectors = truths.views[view]()
        tally.add("lookups")
        if not truths.generations_of(view, vectors, least):
            tally.lose(f"{name}: {view} of no generation")

    return read


def _copier(truths: Truths, tally: Tally, name: str, path: Path) -> Callable[[], None]:
    """Saved files, loaded in both ways, and copies, in turn."""
    table, turn = truths.table, [0]

    def saved() -> cce.Table:
        table.save(path)
        return cce.load(path, mmap=turn[0] % 2 == 0)

    ways = {
        "saves": saved,
        "deep copies": lambda: copy.deepcopy(table),
        "pickles": lambda: pickle.loads(pickle.dumps(table)),
    }

    def keep() -> None:
        turn[0] += 1
        how = ("saves", "saves", "deep copies", "pickles")[turn[0] % 4]
        least = truths.least()
        tally.add(how)
        try:
            kept = ways[how]()
        except (cce.FileFormatError, RuntimeError) as error:
            tally.lose(f"{name}: {how}: {error!r}")
            return
        if kept.generation not in truths.generations_of("all ids", kept.lookup(IDS), least):
            tally.lose(f"{name}: {how}: generation {kept.generation} is not what it says")

    return keep


def _steps(table: cce.Table, lr: float, tally: Tally) -> Callable[[], None]:
    """Every way to train: a fused update of ids, of a forward pass, of a collection, a sparse and a dense step."""
    one, rng = cce.Collection([table]), np.random.default_rng(1)
    optimizers, turn = [cce.SGD(lr), cce.Adagrad(lr), cce.Adam(lr), cce.Adam(lr, lazy=True)], [0]

    def step() -> None:
        turn[0] += 1
        optimizer = optimizers[turn[0] // 5 % len(optimizers)]
        ids = rng.integers(0, VOCAB, 300)
        grads = rng.standard_normal((300, DIM)).astype(np.float32)
        how = turn[0] % 5
        try:
            if how == 0:
                optimizer.update(table, ids, grads)
            elif how == 1:
                optimizer.update(table, table.forward(ids), grads)
            elif how == 2:
                optimizer.update(one, one.forward(ids[:, None]), grads)
            else:
                optimizer.step(table, table.backward(ids, grads, dense=how == 3))
        except ValueError as error:
            if "clustered since" not in str(error):
                raise
            tally.add("steps told to look up again")
        tally.add("steps")

    return step


def one_table(tally: Tally, milliseconds: int, lr: float) -> None:
    """For each table in turn: cluster, train, look up, save and copy, each without end.

    With a learning rate of 0 every vector, file and copy is held against the truths; with another one they must be finite,
    and every file whole.
    """
    sys.setswitchinterval(1e-4)
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        for name, (table, more) in learners().items():
            jobs = (_held if lr == 0 else _wild)(table, more, lr, tally, name, Path(folder, "table"))
            for job in jobs:  # compiles
                job()
            together(jobs, after(milliseconds / 1000))
            if not np.isfinite(table.lookup(IDS)).all():
                tally.lose(f"{name}: not finite at the end")


def _held(
    table: cce.Table, more: dict[str, Any], lr: float, tally: Tally, name: str, path: Path
) -> list[Callable[[], None]]:
    """One thread that clusters, five that look up, one that saves and copies, one that trains by nothing."""
    spec = table.spec
    truths = Truths(table, cce.make_table("hash", VOCAB, DIM, num_params=800, codec=spec.codec, rank=min(spec.rank, 4)))

    def cluster() -> None:
        table.cluster(n_iter=1, **more)
        truths.write_down()
        tally.add("clusterings")

    readers = [_reader(truths, view, tally, name) for view in truths.views]
    jobs = [cluster, *readers, _copier(truths, tally, name, path)]
    rounds_anew = (spec.codec, spec.rounding) == ("int8", "stochastic")  # at times a step of 0 does so, and moves a bit
    return jobs if rounds_anew else [*jobs, _steps(table, lr, tally)]


def _wild(
    table: cce.Table, more: dict[str, Any], lr: float, tally: Tally, name: str, path: Path
) -> list[Callable[[], None]]:
    """One thread that clusters, two that train, three that look up, one that saves, loads and copies, one that settles."""

    def cluster() -> None:
        table.cluster(n_iter=1, **more)
        tally.add("clusterings")

    def look() -> None:
        if not np.isfinite(table.lookup(IDS)).all():
            tally.lose(f"{name}: a lookup is not finite")
        tally.add("lookups")

    def save() -> None:
        table.save(path)
        tally.add("saves")
        try:
            kept = cce.load(path)
        except cce.FileFormatError as error:
            tally.lose(f"{name}: {error}")
            return
        again = copy.deepcopy(table)
        if not (np.isfinite(kept.lookup(IDS)).all() and np.isfinite(again.lookup(IDS)).all()):
            tally.lose(f"{name}: a file or a copy is not finite")

    def requantize() -> None:
        table.requantize()
        time.sleep(0.001)

    return [cluster, _steps(table, lr, tally), _steps(table, lr, tally), look, look, look, save, requantize]


def test_every_vector_file_and_copy_is_of_one_generation(campaign):
    campaign(one_table, many(600, 40_000), 0.0)


def test_training_beside_clustering_lookups_and_saves_never_crashes(campaign):
    campaign(one_table, many(400, 40_000), 1e-4)
