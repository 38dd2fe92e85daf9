"""Vectors of other programs: what was written is read back, and files that are not whole are refused where they are wrong."""

from __future__ import annotations

import gzip
import re
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import vectors as twin

from cce_core.datasets import read_vectors

WORD = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=6)
FLOAT = st.floats(-(2.0**100), 2.0**100, width=32)


@st.composite
def named(draw):
    words = draw(st.lists(WORD, min_size=1, max_size=8, unique=True))
    dim = draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(FLOAT, min_size=dim, max_size=dim), min_size=len(words), max_size=len(words)))
    return words, np.array(rows, np.float32)


def read(folder, data, name="v.txt", **options):
    path = folder / name
    path.write_bytes(data)
    return read_vectors(path, **options)


WRITERS = {
    "word2vec's text": twin.word2vec_text,
    "its binary": twin.word2vec_binary,
    "without line ends": lambda words, x: twin.word2vec_binary(words, x, b""),
    "glove": twin.glove,
}


@pytest.mark.parametrize("writer", WRITERS)
@given(named=named(), packed=st.booleans())
@settings(max_examples=40)
def test_what_is_written_is_read_back(tmp_path_factory, writer, named, packed):
    words, x = named
    data = WRITERS[writer](words, x)
    kind = {"kind": "binary"} if "binary" in writer or "ends" in writer else {}
    if writer == "glove" and re.fullmatch(rb"[ \t]*\d+[ \t]+\d+[ \t]*", data.split(b"\n")[0]):
        return  # which is a header
    found = read(tmp_path_factory.mktemp("v"), gzip.compress(data) if packed else data, **kind)
    assert found.words == words
    np.testing.assert_array_equal(found.values, x)


@given(named=named(), at=st.integers(0, 10_000), byte=st.integers(0, 255), how=st.sampled_from(["cut", "set"]))
@settings(max_examples=150)
@pytest.mark.parametrize("writer", ["word2vec's text", "its binary", "glove"])
def test_damaged_files_are_refused_in_a_line_or_give_finite_rows(tmp_path_factory, writer, named, at, byte, how):
    words, x = named
    data = WRITERS[writer](words, x)
    at %= len(data)
    data = data[:at] if how == "cut" else data[:at] + bytes([byte]) + data[at + 1 :]
    try:
        found = read(tmp_path_factory.mktemp("v"), data)
    except ValueError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert "v.txt" in refused
        return
    assert np.isfinite(found.values).all()
    assert len(set(found.words)) == len(found.words) == len(found.values)
    if how == "cut" and writer == "its binary":  # a header that is cut is another header
        assert at < data.find(b"\n") + 1 or found.words == words


def rows(n, dim=3):
    return [f"w{i}" for i in range(n)], np.arange(n * dim, dtype=np.float32).reshape(n, dim)


