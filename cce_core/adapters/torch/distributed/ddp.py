"""DistributedDataParallel: pointers that need not be sent, sparse gradients, and memories of another shape.

Of each parameter it asks whether its module is a `torch.nn.Embedding` with `sparse=True`, and reduces all other gradients as
dense ones, which fails for a sparse one. A module of ours cannot be one of those: whoever initialises, quantises or swaps
torch's embeddings writes into their `weight`. So the list that it makes is corrected, for our own parameters alone.
"""

from __future__ import annotations

import functools
import gc
import weakref
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from cce_core import _check
from cce_core.adapters.torch.distributed.ranks import ranks_of
from cce_core.adapters.torch.operators.facts import COUNTED

_LISTED = "_build_params_for_reducer"
_wrappers: weakref.WeakKeyDictionary[torch.nn.Module, weakref.WeakSet[DistributedDataParallel]] = (
    weakref.WeakKeyDictionary()
)


def expect_sparse(owner: type[Any]) -> None:
    """Let DistributedDataParallel know of modules of this class, whose `sparse_parameters()` are those with sparse gradients."""
    listed = getattr(DistributedDataParallel, _LISTED, None)
    if listed is None:  # another torch than those that are known
        return

    @functools.wraps(listed)
    def build(self: DistributedDataParallel) -> Any:
        parameters, expected = listed(self)
        tables = [m for m in self.module.modules() if isinstance(m, owner)]
        for table in tables if isinstance(self, DistributedDataParallel) else ():
            _wrappers.setdefault(table, weakref.WeakSet()).add(self)
        ours = {id(p) for m in tables for p in m.sparse_parameters()}
        return parameters, [flag or id(p) in ours for p, flag in zip(parameters, expected, strict=True)]

    setattr(DistributedDataParallel, _LISTED, build)


def wrappers(module: torch.nn.Module) -> list[DistributedDataParallel]:
    """The wrapped models that a table is in, which can make room anew for gradients of another shape.

    Raises:
        RuntimeError: one cannot.
    """
    if not _wrappers.get(module):
        return []
    gc.collect()  # those that nobody has any more, which are circles
    found = list(_wrappers[module])
    for one in found:
        known: Any = one
        if (
            not hasattr(one, "_ddp_init_helper")
            or getattr(known, "mixed_precision", None)
            or getattr(known, "_comm_hooks", None)
        ):
            raise RuntimeError(
                "the table is to have a memory of another shape, and DistributedDataParallel with mixed precision or "
                "communication hooks cannot follow: cluster the model while it is not wrapped, and wrap it anew"
            )
    return found


def group_of(module: torch.nn.Module) -> distributed.ProcessGroup | None:
    """The process group of a wrapped model that a table is in; None where it is in none."""
    for one in _wrappers.get(module, ()):
        return one.process_group
    return None


def rebuild(wrapper: Any) -> None:
    """Make room for the gradients as they are now, as torch does for a wrapped model that it unpickles."""
    parameters, expected = wrapper._build_params_for_reducer()
    names = wrapper._build_debug_param_to_name_mapping(parameters)
    wrapper._ddp_init_helper(parameters, expected, names, wrapper.static_graph)
    wrapper._has_rebuilt_buckets = False
    if wrapper.static_graph:
        wrapper._set_static_graph()


def leave_out_pointers(model: torch.nn.Module, group: distributed.ProcessGroup | None = None) -> list[str]:
    """Tell DistributedDataParallel to leave the pointers out of what it sends at every forward pass.

    Call it on the model that is to be wrapped, on every rank, before it is wrapped. Pointers change in `cluster()` alone, which
    keeps them equal on all ranks; without this call they are still right, but sent again at every forward pass. Of a `vq` table
    the counters are left out too: each rank counts what it meets, and `cluster()` adds it up. Of a `tiered` table map and counts
    are: all ranks count what all have met.

    Args:
        model: the model, or a part of it that is wrapped by itself.
        group: the process group; None is the default one.

    Returns:
        The names of the buffers.

    Raises:
        RuntimeError: the ranks hold different pointers: they would never be made equal.

    Example:
        >>> import torch
        >>> from cce_core.adapters.torch import Embedding, leave_out_pointers
        >>> model = torch.nn.Sequential(Embedding(1000, 16, method="cce", num_params=2048), torch.nn.Linear(16, 1))
        >>> leave_out_pointers(model)  # and then DistributedDataParallel(model)
        ['0.pointers']
    """
    _check.instance("model", model, torch.nn.Module, "a torch.nn.Module")
    owners = {
        f"{place}.{name}" if place else name: owner
        for place, owner in model.named_modules()
        if hasattr(owner, "_facts")
        for name in owner._buffers
        if name in ("pointers", "shard", "counts", "passes", *COUNTED)
    }
    names = list(owners)
    ranks = ranks_of(group)
    if ranks is not None:
        held = {n: owner._buffers[n.rpartition(".")[2]] for n, owner in owners.items() if n.endswith("pointers")}
        same = {n: np.asarray(p.cpu()) for n, p in held.items() if p is not None and not hasattr(owners[n], "shard")}
        ranks.agree(same, "before training")
    marked: Any = model
    known = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    marked._ddp_params_and_buffers_to_ignore = sorted(known | set(names))
    return names
