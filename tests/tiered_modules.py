"""Modules whose ids earn rows, twins of theirs in the core, and a small stream: shared by the tests of both."""

from __future__ import annotations

import numpy as np
import pytest

import cce_core as cce

torch = pytest.importorskip("torch")

from cce_core.adapters.torch import Embedding  # noqa: E402

DIM = 4
SETTINGS = {"num_bytes": 1200, "half_life": 5, "lead": 1, "codec": "float32", "rank": 0}
KINDS = {
    "float32": {},
    "narrow": {"rank": 2},
    "int8": {"codec": "int8"},
    "stochastic": {"codec": "int8", "rounding": "stochastic"},
    "stochastic halves": {"codec": "bfloat16", "rounding": "stochastic", "rank": 2},
    "lru": {"eviction": "lru", "grace": 4},
    "frequency": {"admission": "frequency", "admit_threshold": 2, "bits": 32, "num_bytes": 500},
}
EVERY = pytest.mark.parametrize("name", KINDS)


def made(name="float32", kind=Embedding, seed=3, **more):
    return kind(None, DIM, method="tiered", seed=seed, **{**SETTINGS, **KINDS[name], **more})


def of_core(name="float32", **more):
    return cce.make_table(
        "tiered", None, DIM, seed=3, **{**SETTINGS, **{"rounding": "straight-through"}, **KINDS[name], **more}
    )


def stream(n, size=24, seed=0):
    """Few ids often, most of them once; negative ones too."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy((rng.zipf(1.3, size) % 2**40 - 3).astype(np.int64)) for _ in range(n)]


def slopes(vectors):
    return torch.sin(vectors.detach() + torch.arange(float(DIM)))


def train(emb, steps, batches):
    for ids in batches:
        steps.zero_grad()
        vectors = emb(ids)
        vectors.backward(slopes(vectors))
        steps.step()


def changed(before, emb):
    """The rows that have other owners than in a table of before."""
    rows = np.arange(emb.spec.sizes[0])
    return torch.from_numpy(before.owners.map.identities(rows) != emb.table.owners.map.identities(rows)).nonzero()[:, 0]
