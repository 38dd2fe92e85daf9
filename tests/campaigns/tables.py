"""Small tables of every method, codec and rank, and everything that can be done with one."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

import cce_core as cce

VOCAB, DIM = 24, 8
_REFUSED = re.compile("finite|NaN|infinity|too few|too large|overflow")  # what a step or cluster() says of wild numbers


def _maker(method: str, **more: Any) -> Callable[[], cce.Table]:
    budget = {"num_params": 320} if next(m for m in cce.methods() if m.name == method).budgeted else {}
    return lambda: cce.make_table(method, VOCAB, DIM, seed=1, **budget, **more)


def makers() -> dict[str, Callable[[], cce.Table]]:
    """What makes each table: every method with its default settings; those with codecs and ranks; one without a vocabulary."""
    made = {m.name: _maker(m.name) for m in cce.methods()}
    for method in ("cce", "cce_robe", "pq", "sparse", "hash", "hemb", "full", "robe"):
        made[f"{method} rank 4 int8"] = _maker(method, rank=4, codec="int8")
    for codec in ("bfloat16", "int8", "int4"):
        made[f"cce {codec}"] = _maker("cce", rank=0, codec=codec, rounding="stochastic")
    made["hash unbounded"] = lambda: cce.make_table("hash", None, DIM, num_params=320, seed=1)
    return made


def use(table: cce.Table) -> None:
    """All that can be done with a table that `load` gave; a crash is what is looked for.

    A table whose numbers are wild may refuse to be trained or clustered, with the reason; nothing else may be raised.
    """
    vocab = table.spec.vocab
    ids = (
        np.arange(min(vocab or VOCAB, 64)) if vocab is None or vocab <= 64 else np.array([0, 1, vocab // 2, vocab - 1])
    )
    grads = np.ones((len(ids), table.spec.dim), np.float32)
    with np.errstate(all="ignore"):
        assert table.lookup(ids).shape == grads.shape
        table.backward(table.forward(ids), grads)
        cce.Collection([table, table]).lookup(np.stack([ids, ids], 1))
        repr(table), table.ledger(), hash(table.spec)
        pickle.loads(pickle.dumps(table)), copy.deepcopy(table)
        if vocab is not None and vocab <= 64 and table.method.is_linear(table.spec):
            table.sketch_matrix()
        if not table.writeable:
            return
        for change in (
            lambda: cce.SGD(0.0).update(table, ids, grads),
            lambda: table.cluster(n_iter=1) if table.method.learns and table.phase != "codes" else None,
        ):
            try:
                change()
            except ValueError as error:
                if not _REFUSED.search(str(error)):
                    raise
        table.lookup(ids)
