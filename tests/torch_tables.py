"""What the tests of the torch adapter share: a small table of every method, in every shape that differs."""

from __future__ import annotations

from typing import Any

VOCAB, DIM = 97, 8

# (method, options): every method, and every option that takes another way through the adapter.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("full", {}),
    ("full", {"rank": 3}),
    ("ldim", {"num_params": 400}),
    ("int8", {}),
    ("int4", {}),
    ("full", {"codec": "bfloat16"}),
    ("hash", {"num_params": 200}),
    ("hash", {"num_params": 200, "signed": True}),
    ("bloom", {"num_params": 200, "signed": True, "n_hashes": 3}),
    ("hemb", {"num_params": 400}),
    ("hemb", {"num_params": 400, "weights": "shared"}),
    ("hemb", {"num_params": 400, "weights": "independent"}),
    ("hemb", {"num_params": 400, "weights": "concat"}),
    ("rhemb", {"num_params": 200}),
    ("ce", {"num_params": 200}),
    ("ce", {"num_params": 400, "combine": "add"}),
    ("ce", {"num_params": 400, "combine": "mul", "n_chunks": 2}),
    ("qr", {"num_params": 200}),
    ("robe", {"num_params": 100}),
    ("robe", {"num_params": 100, "signed": True}),
    ("hnet", {"num_params": 100}),
    ("tt", {"num_params": 300}),
    ("dhe", {"num_params": 600}),
    ("dhe", {"num_params": 600, "transform": "gaussian"}),
    ("cce", {"num_params": 300}),
    ("cce", {"num_params": 300, "rank": 4}),
    ("cce", {"num_bytes": 900, "codec": "int8", "rank": 0}),
    ("cce_robe", {"num_params": 200}),
    ("pq", {"num_params": 200}),
    ("sparse", {"num_params": 200}),
    ("sparse2", {"num_params": 200}),
    ("vq", {"num_bytes": 600}),
    ("vq", {"num_bytes": 600, "phase": "codes"}),
    ("vq", {"num_params": 200, "codec": "float32", "rank": 0, "stages": 2, "phase": "codes"}),
]
NAMES = [
    "-".join([method, *(f"{k}={v}" for k, v in options.items() if k != "num_params")]) for method, options in CASES
]
