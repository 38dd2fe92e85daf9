"""Headers are input from strangers: whatever one says, a file is refused at once or gives a table that can be used."""

from __future__ import annotations

import copy
import faulthandler
import json
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaigns.tables import makers, use
from campaigns.trial import Tally, many, memory_folder

import cce_core as cce
from cce_core.storage import save_arrays

MOST_SECONDS, MOST_BYTES = 1.0, 10_000_000
_NUMBERS = [
    0, 1, 2, 3, 5, 7, 8, 16, 63, 64, -1, -2, -8, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**48, 2**62, 2**63 - 1, 2**63,
    2**64 - 1, 2**64, 10**30, -(2**63), 0.0, 1.5, 1e308, float("nan"), float("inf"), True, False,
]  # fmt: skip
_ODD: list[Any] = [
    *_NUMBERS, None, "", "x", "1", "cce", "full", "int8", "float32", "stochastic", "concat", "mul", "\ud800", "a" * 10_000,
    [], [1], [3, -2], [2**40, 2], [[1]], [0] * 1000, ["1"], {}, {"": 1}, {"rank": 1},
]  # fmt: skip
_DTYPES = ("F32", "F64", "F16", "BF16", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL", "X", "", 3, None)


def _places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value within a tree of dicts and lists."""
    found = [at] if at else []
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        found += _places(value, (*at, key))
    return found


def _edited(tree: Any, rng: random.Random, odd: list[Any]) -> Any:
    """A copy with one to three values replaced, taken away, or added."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(tree)
        if not places:
            break
        *way, last = rng.choice(places)
        owner = tree
        for key in way:
            owner = owner[key]
        what, now = rng.randrange(8), owner[last]
        if what == 0:
            del owner[last]
        elif what == 1 and isinstance(owner, list):
            owner.insert(rng.randrange(len(owner) + 1), copy.deepcopy(rng.choice(odd)))
        elif what == 1:
            name = rng.choice(("", "x", "memory", "spec", "sizes", "n_hashes", "signed", "__metadata__"))
            owner[name] = copy.deepcopy(rng.choice(odd))
        elif what < 5 and isinstance(now, int) and not isinstance(now, bool):
            owner[last] = rng.choice((now - 1, now + 1, -now, 2 * now, now // 2, now + 2**32, now << rng.randrange(60)))
        else:
            owner[last] = copy.deepcopy(rng.choice(odd))  # what holds itself is no JSON
    return tree


def _split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def _joined(text: bytes, data: bytes) -> bytes:
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def damaged_spec(path: Path, table: cce.Table, raw: bytes, rng: random.Random) -> None:
    """Numbers of the spec edited in the file: no checksum holds any more."""
    header, data = _split(raw)
    spec = json.loads(header["__metadata__"]["spec"])
    header["__metadata__"]["spec"] = json.dumps(_edited(spec, rng, _ODD))
    path.write_bytes(_joined(json.dumps(header).encode(), data))


def damaged_header(path: Path, table: cce.Table, raw: bytes, rng: random.Random) -> None:
    """Names, types, shapes and places of the arrays, and the metadata, edited in the file."""
    header, data = _split(raw)
    path.write_bytes(_joined(json.dumps(_edited(header, rng, [*_ODD, *_DTYPES])).encode(), data))


def damaged_text(path: Path, table: cce.Table, raw: bytes, rng: random.Random) -> None:
    """Bytes of the header changed, doubled, swapped, nested without end, or its length changed."""
    text, data = raw[8 : 8 + int.from_bytes(raw[:8], "little")], raw[8 + int.from_bytes(raw[:8], "little") :]
    at, what = rng.randrange(len(text)), rng.randrange(6)
    if what == 0:
        text = text[:at] + rng.randbytes(rng.randrange(1, 9)) + text[at + 1 :]
    elif what == 1:
        text = text[:at] + text[at : at + rng.randrange(1, 200)] + text[at:]
    elif what == 2:
        text = text[:at] + rng.choice((b"[", b'{"a":')) * rng.choice((100, 100_000)) + text[at:]
    elif what == 3:
        text = text[:at] + str(rng.choice(_NUMBERS)).encode() + text[at:]
    elif what == 4:
        text = b'{"a":' + text + b"}"
    length = len(text) if what < 5 else rng.choice((0, 1, 2**63, 2**64 - 1, 2**31, len(text) - 1, len(text) + 1, at))
    path.write_bytes(length.to_bytes(8, "little") + text + data)


def crafted_spec(path: Path, table: cce.Table, raw: bytes, rng: random.Random) -> None:
    """A file that was written with another spec, or with arrays made to fit it: every checksum holds."""
    arrays: dict[str, Any] = {name: np.array(array) for name, array in table.arrays().items()}
    spec = _edited(table.spec.as_json(), rng, _ODD)
    if rng.random() < 0.5:  # small numbers, and arrays as such a spec would have them
        spec = table.spec.as_json()
        sizes, field = spec["sizes"], rng.choice(("sizes", "sizes", "n_chunks", "rank", "dim", "vocab", "options"))
        small = rng.randrange(-9, 40)
        if field == "sizes" and sizes:
            sizes[rng.randrange(len(sizes))] = small
        elif field == "options":
            spec["options"] = {name: rng.choice((small, value)) for name, value in spec["options"].items()}
        else:
            spec[field] = small
        fitting = _arrays_of(table, spec)
        arrays = arrays if fitting is None else fitting
    for name, array in list(arrays.items()):
        if rng.random() < 0.1:
            other = rng.choice((np.float32, np.int8, np.uint64))
            full = np.frombuffer(b"\xff" * array.nbytes, array.dtype).reshape(array.shape)
            arrays[name] = rng.choice((array.reshape(-1), array[:0], array.astype(other), np.repeat(array, 2), full))
    save_arrays(path, arrays, spec)


def _arrays_of(table: cce.Table, spec: dict[str, Any]) -> dict[str, Any] | None:
    """Arrays of ones in the shapes that the method names for a spec; None where it names none or large ones."""
    try:
        wanted = table.method.arrays(cce.TableSpec.from_json(spec))
        shapes = {name: (one.shape, one.dtype) for name, one in wanted.items()}
        if spec["rank"]:
            shapes["projection"] = ((spec["rank"] + 1, spec["dim"]), np.float32)
        return {name: np.ones(shape, dtype) for name, (shape, dtype) in shapes.items() if np.prod(shape) < 1e6}
    except Exception:
        return None


def _try(path: Path, mmap: bool, what: str, tally: Tally) -> None:
    """Load and use one file; anything but a usable table or a FileFormatError is a loss."""
    faulthandler.dump_traceback_later(60, exit=True)  # of one file: what hangs is told from what is slow
    tracemalloc.start()
    start = time.thread_time()
    table = None
    try:
        table = cce.load(path, mmap=mmap)
    except cce.FileFormatError:
        tally.add("refused")
    except Exception as error:
        tally.lose(what, "load raises", repr(error))
    seconds, peak = time.thread_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tally["slowest load in ms"] = max(tally["slowest load in ms"], round(seconds * 1e3))
    tally["most kB of a load"] = max(tally["most kB of a load"], peak // 1000)
    if seconds > MOST_SECONDS or peak > MOST_BYTES:
        tally.lose(what, f"took {seconds:.1f} s and {peak:,} bytes to load")
    tally.add("loads")
    if table is not None:
        tally.add("used")
        try:
            use(table)
        except Exception as error:
            tally.lose(what, f"gave {table.spec}, which cannot be used:", repr(error))


def edited(tally: Tally, kind: str, n: int) -> None:
    """n edited files, dealt over all tables, each loaded in both ways and used."""
    edit: Callable[..., None] = globals()[kind]
    tables = {name: make() for name, make in makers().items()}
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        path, raws = Path(folder, "table"), {}
        for name, table in tables.items():
            table.save(path)
            raws[name] = path.read_bytes()
            for mmap in (False, True):  # compiles: what follows is timed
                use(cce.load(path, mmap=mmap))
        for k in range(n):
            name = list(tables)[k % len(tables)]
            edit(path, tables[name], raws[name], random.Random(f"{kind} {k}"))
            tally.add("headers")
            for mmap in (False, True):
                _try(path, mmap, f"{kind} {k} of {name}, mmap {mmap}:", tally)


@pytest.mark.parametrize("kind", [f.__name__ for f in (damaged_spec, damaged_header, damaged_text, crafted_spec)])
def test_an_edited_header_is_refused_or_gives_a_table(campaign, kind):
    campaign(edited, kind, many(120, 5000))
