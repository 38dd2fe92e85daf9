"""Files as people have them: saved by editors, spreadsheets and pandas, packed, with headers of any kind, on any system."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import threading
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cce_core.datasets import CriteoFile, criteo, read_ratings

ROWS = [(7, 30, 5.0, 978300760), (7, 10, 3.0, 978302109), (9, 20, 1.0, 978301968), (2, 30, 4.5, 1000000007)]
NAMES = {
    "user": ["userId", "user_id", "USER", "User ID", "uid", "user_id:token", '"userId"'],
    "item": ["movieId", "item_id", "Item", "MOVIE-ID", "item_id:token", '"movieId"'],
    "rating": ["rating", "Rating", "stars", "rating:float", '"rating"'],
    "time": ["timestamp", "Timestamp", "time", "unix_time", "timestamp:float", '"timestamp"'],
}
WRITTEN = {
    0.5: ["0.5", ".5", "5e-1"],
    1.0: ["1", "1.0", "1.00", "1."],
    3.0: ["3", "3.0", "3.00"],
    4.5: ["4.5", "4.50"],
    5.0: ["5", "5.0", "5.000", "5e0"],
}
JUNK = {"__MACOSX/._any.txt": b"x", ".DS_Store": b"x"}
OTHERS = {"ml/README": b"x", "ml/u1.base": b"x", "ml/movies.csv": b"y"}
ratings_rows = st.tuples(
    st.integers(0, 10**6), st.integers(0, 99), st.sampled_from(sorted(WRITTEN)), st.integers(10**8, 10**10)
)


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


PACKED = {
    "plain": lambda content: content,
    "gzip": gzip.compress,
    "two gzips": lambda content: gzip.compress(content[:9]) + gzip.compress(content[9:]),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zip": lambda content: zipped({"ratings.csv": content}),
    "zip with a folder": lambda content: zipped({"ml/": b"", "ml/any.txt": content, **JUNK}),
    "MovieLens' zip": lambda content: zipped({**OTHERS, "ml/u.data": content}),
}


def read(folder, content, separator="\t", **more):
    path = folder / "file"
    path.write_bytes(content)
    return read_ratings(path, separator, **more)


def rows_of(ratings):
    raw = ratings.user_ids[ratings.users], ratings.item_ids[ratings.items], ratings.labels, ratings.timestamps
    return list(zip(*(column.tolist() for column in raw)))


def binary(rows):
    return [(u, i, float(s > 3), t) for u, i, s, t in rows if s != 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@given(data=st.data())
def test_every_way_of_writing_is_read(folder, data):
    """All of it at once: separators, headers, order, further columns, quotes, line ends, blank lines, marks and archives."""
    draw = data.draw
    rows = draw(st.lists(ratings_rows, min_size=1, max_size=12))
    rows = [*rows, (1, 2, 5.0, 10**10)]  # the last time is none that looks torn
    separator = draw(st.sampled_from(["\t", "::", ","]))
    between = draw(
        st.sampled_from({"\t": ["\t", " ", "  ", "\t\t", " \t"], "::": ["::", " :: "], ",": [",", ", "]}[separator])
    )
    columns, header = ["user", "item", "rating", "time"], draw(st.booleans())
    if header:
        columns = draw(st.permutations(columns))
        if between in ("\t", ","):
            columns = [*["index"] * draw(st.integers(0, 1)), *columns, *["title"] * draw(st.integers(0, 1))]
    quoted = separator == "," and draw(st.booleans())
    lines = []
    if header:
        spaced = between in ("\t", ",")
        names = [
            draw(st.sampled_from([n for n in NAMES.get(c, [c]) if spaced or not set(n) & set(' :"')])) for c in columns
        ]
        lines.append(between.join(names))
    for n, (user, item, stars, time) in enumerate(rows):
        fields = {
            "user": str(user),
            "item": str(item),
            "rating": draw(st.sampled_from(WRITTEN[stars])),
            "time": str(time),
        }
        if draw(st.booleans()):
            fields["time"] += ".0"
        values = [{**fields, "index": str(n), "title": 'Blue, or "Red"'}[c] for c in columns]
        if quoted or (separator == "," and "title" in columns):
            values = ['"' + value.replace('"', '""') + '"' for value in values]
        lines.append(between.join(values) + draw(st.sampled_from(["", "", " "])))
        if draw(st.integers(0, 9)) == 0:
            lines.append(draw(st.sampled_from(["", "  "])))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    may_lack_end = columns[-1] in ("time", "title")
    text = end.join(lines) + draw(st.sampled_from([end, end + end, end + " " + end, *[""] * may_lack_end]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    content = PACKED[draw(st.sampled_from(sorted(PACKED)))](text.encode(encoding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cce_core.datasets.columns._BLOCK", draw(st.sampled_from([1, 7, 64, 1 << 22])))
        got = read(folder, content, separator, n_lines=len(rows))
    assert rows_of(got) == binary(rows)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("odd", ["1\tx\t5\t7", "1 2 5", "1\t2\t9\t7", '1\t2\t"5\t7', "user\titem\trating\ttime"])
def test_errors_name_the_line_whatever_stands_before(tmp_path, end, odd):
    good = ["1\t2\t5\t70", "1 2 5.00 70", '1\t"2"\t5\t70', "", "1\t2\t3\t70 ", "1\t2\t5e0\t70"]
    for k in range(len(good) + 1):
        content = end.join([*good[:k], odd, *good[k:]]).encode() + end.encode()
        if odd.startswith("user") and k == 0:
            assert len(read(tmp_path, content)) == 4
            continue
        with pytest.raises(ValueError, match=rf"file, line {k + 1}: .* got ['\"]{re.escape(repr(odd)[1:6])}"):
            read(tmp_path, gzip.compress(content))


HEADERS = {
    "userId,movieId,rating": "no time",
    "userId,movieId,timestamp,userId": "more than one user",
    "serId,movieId,rating,timestamp": "no user",
    "userId,rating,timestamp,label": "no item",
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_lacks_a_column_says_which(tmp_path, header):
    with pytest.raises(
        ValueError, match=f"line 1: the header names {HEADERS[header]}; expected 'userId,movieId,rating,time"
    ):
        read(tmp_path, f"{header}\n1,2,3.5,4\n".encode(), ",")


@pytest.mark.parametrize("last", ["user", "item", "rating"])
def test_a_last_number_that_may_be_torn_is_refused(tmp_path, last):
    columns = [c for c in ("user", "item", "rating", "time") if c != last] + [last]
    text = ",".join(columns) + "\n1,2,4,5\n" * 2
    assert len(read(tmp_path, text.encode(), ",")) == 2
    with pytest.raises(
        ValueError, match=rf"line 4: the file ends within it.*the {last} may be; if it is whole, give it a line"
    ):
        read(tmp_path, text[:-1].encode(), ",")


def test_every_tear_of_a_last_time_is_refused(tmp_path):
    text = "".join(f"{u}\t{i}\t{s:g}\t{t}\n" for u, i, s, t in ROWS)
    assert rows_of(read(tmp_path, text[:-1].encode())) == binary(ROWS)
    for gone in range(2, 11):
        with pytest.raises(ValueError, match="line 4: the file ends within it"):
            read(tmp_path, text[:-gone].encode())


ARCHIVES = {
    "torn gzip": gzip.compress(b"1\t2\t5\t7\n" * 1000)[:-9],
    "damaged gzip": gzip.compress(b"1\t2\t5\t7\n" * 1000)[:-8] + bytes(8),
    "head of a gzip": b"\x1f\x8b",
    "torn bzip2": bz2.compress(b"1\t2\t5\t7\n" * 1000)[:-9],
    "damaged bzip2": b"BZh9" + b"x" * 40,
    "torn xz": lzma.compress(b"1\t2\t5\t7\n" * 1000)[:-9],
    "torn zip": zipped({"a": b"1\t2\t5\t7\n" * 1000})[:-30],
    "head of a zip": b"PK\x03\x04\x14\x00\n",
    "torn UTF-16": "1\t2\t5\t7\n".encode("utf-16")[:-1],
}


@pytest.mark.parametrize("content", ARCHIVES.values(), ids=ARCHIVES.keys())
def test_what_cannot_be_unpacked_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="file can't be unpacked .*: it is damaged or torn"):
        read(tmp_path, content)


@pytest.mark.parametrize("members", [{}, {"a": b"1", "b": b"1"}, {"x/u.data": b"", "ratings.csv": b""}])
def test_an_archive_that_does_not_say_which_file_is_refused(tmp_path, members):
    with pytest.raises(
        ValueError, match=rf"file is an archive of {len(members)} files .*u.data or ratings.dat or ratings.csv"
    ):
        read(tmp_path, zipped(members))


# Criteo


LINE = "\t".join(["1", *map(str, range(13)), *(f"{k:08x}" for k in range(26))])


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", ["{end}", "", "{end}{end}", "{end} {end}{end}"])
def test_criteo_files_as_people_have_them(tmp_path, packed, end, last):
    text = end.join([LINE, "0" + LINE[1:], LINE]) + last.format(end=end)
    path = tmp_path / "train.txt"
    path.write_bytes(PACKED[packed](("\ufeff" + text).encode()).replace(b"u.data", b"train.txt"[:6]))
    if packed == "MovieLens' zip":
        path.write_bytes(zipped({"dac/readme.txt": b"x", "dac/train.txt": text, "dac/test.txt": b"x"}))
    for block in (64, 1 << 22):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(criteo, "_BLOCK", block)
            file = CriteoFile(path)
            assert file.count() == 3
            rows = [row for batch in file.batches(2) for row in batch.labels.tolist()]
            (last_row,) = file.batches(5, start=2)
    assert rows == [1, 0, 1]
    assert len(last_row) == 1


def test_criteo_files_torn_anywhere_are_refused(tmp_path):
    path = tmp_path / "train.txt"
    for stop in range(1, len(LINE)):
        path.write_text(LINE + "\n" + LINE[:stop])
        for use in (CriteoFile(path).count, lambda: list(CriteoFile(path).batches(8))):
            with pytest.raises(ValueError, match="line 2: the file ends within it, so it is torn"):
                use()
    path.write_text(LINE + "\n\n" + LINE + "\n")
    with pytest.raises(ValueError, match="line 2, column 1"):
        list(CriteoFile(path).batches(8))


def test_a_pipe_is_read(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(gzip.compress(b"1\t2\t5\t7\n" * 3)))
    writer.start()
    assert len(read_ratings(path)) == 3
    writer.join()
