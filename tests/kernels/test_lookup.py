"""The lookup on the device: the bits of the CPU core, and the vectors of the definition; bags, many tables, every codec."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_tables import CODECS, DEVICE, METHODS, make, poisoned, tables, tensor, torch, twin_of

import cce_core as cce
from cce_kernels import lookup as kernel
from cce_kernels.launch import Member, launches, members_of
from cce_kernels.runtime import on_device
from cce_kernels.tables import Tables, from_table
from cce_kernels.tables import lookup as lookup_once

pytestmark = pytest.mark.triton
few = settings(max_examples=12, suppress_health_check=list(HealthCheck))
_ = poisoned


def on(*of) -> Tables:
    return Tables([(table.spec, from_table(table, DEVICE)) for table in of])


def same(table, got: torch.Tensor, want: np.ndarray) -> None:
    """Equal bits; behind a projection, whose sums torch takes in its own order, nearly."""
    if table.spec.rank:
        np.testing.assert_allclose(got.cpu().numpy(), want, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_array_equal(got.cpu().numpy(), want)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_every_method_and_codec(method, options, codec):
    table = make(method, 300, 12, codec, seed=3, **options)
    ids = np.random.default_rng(0).integers(0, 300, (3, 7))
    got = on(table).lookup(tensor(ids))
    same(table, got, table.lookup(ids))
    if codec in ("float32", "int4"):
        np.testing.assert_allclose(
            got.cpu().numpy().reshape(21, -1), twin_of(table, ids.reshape(-1)), rtol=1e-5, atol=1e-6
        )


@few
@given(data=st.data())
def test_any_table_and_any_ids(data):
    """Ragged sizes, duplicates, no ids at all, every integer type; the last id of the vocabulary among them."""
    table = data.draw(tables())
    kind = data.draw(st.sampled_from(["int32", "int64", "uint8", "int16"]))
    most = min(table.spec.vocab, np.iinfo(kind).max + 1) - 1
    ids = np.array(data.draw(st.lists(st.integers(0, most) | st.just(most), max_size=40)), kind)
    same(table, on(table).lookup(tensor(ids)), table.lookup(ids))


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 50])
def test_whole_and_broken_tiles(monkeypatch, n):
    """Tiles of 16 ids: several programs, the last one partly empty."""
    monkeypatch.setattr(kernel, "TILE", 128)
    table = make("cce", 1000, 8, rank=0)
    ids = np.arange(n) * 19
    assert on(table).launches()[0].rows_of_a_tile(kernel.TILE, 50) == 16
    same(table, on(table).lookup(tensor(ids)), table.lookup(ids))


def test_unbounded_tables_take_every_word():
    table = cce.make_table("ce", None, 8, num_params=400)
    ids = np.array([0, 1, -1, 2**63 - 1, -(2**63)])
    same(table, on(table).lookup(tensor(ids)), table.lookup(ids))


@pytest.mark.parametrize("beside", [False, True])
def test_ids_that_are_not_marked_share_a_row(beside):
    """Alone, and in one launch with columns of another kind; on the way back, too."""
    table = cce.make_table("vq", 1500, 8, num_bytes=900, rank=0, seed=1)
    table.cluster(weights=np.where(np.arange(1500) % 9 == 4, 500.0, 1.0))
    assert table.spec.option("bits")
    tables = [table, make("ce", 1500, 8)] if beside else [table]
    ids = np.random.default_rng(0).integers(0, 1500, (90, len(tables)))
    ids[:7, 0] = [0, 1, 4, 479, 480, 481, 1499]
    got = on(*tables).lookup(tensor(ids)).cpu().numpy().reshape(90, -1)
    np.testing.assert_array_equal(got, np.concatenate([t.lookup(i) for t, i in zip(tables, ids.T)], 1))
    state = from_table(table, DEVICE)
    with pytest.raises(ValueError, match="pointers must hold"):
        Tables([(table.spec, {**state, "pointers": state["pointers"][:-1]})])


def test_a_map_of_own_rows_is_refused():
    from cce_core.sketching.layout import MAP, Column, Layout

    layout = Layout((Column(MAP, 0, 4, 10, a=8),), 1, 4, 40, 4, bits_per_id=16)
    words = tensor(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="a map of own rows are found on the CPU"):
        Member(layout, tensor(np.zeros(40, np.float32)), words[:1], words)


def test_addresses_past_32_bits():
    """A pointer of 40 bits, and a region whose floats are more than 2^32: the address itself, with no such memory at hand."""
    from cce_core.sketching.layout import HASH, POINTER, Column, Layout

    words = tensor(np.random.default_rng(1).integers(0, 2**63, 80, dtype=np.int64))
    far = Layout((Column(POINTER, 0, 1, 2**40, a=3, b=40), Column(HASH, 0, 1, 2**41)), 1, 1, 2**41, 1, bits_per_id=50)
    launch = launches(
        [Member(Layout(far.columns, 1, 1, 4, 1, 50), tensor(np.zeros(4, np.float32)), words[:1], words, vocab=90)]
    )[0]
    from kernel_addresses import found

    from cce_core.sketching.blocks import Sketch, addresses

    ids = np.arange(90, dtype=np.uint64)
    want = addresses(Sketch(far, words[:1].cpu().numpy().view(np.uint64), words.cpu().numpy().view(np.uint64)), ids)
    np.testing.assert_array_equal(found(launch, ids.astype(np.int64)), want)
    assert want.max() > 2**39


# Bags and many tables


def bags_of(table, ids, offsets, mode="sum", factors=None, padding=None):
    """By the definition, in order, from the CPU's vectors in float32."""
    vectors = table.lookup(ids)
    out = np.zeros((len(offsets) - 1, table.spec.dim), np.float32)
    for b in range(len(out)):
        count = 0
        for n in range(offsets[b], offsets[b + 1]):
            if padding is None or ids[n] != padding:
                out[b] += vectors[n] if factors is None else vectors[n] * factors[n]
                count += 1
        if mode == "mean" and count:
            out[b] /= np.float32(count)
    return out


