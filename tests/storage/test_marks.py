"""A bit an id: which have an entry, and its number among those of all marked ids."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from reference import tables as naive

from cce_core.storage.marks import IDS, NONE, entries, mark, n_words


@given(st.integers(1, 3 * IDS), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.5, 1.0]), st.integers(1, 700))
def test_an_entry_is_the_number_of_marks_before(vocab, seed, share, step):
    """Marked all at once or some at a time, across blocks and words."""
    wanted = np.random.default_rng(seed).random(vocab) < share
    words, before = np.zeros(n_words(vocab), np.uint64), 0
    for low in range(0, vocab, step):
        before = mark(words, low, wanted[low : low + step], before)
    assert before == wanted.sum()
    expected = np.where(wanted, np.cumsum(wanted) - 1, -1).astype(np.int64)
    np.testing.assert_array_equal(entries(words, np.arange(vocab, dtype=np.uint64)).view(np.int64), expected)
    some = range(0, vocab, 1 + vocab // 50)
    assert [naive.marked(words, i) for i in some] == wanted[list(some)].tolist()


def test_they_take_little_more_than_a_bit_an_id():
    assert 64 * n_words(4_800_000) == 512 * 10_000
    assert [n_words(n) for n in (0, 1, IDS, IDS + 1)] == [0, 8, 8, 16]
    assert NONE == 2**64 - 1
