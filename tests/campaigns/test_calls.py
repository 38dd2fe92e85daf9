"""Fuzzed calls of the public face: whatever is handed in, an error that says what came, or a result; nothing is lost.

Allowed are TypeError, ValueError (BudgetError and FileFormatError are such), IndexError, OSError and MemoryError, in words of
this library: "'NoneType' object has no attribute" and the like tell a user nothing. A table is as before after a refused call.
"""

from __future__ import annotations

import faulthandler
import os
import random
import re
import reprlib
import resource
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from campaigns.tables import DIM, VOCAB, makers
from campaigns.trial import Tally, many

import cce_core as cce

ALLOWED = (TypeError, ValueError, IndexError, OSError, MemoryError)
# Python's own words for an object that was not what the code took it for
_FROM_WITHIN = re.compile(
    r"object is not|object has no|has no len|unhashable|not supported between|can't multiply|cannot unpack|to unpack"
    r"|unsupported operand|cannot be interpreted|bad operand|must be real number, not|an integer is required|object of type"
    r"|not subscriptable"
)


class Strange:
    """No array, no number, no table."""


_IDS = np.arange(6)
_GRADS = np.ones((6, DIM), np.float32)


def _odd(rng: random.Random) -> Any:
    """A thing that hardly any argument takes."""
    plain: list[Any] = [
        None, True, False, 0, 1, -1, 3, 2**31, 2**40, 2**64, -(2**63), 10**30, 0.0, -1.5, 1e308, float("nan"), float("inf"), 1j,
        "", "x", "cce", "\0", "é" * 50, b"", b"\xff", [], [None], [[1], [2, 3]], [1.5], ["a"], (), (1, 2), {}, {"memory": 1},
        {"memory": None}, {1: 2}, set(), range(3), Strange(), Strange, len, lambda: 0, iter([1]), slice(3), Ellipsis,
        np.nan, np.float64(3), np.int8(-1), np.bool_(True), np.datetime64("2020"), np.array(None), np.array("x"), np.array([]),
        np.zeros((0, 3)), np.zeros((2, 0)), np.arange(3), np.arange(6.0), np.ones((3, DIM)), np.ones((6, DIM)),
        np.ones((6, DIM), complex), np.full((6, DIM), np.nan), np.full((6, DIM), np.inf), np.ones((6, DIM), object),
        np.ones((6, DIM), "M8[s]"), np.ones((VOCAB, DIM)), np.arange(6).astype(">i4"), np.array([1, 2], object),
        np.array([2**63], np.uint64), np.ma.masked_array([1, 2], [0, 1]), np.zeros(3, [("a", "i4")]), np.ones((2,) * 20, np.int8),
        memoryview(b"abc"), bytearray(3), Path("nowhere/at/all"), "nowhere/at/all", cce.SGD(0.1), cce.Adam(),
        cce.SparseGradient(np.array([0]), np.ones((1, DIM), np.float32), DIM),
    ]  # fmt: skip
    return rng.choice(plain)


