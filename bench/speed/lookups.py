"""The hot path: ids → vectors and back, one table and 26, against eager torch and against full tables.

Two threads each. What is compared on the same table must first agree; what is compared with another table (a full one, which
reads more memory) must first agree with itself, looked up table by table.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import cce_core as cce
from bench.speed.epoch import eager_embedding
from bench.speed.timing import Row, in_turn
from cce_core.method import get_method

THREADS, VOCAB, IDS = 2, 1_000_000, 65_536
TABLES, BAGS, PER_BAG, NARROW = 26, 1024, 20, 16


@functools.cache
def copied_bytes_a_second() -> float:
    """What two threads read and write together where they copy 256 MiB, the best of seven."""
    source = np.ones(1 << 25)
    to, parts = np.empty_like(source), np.array_split(np.arange(len(source)), THREADS)
    best = float("inf")
    for _ in range(7):
        workers = [
            threading.Thread(target=np.copyto, args=(to[p[0] : p[-1] + 1], source[p[0] : p[-1] + 1])) for p in parts
        ]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def close(name: str, got: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Refuse to time what is not right."""
    worst = float(np.abs(np.asarray(got) - np.asarray(expected)).max())
    if not worst <= tolerance:
        raise AssertionError(f"{name}: results differ by up to {worst:.2g}; nothing is timed")


def run(quick: bool) -> Iterator[Row]:
    """All rows of the table in bench/README.md."""
    import torch

    cce.set_num_threads(THREADS)
    torch.set_num_threads(THREADS)
    turns = 5 if quick else 21

    def row(
        case: str, ours: Callable[[], Any], peer: str, theirs: Callable[[], Any], target: float, nbytes: int, n: int = 1
    ) -> Row:
        times = in_turn(turns, lambda: [ours() for _ in range(n)], lambda: [theirs() for _ in range(n)])
        mine, other = ([t / n for t in own] for own in times)
        return Row("lookups", case, mine, peer, other, target, nbytes, nbytes / copied_bytes_a_second())

    yield from one_table(row)
    yield from one_block(row)
    yield from many_tables(row)
    yield from hashing(row)
    cce.set_num_threads(None)


