"""Interactions in files with named columns: every format gives what the plain file gives, or names the line that is wrong."""

from __future__ import annotations

import bz2
import gzip
import json
import uuid

import numpy as np
import pytest

from cce_core.datasets import read_interactions, split_pairs

pl = pytest.importorskip("polars", reason="Polars is not installed (the extra `data`)")

RNG = np.random.default_rng(0)
USERS = [f'ü{n}; "{n}"' if n % 3 else f"-{n},x" for n in RNG.integers(40, size=300)]
ITEMS = [int(n) for n in RNG.integers(2**62, 2**63 - 1, size=30)[RNG.integers(30, size=300)]]
LABELS = [int(n) for n in RNG.integers(2, size=300)]
TIMES = [int(n) for n in RNG.integers(1_700_000_000, 1_800_000_000, size=300)]
NAMES = {"user": "who is", "item": "what", "label": "liked", "time": "when"}


def quoted(value) -> str:
    return '"' + str(value).replace('"', '""') + '"'


def as_text(separator: str, encoding: str = "utf-8") -> bytes:
    lines = [separator.join(["note", *map(quoted, ("what", "who is", "liked", "when"))])]
    for k, row in enumerate(zip(ITEMS, USERS, LABELS, TIMES)):
        lines.append(
            separator.join(
                ['"a,b"' if k % 7 else "", str(row[0]), quoted(row[1]), ("false", "True")[row[2]], str(row[3])]
            )
        )
        if k == 5:
            lines.append("")
    return ("\r\n".join(lines) + "\r\n").encode(encoding)


def as_json() -> bytes:
    rows = zip(USERS, ITEMS, LABELS, TIMES)
    return b"".join(
        json.dumps({"what": i, "who is": u, "liked": a, "when": t, "x": [1]}).encode() + b"\n" for u, i, a, t in rows
    )


def frame():
    return pl.DataFrame(
        {"x": [0.5] * 300, "who is": USERS, "what": ITEMS, "liked": [bool(a) for a in LABELS], "when": TIMES}
    )


WRITERS = {
    "semicolons in Latin-1, packed.csv.gz": lambda path: path.write_bytes(gzip.compress(as_text(";", "latin-1"))),
    "commas.csv": lambda path: path.write_bytes(as_text(",")),
    "tabs.tsv": lambda path: path.write_bytes(as_text("\t")),
    "lines.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(as_json())),
    "table.parquet": lambda path: frame().write_parquet(path),
    "table.arrow": lambda path: frame().write_ipc(path),
    "dates.parquet": lambda path: frame().with_columns(pl.from_epoch("when")).write_parquet(path),
}


