"""What the tests of the Triton kernels share: where they run, tables of every method, outputs poisoned with NaN."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest
from hypothesis import strategies as st
from reference import tables as reference

import cce_core as cce

for _needed in ("triton", "torch"):
    if importlib.util.find_spec(_needed) is None:
        pytest.skip(f"{_needed} is not installed; `tox -e interp` installs it", allow_module_level=True)

import torch  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("no GPU; set TRITON_INTERPRET=1 for Triton's interpreter", allow_module_level=True)

DEVICE = "cpu" if INTERPRETED else "cuda"

# Every linear method, every kind of address and weight.
METHODS = [
    ("full", {}), ("hash", {"signed": True}), ("bloom", {"n_hashes": 3, "signed": True}), ("ce", {}),
    ("ce", {"combine": "add"}), ("ce", {"combine": "mul"}), ("qr", {}), ("robe", {"signed": True}), ("hnet", {"signed": True}),
    ("hemb", {}), ("hemb", {"weights": "shared"}), ("hemb", {"weights": "concat"}), ("hemb", {"weights": "independent"}),
    ("rhemb", {}), ("cce", {"rank": 0}), ("cce", {"rank": 4}), ("cce_robe", {}), ("pq", {}), ("sparse", {}), ("sparse2", {}),
    ("vq", {}), ("vq", {"phase": "codes", "rank": 4}), ("vq", {"phase": "codes", "stages": 2, "rank": 0}),
]  # fmt: skip
CODECS = ("float32", "bfloat16", "int8", "int4")


def make(method: str, vocab: int, dim: int, codec: str = "float32", seed: int = 0, **options):
    """A small table with a memory of its own values, pointers included."""
    budget = {} if method == "full" else {"num_params": max(40 * dim, 700)}
    if method not in ("full", "hash", "bloom", "hnet", "hemb", "rhemb", "sparse", "sparse2"):
        options.setdefault("n_chunks", 4 if dim % 4 == 0 else 1 if options.get("combine") != "mul" else 2)
    return cce.make_table(method, vocab, dim, codec=codec, seed=seed, **budget, **options)


@st.composite
def tables(draw, methods=METHODS, codecs=CODECS, dims=(1, 2, 3, 8, 12, 20, 64)):
    """A table of any method, width and codec that go together."""
    method, options = draw(st.sampled_from(methods))
    dim = draw(st.sampled_from([d for d in dims if d >= 4 or (method, options) in METHODS[:5] or method == "hnet"]))
    if options.get("weights") == "concat" or method in ("sparse", "sparse2") or options.get("rank"):
        dim = max(dim, 8)
    vocab = draw(st.sampled_from([40, 300, 100_000 if method == "cce" else 1000]))
    return make(method, vocab, dim, draw(st.sampled_from(codecs)), draw(st.integers(0, 2**64 - 1)), **options)


def tensor(array) -> torch.Tensor:
    """A copy on the device."""
    return torch.from_numpy(np.array(array)).to(DEVICE)


def twin_of(table, ids: np.ndarray) -> np.ndarray:
    """float64 vectors from the definition, codes decoded first."""
    return reference.lookup(table.spec.method, ids, decoded(table), **described(table))


def decoded(table) -> dict[str, np.ndarray]:
    arrays = {name: array for name, array in table.arrays().items() if name in table.parameters()}
    return {**arrays, "memory": table.stored.decoded()}


def described(table) -> dict:
    """The spec as the twin takes it."""
    spec, arrays = table.spec, table.arrays()
    return {
        "vocab": spec.vocab,
        "inner": spec.inner,
        "n_chunks": spec.n_chunks,
        "sizes": spec.sizes,
        "options": dict(spec.options),
        "keys": arrays.get("keys", ()),
        "words": arrays.get("pointers", ()),
    }


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Fresh memory holds NaN, so that what a kernel leaves unwritten is seen."""
    plain = torch.empty

    def empty(*args, **kwargs):
        out = plain(*args, **kwargs)
        return (
            out.fill_(float("nan"))
            if out.is_floating_point()
            else out.fill_(-(2**40) if out.element_size() == 8 else 77)
        )

    monkeypatch.setattr(torch, "empty", empty)
