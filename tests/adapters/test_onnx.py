"""Tables as models of ONNX: onnxruntime gives the library's vectors, from a file no larger than the table."""

from __future__ import annotations

import doctest
import importlib
import json

import numpy as np
import pytest
import serving_cases as cases
from torch_tables import CASES, DIM, NAMES, VOCAB

import cce_core as cce
from cce_core.method import get_method

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from cce_core.adapters.onnx import OPSET, to_onnx  # noqa: E402

METHODS = [m.name for m in cce.methods() if not m.owned]
OVERHEAD = 12_000  # bytes of nodes and names


def run(model, ids):
    """The vectors that onnxruntime gives."""
    content = model if isinstance(model, str) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (vectors,) = session.run(["vectors"], {"ids": ids})
    return vectors


@pytest.mark.parametrize(("method", "options"), CASES, ids=NAMES)
def test_vectors_and_the_checker(method, options):
    table = cce.make_table(method, VOCAB, DIM, seed=3, **options)
    ids = np.random.default_rng(0).integers(0, VOCAB, (3, 7))
    model = to_onnx(table, ndim=2)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model, ids), table.lookup(ids), rtol=1e-5, atol=1e-6)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert model.opset_import[0].version == OPSET == 18


@pytest.mark.parametrize("method", METHODS)
def test_drawn_tables(method):
    """Each codec, option and phase in turn, and words of all 64 bits where a table takes them; of plain sums the very bits."""
    codecs = cce.storage.codec.CODECS if get_method(method).codecs else ("float32",)
    for n in range(12):
        rng = np.random.default_rng([METHODS.index(method), n])
        codec = codecs[n % len(codecs)]
        table = cases.drawn(rng, method, codec, cases.PHASES[n % 3], n // len(codecs))
        ids = cases.ids_of(rng, table.spec.vocab, 60).astype(np.uint64).view(np.int64)
        with np.errstate(all="ignore"):
            got, expected = run(to_onnx(table), ids), table.lookup(ids)
        if not table.spec.rank and method not in ("tt", "dhe"):
            np.testing.assert_array_equal(got, expected, str(table.spec))
        cases.same(got, expected, False, table.spec)


def test_ids_of_any_shape_and_from_a_file(tmp_path):
    table = cce.make_table("cce", 100, 8, num_params=300, seed=0)
    table.save(tmp_path / "table.safetensors")
    to_onnx(tmp_path / "table.safetensors", tmp_path / "table.onnx")
    for shape in ((), (0,), (1,), (2, 3), (2, 0, 3), (1, 2, 3, 4)):
        ids = np.random.default_rng(0).integers(0, 100, shape)
        got = run(str(tmp_path / "table.onnx"), ids)
        assert got.shape == (*shape, 8)
        np.testing.assert_allclose(got, table.lookup(ids), atol=1e-6)
    (said,) = onnx.load(tmp_path / "table.onnx").metadata_props
    assert cce.TableSpec.from_json(json.loads(said.value)) == table.spec


@pytest.mark.parametrize(("codec", "bits"), [("float32", 32), ("bfloat16", 16), ("int8", 8.5), ("int4", 4.5)])
@pytest.mark.parametrize("dim", [48, 128])
def test_a_memory_stays_in_its_codec(codec, bits, dim, tmp_path):
    """In the file, also of rows that are longer than what shares a scale, and after onnxruntime's own optimisations."""
    table = cce.make_table("full", 500, dim, codec=codec, seed=0)
    to_onnx(table, tmp_path / "table.onnx")
    size = (tmp_path / "table.onnx").stat().st_size
    assert size < table.ledger().total + OVERHEAD
    assert size < 500 * dim * bits / 8 + OVERHEAD
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "table.onnx", options, providers=["CPUExecutionProvider"])
    (vectors,) = session.run(None, {"ids": np.arange(500)})
    np.testing.assert_array_equal(vectors, table.lookup(np.arange(500)))
    assert (tmp_path / "optimised.onnx").stat().st_size < size + OVERHEAD


def test_pointers_stay_packed(tmp_path):
    table = cce.make_table("pq", 4000, 16, num_bytes=8000, seed=0)
    to_onnx(table, tmp_path / "table.onnx")
    assert (tmp_path / "table.onnx").stat().st_size < table.ledger().total + OVERHEAD


def test_outside_the_vocabulary_is_nan():
    for method in ("full", "hash", "cce", "tt"):
        model = to_onnx(cce.make_table(method, 100, 8, **({} if method == "full" else {"num_params": 300})))
        assert np.isnan(run(model, np.array([99, 100, -1, 2**40]))).all(1).tolist() == [False, True, True, True]


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'tiered' finds rows by a map"):
        to_onnx(cce.make_table("tiered", None, 8, num_bytes=3000))
    with pytest.raises(TypeError, match="or the path of one that was saved"):
        to_onnx({})
    with pytest.raises(FileNotFoundError):
        to_onnx(tmp_path / "nothing")
    with pytest.raises(TypeError, match="ndim must be"):
        to_onnx(cce.make_table("full", 9, 4), ndim=1.5)


def test_examples_run():
    found = doctest.testmod(importlib.import_module("cce_core.adapters.onnx"), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert (found.attempted, found.failed) == (6, 0)
