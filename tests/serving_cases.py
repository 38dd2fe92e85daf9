"""Drawn tables of every method, codec and rank, drawn ids of every kind, and what the reader must give for them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from strategies import INTEGER_TYPES

import cce_core as cce
from cce_core.method import get_method
from cce_core.method.state import TableState
from cce_core.serving import Reader
from cce_core.sketching.small_matmul import set_product

LINEAR = tuple(m.name for m in cce.methods() if m.codecs)
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "hash": [{}, {"signed": True}, {"vocab": None}],
    "bloom": [{"n_hashes": 1}, {"n_hashes": 2}, {"n_hashes": 3, "signed": True}, {"vocab": None}],
    "hemb": [{"weights": kind, "n_hashes": n} for kind in ("flat", "shared", "independent", "concat") for n in (1, 3)],
    "rhemb": [{"n_hashes": 1}, {"n_hashes": 3}, {"vocab": None}],
    "ce": [{"combine": kind} for kind in ("concat", "add", "mul")] + [{"vocab": None}],
    "qr": [{"combine": kind} for kind in ("concat", "add", "mul")],
    "robe": [{}, {"chunk_size": 1}, {"signed": True}, {"vocab": None}],
    "hnet": [{}, {"signed": True}, {"vocab": None}],
    "tt": [{"cores": n} for n in (2, 3, 4)],
    "dhe": [{"depth": 1}, {"n_hashes": 10}, {"transform": "gaussian"}, {"vocab": None}],
    "sparse": [{"n_atoms": 1}, {"n_atoms": 2, "weight_bits": 7}],
    "sparse2": [{"n_atoms": 1}, {"n_atoms": 2}],
    "vq": [{"stages": n, "share": share} for n in (1, 2, 3) for share in (True, False)],
    "tiered": [{"bits": 32}, {"bits": 16, "shared": 3}, {"eviction": "lru"}, {"vocab": None}],
}
PHASES = ("rows", "codes", "marked")


def fused() -> bool:
    """Whether compiled products round a multiplication and an addition once: (1 + e)(1 - e) - 1 = -e² then."""
    e, one, out = np.float32(2.0**-14), np.uint64(1), np.zeros(1, np.float32)
    left, right = np.array([-1, 1 + e], np.float32), np.array([1, 1 - e], np.float32)
    zero, two = np.uint64(0), np.uint64(2)
    set_product(out, zero, one, left, zero, two, one, right, zero, one, one, two, one)
    return bool(out[0] != 0)


FUSED = fused()


def exact(spec: Any) -> bool:
    """Whether the reader has the library's bits of such a table here."""
    if spec.method == "dhe":
        return bool(spec.option("transform") == "uniform")
    return FUSED or not (spec.rank or spec.method == "tt")


