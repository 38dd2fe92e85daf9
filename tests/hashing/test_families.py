"""Hashing against its golden values, its twin in Python's integers, and itself."""

from __future__ import annotations

import itertools
import json
import math
import pickle

import numpy as np
import pytest
import strategies
from golden import make_hashing
from hypothesis import given
from hypothesis import strategies as st
from reference import hashing as twin

from cce_core import _threads
from cce_core._jit import COMPILED
from cce_core.hashing import (
    PolynomialHash,
    balanced_bases,
    derive_key,
    digits,
    hash_strings,
    mix,
    mix_hash,
    polynomial,
    undigits,
)
from cce_core.hashing.distinct import number_distinct
from cce_core.hashing.mix import derive_keys

GOLDEN = json.loads(make_hashing.PATH.read_text(encoding="ascii"))
P = 2**61 - 1
EDGES = sorted({x + d for x in (0, 2**31, 2**32, 2**61, 2**62, 2**63) for d in (-2, -1, 0, 1, 2)} - {-2, -1})
EDGES += [2**64 - 2, 2**64 - 1]
MANY = 2 * (1 << 15) + 17 if COMPILED else 600  # enough for two threads of the mix


def words(numbers):
    return np.array([int(x, 0) % 2**64 for x in numbers], np.uint64)


# Golden values: literals first, so that a file written anew by a changed twin is not believed.


def test_pinned():
    assert derive_key(0) == 0x8989DAEB32B35E15
    assert derive_key(1, 2, 3) == 0x40C93BC1085F49E
    expected = [0x68E24AF989300DA4, 0x1BBAB523AA8E925A, 0x967C16AF163F7539]
    assert mix_hash([0, 1, -1], seed=1, stream=2).tolist() == expected
    expected = [1560175811087049406, 1399500719938691818, 1656501395546822213]
    assert PolynomialHash(3, 5)([0, 1, -1], P).tolist() == expected
    assert hash_strings(["", "a", "user_1"]).tolist() == [0x2D06800538D394C2, 16629034431890738719, 2375940910326535585]


def test_golden_file_is_the_twins():
    assert make_hashing.PATH.read_text(encoding="ascii") == make_hashing.text()


def test_golden_keys():
    for case in GOLDEN["keys"]:
        assert derive_key(int(case["seed"], 0), *(int(x, 0) for x in case["stream"])) == int(case["key"], 0)
    assert len({case["key"] for case in GOLDEN["keys"]}) == len(GOLDEN["keys"])


def golden_hash(case, ids):
    seed, n = int(case["seed"], 0), case["n_buckets"] and int(case["n_buckets"], 0)
    if "k" in case:
        return PolynomialHash(case["k"], seed)(ids, n)
    return mix_hash(ids, n, seed=seed, stream=int(case["stream"], 0))


@pytest.mark.parametrize("family", ["mix", "polynomial"])
def test_golden_hashes(family):
    ids = words(GOLDEN["ids"])
    for case in GOLDEN[family]:
        assert np.array_equal(golden_hash(case, ids), words(case["hashes"])), case
        assert np.array_equal(golden_hash(case, ids.view(np.int64)), words(case["hashes"])), case


@pytest.mark.parametrize("family", ["mix", "polynomial"])
def test_golden_negative_ids(family):
    numbers = [int(x) for x in GOLDEN["ids"]]
    negative = [i for i, x in enumerate(numbers) if x < 0]
    assert len(negative) > 3
    for case in GOLDEN[family]:
        expected = words(case["hashes"])[negative]
        assert np.array_equal(golden_hash(case, [numbers[i] for i in negative]), expected)


def test_golden_digits():
    for case in GOLDEN["digits"]:
        bases, ids = [int(base, 0) for base in case["bases"]], words(case["ids"])
        expected = np.array([words(row) for row in case["digits"]])
        assert np.array_equal(digits(ids, bases), expected)
        assert np.array_equal(undigits(expected, bases), ids)
    for case in GOLDEN["balanced_bases"]:
        assert balanced_bases(int(case["vocab"], 0), case["n"]) == tuple(int(base, 0) for base in case["bases"])


