"""One clustering of a module, and of what must come along: all is worked out beside them, then written in one moment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cce_core.adapters.torch import guard
from cce_core.adapters.torch.distributed import ddp
from cce_core.adapters.torch.distributed.ranks import Ranks
from cce_core.adapters.torch.modules import device_cluster
from cce_core.adapters.torch.operators import cuda
from cce_core.adapters.torch.operators.arrays import float32, put, shared
from cce_core.adapters.torch.operators.facts import MEMORY, WEIGHTS, array_specs, text_of
from cce_core.adapters.torch.optim.moments import Pointed, carried, refitted
from cce_core.learning.cluster import ClusterReport
from cce_core.learning.cluster import cluster as learn
from cce_core.method.heirs import Heirs
from cce_core.method.spec import ROUNDINGS, TableSpec
from cce_core.storage.counters import estimates
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
    spec, owned, heirs = module.spec, module._facts.owned, None
    if module.phase is not None or owned:
        module._check_free()  # before the work
    if (
        not owned
        and ranks is None
        and not module.shard_pointers
        and _on_gpu(module)
        and device_cluster.clusters(spec, settings)
    ):
        new = {name: getattr(module, name).detach().clone() for name in array_specs(spec) if name != "scales"}
        report = device_cluster.cluster(spec, new, weights=weights, **settings)
    else:
        table = module._copied()
        if ranks is not None and (owned or table.phase is not None):
            report = _alike(table, weights, ranks, settings)
        elif owned:
            report = table.cluster(weights=weights, **settings)
        else:
            report = learn(table, weights=weights, ranks=ranks, **settings)
        new, spec, heirs = tensors_of(table), table.spec, table.heirs
    adopt(module, spec, new, optimizers, remap, copies, own="vectors" not in settings, heirs=heirs)
    return report


def _alike(table: Table, weights: Any, ranks: Ranks, settings: dict[str, Any]) -> ClusterReport:
    """A clustering that every rank computes by itself, from the same numbers: ids count by what all ranks have met of them.

    Raises:
        RuntimeError: the ranks hold different numbers before, or afterwards. The table is a copy.
    """
    arrays = table.arrays()
    counts = arrays.pop("counts", None)
    if weights is None and counts is not None:
        # Whole numbers, whose sum is the same in any order.
        met = ranks.sum(np.rint(16 * estimates(counts).astype(np.float64)).astype(np.int64))
        weights = np.sqrt(met / 16.0) if met.any() else None
    given = {name: v for name, v in {"weights": weights, "vectors": settings.get("vectors")}.items() if v is not None}
    ranks.agree({"specs": table.spec, **arrays, **{n: np.asarray(v) for n, v in given.items()}}, "before clustering")
    report = table.cluster(weights=weights, **settings)
    ranks.agree(table.arrays(), "after clustering")
    return report


def reopen(module: Any, optimizers: list[torch.optim.Optimizer], remap: bool, copies: list[Any]) -> None:
    """`Embedding.reopen`; the arguments are those of `cluster`."""
    table = module._copied()
    table.reopen()
    adopt(module, table.spec, tensors_of(table), optimizers, remap, copies, own=True, heirs=table.heirs)


def adopt(
    module: Any, spec: TableSpec, new: dict[str, Tensor], optimizers: list[torch.optim.Optimizer], remap: bool,
    copies: list[Any], own: bool, heirs: Heirs | None = None,
) -> None:  # fmt: skip
    """Make a module the table of a spec with new arrays, and with it what optimisers know and its averages.

    Args:
        module, optimizers, remap, copies: as for `cluster`.
        spec, new: what it is to be.
        own: whether the vectors are the module's own, so that its averages have others.
        heirs: of a table whose ids earn rows, which rows go on as which others.

    Raises:
        ValueError: the memory is to have another shape, but none of the optimisers trains it; or averages of a table whose ids
            earn rows were given. Nothing is changed.
    """
    if module._facts.owned and copies:
        raise ValueError(
            f"averages of a {spec.method!r} table do not come along, whose rows change hands: leave averaged out, and take its "
            "parameters and buffers from the model, by load_state_dict"
        )
    if not module._facts.owned:
        copies = list({id(one): one for one in (*module._followers(), *copies)}.values())
    before, text = module._pointed(), text_of(spec)
    if optimizers and text != before.text and not _is_trained(module.memory, optimizers):
        raise ValueError(
            "none of the optimisers trains this table's memory, which is to have another shape: give the one that was made of "
            "its parameters"
        )
    changes, calls = module._becoming(spec, new)
    after = Pointed(text, new.get("keys"), new.get("pointers")).to(module.seed.device)
    vocab, ours = spec.vocab or 0, {name: p for name, p in module.named_parameters() if name in (MEMORY, WEIGHTS)}
    more = carried(optimizers, ours, before, after, vocab, remap, heirs)
    for copy in copies:
        there, device = dict(new), copy.seed.device
        if not module._facts.weighed and not module._facts.stored and own:
            values = torch.from_numpy(float32(copy.memory)).to(device)
            there[MEMORY] = refitted(values, before.to(device), after.to(device), vocab)
            if spec.rank:
                there["projection"] = copy.projection
        for all_of, some in zip((changes, calls), copy._becoming(spec, there), strict=True):
            all_of += some
        changes.append((copy.seed, module.seed))
    with guard.changing():
        put([*changes, *more[0]], [*calls, *more[1]])
        for one in (module, *copies):
            one._settled()
            one._mark.follows = one is not module
            for wrapper in ddp.wrappers(one) if text != before.text else ():
                ddp.rebuild(wrapper)
        module._mark.made = module._mark.known


def _is_trained(memory: Tensor, optimizers: list[torch.optim.Optimizer]) -> bool:
    held = (p for one in optimizers for group in one.param_groups for p in group["params"])
    return not memory.requires_grad or any(p is memory for p in held)


def _on_gpu(module: Any) -> bool:
    """Whether the parameters are whole, of floats, and where the kernels run."""
    first = getattr(module, module._facts.arrays[0])
    return cuda.here(first) and not module._facts.stored and not hasattr(first, "full_tensor")


def tensors_of(table: Table) -> dict[str, Tensor]:
    """A table's arrays as tensors over the same memory."""
    arrays = table.arrays()
    if table.spec.codec != "float32" and table.spec.rounding == ROUNDINGS[1]:
        arrays["codes"] = arrays.pop(MEMORY).view(np.uint8)
        arrays.setdefault("scales", np.empty(0, np.float32))
        return {name: shared(array) for name, array in arrays.items()}
    arrays |= table.parameters()
    return {name: shared(array) for name, array in arrays.items() if name != "scales"}