@few
@given(data=st.data())
def test_bags(data):
    """Empty bags, long ones, duplicates, padding; sums, means and factors."""
    table = data.draw(tables([m for m in METHODS if m[1].get("combine") != "mul"]))
    lengths = data.draw(st.lists(st.integers(0, 6), max_size=9))
    offsets = np.cumsum([0, *lengths])
    ids = np.array([data.draw(st.integers(0, 30)) for _ in range(offsets[-1])], np.int64)
    mode = data.draw(st.sampled_from(["sum", "mean"]))
    weigh = mode == "sum" and data.draw(st.booleans())
    factors = np.random.default_rng(0).normal(size=len(ids)).astype(np.float32) if weigh else None
    padding = data.draw(st.none() | st.just(3))
    got = on(table).lookup(
        tensor(ids),
        tensor(offsets),
        mode=mode,
        weights=None if factors is None else tensor(factors),
        padding_id=padding,
    )
    np.testing.assert_allclose(
        got.cpu().numpy(), bags_of(table, ids, offsets, mode, factors, padding), rtol=1e-5, atol=1e-6
    )


@few
@given(st.lists(tables(), min_size=2, max_size=4), st.integers(0, 9))
def test_many_tables_of_any_kind(several, n):
    """Methods, codecs, widths and vocabularies of their own, ids in one call; negative padding counts from the end."""
    ids = np.random.default_rng(n).integers(0, 40, (len(several), n))
    got = on(*several).lookup(tensor(ids.T)).cpu().numpy()
    want = np.concatenate([table.lookup(row) for table, row in zip(several, ids)], 1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_many_tables_and_bags_are_one_launch():
    several = [
        make("cce", 500, 16, rank=0),
        make("ce", 300, 8, "int8"),
        make("hemb", 200, 12),
        make("cce", 90, 8, rank=4),
    ]
    device = on(*several)
    assert len(device.launches()) == 1
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 5, (4, 6))
    ids = [rng.integers(0, t.spec.vocab, row.sum()) for t, row in zip(several, lengths)]
    padded = [tensor(one) for one in ids]
    got = device.lookup(padded, lengths=tensor(lengths), mode="mean", padding_id=[None, -1, 3, None]).cpu().numpy()
    left = 0
    for k, (table, padding) in enumerate(zip(several, [None, 299, 3, None])):
        want = bags_of(table, ids[k], np.cumsum([0, *lengths[k]]), "mean", padding=padding)
        if table.spec.rank:  # an empty bag is 0, without the bias
            want[lengths[k] == 0] = 0
        np.testing.assert_allclose(got[:, left : left + table.spec.dim], want, rtol=1e-5, atol=1e-6)
        left += table.spec.dim


