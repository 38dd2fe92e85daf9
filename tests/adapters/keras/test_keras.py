"""The layer of Keras: its table's vectors on each backend, trained by fit, clustered, saved and loaded."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("keras") is None:  # whose import takes a backend for good
    pytest.skip("keras is not installed", allow_module_level=True)

PROGRAM = """
import doctest, sys, warnings
import keras
import numpy as np
import cce_core as cce
import cce_core.adapters.keras as adapter
from cce_core.adapters.keras import Embedding

ids = np.random.default_rng(0).integers(0, 97, (5, 6))
for method in ("cce", "cce_robe", "hemb", "tt", "dhe", "pq", "vq"):
    coded = {"codec": "int8"} if method == "pq" else {}
    emb = Embedding(97, 8, method=method, num_bytes=2600, seed=3, **coded)
    got = keras.ops.convert_to_numpy(emb(ids))
    assert np.allclose(got, emb.table.lookup(ids), atol=1e-6), method

target = np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32)[np.arange(60) % 6]
model = keras.Sequential([keras.Input((), dtype="int32"), Embedding(60, 8, num_params=260, seed=1, name="emb")])
losses = []
for epochs in (40, 40):
    model.compile(keras.optimizers.Adam(0.05), "mse")
    losses += model.fit(np.arange(60), target, batch_size=60, epochs=epochs, verbose=0).history["loss"]
    report = model.get_layer("emb").cluster(weights=np.ones(60))
assert report.generation == 2
assert losses[-1] < 0.2 * losses[0], losses
model.save("model.keras")
again = keras.saving.load_model("model.keras", custom_objects={"Embedding": Embedding})
assert np.array_equal(again.predict(np.arange(60), verbose=0), model.predict(np.arange(60), verbose=0))
assert again.get_layer("emb").table.generation == 2
for wrong, words in ((lambda: Embedding(60, 8, method="vq", num_bytes=400).cluster(), "take 'cce' or 'pq'"),
                     (lambda: Embedding(100, 8, method="tiered", num_bytes=4000), "'tiered' finds rows by a map")):
    try:
        wrong()
    except ValueError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)
assert doctest.testmod(adapter, optionflags=doctest.ELLIPSIS).failed == 0
print("all", keras.backend.backend())
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_layer(backend, tmp_path):
    """In a process of its own: Keras has one backend, from its first import on."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment = {**os.environ, "KERAS_BACKEND": backend, "KERAS_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"all {backend}"
    assert Path(tmp_path, "model.keras").exists()