def _calls(
    table: cce.Table, other: cce.Table, folder: Path
) -> dict[str, tuple[Callable[..., Any], list[Any], dict[str, Any]]]:
    """Each call with arguments that it takes: some are exchanged for odd things."""
    both, seen = cce.Collection([table, other]), table.forward(_IDS)
    pair, bag = np.stack([_IDS, _IDS], 1), np.array([0, 2, 4])
    gradient, kmeans = table.backward(_IDS, _GRADS), cce.KMeans(3, seed=0)
    wide, x = np.ones((6, both.dim), np.float32), np.random.default_rng(0).standard_normal((20, 3))
    make = {
        "num_params": 320,
        "num_bytes": None,
        "n_chunks": 4,
        "rank": 0,
        "codec": None,
        "rounding": "stochastic",
        "seed": 0,
    }
    clusters: dict[str, Any] = {
        "vectors": None, "weights": None, "n_iter": 1, "points_per_centroid": 4, "residual": True, "warm_start": True,
        "batch_size": 100, "max_bytes": 1 << 24, "show_progress": None,
    }  # fmt: skip
    return {
        "lookup": (table.lookup, [_IDS], {}),
        "forward": (table.forward, [_IDS], {}),
        "backward": (table.backward, [_IDS, _GRADS], {"dense": False}),
        "backward of a pass": (table.backward, [seen, _GRADS], {}),
        "cluster": (table.cluster, [], clusters),
        "save": (table.save, [folder / "table"], {}),
        "load": (cce.load, [folder / "table"], {"mmap": False}),
        "make_table": (cce.make_table, ["cce", VOCAB, DIM], make),
        "make_table of a method": (cce.make_table, [table.spec.method, VOCAB, DIM], {"num_params": 320, "seed": 0}),
        "Table": (cce.Table, [table.spec, table.arrays()], {}),
        "TableSpec.from_json": (cce.TableSpec.from_json, [table.spec.as_json()], {}),
        "Collection": (cce.Collection, [[table, other]], {}),
        "collection.lookup": (both.lookup, [pair], {"offsets": None, "weights": None, "mode": "sum"}),
        "collection.lookup of bags": (
            both.lookup, [[_IDS, _IDS], [bag, bag]], {"weights": None, "mode": "mean", "padding_id": 0},
        ),
        "collection.backward": (both.backward, [both.forward(pair), wide], {}),
        "collection.split": (both.split, [wide], {}),
        "SGD.update": (cce.SGD(0.0).update, [table, _IDS, _GRADS], {}),
        "Adam.update of a collection": (cce.Adam(0.0).update, [both, both.forward(pair), wide], {}),
        "Adagrad.step": (cce.Adagrad(0.0).step, [table, gradient], {}),
        "SGD": (cce.SGD, [0.1], {"momentum": 0.0, "max_norm": None}),
        "Adam": (cce.Adam, [], {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "lazy": False}),
        "AdamW": (cce.AdamW, [], {"lr": 0.1, "weight_decay": 0.1}),
        "Adagrad": (cce.Adagrad, [], {"lr": 0.1, "eps": 1e-8}),
        "SparseGradient": (cce.SparseGradient, [np.array([0]), np.ones((1, DIM), np.float32), 5 * DIM], {}),
        "KMeans.fit": (
            lambda x, **more: cce.KMeans(3, **more).fit(x), [x], {"init": "k-means++", "n_iter": 3, "tol": 0, "seed": 0},
        ),
        "KMeans": (lambda k: cce.KMeans(k).fit(x), [3], {}),
        "KMeans.predict": (kmeans.fit(x).predict, [x], {}),
        "hash_strings": (cce.hash_strings, [["a", "b"]], {}),
        "mix_hash": (cce.mix_hash, [_IDS, 0], {}),
        "set_num_threads": (cce.set_num_threads, [2], {}),
    }  # fmt: skip


def fuzzed(tally: Tally, n: int) -> None:
    """n calls, each with one or two arguments exchanged for something odd."""
    # What asks for more is refused.
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    warnings.simplefilter("ignore")
    made = list(makers().values())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # "x" is a path, too
        calls: dict[str, Any] = {}
        for k in range(n):
            rng = random.Random(k)
            if k % 50 == 0:
                table, other = made[k // 50 % len(made)](), made[rng.randrange(len(made))]()
                table.save(Path(folder, "table"))
                calls = _calls(table, other, Path(folder))
            name = rng.choice(list(calls))
            call, args, more = calls[name]
            args, more = list(args), dict(more)
            for _ in range(rng.choice((1, 1, 2))):
                place = rng.randrange(len(args) + len(more))
                if place < len(args):
                    args[place] = _odd(rng)
                else:
                    more[list(more)[place - len(args)]] = _odd(rng)
            _try(f"{name}, call {k}", table, call, args, more, tally)


def _short(*things: Any) -> str:
    return " ".join(reprlib.repr(thing)[:150] for thing in things).replace("\n", " ")


def _try(what: str, table: cce.Table, call: Any, args: list[Any], more: dict[str, Any], tally: Tally) -> None:
    before = {name: array.copy() for name, array in table.arrays().items()}
    faulthandler.dump_traceback_later(60, exit=True)  # of one call
    tally.add("calls")
    try:
        call(*args, **more)
        tally.add("taken")
        return
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        from_within = isinstance(error, TypeError | ValueError) and _FROM_WITHIN.search(str(error))
        if not isinstance(error, ALLOWED) or from_within or not str(error):
            tally.lose(f"{what}: {error!r} from {place} for {_short(args, more)}", kind=place + what.partition(",")[0])
    tally.add("refused")
    if any(not np.array_equal(before[name], array, equal_nan=True) for name, array in table.arrays().items()):
        tally.lose(f"{what}: the refused call changed the table")


def test_strange_arguments_are_refused_in_words(campaign):
    campaign(fuzzed, many(600, 25_000))
