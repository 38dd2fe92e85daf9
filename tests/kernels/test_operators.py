"""The three sums of one layout, as operators need them: the CPU core's own, with weights given or none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_tables import DEVICE, METHODS, make, poisoned, tensor, torch

from cce_core.sketching import blocks
from cce_core.sketching.batch import JaggedBatch
from cce_core.sketching.descriptors import Memory
from cce_core.sketching.group import TableGroup
from cce_core.storage.codec import BFLOAT16, FLOAT32
from cce_kernels import lookup, operators, ordered, scatter

pytestmark = pytest.mark.triton
few = settings(max_examples=15, suppress_health_check=list(HealthCheck))
_ = poisoned


def words(array: np.ndarray) -> torch.Tensor | None:
    return tensor(array.view(np.int64)) if array.size else None


@few
@given(data=st.data())
def test_any_layout_and_any_ids(data):
    """Vectors with the core's bits, gradients up to the order of sums; ids out of range are named and count for nothing."""
    method, options = data.draw(st.sampled_from(METHODS))
    table = make(method, data.draw(st.sampled_from([40, 300])), 12, seed=data.draw(st.integers(0, 99)), **options)
    sketch, vocab = table.sketch, table.spec.vocab
    layout, keys, pointers = sketch.layout, words(sketch.keys), words(sketch.pointers)
    ids = np.array(data.draw(st.lists(st.integers(0, vocab - 1) | st.just(vocab - 1), max_size=30)), np.uint64)
    rng = np.random.default_rng(len(ids))
    weights = rng.normal(size=(len(ids), len(layout.columns))).astype(np.float32) if data.draw(st.booleans()) else None
    grads = rng.normal(size=(len(ids), layout.dim)).astype(np.float32)
    codes, given = table.parameters()["memory"], weights is not None
    frame = operators.frame(layout, vocab, torch.device(DEVICE), given=given)
    memory, mine, w = tensor(codes), tensor(ids.view(np.int64)), None if weights is None else tensor(weights)
    got, error = operators.gather(frame, memory, mine, w, keys, pointers)
    assert int(error) == lookup.GOOD
    np.testing.assert_array_equal(
        got.cpu().numpy(), blocks.lookup(TableGroup.of(sketch, Memory(FLOAT32, codes)), ids, weights)
    )
    want = blocks.scatter(TableGroup.of(sketch), JaggedBatch.alone(ids), grads, weights).reshape(
        layout.n_units, layout.unit
    )
    for fixed in (False, True):
        back = operators.spread(frame, tensor(grads), mine, w, keys, pointers, deterministic=fixed)
        np.testing.assert_allclose(back.cpu().numpy(), want, rtol=1e-4, atol=1e-4)
    units, values = operators.touched(frame, tensor(grads), mine, w, keys, pointers)
    assert torch.equal(units, units.unique())
    whole = torch.zeros_like(back)
    whole[units] = values
    assert torch.equal(whole, back)
    plain = operators.frame(layout, vocab, torch.device(DEVICE))
    slopes = operators.dot(plain, memory, tensor(grads), mine, keys, pointers).cpu().numpy()
    np.testing.assert_allclose(
        slopes, blocks.dot(TableGroup.of(sketch, Memory(FLOAT32, codes)), ids, grads), rtol=1e-4, atol=1e-4
    )
    if layout.signed:
        signed = operators.frame(layout, vocab, torch.device(DEVICE), signed=True)
        np.testing.assert_array_equal(operators.signs(signed, mine, keys).cpu().numpy(), blocks.signs(sketch, ids))
    if len(ids) > 1:
        bad = mine.clone()
        bad[1] = vocab
        vectors, error = operators.gather(frame, memory, bad, w, keys, pointers)
        assert int(error) == 1
        assert (vectors[1] == 0).all()
        assert (operators.dot(plain, memory, tensor(grads), bad, keys, pointers)[1] == 0).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 50])
def test_whole_and_broken_tiles(monkeypatch, n, weighted):
    for module in (lookup, scatter, ordered, operators):
        monkeypatch.setattr(module, "TILE", 512 if weighted else 128)
    table = make("cce", 1000, 8, rank=0)
    sketch, ids = table.sketch, np.arange(n, dtype=np.uint64) * np.uint64(19)
    weights = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32) if weighted else None
    frame = operators.frame(sketch.layout, 1000, torch.device(DEVICE), given=weighted)
    assert frame.rows_of_a_tile(lookup.TILE, 50) == 16
    args = (
        tensor(ids.view(np.int64)),
        None if weights is None else tensor(weights),
        words(sketch.keys),
        words(sketch.pointers),
    )
    memory = table.parameters()["memory"]
    got = operators.gather(frame, tensor(memory), *args)[0].cpu().numpy()
    np.testing.assert_array_equal(got, blocks.lookup(TableGroup.of(sketch, Memory(FLOAT32, memory)), ids, weights))
    want = blocks.scatter(TableGroup.of(sketch), JaggedBatch.alone(ids), got, weights)
    for fixed in (False, True):
        back = operators.spread(frame, tensor(got), *args, deterministic=fixed)
        np.testing.assert_allclose(back.cpu().numpy().reshape(-1), want, rtol=1e-4, atol=1e-5)
    if not weighted:
        slopes = operators.dot(frame, tensor(memory), tensor(got), args[0], *args[2:])
        want = blocks.dot(TableGroup.of(sketch, Memory(FLOAT32, memory)), ids, got)
        np.testing.assert_allclose(slopes.cpu().numpy(), want, rtol=1e-4, atol=1e-5)


def test_bfloat16_memories_and_such_that_begin_anywhere():
    """Weights stay float32; a memory that begins at no multiple of 16 bytes is read all the same."""
    table = make("bloom", 300, 12, n_hashes=3)
    sketch, ids = table.sketch, np.arange(40, dtype=np.uint64)
    memory, mine = tensor(table.parameters()["memory"]), tensor(ids.view(np.int64))
    weights = torch.randn((40, 3), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    halved = memory.to(torch.bfloat16)
    frame = operators.frame(sketch.layout, 300, torch.device(DEVICE), BFLOAT16, given=True)
    got, _ = operators.gather(frame, halved, mine, weights, words(sketch.keys), None)
    want = blocks.lookup(
        TableGroup.of(sketch, Memory(FLOAT32, halved.float().cpu().numpy())), ids, weights.cpu().numpy()
    )
    np.testing.assert_array_equal(got.cpu().numpy(), want)
    off = torch.cat([memory[:1], memory])[1:]
    assert off.data_ptr() % 16
    frame = operators.frame(sketch.layout, 300, torch.device(DEVICE), whole=False)
    assert frame.meta["ALIGN"] == 1
    got, _ = operators.gather(frame, off, mine, None, words(sketch.keys), None)
    np.testing.assert_array_equal(
        got.cpu().numpy(), blocks.lookup(TableGroup.of(sketch, Memory(FLOAT32, memory.cpu().numpy())), ids)
    )