def one_table(row: Callable[..., Row]) -> Iterator[Row]:
    """Forward, and forward and backward, of one cce table; one id."""
    import torch

    rng = np.random.default_rng(0)
    table = cce.make_table("cce", VOCAB, 32, num_params=2 * 4096 * 32, n_chunks=4, rank=0, seed=0)
    ids = rng.integers(0, VOCAB, IDS)
    there, grads = torch.from_numpy(ids), rng.standard_normal((IDS, 32)).astype(np.float32)
    eager, of_there = eager_embedding(table), torch.from_numpy(grads)
    close("forward", table.lookup(ids), eager(there).detach())

    def forward_backward() -> Any:
        return table.backward(table.forward(ids), grads, dense=True)["memory"]

    def eager_backward() -> Any:
        eager.zero_grad()
        eager(there).backward(of_there)

    eager_backward()
    expected = torch.stack([eager.learned.grad, eager.hashed.grad], 1).reshape(-1)
    close("backward", forward_backward(), expected, 1e-2)
    pointers = -(-table.buffers()["pointers"].nbytes * IDS // VOCAB)
    moved = ids.nbytes + pointers + 4 * 32 * IDS
    case = f"cce, {IDS:,} ids of {VOCAB:,}, 4 chunks x 8, 4,096 rows"
    with torch.no_grad():
        yield row(f"{case}, forward", lambda: table.lookup(ids), "eager torch", lambda: eager(there), 15.0, moved)
        full = torch.nn.Embedding(VOCAB, 32)
        yield row(
            f"{case}, forward", lambda: table.lookup(ids), "nn.Embedding, full table", lambda: full(there), 1.0, moved
        )
    yield row(f"{case}, forward and backward", forward_backward, "eager torch", eager_backward, 6.0, 2 * moved)
    for codec in ("bfloat16", "int8", "int4"):
        kept = cce.make_table("full", VOCAB, 32, codec=codec, seed=0)
        exact = cce.make_table("full", VOCAB, 32, seed=0)
        close(codec, kept.lookup(ids), exact.lookup(ids), {"bfloat16": 2e-3, "int8": 2e-3, "int4": 3e-2}[codec])
        nbytes = ids.nbytes + 4 * 32 * IDS + kept.stored.codec.nbytes(32) * IDS
        yield row(
            f"full, {IDS:,} ids of {VOCAB:,}, dim 32, {codec}",
            lambda: kept.lookup(ids),  # noqa: B023
            "float32",
            lambda: exact.lookup(ids),  # noqa: B023
            1.0,
            nbytes,
        )
    one, tensor = np.array([123_456]), torch.tensor([123_456])
    with torch.no_grad():
        yield row("cce, one id", lambda: table.lookup(one), "nn.Embedding", lambda: full(tensor), 0.5, 140, 2000)


def one_block(row: Callable[..., Row]) -> Iterator[Row]:
    """Of a block an id: rows of `vq` in 8 bits while they learn, and its 256 centroids afterwards."""
    import torch

    ids = np.random.default_rng(2).integers(0, VOCAB, IDS)
    there, full = torch.from_numpy(ids), torch.nn.Embedding(VOCAB, 32)
    for rank in (0, 4):
        spec = cce.make_table("vq", VOCAB, 32, num_bytes=1_012_000, rank=rank, share=False, seed=0).spec
        for then in (spec, get_method("vq").served(spec)):
            table = cce.Table(then)
            parts = [
                table.lookup(part) for part in np.array_split(ids, IDS // 64)
            ]  # fewer ids than there are centroids
            close(f"vq, {table.phase}", table.lookup(ids), np.concatenate(parts), 0.0)
            rows = f"{then.sizes[0]} rows" if table.phase == "codes" else "int8 rows"
            nbytes = ids.nbytes + 4 * 32 * IDS + (IDS if table.phase == "codes" else (rank or 32) * IDS)
            with torch.no_grad():
                yield row(
                    f"vq, {IDS:,} ids of {VOCAB:,}, dim 32, {rows} of rank {rank}, forward",
                    lambda: table.lookup(ids),  # noqa: B023
                    "nn.Embedding, full table",
                    lambda: full(there),
                    1.2 if table.phase == "codes" else 0.9,
                    nbytes,
                )


def many_tables(row: Callable[..., Row]) -> Iterator[Row]:
    """Bags over 26 tables, and a step of training of them."""
    import torch

    rng = np.random.default_rng(1)
    tables = [
        cce.make_table("cce", VOCAB, NARROW, num_params=2 * 4096 * NARROW, n_chunks=4, rank=0, seed=k)
        for k in range(TABLES)
    ]
    both = cce.Collection(tables)
    ids = [rng.integers(0, VOCAB, BAGS * PER_BAG) for _ in tables]
    offsets = np.arange(0, BAGS * PER_BAG + 1, PER_BAG)
    seen = both.lookup(ids, offsets)
    for k, part in enumerate(both.split(seen)):
        close("bags", part, tables[k].lookup(ids[k]).reshape(BAGS, PER_BAG, NARROW).sum(1))
    full = [torch.nn.EmbeddingBag(VOCAB, NARROW, mode="sum", sparse=True) for _ in tables]
    there, starts = [torch.from_numpy(own) for own in ids], torch.from_numpy(offsets[:-1])
    pointers = sum(table.buffers()["pointers"].nbytes for table in tables) * BAGS * PER_BAG // VOCAB
    words = 8 * BAGS * PER_BAG * TABLES
    moved = words + pointers + 4 * BAGS * NARROW * TABLES
    with torch.no_grad():
        yield row(
            f"cce, {BAGS:,} bags of {PER_BAG} ids, {TABLES} tables of {VOCAB:,} x {NARROW}, forward",
            lambda: both.lookup(ids, offsets),
            f"{TABLES} nn.EmbeddingBag, full tables",
            lambda: [bag(own, starts) for bag, own in zip(full, there, strict=True)],
            1.5,
            moved,
        )
    batch = rng.integers(0, VOCAB, (4 * BAGS, TABLES))
    grads = rng.standard_normal((4 * BAGS, both.dim)).astype(np.float32)
    columns = [torch.from_numpy(np.ascontiguousarray(batch[:, k])) for k in range(TABLES)]
    parts = [torch.from_numpy(np.ascontiguousarray(own)) for own in both.split(grads)]
    single = [torch.nn.Embedding(VOCAB, NARROW, sparse=True, _weight=bag.weight.detach()) for bag in full]
    check_step(both, batch, grads)
    ours, theirs = cce.Adagrad(0.01), torch.optim.Adagrad([m.weight for m in single], lr=0.01)

    def step() -> None:
        ours.update(both, both.forward(batch), grads)

    def torch_step() -> None:
        theirs.zero_grad()
        outs = [module(own) for module, own in zip(single, columns, strict=True)]
        torch.autograd.backward(outs, parts)
        theirs.step()

    words = batch.nbytes + pointers * batch.size // (BAGS * PER_BAG * TABLES)
    yield row(
        f"cce, {len(batch):,} rows, {TABLES} tables of {VOCAB:,} x {NARROW}, forward, backward, Adagrad",
        step,
        f"{TABLES} nn.Embedding, sparse gradients, torch.optim.Adagrad",
        torch_step,
        3.0,
        2 * words + 3 * grads.nbytes,
    )


def check_step(both: cce.Collection, batch: Any, grads: Any) -> None:
    """A step of the collection must be a step of each of its tables."""
    few, apart = cce.Collection(both.tables[:2]), cce.Adagrad(0.01)
    copies = [cce.Table(t.spec, {n: a.copy() for n, a in t.arrays().items()}) for t in few.tables]
    own = np.ascontiguousarray(grads[:, : few.dim])
    cce.Adagrad(0.01).update(few, batch[:, :2], own)
    for k, (table, part) in enumerate(zip(copies, few.split(own), strict=True)):
        apart.update(table, batch[:, k], part)
        close("Adagrad", few.tables[k].parameters()["memory"], table.parameters()["memory"])


def hashing(row: Callable[..., Row]) -> Iterator[Row]:
    """Four hashes of ten million ids."""
    from cce_core.hashing.mix import derive_key

    n, buckets = 10_000_000, 4096
    ids = np.arange(n, dtype=np.uint64) * np.uint64(2654435761)

    def plain(word: Any, seed: int) -> Any:
        """The same mix in NumPy."""
        x = word ^ (word >> np.uint64(32))
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(29)
        x ^= np.uint64(derive_key(seed, 0))
        for factor, shift in ((0xD6E8FEB86659FD93, 32), (0x9FB21C651E98DF25, 29), (0x243F6A8885A308D3, 32)):
            x *= np.uint64(factor)
            x ^= x >> np.uint64(shift)
        low, b = np.uint64(0xFFFFFFFF), np.uint64(buckets)
        return ((x >> np.uint64(32)) * b + (((x & low) * b) >> np.uint64(32))) >> np.uint64(32)

    few = ids[:1000]
    close("hash", cce.mix_hash(few, buckets, seed=3).astype(float), plain(few.copy(), 3).astype(float), 0.0)
    yield row(
        "10 million ids, 4 hashes",
        lambda: [cce.mix_hash(ids, buckets, seed=k) for k in range(4)],
        "the same in NumPy",
        lambda: [plain(ids, k) for k in range(4)],
        5.0,
        4 * 2 * ids.nbytes,
    )
