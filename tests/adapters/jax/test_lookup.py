"""Tables in JAX: the library's vectors and gradients, under every transformation, and back into the table."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from strategies import INTEGER_TYPES
from torch_tables import CASES, DIM, NAMES, VOCAB

import cce_core as cce

jax = pytest.importorskip("jax")

from jax import numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from cce_core.adapters.jax import Lookup, as_ids, from_table, to_table  # noqa: E402

IDS = np.random.default_rng(0).integers(0, VOCAB, (5, 11))
GRADS = np.random.default_rng(1).standard_normal((5, 11, DIM)).astype(np.float32)


def made(method="cce", vocab=VOCAB, **options):
    return cce.make_table(method, vocab, DIM, **{"seed": 3, "num_params": 300, **options})


def close(got, expected):
    most = np.abs(expected).max(initial=1e-3)
    np.testing.assert_allclose(np.asarray(got).reshape(expected.shape), expected, rtol=1e-5, atol=2e-6 * most)


@jax.jit
def vectors_and_gradients(lookup, params, ids, grads):
    vectors, back = jax.vjp(lambda p: lookup(p, ids), params)
    return vectors, back(grads)[0]


@pytest.mark.parametrize(("method", "options"), CASES, ids=NAMES)
def test_vectors_and_gradients_are_the_librarys(method, options):
    table = cce.make_table(method, VOCAB, DIM, seed=3, **options)
    before = copy.deepcopy(table).arrays()
    params, lookup = from_table(table)
    vectors, grads = vectors_and_gradients(lookup, params, IDS, GRADS)
    assert vectors.shape == (5, 11, DIM)
    close(vectors, table.lookup(IDS))
    for name, values in before.items():
        np.testing.assert_array_equal(table.arrays()[name], values)
    expected = table.backward(IDS, GRADS, dense=True)
    assert grads.keys() == params.keys() == expected.keys()
    for name, values in expected.items():
        close(grads[name], np.asarray(values).reshape(grads[name].shape))


# Ids


@pytest.mark.parametrize("kind", INTEGER_TYPES)
def test_ids_of_every_type(kind):
    """Without a vocabulary every id has the bits that it has in the library, negative ones too."""
    table = made("hash", None)
    params, lookup = from_table(table)
    info = np.iinfo(kind)
    ids = np.array([[info.min, info.max], [3, info.max // 2 + 1]], kind)
    np.testing.assert_array_equal(lookup(params, ids), table.lookup(ids))
    np.testing.assert_array_equal(jax.jit(lookup)(params, as_ids(ids)), table.lookup(ids))
    if ids.itemsize < 8:
        np.testing.assert_array_equal(jax.jit(lookup)(params, ids), table.lookup(ids))
    else:
        with jax.enable_x64(True):
            vectors = jax.jit(lookup)(params, jnp.asarray(ids))
        assert vectors.dtype == jnp.float32
        np.testing.assert_array_equal(vectors, table.lookup(ids))


def test_shapes_of_ids():
    params, lookup = from_table(made())
    assert lookup(params, 3).shape == (DIM,)
    assert lookup(params, np.empty((2, 0), np.int64)).shape == (2, 0, DIM)
    assert lookup(params, [[1], [2]]).shape == (2, 1, DIM)


def test_ids_outside_the_vocabulary():
    """NumPy's are refused, as in the library; JAX's, which may not be known yet, give NaN and no gradient."""
    params, lookup = from_table(made())
    with pytest.raises(IndexError, match=f"id {VOCAB} at position 1 .*ids go from 0 to {VOCAB - 1}"):
        lookup(params, np.array([0, VOCAB]))
    ids = jnp.array([0, VOCAB, -1])
    vectors, grads = vectors_and_gradients(lookup, params, ids, jnp.ones((3, DIM)))
    assert np.isnan(vectors).all(1).tolist() == [False, True, True]
    _, alone = vectors_and_gradients(lookup, params, ids[:1], jnp.ones((1, DIM)))
    for name, values in alone.items():
        close(grads[name], np.asarray(values))


def test_what_is_refused():
    params, lookup = from_table(made())
    with pytest.raises(TypeError, match="ids must be integers, got float32"):
        lookup(params, jnp.zeros(3))
    with pytest.raises(TypeError, match="ids must be integers"):
        lookup(params, [0.5])
    with pytest.raises(TypeError, match="table must be a table"):
        from_table({})
    with pytest.raises(ValueError, match="'tiered' finds rows by a map"):
        from_table(cce.make_table("tiered", None, DIM, num_bytes=3000))
    table = made()
    with pytest.raises(ValueError, match=r"has the parameters \['memory', 'projection'\], got \['memory'\]"):
        to_table({"memory": params["memory"]}, table)
    with pytest.raises(
        ValueError, match=r"memory must have .* floats, got shape \(3,\): params are those of from_table"
    ):
        to_table({**params, "memory": np.zeros(3)}, table)


def test_a_mapped_table_is_read_and_not_written(tmp_path):
    made().save(tmp_path / "table")
    table = cce.load(tmp_path / "table", mmap=True)
    params, lookup = from_table(table)
    close(lookup(params, IDS), table.lookup(IDS))
    with pytest.raises(ValueError, match="mapped read-only"):
        to_table(params, table)


# Transformations


def test_vmap():
    params, lookup = from_table(made())
    np.testing.assert_array_equal(jax.vmap(lookup, (None, 0))(params, jnp.asarray(IDS)), lookup(params, IDS))
    stacked = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    both = jax.vmap(lookup, (0, None))(stacked, as_ids(IDS))
    np.testing.assert_array_equal(both[0], lookup(params, IDS))


def test_over_several_devices():
    """Ids spread over devices, by shard_map with the gradients summed; and the blocks of the memory, by the compiler."""
    assert len(jax.devices()) == 4, "XLA_FLAGS were read before tests/adapters/jax/conftest.py"
    table = made("robe", num_params=128)
    params, lookup = from_table(table)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    ids, grads = jnp.asarray(IDS.reshape(-1)[:52]), jnp.asarray(GRADS.reshape(-1, DIM)[:52])
    expected_vectors, expected_grads = vectors_and_gradients(lookup, params, ids, grads)

    def share(lookup, params, ids, grads):
        vectors, found = vectors_and_gradients(lookup, jax.lax.pcast(params, "d", to="varying"), ids, grads)
        return vectors, jax.lax.psum(found, "d")

    whole, parts = PartitionSpec(), PartitionSpec("d")
    spread = jax.jit(jax.shard_map(share, mesh=mesh, in_specs=(whole, whole, parts, parts), out_specs=(parts, whole)))
    vectors, found = spread(lookup, params, ids, grads)
    np.testing.assert_array_equal(vectors, expected_vectors)
    close(found["memory"], np.asarray(expected_grads["memory"]))

    rows = {name: jax.device_put(values, NamedSharding(mesh, parts)) for name, values in params.items()}
    assert len(rows["memory"].sharding.device_set) == 4
    vectors, found = vectors_and_gradients(lookup, rows, ids, grads)
    np.testing.assert_array_equal(vectors, expected_vectors)
    close(found["memory"], np.asarray(expected_grads["memory"]))


# Back into the table


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8", "int4"])
def test_there_and_back(codec):
    """What JAX has trained is what the table looks up, clusters and saves."""
    table = made(codec=codec, rank=4)
    params, lookup = from_table(table)
    params = jax.tree.map(lambda p: p + 0.01 * jnp.sin(1.0 + jnp.arange(p.size)).reshape(p.shape), params)
    to_table(params, table)
    close(lookup(params, IDS), table.lookup(IDS))
    again, _ = from_table(table)
    for name, values in params.items():
        np.testing.assert_array_equal(again[name], values)


def test_clustering_between_steps_compiles_nothing_anew():
    table, traced = made(), []

    @jax.jit
    def loss(params, lookup, ids):
        traced.append(1)
        return (lookup(params, ids) ** 2).sum()

    params, lookup = from_table(table)
    loss(params, lookup, IDS)
    to_table(jax.tree.map(lambda p: 2 * p, params), table)
    assert table.cluster().generation == 1
    params, lookup = from_table(table)
    close(loss(params, lookup, IDS), np.square(table.lookup(IDS)).sum())
    assert len(traced) == 1


def test_the_phases_of_vq():
    """Rows, a pointer an id, and pointers for marked ids: each is another function, of other parameters."""
    table = cce.make_table("vq", VOCAB, DIM, num_bytes=600, seed=3)
    rows, lookup = from_table(table)
    to_table(jax.tree.map(lambda p: 2 * p, rows), table)
    table.cluster(weights=np.random.default_rng(0).zipf(1.5, VOCAB).astype(float))
    params, clustered = from_table(table)
    close(clustered(params, IDS), table.lookup(IDS))
    assert clustered.spec != lookup.spec
    with pytest.raises(ValueError, match="params are those of from_table"):
        to_table(rows, table)
    large = cce.make_table("vq", 3000, DIM, num_bytes=4000, seed=1)
    marked = cce.Table(large.method.clustered(large.spec)[1])
    params, clustered = from_table(marked)
    close(clustered(params, np.arange(3000)), marked.lookup(np.arange(3000)))


def test_a_lookup_is_a_pytree():
    lookup = from_table(made("pq"))[1]
    leaves, tree = jax.tree.flatten(lookup)
    assert [leaf.dtype for leaf in leaves] == [jnp.uint32]
    again = jax.tree.unflatten(tree, leaves)
    assert isinstance(again, Lookup)
    assert (again.spec, repr(again)) == (lookup.spec, f"<pq lookup: vocab {VOCAB}, dim {DIM}>")
    seeds = [jax.tree.structure(from_table(made("pq", seed=seed))[1]) for seed in (1, 2)]
    assert seeds[0] == seeds[1]