def packed(*vectors):
    return b"".join(w + b" " + struct.pack(f"<{len(v)}f", *v) for w, v in vectors)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; expected vectors"),
        (b"\n\n", "holds no vector"),
        (b"a 1 2\nb 1\nc 1 2\n", "line 2: expected a word and 2 numbers, as most lines before it have, got 1 numbers: 'b 1'"),
        (b"a 1 2\nb 1 2 3\nc 1 2\n", "line 2: expected a word and 2 numbers, as most lines before it have, got 3 numbers"),
        (b"a 1 2\n\nc 1 2\n", "line 2: expected a word and 2 numbers, as most lines before it have, got nothing"),
        (b"a 1 2\nb 1 x\n", "line 2: expected 2 numbers after the word, but 'x' is none"),
        (b"a 1 2\nb 1 nan\n", "line 2: number 2 of 'b' is nan"),
        (b"a 1 2\nb 1e39 1\n", "line 2: number 1 of 'b' is 1e39"),
        (b"a 1 2\nb 1 2\na 3 4\n", "line 3: the word 'a' came in line 1 before"),
        (b"a 1 2\n\xff 1 2\n", "line 2: byte 1 of the word .* is no utf-8: give the file's encoding, such as latin-1"),
        (b"3 2\na 1 2\nb 1 2\n", "line 1: the header says 3 vectors, but there are 2"),
        (b"1 2\na 1 2\nb 1 2\n", "line 1: the header says 1 vectors, but line 3 holds one more"),
        (b"2 3\na 1 2\nb 1 2\n", "line 2: expected a word and 3 numbers, as the header says, got 2 numbers"),
        (b"0 2\n", "line 1: the header says 0 vectors of 2 numbers"),
        (b"a 1 2\nb 1 2\nc 1", "line 3: expected .*so it may be torn"),
        (b"2 2\n" + packed((b"a", [1, 2]), (b"b", [3, 4]))[:-1], "vector 2 of 2: the file ends within it"),
        (b"2 2\n" + packed((b"a", [1, 2]), (b"b", [3, 4])) + b"c more", "goes on after the 2 vectors"),
        (b"2 2\n" + packed((b"a", [1, 2]), (b"b", [np.nan, 4])), "vector 2: 'b' holds NaN or infinity"),
        (b"2 2\n" + packed((b"a", [1, 2]), (b"a", [3, 4])), "vector 2: the word 'a' came in vector 1 before"),
        (b"2 2\n" + b"\0" * 9000, "no blank ends a word within 4,096 bytes"),
        (b"no numbers here at all\n", "line 1: expected 4 numbers after the word, but 'numbers' is none"),
        (b"word\n", "line 1: expected a word and its numbers"),
        (gzip.compress(twin.glove(*rows(50)), mtime=0)[:-20], "can't be unpacked"),
        (b"\x93NUMPY not", "can't be read as npy"),
        (b"PAR1 and no more", "can't be read as parquet"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(tmp_path, data, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, data)
    assert "\n" not in str(error.value)


def test_words_with_blanks_tabs_and_other_encodings(tmp_path):
    found = read(tmp_path, b". . . 1 2\nat me@x.org 3 4\nb\t5\t6\n  \xc2\xa0c  7   8 \n")
    assert found.words == [". . .", "at me@x.org", "b", "\xa0c"]
    assert found.values.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert read(tmp_path, b"\xe9t\xe9 1 2\n", encoding="latin-1").words == ["été"]
    assert read(tmp_path, b"a 1\na 2\nb 3\n", duplicates="first").values.tolist() == [[1], [3]]


def test_arrays_of_every_kind(tmp_path):
    words, x = rows(5)
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "b.npy", np.asfortranarray(x.astype(">f8")))
    np.savez(tmp_path / "c.npz", x=x.astype(np.float16), words=words)
    np.savez_compressed(tmp_path / "two.npz", x=x, y=2 * x)
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"emb": x, "bias": x[0]}, tmp_path / "d.safetensors")
    pl = pytest.importorskip("polars")
    pl.DataFrame({"word": words, "v": x.tolist()}).write_parquet(tmp_path / "e.parquet")
    pl.DataFrame({"word": words, **{f"f{j}": x[:, j] for j in range(3)}}).write_parquet(tmp_path / "f.parquet")
    (tmp_path / "words.txt").write_text("".join(f"{w}\n" for w in words))
    for name, given_words in (("a.npy", None), ("b.npy", None), ("c.npz", words), ("d.safetensors", None), ("e.parquet", words),
                              ("f.parquet", words)):  # fmt: skip
        found = read_vectors(tmp_path / name)
        assert found.words == given_words, name
        assert found.values.dtype == np.float32
        np.testing.assert_array_equal(found.values, x)
    assert read_vectors(tmp_path / "two.npz", name="y").values[1, 0] == 6
    assert read_vectors(tmp_path / "a.npy", words=tmp_path / "words.txt").words == words
    half = (x.view(np.uint32) >> 16).astype(np.uint16)
    header = b'{"h":{"dtype":"BF16","shape":[5,3],"data_offsets":[0,30]}}'
    (tmp_path / "h.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + half.tobytes())
    np.testing.assert_array_equal(read_vectors(tmp_path / "h.safetensors").values, x)  # small whole numbers
    bad = x.copy()
    bad[3, 1] = np.inf
    np.save(tmp_path / "inf.npy", bad)
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    (tmp_path / "torn.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "d.safetensors").read_bytes()[:-8])
    pl.DataFrame({"v": [[1.0, 2.0], [3.0]]}).write_parquet(tmp_path / "ragged.parquet")
    for name, options, message in [
        ("inf.npy", {}, "row 4: number 2 is inf"),
        ("text.npy", {}, "expected real numbers, got <U1"),
        ("torn.npy", {}, "can't be read as npy"),
        ("torn.safetensors", {}, "can't be read as safetensors"),
        ("two.npz", {}, "has 2 matrices; expected one"),
        ("a.npy", {"name": "z"}, "has no array 'z'"),
        ("ragged.parquet", {}, "row 2: the vector has 1 numbers; expected 2"),
        ("e.parquet", {"name": "z"}, "no column of lists 'z'; it has 'word', 'v'"),
        ("c.npz", {"words": tmp_path / "words.txt"}, "has names of its own"),
        ("inf.npy", {"kind": "odd"}, "kind must be one of"),
        ("a.npy", {"encoding": "odd"}, "encoding must be one that Python knows"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_vectors(tmp_path / name, **options)
