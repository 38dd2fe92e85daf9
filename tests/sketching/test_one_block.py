"""Lookups of one block an id: more ids than blocks give the bits of each id alone, whatever the method, codec and projection."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import cce_core as cce
from cce_core.sketching.one_block import blocks_of
from cce_core.storage.codec import CODECS

VOCAB, DIM = 400, 24
METHODS = {
    "full": {},
    "hash": {"num_params": 6 * DIM},
    "pq": {"num_bytes": 2000, "n_chunks": 1},
    "vq": {"num_bytes": 1500, "share": False},
    "vq, some with pointers": {"num_bytes": 740},
}


def made(name, codec, rank, seed=0):
    """A table of the method, clustered where it learns."""
    method, options = name.partition(",")[0], dict(METHODS[name])
    if "num_bytes" in options and not rank:
        options["num_bytes"] *= 3
    table = cce.make_table(method, vocab=VOCAB, dim=DIM, codec=codec, rank=rank, seed=seed, **options)
    if method != "full" and table.method.learns:
        table.cluster(vectors=np.random.default_rng(seed).normal(size=(VOCAB, DIM)).astype(np.float32))
    return table


@pytest.mark.parametrize(("name", "codec", "rank"), list(itertools.product(METHODS, CODECS, (0, 3, 4))))
def test_many_ids_give_the_bits_of_each_alone(name, codec, rank):
    table = made(name, codec, rank)
    rng, alone = np.random.default_rng(1), np.zeros((VOCAB, DIM), np.float32)
    some = rng.integers(0, VOCAB, 20)
    for i in some:
        alone[i] = table.lookup(i)
    ids = rng.choice(some, (5, 201))
    np.testing.assert_array_equal(table.lookup(ids), alone[ids])
    np.testing.assert_array_equal(table.forward(ids).vectors, alone[ids])
    both = cce.Collection([table, made(name, codec, rank, seed=1)])
    np.testing.assert_array_equal(both.lookup(np.stack([ids[0], ids[1]], 1))[:, :DIM], alone[ids[0]])
    with pytest.raises(IndexError, match=str(VOCAB)):
        table.lookup(np.append(ids.reshape(-1), VOCAB))


def test_which_tables_have_one_block_an_id():
    for name in METHODS:
        table = made(name, "int8", 4)
        assert blocks_of(table.layout, CODECS.index("int8")) == table.layout.columns[0].rows, name
    several = cce.make_table("cce", vocab=VOCAB, dim=DIM, num_params=600, seed=0)
    assert blocks_of(several.layout, 0) == 0  # a sum
    wrapped = cce.make_table("robe", vocab=VOCAB, dim=DIM, num_params=100, n_chunks=1, rank=0, seed=0)
    assert blocks_of(wrapped.layout, 0) == 0  # blocks overlap
    odd = cce.make_table("full", vocab=VOCAB, dim=DIM, rank=3, seed=0)
    assert [blocks_of(odd.layout, number) for number in range(len(CODECS))].count(0) == 2  # scales would cut them
