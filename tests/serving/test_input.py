"""What the reader is handed: files of strangers, odd ids, strings; and what it needs, which is NumPy."""

from __future__ import annotations

import ast
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash
from campaigns import test_headers as edits
from campaigns.tables import makers
from campaigns.trial import many
from hypothesis import given
from hypothesis import strategies as st
from reference import hashing as naive

import cce_core as cce
from cce_core.serving import FileFormatError, Reader, hash_strings, reader

FILE = Path(reader.__file__)
BLOCKED = ("cce_core", "numba", "llvmlite", "torch", "scipy", "safetensors", "xxhash", "tqdm", "faiss")


@pytest.fixture
def saved(tmp_path):
    """A bounded table and its file."""
    table = cce.make_table("cce", 50, 8, num_params=200, seed=1)
    table.save(tmp_path / "table")
    return table, tmp_path / "table"


# What it needs


def test_it_imports_numpy_and_the_standard_library_alone():
    trees = ast.walk(ast.parse(FILE.read_text("utf-8")))
    named = [a.name for n in trees if isinstance(n, ast.Import) for a in n.names]
    trees = ast.walk(ast.parse(FILE.read_text("utf-8")))
    named += [n.module or "" for n in trees if isinstance(n, ast.ImportFrom)]
    assert {name.split(".")[0] for name in named} - set(sys.stdlib_module_names) == {"numpy"}
    assert "SPDX-License-Identifier: Apache-2.0" in FILE.read_text("utf-8").splitlines()[0]


