"""Files with edited headers, loaded both ways and used: a program of its own, since what it looks for may end the process.

python edited_headers.py FOLDER EXAMPLES
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import xxhash
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import cce_core as cce
from cce_core.method import get_method
from cce_core.method.checked import checked
from cce_core.storage import save_arrays

VOCAB, DIM = 24, 8
NUMBERS = (-(2**63), -2, -1, 0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 23, 24, 25, 64, 65, 255, 2**16, 2**20, 2**31, 2**40, 2**48, 2**53,
           2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**400)  # fmt: skip
ODD = (
    None,
    True,
    False,
    1.0,
    1.5,
    -0.0,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "8",
    "full",
    "é" * 99,
    [],
    [1],
    {},
    {"a": 1},
    [[[]]],
)
BYTES = b'0123456789-.e+tfn{}[]",:\\ \x00\xff'
WORDS = ("int8", "int4", "bfloat16", "float32", "stochastic", "mul", "add", "gaussian", "concat", "shared", "independent",
         *(m.name for m in cce.methods()))  # fmt: skip
VALUES = st.sampled_from(NUMBERS) | st.integers(-3, 40) | st.sampled_from(WORDS) | st.sampled_from(ODD)

LIKELY = st.integers(1, 40) | st.sampled_from((None, True, 2**20, *WORDS[:10]))


def make(method, codec, rank):
    rule = get_method(method)
    return cce.make_table(
        method, VOCAB, DIM, codec=codec, rank=rank, seed=1, **({"num_params": 300} if rule.budgeted else {})
    )


TABLES = [
    make(m.name, codec, rank)
    for m in cce.methods()
    for codec in (("float32", "bfloat16", "int8", "int4") if m.codecs else ("float32",))
    for rank in ((0, 4) if m.projects and m.name != "ldim" and codec in ("float32", "int4") else (None,))
]


@st.composite
def edited_specs(draw, values=VALUES, most=3):
    """A table's spec with one to three of its values changed to others."""
    table = draw(st.sampled_from(TABLES))
    spec = json.loads(json.dumps(table.spec.as_json()))
    for _ in range(draw(st.integers(1, most))):
        options = spec["options"] if isinstance(spec["options"], dict) else {}
        name = draw(st.sampled_from([*spec, *spec, *[f"options.{option}" for option in options] * 2]))
        if name == "sizes" and spec["sizes"] and isinstance(spec["sizes"], list) and draw(st.integers(0, 4)):
            spec["sizes"][draw(st.integers(0, len(spec["sizes"]) - 1))] = draw(values)
        elif name == "sizes":
            spec["sizes"] = draw(st.lists(values, max_size=4) | values)
        elif name.startswith("options."):
            spec["options"][name[8:]] = draw(values)
        else:
            spec[name] = draw(values)
    if most > 1 and not draw(st.integers(0, 20)):
        spec.pop(draw(st.sampled_from([*spec])))
    return table, spec


