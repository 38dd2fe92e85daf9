"""The operators on a GPU: the Triton kernels of `cce_kernels` where they are installed and take the types, plain torch elsewhere.

Functions of tensors, as `eager` has them, which give None where plain torch is to take their place; on a GPU the dispatcher calls
these. Neither triton nor cce_kernels is imported before the first call. Sums take memories in float32 and bfloat16, and add up in
float32, which is what they give. Results are the core's.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import os
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cce_core.adapters.torch.operators import eager
from cce_core.adapters.torch.operators.arguments import row
from cce_core.adapters.torch.operators.facts import MEMORY, part_of, spec_of
from cce_core.sketching.layout import POINTER, Layout
from cce_core.storage.codec import BFLOAT16, FLOAT32, codec

_MODULES = ("cluster", "codecs", "dhe", "lookup", "operators", "steps", "tables")
_CODECS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
_CODES = {"uint16": torch.uint16, "int8": torch.int8, "uint8": torch.uint8}


@functools.cache
def kernels() -> Any | None:
    """The modules of cce_kernels. Where they cannot be had, None, and the first time a warning that says what is missing.

    `CCE_KERNELS=0` in the environment leaves them aside.
    """
    if os.environ.get("CCE_KERNELS") == "0":
        return None
    try:
        return SimpleNamespace(**{name: importlib.import_module(f"cce_kernels.{name}") for name in _MODULES})
    except ImportError as error:
        missing = [name for name in ("triton", "cce_kernels") if not _is_there(name)]
        what = f"{' and '.join(missing)} {'are' if missing[1:] else 'is'} missing" if missing else str(error)
        warnings.warn(
            f"compressed tables on a GPU take plain torch operations, with the same results but slower: {what}. "
            "pip install 'cce-core[torch,triton]' brings the fused kernels; CCE_KERNELS=0 in the environment silences this",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # it is None among the loaded modules
        return False


def here(tensor: Tensor) -> bool:
    """Whether a tensor is where the kernels run: on a GPU of NVIDIA's, or AMD's, which torch calls so too."""
    return tensor.device.type == "cuda"


def same_device(**tensors: Tensor | None) -> None:
    """RuntimeError unless all are on one device."""
    places = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(places.values())) > 1:
        said = ", ".join(f"{name} on {device}" for name, device in places.items())
        raise RuntimeError(
            f"the tensors of one table are on several devices ({said}): move the ids, and the whole module, with .to(…)"
        )


@dataclasses.dataclass(frozen=True)
class _Call:
    """The checked arguments of an operator, as the kernels take them."""

    own: Any
    frame: Any
    floats: dict[str, Tensor]
    ids: Tensor
    words: tuple[Tensor | None, Tensor | None]


def _call(
    spec: str, part: str, ids: Tensor, keys: Tensor | None, pointers: Tensor | None, offsets: Tensor | None = None,
    **given: Tensor | None,
) -> _Call | None:  # fmt: skip
    """The arguments, checked, since kernels do not look; None where the types are for plain torch."""
    layout, end = part_of(spec, part)
    floats = {name: tensor for name, tensor in given.items() if tensor is not None}
    same_device(**floats, ids=ids, keys=keys, pointers=pointers, offsets=offsets)
    ids = row(ids, "ids")
    n, m = ids.shape[0], len(layout.columns)
    rows = n if offsets is None else offsets.shape[0] - 1
    dim = floats["projection"].shape[-1] if "projection" in floats else 0
    shapes = {
        "memory": (layout.n_units, layout.unit), "grads": (rows, layout.dim), "weights": (n, m), "per_sample_weights": (n,),
        "projection": (layout.dim + 1, dim),
    }  # fmt: skip
    for name, tensor in floats.items():
        if tuple(tensor.shape) != shapes[name]:
            raise RuntimeError(f"{name} must have shape {shapes[name]} here, got {tuple(tensor.shape)}")
    _enough(layout, end, keys, pointers)
    memory = floats.get("memory")
    wide = any(tensor.dtype == torch.float64 for tensor in floats.values())
    own = kernels() if not wide and (memory is None or memory.dtype in _CODECS) else None
    if own is None:
        return None
    floats = {name: (t if name == "memory" else t.float()).contiguous() for name, t in floats.items()}
    memory = floats.get("memory")
    kind = FLOAT32 if memory is None else _CODECS[memory.dtype]
    whole = memory is None or memory.data_ptr() % 16 == 0
    frame = _frame(spec, part, ids.device, kind, "weights" in floats, False, whole, dim)
    words = tuple(None if t is None else t.contiguous() for t in (keys, pointers))
    return _Call(own, frame, floats, ids, (words[0], words[1]))


def _enough(layout: Layout, end: np.uint64 | None, keys: Tensor | None, pointers: Tensor | None) -> None:
    """RuntimeError unless the words are int64 and as many as the layout reads."""
    least = {"keys": layout.n_hashes, "pointers": layout.n_words(int(end or 0))}
    for name, words in (("keys", keys), ("pointers", pointers)):
        if words is not None and words.dtype != torch.int64:
            raise RuntimeError(f"{name} must be int64, got {words.dtype}")
        if least[name] > (0 if words is None else words.numel()):
            raise RuntimeError(f"{name} must hold {least[name]} words, got {0 if words is None else words.numel()}")


@functools.lru_cache(maxsize=1024)
def _frame(
    spec: str, part: str, device: torch.device, kind: int, given: bool, signed: bool, whole: bool, projected: int
) -> Any:
    """What a sum is launched with; kept, since it is copied to the device."""
    (layout, end), own = part_of(spec, part), kernels()
    assert own is not None
    vocab = None if end is None else int(end)
    return own.operators.frame(
        layout, vocab, device, kind, given=given, signed=signed, whole=whole, projected=projected
    )


def _within(error: Tensor, call: _Call, spec: str, part: str) -> None:
    """An assertion on the device that no id was outside the vocabulary, which fails later, as in torch's own embedding."""
    end = part_of(spec, part).end
    if end is not None:
        said = f"an id is outside this table's vocabulary: ids go from 0 to {int(end) - 1}"
        torch.ops.aten._assert_async.msg(error == call.own.lookup.GOOD, said)