# The arithmetic.


def test_multiply_high_and_mod():
    for a, b in itertools.product(EDGES, EDGES):
        assert int(mix.multiply_high(np.uint64(a), np.uint64(b))) == a * b >> 64
    field = [x for x in EDGES if x < P] + [3, P // 2, P // 3, P - 3]
    for a, b in itertools.product([*field, P], [*field, P]):
        assert int(polynomial.multiply_mod(np.uint64(a), np.uint64(b))) == a * b % P
    for a, b in itertools.product(field, field):
        assert int(polynomial.add_mod(np.uint64(a), np.uint64(b))) == (a + b) % P


@given(strategies.words, strategies.words)
def test_arithmetic(a, b):
    assert int(mix.multiply_high(np.uint64(a), np.uint64(b))) == a * b >> 64
    a, b = a % P, b % P
    assert int(polynomial.multiply_mod(np.uint64(a), np.uint64(b))) == a * b % P
    assert int(polynomial.reduce61(np.uint64(a), np.uint64(b))) == a * b >> 61


@given(strategies.words, strategies.words)
def test_mix_is_a_bijection(x, key):
    assert twin.unpremix(int(mix.premix(np.uint64(x)))) == x
    z = int(mix.keyed(np.uint64(x), np.uint64(key)))
    for factor, shift in ((twin.F3, 32), (twin.F2, 29), (twin.F1, 32)):
        z ^= z >> shift ^ (z >> 2 * shift if 2 * shift < 64 else 0)
        z = z * pow(factor, -1, 2**64) % 2**64
    assert z ^ key == x


@given(st.data(), strategies.words, st.lists(strategies.words, min_size=3, max_size=5))
def test_polynomial_equals_the_twin_for_any_coefficients(data, x, numbers):
    c, *a = [number % P for number in numbers]
    edge = data.draw(st.sampled_from([None, 0, P - 1]))
    if edge is not None:
        a[-1] = edge
    got = int(polynomial.polynomial(np.uint64(x), np.array([c, *a], np.uint64)))
    assert got == twin.polynomial_of(x, c, a) < P


def test_coefficients_are_drawn_again_at_the_prime(monkeypatch):
    keys = iter([2**64 - 1, (P << 3) + 5, (P - 1 << 3) + 7, 0, 2**64 - 1, 8, 16])
    monkeypatch.setattr(polynomial, "derive_key", lambda *stream: next(keys))
    assert PolynomialHash(3).coefficients == (P - 1, 0, 1, 2)
    assert next(keys, None) is None


# Equal to the twin, over types, shapes, byte orders, layouts.


@given(
    strategies.ids(),
    strategies.seeds,
    st.integers(0, 5),
    st.none() | st.integers(1, 2**63) | st.sampled_from([1, 2, 2**63]),
)
def test_mix_equals_the_twin(ids, seed, stream, n_buckets):
    got = mix_hash(ids, n_buckets, seed=seed, stream=stream)
    assert got.shape == ids.shape
    assert got.dtype == np.uint64
    assert got.reshape(-1).tolist() == [twin.mix_hash(x, n_buckets, seed, stream) for x in ids.reshape(-1).tolist()]
    assert n_buckets is None or all(x < n_buckets for x in got.reshape(-1).tolist())


@given(strategies.ids(), strategies.seeds, st.integers(2, 6), st.integers(1, P) | st.sampled_from([1, 2, P]))
def test_polynomial_equals_the_twin(ids, seed, k, n_buckets):
    got = PolynomialHash(k, seed)(ids, n_buckets)
    assert got.shape == ids.shape
    assert got.dtype == np.uint64
    assert got.reshape(-1).tolist() == [twin.polynomial_hash(x, n_buckets, k, seed) for x in ids.reshape(-1).tolist()]
    assert all(x < n_buckets for x in got.reshape(-1).tolist())


@pytest.mark.parametrize("hashed", [lambda ids: mix_hash(ids, 1000), lambda ids: PolynomialHash(3)(ids, 1000)])
def test_the_form_of_the_ids_does_not_matter(hashed):
    expected = hashed(np.arange(100, dtype=np.uint64))
    for dtype in strategies.INTEGER_TYPES:
        assert np.array_equal(hashed(np.arange(100, dtype=dtype)), expected)
    assert np.array_equal(hashed(list(range(100))), expected)
    assert np.array_equal(hashed(np.arange(100).reshape(4, 25).T), expected.reshape(4, 25).T)
    assert np.array_equal(hashed(np.arange(100)[::-1]), expected[::-1])
    assert hashed(7).shape == ()
    assert hashed(7) == expected[7]
    assert hashed([]).shape == (0,)
    assert hashed(np.zeros((3, 0), np.int8)).shape == (3, 0)


def test_results_do_not_depend_on_the_threads(monkeypatch):
    if not COMPILED:  # as many slices out of fewer ids
        for module in (mix, polynomial, digits_module()):
            monkeypatch.setattr(
                module, "parallel_for", lambda kernel, n, min_chunk, *args: _threads.parallel_for(kernel, n, 100, *args)
            )
    ids = np.random.default_rng(0).integers(0, 2**64, MANY, dtype=np.uint64)
    found = []
    for n in (1, 2, 3, 5):
        _threads.set_num_threads(n)
        found.append(
            (mix_hash(ids, 10**6), PolynomialHash(2)(ids, 10**6), digits(ids, (2**40, 2**24)), mix_hash(ids, seed=3))
        )
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other))
    where = [0, 1, MANY // 2, MANY - 1]
    assert found[0][0][where].tolist() == [twin.mix_hash(int(ids[i]), 10**6) for i in where]


def digits_module():
    import sys

    return sys.modules["cce_core.hashing.digits"]  # the package's own `digits` is the function


# Bad input.


@pytest.mark.parametrize("hashed", [lambda ids: mix_hash(ids, 9), PolynomialHash().__call__, digits])
@pytest.mark.parametrize("ids", [[0.5], [True], ["a"], None, np.zeros(2), [np.nan]])
def test_ids_that_are_not_integers(hashed, ids):
    with pytest.raises(TypeError, match="ids must be integers"):
        hashed(ids, [9]) if hashed is digits else hashed(ids) if hashed.__name__ == "<lambda>" else hashed(ids, 9)


def test_arguments_out_of_range():
    for n in (0, -1, 2**63 + 1):
        with pytest.raises(ValueError, match="n_buckets must be between 1 and"):
            mix_hash([1], n)
    for n in (0, -1, 2**61, 2**63):
        with pytest.raises(ValueError, match="n_buckets must be between 1 and"):
            PolynomialHash()([1], n)
    for k in (1, 0, -2, 257):
        with pytest.raises(ValueError, match="k must be between 2 and 256"):
            PolynomialHash(k)
    for seed in (-1, 2**64):
        for made in (lambda s: mix_hash([1], 9, seed=s), lambda s: PolynomialHash(2, s), lambda s: hash_strings("", s)):
            with pytest.raises(ValueError, match="seed must be between 0 and"):
                made(seed)
    for wrong in (2.0, None, "3", True):
        for made in (lambda k: PolynomialHash(k), lambda n: PolynomialHash()([1], n), lambda s: hash_strings("", s)):
            with pytest.raises(TypeError, match="must be a whole number"):
                made(wrong)
    with pytest.raises(ValueError, match="stream must be between"):
        mix_hash([1], 9, stream=-1)


def test_polynomial_is_a_value():
    a, b = PolynomialHash(3, 5), PolynomialHash(np.int64(3), np.uint64(5))
    assert a == b
    assert hash(a) == hash(b)
    assert a != PolynomialHash(3, 6)
    assert repr(a) == "PolynomialHash(k=3, seed=5)"
    again = pickle.loads(pickle.dumps(a))
    assert again == a
    assert again.coefficients == a.coefficients == tuple(twin.coefficients(3, 5))
    # Neither k nor the seed may be a mere prefix of another's draws.
    assert not set(a.coefficients) & (set(PolynomialHash(4, 5).coefficients) | set(PolynomialHash(3, 6).coefficients))
    with pytest.raises(AttributeError):
        a.k = 4


# Digits.


def test_digits_of_all_ids_in_small_bases():
    for length in (1, 2, 3):
        for bases in itertools.product(range(1, 6), repeat=length):
            product = math.prod(bases)
            got = digits(np.arange(product), bases)
            assert got.tolist() == [twin.digits(x, bases) for x in range(product)]
            assert len({tuple(row) for row in got.tolist()}) == product
            assert np.array_equal(undigits(got, bases), np.arange(product))
            for wrong in (product, -1):
                with pytest.raises(IndexError, match=rf"id {wrong} at position 1 .* from 0 to {product - 1}"):
                    digits([0, wrong], bases)


@given(st.data(), st.lists(st.integers(1, 50) | st.integers(1, 2**63), min_size=1, max_size=6))
def test_digits_and_back(data, bases):
    product = math.prod(bases)
    ids = data.draw(strategies.ids(vocab=min(product, 2**64)))
    got = digits(ids, bases)
    assert got.shape == (*ids.shape, len(bases))
    assert got.dtype == np.uint64
    assert got.reshape(-1, len(bases)).tolist() == [twin.digits(x, bases) for x in ids.reshape(-1).tolist()]
    back = undigits(got, bases)
    assert back.shape == ids.shape
    assert back.dtype == np.uint64
    assert back.tolist() == ids.tolist()
    if product < 2**64:
        with pytest.raises(IndexError):
            digits([product], bases)


@given(st.data(), st.lists(st.integers(1, 2**63), min_size=1, max_size=4))
def test_undigits_takes_any_digits_or_says_why_not(data, bases):
    row = [data.draw(st.integers(0, base - 1) | st.just(base - 1)) for base in bases]
    expected = twin.undigits(row, bases)
    if expected < 2**64:
        assert int(undigits(np.array(row, np.uint64), bases)) == expected
    else:
        with pytest.raises(IndexError, match=r"at position \(\) make an id above 2\^64"):
            undigits(np.array(row, np.uint64), bases)


def test_digits_near_the_end_of_64_bits():
    for bases in ((3, 2**62), (2**62, 3)):  # their product is above 2^63, so that it refuses but some negative ids
        assert undigits(digits([2**63, 3 * 2**62 - 1], bases), bases).tolist() == [2**63, 3 * 2**62 - 1]
        for wrong in (3 * 2**62, -1):
            with pytest.raises(IndexError, match=r"at position 0 .* from 0 to 13835058055282163711"):
                digits([wrong], bases)
    assert digits(-1, (2**32, 2**32)).tolist() == [2**32 - 1, 2**32 - 1]  # all words are below 2^64
    third = 2**64 // 3
    assert undigits(np.array([0, third], np.uint64), (3, 2**63)) == 2**64 - 1
    with pytest.raises(IndexError, match="make an id above"):  # the sum alone passes 2^64, not the product
        undigits(np.array([1, third], np.uint64), (3, 2**63))


def test_undigits_refuses():
    with pytest.raises(IndexError, match=r"digit 3 at position \(1, 0\) must be below its base 3"):
        undigits([[0, 3], [3, 0]], (3, 4))
    with pytest.raises(IndexError, match=r"digit -1 at position \(0, 1, 1\) must be below its base 4"):
        undigits([[[0, 3], [2, -1]]], (3, 4))
    with pytest.raises(IndexError, match=r"digit 4 at position \(1,\) "):
        undigits([0, 4], (3, 4))
    with pytest.raises(ValueError, match=r"must be 2 long, one a base; got shape \(3,\)"):
        undigits([1, 2, 3], (3, 4))
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        undigits(1, (3,))
    assert undigits(np.zeros((0, 2), int), (3, 4)).shape == (0,)
    assert digits(np.zeros((0, 2), int), (3, 4)).shape == (0, 2, 2)


@pytest.mark.parametrize("call", [lambda bases: digits([0], bases), lambda bases: undigits([[0]], bases)])
def test_wrong_bases(call):
    for bases, error, message in (
        ([], ValueError, "at least one base"),
        ([0], ValueError, r"bases\[0\] must be between 1 and"),
        ([3, -1], ValueError, r"bases\[1\]"),
        ([2**63 + 1], ValueError, r"bases\[0\]"),
        ([2.0], TypeError, r"bases\[0\] must be a whole number"),
        (7, TypeError, "sequence of whole numbers, got 7"),
    ):
        with pytest.raises(error, match=message):
            call(bases)


def test_balanced_bases_on_all_small():
    for n in range(1, 6):
        for vocab in range(1, 400):
            got = balanced_bases(vocab, n)
            assert got == twin.balanced_bases(vocab, n)
            assert len(got) == n
            assert math.prod(got) >= vocab
            assert got[0] - got[-1] <= 1
            if n <= 3 and vocab < 60:  # no other bases have fewer rows in all
                others = itertools.product(range(1, vocab + 1), repeat=n - 1)
                assert sum(got) == min(sum(some) + -(-vocab // math.prod(some)) for some in others)


@given(st.integers(1, 2**64), st.integers(2, 64))
def test_balanced_bases(vocab, n):
    got = balanced_bases(vocab, n)
    largest = got[0]
    assert len(got) == n
    assert math.prod(got) >= vocab
    assert all(base in (largest, largest - 1) for base in got)
    if largest > 1:  # one row fewer is not enough
        fewer = list(got)
        fewer[got.count(largest) - 1] -= 1
        assert math.prod(fewer) < vocab


def test_balanced_bases_at_exact_powers():
    for base, n in itertools.product((2, 3, 1000, 2**16, 4_194_303), (2, 3, 4)):
        if base**n < 2**64:
            assert balanced_bases(base**n, n) == (base,) * n
            assert balanced_bases(base**n + 1, n) == (base + 1, *(base,) * (n - 1))
    assert balanced_bases(2**64, 2) == (2**32, 2**32)
    assert balanced_bases(2**63, 1) == (2**63,)
    assert balanced_bases(1, 3) == (1, 1, 1)
    for vocab, n in ((0, 2), (2**64 + 1, 2), (5, 0), (5, 65), (2**63 + 1, 1)):
        with pytest.raises(ValueError):
            balanced_bases(vocab, n)
    with pytest.raises(TypeError):
        balanced_bases(10.0, 2)


@given(st.lists(st.integers(0, 30) | strategies.words, max_size=60))
def test_words_are_numbered_in_the_order_in_which_they_come_first(given_words):
    array = np.array(given_words, np.uint64)
    numbers, firsts = np.empty(len(array), np.int64), np.empty(len(array), np.int64)
    count = number_distinct(array, numbers, firsts)
    distinct = list(dict.fromkeys(given_words))
    assert count == len(distinct)
    assert [distinct[m] for m in numbers] == given_words
    assert firsts[:count].tolist() == [given_words.index(word) for word in distinct]


@given(strategies.words, st.lists(strategies.words, max_size=3), st.integers(0, 5))
def test_derived_keys_are_those_of_their_places(seed, stream, n):
    assert derive_keys(seed, n, *stream).tolist() == [derive_key(seed, *stream, j) for j in range(n)]
