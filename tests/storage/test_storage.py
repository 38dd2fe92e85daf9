"""Packed pointers, the ledger, and files that last."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import tables as naive

import cce_core as cce
from cce_core.storage import FileFormatError, Ledger, Packing, bits_for, load_arrays, save_arrays


@given(st.integers(1, 200), st.lists(st.integers(0, 63), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_packed_pointers_come_back(n, bits, random):
    packing = Packing(n, tuple(bits))
    words = packing.empty()
    assert words.nbytes == 8 * -(-n * sum(bits) // 64)
    columns = [np.array([random.getrandbits(b) if b else 0 for _ in range(n)]) for b in bits]
    for field, column in enumerate(columns):
        cut = random.randrange(n + 1)  # in two parts, the later one first
        packing.write(words, field, cut, column[cut:])
        packing.write(words, field, 0, column[:cut])
    for field, column in enumerate(columns):
        found = packing.read(words, field, 0, n)
        np.testing.assert_array_equal(found, column)
        assert found.dtype == (np.int32 if bits[field] < 32 else np.int64)
        i = random.randrange(n)
        assert naive.pointer(words, i, sum(bits), packing.offsets[field], bits[field]) == column[i]


@pytest.mark.parametrize("bits", range(1, 10))
def test_every_small_packing_exhaustively(bits):
    for n in range(1, 24):
        packing = Packing(n, (bits, 3))
        words = packing.empty()
        values = np.arange(n) % (1 << bits)
        packing.write(words, 0, 0, values)
        packing.write(words, 1, 0, np.full(n, 7))
        np.testing.assert_array_equal(packing.read(words, 0, 0, n), values)
        packing.write(words, 1, 0, np.zeros(n, int))
        np.testing.assert_array_equal(packing.read(words, 0, 0, n), values)


def test_a_pointer_that_does_not_fit_is_refused():
    packing = Packing(10, (3,))
    words = packing.empty()
    for bad in ([8], [-1]):
        with pytest.raises(ValueError, match="pointers of 3 bits go from 0 to 7"):
            packing.write(words, 0, 0, np.array(bad))
    with pytest.raises(ValueError, match="len"):
        packing.write(words, 0, 9, np.array([1, 1]))
    assert not words.any()


@given(
    st.integers(0, 63),
    st.sampled_from(("u1", "i1", "u2", ">i4", "u4", "i8", ">u8", "u8", "?", "f4", "f8", "c8", "O", "U3")),
    st.lists(
        st.integers(-(2**63), 2**64 - 1) | st.sampled_from([-1, 0, 1, 2**31, 2**32, 2**63 - 1, 2**63]), max_size=6
    ),
)
def test_values_of_any_type_come_back_or_are_refused(bits, dtype, numbers):
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        numbers = [n for n in numbers if np.iinfo(dtype).min <= n <= np.iinfo(dtype).max]
    values, packing = np.array(numbers).astype(dtype), Packing(9, (3, bits))
    if dtype.kind in "iuO":  # Python's own numbers, as a column of pandas may hold them, are integers too
        values = np.array(numbers, dtype)
    words = packing.empty()
    packing.write(words, 0, 0, np.full(9, 5))
    before = words.copy()
    if dtype.kind not in "iuO":
        with pytest.raises(TypeError, match="values must be integers"):
            packing.write(words, 1, 2, values)
    elif any(not 0 <= n < 2**bits for n in numbers):
        with pytest.raises(ValueError, match=f"pointers of {bits} bits go from 0 to {2**bits - 1}, got"):
            packing.write(words, 1, 2, values)
    else:
        packing.write(words, 1, 2, values)
        assert packing.read(words, 1, 2, 2 + len(numbers)).tolist() == numbers
        assert packing.read(words, 0, 0, 9).tolist() == [5] * 9
        return
    np.testing.assert_array_equal(words, before)


def test_what_is_no_packing_is_refused():
    for n, bits in ((10, (64,)), (10, (-1,)), (-1, (3,)), (2**49, (3,))):
        with pytest.raises(ValueError, match="must be between"):
            Packing(n, bits)
    for n, bits in ((10, (3.0,)), (10, (True,)), (1.5, (3,)), (None, (3,))):
        with pytest.raises(TypeError, match="must be a whole number"):
            Packing(n, bits)
    packing = Packing(100, (3, 40))
    for words in (packing.empty()[:-1], np.zeros(0, np.uint64), np.zeros((packing.n_words, 1), np.uint64)):
        for act in (lambda w: packing.read(w, 0, 0, 9), lambda w: packing.write(w, 0, 0, [1])):
            with pytest.raises(ValueError, match="words must have shape"):
                act(words)
    with pytest.raises(TypeError, match="words must be a uint64 array, got int64"):
        packing.read(packing.empty().view(np.int64), 0, 0, 9)
    for field in (2, -1):
        with pytest.raises(ValueError, match="field must be between"):
            packing.read(packing.empty(), field, 0, 9)
    fixed = packing.empty()
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        packing.write(fixed, 0, 0, [1])
    packing.write(packing.empty(), 0, 3, [])


def test_bits_for():
    assert [bits_for(n) for n in (1, 2, 3, 4, 5, 256, 257, 2**31)] == [0, 1, 2, 2, 3, 8, 9, 31]
    with pytest.raises(ValueError, match="at least 1"):
        bits_for(0)


def test_the_ledger_adds_and_prints():
    a, b = Ledger({"memory": 10}, {"gradient": 4}, 100), Ledger({"memory": 5, "keys": 8}, {}, 50)
    both = a + b
    assert dict(both.stored) == {"memory": 15, "keys": 8}
    assert (both.total, both.full, dict(both.training)) == (23, 150, {"gradient": 4})
    assert both.ratio == pytest.approx(150 / 23)
    assert "memory" in str(both)
    assert "6.52 x" in str(both)
    assert (a + Ledger({"memory": 1}, {}, None)).ratio is None


@pytest.fixture
def table():
    table = cce.make_table("cce", 300, 16, num_params=1024, seed=5)
    table.cluster()
    return table


@pytest.mark.parametrize("method", [m.name for m in cce.methods() if m.projects])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("mmap", [False, True])
def test_save_and_load_give_the_same_bits(method, rank, mmap, tmp_path):
    rule = next(m for m in cce.methods() if m.name == method)
    rank = rank if rule.projects and method != "ldim" else None
    table = cce.make_table(
        method, 100, 16, **({"num_params": 1024} if rule.budgeted else {}), rank=rank, seed=2**64 - 1
    )
    path = tmp_path / "t.safetensors"
    table.save(path)
    again = cce.load(path, mmap=mmap)
    assert again.spec == table.spec
    assert hash(again.spec) == hash(table.spec)
    for mine, its in ((table.parameters(), again.parameters()), (table.buffers(), again.buffers())):
        assert mine.keys() == its.keys()
        for name, array in mine.items():
            assert array.dtype == its[name].dtype
            np.testing.assert_array_equal(array, its[name])
    np.testing.assert_array_equal(table.lookup(np.arange(100)), again.lookup(np.arange(100)))


def test_the_file_less_its_header_is_what_the_ledger_says(table, tmp_path):
    table.save(tmp_path / "t")
    raw = (tmp_path / "t").read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    assert len(raw) - header == table.ledger().total
    assert os.listdir(tmp_path) == ["t"]


def test_a_loaded_table_goes_on_as_the_saved_one(table, tmp_path):
    table.save(tmp_path / "t")
    again = cce.load(tmp_path / "t")
    assert again.generation == table.generation == 1
    for t in (table, again):
        t.cluster()
    np.testing.assert_array_equal(table.lookup(np.arange(300)), again.lookup(np.arange(300)))


def test_a_mapped_table_cannot_be_trained_in_silence(table, tmp_path):
    table.save(tmp_path / "t")
    mapped = cce.load(tmp_path / "t", mmap=True)
    with pytest.raises(ValueError, match="read-only"):
        cce.SGD(0.1).step(mapped, mapped.backward([1], np.ones((1, 16))))
    with pytest.raises(ValueError, match="read-only"):
        mapped.cluster()


def test_foreign_and_future_files_are_refused(table, tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, tmp_path / "foreign")
    with pytest.raises(FileFormatError, match="not a table of cce-core"):
        cce.load(tmp_path / "foreign")
    save_file({"a": np.zeros(3)}, tmp_path / "future", metadata={"format": "cce-core", "version": "99"})
    with pytest.raises(FileFormatError, match="version 99"):
        cce.load(tmp_path / "future")
    for spec in ({}, {**table.spec.as_json(), "method": "nope"}, {**table.spec.as_json(), "sizes": [7]}):
        save_arrays(tmp_path / "odd", {**table.parameters(), **table.buffers()}, spec)
        with pytest.raises(FileFormatError, match="does not fit together"):
            cce.load(tmp_path / "odd")
    (tmp_path / "text").write_text(json.dumps({"hello": 1}))
    with pytest.raises(FileFormatError, match="torn, truncated or not"):
        cce.load(tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        cce.load(tmp_path / "missing")


def test_a_save_that_dies_leaves_the_old_file_whole(table, tmp_path, monkeypatch):
    path = tmp_path / "t"
    table.save(path)
    old = path.read_bytes()
    table.parameters()["memory"][:] += 1

    def dies(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", dies)
    with pytest.raises(OSError, match="No space"):
        table.save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["t"]


def test_a_folder_that_is_not_there_is_an_error(table, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        table.save(tmp_path / "nowhere" / "t")


def test_arrays_of_every_type_come_back(tmp_path):
    arrays = {
        t: np.arange(6).reshape(2, 3).astype(t) for t in ("float32", "uint64", "int64", "uint8", "int8", "uint16")
    }
    save_arrays(tmp_path / "a", {**arrays, "empty": np.empty((0, 4), np.float32)}, {"x": 1})
    for mmap in (False, True):
        back, spec = load_arrays(tmp_path / "a", mmap=mmap)
        assert spec == {"x": 1}
        assert back.pop("empty").shape == (0, 4)
        for name, array in arrays.items():
            np.testing.assert_array_equal(back[name], array)
            assert back[name].dtype == array.dtype
