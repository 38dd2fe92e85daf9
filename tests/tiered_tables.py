"""Tables whose ids earn rows, trained on a small stream: shared by the tests of their clusterings."""

from __future__ import annotations

import numpy as np

import cce_core as cce
from cce_core._jit import COMPILED

DIM = 4
NAMES = ["user", "item"]


def made(many=False, num_bytes=2400, **more):
    more = {"rank": 0, "codec": "float32", "seed": 3, "half_life": 5, "lead": 1, **more}
    if many:
        return cce.make_collection("tiered", NAMES, DIM, num_bytes=num_bytes, **more)
    return cce.make_table("tiered", None, DIM, num_bytes=num_bytes, **more)


def stream(n, size=30, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.zipf(1.3, (size, 2)) % 2**40).astype(np.int64) for _ in range(n)]


def asked(table, ids):
    return ids if isinstance(table, cce.Collection) else ids[:, 0]


def train(table, batches, optimiser=None):
    optimiser = cce.SGD(0.1) if optimiser is None else optimiser
    for ids in batches:
        seen = table.forward(asked(table, ids))
        optimiser.update(table, seen, np.sin(seen.vectors + np.arange(seen.vectors.shape[1], dtype=np.float32)))
    return optimiser


def trained(*args, batches=8, **more):
    table = made(*args, **more)
    train(table, stream(batches if COMPILED else 4))
    return table


def whole(table):
    return table.shared if isinstance(table, cce.Collection) else table


def same(one, other):
    assert one.spec == other.spec
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, other.arrays()[name], err_msg=name)
