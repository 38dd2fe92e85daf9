"""Write tables/*.safetensors and tables/vectors.npz with version 0.1.0: small trained tables, and what a few ids look up.

    git archive 7017587 | tar x -C OLD    # the last commit of version 0.1.0
    PYTHONPATH=OLD NUMBA_DISABLE_JIT=1 python tests/golden/make_tables.py

Files of that version must be read for ever: run this to add cases, never to change those that are there. After training,
parameters are rounded to multiples of 1/64 (in bfloat16 not, which would hold them all), so that sums and products are exact in
whatever order they are taken, and the vectors are the same on every processor. `dhe`, whose exponentials are not, is compared
within a tolerance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import cce_core as cce

FOLDER = Path(__file__).parent / "tables"
VOCAB, DIM, STEPS = 50, 8, 5
IDS = np.array([0, 1, 7, 33, 49])

# Every method, every option that changes how ids are addressed or what is stored, and every codec and rounding.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "full-rank": ("full", {"rank": 2}),
    "full-bfloat16": ("full", {"codec": "bfloat16"}),
    "full-int8-stochastic": ("full", {"codec": "int8", "rounding": "stochastic"}),
    "full-int4-stochastic": ("full", {"codec": "int4", "rounding": "stochastic"}),
    "ldim": ("ldim", {"num_params": 200}),
    "int8": ("int8", {}),
    "int4": ("int4", {}),
    "hash": ("hash", {"num_params": 100}),
    "hash-signed": ("hash", {"num_params": 100, "signed": True}),
    "hash-unbounded": ("hash", {"num_params": 100, "vocab": None, "seed": 12}),
    "hash-bfloat16-stochastic": ("hash", {"num_params": 100, "codec": "bfloat16", "rounding": "stochastic"}),
    "hash-int8-rank": ("hash", {"num_params": 100, "codec": "int8", "rank": 4}),
    "bloom": ("bloom", {"num_params": 100, "n_hashes": 3, "signed": True}),
    "hemb": ("hemb", {"num_params": 200}),
    "hemb-shared": ("hemb", {"num_params": 200, "weights": "shared"}),
    "hemb-independent": ("hemb", {"num_params": 200, "weights": "independent"}),
    "hemb-concat": ("hemb", {"num_params": 200, "weights": "concat"}),
    "rhemb": ("rhemb", {"num_params": 100}),
    "ce": ("ce", {"num_params": 100}),
    "ce-add": ("ce", {"num_params": 200, "combine": "add"}),
    "ce-mul": ("ce", {"num_params": 200, "combine": "mul", "n_chunks": 2}),
    "qr": ("qr", {"num_params": 150}),
    "qr-mul": ("qr", {"num_params": 150, "combine": "mul", "n_chunks": 2}),
    "robe": ("robe", {"num_params": 60}),
    "robe-signed": ("robe", {"num_params": 60, "signed": True}),
    "hnet": ("hnet", {"num_params": 60}),
    "tt": ("tt", {"num_params": 200}),
    "dhe": ("dhe", {"num_params": 400}),
    "dhe-gaussian": ("dhe", {"num_params": 400, "transform": "gaussian"}),
    "cce": ("cce", {"num_params": 160, "rank": 0}),
    "cce-rank": ("cce", {"num_params": 160, "rank": 4}),
    "cce-bfloat16": ("cce", {"num_params": 160, "rank": 0, "codec": "bfloat16"}),
    "cce-int8": ("cce", {"num_params": 160, "rank": 0, "codec": "int8"}),
    "cce-int4": ("cce", {"num_params": 160, "rank": 0, "codec": "int4"}),
    "cce_robe": ("cce_robe", {"num_params": 120}),
    "pq": ("pq", {"num_params": 120}),
    "pq-int8": ("pq", {"num_params": 120, "codec": "int8"}),
    "sparse": ("sparse", {"num_params": 120}),
    "sparse2": ("sparse2", {"num_params": 120}),
}


def trained(method: str, options: dict[str, Any]) -> cce.Table:
    """A table after a few steps towards drawn vectors; a learned one has been clustered, and trained again."""
    table = cce.make_table(method, **{"vocab": VOCAB, "dim": DIM, "seed": 11, **options})
    rng = np.random.default_rng(5)
    targets, optimizer = rng.standard_normal((VOCAB, DIM)).astype(np.float32), cce.Adam(lr=0.05)
    for step in range(2 * STEPS):
        if step == STEPS and table.method.learns:
            table.cluster(**({} if method.startswith("cce") else {"vectors": targets}))
        ids = rng.integers(0, VOCAB, 20)
        seen = table.forward(ids)
        optimizer.update(table, seen, seen.vectors - targets[ids])
    if table.spec.codec != "bfloat16":
        for values in table.parameters().values():
            values[...] = np.round(64 * values) / 64
    return table


def main() -> None:
    """Write what is not there yet."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / "vectors.npz"
    vectors = dict(np.load(path)) if path.exists() else {}
    for name, (method, options) in CASES.items():
        if name not in vectors:
            table = trained(method, options)
            table.save(FOLDER / f"{name}.safetensors")
            vectors[name] = cce.load(FOLDER / f"{name}.safetensors").lookup(IDS)
    np.savez(path, **vectors)


if __name__ == "__main__":
    main()
