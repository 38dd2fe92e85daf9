"""What the modules are asked for, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cce_core import _check


def optimizers_of(given: Any) -> list[Any]:
    """A list of what was given as one optimiser, several, or None."""
    out = [one for one in (given if isinstance(given, (list, tuple)) else [given]) if one is not None]
    for one in out:
        if not hasattr(one, "param_groups"):
            raise TypeError(f"optimizer must be a torch optimiser, or a list of some, got {_check.shown(one)}")
    return out


def is_plain(method: str, options: Mapping[str, Any]) -> bool:
    """Whether a table is torch's own: full, without rank and codec. A rank of "auto" is 0 for a full table."""
    narrow, coded = options.get("rank") not in (None, 0, "auto"), options.get("codec") not in (None, "float32")
    return method == "full" and not narrow and not coded


def dtype_of(dtype: torch.dtype | None) -> torch.dtype:
    """The type that is meant; None is torch's default one."""
    given: torch.dtype = torch.get_default_dtype() if dtype is None else dtype
    return _check.instance("dtype", given, torch.dtype, "a torch.dtype")


def shape_of(embeddings: Tensor) -> tuple[int, int]:
    """Rows and dim of a trained table."""
    _check.instance("embeddings", embeddings, Tensor, "a tensor (num_embeddings, embedding_dim)")
    if embeddings.dim() != 2:
        raise AssertionError("Embeddings parameter is expected to be 2-dimensional")
    return embeddings.shape[0], embeddings.shape[1]


def padding_of(index: int | None, vocab: int | None) -> int | None:
    if index is None:
        return index
    index = _check.integer("padding_idx", index, -(2**63), 2**64 - 1)
    if vocab is None:  # a word of 64 bits, as ids are
        return index - (1 << 64) if index >= 1 << 63 else index
    if not -vocab <= index < vocab:
        raise AssertionError(f"padding_idx must be within num_embeddings {vocab}, got {index}")
    return index + vocab if index < 0 else index
