"""Delta files that were damaged, edited or left half written: refused, or what they make is what the true ones make."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from campaigns.test_kills import chain, served
from campaigns.trial import Tally, many, memory_folder

import cce_core as cce
from cce_core.serving import FileFormatError, Reader
from cce_core.serving.server.following import Following
from cce_core.storage.files import load_arrays, save_arrays
from cce_core.tables import load_delta

IDS = np.concatenate([np.arange(300), 2**40 + np.arange(20)])


@contextlib.contextmanager
def _made(several: bool, n: int) -> Iterator[tuple[Path, list[Path]]]:
    """A folder with the file of a table, `replica`, and n deltas."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
        yield Path(name), chain(several, Path(name), n)[1]


# Damaged and edited ones


def _damaged(raw: bytes, rng: random.Random) -> bytes:
    """Bytes that are others, are missing, are zeros, or are there twice."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        edge = 8 + int.from_bytes(raw[:8], "little")
        at, size = rng.randrange(rng.choice((len(raw), min(len(raw), edge + 64)))), rng.choice((1, 1, 8, 128, 4000))
        middle = [
            rng.randbytes(size),
            b"",
            bytes(size),
            raw[at : at + size] * 2,
            bytes([raw[at] ^ 1 << rng.randrange(8)]),
        ]
        raw = raw[:at] + rng.choice(middle) + raw[at + rng.choice((size, 1)) :] or b"\0"
    return raw


def _edited(path: Path, arrays: dict[str, Any], values: dict[str, Any], own: str, rng: random.Random) -> None:
    """A file whose checksums hold, with another chain, other pages or other data."""
    link, arrays, spec = dict(values["delta"]), dict(arrays), dict(values["table"])
    name = rng.choice([name for name in arrays if name.endswith(" pages")])
    data = f"{name.removesuffix(' pages')} data"
    pages, held = arrays[name].copy(), arrays[data].copy()
    what = rng.randrange(8)
    if what == 0:
        link["sequence"] = rng.choice((0, 7, -1, 2**63, "1", None, 1.0))
    elif what == 1:
        link[rng.choice(("parent", "child"))] = rng.choice((own, link["child"], link["parent"], "", "0" * 16, None))
    elif what == 2:
        pages[rng.randrange(len(pages))] = rng.choice((0, -1, len(pages), 2**62, 10**6))
    elif what == 3:
        pages = rng.choice(
            (pages[::-1], np.concatenate([pages, pages]), pages[:-1], pages.astype(np.uint64), pages[:0])
        )
    elif what == 4:
        held[rng.randrange(len(held))] ^= 1 << rng.randrange(8)
    elif what == 5:
        held = rng.choice((held[:-1], held[:0], np.concatenate([held, held]), held[:, None], held[:128]))
    elif what == 6:
        spec[rng.choice(list(spec))] = rng.choice((None, 1, "x", []))
    else:
        arrays[rng.choice(("x pages", "keys pages", "x data"))] = pages
    save_arrays(
        path,
        {**arrays, name: np.ascontiguousarray(pages), data: np.ascontiguousarray(held)},
        {"delta": link, "table": spec},
    )


def mutated(tally: Tally, n: int) -> None:
    """n files, half of them damaged and half edited, for a reader and for a table: refused, or it is the old or the new one."""
    rng = random.Random(1)
    for several in (False, True):
        with _made(several, 2) as (folder, files):
            path, reader, first = folder / "bad", Reader(folder / "replica"), cce.load(folder / "replica")
            wanted = [reader.lookup(IDS).tobytes(), reader.apply(files[0]).lookup(IDS).tobytes()]
            table, before = cce.load(folder / "replica"), served(first)
            table.apply_delta(load_delta(files[0]))
            after, raw, (arrays, values) = served(table), files[0].read_bytes(), load_arrays(files[0])
            table = first
            for k in range(n // 2):
                if k % 2:
                    path.write_bytes(_damaged(raw, rng))
                else:
                    _edited(path, arrays, values, reader.digest(), rng)
                tally.add("delta files")
                try:
                    found = reader.apply(path).lookup(IDS).tobytes()
                    tally.add("taken by the reader")
                    if found not in wanted:
                        tally.lose("mutation", k, "makes a reader that is neither the old nor the new one")
                except (FileFormatError, ValueError):
                    tally.add("refused by the reader")
                except Exception as error:
                    tally.lose("mutation", k, "raises", repr(error))
                try:
                    table.apply_delta(load_delta(path))
                    tally.add("taken by the table")
                except (cce.FileFormatError, ValueError):
                    tally.add("refused by the table")
                except Exception as error:
                    tally.lose("mutation", k, "raises in the table", repr(error))
                now = served(table)
                if now not in (before, after):
                    tally.lose("mutation", k, "makes a table that is neither the old nor the new one")
                if now != before:
                    table = cce.load(folder / "replica")
            if reader.lookup(IDS).tobytes() != wanted[0]:
                tally.lose("the reader has changed")


# Who writes them is killed


def _write(folder: Path, files: list[Path]) -> None:
    """Put deltas where they are looked for, without end: whole, or, by who knows no better, a half and then the other."""
    while True:
        for k, file in enumerate(files):
            target = folder / "deltas" / f"{k}.delta"
            if k % 2:
                load_delta(file).save(target)
                continue
            target.unlink(missing_ok=True)
            raw = file.read_bytes()
            with open(target, "wb", buffering=0) as out:
                for half in (raw[: len(raw) // 2], raw[len(raw) // 2 :]):
                    out.write(half)
        cce.load(folder / "replica").save(folder / "in" / "user.safetensors")


def killed_writers(tally: Tally, kills: int) -> None:
    """Who writes deltas and files is killed: a server that follows them, and one that starts anew, have one moment, whole."""
    logging.disable(logging.CRITICAL)  # what is torn is told
    rng = random.Random(1)
    for several in (False, True):
        with _made(several, 6) as (folder, files):
            for name in ("in", "deltas"):
                (folder / name).mkdir()
            moments, reader = {}, Reader(folder / "replica")
            for k in range(len(files) + 1):
                moments[reader.lookup(IDS).tobytes()] = k
                reader = reader.apply(files[min(k, len(files) - 1)])
            cce.load(folder / "replica").save(folder / "in" / "user.safetensors")
            following, seen = Following([folder / "in"], folder / "deltas"), set()
            for kill in range(kills // 2):
                if kill % 8 == 0:  # from the start again
                    for file in (folder / "deltas").iterdir():
                        file.unlink()
                if (pid := os.fork()) == 0:
                    _write(folder, files)
                time.sleep(rng.random() * 0.004)
                following.poll()
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                tally.add("kills")
                following.poll()
                for one in (following, Following([folder / "in"], folder / "deltas")):
                    moment = moments.get(one.tables["user"].reader.lookup(IDS).tobytes())
                    if moment is None:
                        tally.lose("after kill", kill, "vectors are of no moment")
                    elif one.tables["user"].sequence not in (0, moment):
                        tally.lose("after kill", kill, "moment", moment, "is called", one.tables["user"].sequence)
                    seen.add(moment)
            tally.add("moments met", len(seen))
            if len(seen) < 2:
                tally.lose("the server never got on")


def test_a_mutated_delta_is_refused_or_makes_what_the_true_one_makes(campaign):
    campaign(mutated, many(200, 10_000))


def test_a_server_follows_whole_moments_while_their_writer_is_killed(campaign):
    campaign(killed_writers, many(30, 1000))
