"""Steps of memories with a codec: they decode, move and round the touched blocks of 64 floats, and no others."""

from __future__ import annotations

import dataclasses
import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.hashing.mix import derive_key
from cce_core.method import memory
from cce_core.method.spec import ROUNDING
from cce_core.storage.codec import BLOCK, CODECS, codec

OPTIMISERS = {
    "sgd": lambda: cce.SGD(0.1),
    "adagrad": lambda: cce.Adagrad(0.1),
    "row-wise": lambda: cce.Adagrad(0.1, rowwise=True),
    "lazy": lambda: cce.AdamW(0.1, weight_decay=0.1, lazy=True),
    "row-wise bfloat16": lambda: cce.Adagrad(0.1, rowwise=True, state_dtype="bfloat16"),
    "lazy row-wise adam": lambda: cce.Adam(0.1, lazy=True, rowwise=True),
}
ROUNDINGS = ("straight-through", "stochastic")


def blocks_of(index, unit):
    """The blocks that units reach into, a float at a time."""
    return sorted({(i * unit + k) // BLOCK for i in index for k in range(unit)})


def coded(kept, floats, key):
    """Codes, scales and what training goes on from; of int4, rounded at random, these are sixteenths of a step."""
    if kept.name != "int4" or key is None:
        codes, scales = kept.encode(floats, key)
        return codes, scales, kept.decode(codes, scales, floats.size)
    parts, scales = dataclasses.replace(codec("int8"), most=16 * 7).encode(floats, key)
    nibbles = np.append((parts.astype(int) + 8) // 16 + 8, [0] * (parts.size % 2)).astype(np.uint8)
    return (
        nibbles[::2] | nibbles[1::2] << 4,
        16 * scales,
        parts / np.float32(16) * np.repeat(16 * scales, BLOCK)[: parts.size],
    )


@given(
    name=st.sampled_from(CODECS[1:]),
    rounding=st.sampled_from(ROUNDINGS),
    kind=st.sampled_from(sorted(OPTIMISERS)),
    dim=st.sampled_from([1, 3, 4, 24, 64, 70, 130]),  # units within a block, across two, and over several
    vocab=st.integers(1, 90 if COMPILED else 30),
    some=st.sampled_from([1, 2, 512]),
    seed=st.integers(0, 99),
)
def test_a_step_is_that_of_the_floats_rounded_in_the_touched_blocks(name, rounding, kind, dim, vocab, some, seed):
    rng = np.random.default_rng(seed)
    table = cce.make_table("full", vocab, dim, codec=name, rounding=rounding, seed=seed)
    twin = cce.make_table("full", vocab, dim, seed=seed)  # which trains the floats behind the codes
    twin.parameters()["memory"][:] = table.stored.decoded()
    optimizer, other, kept = OPTIMISERS[kind](), OPTIMISERS[kind](), codec(name)
    for step in (1, 2, 3):
        ids = rng.integers(0, vocab, rng.integers(0, 5))
        g = rng.standard_normal((len(ids), dim)).astype(np.float32)
        codes, scales = (table.arrays().get(n, np.empty(0)).copy() for n in ("memory", "scales"))
        with mock.patch.object(memory, "_UNITS", some):
            optimizer.step(table, table.backward(ids, g))
        gradient = twin.backward(ids, g)
        other.step(twin, gradient)
        key = derive_key(seed, ROUNDING, step) if rounding == "stochastic" else None
        floats = twin.parameters()["memory"]
        want, wanted_scales, rounded = coded(kept, floats, key)
        blocks = blocks_of(gradient["memory"].index.tolist(), dim)
        for block in range(-(-vocab * dim // BLOCK)):
            part = slice(
                block * BLOCK * kept.bits // 8 // codes.itemsize, (block + 1) * BLOCK * kept.bits // 8 // codes.itemsize
            )
            np.testing.assert_array_equal(
                table.arrays()["memory"][part], want[part] if block in blocks else codes[part]
            )
            if scales.size:
                right = wanted_scales if block in blocks else scales
                assert table.arrays()["scales"][block] == right[block]
        if rounding == "stochastic":  # what a step leaves over is lost
            moved = np.isin(np.arange(floats.size) // BLOCK, blocks)
            floats[moved] = rounded[moved]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_values_that_somebody_has_asked_for_and_changed_are_not_lost(rounding):
    table = cce.make_table("full", 40, 4, codec="int8", rounding=rounding)
    table.parameters()["memory"][:] = 0.5
    if rounding == "straight-through":
        table.requantize()
    cce.SGD(0.1).update(table, [0], np.zeros((1, 4)))
    np.testing.assert_allclose(table.lookup(np.arange(40)), 0.5, rtol=1e-6)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_codes_do_not_depend_on_the_number_of_threads(kind):
    n, vocab, seen = (60_000, 80_000, []) if COMPILED else (300, 400, [])
    rng = np.random.default_rng(0)
    ids, g = rng.integers(0, vocab, n), rng.standard_normal((n, 4)).astype(np.float32)
    for threads in (1, 2, 5):
        cce.set_num_threads(threads)
        table, optimizer = cce.make_table("full", vocab, 4, codec="int4", rounding="stochastic"), OPTIMISERS[kind]()
        for _ in range(2):
            optimizer.update(table, ids, g)
        seen.append(table.arrays())
    cce.set_num_threads(None)
    for other in seen[1:]:
        for name, array in seen[0].items():
            np.testing.assert_array_equal(array, other[name])


@pytest.mark.once
@pytest.mark.parametrize("whole", [False, True])
def test_a_stochastic_step_holds_the_floats_of_the_batch_alone(whole):
    """All of them would be 16 bytes per id; which a step that moves everything needs."""
    vocab = 100_000 if COMPILED else 10_000
    table = cce.make_table("full", vocab, 4, codec="int8", rounding="stochastic")
    optimizer = cce.AdamW(0.1) if whole else cce.SGD(0.1)
    for turn in range(2):
        if turn:
            tracemalloc.start()
        optimizer.update(table, np.arange(0, vocab, vocab // 50), np.ones((50, 4)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (peak > 4 * 4 * vocab) if whole else (peak < 80_000)
    assert table.ledger().training["values"] == 0


@pytest.mark.parametrize("whole", [False, True])
def test_small_steps_to_and_fro_do_not_drown_int4(whole):
    """Rounded at random to codes, 400 moves by a 20th of a step scatter by √(400/20) = 4.5 of them; to sixteenths, by 1.1."""
    vocab, steps = (64, 400) if COMPILED else (16, 100)
    table = cce.make_table("full", vocab, 4, codec="int4", rounding="stochastic", seed=3)
    before, scale = table.lookup(np.arange(vocab)), float(table.arrays()["scales"].mean())
    for step in range(steps):
        g = np.full((vocab, 4), 1.0 if step % 2 else -1.0)
        cce.SGD(scale / 20).step(table, table.backward(np.arange(vocab), g, dense=whole))
    apart = (table.lookup(np.arange(vocab)) - before) / scale
    assert 0 < np.square(apart).mean() < 3 * steps / 400
    assert table.ledger().training["remainders"] == vocab * 4 // 2
    assert table.ledger().training["values"] == 0


def test_a_clustering_leaves_no_remainders_of_what_was_before():
    table = cce.make_table("cce", 60, 8, num_params=512, codec="int4", rank=0, rounding="stochastic", seed=1)
    cce.SGD(0.01).step(table, table.backward(np.arange(60), np.ones((60, 8))))
    assert not np.array_equal(table.stored.decoded(), table.parameters()["memory"])
    table.requantize()
    table.cluster()
    np.testing.assert_array_equal(table.stored.decoded(), table.parameters()["memory"])