@pytest.mark.parametrize("weigh", [False, True])
def test_the_forms_of_ids_are_those_of_a_collection(weigh):
    """A matrix, a list of flat ids, bags of one size, bags by offsets and by lengths."""
    several = [make("cce", 60, 8, rank=0), make("ce", 60, 4), make("full", 60, 4)]
    rng, both, device = np.random.default_rng(0), cce.Collection(several), on(*several)
    matrix, cube = rng.integers(0, 60, (5, 3)), rng.integers(0, 60, (2, 3, 4))
    flat = [rng.integers(0, 60, n) for n in (4, 6, 0)]
    offsets, lengths = [[0, 1, 4], [0, 0, 6], [0, 0, 0]], [2, 3]
    even = [rng.integers(0, 60, 5) for _ in several]
    for ids, more in (
        (matrix, {}),
        (list(matrix.T), {}),
        (cube, {}),
        (flat, {"offsets": offsets}),
        (even, {"lengths": lengths}),
        (even, {"offsets": [0, 2, 5]}),
    ):
        heavy = [rng.random(np.shape(one), np.float32) for one in ids] if weigh else None
        heavy = np.stack(heavy) if weigh and isinstance(ids, np.ndarray) else heavy
        want = both.lookup(ids, weights=heavy, **more)

        def sent(x):
            return (
                [tensor(np.asarray(one)) for one in x]
                if isinstance(x, list) and np.ndim(x[0])
                else tensor(np.asarray(x))
            )

        got = device.lookup(
            sent(ids), weights=None if heavy is None else sent(heavy), **{k: sent(v) for k, v in more.items()}
        )
        np.testing.assert_allclose(got.cpu().numpy(), want, rtol=1e-5, atol=1e-6)


def test_very_different_shapes_are_grouped():
    several = [make("hnet", 300, 64), make("bloom", 300, 64), make("hnet", 100, 64)]
    assert [len(launch.members) for launch in on(*several).launches()] == [2, 1]
    ids = np.arange(15).reshape(3, 5)
    want = np.concatenate([table.lookup(row) for table, row in zip(several, ids)], 1)
    np.testing.assert_array_equal(on(*several).lookup(tensor(ids.T)).cpu().numpy(), want)


# Errors


def test_ids_out_of_range():
    device = on(make("cce", 100, 8), make("ce", 50, 8))
    ids = np.tile(np.arange(20)[:, None], (1, 2))
    for word, (position, k) in ((100, (7, 0)), (-1, (3, 0)), (50, (19, 1))):
        bad = ids.copy()
        bad[position, k] = word
        with pytest.raises(IndexError, match=f"table {k}: id {word} at position {position} .* {99 - 50 * k}"):
            device.lookup(tensor(bad))
    two = ids.copy()
    two[2, 1] = two[9, 0] = 1000
    with pytest.raises(IndexError, match="table 0: id 1000 at position 9 "):
        device.lookup(tensor(two))
    alone = on(make("ce", 50, 8))
    unchecked = alone.lookup(tensor(np.array([1, 70])), check=False).cpu().numpy()
    np.testing.assert_array_equal(unchecked[1], 0)
    with pytest.raises(IndexError, match="id 70 at position 3"):
        alone.lookup(tensor(np.array([1, 2, 3, 70])), tensor(np.array([0, 0, 2, 4])))


