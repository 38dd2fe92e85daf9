"""64-bit words in halves of 32: the golden hashes, and every operator against Python's integers."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import strategies
from golden import make_hashing
from hypothesis import given
from hypothesis import strategies as st

from cce_core.hashing import derive_key
from cce_core.hashing.halves import Halves, keyed, premix

GOLDEN = json.loads(make_hashing.PATH.read_text(encoding="ascii"))
EDGES = [0, 1, 2, 2**16 - 1, 2**16, 2**31, 2**32 - 1, 2**32, 2**33 + 1, 2**63, 2**64 - 2, 2**64 - 1]


def whole(words):
    """The words as Python's integers."""
    assert words.high.dtype == words.low.dtype == np.uint32
    return [int(high) << 32 | int(low) for high, low in zip(words.high, words.low, strict=True)]


@pytest.mark.parametrize("case", GOLDEN["mix"], ids=lambda case: f"{case['seed']}-{case['stream']}-{case['n_buckets']}")
def test_golden_hashes(case):
    numbers = [int(x) % 2**64 for x in GOLDEN["ids"]]
    words = Halves.split(np.array(numbers, np.uint64))
    hashed = keyed(premix(words), Halves.constants([derive_key(int(case["seed"], 0), int(case["stream"], 0))]))
    expected, n = [int(x, 0) for x in case["hashes"]], case["n_buckets"] and int(case["n_buckets"], 0)
    if not n:
        assert whole(hashed) == expected
    elif n < 2**32:
        assert hashed.high_product(n).tolist() == expected


def test_operators_at_the_edges():
    for a, b in itertools.product(EDGES, EDGES):
        check_operators(a, b)


@given(strategies.words, strategies.words)
def test_operators(a, b):
    check_operators(a, b)


def check_operators(a, b):
    words = Halves.constants([a])
    assert whole(words ^ Halves.constants([b])) == [a ^ b]
    assert whole(words + Halves.constants([b])) == [(a + b) % 2**64]
    assert whole(words * b) == [a * b % 2**64]
    assert words.low_half().tolist() == [a % 2**32]
    n = b % 2**32 or 1
    assert words.high_product(n).tolist() == [a * n >> 64]
    kept, inside = words.within(b % 2**63 + 1)
    assert (whole(kept), inside.tolist()) == ([a if a <= b % 2**63 else 0], [a <= b % 2**63])


@given(strategies.words, st.integers(1, 32))
def test_shifts(a, n):
    assert whole(Halves.constants([a]) >> n) == [a >> n]


def test_split_takes_integers_of_every_type():
    for kind in strategies.INTEGER_TYPES:
        info = np.iinfo(kind)
        ids = np.array([info.min, 1, info.max], kind)
        assert whole(Halves.split(ids)) == [int(i) % 2**64 for i in ids], kind
    assert whole(Halves.split(np.arange(4))[[1, 3]]) == [1, 3]
    assert whole(Halves.of(np.array([7], np.uint32))) == [7]
