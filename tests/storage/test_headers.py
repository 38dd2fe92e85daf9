"""Headers as input from strangers: whatever they say, a table that works or a FileFormatError, at once and in little memory."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tracemalloc

import edited_headers
import numpy as np
import pytest
from edited_headers import NUMBERS, ODD, TABLES, joined, make, split
from hypothesis import settings
from reference import tt as naive

import cce_core as cce
from cce_core.method import get_method, tensor_train
from cce_core.method.base import divisors
from cce_core.method.checked import checked
from cce_core.storage import FileFormatError, load_arrays, save_arrays


def test_edited_headers_are_refused_or_make_a_table_that_works(tmp_path):
    examples = max(25, settings.default.max_examples)  # files are small, without compiled code too
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", edited_headers.__file__, str(tmp_path), str(examples)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert sum(tried for tried, _ in counts.values()) > 3 * examples
    assert sum(used for _, used in counts.values()) > examples // 4, "edits must also reach tables that are used"


@pytest.fixture
def file(tmp_path):
    """Saves a table with changed spec and arrays, every checksum right or none; loads it."""

    saved = {}

    def load(table, spec, own="right", arrays=None, **how):
        if arrays is not None or table not in saved:
            save_arrays(tmp_path / "t", table.arrays() if arrays is None else arrays, table.spec.as_json())
            saved[table] = (tmp_path / "t").read_bytes()
        header, data = split(saved[table])
        header["__metadata__"]["spec"] = spec if isinstance(spec, str) else json.dumps(spec)
        (tmp_path / "t").write_bytes(joined(header, data, own))
        return cce.load(tmp_path / "t", **how)

    return load


PLAIN = [table for table in TABLES if table.spec.codec == "float32" and not table.spec.rank]


@pytest.mark.once  # time and memory of reading, in which no loop runs
@pytest.mark.parametrize("table", PLAIN, ids=lambda table: table.spec.method)
def test_no_number_of_a_spec_takes_time_or_memory(table, file):
    """Every field, option and size of every method in turn says each odd thing; a loop to 2^40 would never end."""
    plain = table.spec.as_json()
    names = [(name,) for name in plain] + [("options", o) for o in plain["options"]]
    names += [("sizes", j) for j in range(len(plain["sizes"]))]
    file(table, plain, mmap=True)
    tracemalloc.start()
    try:
        for name in names:
            for value in (*NUMBERS, *ODD):
                spec = json.loads(json.dumps(plain))
                inside = spec if len(name) == 1 else spec[name[0]]
                if inside[name[-1]] == value and type(inside[name[-1]]) is type(value):
                    continue
                inside[name[-1]] = value
                try:
                    loaded = file(table, spec, mmap=True, verify="header")
                except FileFormatError:
                    pass
                else:  # another seed, say: all that it says must be so
                    assert get_method(loaded.spec.method).nbytes(loaded.spec) == loaded.ledger().total
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("table", TABLES, ids=lambda t: f"{t.spec.method}-{t.spec.codec}-{t.spec.rank}")
def test_the_bytes_of_a_spec_are_known_without_its_layout(table):
    assert get_method(table.spec.method).nbytes(table.spec) == table.ledger().total
    assert cce.TableSpec.from_json(json.loads(json.dumps(table.spec.as_json()))) == table.spec


def test_a_codebook_of_another_size_than_the_hashed_one_counts_right():
    table = cce.make_table("cce", 2000, 8, num_bytes=2000, n_chunks=2, rank=0)
    assert len(table.spec.sizes) == 2
    assert get_method("cce").nbytes(table.spec) == table.ledger().total


@pytest.mark.parametrize("sizes", [(15, -2), (0,), (15, 0), (15, 1, 1), (), (2**40,), (2**63,), (15, 2**40)])
def test_arrays_that_fit_a_senseless_spec_do_not_save_it(sizes, file):
    table = make("cce", "float32", 4)
    for nbytes in (0, 4, 32):
        arrays = {**table.arrays(), "memory": np.ones(nbytes, np.float32)}
        with pytest.raises(FileFormatError, match="does not fit together"):
            file(table, {**table.spec.as_json(), "sizes": list(sizes)}, arrays=arrays, mmap=True)


def test_a_spec_says_what_is_wrong_with_it():
    plain = make("bloom", "float32", 0).spec.as_json()
    for change, error, message in (
        ({"dim": True}, TypeError, "dim must be a whole number"), ({"vocab": 2**60}, ValueError, "vocab must be between"),
        ({"options": {**plain["options"], "n_hashes": 2**40}}, ValueError, "n_hashes must be between 1 and 64"),
        ({"options": {"n_hashes": 4}}, ValueError, "option 'signed' of method 'bloom' is missing"),
        ({"options": []}, TypeError, "options a mapping"), ({"extra": 1}, ValueError, "no field 'extra'"),
        ({"method": ["full"]}, TypeError, "method must be text"), ({"n_chunks": 2}, ValueError, "has no chunks"),
        ({"codec": "int2"}, ValueError, "codec must be one of"), ({"seed": 1.0}, TypeError, "seed must be a whole number"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            checked(cce.TableSpec.from_json({**plain, **change}))
    for name in plain:
        with pytest.raises(ValueError, match=f"must have the field '{name}'"):
            cce.TableSpec.from_json({n: v for n, v in plain.items() if n != name})
    with pytest.raises(TypeError, match="a spec must be a mapping"):
        cce.TableSpec.from_json([1])  # type: ignore[arg-type]


def test_what_is_made_can_be_loaded():
    with pytest.raises(ValueError, match="n_chunks"):
        cce.make_table("hnet", None, 2**16 + 1, num_params=100)
    with pytest.raises(ValueError, match="dim must be at most"):
        cce.make_table("hash", None, 2**24 + 1, num_params=2**25)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 900, "[" * 200_000, '{"a":' * 900, '{"method":' + "1" * 100_000 + "}", "NaN", '{"a": Infinity}', "", "{}{}",
        "\ud800", '{"dim": 8, "dim": 9}', '["' + "x" * 200_000 + '"]', "[" + "0," * 100_000 + "0]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("own", ["right", "left out"])
def test_no_text_is_too_deep_too_long_or_doubled(text, own, file):
    with pytest.raises(FileFormatError):
        file(make("full", "float32", 0), text, own, mmap=True)


def test_a_header_of_any_length_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "t"
    for length, size in ((2**64 - 1, 100), (2**40, 100), (2**63, 8), (92, 99), (0, 8), (0, 0), (1 << 30, 1 << 31)):
        with open(path, "wb") as f:
            f.write(struct.pack("<Q", length)[:size])
            f.truncate(size)  # a gigabyte of nothing takes no room
        tracemalloc.start()
        with pytest.raises(FileFormatError):
            cce.load(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def test_arrays_may_not_overlap_leave_gaps_or_be_other_than_they_say(tmp_path):
    save_arrays(tmp_path / "t", {"a": np.zeros(4, np.float32), "b": np.zeros((0, 3), np.int8)}, {})
    header, data = split((tmp_path / "t").read_bytes())
    load_arrays(tmp_path / "t")
    for change in (
        {"data_offsets": [4, 20]}, {"data_offsets": [16, 0]}, {"data_offsets": [0]}, {"data_offsets": [-16, 0]},
        {"data_offsets": [0, True]}, {"shape": [-4]}, {"shape": [5]}, {"shape": [2.0, 2]}, {"shape": [2**62, 2**62]},
        {"shape": "4"}, {"shape": [1] * 7 + [4]}, {"shape": [1] * 100 + [4]}, {"dtype": "F64"}, {"dtype": ["F32"]},
        {"dtype": "U8", "data_offsets": [0, 4]}, {"more": 1},
    ):  # fmt: skip
        edited = {**header, "a": {**header["a"], **change}}
        (tmp_path / "t").write_bytes(joined(edited, data))
        try:
            assert load_arrays(tmp_path / "t", verify="header")[0]["a"].size == 4
        except FileFormatError:
            continue
        assert change == {"shape": [1] * 7 + [4]}
    for shape in ([0, 2**62], [0] * 3 + [2**40] * 5):
        (tmp_path / "t").write_bytes(joined({**header, "b": {**header["b"], "shape": shape}}, data))
        with pytest.raises(FileFormatError, match="out of range"):
            load_arrays(tmp_path / "t", verify="header")


@pytest.mark.parametrize("generation", [-1, -(2**63), 2**62])
def test_a_generation_that_nobody_counted_is_refused(generation, file):
    table = make("cce", "float32", 0)
    arrays = {**table.arrays(), "generation": np.array([generation])}
    with pytest.raises(FileFormatError, match="generation"):
        file(table, table.spec.as_json(), arrays=arrays, mmap=True)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_factors_of_every_small_dim(n):
    for dim in range(1, 61 if n > 3 else 300):
        assert list(tensor_train._factors(dim, n)) == naive.factors(dim, n) if n > 1 else True
        assert divisors(dim) == [d for d in range(1, dim + 1) if dim % d == 0]
