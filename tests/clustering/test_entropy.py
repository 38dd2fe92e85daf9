"""The two entropies that show collapse: against their definition, their bounds, and both ways of counting pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import kmeans as twin

from cce_core.clustering import column_entropy, entropy, least_entropies, pair_entropy

KINDS = st.sampled_from(["int8", "uint8", "int32", "uint32", "int64", "uint64"])


@st.composite
def tables(draw, most_columns=4):
    """Columns of labels below k, few enough for repeats."""
    k, n, c = draw(st.integers(1, 6)), draw(st.integers(1, 30)), draw(st.integers(1, most_columns))
    return draw(hnp.arrays(draw(KINDS), (c, n), elements=st.integers(0, k - 1))), k


@given(tables())
def test_entropies_equal_their_definition(table):
    columns, k = table
    for column in columns:
        assert column_entropy(column, k) == pytest.approx(twin.entropy(column.tolist()), abs=1e-12)
    for a, b in itertools.combinations(columns, 2):
        pairs = zip(a.tolist(), b.tolist())
        assert pair_entropy(a, b, k) == pytest.approx(twin.entropy(pairs), abs=1e-12)
    assert least_entropies(columns, k) == pytest.approx(twin.least_entropies(columns), abs=1e-12)
    assert least_entropies(list(columns), k) == least_entropies(columns, k)


@given(tables())
def test_bounds(table):
    columns, k = table
    h1, h2 = least_entropies(columns, k)
    assert 0 <= h1 <= math.log(k)
    assert h1 - 1e-12 <= h2 <= 2 * math.log(k)
    assert pair_entropy(columns[0], columns[0], k) == pytest.approx(column_entropy(columns[0], k), abs=1e-12)


def test_exhaustively_on_small_columns():
    for a in itertools.product(range(3), repeat=4):
        assert column_entropy(a, 3) == pytest.approx(twin.entropy(a), abs=1e-12)
        for b in itertools.product(range(2), repeat=4):
            assert pair_entropy(a, b, 3) == pytest.approx(twin.entropy(zip(a, b)), abs=1e-12)


@given(tables(), st.sampled_from(["_TABLE", "_CHUNK"]))
def test_sorting_and_chunks_count_the_same(table, name):
    columns, k = table
    expected = least_entropies(columns, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy, name, {"_TABLE": 0, "_CHUNK": 7}[name])
        assert least_entropies(columns, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1000, 1500, 65536, 65537, 2**20, 2**31])
def test_many_labels(k):
    # Around every bound: pairs in a table, codes of 32 bits, codes of 64, a column that is sorted.
    labels = np.array([0, k - 1, k - 1, 0, k // 2, k - 1], np.int64)
    other = labels[::-1].copy()
    assert column_entropy(labels, k) == pytest.approx(twin.entropy(labels.tolist()), abs=1e-12)
    assert pair_entropy(labels, other, k) == pytest.approx(
        twin.entropy(zip(labels.tolist(), other.tolist())), abs=1e-12
    )


@pytest.mark.parametrize("k", [1, 2, 3, 7, 10, 49, 1000, 1023])
def test_the_ends_are_reached_and_never_passed(k):
    even = np.arange(k)
    assert column_entropy(even, k) == pytest.approx(math.log(k), abs=1e-12)
    assert column_entropy(even, k) <= math.log(k)
    assert str(column_entropy(np.zeros(k, int), k)) == "0.0"  # not -0.0
    if k <= 49:
        a, b = np.divmod(np.arange(k * k), k)
        assert pair_entropy(a, b, k) == pytest.approx(2 * math.log(k), abs=1e-12)
        assert pair_entropy(a, b, k) <= 2 * math.log(k)


def test_collapse_is_seen():
    rng = np.random.default_rng(0)
    free = rng.integers(0, 8, (2, 4000))
    assert least_entropies(free, 8)[1] > 1.9 * math.log(8)
    assert least_entropies([free[0], (free[0] * 3 + 1) % 8], 8)[1] == pytest.approx(least_entropies(free[:1], 8)[0])
    assert least_entropies([free[0], np.zeros(4000, int)], 8)[0] == 0


@pytest.mark.parametrize(
    ("labels", "k", "error", "message"),
    [
        ([0, 3], 3, IndexError, "between 0 and 2, got 3"),
        ([-1, 0], 3, IndexError, "got -1"),
        ([0.0, 1.0], 3, TypeError, "integers, got float64"),
        ([], 3, ValueError, "at least one label"),
        ([[0, 1]], 3, ValueError, "one column"),
        ([0], 0, ValueError, "k must be"),
    ],
)
def test_refused(labels, k, error, message):
    with pytest.raises(error, match=message):
        column_entropy(labels, k)
    with pytest.raises(error, match=message):
        pair_entropy(labels, labels, k)
    with pytest.raises(error, match=message):
        least_entropies([labels], k)


def test_unequal_or_missing_columns_are_refused():
    with pytest.raises(ValueError, match="same number of labels, got 2 and 1"):
        pair_entropy([0, 1], [0], 2)
    with pytest.raises(ValueError, match="got 2, 1"):
        least_entropies([[0, 1], [0]], 2)
    with pytest.raises(ValueError, match="at least one column"):
        least_entropies([], 2)