def _ends(offsets: Tensor | None, n: int) -> Tensor | None:
    """Where bags begin and the last one ends, int64 (bags + 1); an assertion on the device that they can."""
    if offsets is None:
        return None
    offsets = row(offsets, "offsets")
    eager.check_ends(offsets, n)
    return offsets


def gather(
    memory: Tensor, ids: Tensor, weights: Tensor | None, keys: Tensor | None, pointers: Tensor | None,
    spec: str, part: str, sparse: bool = False,
) -> Tensor | None:  # fmt: skip
    """`blocks.gather`."""
    call = _call(spec, part, ids, keys, pointers, memory=memory, weights=weights)
    if call is None:
        return None
    given = call.floats.get("weights")
    out, error = call.own.operators.gather(call.frame, call.floats["memory"], call.ids, given, *call.words)
    _within(error, call, spec, part)
    return out


def scatter(
    grads: Tensor, ids: Tensor, weights: Tensor | None, keys: Tensor | None, pointers: Tensor | None, spec: str, part: str
) -> Tensor | None:  # fmt: skip
    """`blocks.scatter`: atomic additions, or a fixed order under `torch.use_deterministic_algorithms(True)`."""
    call = _call(spec, part, ids, keys, pointers, grads=grads, weights=weights)
    if call is None:
        return None
    given = call.floats.get("weights")
    return call.own.operators.spread(call.frame, call.floats["grads"], call.ids, given, *call.words)


def scatter_sparse(
    grads: Tensor, ids: Tensor, weights: Tensor | None, keys: Tensor | None, pointers: Tensor | None, spec: str, part: str
) -> Tensor | None:  # fmt: skip
    """The scatter as a sparse tensor of the touched units, coalesced, added up in a fixed order."""
    call = _call(spec, part, ids, keys, pointers, grads=grads, weights=weights)
    if call is None:
        return None
    layout, given = part_of(spec, part).layout, call.floats.get("weights")
    units, sums = call.own.operators.touched(call.frame, call.floats["grads"], call.ids, given, *call.words)
    size = (layout.n_units, layout.unit)
    return torch.sparse_coo_tensor(units[None], sums, size, check_invariants=False, is_coalesced=True)


