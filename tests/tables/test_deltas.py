"""Copies that follow a table by deltas alone: the same bits, in the right order, or nothing at all."""

from __future__ import annotations

import copy
import dataclasses
import sys

import numpy as np
import pytest

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.serving import Reader
from cce_core.tables import deltas, load_delta


def made(many=False, codec="int8", **more):
    more = {"rank": 2, "codec": codec, "seed": 1, "lead": 1, "half_life": 3, **more}
    if many:
        return cce.make_collection("tiered", 2, 4, num_bytes=1500, **more)
    return cce.make_table("tiered", None, 4, num_bytes=900, **more)


def train(table, n, seed=0, optimiser=None):
    rng, optimiser = np.random.default_rng(seed), cce.SGD(0.1) if optimiser is None else optimiser
    for _ in range(n):
        ids = rng.zipf(1.3, (20, 2)) % 2**40
        seen = table.forward(ids if isinstance(table, cce.Collection) else ids[:, 0])
        optimiser.update(table, seen, np.cos(seen.vectors))


def same(one, other, names=None):
    for name in names or one.arrays():
        np.testing.assert_array_equal(one.arrays()[name], other.arrays()[name], err_msg=name)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("codec", ["float32", "int8", "int4"])
@pytest.mark.parametrize("complete", [False, True])
def test_a_copy_that_is_fed_with_deltas_alone_has_the_same_bits(many, codec, complete, tmp_path):
    """Through files, with ids that are erased; a complete one trains on with the same bits."""
    table = made(many, codec)
    train(table, 2)
    table.save(tmp_path / "t")
    replica, signature = cce.load(tmp_path / "t"), table.signature(complete=complete)
    for k in range(4 if COMPILED else 2):
        train(table, 3, k)
        known = set(table.owners.map.identities(np.arange(table.owners.map.n_slots)).tolist())
        erased = table.erase(np.arange(1, 4)).any()
        delta = table.delta(signature)
        signature = delta.signature
        delta.save(tmp_path / "d")
        done = replica.apply_delta(load_delta(tmp_path / "d"))
        same(
            table,
            replica,
            None if complete else ("memory", "scales", "pointers", "projection") if codec != "float32" else ("memory",),
        )
        ids = np.arange(60).reshape(30, 2)
        np.testing.assert_array_equal(*(t.lookup(ids if many else ids[:, 0]) for t in (table, replica)))
        assert delta.sequence == done.sequence == k + 1
        assert done.n_pages > 0
        now = set(table.owners.map.identities(np.arange(table.owners.map.n_slots)).tolist())
        assert set(done.given.tolist()) <= now
        assert not set(done.taken.tolist()) & now
        assert not erased or known - now
        assert delta.nbytes < sum(a.nbytes for a in table.arrays().values()) * 1.2
    if complete and codec != "int4":
        train(table, 2, 9)
        train(replica, 2, 9)
        same(table, replica)


def test_a_delta_of_nothing_is_empty_and_one_of_little_is_small():
    table = cce.make_table("tiered", None, 16, num_bytes=40_000)
    signature = table.signature()
    assert table.delta(signature).nbytes == 0
    cce.SGD(0.1).update(table, [1, 2], np.ones((2, 16)))
    assert 0 < table.delta(signature).nbytes < 4000
    assert signature.nbytes < 0.07 * 40_000


def test_order_is_kept():
    """Twice is harmless; too early, of another table and of another branch are refused, and nothing is changed."""
    table = made()
    train(table, 2)
    replica, signature, deltas = copy.deepcopy(table), table.signature(), []
    other = copy.deepcopy(table)
    for k in range(3):
        train(table, 2, k)
        deltas.append(table.delta(signature))
        signature = deltas[-1].signature
    train(other, 2, 7)
    before = {name: array.copy() for name, array in replica.arrays().items()}
    for bad in (deltas[1], deltas[2]):
        with pytest.raises(ValueError, match=f"delta {bad.sequence} changes a table of digest {bad.parent}"):
            replica.apply_delta(bad)
    with pytest.raises(ValueError, match="delta 1 changes a table of digest"):
        other.apply_delta(deltas[0])
    with pytest.raises(ValueError, match="delta 1 is of another table"):
        made(seed=2).apply_delta(deltas[0])
    with pytest.raises(TypeError, match="delta must be a Delta"):
        replica.apply_delta("d")
    with pytest.raises(TypeError, match="since must be a signature"):
        replica.delta(3)
    with pytest.raises(ValueError, match="this signature is of another table"):
        cce.make_table("tiered", None, 4, num_bytes=2000).delta(signature)
    for name, array in before.items():
        np.testing.assert_array_equal(array, replica.arrays()[name])
    for delta in deltas:
        assert replica.apply_delta(delta).n_pages
        assert replica.apply_delta(delta).n_pages == 0
    np.testing.assert_array_equal(replica.lookup(np.arange(50)), table.lookup(np.arange(50)))


