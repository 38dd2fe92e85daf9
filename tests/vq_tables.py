"""What the tests of vector quantisation share: small tables, fresh and trained."""

from __future__ import annotations

import numpy as np

import cce_core as cce

VOCAB, DIM = 60, 8
IDS = np.arange(VOCAB)


def made(vocab=VOCAB, dim=DIM, num_bytes=330, **more):
    return cce.make_table("vq", vocab, dim, **{"seed": 1, "num_bytes": num_bytes, **more})


def trained(steps=6, optimizer=None, seed=0, **more):
    """A table whose ids have moved apart, with every id counted at least once."""
    table, rng, optimizer = made(**more), np.random.default_rng(seed), optimizer or cce.Adam(0.1)
    for _ in range(steps):
        ids = np.concatenate([IDS, rng.integers(0, VOCAB // 3, VOCAB)])
        optimizer.update(table, ids, rng.standard_normal((len(ids), table.spec.dim)))
    return table


def arrays(table):
    return {name: array.copy() for name, array in table.arrays().items()}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
