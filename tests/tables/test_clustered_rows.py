"""Tables whose ids have settled: files, copies, deltas, questions, batches under way, and what optimisers know."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from tiered_tables import DIM, asked, made, same, stream, train, trained, whole

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.tables import load_delta


@pytest.mark.parametrize("many", [False, True])
def test_a_run_that_is_saved_once_it_is_clustered_goes_on_with_the_same_bits(many, tmp_path):
    table = trained(many, codec="int8", rank=2)
    table.cluster(num_bytes=2000)
    train(table, stream(3, seed=1))
    table.save(tmp_path / "t")
    mapped, copies = cce.load(tmp_path / "t", mmap=True), [cce.load(tmp_path / "t"), copy.deepcopy(table)]
    copies.append(pickle.loads(pickle.dumps(table)))
    ids = asked(table, stream(1, seed=2)[0])
    np.testing.assert_array_equal(mapped.lookup(ids), table.lookup(ids))
    for call in (lambda: mapped.cluster(), lambda: train(mapped, stream(1))):
        with pytest.raises(ValueError, match="mapped read-only"):
            call()
    train(table, stream(4, seed=3))
    report = table.cluster()
    for other in copies:
        assert type(other) is type(table)
        train(other, stream(4, seed=3))
        assert str(other.cluster()).split(", ")[:-1] == str(report).split(", ")[:-1]
        same(other, table)


@pytest.mark.parametrize("many", [False, True])
def test_copies_follow_by_deltas_but_not_through_a_clustering(many, tmp_path):
    table = trained(many, codec="int8")
    signature, replica = table.signature(), copy.deepcopy(table)
    table.cluster(num_bytes=2000)
    with pytest.raises(ValueError, match="signature is of another table"):
        table.delta(signature)
    table.save(tmp_path / "t")
    with pytest.raises(ValueError, match="is of another table"):
        replica.apply_delta(table.delta(table.signature()))
    replica, signature = cce.load(tmp_path / "t"), table.signature(complete=True)
    train(table, stream(3, seed=1))
    table.erase([1, 2])
    table.delta(signature).save(tmp_path / "d")
    replica.apply_delta(load_delta(tmp_path / "d"))
    same(replica, table)


@pytest.mark.parametrize("many", [False, True])
def test_what_can_be_asked_goes_on(many):
    table = trained(many, codec="int8")
    table.cluster(num_bytes=2000, keep=0.1)
    name, stats = ("item", table.stats()) if many else (0, table.stats())
    t = int(many)
    ids = np.unique(np.concatenate([batch[:, t] for batch in stream(8 if COMPILED else 4)]))
    view = table[name] if many else table
    found = table.export([*ids, 10**9], name)
    np.testing.assert_array_equal(found["values"], view.lookup([*ids, 10**9]))
    everyone = table.export(table=name)
    assert len(everyone["keys"]) == len(set(everyone["keys"].tolist())) == everyone["settled"].sum() == stats.settled[t]
    assert "ids settled" in str(stats)
    by_key = dict(zip(everyone["keys"].tolist(), everyone["values"]))
    for key, value, own, settled in zip(
        table.owners.map.names(ids, t), found["values"], found["rows"], found["settled"]
    ):
        if settled:
            np.testing.assert_array_equal(value, by_key[int(key)])
        else:
            assert own < 0
    (settled, *_), (own, *_) = ids[found["settled"][:-1] & (found["rows"][:-1] < 0)], ids[found["rows"][:-1] >= 0]
    told = table.explain(settled, name)
    assert (told.own, told.settled, "settled at row" in str(told)) == (False, True, True)
    assert (table.explain(own, name).own, table.explain(10**9, name).settled) == (True, False)
    assert 0 < stats.collision_rate < 0.01
    assert table.erase([settled, own, 10**9, own], name).tolist() == [True, True, False, False]
    for i in (settled, own):
        gone = table.explain(i, name)
        assert not gone.own
        assert not gone.settled
        assert gone.row >= table.owners.first_shared
    with pytest.raises(
        ValueError,
        match=r"ids have settled in this table, and are not counted: merge before cluster\(\), or after reopen",
    ):
        table.merge(trained(many, codec="int8"))
    assert table.owners.false_hit_rate > table.owners.map.false_hit_rate


@pytest.mark.parametrize("many", [False, True])
def test_a_batch_under_way_is_looked_up_again(many):
    table, ids = trained(many), asked(made(many), stream(1)[0])
    optimiser = train(table, stream(2, seed=4), cce.Adagrad(0.1, rowwise=True))
    both = None if many else cce.Collection([table])
    seen, grads = table.forward(ids), np.ones((*ids.shape[:1], DIM * (2 if many else 1)), np.float32)
    gradients = table.backward(ids, grads)
    table.cluster(num_bytes=2000)
    with pytest.raises(ValueError, match="a table was clustered since this forward pass: look the ids up again"):
        optimiser.update(table, seen, grads)
    with pytest.raises(ValueError, match=r"rows that the table may have given to other ids|must have \d+ floats"):
        optimiser.step(whole(table), gradients[0] if many else gradients)
    optimiser.update(table, table.forward(ids), grads)
    if both is not None:
        np.testing.assert_array_equal(both.lookup(ids[:, None]), table.lookup(ids))
        optimiser.update(both, both.forward(ids[:, None]), grads)


@pytest.mark.parametrize("name", ["row-wise", "adagrad", "half", "momentum"])
def test_what_an_optimiser_knows_goes_with_the_rows(name):
    """Of a centroid the weighted mean of that of its ids; nothing of a free row."""
    optimiser = {
        "row-wise": cce.Adagrad(0.1, rowwise=True),
        "adagrad": cce.Adagrad(0.1),
        "half": cce.AdamW(0.01, rowwise=True, lazy=True),
        "momentum": cce.SGD(0.01, momentum=0.9),
    }[name]
    table = made(True, num_bytes=2000)
    train(table, stream(6 if COMPILED else 4), optimiser)
    state = table.shared
    before, owners = optimiser.state_of(state, "memory"), copy.deepcopy(state.owners)
    old = {key: numbers(array, state.layout.n_units) for key, array in before.arrays.items()}
    steps = before.step
    table.cluster(bits=2, keep=0.25)
    own, n = table.spec.sizes[0], owners.map.n_slots
    names = owners.map.identities(np.arange(n))
    at, kept = own + state.owners.settled.rows_of(names), state.owners.map.identities(np.arange(own))
    new = optimiser.state_of(state, "memory")
    assert new.step == steps
    for key, array in old.items():
        found, expected = (
            numbers(new.arrays[key], state.layout.n_units),
            np.zeros((state.layout.n_units, array.shape[1])),
        )
        for row in range(own, own + 8):
            mine = np.flatnonzero((names > 0) & (at == row))
            if len(mine):
                expected[row] = np.average(array[:n][mine], 0, np.maximum(owners.counts[mine], 1))
        for row in np.flatnonzero(kept):
            expected[row] = array[names.tolist().index(kept[row])]
        expected[own + 8 :] = array[n:]
        np.testing.assert_allclose(found, expected, rtol=0.01 if name == "half" else 1e-5, atol=1e-7)
        assert expected[own : own + 8].any()
    assert state.training_bytes["heirs"] == 12 * (np.count_nonzero(names) + np.count_nonzero(kept) + state.n_shared)
    train(table, stream(2, seed=5), optimiser)


def numbers(array, rows):
    """An optimiser's array by rows, float32 or two bfloat16 numbers in the room of one."""
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array[: array.size - array.size % rows].reshape(rows, -1).astype(float)