def split(raw):
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(header, data, own="right"):
    """A file of any header; its own checksum right, left out (as files of earlier versions), or as it stands."""
    metadata = header["__metadata__"]
    if own != "stands":
        metadata.pop("header_xxh3", None)
    if own == "right":
        metadata["header_xxh3"] = xxhash.xxh3_64(json.dumps(header, sort_keys=True).encode()).hexdigest()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def use(table, path):
    """All that a table is for. Nothing here may fail: what was loaded is a table."""
    vocab = table.spec.vocab or 2**64
    ids = np.unique(np.array([*range(min(vocab, 20)), vocab - 1, vocab // 2], np.uint64))
    vectors = table.lookup(ids)
    assert vectors.shape == (len(ids), table.spec.dim)
    seen = table.forward(ids)
    for dense in (False, True):
        table.backward(seen, np.ones_like(vectors), dense=dense)
    table.ledger()
    repr(table)
    if table.writeable and vocab <= 2**12:
        cce.SGD(0.1).update(table, ids, np.ones_like(vectors))
        if table.method.learns and not table.method.post_training and table.phase != "codes":
            table.cluster(n_iter=2)
    table.save(path)
    again = cce.load(path)
    assert again.spec == table.spec
    np.testing.assert_array_equal(table.lookup(ids), again.lookup(ids))


def attempt(folder, raw):
    """Load in every way and use what comes; whether anything was accepted."""
    path, accepted = folder / "edited", 0
    path.write_bytes(raw)
    for mmap in (False, True):
        for verify in ("header", "all"):
            try:
                table = cce.load(path, mmap=mmap, verify=verify)
            except cce.FileFormatError:
                continue
            use(table, folder / "again")
            accepted += 1
    return accepted


def main(folder, examples):
    """Draw so many edits of each kind."""
    quick = settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    counts = {"spec": [0, 0], "fitting": [0, 0], "header": [0, 0], "bytes": [0, 0]}

    def count(kind, raw):
        counts[kind][0] += 1
        counts[kind][1] += attempt(folder, raw)

    @quick
    @given(edited_specs(), st.sampled_from(("right", "left out", "stands")))
    def edit_spec(edited, own):
        table, spec = edited
        table.save(folder / "table")
        header, data = split((folder / "table").read_bytes())
        header["__metadata__"]["spec"] = json.dumps(spec, sort_keys=True)
        count("spec", joined(header, data, own))

    @quick
    @given(edited_specs(LIKELY, 1), st.integers(0, 2**64 - 1))
    def fit_arrays(edited, words):
        """Arrays as the edited spec asks for, pointers to anywhere, and every checksum right."""
        _, values = edited
        try:
            spec = checked(cce.TableSpec.from_json(values))
            if get_method(spec.method).nbytes(spec) > 1 << 20:
                return
        except (KeyError, TypeError, ValueError):
            return
        arrays = cce.Table(spec).arrays()
        if "pointers" in arrays:
            arrays["pointers"][:] = words
        save_arrays(folder / "fitting", arrays, values)
        count("fitting", (folder / "fitting").read_bytes())

    @quick
    @given(st.sampled_from(TABLES), st.data(), st.sampled_from(("right", "left out")))
    def edit_header(table, data, own):
        table.save(folder / "table")
        header, rest = split((folder / "table").read_bytes())
        name = data.draw(st.sampled_from(sorted(header)))
        what = data.draw(st.integers(0, 5))
        if what == 0:
            header[str(data.draw(VALUES))] = header.pop(name) if name != "__metadata__" else header[name]
        elif what == 1:
            header[name] = data.draw(VALUES) if name != "__metadata__" else header[name]
        elif name == "__metadata__":
            header[name][data.draw(st.sampled_from(sorted(header[name])))] = data.draw(VALUES)
        else:
            field = data.draw(st.sampled_from(("dtype", "shape", "data_offsets")))
            value = header[name][field]
            if isinstance(value, list) and value and what < 5:
                value[data.draw(st.integers(0, len(value) - 1))] = data.draw(VALUES)
            else:
                header[name][field] = data.draw(VALUES | st.sampled_from(("F32", "U64", "I8", "F64", "BOOL")))
        count("header", joined(header, rest, own))

    @quick
    @given(
        st.sampled_from(TABLES),
        st.lists(
            st.tuples(st.integers(0, 1 << 11), st.sampled_from(b'0123456789-.e+tfn{}[]",:\\ \x00\xff')),
            min_size=1,
            max_size=4,
        ),
    )
    def edit_bytes(table, changes):
        table.save(folder / "table")
        raw = bytearray((folder / "table").read_bytes())
        header, _ = split(bytes(raw))
        own = header["__metadata__"]["header_xxh3"].encode()
        at = raw.index(own)
        raw[at - 14 : at - 10] = b"none"  # the checksum by another name: as files of earlier versions
        start = 8 + int.from_bytes(raw[:8], "little")
        for place, value in changes:
            raw[place % start] = value
        count("bytes", bytes(raw))

    warnings.simplefilter("ignore")
    with np.errstate(all="ignore"):
        for kind in (edit_spec, fit_arrays, edit_header, edit_bytes):
            kind()
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
