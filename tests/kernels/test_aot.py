"""Every Triton kernel compiles to machine code for sm_80, sm_90 and gfx942, with no GPU at hand; registers that spill are told.

Run by `tox -e interp`, without Triton's interpreter. Fusion of products and sums is off, as in every launch.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.aot

if os.environ.get("CCE_AOT") != "1":
    pytest.skip("compiling all kernels takes a minute: `tox -e interp` does, or CCE_AOT=1", allow_module_level=True)
for _needed in ("triton", "torch"):
    if importlib.util.find_spec(_needed) is None:
        pytest.skip(f"{_needed} is not installed; `tox -e interp` installs it", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing: unset TRITON_INTERPRET", allow_module_level=True)

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

MODULES = ("codecs", "dhe", "hashing", "kmeans", "lookup", "operators", "ordered", "packing", "scatter", "steps")
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
HASH, POINTER, MIXED, NONE = 1, 2, 7, 6

# cce, 4 chunks of 8 floats: a pointer and a hash each; then everything at once: bags, weights, signs, codecs, wrapping.
CCE = {
    "N": 64, "C": 4, "W": 8, "TERMS": 2, "KINDS": POINTER | HASH << 3, "WKIND": NONE, "CODEC": 0, "WCODEC": 0,
    "SIGNED": False, "WRAP": False, "WWRAP": False, "ALIGN": 8, "OUT": 8, "BOUNDED": True, "BAGS": False, "MEAN": False,
    "PADDED": False, "FACTORS": False,
}  # fmt: skip
ALL = {
    **CCE, "N": 8, "C": 8, "KINDS": MIXED | MIXED << 3, "WKIND": MIXED, "CODEC": MIXED, "WCODEC": MIXED, "SIGNED": True,
    "WRAP": True, "WWRAP": True, "ALIGN": 1, "OUT": 1, "BAGS": True, "PADDED": True, "FACTORS": True,
}  # fmt: skip
HNET = {
    **CCE,
    "N": 64,
    "C": 32,
    "W": 1,
    "TERMS": 1,
    "KINDS": HASH,
    "SIGNED": True,
    "ALIGN": 1,
    "OUT": 1,
    "BOUNDED": False,
}
ROBE = {**CCE, "N": 32, "C": 2, "W": 32, "TERMS": 1, "KINDS": HASH, "CODEC": 1, "WRAP": True, "ALIGN": 1}
GIVEN = {**CCE, "N": 16, "WKIND": 5}  # weights come with the ids
DOTTED = {k: v for k, v in CCE.items() if k not in ("BAGS", "MEAN", "PADDED", "FACTORS")}
MEAN8 = {**CCE, "C": 1, "W": 64, "N": 32, "KINDS": HASH | HASH << 3, "CODEC": 2, "BAGS": True, "MEAN": True}
FOUR = {**CCE, "KINDS": 3, "TERMS": 1, "CODEC": 3}

AT = {
    "rows": "*i64",
    "columns": "*i64",
    "memory_at": "i64",
    "keys_at": "i64",
    "pointers_at": "i64",
    "weights_at": "i64",
}
TABLE = {**AT, "ids": "*i64", "offsets": "*i64", "padding": "*i64", "factors": "*fp32"}
DOT = {**AT, "ids": "*i64", "grads": "*fp32", "out": "*fp32", "n_rows": "i32", "grad_stride": "i32"}
LOOKUP = {
    **AT, "projection_at": "i64", **TABLE, "out": "*fp32", "inner": "*fp32", "mass": "*fp32", "error": "*i64",
    "n_rows": "i32", "out_stride": "i32", "inner_stride": "i32",
}  # fmt: skip
SCATTER = {
    **TABLE, "grads": "*fp32", "into": "*i64", "out": "*fp32", "slopes": "*fp32", "n_rows": "i32", "grad_stride": "i32",
    "scale": "fp32",
}  # fmt: skip
WRITE = {
    **TABLE, "grads": "*fp32", "keys": "*i64", "sources": "*i64", "coefficients": "*fp32", "weight_keys": "*i64",
    "slopes": "*fp32", "n_rows": "i32", "grad_stride": "i32", "unit": "i32",
}  # fmt: skip
SUMS = {
    "order": "*i64", "sources": "*i64", "coefficients": "*fp32", "values": "*fp32", "starts": "*i64", "out": "*fp32",
    "n_pieces": "i32", "unit": "i32",
}  # fmt: skip
STEP = {
    "p": "*fp32", "index": "*i64", "g": "*fp32", "one": "*fp32", "two": "*fp32", "n_rows": "i32", "unit": "i32", "lr": "fp32",
    "decay": "fp32", "a": "fp32", "b": "fp32", "more_a": "fp32", "more_b": "fp32", "correct": "fp32", "eps": "fp32",
}  # fmt: skip
ASSIGN = {
    "x": "*fp32", "centroids": "*fp32", "labels": "*i32", "distances": "*fp32", "words": "*u64", "n": "i32", "k": "i32",
    "first": "i64", "per_id": "i32", "offset": "i32", "bits": "i32",
}  # fmt: skip
ADD_UP = {"x": "*fp32", "labels": "*i32", "weights": "*fp32", "sums": "*fp64", "n": "i32"}
BITS = {"n": "i32", "first": "i64", "per_id": "i32", "offset": "i32", "bits": "i32"}
READ = {"words": "*u64", "ids": "*i64", "out": "*i32", "n": "i32", "per_id": "i32", "offset": "i32", "bits": "i32"}
SCALED = {"values": "*fp32", "codes": "*i8", "scales": "*fp32", "key": "*u64", "size": "i32", "most": "fp32"}
DECODE = {"codes": "*i8", "scales": "*fp32", "out": "*fp32", "size": "i32"}
MIX = {"ids": "*i64", "keys": "*u64", "n_buckets": "*u64", "out": "*u64", "n_ids": "i32"}
ENCODE = {"ids": "*i64", "keys": "*u64", "out": "*fp32", "n": "i32", "hashes": "i32"}

ALONE = {"MASS": False, "INNER": False, "PROJECT": False, "D": 16}  # what only a lookup is compiled for
PROJECTED = {**ALONE, "PROJECT": True, "D": 64}
LOOKUPS = {
    "cce": {**CCE, **ALONE}, "cce rank 16": {**CCE, **PROJECTED, "W": 4}, "hnet": {**HNET, **ALONE},
    "robe bf16": {**ROBE, **ALONE}, "given": {**GIVEN, **ALONE}, "mean int8": {**MEAN8, **ALONE}, "int4": {**FOUR, **ALONE},
    "all": {**ALL, **PROJECTED, "N": 16, "MASS": True, "INNER": True},
}  # fmt: skip
OWN = dict.fromkeys(("memory_at", "keys_at", "pointers_at", "weights_at"), "i32")  # zeros: rows name the tensors
CASES = [
    ("lookup", "_lookup", "cce, own", {**LOOKUP, **OWN, "projection_at": "i32"}, LOOKUPS["cce"]),
    ("scatter", "_scatter", "cce, own", {**SCATTER, **OWN}, {**CCE, "SLOPES": False}),
    *[("lookup", "_lookup", n, LOOKUP, m) for n, m in LOOKUPS.items()],
    *[("scatter", "_scatter", n, SCATTER, {**m, "SLOPES": n == "all"}) for n, m in
      {"cce": CCE, "all": ALL, "hnet": HNET, "mean int8": MEAN8, "given": GIVEN}.items()],
    ("ordered", "_emit", "cce", WRITE, {**CCE, "U": 1}),
    ("ordered", "_emit", "given", WRITE, {**GIVEN, "U": 1}),
    ("operators", "_dot", "cce", DOT, DOTTED),
    ("operators", "_dot", "signs", DOT, {**DOTTED, "C": 2, "KINDS": HASH, "TERMS": 1, "SIGNED": True}),
    ("ordered", "_emit", "all", WRITE, {**ALL, "U": 8, "MEAN": True, "FACTORS": False}),
    ("ordered", "_sum_pieces", "first", SUMS, {"N": 128, "U": 8, "ORDERED": True, "SCALED": True}),
    ("ordered", "_sum_pieces", "float64", {**SUMS, "values": "*fp64", "out": "*fp64"},
     {"N": 64, "U": 16, "ORDERED": False, "SCALED": False}),
    *[("steps", "_step", f"rule {rule}", STEP, {"N": 256, "U": 8, "RULE": rule, "INDEXED": rule > 1}) for rule in range(5)],
    *[("kmeans", "_assign", f"d {d}", ASSIGN, {"N": 128, "K": 16, "D": d, "PACK": d == 8}) for d in (1, 8, 64)],
    ("kmeans", "_add_up", "weighted", ADD_UP, {"N": 128, "D": 8, "U": 16, "WEIGHTED": True}),
    ("packing", "_read", "", READ, {"N": 1024}),
    ("packing", "_write", "", {"words": "*u64", "values": "*i32", **BITS}, {"N": 1024}),
    *[("codecs", "_encode_bfloat16", f"random {r}", {"bits": "*i32", "codes": "*u16", "key": "*u64", "size": "i32"},
       {"N": 1024, "RANDOM": r}) for r in (False, True)],
    ("codecs", "_encode_scaled", "int8", SCALED, {"N": 16, "FOUR": False, "RANDOM": True}),
    ("codecs", "_encode_scaled", "int4", {**SCALED, "codes": "*u8"}, {"N": 16, "FOUR": True, "RANDOM": True}),
    ("codecs", "_decode", "int8", DECODE, {"N": 1024, "CODEC": 2}),
    ("hashing", "_mix_hash", "", MIX, {"n_keys": 2, "BLOCK": 1024}),
    *[("dhe", "_encode", n, ENCODE, {"N": 8, "H": 256, "GAUSSIAN": n == "gaussian"}) for n in ("uniform", "gaussian")],
]  # fmt: skip


def kernel_of(module: str, name: str):
    return getattr(importlib.import_module(f"cce_kernels.{module}"), name)


def spills(compiled) -> tuple[int, int]:
    """Registers of a thread, and what spilled: bytes of stack, called functions' too (NVIDIA), or registers (AMD)."""
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        return tuple(int(re.search(rf"\.{name}: +(\d+)", text)[1]) for name in ("vgpr_count", "vgpr_spill_count"))
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    cubin = Path(os.environ.get("TRITON_CACHE_DIR", "/tmp")) / f"cce-{os.getpid()}.cubin"
    cubin.parent.mkdir(parents=True, exist_ok=True)
    cubin.write_bytes(compiled.asm["cubin"])
    done = subprocess.run([tools / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True)
    cubin.unlink()
    return int(re.search(r"REG:(\d+)", done.stdout)[1]), int(re.search(r"STACK:(\d+)", done.stdout)[1])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("module", "name", "case", "types", "constants"), CASES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_compiles(module, name, case, types, constants, target, record_property):
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    # What torch hands over begins at a multiple of 16 bytes; rows of vectors are a multiple of 16 floats apart.
    aligned = [kind.startswith("*") or name.endswith(("_stride", "_at")) for name, kind in types.items()]
    attributes = {(i,): [["tt.divisibility", 16]] for i, yes in enumerate(aligned) if yes}
    source = ASTSource(kernel_of(module, name), signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=TARGETS[target], options={"enable_fp_fusion": False})
    text = compiled.asm["ptx"] if "ptx" in compiled.asm else compiled.asm["amdgcn"]
    assert name in text
    if name == "_lookup" and case in ("cce", "cce, own") and "ptx" in compiled.asm:
        assert "ld.global.v4" in text, "blocks of 8 floats are not read 16 bytes at a time"
        assert "st.global.v4" in text
    # Quotients, roots and cosines are made of fused steps inside, and so is a projection's product: all else is not.
    if (
        name not in ("_step", "_encode", "_encode_scaled")
        and not constants.get("PROJECT")
        and not constants.get("MEAN")
    ):
        assert "fma.rn.f32" not in text, "a product and a sum were fused"
    registers, spilled = spills(compiled)
    record_property("kernel", (f"{target:7} {module}.{name} {case}: {registers} registers, {spilled} spilled", spilled))


def test_every_kernel_is_among_them():
    """A kernel is what a launcher calls: a @triton.jit function of one leading underscore with a program id."""
    found = set()
    for path in Path(importlib.import_module("cce_kernels.runtime").__file__).parent.glob("*.py"):
        for name, body in re.findall(r"@triton\.jit\ndef (\w+)\((.*?)(?=\n@triton|\n\n\n|\Z)", path.read_text(), re.S):
            if "tl.program_id" in body:
                found.add((path.stem, name))
    assert found == {(module, name) for module, name, *_ in CASES}
    assert {module for module, _ in found} == set(MODULES)
