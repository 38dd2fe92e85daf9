"""How many functions of cce_core one call of the public face runs: what Python costs before any compiled loop begins.

Counted with `sys.setprofile` on the caller's thread, compiled functions that Python calls among them, at the second call and
later. They are numbers of this code, not of the machine, but for one: how many threads a loop may take.
"""

from __future__ import annotations

import collections
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import cce_core as cce
from bench.speed.timing import Figures

HOUSE = Path(cce.__file__).parent
VOCAB, DIM, BATCHES = 4000, 16, (1, 4096)


def calls_of(program: Callable[[], Any], folder: Path = HOUSE) -> collections.Counter[str]:
    """How often each function whose file is under a folder is called by one call of a program, by "file:name"."""
    found: collections.Counter[str] = collections.Counter()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(folder):
            found[f"{path.relative_to(folder)}:{frame.f_code.co_name}"] += 1

    for _ in range(2):  # what is made at first is there then
        program()
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        program()
    finally:
        sys.setprofile(before)
    return found


def core(n: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Programs of the core, of n ids."""
    ids = np.arange(n) * 7919 % VOCAB
    table, other = (cce.make_table("cce", VOCAB, DIM, num_params=2048, seed=seed) for seed in (0, 1))
    yield "Table.lookup", lambda: table.lookup(ids)
    both, pairs, optimizer = cce.Collection([table, other]), np.stack([ids, ids], 1), cce.Adam()

    def step() -> None:
        seen = both.forward(pairs)
        optimizer.update(both, seen, seen.vectors)

    yield "Collection.forward and Optimizer.update", step


def adapter(n: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Programs of the torch adapter, of n ids."""
    import torch

    from cce_core.adapters.torch import Embedding, EmbeddingBag, FusedAdagrad, FusedAdam, FusedSGD

    ids, offsets = torch.arange(n) * 7919 % VOCAB, torch.arange(0, n, 4)
    emb, bag = (cls(VOCAB, DIM, method="cce", num_params=2048, seed=0).eval() for cls in (Embedding, EmbeddingBag))
    yield "Embedding.forward, no gradient", torch.no_grad()(lambda: emb(ids))
    yield "EmbeddingBag.forward, no gradient", torch.no_grad()(lambda: bag(ids, offsets))
    for kind in (FusedSGD, FusedAdagrad, FusedAdam):
        for sparse in (False, True):
            trained = Embedding(VOCAB, DIM, method="cce", num_params=2048, seed=0, sparse=sparse)
            optimizer = kind(trained.parameters())

            def step(trained: Any = trained, optimizer: Any = optimizer) -> None:
                trained(ids).sum().backward()
                optimizer.step()
                optimizer.zero_grad()

            yield f"Embedding and {kind.__name__}, {'sparse' if sparse else 'dense'}: a step", step


def run(quick: bool) -> Iterator[Figures]:
    """All programs, for one id and for thousands."""
    places = [core, adapter] if importlib.util.find_spec("torch") else [core]
    for n in BATCHES:
        for place in places:
            for name, program in place(n):
                found = calls_of(program)
                rooms = collections.Counter[str]()
                for function, count in found.items():
                    rooms[function.rpartition("/")[0] or "cce_core"] += count
                yield Figures("calls", f"{name}, ids {n:,}", {"all": found.total(), **rooms})
