"""Lookups over any library of arrays, here over NumPy: the library's own vectors, for every method, option and phase."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import serving_cases as cases

import cce_core as cce
from cce_core.hashing.halves import Halves
from cce_core.method.portable import PortableLookup, sketch_arrays

METHODS = [m.name for m in cce.methods() if not m.owned]


def looked_up(table, ids):
    """The vectors of NumPy's ids."""
    lookup = PortableLookup(table.spec)
    arrays = {**table.arrays(), **sketch_arrays(table)}
    if table.spec.codec != "float32":
        arrays["memory"] = table.stored.decoded()
    arrays |= {name: arrays[name].reshape(shape) for name, shape in lookup.shapes.items()}
    if "keys" in arrays:
        arrays["keys"] = Halves.split(arrays["keys"])
    return lookup(np, arrays, Halves.split(ids))


@pytest.mark.parametrize("method", METHODS)
def test_drawn_tables(method):
    """Of plain sums the very bits, since one wrong address would change them."""
    for n in range(12):
        rng = np.random.default_rng([METHODS.index(method), n])
        table = cases.drawn(rng, method, "float32", cases.PHASES[n % 3], n)
        ids = cases.ids_of(rng, table.spec.vocab, 50)
        with np.errstate(all="ignore"):
            got, expected = looked_up(table, ids), table.lookup(ids)
        exact = not table.spec.rank and method not in ("tt", "dhe")
        if exact:
            np.testing.assert_array_equal(got, expected, str(table.spec))  # but for the signs of zeros
        cases.same(got, expected, False, (table.spec, ids))


def test_marked_ids_of_many_blocks_of_marks():
    """Every id of six blocks and a part: at the first and the last bit, and in each word between."""
    rows = cce.make_table("vq", 3000, 8, num_bytes=4000, seed=1)
    for spec in rows.method.clustered(rows.spec)[1::3]:
        table = cce.Table(spec)
        assert table.layout.marks == 8 * 7
        np.testing.assert_allclose(looked_up(table, np.arange(3000)), table.lookup(np.arange(3000)), atol=1e-6)


def test_pointers_past_four_thousand_million_bits():
    """The place of a pointer is a number of 64 bits."""
    small = cce.make_table("pq", 1000, 16, num_params=4096, n_chunks=4, seed=0)
    lookup = PortableLookup(dataclasses.replace(small.spec, vocab=2**31))
    ids, bits, asked = [0, 2**27 + 1, 2**31 - 1], small.layout.bits_per_id, []

    class Words:
        def __getitem__(self, at):
            asked.append(at.tolist())
            return np.zeros(at.shape, np.uint32)

    arrays = {"memory": small.arrays()["memory"].reshape(lookup.shapes["memory"]), "pointers": Words()}
    lookup(np, arrays, Halves.split(np.array(ids)))
    places = [[(i * bits + a) // 32 for a in range(0, bits, bits // 4)] for i in ids]
    assert asked[0] == places
    assert places[-1][-1] * 32 > 2**32


def test_outside_the_vocabulary_is_nan():
    table = cce.make_table("cce", 100, 8, num_params=300, seed=0)
    got = looked_up(table, np.array([99, 100, -1, 2**40, 2**32]))
    assert np.isfinite(got[0]).all()
    assert np.isnan(got[1:]).all()


def test_what_is_refused():
    with pytest.raises(ValueError, match="serve its file with .*Reader"):
        PortableLookup(cce.make_table("tiered", None, 8, num_bytes=3000).spec)
    spec = cce.make_table("hash", 2**40, 8, num_params=800).spec
    PortableLookup(spec)  # only hashes
    with pytest.raises(ValueError, match=r"must be below 2\^32.*got vocab 4294967296"):
        PortableLookup(dataclasses.replace(cce.make_table("full", 100, 8).spec, vocab=2**32))
