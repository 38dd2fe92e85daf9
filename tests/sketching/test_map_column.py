"""Addresses by a map of own rows: lookups, bags and gradients against a dict that knows fingerprints."""

from __future__ import annotations

import numpy as np
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from reference.id_map import IdMap as Naive
from reference.id_map import twins

from cce_core import set_num_threads
from cce_core._jit import COMPILED
from cce_core.sketching import blocks
from cce_core.sketching.batch import JaggedBatch
from cce_core.sketching.descriptors import Memory, Sketch
from cce_core.sketching.group import TableGroup
from cce_core.sketching.layout import HASH, MAP, Column, Layout
from cce_core.storage.codec import CODECS, codec
from cce_core.tiers import IdMap
from cce_core.tiers.buckets import map_key

EXTREMES = np.array([0, 1, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)


def made(n_slots=16, n_shared=3, width=4, bits=16, seed=0, base=0, more=()):
    """A map with its twin, and a layout of which it is the first column."""
    column = Column(MAP, base, width, n_slots + n_shared, a=n_slots, b=0)
    size = base + width * (n_slots + n_shared) + sum(c.size for c in more)
    layout = Layout((column, *more), 1 + len(more), width, size, width, bits_per_id=bits)
    rows = IdMap(n_slots, bits=bits, seed=seed)
    keys = np.array([map_key(seed), 12345], np.uint64)
    return rows, Naive(n_slots, bits, seed), Sketch(layout, keys, rows.words)


def expected(naive, ids, n_shared):
    return [naive.own_or_shared(int(i), n_shared) for i in ids]


@given(
    bits=st.sampled_from([16, 32]),
    buckets=st.integers(1, 20),
    n_shared=st.integers(1, 9),
    width=st.integers(1, 5),
    base=st.sampled_from([0, 60]),
    seed=strategies.seeds,
    owners=st.lists(strategies.words, max_size=90),
    others=st.lists(strategies.words, max_size=30),
)
def test_addresses_are_those_of_own_rows_or_of_shared_ones(bits, buckets, n_shared, width, base, seed, owners, others):
    rows, naive, sketch = made(4 * buckets, n_shared, width, bits, seed, base * width)
    assert rows.insert(np.array(owners, np.uint64)).tolist() == naive.insert(owners)
    ids = np.array([*owners, *others, *EXTREMES.tolist()], np.uint64)
    at = expected(naive, ids, n_shared)
    assert blocks.addresses(sketch, ids)[:, 0].tolist() == [width * (base + row) for row in at]
    assert ((np.array(at) < 4 * buckets) == (rows.find(ids) >= 0)).all()


@pytest.mark.parametrize("number", range(len(CODECS)), ids=CODECS)
def test_vectors_and_gradients_are_those_of_the_rows(number):
    """Also while owners come and go: the map is read as it is at each call."""
    kept, rng = codec(CODECS[number]), np.random.default_rng(number)
    rows, naive, sketch = made(16, 3, 4)
    codes, scales = kept.encode(rng.standard_normal(19 * 4).astype(np.float32))
    table = kept.decode(codes, scales, 19 * 4).reshape(19, 4)
    group = TableGroup.of(sketch, Memory(number, codes, scales))
    for owners in ([], [5, 6, 7], range(40)):
        rows.insert(np.array(owners, np.uint64))
        naive.insert(owners)
        ids = np.array([5, 5, 99, 2**64 - 1, 0, *range(30, 45)], np.uint64)
        at = expected(naive, ids, 3)
        np.testing.assert_array_equal(blocks.lookup(group, ids), table[at])
        grads, whole = rng.standard_normal((len(ids), 4)).astype(np.float32), np.zeros((19, 4))
        np.add.at(whole, at, grads)
        batch = JaggedBatch.alone(ids)
        np.testing.assert_allclose(blocks.scatter(group, batch, grads).reshape(19, 4), whole, rtol=1e-5, atol=1e-6)
        sparse = blocks.scatter_sparse(group, batch, grads)
        np.testing.assert_allclose(sparse.dense().reshape(19, 4), whole, rtol=1e-5, atol=1e-6)
        assert sorted(sparse.index.tolist()) == sorted(set(at))
    rows.erase([5])
    naive.erase([5])
    assert expected(naive, [5], 3)[0] >= 16
    np.testing.assert_array_equal(blocks.lookup(group, np.array([5], np.uint64)), table[expected(naive, [5], 3)])


def test_a_map_stands_beside_hashes():
    """Two terms: an own or shared row, and a hashed one of another region."""
    more = Column(HASH, 19 * 4, 4, 7, b=1)
    rows, naive, sketch = made(16, 3, 4, more=(more,))
    assert sketch.layout.n_hashes == 2
    rows.insert([1, 2, 3])
    naive.insert([1, 2, 3])
    alone = sketch.part(Layout((more,), 1, 4, sketch.layout.size, 4))
    ids, values = np.arange(50, dtype=np.uint64), np.random.default_rng(0).standard_normal(26 * 4).astype(np.float32)
    hashed = values.reshape(-1, 4)[blocks.addresses(alone, ids)[:, 0] // 4]
    group = TableGroup.of(sketch, Memory(0, values))
    np.testing.assert_array_equal(blocks.lookup(group, ids), values.reshape(-1, 4)[expected(naive, ids, 3)] + hashed)


def test_twins_share_their_shared_row_as_they_share_an_own_one():
    _, _, sketch = made(8, 1000)
    for a, b in twins(8, 0):
        one, other = blocks.addresses(sketch, np.array([a, b], np.uint64))
        assert one == other
        assert one >= 8 * 4


def test_the_shared_row_of_an_owner_is_known_without_its_id():
    rows, naive, sketch = made(64, 50, 1)
    ids = np.arange(40, dtype=np.uint64)
    before = blocks.addresses(sketch, ids)[:, 0]
    owners = np.array([naive.identity(naive.name(int(i))) for i in ids], np.uint64)
    assert rows.shared_rows(owners, 50).tolist() == before.tolist()
    rows.insert(ids)
    assert (blocks.addresses(sketch, ids)[:, 0] < 64).all()
    with pytest.raises(ValueError, match="n_shared must be between 1 and"):
        rows.shared_rows(owners, 0)


@pytest.mark.skipif(not COMPILED, reason="thousands of ids")
def test_shared_rows_are_shared_evenly():
    _, _, sketch = made(16, 20, 1)
    counts = np.bincount(blocks.addresses(sketch, np.arange(100_000, dtype=np.uint64))[:, 0] - 16)
    assert len(counts) == 20
    assert ((counts - 5000) ** 2 / 5000).sum() < 55, "chi squared of 19 degrees, 1 in 40,000"


@pytest.mark.skipif(not COMPILED, reason="small batches stay on one thread")
def test_threads_change_nothing():
    rows, _, sketch = made(1 << 12, 64, 4)
    rng = np.random.default_rng(0)
    rows.insert(rng.integers(0, 5000, 4000))
    ids = rng.integers(0, 10_000, 50_000).astype(np.uint64)
    group = TableGroup.of(sketch, Memory(0, rng.standard_normal(sketch.layout.size).astype(np.float32)))
    grads, found = rng.standard_normal((len(ids), 4)).astype(np.float32), []
    for threads in (1, 2, 8):
        set_num_threads(threads)
        whole = blocks.scatter(group, JaggedBatch.alone(ids), grads)
        found.append((blocks.lookup(group, ids).tobytes(), whole.tobytes()))
    assert found[0] == found[1] == found[2]