def test_a_copy_of_the_file_reads_tables_by_itself(saved, tmp_path):
    _, path = saved
    (tmp_path / "alone.py").write_text(FILE.read_text("utf-8"), "utf-8")
    code = f"""
import sys
for name in {BLOCKED!r}: sys.modules[name] = None
sys.path.insert(0, {str(tmp_path)!r})
import alone, numpy
numpy.save({str(tmp_path / "out.npy")!r}, alone.Reader({str(path)!r}).lookup(range(50)))
print(alone.hash_strings("user_1"), [name for name in {BLOCKED!r} if sys.modules[name] is not None])
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.stdout, done.stderr) == (f"{naive.hash_string('user_1')} []\n", "")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), Reader(path).lookup(range(50)))


def test_to_import_it_from_the_package_is_light():
    code = f"import sys, cce_core.serving; print(*[n for n in sys.modules if n.split('.')[0] in {BLOCKED!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert sorted(done.stdout.split()) == ["cce_core", "cce_core.serving", "cce_core.serving.reader"]


# Ids


@pytest.mark.parametrize(
    "ids",
    [50, -1, [0, 2**63], [[1, 2], [3, 99]], np.array([0, 255], np.uint8), 1.0, [1.5], [True], "x", ["a", "b"], b"x", None, [None],
     [1, None], {}, {1, 2}, object, [[1], [2, 3]], np.array(["a"]), np.array([1.0, np.nan]), [2**64], [-(2**63) - 1],
     np.ma.masked_array([1, 2], [True, False]), [1, "a"], np.array([1, 2], "datetime64[s]"), [-1, 2**64 - 1], np.zeros(2, bool)],
    ids=repr,
)  # fmt: skip
def test_what_the_library_refuses_is_refused_alike(saved, ids):
    table, path = saved
    with pytest.raises((TypeError, ValueError, IndexError)) as expected:
        table.lookup(ids)
    with pytest.raises((TypeError, ValueError, IndexError)) as got:
        Reader(path).lookup(ids)
    assert got.type is expected.type
    if got.type is IndexError:
        assert str(got.value) == str(expected.value)


@pytest.mark.parametrize(
    "ids", [[], [[]], (), np.empty((2, 0), np.int8), 7, [7], (1, 2), range(3), np.int16(4), np.array(3), [np.uint8(3), 4],
            np.array([1, 2], object), np.arange(6).reshape(2, 3).T, np.arange(10)[::3], np.array([1, 2], ">i4")],
    ids=repr,
)  # fmt: skip
def test_what_the_library_takes_is_taken(saved, ids):
    table, path = saved
    got, expected = Reader(path).lookup(ids), table.lookup(ids)
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("ids", "more", "error", "says"),
    [
        ([1, 2], {}, ValueError, "must be a matrix"),
        ([1, 2], {"offsets": [0, 2], "lengths": [2]}, ValueError, "not both"),
        ([1, 2], {"offsets": [0, 1]}, ValueError, "end with the number of ids, 2, got 1"),
        ([1, 2], {"offsets": [1, 2]}, ValueError, "begin with 0"),
        ([1, 2], {"offsets": [0, 2, 1, 2]}, ValueError, "never fall"),
        ([1, 2], {"lengths": [3]}, ValueError, "add up to 3, but there are 2"),
        ([1, 2], {"lengths": [3, -1]}, ValueError, "not be negative"),
        ([1, 2], {"lengths": [1.0, 1.0]}, TypeError, "row of integers"),
        ([[1, 2]], {"lengths": [2]}, ValueError, "flat"),
        ([[1, 2]], {"mode": "median"}, ValueError, "sum, mean, max"),
        ([[1, 2]], {"mode": "mean", "weights": [[1, 2]]}, ValueError, "mode 'sum'"),
        ([[1, 2]], {"weights": [1, 2]}, ValueError, "shape"),
        ([[1, 2]], {"weights": [[1, np.nan]]}, ValueError, "finite"),
        ([[1, 2]], {"weights": [["a", "b"]]}, TypeError, "real numbers"),
        ([[1, 50]], {}, IndexError, "id 50 at position 1 is outside"),
        ([[1, 50, 60]], {"padding_id": 50}, IndexError, "id 60 at position 2 is outside"),
        ([[1, 2]], {"padding_id": -1}, ValueError, "padding_id"),
        ([[1, 2]], {"padding_id": "a"}, TypeError, "padding_id"),
    ],
)
def test_bags_that_do_not_fit_together(saved, ids, more, error, says):
    with pytest.raises(error, match=says):
        Reader(saved[1]).bags(ids, **more)


def test_padding_may_lie_outside_and_counts_for_nothing(saved):
    found = Reader(saved[1])
    for mode in ("sum", "mean", "max"):
        got = found.bags([[1, 99, 2], [99, 99, 99]], mode=mode, padding_id=99)
        np.testing.assert_array_equal(got, found.bags([1, 2], lengths=[2, 0], mode=mode))
        assert not got[1].any()


# Strings


@given(st.lists(st.text(max_size=40) | st.binary(max_size=300), max_size=20), st.integers(0, 2**64 - 1))
def test_strings_have_the_ids_that_training_gave_them(values, seed):
    np.testing.assert_array_equal(hash_strings(values, seed), cce.hash_strings(values, seed))


def test_every_length_is_hashed_as_xxh3_says():
    data = random.Random(0).randbytes(5000)
    lengths = [*range(260), 511, 512, 513, 1023, 1024, 1025, 1088, 1089, 2048, 2049, 5000]
    for seed in (0, 1, 2**64 - 1):
        expected = [xxhash.xxh3_64_intdigest(data[:n], seed) for n in lengths]
        assert hash_strings([data[:n] for n in lengths], seed).tolist() == expected
        assert [naive.xxh3(data[:n], seed) for n in lengths[::9]] == expected[::9]
    parts = np.frombuffer(data, np.uint8)
    for cuts in ([], [1], [1024], [1000, 1030, 3000], list(range(0, 5000, 7))):
        assert reader._xxh3_long(np.split(parts, cuts)) == xxhash.xxh3_64_intdigest(data)


@pytest.mark.parametrize(
    "values", ["é", b"", [["a"], ["b"]], np.array(["a", "b\0"]), np.array([b"ab"]), ["a\0", "a"], [], ("x",)], ids=repr
)
def test_shapes_and_kinds_of_strings(values):
    np.testing.assert_array_equal(hash_strings(values), cce.hash_strings(values))


@pytest.mark.parametrize(
    "values", [[1], [None], ["a", 1], 5, np.array([1.5]), [["a"], ["b", "c"]], ["\ud800"]], ids=repr
)
def test_what_is_no_string_is_refused(values):
    with pytest.raises((TypeError, ValueError)) as expected:
        cce.hash_strings(values)
    with pytest.raises(expected.type):
        hash_strings(values)


# Files


def test_a_file_that_is_cut_or_damaged_is_refused(saved):
    _, path = saved
    raw = path.read_bytes()
    for n in range(0, len(raw), many(13, 1)):
        path.write_bytes(raw[:n])
        with pytest.raises(FileFormatError):
            Reader(path)
    start = 8 + int.from_bytes(raw[:8], "little")
    for n in [*range(0, start, many(37, 1)), *range(start, len(raw), many(61, 1))]:
        path.write_bytes(raw[:n] + bytes([raw[n] ^ 1]) + raw[n + 1 :])
        with pytest.raises(FileFormatError):
            Reader(path, verify="all")
    path.write_bytes(raw + b"\0")
    with pytest.raises(FileFormatError):
        Reader(path)


def test_what_is_no_file_of_ours(tmp_path):
    with pytest.raises(FileNotFoundError):
        Reader(tmp_path / "none")
    for text in (b"", b"hello", b"\x02" + bytes(7) + b"{}", b"\x04" + bytes(7) + b"null"):
        (tmp_path / "file").write_bytes(text)
        with pytest.raises(FileFormatError):
            Reader(tmp_path / "file")
    with pytest.raises(OSError):
        Reader(tmp_path)
    with pytest.raises(ValueError, match="header or all, got 'some'"):
        Reader(tmp_path / "file", verify="some")


@pytest.mark.parametrize("kind", ["damaged_spec", "damaged_header", "damaged_text", "crafted_spec"])
def test_an_edited_header_is_refused_or_gives_what_the_library_gives(kind, tmp_path):
    tables, path, taken = {name: make() for name, make in makers().items()}, tmp_path / "table", 0
    raws = {}
    for name, table in tables.items():
        table.save(path)
        raws[name] = path.read_bytes()
    for k in range(many(80, 5000)):
        name = list(tables)[k % len(tables)]
        getattr(edits, kind)(path, tables[name], raws[name], random.Random(f"{kind} {k}"))
        try:
            found = Reader(path)
        except FileFormatError:
            with pytest.raises(cce.FileFormatError):
                cce.load(path, mmap=True)
            continue
        with np.errstate(all="ignore"):
            taken += found.lookup(range(min(found.vocab or 9, 9))).shape[1] == found.dim
    assert kind != "crafted_spec" or taken
