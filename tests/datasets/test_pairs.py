"""Files of interactions, and the task that is made of them."""

from __future__ import annotations

import bz2
import gzip
import io
import re
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import datasets as twin

from cce_core._jit import COMPILED
from cce_core.datasets import Pairs, read_interactions, read_ratings, split_with_negatives

raw_ids = st.integers(-3, 6) | st.integers(-(2**63), 2**63 - 1)
HEADERS = {
    "user": ["user", "userId", "User ID", "uid", "user_id:token", '"user_id"'],
    "item": ["item", "item_id", "MOVIE-ID", "movieId", "item_id:token", '"item"'],
}


def zipped(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("set/README", "any")
        archive.writestr("set/interactions.tsv", content)
    return buffer.getvalue()


PACKED = {"plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "zip": zipped}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("interactions")


def read(folder, content, **more):
    path = folder / "file"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_interactions(path, **more)


def raw(pairs):
    return list(zip(pairs.user_ids[pairs.users].tolist(), pairs.item_ids[pairs.items].tolist()))


def pairs_of(rows):
    compact, users, items = twin.compacted(rows)
    columns = [
        np.array(column, np.int64) for column in ([u for u, _ in compact], [i for _, i in compact], users, items)
    ]
    return Pairs("tiny", *columns)


def as_rows(rows):
    return list(zip(rows.users.tolist(), rows.items.tolist(), rows.labels.tolist()))


# Reading


@given(data=st.data())
def test_every_way_of_writing_is_read(folder, data):
    """All of it at once: separators, headers, order, further columns, quotes, line ends, blank lines, marks and archives."""
    draw = data.draw
    rows = draw(st.lists(st.tuples(raw_ids, raw_ids), min_size=1, max_size=12))
    between = draw(st.sampled_from(["\t", ",", ", ", "::", ";", " ; ", "|", " ", "   "]))
    columns, lines = ["user", "item"], []
    kind = draw(st.sampled_from(["named", "unnamed", "none", "none"]))
    spaced = bool(between.strip(" :"))
    if kind == "named":
        more = st.lists(st.sampled_from(["time", "text"]), max_size=2, unique=True)
        columns = draw(st.permutations([*columns, *(draw(more) if spaced else [])]))
        known = {c: [h for h in HEADERS.get(c, [c]) if spaced or not set(h) & set(' :"')] for c in columns}
        lines.append(between.join(draw(st.sampled_from(known[c])) for c in columns))
    elif kind == "unnamed":
        lines.append(between.join(["customer", "product"]))
    elif spaced:
        columns += draw(st.lists(st.sampled_from(["time", "text"]), max_size=2))
    quotes = spaced and draw(st.booleans())
    for user, item in rows:
        fields = {"user": str(user), "item": str(item), "time": "12:30", "text": f'"a{between}""b"""'}
        if draw(st.integers(0, 3)) == 0:
            fields["user"] += ".0"
        if quotes:
            fields["item"] = f'"{item}"'
        lines.append(between.join(fields[c] for c in columns) + draw(st.sampled_from(["", "", " "])))
        if draw(st.integers(0, 9)) == 0:
            lines.append(draw(st.sampled_from(["", "  "])))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = end.join(lines) + draw(st.sampled_from([end, end + end, end + " " + end, ""]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    content = PACKED[draw(st.sampled_from(sorted(PACKED)))](text.encode(encoding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cce_core.datasets.columns._BLOCK", draw(st.sampled_from([1, 7, 64, 1 << 22])))
        pairs = read(folder, content, name="mine")
    compact, users, items = twin.compacted(rows)
    assert list(zip(pairs.users.tolist(), pairs.items.tolist())) == compact
    assert (pairs.user_ids.tolist(), pairs.item_ids.tolist()) == (users, items)
    assert (pairs.name, len(pairs), pairs.n_users, pairs.n_items) == ("mine", len(rows), len(users), len(items))
    assert {a.dtype for a in (pairs.users, pairs.items, pairs.user_ids, pairs.item_ids)} == {np.dtype(np.int64)}


@pytest.mark.parametrize("between", ["\t", "::", ",", ";", "|", " ", "   "])
def test_every_separator(tmp_path, between):
    lines = [(1, 2), (-3, 4), (5, -6)]
    text = "".join(f"{user}{between}{item}\n" for user, item in lines)
    assert raw(read(tmp_path, text)) == lines
    assert raw(read(tmp_path, f"who{between}what\n{text}")) == lines


@pytest.mark.parametrize("header", ["movie,customer", "customer,user", "item,user", "movieId,who"])
def test_one_name_of_two_says_the_order(tmp_path, header):
    assert raw(read(tmp_path, header + "\n1,2\n3,4\n")) == [(2, 1), (4, 3)]


def test_a_file_of_ratings_is_one_of_interactions(tmp_path):
    text = "userId,movieId,rating,timestamp\n7,30,5.0,100\n7,10,3.0,101\n"
    assert raw(read(tmp_path, text)) == [(7, 30), (7, 10)]
    assert len(read_ratings(tmp_path / "file", ",")) == 1


BAD = {
    "a word": ("x\t2\n", "the user"),
    "a broken id": ("1\t2.5\n", "the item"),
    "65 bits": (f"1\t{2**63}\n", "the item"),
    "65 bits below": (f"{-(2**63) - 1}\t1\n", "the user"),
    "twenty digits": ("10000000000000000000\t1\n", "the user"),
    "one field": ("1\n", "the user"),
    "three fields": ("1\t2\t3\n", "the item"),
    "no item": ("1\t\n", "the item"),
    "another separator": ("1,2\n", "the user"),
    "a sign alone": ("-\t2\n", "the user"),
    "two signs": ("1\t--2\n", "the item"),
    "a blank within": ("1\t2 3\n", "the item"),
}


@pytest.mark.parametrize("good", [1, 5])
@pytest.mark.parametrize(("bad", "field"), BAD.values(), ids=BAD.keys())
def test_a_malformed_line_is_named(tmp_path, bad, field, good):
    text = "1\t2\n" * good + bad + "1\t2\n"
    for block in (5, 1 << 22):  # the line's number does not depend on the blocks
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cce_core.datasets.columns._BLOCK", block)
            with pytest.raises(
                ValueError, match=rf"file, line {good + 1}: {field} is wrong; expected '.*', both whole .* got"
            ):
                read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no interaction; expected lines of 'user"),
        ("user,item\n", "holds no interaction; expected lines of 'user,item'"),
        ("word\n", "line 1: the user is wrong"),
        ("user,place,time\n1,2,3\n", "line 1: the header names no item; expected 'user,item' or the like"),
        ("user,item,movie\n1,2,3\n", "line 1: the header names more than one item"),
        ('user,text,item,more\n1,a,2,b\n1,"a,2,b"\n', "line 3: the item is wrong"),
        ("user,item\n1,2\n1", "line 3: the file ends within it, so it is torn"),
        ("user,item\n1,2\n1,", "line 3: the file ends within it, so it is torn"),
        ("1" * 200_000, "line 1: the line is far too long"),
        (gzip.compress(b"1,2\n" * 99, mtime=0)[:-9], "can't be unpacked"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "file") in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


# The task


@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 9)), min_size=10, max_size=80),
    st.integers(0, 2**64 - 1),
)
def test_the_task_equals_the_twin(rows, seed):
    pairs = pairs_of(rows)
    split = split_with_negatives(pairs, seed)
    compact, users, items = twin.compacted(rows)
    train, valid, again = twin.with_negatives(compact, len(items), seed)
    assert as_rows(split.train) == train
    assert as_rows(split.valid) == valid
    assert (split.name, split.n_users, split.n_items, split.best_auc) == ("tiny", len(users), len(items), None)
    met = set(compact)
    for part, twice in zip((train, valid), again):
        positives, negatives = part[: len(part) // 2], part[len(part) // 2 :]
        assert [row[0] for row in positives] == [row[0] for row in negatives]
        assert all(k or row[:2] not in met for row, k in zip(negatives, twice))
    assert sorted(row[:2] for row in [*train, *valid] if row[2]) == sorted(compact)
    assert as_rows(split_with_negatives(pairs, seed).train) == train


def test_half_of_the_negatives_are_popular_items():
    n = 20_000
    users, items = np.arange(n), np.where(np.arange(n) % 4 > 0, 0, np.arange(n) % 997 + 1)  # three of four met item 0
    split = split_with_negatives(Pairs("mine", users, items, np.unique(users), np.unique(items)), seed=1)
    first, other = split_with_negatives(Pairs("mine", users, items, np.unique(users), np.unique(items)), seed=2), 0
    assert as_rows(first.valid) != as_rows(split.valid)
    for part in (split.train, split.valid):
        m = len(part) // 2
        free = part.items[:m] != other  # users to whom item 0 may be given
        share = (part.items[m:][free] == other).mean()
        assert abs(share - 0.5 * 0.75) < 4 * (0.25 / free.sum()) ** 0.5
        assert not (part.items[m:][~free] == other).mean() > 0.01  # drawn again, from 998 items


def test_a_seed_is_an_order_of_its_own():
    rows = [(k % 5, k % 7) for k in range(100)]
    drawn = [as_rows(split_with_negatives(pairs_of(rows), seed).train) for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_memory_is_a_few_times_the_pairs():
    n = 200_000 if COMPILED else 20_000
    users, items = np.arange(n) % 1000, np.arange(n) // 100
    pairs = Pairs("mine", users, items, np.unique(users), np.unique(items))
    tracemalloc.start()
    try:
        split = split_with_negatives(pairs, seed=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(split.train) + len(split.valid) == 2 * n
    assert peak < 100 * n  # of which the result is 40, and the pairs themselves would be 16


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match="tiny holds 9 pairs, expected at least 10"):
        split_with_negatives(pairs_of([(1, 2)] * 9))
    with pytest.raises(TypeError, match="pairs must be what read_interactions gives"):
        split_with_negatives([(1, 2)] * 10)