def test_damage_is_found_before_anything_is_changed(tmp_path):
    table = made()
    replica, signature = copy.deepcopy(table), table.signature()
    train(table, 2)
    delta = table.delta(signature)
    before = replica.lookup(np.arange(9))
    data = {name: array.copy() for name, array in delta.data.items()}
    data["memory"][3] ^= 1
    with pytest.raises(ValueError, match="delta 1 is damaged"):
        replica.apply_delta(dataclasses.replace(delta, data=data))
    with pytest.raises(ValueError, match="pages of 'memory' that the table has not"):
        replica.apply_delta(dataclasses.replace(delta, pages={**delta.pages, "memory": delta.pages["memory"] + 10**6}))
    with pytest.raises(ValueError, match="have other lengths"):
        replica.apply_delta(dataclasses.replace(delta, data={**delta.data, "memory": delta.data["memory"][:-1]}))
    with pytest.raises(ValueError, match="pages of 'nothing' that the table has not"):
        replica.apply_delta(dataclasses.replace(delta, pages={**delta.pages, "nothing": np.arange(2)}))
    np.testing.assert_array_equal(replica.lookup(np.arange(9)), before)
    delta.save(tmp_path / "d")
    content = bytearray((tmp_path / "d").read_bytes())
    content[-5] ^= 1
    (tmp_path / "d").write_bytes(content)
    with pytest.raises(cce.FileFormatError, match="damaged"):
        load_delta(tmp_path / "d")
    table.save(tmp_path / "t")
    with pytest.raises(cce.FileFormatError, match="is no delta"):
        load_delta(tmp_path / "t")
    delta.save(tmp_path / "d")
    with pytest.raises(cce.FileFormatError, match="does not fit together"):
        cce.load(tmp_path / "d")


def test_an_interrupt_at_any_moment_leaves_the_copy_before_or_after():
    """Ctrl-C before each line of `apply_delta`, and of its loops: the next try ends well, or has nothing to do."""
    table = made(codec="int8")
    train(table, 2)
    replica, signature = copy.deepcopy(table), table.signature()
    train(table, 3)
    delta, moments = table.delta(signature), 0
    while True:
        left = moments

        def at(frame, event, argument):
            nonlocal left
            if frame.f_code is not deltas.apply_delta.__code__:
                return None
            if event == "line":
                if not left:
                    sys.settrace(None)
                    raise KeyboardInterrupt
                left -= 1
            return at

        own = copy.deepcopy(replica)
        try:
            sys.settrace(at)
            own.apply_delta(delta)
        except KeyboardInterrupt:
            own.apply_delta(delta)
        else:
            break
        finally:
            sys.settrace(None)
        same(table, own, delta.pages)
        moments += 1
    assert moments > 20


@pytest.mark.parametrize("method", [method.name for method in cce.methods() if method.name != "tiered"])
def test_copies_of_a_table_of_every_method_follow(method, tmp_path):
    """Through training and clusterings, with floats that a codec keeps behind its codes."""
    budget = {} if method in ("full", "int8", "int4") else {"num_bytes": 4000}
    codec = {"codec": "int8"} if method == "cce" else {}
    table = cce.make_table(method, 200, 8, seed=1, **budget, **codec)
    table.save(tmp_path / "table")
    replica, reader = cce.load(tmp_path / "table"), Reader(tmp_path / "table")
    signature, optimiser = table.signature(), cce.SGD(0.1)
    for k in range(3):
        for ids in np.random.default_rng(k).integers(0, 200, (2, 30)):
            optimiser.update(table, ids, np.cos(np.arange(240.0)).reshape(30, 8))
        if table.method.learns and table.phase is None:
            table.cluster()
        delta = table.delta(signature)
        signature = delta.signature
        assert (delta.sequence, delta.nbytes > 0) == (k + 1, True)
        delta.save(tmp_path / "delta")
        if k == 1:  # what a copy has trained itself is not what the delta changes
            other = copy.deepcopy(replica)
            optimiser.update(other, [1], np.ones((1, 8)))
            with pytest.raises(ValueError, match="apply those between first"):
                other.apply_delta(load_delta(tmp_path / "delta"))
        assert replica.apply_delta(load_delta(tmp_path / "delta")).n_pages > 0
        same(table, replica, [name for name in table.arrays() if name != "counts"])
        np.testing.assert_array_equal(replica.lookup(np.arange(200)), table.lookup(np.arange(200)))
        assert replica.apply_delta(delta).n_pages == 0
        reader = reader.apply(tmp_path / "delta")
        assert reader.digest() == signature.digest
        np.testing.assert_allclose(reader.lookup(np.arange(200)), table.lookup(np.arange(200)), rtol=1e-5, atol=1e-6)
    if table.phase == "rows":
        table.cluster()
        with pytest.raises(ValueError, match="save the whole table"):
            table.delta(signature)
