"""The shapes and types that the operators return, for whoever traces them."""

from __future__ import annotations

import torch
from torch import Tensor

from cce_core.adapters.torch.operators.eager import wide_type
from cce_core.adapters.torch.operators.facts import bases_of, part_of


def gather(
    memory: Tensor, ids: Tensor, weights: Tensor | None, keys: Tensor | None, pointers: Tensor | None,
    spec: str, part: str, sparse: bool = False,
) -> Tensor:  # fmt: skip
    return memory.new_empty((ids.shape[0], part_of(spec, part).layout.dim), dtype=wide_type(memory.dtype))


def scatter(
    grads: Tensor, ids: Tensor, weights: Tensor | None, keys: Tensor | None, pointers: Tensor | None, spec: str, part: str
) -> Tensor:  # fmt: skip
    layout = part_of(spec, part).layout
    return grads.new_empty((layout.n_units, layout.unit), dtype=wide_type(grads.dtype))


def dot(
    memory: Tensor, grads: Tensor, ids: Tensor, keys: Tensor | None, pointers: Tensor | None, spec: str, part: str
) -> Tensor:
    shape = ids.shape[0], len(part_of(spec, part).layout.columns)
    return grads.new_empty(shape, dtype=wide_type(grads.dtype))


def signs(ids: Tensor, keys: Tensor, like: Tensor, spec: str) -> Tensor:
    shape = ids.shape[0], len(part_of(spec, "memory").layout.columns)
    return like.new_empty(shape, dtype=wide_type(like.dtype))


def digits(ids: Tensor, spec: str) -> Tensor:
    return ids.new_empty((len(bases_of(spec)), ids.shape[0]))


def bags(offsets: Tensor, ids: Tensor) -> Tensor:
    return torch.empty_like(ids)


def features(ids: Tensor, keys: Tensor, spec: str) -> Tensor:
    return ids.new_empty((ids.shape[0], keys.shape[0]), dtype=torch.float32)


def rounded(memory: Tensor, ids: Tensor | None, keys: Tensor | None, pointers: Tensor | None, spec: str) -> Tensor:
    kind = wide_type(memory.dtype)
    return torch.empty_like(memory, dtype=kind, memory_format=torch.contiguous_format)
