"""One clustering of a module, and of what must come along: all is worked out beside them, then written in one moment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cce_core.adapters.torch import guard
from cce_core.adapters.torch.distributed.ranks import Ranks
from cce_core.adapters.torch.modules import device_cluster
from cce_core.adapters.torch.operators import cuda
from cce_core.adapters.torch.operators.arrays import float32, put
from cce_core.adapters.torch.operators.plan import MEMORY, WEIGHTS, array_specs
from cce_core.adapters.torch.optim.moments import Pointed, carried, forget, refitted
from cce_core.learning.cluster import ClusterReport
from cce_core.learning.cluster import cluster as learn
from cce_core.tables.table import Table


def cluster(
    module: Any, optimizers: list[torch.optim.Optimizer], weights: ArrayLike | None, remap: bool, copies: list[Any],
    ranks: Ranks | None, settings: dict[str, Any],
) -> ClusterReport:  # fmt: skip
    """`Embedding.cluster`.

    Args:
        module: whose lock the caller holds.
        optimizers: a list of them.
        weights: an array, or None.
        remap: whether moments are remapped, else reset.
        copies: averages that were given; those that follow the module by themselves are found here.
        ranks: of the process group, or None.
        settings: of the clustering.
    """
    spec, text = module.spec, module._plan.text
    if ranks is None and not module.shard_pointers and _on_gpu(module) and device_cluster.clusters(spec, settings):
        new = {name: getattr(module, name).detach().clone() for name in array_specs(spec) if name != "scales"}
        report = device_cluster.cluster(spec, new, weights=weights, **settings)
    else:
        table = module._copied()
        report = learn(table, weights=weights, ranks=ranks, **settings)
        new = tensors_of(table)
    copies = list({id(one): one for one in (*module._followers(), *copies)}.values())
    changes = module._changes(new)
    before = module._pointed()
    after = Pointed(new.get("keys"), new.get("pointers")).to(module.seed.device)
    vocab, ours = spec.vocab or 0, {name: p for name, p in module.named_parameters() if name in (MEMORY, WEIGHTS)}
    if optimizers and remap:
        changes += carried(optimizers, ours, before, after, text, vocab)
    for copy in copies:
        there, device = dict(new), copy.seed.device
        if not module._plan.weighed and settings.get("vectors") is None:
            values = torch.from_numpy(float32(copy.memory)).to(device)
            there[MEMORY] = refitted(values, before.to(device), after.to(device), text, vocab)
            if spec.rank:
                there["projection"] = copy.projection
        changes += [*copy._changes(there), (copy.seed, module.seed)]
    with guard.changing():
        put(changes)
        for one in (module, *copies):
            one._settled()
            one._mark.follows = one is not module
        module._mark.made = module._mark.known
    if optimizers and not remap:
        forget(optimizers, ours)
    return report


def _on_gpu(module: Any) -> bool:
    """Whether the parameters are whole and where the kernels run."""
    first = getattr(module, module._plan.arrays[0])
    return cuda.here(first) and not hasattr(first, "full_tensor")


def tensors_of(table: Table) -> dict[str, Tensor]:
    """A table's arrays as tensors over the same memory."""
    arrays = {**table.buffers(), **table.parameters()}
    return {
        n: torch.from_numpy(a if a.dtype == np.float32 else a.view(np.int64))
        for n, a in arrays.items()
        if n != "scales"
    }
