"""Clustering on a GPU, by the Triton kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cce_core.adapters.torch.operators import cuda
from cce_core.adapters.torch.operators.arrays import write_tensor
from cce_core.adapters.torch.operators.facts import MEMORY, WEIGHTS, text_of
from cce_core.learning.cluster import ClusterReport, checked_weights
from cce_core.method.spec import TableSpec
from cce_core.tables.table import Table


def clusters(spec: TableSpec, settings: Mapping[str, Any]) -> bool:
    """Whether the kernels cluster such a table with such settings: the core does them all, and keeps within `max_bytes`."""
    own, vectors = cuda.kernels(), settings.get("vectors")
    if own is None or settings.get("max_bytes") is not None or isinstance(vectors, Table):
        return False
    return bool(own.cluster.takes(spec)) and (vectors is None or not spec.rank)


@torch.no_grad()
def cluster(
    spec: TableSpec, arrays: Mapping[str, Tensor], *, vectors: Any = None, weights: Any = None,
    show_progress: bool | None = None, max_bytes: None = None, **settings: Any,
) -> ClusterReport:  # fmt: skip
    """`cce_core.learning.cluster.cluster` on the device, of a module's parameters and buffers by name, in place.

    Args:
        spec: with its seed.
        arrays: of the module; its memory may be of any float type, and is rounded first where there is a codec.
        vectors, weights: arrays or tensors.
        show_progress: there is no bar here.
        max_bytes: for the core alone.
        settings: of `cce_kernels.cluster.cluster`.
    """
    own: Any = cuda.kernels()
    memory, device = arrays["memory"], arrays["memory"].device
    cuda.same_device(**arrays)
    values = memory.detach().to(torch.float32)
    if spec.codec != "float32":
        decoded = cuda.rounded(values, None, None, None, text_of(spec))
        assert decoded is not None
        values = decoded
    given = checked_weights(weights, spec.vocab or 0)
    counts = None if given is None else torch.from_numpy(np.array(given, np.float32)).to(device)
    if vectors is not None:
        vectors = torch.as_tensor(vectors).detach().to(device, torch.float32).contiguous()
    changed = {MEMORY: values.reshape(-1).contiguous()}
    if WEIGHTS in arrays:
        changed[WEIGHTS] = arrays[WEIGHTS].detach().to(torch.float32).reshape(-1)
    rest = {name: a.detach().to(torch.float32) if a.is_floating_point() else a for name, a in arrays.items()}
    tables = own.tables.Tables([(dataclasses.replace(spec, codec="float32"), {**rest, **changed})])
    report: ClusterReport = own.cluster.cluster(tables, vectors=vectors, weights=counts, **settings)
    for name, new in changed.items():
        write_tensor(arrays[name], new.view(arrays[name].shape))
    return report