def dot(
    memory: Tensor, grads: Tensor, ids: Tensor, keys: Tensor | None, pointers: Tensor | None, spec: str, part: str
) -> Tensor | None:  # fmt: skip
    """`blocks.dot`."""
    call = _call(spec, part, ids, keys, pointers, memory=memory, grads=grads)
    if call is None:
        return None
    floats = call.floats
    return call.own.operators.dot(call.frame, floats["memory"], floats["grads"], call.ids, *call.words)


def vectors(
    memory: Tensor, projection: Tensor | None, ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None,
    keys: Tensor | None, pointers: Tensor | None, spec: str, sparse: bool,
) -> Tensor | None:  # fmt: skip
    """Ids, or bags of them, to vectors, each id times its amount, through a projection with its bias: in one launch.

    x[r] = [ Σ_{n ∈ r} amounts[n] · Σ_j M[b(n, j)],  Σ_{n ∈ r} amounts[n] ]            vectors[r] = x[r] · W
    """
    ends = _ends(offsets, ids.shape[0])
    call = _call(
        spec,
        MEMORY,
        ids,
        keys,
        pointers,
        offsets,
        memory=memory,
        projection=projection,
        per_sample_weights=per_sample_weights,
    )
    if call is None:
        return None
    floats = call.floats
    out, error = call.own.operators.vectors(
        call.frame, floats["memory"], floats.get("projection"), call.ids, ends, floats.get("per_sample_weights"), *call.words
    )  # fmt: skip
    _within(error, call, spec, MEMORY)
    return out


def spread(
    grads: Tensor, ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None, keys: Tensor | None,
    pointers: Tensor | None, spec: str,
) -> Tensor | None:  # fmt: skip
    """The gradient of the memory from that of `vectors` without a projection."""
    ends = _ends(offsets, ids.shape[0])
    call = _call(spec, MEMORY, ids, keys, pointers, offsets, grads=grads, per_sample_weights=per_sample_weights)
    if call is None:
        return None
    floats = call.floats
    return call.own.operators.spread(
        call.frame, floats["grads"], call.ids, None, *call.words, offsets=ends,
        per_sample_weights=floats.get("per_sample_weights"),
    )  # fmt: skip


def signs(ids: Tensor, keys: Tensor, like: Tensor, spec: str) -> Tensor | None:
    """`blocks.signs`."""
    same_device(ids=ids, keys=keys, like=like)
    own, (layout, end) = kernels(), part_of(spec, MEMORY)
    if own is None:
        return None
    hashed = tuple(column for column in layout.columns if column.kind != POINTER)
    _enough(dataclasses.replace(layout, columns=hashed), end, keys, None)
    frame = _frame(spec, MEMORY, ids.device, FLOAT32, False, True, True, 0)
    return own.operators.signs(frame, ids.contiguous(), keys.contiguous()).to(eager.wide_type(like.dtype))


def features(ids: Tensor, keys: Tensor, spec: str) -> Tensor | None:
    """`blocks.features`."""
    same_device(ids=ids, keys=keys)
    own = kernels()
    if own is None:
        return None
    eager.check_range(ids, spec)
    return own.dhe.encode(spec_of(spec), ids.contiguous(), keys.contiguous())


def rounded(
    memory: Tensor, ids: Tensor | None, keys: Tensor | None, pointers: Tensor | None, spec: str
) -> Tensor | None:
    """`blocks.rounded`, the whole of it whatever the ids."""
    own, coder, memory = kernels(), codec(spec_of(spec).codec), eager.wide(memory)
    if own is None or memory.dtype != torch.float32:
        return None
    values = memory.contiguous().view(-1)
    codes = torch.empty(coder.n_codes(len(values)), dtype=_CODES[np.dtype(coder.dtype).name], device=memory.device)
    scales = torch.empty(coder.n_scales(len(values)), dtype=torch.float32, device=memory.device)
    own.codecs.encode_into(coder, values, codes, scales)
    return own.codecs.decode(coder, codes, scales if coder.most else None, len(values)).view(memory.shape)


# By the operators' names; where one gives None, plain torch takes its place.
OPERATORS = {f.__name__: f for f in (gather, scatter, dot, vectors, spread, signs, features, rounded)}
