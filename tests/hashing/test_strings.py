"""Strings and bytes to ids, against the golden values, the twin written from XXH3's specification, and the library."""

from __future__ import annotations

import json

import numpy as np
import pytest
import strategies
import xxhash
from golden import make_hashing
from hypothesis import given
from hypothesis import strategies as st
from reference import hashing as twin

from cce_core._jit import COMPILED
from cce_core.hashing import hash_strings

GOLDEN = json.loads(make_hashing.PATH.read_text(encoding="ascii"))


def test_golden_strings():
    for case in GOLDEN["strings"]:
        text, seed, expected = bytes.fromhex(case["bytes"]), int(case["seed"], 0), int(case["hash"], 0)
        assert int(hash_strings(text, seed)) == expected
        assert hash_strings([text], seed).tolist() == [expected]


@given(st.lists(st.text() | st.binary(max_size=300)), strategies.seeds)
def test_strings_equal_the_twin(values, seed):
    got = hash_strings(values, seed)
    assert got.shape == (len(values),)
    assert got.dtype == np.uint64
    assert got.tolist() == [twin.hash_string(value, seed) for value in values]
    assert hash_strings(tuple(values), seed).tolist() == got.tolist()
    array = np.empty(len(values), object)
    array[:] = values
    assert hash_strings(array, seed).tolist() == got.tolist()


def test_strings_of_every_length():
    text = bytes(np.random.default_rng(1).integers(0, 256, 1100 if COMPILED else 500, dtype=np.uint8))
    for n in [*range(0, 300), len(text)]:
        assert int(hash_strings(text[:n], 5)) == twin.xxh3(text[:n], 5) == xxhash.xxh3_64_intdigest(text[:n], 5)


def test_forms_of_strings():
    values = [["a", "é"], ["東京", ""], ["user_1", "x" * 300]]
    expected = hash_strings(values)
    assert expected.shape == (3, 2)
    assert expected.tolist() == [[twin.hash_string(value) for value in row] for row in values]
    encoded = [[value.encode() for value in row] for row in values]
    forms = [encoded, np.array(values), np.array(values).astype(">U300"), np.array(encoded), np.array(values, object)]
    if hasattr(np.dtypes, "StringDType"):
        forms += [np.array(values, np.dtypes.StringDType())]
    for form in forms:
        assert np.array_equal(hash_strings(form), expected)
    assert np.array_equal(hash_strings(np.array(values).T), expected.T)
    for single in ("é", "é".encode(), np.str_("é"), np.bytes_("é".encode()), np.array("é")):
        assert hash_strings(single).shape == ()
        assert hash_strings(single) == expected[0, 1]
    assert hash_strings([]).shape == (0,)
    assert hash_strings(np.array([])).shape == (0,)
    assert hash_strings([[], []]).size == 0


def test_trailing_nuls():
    plain, longer = hash_strings("a"), hash_strings("a\0")
    assert plain != longer
    assert hash_strings(b"a\0") == longer
    assert hash_strings(["a", "a\0"]).tolist() == [plain, longer]
    assert hash_strings(np.array([b"a", b"a\0"], object)).tolist() == [plain, longer]
    assert hash_strings(np.array(["a", "a\0"])).tolist() == [plain, plain]  # NumPy keeps no trailing NULs
    if hasattr(np.dtypes, "StringDType"):
        assert hash_strings(np.array(["a", "a\0"], np.dtypes.StringDType())).tolist() == [plain, longer]


def test_blocks(monkeypatch):
    import cce_core.hashing.strings as strings

    values = [f"item {n}" for n in range(50)]
    expected = hash_strings(values).tolist()
    monkeypatch.setattr(strings, "_BLOCK", 7)
    assert hash_strings(values).tolist() == expected
    with pytest.raises(TypeError, match="None of type NoneType at position 23;"):
        hash_strings([*values[:23], None, *values, None])
    with pytest.raises(TypeError, match=r"at position \(5, 4\);"):
        hash_strings([*(values[n : n + 5] for n in range(5)), ["a", "b", "c", "d", 3.5]])


@pytest.mark.parametrize(
    "wrong", [None, float("nan"), np.float64("nan"), 3, np.int64(3), 2.5, True, bytearray(b"a"), {}]
)
def test_elements_that_are_no_strings(wrong):
    with pytest.raises(TypeError, match="at position 1;"):
        hash_strings(["a", wrong, None])
    array = np.array(["a", "b", "c", None], object).reshape(2, 2)
    array[1, 0] = wrong
    with pytest.raises(TypeError, match=r"at position \(1, 0\);"):
        hash_strings(array)


@pytest.mark.parametrize(
    "wrong", [None, 3, 2.5, np.nan, {"a"}, {"a": 1}, iter(["a"]), np.arange(3), np.zeros(2), [[1], "a"]]
)
def test_values_that_are_no_strings(wrong):
    with pytest.raises(TypeError, match="values must be strings or bytes, got"):
        hash_strings(wrong)


def test_other_bad_strings():
    with pytest.raises(ValueError, match="at position 1 has no UTF-8"):
        hash_strings(["a", "\ud800"])
    with pytest.raises(TypeError, match="at position 0;"):
        hash_strings([["a"], ["b", "c"]])
    if hasattr(np.dtypes, "StringDType"):
        missing = np.array(["a", None], np.dtypes.StringDType(na_object=None))
        with pytest.raises(TypeError, match="None of type NoneType at position 1;"):
            hash_strings(missing)
