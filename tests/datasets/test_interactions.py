"""Reading ratings, the split by time, and finding data sets by name."""

from __future__ import annotations

import itertools
import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import datasets as twin

from cce_core._jit import COMPILED
from cce_core.datasets import (
    Interactions,
    Ratings,
    catalog,
    fetch,
    find,
    load,
    names,
    read_ratings,
    split_last,
)

HEADER = "userId,movieId,rating,timestamp\n"
SEPARATORS = ("\t", "::", ",")

needs_movielens = pytest.mark.skipif(
    not os.path.isfile(os.path.join(os.environ.get("CCE_DATA") or "nowhere", "ml-100k", "u.data")),
    reason="needs MovieLens 100K: set CCE_DATA to a folder that holds ml-100k/u.data",
)


def written(rows, separator="\t", end="\n", whole=True):
    """Text of a rating file; whole stars without a point in the formats that have only those."""
    lines = []
    for user, item, stars, time in rows:
        shown = str(int(stars)) if whole and stars == int(stars) else str(float(stars))
        lines.append(separator.join((str(user), str(item), shown, str(time))) + end)
    return (HEADER.replace("\n", end) if separator == "," else "") + "".join(lines)


def read_text(folder, text, separator="\t", **more):
    path = folder / "ratings"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_ratings(path, separator, **more)


def as_rows(rows):
    return list(zip(rows.users.tolist(), rows.items.tolist(), rows.labels.tolist()))


def ratings_of(users, times):
    """Ratings with as many users as there are, the item telling the row's place."""
    n = len(users)
    known = np.arange(max(users, default=-1) + 1)
    return Ratings(
        "tiny",
        np.array(users, np.int64),
        np.arange(n),
        np.ones(n, np.float32),
        np.array(times, np.int64),
        known,
        np.arange(n),
        0,
    )