def wild(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Floats of one scale or of all."""
    values = rng.standard_normal(like.shape).astype(np.float32)
    if rng.random() < 0.3:
        values *= np.float32(10.0) ** rng.integers(-18, 12, like.shape).astype(np.float32)
    if rng.random() < 0.2:
        values[rng.random(like.shape) < 0.2] = -0.0
    return values


def drawn(rng: np.random.Generator, method: str, codec: str, phase: str = "rows", option: int | None = None) -> Any:
    """A table, or of method `tiered` at times a collection, with drawn sizes and numbers."""
    own = OPTIONS.get(method, [{}])
    more = dict(own[int(rng.integers(len(own))) if option is None else option % len(own)])
    vocab = more.pop("vocab", int(rng.integers(40, 1200 if method == "qr" else 3000)))
    dim, chunks = int(rng.choice([4, 8, 12, 16, 24, 64])), int(rng.choice([1, 2, 4]))
    rule = get_method(method)
    if rule.chunked:
        more["n_chunks"] = max(2, chunks) if more.get("combine") == "mul" else chunks
    if codec != "float32":
        more["codec"] = codec
    if rule.projects and method != "ldim":
        more["rank"] = int(rng.choice([r for r in (0, 0, 4, 8) if r < dim]))
        least = more.get("n_hashes", 1) + 1 if more.get("weights") == "concat" else more.get("n_atoms", 1)
        if more["rank"] and more["rank"] < least:
            more["rank"] = 0
    budget = (
        {"num_bytes": int(rng.integers(6, 40)) * vocab + 100 * dim + (400_000 if method == "qr" else 3000)}
        if vocab
        else {"num_bytes": 20_000}
    )
    if method in ("full", "int8", "int4"):
        budget = {}
    with warnings.catch_warnings(action="ignore"):  # that a full table is smaller
        table = cce.make_table(method, vocab, dim, seed=int(rng.integers(2**63)), **budget, **more)
    if method == "vq" and phase != "rows":
        specs = rule.clustered(table.spec)
        table = cce.Table(specs[int(rng.integers(1, len(specs)))] if phase == "marked" and len(specs) > 1 else specs[0])
    if method == "tiered":
        n = 0 if vocab else int(rng.integers(0, 4))
        if n:
            own = {
                "num_bytes": 20_000,
                "seed": table.spec.seed,
                "rank": more["rank"],
                "codec": codec,
                "bits": more.get("bits", 16),
            }
            table = cce.make_collection("tiered", [f"t{k}" for k in range(n)] if n > 1 else n, dim, **own)
        for _ in range(4):
            ids = rng.zipf(1.2, (400, n) if n else 400) % (vocab or 2**40)
            cce.SGD(0.1).update(table, ids, rng.standard_normal((400, max(1, n) * dim)))
        if rng.integers(2):
            table.cluster(bits=int(rng.integers(1, 6)), n_iter=2)
    filled(rng, getattr(table, "shared", table))
    return table


def filled(rng: np.random.Generator, table: TableState) -> None:
    """Give a table drawn numbers, and drawn pointers that need not be in range."""
    for values in table.parameters().values():
        values[...] = wild(rng, values)
    table.requantize()
    if table.spec.method not in ("vq", "tiered") and "pointers" in table.arrays():
        table.arrays()["pointers"][...] = rng.integers(0, 2**64, len(table.arrays()["pointers"]), np.uint64)


def ids_of(rng: np.random.Generator, vocab: int | None, n: int | None = None) -> np.ndarray:
    """Ids of any integer type and, without n, of any shape."""
    dtype = np.dtype(str(rng.choice(INTEGER_TYPES)))
    info = np.iinfo(dtype)
    least, most = (0, min(vocab - 1, int(info.max))) if vocab else (int(info.min), int(info.max))
    shape = tuple(rng.integers(0, 7, int(rng.integers(0, 4)))) if n is None else (n,)
    if n is None and rng.random() < 0.03:
        shape = (int(rng.integers(1, 12_000)),)
    if vocab is None and rng.random() < 0.5:  # few, so that owners are among them
        least, most = 0, min(most, 50)
    ids = rng.integers(least, most, shape, dtype, endpoint=True)
    ids = np.where(rng.random(shape) < 0.1, rng.choice(np.array([least, most], dtype)), ids)
    return ids.astype(dtype.newbyteorder("S")) if rng.random() < 0.2 else ids


def bags_of(rng: np.random.Generator, vocab: int | None) -> tuple[np.ndarray, dict[str, Any]]:
    """Flat ids with everything that may come beside them."""
    lengths = rng.integers(0, 9, int(rng.integers(0, 12)))
    if len(lengths) and rng.random() < 0.2:
        lengths[rng.integers(len(lengths))] = rng.integers(200, 900)
    ids = ids_of(rng, vocab, int(lengths.sum()))
    more: dict[str, Any] = {"mode": str(rng.choice(["sum", "sum", "mean", "max"]))}
    if rng.random() < 0.5:
        more["lengths"] = lengths
    else:
        more["offsets"] = np.concatenate([[0], np.cumsum(lengths)])
    if more["mode"] == "sum" and rng.random() < 0.5:
        more["weights"] = wild(rng, np.empty(len(ids)))
    if len(ids) and rng.random() < 0.3:
        more["padding_id"] = int(rng.choice(ids)) & (2**64 - 1)
    return ids, more


def same(got: np.ndarray, expected: np.ndarray, bits: bool, what: Any) -> None:
    """Equal to the bit, NaN for NaN; or nearly so."""
    assert got.dtype == expected.dtype == np.float32
    assert got.shape == expected.shape, what
    if not bits:
        most = np.abs(expected[np.isfinite(expected)]).max(initial=1)
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6 * most, err_msg=str(what))
        return
    different = (got.view(np.uint32) != expected.view(np.uint32)) & ~(np.isnan(got) & np.isnan(expected))
    assert not different.any(), (what, got[different][:4], expected[different][:4])


def compared(rng: np.random.Generator, table: Any, path: Path, bits: bool, times: int = 1) -> Reader:
    """Write a table (or a collection), and compare all that the reader can be asked with what the library says."""
    table.save(path)
    reader, several = Reader(path), not isinstance(table, cce.Table)
    for _ in range(times):
        number = int(rng.integers(len(reader.names)))
        one = table[number] if several else table
        vocab = table.spec.vocab
        ids = ids_of(rng, vocab)
        with np.errstate(all="ignore"):
            expected = one.lookup(ids)
        with np.errstate(all="raise"):  # of numbers without end nothing is said, as in compiled code
            got = reader.lookup(ids, number)
        same(got, expected, bits, (table.spec, ids))
        ids, more = bags_of(rng, vocab)
        with np.errstate(all="ignore"):
            expected = library_bags(table, number, ids, more)
        with np.errstate(all="raise"):
            got = reader.bags(ids, table=number, **more)
        same(got, expected, bits, (table.spec, ids, more))
    return reader


def library_bags(table: Any, number: int, ids: Any, more: dict[str, Any]) -> np.ndarray:
    """The bags of one table, by the library."""
    if isinstance(table, cce.Table):
        return cce.Collection([table]).lookup(
            [ids], **{k: [v] if k in ("weights", "lengths", "offsets") else v for k, v in more.items()}
        )
    n, none = table.spec.n_tables, np.empty(0, np.int64)
    rows = len(more["lengths"]) if "lengths" in more else len(more["offsets"]) - 1
    empty = {"lengths": np.zeros(rows, int), "offsets": np.zeros(rows + 1, int), "weights": np.empty(0)}
    every = {k: [v if t == number else empty[k] for t in range(n)] if k in empty else v for k, v in more.items()}
    return table.split(table.lookup([ids if t == number else none for t in range(n)], **every))[number]
