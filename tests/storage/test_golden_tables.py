"""Files that version 0.1.0 wrote: read as they are, with the vectors that it looked up."""

from __future__ import annotations

import numpy as np
import pytest
from golden import make_tables
from golden.make_tables import CASES, FOLDER, IDS

import cce_core as cce
from cce_core.storage.codec import CODECS

VECTORS = dict(np.load(FOLDER / "vectors.npz"))
MOST_BYTES = 100_000


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_file_gives_the_vectors_that_were_looked_up(name, mmap):
    table = cce.load(FOLDER / f"{name}.safetensors", mmap=mmap, verify="all")
    method, options = CASES[name]
    assert (table.spec.method, table.spec.dim) == (method, make_tables.DIM)
    assert table.generation == int(table.method.learns)
    # Products of matrices: their last bits depend on the machine, and on compiling.
    if method == "dhe":
        np.testing.assert_allclose(table.lookup(IDS), VECTORS[name], rtol=1e-5, atol=1e-6)
    elif table.spec.rank:
        np.testing.assert_allclose(table.lookup(IDS), VECTORS[name], rtol=1e-6, atol=2.0**-23)
    else:
        np.testing.assert_array_equal(table.lookup(IDS), VECTORS[name])
    assert table.spec.codec == options.get("codec", method if method in CODECS else "float32")


def test_every_method_codec_and_rounding_is_there():
    specs = [cce.load(FOLDER / f"{name}.safetensors").spec for name in CASES]
    assert {s.method for s in specs} == {m.name for m in cce.methods()} - {"vq", "tiered"}  # which came later
    assert {s.codec for s in specs} == set(CODECS)
    assert {s.rounding for s in specs} >= {"stochastic", "straight-through"}
    assert {bool(s.rank) for s in specs} == {True, False}


def test_no_two_files_are_of_one_thing_and_none_is_large():
    files = {path.stem for path in FOLDER.glob("*.safetensors")}
    assert files == set(CASES) == set(VECTORS)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MOST_BYTES
    assert len({values.tobytes() for values in VECTORS.values()}) == len(CASES)
