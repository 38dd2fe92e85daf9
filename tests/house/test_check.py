"""Checks of what callers hand in: what passes, and what each error says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from cce_core import _check

# Whole numbers and numbers


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.int64(3)])
def test_integer_takes_every_kind_of_integer(value):
    got = _check.integer("n", value, 0, 3)
    assert (got, type(got)) == (3, int)


@pytest.mark.parametrize("value", [True, np.True_, 3.0, np.float32(3), "3", None, [3], np.array([3])])
def test_integer_refuses_what_is_no_integer(value):
    with pytest.raises(TypeError, match=rf"^n must be a whole number, got .* of type {type(value).__name__}$"):
        _check.integer("n", value)


def test_integer_exhaustively_on_small_ranges():
    for least, most in itertools.combinations_with_replacement(range(-3, 4), 2):
        for value in range(-5, 6):
            if least <= value <= most:
                assert _check.integer("n", value, least, most) == value
            else:
                with pytest.raises(ValueError, match=f"^n must be between {least} and {most}, got {value}$"):
                    _check.integer("n", value, least, most)


def test_integer_bounds_in_words():
    with pytest.raises(ValueError, match=r"^n must be at least 1,000, got -2,000$"):
        _check.integer("n", -2000, 1000)
    assert _check.integer("n", 10**30) == 10**30


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), np.int32(1)])
def test_number_takes_every_kind_of_number(value):
    assert _check.number("lr", value, 0.0) == float(value)
    assert type(_check.number("lr", value, 0.0)) is float


@pytest.mark.parametrize("value", [True, "0.1", None, 1j, [0.1], np.array([0.1])])
def test_number_refuses_what_is_no_number(value):
    with pytest.raises(TypeError, match="lr must be a number, got"):
        _check.number("lr", value, 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.1, 1.5])
def test_number_refuses_what_is_out_of_range(value):
    with pytest.raises(ValueError, match="lr must be at least 0 and at most 1, got"):
        _check.number("lr", value, 0.0, 1.0)


def test_number_at_its_ends():
    assert _check.number("lr", 0, 0.0, 1.0) == 0.0
    assert _check.number("lr", 1, 0.0, 1.0, open_at_least=True) == 1.0
    with pytest.raises(ValueError, match=r"lr must be above 0, got 0$"):
        _check.number("lr", 0.0, 0.0, open_at_least=True)


def test_seeds():
    for seed in (0, 1, 2**63, 2**64 - 1):
        assert _check.seed(seed) == seed
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=r"seed must be between 0 and 18,446,744,073,709,551,615, got"):
            _check.seed(seed)
    with pytest.raises(TypeError, match="seed must be a whole number, got None"):
        _check.seed(None)


def test_choice():
    assert _check.choice("codec", "int8", ("float32", "int8")) == "int8"
    with pytest.raises(ValueError, match=r"codec must be one of float32, int8; got 'int3'"):
        _check.choice("codec", "int3", ("float32", "int8"))


# Ids


@given(ids=strategies.ids())
def test_ids_of_every_type_and_shape(ids):
    words = _check.as_ids(ids)
    assert words.dtype == np.uint64
    assert words.dtype.isnative
    assert words.shape == ids.shape
    assert words.flags.c_contiguous
    assert [int(w) for w in words.reshape(-1)] == [int(i) % 2**64 for i in ids.reshape(-1)]


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_ids_of_64_bits_are_not_copied(dtype):
    ids = np.arange(6, dtype=dtype).reshape(2, 3)
    assert np.shares_memory(_check.as_ids(ids), ids)


@pytest.mark.parametrize(
    ("ids", "shape"), [(7, ()), ([], (0,)), ([[], []], (2, 0)), ([1, 2], (2,)), (np.int8(-1), ()), ((1, 2), (2,))]
)
def test_ids_that_are_no_arrays(ids, shape):
    words = _check.as_ids(ids)
    assert (words.dtype, words.shape) == (np.uint64, shape)


def test_ids_below_zero_keep_their_bits():
    assert _check.as_ids(np.array([-1], np.int8)).tolist() == [2**64 - 1]
    assert _check.as_ids([-(2**63), 2**63 - 1]).tolist() == [2**63, 2**63 - 1]
    assert _check.as_ids([2**64 - 1]).tolist() == [2**64 - 1]


@pytest.mark.parametrize(
    ("ids", "fix"),
    [
        (np.array([1.0]), "astype"),
        (np.array([], np.float32), "astype"),  # an array says its type, empty or not
        (np.array([True]), "astype"),
        ([1.5], "astype"),
        ([1.5, np.nan], "drop or fill it, then .*astype"),
        (np.array([1], "M8[D]"), "astype"),
        (np.array(["a"]), "hash strings"),
        (np.array(["a"], object), "hash strings"),
        ([b"a"], "hash strings"),
        ([True, 2**64], "bool at position 0"),
        (np.array([1, 2.0], object), "float at position 1"),
    ],
)
def test_ids_that_are_no_integers(ids, fix):
    with pytest.raises(TypeError, match=f"ids must be integers, got .*{fix}"):
        _check.as_ids(ids)


@pytest.mark.parametrize("ids", [None, {1, 2}, {1: 2}, object(), iter([1]), [[1], [2, 3]]])
def test_ids_that_are_no_arrays_of_anything(ids):
    with pytest.raises(TypeError, match=f"ids must be integers, .*; got {type(ids).__name__}: "):
        _check.as_ids(ids)


def test_ids_too_wide_for_64_bits():
    for wrong in (2**64, -(2**63) - 1):
        with pytest.raises(TypeError, match=f"ids must be integers of 64 bits, got {wrong} at position 1"):
            _check.as_ids([0, wrong])


@given(st.lists(st.integers(-(2**63), 2**64 - 1)))
def test_pythons_integers_are_words(numbers):
    """Also where NumPy finds no type for all of them, as for an id below zero beside one of 2^63."""
    for ids in (np.array(numbers, object), numbers, [numbers], tuple(numbers)):
        words = _check.as_ids(ids)
        assert words.reshape(-1).tolist() == [number % 2**64 for number in numbers]


@pytest.mark.parametrize("ids", [[0, 2**64 - 1, -7], [[2**63], [-1]], (-(2**63), 2**63)])
def test_lists_that_numpy_takes_for_floats_are_exact(ids):
    assert _check.as_ids(ids).reshape(-1).tolist() == [int(i) % 2**64 for i in np.array(ids, object).reshape(-1)]


class Lent:
    """Lends its numbers in one of the ways that arrays of other libraries have."""

    def __init__(self, way, array, **more):
        self.__dict__.update(more)
        if way == "interface":
            self.owner, self.__array_interface__ = array, array.__array_interface__
        self.array = array

    @classmethod
    def ways(cls, array, **more):
        for way in ("interface", "array", "dlpack"):
            one = type("Lent", (cls,), {})
            if way == "array":
                one.__array__ = lambda self, dtype=None, copy=None: self.array
            if way == "dlpack":
                one.__dlpack__ = lambda self, **settings: self.array.__dlpack__()
                one.__dlpack_device__ = lambda self: self.array.__dlpack_device__()
            yield one(way, array, **more)


@given(strategies.ids(types=("int64", "uint64", "int32", "uint8")))
def test_ids_of_other_libraries(ids):
    ids = ids.astype(ids.dtype.newbyteorder("="))  # DLPack knows no other
    for lent in Lent.ways(ids, null_count=0):
        np.testing.assert_array_equal(_check.as_ids(lent), _check.as_ids(ids))


def test_what_is_missing_is_no_id():
    masked = np.ma.array([1, 2, 3], mask=[False, True, False])
    for missing in (
        masked,
        *Lent.ways(np.array([1, 2]), null_count=1),
        *Lent.ways(np.array([1]), null_count=lambda: 1),
    ):
        with pytest.raises(ValueError, match="1 of them are missing"):
            _check.as_ids(missing)
    assert _check.as_ids(np.ma.array([1, 2], mask=False)).tolist() == [1, 2]
    nothing = type("NAType", (), {"__ne__": lambda self, other: self})()
    for none in (None, float("nan"), nothing):
        with pytest.raises(ValueError, match="at position 1 is missing"):
            _check.as_ids(np.array([1, none], object))


def test_columns_of_a_frame_keep_their_own_types():
    class Frame:
        ndim, shape = 2, (2, 2)
        columns = (np.array([2**64 - 1, 2**63], np.uint64), np.array([-1, 2], np.int8))
        iloc = type("Columns", (), {"__getitem__": lambda self, at: Frame.columns[at[1]]})()

    assert _check.as_ids(Frame()).tolist() == [[2**64 - 1, 2**64 - 1], [2**63, 2]]


def test_categories_are_no_ids():
    for lent in Lent.ways(np.array([7, 9]), dtype=type("Kind", (), {"categories": [7, 9]})()):
        with pytest.raises(TypeError, match="cat.codes"):
            _check.as_ids(lent)
    for lent in Lent.ways(np.array([7, 9]), type="dictionary<values=int64>"):
        with pytest.raises(TypeError, match="indices"):
            _check.as_ids(lent)


def test_ids_within_exhaustively():
    for vocab in range(1, 5):
        for ids in itertools.product(range(-2, 7), repeat=3):
            words = _check.as_ids(np.array(ids))
            outside = [(n, i) for n, i in enumerate(ids) if not 0 <= i < vocab]
            if outside:
                place, id_ = outside[0]
                also = rf" \(without a sign it is {id_ + 2**64}\)" if id_ < 0 else ""
                message = f"^id {id_} at position {place} is outside .*: ids go from 0 to {vocab - 1}{also}$"
                with pytest.raises(IndexError, match=message):
                    _check.ids_within(words, vocab)
            else:
                _check.ids_within(words, vocab)


@given(ids=strategies.ids(), vocab=st.integers(1, 2**63))
def test_ids_within_names_the_first_one_outside(ids, vocab):
    words = _check.as_ids(ids)
    outside = [n for n, i in enumerate(ids.reshape(-1)) if not 0 <= int(i) < vocab]
    if not outside:
        _check.ids_within(words, vocab)
        return
    place = np.unravel_index(outside[0], ids.shape) if ids.ndim else ()
    with pytest.raises(IndexError) as caught:
        _check.ids_within(words, vocab)
    # A uint64 id of 2^63 or more is shown by its bits, as a negative one, and as it came.
    shown = int(ids[place])
    shown = shown - 2**64 if shown >= 2**63 else shown
    where = tuple(map(int, place)) if ids.ndim > 1 else int(outside[0])
    assert str(caught.value).startswith(f"id {shown} at position {where} is outside")
    assert str(int(ids[place])) in str(caught.value)


def test_ids_within_takes_no_ids_at_all():
    _check.ids_within(_check.as_ids([]), 1)


# Arrays of numbers


@given(x=strategies.float32_arrays())
def test_float32_passes_as_it_is(x):
    got = _check.as_float32("gradients", x, x.shape)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, x)
    assert x.size == 0 or np.shares_memory(got, x)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint64", ">f4"])
def test_float32_from_other_types(dtype):
    got = _check.as_float32("x", np.array([[1, 2], [3, 4]], dtype).T, (2, 2))
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    assert got.tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 130])
def test_float32_refuses_what_is_not_finite_wherever_it_is(bad, n):
    for place in {0, n // 2, n - 1}:
        x = np.ones((n, 1), np.float32)
        x[place] = bad
        with pytest.raises(ValueError, match=rf"^x must be finite, got -?(nan|inf) at \({place}, 0\)"):
            _check.as_float32("x", x, x.shape)


def test_float32_takes_its_largest_and_smallest():
    tiny, huge = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    x = np.array([tiny, -tiny, huge, -huge, -0.0], np.float32)
    np.testing.assert_array_equal(_check.as_float32("x", x, (5,)), x)


def test_float32_refuses_other_shapes_and_types():
    with pytest.raises(ValueError, match=r"x must have shape \(2, 3\), got \(3, 2\)"):
        _check.as_float32("x", np.zeros((3, 2)), (2, 3))
    for x in (np.zeros(2, complex), np.array(["a", "b"]), np.array([None, None]), np.array([True, False])):
        with pytest.raises(TypeError, match="x must be real numbers, got"):
            _check.as_float32("x", x, (2,))


def test_float32_of_no_dimensions():
    assert _check.as_float32("x", 2.0, ()).shape == ()
    with pytest.raises(ValueError, match=r"x must be finite, got nan at \(\)"):
        _check.as_float32("x", np.nan, ())


@pytest.mark.filterwarnings("error")
def test_a_number_beyond_float32_is_refused_without_a_warning():
    with pytest.raises(ValueError, match=r"x must be finite, got inf at \(1,\)"):
        _check.as_float32("x", np.array([1.0, 1e300]), (2,))