def test_what_callers_get_wrong():
    table = make("ce", 50, 8)
    device, ids = on(table), tensor(np.arange(6))
    with pytest.raises(TypeError, match=r"ids must be an integer tensor, got torch\.float32"):
        device.lookup(ids.float())
    with pytest.raises(TypeError, match="got list of int"):
        device.lookup([1, 2])
    with pytest.raises(ValueError, match="give offsets or lengths, not both"):
        device.lookup(ids, tensor(np.array([0, 6])), lengths=tensor(np.array([6])))
    with pytest.raises(ValueError, match="mode must be one of sum, mean; got 'max'"):
        device.lookup(ids, mode="max")
    for offsets in ([0, 4], [1, 6], [0, 5, 3, 6]):
        with pytest.raises(ValueError, match="offsets must begin at 0, never fall, and end at the number of ids, 6"):
            device.lookup(ids, tensor(np.array(offsets)))
    with pytest.raises(TypeError, match="offsets must be int64"):
        device.lookup(ids, tensor(np.array([0, 6], np.int32)))
    with pytest.raises(ValueError, match=r"weights must have shape \(6,\)"):
        device.lookup(ids, weights=tensor(np.ones(5, np.float32)))
    with pytest.raises(ValueError, match='weights go with mode="sum" only'):
        device.lookup(ids, weights=tensor(np.ones(6, np.float32)), mode="mean")
    with pytest.raises(ValueError, match=r"ids of 2 tables must have shape \(batch, 2\)"):
        on(table, table).lookup(ids)
    with pytest.raises(ValueError, match="not a sum of blocks"):
        on(make("ce", 50, 8, combine="mul")).lookup(ids, tensor(np.array([0, 6])))
    arrays = from_table(table, DEVICE)
    with pytest.raises(ValueError, match="needs the array 'keys'"):
        Tables([(table.spec, {"memory": arrays["memory"]})])
    with pytest.raises(ValueError, match="memory must hold"):
        Tables([(table.spec, {**arrays, "memory": arrays["memory"][:-1]})])
    with pytest.raises(TypeError, match=r"memory must be torch\.float32"):
        Tables([(table.spec, {**arrays, "memory": arrays["memory"].double()})])
    with pytest.raises(ValueError, match=r"use cce_kernels\.trains"):
        on(make("tt", 50, 8))
    with pytest.raises(ValueError, match=r"memory must be contiguous"):
        members_of(table.spec, {**arrays, "memory": torch.zeros(2 * len(arrays["memory"]), device=DEVICE)[::2]})
    with pytest.raises(TypeError, match="x must be a torch tensor, got int"):
        on_device(x=1)


def test_without_triton_the_message_says_what_to_install(tmp_path):
    import os
    import subprocess
    import sys
    from pathlib import Path

    import cce_kernels.runtime

    code = "import sys; sys.modules['triton'] = None; import cce_kernels.tables"
    paths = [str(Path(cce_kernels.runtime.__file__).parents[1]), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert "pip install 'cce-core[torch,triton]'" in done.stderr, done.stderr
    assert "triton is missing" in done.stderr


def test_moved_memory_is_seen():
    table = make("ce", 50, 8)
    device, ids = on(table), tensor(np.arange(6))
    before = device.lookup(ids)
    device.arrays[0]["memory"] = 2 * device.arrays[0]["memory"]
    assert torch.equal(device.lookup(ids), 2 * before)
    assert torch.equal(lookup_once(table.spec, from_table(table, DEVICE), ids), before)


@pytest.mark.parametrize(("method", "rank", "dim", "options"), [
    ("cce", 4, 100, {}), ("cce", 20, 70, {}), ("full", 1, 3, {}), ("hash", 5, 130, {}), ("robe", 4, 8, {}),
    ("hemb", 8, 20, {"weights": "concat"}), ("hemb", 8, 20, {}), ("ce", 4, 20, {"combine": "mul"}),
])  # fmt: skip
def test_projections_of_any_size(method, rank, dim, options):
    """More columns than the kernel takes at a time, fewer than 16 of anything; ids, bags, and what is kept for the way back."""
    table = make(method, 60, dim, rank=rank, **options)
    ids = np.random.default_rng(0).integers(0, 60, 33)
    device = on(table)
    np.testing.assert_allclose(device.lookup(tensor(ids)).cpu().numpy(), table.lookup(ids), rtol=1e-5, atol=1e-6)
    vectors, inner, mass = device.forward(tensor(ids))
    np.testing.assert_allclose(vectors.cpu().numpy(), table.lookup(ids), rtol=1e-5, atol=1e-6)
    assert torch.equal(mass, torch.ones_like(mass))
    kept, _ = table.method.forward(table, ids.astype(np.uint64), keep=False)
    if options.get("combine") != "mul":
        np.testing.assert_array_equal(inner.cpu().numpy(), kept)
        for mode in ("sum", "mean"):
            offsets = np.array([0, 0, 7, 33])
            got = device.lookup(tensor(ids), tensor(offsets), mode=mode).cpu().numpy()
            np.testing.assert_allclose(got, bags_of(table, ids, offsets, mode), rtol=1e-4, atol=1e-5)
