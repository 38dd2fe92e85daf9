"""The Triton twin of the hash: the same bits as `cce_core.hashing`, and real machine code without a GPU at hand."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from cce_core.hashing import derive_key, mix_hash

pytestmark = pytest.mark.triton

for _needed in ("triton", "torch"):
    if importlib.util.find_spec(_needed) is None:
        pytest.skip(f"{_needed} is not installed; `tox -e interp` installs it", allow_module_level=True)

import torch  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("no GPU; set TRITON_INTERPRET=1 for Triton's interpreter", allow_module_level=True)

from cce_kernels import hashing as twin  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"
MASK = 2**64 - 1


def twin_hash(ids: np.ndarray, *args, **kwargs) -> np.ndarray:
    native = np.array(ids, dtype=ids.dtype.newbyteorder("="), order="C")
    return twin.mix_hash(torch.from_numpy(native).to(DEVICE), *args, **kwargs).cpu().numpy()


def python_hash(x: int, key: int) -> int:
    """hash(x; key) from the formula, in Python's integers."""
    x = (x ^ x >> 32) * 0xBF58476D1CE4E5B9 & MASK
    z = (x ^ x >> 29 ^ key) * 0xD6E8FEB86659FD93 & MASK
    z = (z ^ z >> 32) * 0x9FB21C651E98DF25 & MASK
    z = (z ^ z >> 29) * 0x243F6A8885A308D3 & MASK
    return z ^ z >> 32


def test_equals_the_formula_in_python_integers():
    edges = [0, 1, 2, 255, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, MASK]
    got = twin_hash(np.array(edges, np.uint64), seed=7, streams=(0, 3))
    assert got.dtype == np.uint64
    assert got.tolist() == [[python_hash(x, derive_key(7, s)) for s in (0, 3)] for x in edges]
    for n in (1, 2, 10, 2**32 + 1, 2**63 - 1, 2**63):
        buckets = twin_hash(np.array(edges, np.uint64), n, seed=7, streams=(3,))
        assert buckets[:, 0].tolist() == [python_hash(x, derive_key(7, 3)) * n >> 64 for x in edges]


@given(
    ids=strategies.ids(),
    seed=strategies.seeds,
    n=st.none() | st.integers(1, 2**63),
    streams=st.lists(st.integers(0, 20), min_size=1, max_size=3),
)
def test_equals_the_numba_kernel(ids, seed, n, streams):
    got = twin_hash(ids, n, seed=seed, streams=tuple(streams))
    assert got.shape == (*ids.shape, len(streams))
    for k, stream in enumerate(streams):
        np.testing.assert_array_equal(got[..., k], mix_hash(ids, n, seed=seed, stream=stream))


@pytest.mark.parametrize("n_ids", [1023, 1024, 1025, 5000])
def test_whole_and_broken_blocks(n_ids):
    ids = np.arange(n_ids) - 500
    np.testing.assert_array_equal(twin_hash(ids, 1000)[:, 0], mix_hash(ids, 1000))


def test_strided_ids():
    ids = torch.arange(60, device=DEVICE).reshape(6, 10)
    got = twin.mix_hash(ids.T[::2], 50, seed=1)
    np.testing.assert_array_equal(got[..., 0].cpu().numpy(), mix_hash(ids.T[::2].cpu().numpy(), 50, seed=1))


def test_bad_input():
    ids = torch.arange(4, device=DEVICE)
    with pytest.raises(TypeError, match=r"ids must be integers, got torch\.float32"):
        twin.mix_hash(ids.float())
    with pytest.raises(TypeError, match=r"ids must be integers, got torch\.bool"):
        twin.mix_hash(ids > 1)
    for n in (0, -1, 2**63 + 1):
        with pytest.raises(ValueError, match="n_buckets must be between 1 and 9,223,372,036,854,775,808"):
            twin.mix_hash(ids, n)
    with pytest.raises(ValueError, match="seed must be between 0"):
        twin.mix_hash(ids, seed=-1)
    with pytest.raises(ValueError, match="streams must name at least one hash"):
        twin.mix_hash(ids, streams=())


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cce_kernels import hashing
types = {"keys": "*u64", "n_buckets": "*u64", "out": "*u64", "n_ids": "i32"}
types |= {"n_keys": "constexpr", "BLOCK": "constexpr"}
for ids in ("*i32", "*i64", "*u64", "*u8"):
    source = ASTSource(fn=hashing._mix_hash, signature={"ids": ids, **types}, constexprs={"n_keys": 2, "BLOCK": 1024})
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    # Unsigned throughout: a signed shift or product-high anywhere would change bits.
    assert "mul.hi.u64" in ptx and "mul.hi.s64" not in ptx and "shr.s64" not in ptx and "cvt.rn" not in ptx, ptx
print("compiled")
"""


def test_compiles_for_a_gpu_without_one(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "compiled", done.stderr
