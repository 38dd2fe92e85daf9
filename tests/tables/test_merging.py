"""Tables that were trained apart from one seed and are made one: what both know of an id, weighted by counts."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import cce_core as cce

DIM = 4


def made(many=False, num_bytes=900, rank=0, codec="float32", seed=1, **more):
    more = {"rank": rank, "codec": codec, "seed": seed, **more}
    if many:
        return cce.make_collection("tiered", 2, DIM, num_bytes=num_bytes + 600, **more)
    return cce.make_table("tiered", None, DIM, num_bytes=num_bytes, **more)


def train(table, ids, times=1, optimiser=None):
    optimiser = cce.SGD(0.1) if optimiser is None else optimiser
    for _ in range(times):
        seen = table.forward(np.stack([ids, ids], 1) if isinstance(table, cce.Collection) else ids)
        optimiser.update(table, seen, np.cos(seen.vectors + np.arange(seen.vectors.shape[1], dtype=np.float32)))


def vectors(table, ids):
    return table.lookup(np.stack([ids, ids], 1) if isinstance(table, cce.Collection) else ids)


@pytest.mark.parametrize("many", [False, True])
def test_ids_of_both_are_means_and_those_of_one_stay_as_they_were(many):
    one, two = made(many), made(many)
    train(one, np.arange(0, 10), 3)
    train(two, np.arange(5, 15), 1)
    before, there = vectors(one, np.arange(10)), vectors(two, np.arange(5, 15))
    counts = one.owners.estimate(np.arange(5, 10)), two.owners.estimate(np.arange(5, 10))
    untouched = {name: array.copy() for name, array in two.arrays().items()}
    merged, tables = one.merge(two), 2 if many else 1
    assert (merged.both, merged.added, merged.won, merged.folded) == (5 * tables, 5 * tables, 0, 0)
    after = vectors(one, np.arange(15))
    np.testing.assert_allclose(after[:5], before[:5], rtol=1e-6)
    np.testing.assert_allclose(after[10:], there[5:], rtol=1e-6)
    share = (counts[1] / (counts[0] + counts[1]))[:, None]
    mean = before[5:, :DIM] + share * (there[:5, :DIM] - before[5:, :DIM])
    np.testing.assert_allclose(after[5:10, :DIM], mean, rtol=1e-5, atol=1e-6)
    assert one.owners.estimate(np.arange(5, 10)).tolist() == (counts[0] + counts[1]).tolist()
    for name, array in untouched.items():
        np.testing.assert_array_equal(array, two.arrays()[name])
    train(one, np.arange(15))


def test_rows_are_written_anew_for_the_mean_of_the_projections():
    """Projections that are alike but for size, which a row can make up for: no vector of an id of one table changes."""
    one, two = made(rank=2, num_bytes=1500), made(rank=2, num_bytes=1500)
    train(one, np.arange(10), 2)
    train(two, np.arange(20, 30), 2)
    two.parameters()["projection"][:] = 2 * one.parameters()["projection"]
    two.parameters()["projection"][-1] = one.parameters()["projection"][-1]
    before = one.lookup(np.arange(10)), two.lookup(np.arange(20, 30))
    one.merge(two)
    np.testing.assert_allclose(one.lookup(np.arange(10)), before[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.lookup(np.arange(20, 30)), before[1], rtol=1e-4, atol=1e-5)


def test_where_rows_are_few_the_frequent_have_them():
    one, two = made(num_bytes=300), made(num_bytes=300)
    (n,) = one.spec.sizes
    train(one, np.arange(4 * n))
    train(two, np.arange(10**6, 10**6 + n // 4), 12)
    assert one.owners.map.load == 1.0
    merged = one.merge(two)
    assert merged.won > 0
    assert merged.added == 0
    assert merged.won + merged.folded == round(two.owners.map.load * n)
    assert (one.owners.find(np.arange(10**6, 10**6 + n // 4)) >= 0).sum() == merged.won
    assert one.owners.map.load == 1.0


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_a_merge_with_what_has_learned_nothing_changes_no_vector(codec):
    one, ids = made(codec=codec, rank=2, num_bytes=1500), np.arange(30)
    train(one, ids, 3)
    before, counts = one.lookup(ids), one.owners.counts.copy()
    fresh = made(codec=codec, rank=2, num_bytes=1500)
    fresh.arrays()["projection"][:] = one.arrays()["projection"]
    one.merge(fresh)
    np.testing.assert_allclose(one.lookup(ids), before, atol=1e-5 if codec == "float32" else 0.05)
    np.testing.assert_array_equal(one.owners.counts, counts)


def test_sketches_are_added():
    one, two = made(num_bytes=300), made(num_bytes=300)
    train(one, np.arange(500))
    train(two, np.arange(400, 900))
    owners = copy.deepcopy(one).owners, copy.deepcopy(two).owners
    one.merge(two)
    ids = np.arange(900)
    sums = sum(o.sketch.estimate(ids) for o in owners)
    assert (
        one.owners.sketch.estimate(ids) >= np.minimum(15, np.maximum(*(o.sketch.estimate(ids) for o in owners)))
    ).all()
    assert one.owners.sketch.mass == sum(o.sketch.mass for o in owners)
    assert (one.owners.sketch.estimate(ids) >= np.minimum(15, sums)).all()


def test_bad_input_says_what_is_wrong(tmp_path):
    one = made()
    before = {name: array.copy() for name, array in one.arrays().items()}
    with pytest.raises(ValueError, match="seed is 1 here and 2 there"):
        one.merge(made(seed=2))
    with pytest.raises(ValueError, match="merged with itself"):
        one.merge(one)
    with pytest.raises(TypeError, match="other must be a table"):
        one.merge(cce.make_table("hash", None, DIM, num_bytes=300))
    one.save(tmp_path / "t")
    with pytest.raises(ValueError, match="mapped read-only"):
        cce.load(tmp_path / "t", mmap=True).merge(made())
    for name, array in before.items():
        np.testing.assert_array_equal(array, one.arrays()[name])