@pytest.mark.parametrize("small", [False, True], ids=["whole", "in small pieces"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same(tmp_path, monkeypatch, name, small):
    from cce_core.datasets import frames

    if small:
        monkeypatch.setattr(frames, "_BLOCK", 700)
        monkeypatch.setattr(frames, "_ROWS", 70)
    WRITERS[name](tmp_path / name)
    pairs = read_interactions(tmp_path / name, **NAMES)
    # the twin: sorted sets and positions in them
    users, items = sorted(set(USERS)), sorted(set(ITEMS))
    assert list(pairs.user_ids) == users
    assert pairs.item_ids.dtype == np.int64
    assert pairs.item_ids.tolist() == items
    assert pairs.users.tolist() == [users.index(u) for u in USERS]
    assert pairs.items.tolist() == [items.index(i) for i in ITEMS]
    assert pairs.labels.tolist() == LABELS
    scale = 1e6 if name.startswith("dates") else 1
    assert (pairs.times / scale).tolist() == TIMES
    split = split_pairs(pairs)
    latest = sorted(range(300), key=lambda k: (TIMES[k], k))[270:]
    assert sorted(zip(split.valid.users, split.valid.items)) == sorted((pairs.users[k], pairs.items[k]) for k in latest)


def test_numbers_are_as_in_the_plain_file_and_parts_as_one(tmp_path):
    ids = RNG.integers(0, 1000, size=(200, 2))
    (tmp_path / "plain.csv").write_text("user,item\n" + "".join(f"{u},{i}\n" for u, i in ids))
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "_SUCCESS").write_text("")
    for k in range(3):
        rows = ids[70 * k : 70 * k + 70]
        pl.DataFrame({"user": rows[:, 0], "item": rows[:, 1].astype(np.int32)}).write_parquet(
            parts / f"part-{k}.parquet"
        )
    plain = read_interactions(tmp_path / "plain.csv")
    for path in (tmp_path / "plain.csv", parts, parts / "part-*.parquet"):
        pairs = read_interactions(path, user="user", item="item")
        for name in ("users", "items", "user_ids", "item_ids"):
            assert (getattr(pairs, name) == getattr(plain, name)).all(), (path, name)
        assert pairs.user_ids.dtype == np.int64
        assert pairs.labels is None
        assert (split_pairs(pairs, seed=3).train.items == split_pairs(plain, seed=3).train.items).all()


def test_uuids_large_numbers_floats_and_dates(tmp_path):
    keys = [uuid.UUID(int=int(n)) for n in RNG.integers(1, 2**60, size=12)]
    big = [2**64 - 1, 2**63, 7] * 4
    when = ["2024-05-31T12:00:00Z", "2024-05-31 12:00:01.5", "2023-01-01"] * 4
    table = pl.DataFrame(
        {
            "u": [k.bytes for k in keys],
            "i": pl.Series(big, dtype=pl.UInt64),
            "f": [float(k) for k in range(12)],
            "g": range(12),
        }
    )
    table.with_columns(pl.Series("t", when)).write_parquet(tmp_path / "a.parquet")
    pairs = read_interactions(tmp_path / "a.parquet", user="u", item="i", time="t")
    assert list(pairs.user_ids) == sorted(map(str, keys))
    assert [pairs.user_ids[u] for u in pairs.users] == list(map(str, keys))
    assert pairs.item_ids.dtype == np.uint64
    assert pairs.item_ids.tolist() == [7, 2**63, 2**64 - 1]
    assert pairs.times[:3].tolist() == [1717156800.0, 1717156801.5, 1672531200.0]
    pairs = read_interactions(tmp_path / "a.parquet", user="f", item="i", label="g", above=5)
    assert pairs.user_ids.dtype == np.int64
    assert pairs.labels.tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "user,item\n1,2\n\n,3\n", "line 4: the user is missing; expected a value in column 'user'"),
        ("a.csv", "item,user\n1,2\n3\n", "line 3: the user is missing"),
        ("a.csv", 'user,item\n1,2\n1,""\n', "line 3: the item is missing"),
        ("a.csv", "user,item\n1,2\n1,2,3\n", "line 3: expected 2 fields as the header names, got 3: '1,2,3'"),
        ("a.csv", "u,item,x\n1,2,3\n", "has no column 'user'; it has 'u', 'item', 'x'"),
        ("a.csv", "user,item\n", "holds no interaction"),
        ("a.csv", 'user,item\n1,"2\n', "a quote that is opened from here on is never closed"),
        ("a.jsonl", '{"user": 1, "item": 2}\n{"user": null, "item": 2}\n', "line 2: the user is missing"),
        ("a.jsonl", '{"user": 1, "item": 2}\n{"user": 1, "item": 2\n', "line 2: this is no JSON"),
        ("a.jsonl", '{"u": 1, "item": 2}\n', "has no column 'user'; it has 'u', 'item'"),
        ("a.jsonl", '{"user": 1, "item": 2}\n[1, 2]\n', "line 2: (expected an object|the user is missing)"),
        ("a.parquet", "no parquet", "can't be read as parquet"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_interactions(tmp_path / name, user="user", item="item")
    assert name in str(caught.value)


def test_labels_times_and_names_are_checked(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("user,item,r,t\n1,2,1,5\n1,2,4.5,noon\n")
    for message, names in [
        (r"line 3: the label must be 0 or 1 \(or give above=", {"label": "r"}),
        ("line 3: the time must be a number or such as 2024", {"time": "t"}),
        ("must be different columns", {"label": "user"}),
    ]:
        with pytest.raises(ValueError, match=message):
            read_interactions(path, user="user", item="item", **names)
    with pytest.raises(ValueError, match="label was given, but not user and item"):
        read_interactions(path, label="r")
    with pytest.raises(ValueError, match="name both columns"):
        read_interactions(path, user="user")
    with pytest.raises(FileNotFoundError, match="no folder of parts"):
        read_interactions(tmp_path / "none", user="user", item="item")
    frame().head(20).with_columns(pl.lit(1).alias("liked")).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="every label of the validation part is 1"):
        split_pairs(read_interactions(tmp_path / "b.parquet", **NAMES))
    torn = pl.when(pl.int_range(300) == 71).then(None).otherwise("what").alias("what")
    frame().with_columns(torn).write_parquet(path := tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="row 72: the item is missing"):
        read_interactions(path, **NAMES)


def test_without_polars_it_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "polars", None)
    (tmp_path / "a.csv").write_text("user,item\n1,2\n")
    with pytest.raises(ImportError, match=r"pip install 'cce-core\[data\]'"):
        read_interactions(tmp_path / "a.csv", user="user", item="item")
