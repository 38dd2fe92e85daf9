"""The module of Flax NNX: its table's vectors, trained by optax, clustered in place, split, merged and kept."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("flax")
optax = pytest.importorskip("optax")

import jax  # noqa: E402
from flax import nnx  # noqa: E402
from jax import numpy as jnp  # noqa: E402

from cce_core.adapters.jax import Embedding  # noqa: E402

IDS = np.arange(60)


@pytest.mark.parametrize(
    ("method", "options"),
    [("cce", {}), ("pq", {"codec": "int8"}), ("tt", {}), ("dhe", {}), ("vq", {}), ("hemb", {}), ("hash", {"rank": 2})],
)
def test_vectors_are_those_of_its_table(method, options):
    emb = Embedding(60, 8, method=method, num_bytes=2600, seed=2, **options)
    np.testing.assert_allclose(emb(IDS), emb.table.lookup(IDS), atol=1e-6)


def test_it_is_trained_and_clustered():
    """With one compilation; the loss falls, and the clustering keeps most of what was learned."""
    emb, traced = Embedding(60, 8, method="cce", num_params=260, rngs=nnx.Rngs(0)), []
    target = jnp.asarray(np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)[IDS % 6])

    @nnx.jit
    def step(emb, optimizer):
        traced.append(1)
        loss, grads = nnx.value_and_grad(lambda e: ((e(IDS) - target) ** 2).mean())(emb)
        optimizer.update(emb, grads)
        return loss

    adam, losses = optax.adam(0.05), []
    optimizer = nnx.Optimizer(emb, adam, wrt=nnx.Param)
    for n in range(120):
        if n in (40, 80):
            assert emb.cluster(weights=np.ones(60)).generation == n // 40
            optimizer = nnx.Optimizer(emb, adam, wrt=nnx.Param)
        losses.append(float(step(emb, optimizer)))
    assert losses[-1] < 0.1 * losses[0]
    assert len(traced) == 1
    table = emb.table
    assert table.generation == 2
    assert float(np.square(table.lookup(IDS) - target).mean()) < 0.1 * losses[0]


def test_a_state_is_taken_by_another_module():
    """Keys and pointers are in it, so that modules of other seeds become the same."""
    one, other = (Embedding(60, 8, method="pq", num_params=200, seed=seed) for seed in (1, 2))
    assert not np.array_equal(one(IDS), other(IDS))
    nnx.update(other, nnx.state(one))
    np.testing.assert_array_equal(one(IDS), other(IDS))
    graph, params, rest = nnx.split(one, nnx.Param, ...)
    assert {path[0] for path, _ in nnx.to_flat_state(params)} == {"memory"}
    np.testing.assert_array_equal(nnx.merge(graph, params, rest)(IDS), one(IDS))


def test_what_is_refused():
    with pytest.raises(ValueError, match="rngs=nnx.Rngs"):
        Embedding(60, 8)
    with pytest.raises(ValueError, match="take it up by from_table"):
        Embedding(60, 8, method="vq", num_bytes=400, seed=0).cluster()
    with pytest.raises(IndexError, match="id 60 at position 0"):
        Embedding(60, 8, num_params=200, seed=0)([60])


def test_a_seed_of_its_own_is_drawn_from_rngs():
    first, second = (Embedding(60, 8, num_params=200, rngs=nnx.Rngs(n)) for n in (0, 1))
    assert not np.array_equal(first(IDS), second(IDS))
    assert jax.tree.leaves(nnx.state(first, nnx.Param))