# Few users, items and times, so that ties and repeats are common; and some far too large for a table of raw ids.
small = st.integers(0, 6)
raw_ids = small | st.integers(0, 10**18 - 1)
lines = st.tuples(raw_ids, raw_ids, st.integers(1, 10).map(lambda h: h / 2), small | st.integers(0, 10**18 - 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ratings")


# Reading


@given(
    rows=st.lists(lines, min_size=1, max_size=40),
    separator=st.sampled_from(SEPARATORS),
    end=st.sampled_from(["\n", "\r\n"]),
    whole=st.booleans(),
    block=st.sampled_from([1, 7, 64, 1 << 22]),
    n_last=st.integers(0, 4),
)
def test_reading_and_splitting_equal_the_twin(folder, rows, separator, end, whole, block, n_last):
    text = written(rows, separator, end, whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cce_core.datasets.columns._BLOCK", block)
        ratings = read_text(folder, text, separator, name="mine", n_lines=len(rows))
    assert twin.parse(text, separator) == [(u, i, s, t) for u, i, s, t in rows]
    compact, users, items = twin.binary(rows)
    assert (
        list(zip(*(a.tolist() for a in (ratings.users, ratings.items, ratings.labels, ratings.timestamps)))) == compact
    )
    assert ratings.user_ids.tolist() == users
    assert ratings.item_ids.tolist() == items
    assert (ratings.n_users, ratings.n_items, len(ratings)) == (len(users), len(items), len(compact))
    assert ratings.n_neutral == len(rows) - len(compact)
    types = [a.dtype for a in (ratings.users, ratings.items, ratings.labels, ratings.timestamps)]
    assert types == [np.int64, np.int64, np.float32, np.int64]

    split = split_last(ratings, n_last)
    train, valid = twin.split(compact, n_last)
    assert as_rows(split.train) == train
    assert as_rows(split.valid) == valid
    assert (split.n_users, split.n_items, split.name) == (len(users), len(items), "mine")
    assert split.best_auc is None
    assert split.best_logloss is None


@pytest.mark.parametrize("stars", ["0.5", "1", "1.0", "1.5", "2", "2.5", "3.5", "4", "4.5", "5", "5.0"])
def test_every_rating_has_its_label(tmp_path, stars):
    ratings = read_text(tmp_path, f"1\t1\t{stars}\t1\n")
    assert ratings.labels.tolist() == [float(float(stars) > 3)]


def test_threes_are_dropped_however_written(tmp_path):
    ratings = read_text(tmp_path, "1\t1\t3\t1\n2\t2\t3.0\t1\n")
    assert (len(ratings), ratings.n_neutral, ratings.n_users, ratings.n_items) == (0, 2, 0, 0)
    split = split_last(ratings)
    assert (len(split.train), len(split.valid)) == (0, 0)


def test_a_large_file_keeps_its_rows_in_place(tmp_path):
    # More rows than a guess of the room from the first block holds: lines grow shorter further down.
    n = 3000 if COMPILED else 300
    rows = [(10**17 + k, 10**17, 5, 10**17) for k in range(n)] + [(k, k % 7, 1, k) for k in range(9 * n)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cce_core.datasets.columns._BLOCK", 1 << 12)
        ratings = read_text(tmp_path, written(rows))
    assert ratings.timestamps.tolist() == [row[3] for row in rows]
    assert ratings.user_ids[ratings.users].tolist() == [row[0] for row in rows]


BAD = {
    "a word": ("1\tx\t5\t7\n", "the item"),
    "negative": ("-1\t1\t5\t7\n", "the user"),
    "too many digits": (f"1\t{10**18}\t5\t7\n", "the item"),
    "no stars": ("1\t1\t0\t7\n", "the rating"),
    "no stars in halves": ("1\t1\t0.0\t7\n", "the rating"),
    "six stars": ("1\t1\t6\t7\n", "the rating"),
    "a hundredth": ("1\t1\t4.01\t7\n", "the rating"),
    "a broken id": ("1\t1.5\t4\t7\n", "the item"),
    "a power for an id": ("1\t1e3\t4\t7\n", "the item"),
    "a blank within": ("1\t1\t4 5\t7\n", "the rating"),
    "a torn quote": ('1\t1\t"5\t7\n', "the user"),
    "above five": ("1\t1\t5.5\t7\n", "the rating"),
    "a quarter": ("1\t1\t4.25\t7\n", "the rating"),
    "a third": ("1\t1\t4.3\t7\n", "the rating"),
    "two digits": ("1\t1\t10\t7\n", "the rating"),
    "a negative rating": ("1\t1\t-4\t7\n", "the rating"),
    "no rating": ("1\t1\t\t7\n", "the rating"),
    "no time": ("1\t1\t5\n", "the rating"),
    "an empty time": ("1\t1\t5\t\n", "the time"),
    "a fifth column": ("1\t1\t5\t7\t8\n", "the time"),
    "another separator": ("1,1,5,7\n", "the user"),
    "zeros": ("\0\0\0\0\n", "the user"),
    "bytes above 127": (b"\xff\xb1\t\xb1\n", "the user"),
}


@pytest.mark.parametrize("good", [0, 1, 5])
@pytest.mark.parametrize(("bad", "field"), BAD.values(), ids=BAD.keys())
def test_a_malformed_line_is_named(tmp_path, bad, field, good):
    bad = bad if isinstance(bad, bytes) else bad.encode()
    text = b"1\t2\t5\t7\n" * good + bad + b"1\t2\t5\t7\n" * 3
    with pytest.raises(
        ValueError, match=rf"ratings, line {good + 1}: {field} is wrong; .*whole numbers.* got '"
    ) as caught:
        read_text(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:  # the line's number does not depend on the blocks
        patch.setattr("cce_core.datasets.columns._BLOCK", 5)
        with pytest.raises(ValueError, match=f"line {good + 1}: {field}"):
            read_text(tmp_path, text)


def test_lines_of_a_file_with_a_header_count_it(tmp_path):
    with pytest.raises(ValueError, match="line 3: the rating"):
        read_text(tmp_path, HEADER + "1,1,5,7\n1,1,9,7\n", ",")


@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_file_torn_anywhere_within_a_line_is_refused(tmp_path, separator):
    text = written([(1, 23, 4, 567), (2, 34, 2.5, 678)], separator)
    ends = [k + 1 for k, c in enumerate(text) if c == "\n"]
    for stop in range(len(text) + 1):
        if stop in ends[1:] or stop + 1 in ends[1:] or (separator != "," and stop in (ends[0], ends[0] - 1)):
            ratings = read_text(tmp_path, text[:stop], separator)  # whole lines, the last one with its end or without
            assert ratings.timestamps.tolist() == [567, 678][: len(ratings)]
            continue
        line = 1 + text[:stop].count("\n")
        first = 1 + (separator == ",")
        if line == first and text[:stop].endswith(("5", "56")) and text[:stop].count(separator) >= 3:
            continue  # the only time of a file may be any
        with pytest.raises(ValueError, match=rf"ratings, line {line}: the file ends within it|holds no rating|header"):
            read_text(tmp_path, text[:stop], separator)


def test_a_file_torn_between_lines_is_refused_where_its_length_is_known(tmp_path):
    text = written([(1, 2, 4, 5)] * 3)
    assert len(read_text(tmp_path, text, n_lines=3)) == 3
    with pytest.raises(ValueError, match=r"ratings holds 3 ratings, expected 1,000 for mine: it is torn, or another"):
        read_text(tmp_path, text, n_lines=1000, name="mine")


@pytest.mark.parametrize("text", ["", HEADER[:-1], HEADER])
def test_a_file_without_ratings_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"holds no rating"):
        read_text(tmp_path, text, ",")


@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_file_without_line_ends_is_not_read_to_its_end(tmp_path, separator):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cce_core.datasets.columns._BLOCK", 1 << 10)
        with pytest.raises(ValueError, match="line 1: the line is far too long") as caught:
            read_text(tmp_path, b"1" * 100_000, separator)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_bad_arguments_of_reading(tmp_path):
    with pytest.raises(ValueError, match="separator must be one of"):
        read_text(tmp_path, "1;2;3;4\n", ";")
    with pytest.raises(FileNotFoundError):
        read_ratings(tmp_path / "none")
    with pytest.raises(OSError, match="directory"):
        read_ratings(tmp_path)


# Splitting


def test_splits_of_all_tiny_sets_equal_the_twin():
    most = 5 if COMPILED else 4
    for n in range(most + 1):
        for users in itertools.product(range(2), repeat=n):
            if max(users, default=0) != len(set(users)) - 1 and users:
                continue  # ids are compact
            for times in itertools.product(range(3), repeat=n):
                compact = [(u, place, 1.0, t) for place, (u, t) in enumerate(zip(users, times))]
                for n_last in range(4):
                    split = split_last(ratings_of(users, times), n_last)
                    train, valid = twin.split(compact, n_last)
                    assert as_rows(split.train) == train
                    assert as_rows(split.valid) == valid


@given(st.lists(st.tuples(st.integers(0, 4), small), max_size=30), st.integers(0, 5))
def test_what_is_held_out_is_last_and_never_all(pairs, n_last):
    known = sorted({u for u, _ in pairs})
    users, times = [known.index(u) for u, _ in pairs], [t for _, t in pairs]
    split = split_last(ratings_of(users, times), n_last)
    train, valid = split.train.items.tolist(), split.valid.items.tolist()  # the rows' places in the file
    assert sorted(train + valid) == list(range(len(pairs)))
    assert train == sorted(train)
    assert valid == sorted(valid)
    for user in range(len(known)):
        mine = [(times[p], p) for p in train if users[p] == user]
        held = [(times[p], p) for p in valid if users[p] == user]
        assert len(held) == min(n_last, len(mine) + len(held) - 1)
        assert not held or max(mine) < min(held)


def test_bad_arguments_of_splitting():
    with pytest.raises(ValueError, match="n_last must be at least 0, got -1"):
        split_last(ratings_of([0, 0], [0, 0]), -1)


# Rows


@given(st.integers(0, 20), st.integers(1, 25), st.none() | st.integers(0, 2**64 - 1))
def test_batches_hold_every_row_once(n, size, seed):
    rows = Interactions(np.arange(n), np.arange(n) + 100, np.arange(n, dtype=np.float32))
    batches = list(rows.batches(size, seed=seed))
    assert [len(b) for b in batches] == [min(size, n - k) for k in range(0, n, size)]
    seen = [row for batch in batches for row in as_rows(batch)]
    assert sorted(seen) == as_rows(rows)
    assert seed is not None or seen == as_rows(rows)
    again = [row for batch in rows.batches(size, seed=seed) for row in as_rows(batch)]
    assert again == seen


def test_seeds_shuffle_batches_each_in_their_way():
    rows = Interactions(np.arange(100), np.arange(100), np.zeros(100, np.float32))
    first, second, third = (next(rows.batches(100, seed=seed)).users.tolist() for seed in (1, 2, 1))
    assert first != second
    assert first == third
    assert first != list(range(100))


def test_bad_rows():
    with pytest.raises(ValueError, match=r"one length, got shapes \(\(2,\), \(3,\), \(2,\)\)"):
        Interactions(np.arange(2), np.arange(3), np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="flat"):
        Interactions(np.zeros((2, 2), np.int64), np.zeros((2, 2), np.int64), np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match="size must be at least 1"):
        next(Interactions(np.arange(2), np.arange(2), np.zeros(2, np.float32)).batches(0))


# Finding and loading


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Three empty folders: the argument's, the environment's, the cache's; and data sets of three rows."""
    given_, named, cache = (tmp_path / part for part in ("given", "named", "cache"))
    for folder in (given_, named, cache):
        folder.mkdir()
    monkeypatch.setenv("CCE_DATA", str(named))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    tiny = {name: replace(source, n_lines=source.n_lines and 3) for name, source in fetch.SOURCES.items()}
    monkeypatch.setattr(fetch, "SOURCES", tiny)
    monkeypatch.setattr(catalog, "SOURCES", tiny)
    return given_, named, cache / "cce_core" / "data"


LAYOUTS = {
    "ml-100k": ["ml-100k/u.data", "u.data", "ml-100k.zip"],
    "ml-1m": ["ml-1m/ratings.dat", "ratings.dat", "ml-1m.zip"],
    "ml-10m": ["ml-10m/ratings.dat", "ml-10M100K/ratings.dat", "ratings.dat", "ml-10m.zip"],
    "ml-20m": ["ml-20m/ratings.csv", "ratings.csv", "ml-20m.zip"],
    "ml-25m": ["ml-25m/ratings.csv", "ratings.csv", "ml-25m.zip"],
    "ml-32m": ["ml-32m/ratings.csv", "ratings.csv", "ml-32m.zip"],
    "ml-latest": ["ml-latest/ratings.csv", "ml-latest.zip"],  # of a size that nobody knows: it could be any set's file
    "ml-latest-small": ["ml-latest-small/ratings.csv", "ml-latest-small.zip"],
}


@pytest.mark.parametrize("name", list(fetch.SOURCES))
def test_files_are_found_in_order_of_the_places(places, name):
    in_order = [place / part for place in places for part in LAYOUTS[name]]
    for last in range(len(in_order), 0, -1):  # put one in front of what is already there
        in_order[last - 1].parent.mkdir(parents=True, exist_ok=True)
        in_order[last - 1].write_text("")
        assert find(name, places[0]) == in_order[last - 1]
    assert find(name) == in_order[len(LAYOUTS[name])]


@pytest.mark.parametrize("name", list(fetch.SOURCES))
def test_every_set_loads_from_its_archive(places, name):
    source = fetch.SOURCES[name]
    with zipfile.ZipFile(places[1] / f"{name}.zip", "w") as archive:
        for member in ("README.txt", "movies.csv", "u1.base", source.file):
            archive.writestr(
                f"{source.folder or name}/{member}",
                written([(5, 1, 4.5, 30), (5, 2, 1, 10), (5, 3, 5, 20)], source.separator),
            )
    split = load(name)
    assert as_rows(split.train) == [(0, 1, 0.0)]
    assert as_rows(split.valid) == [(0, 0, 1.0), (0, 2, 1.0)]


@pytest.mark.parametrize("name", list(fetch.SOURCES))
def test_every_set_loads_from_its_own_file(places, name):
    source = fetch.SOURCES[name]
    path = places[1] / name / source.file
    path.parent.mkdir()
    path.write_text(written([(5, 1, 4, 30), (5, 2, 1, 10), (5, 3, 5, 20)], source.separator))
    split = load(name)
    assert as_rows(split.train) == [(0, 1, 0.0)]
    assert as_rows(split.valid) == [(0, 0, 1.0), (0, 2, 1.0)]
    assert split.name == name
    path.write_text(written([(5, 1, 4, 30), (5, 2, 1, 10)], source.separator))
    if name.startswith("ml-latest"):
        assert len(load(name).train) + len(load(name).valid) == 2
        return
    with pytest.raises(ValueError, match=f"{source.file} holds 2 ratings, expected 3 for {name}"):
        load(name)


def test_what_is_nowhere_says_where_it_was_looked_for(places):
    with pytest.raises(FileNotFoundError) as caught:
        load("ml-1m", places[0])
    text = str(caught.value)
    for place in places:
        assert str(place / "ml-1m" / "ratings.dat") in text
        assert str(place / "ratings.dat") in text
    assert "download=True" in text
    assert "https://files.grouplens.org/datasets/movielens/ml-1m.zip" in text
    assert "CCE_DATA" in text


def test_the_cache_is_in_the_home_folder(places, monkeypatch, tmp_path):
    monkeypatch.delenv("CCE_DATA")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    path = tmp_path / ".cache" / "cce_core" / "data" / "ml-100k" / "u.data"
    path.parent.mkdir(parents=True)
    path.write_text("")
    assert find("ml-100k") == path
    assert find("ml-100k", "~/.cache/cce_core/data") == path


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"must be one of ml-100k, ml-1m, .*synthetic-ml-100k.*; got 'movielens'"):
        load("movielens")
    with pytest.raises(
        ValueError, match="must be one of ml-100k, ml-1m, .*, gowalla, book-crossing; got 'synthetic-ml-100k'"
    ):
        find("synthetic-ml-100k")
    assert len(set(names())) == len(names()) == 18


@needs_movielens
def test_movielens_100k_has_the_numbers_it_is_known_for():
    split = load("ml-100k", os.environ["CCE_DATA"])
    assert (len(split.train), len(split.valid), split.n_users, split.n_items) == (70_969, 1_886, 943, 1_642)
    assert np.bincount(split.valid.users).tolist() == [2] * 943
    users = np.concatenate([split.train.users, split.valid.users])
    items = np.concatenate([split.train.items, split.valid.items])
    assert np.unique(users).size == 943
    assert np.unique(items).size == 1_642
    assert np.unique(users * 1_642 + items).size == 72_855
    assert int(split.train.labels.sum() + split.valid.labels.sum()) == 34_174 + 21_201


@needs_movielens
def test_the_start_of_movielens_100k_equals_the_twin(tmp_path):
    with open(os.path.join(os.environ["CCE_DATA"], "ml-100k", "u.data")) as file:
        text = "".join(itertools.islice(file, 3000))
    train, valid = twin.split(twin.binary(twin.parse(text, "\t"))[0])
    split = split_last(read_text(tmp_path, text))
    assert as_rows(split.train) == train
    assert as_rows(split.valid) == valid
