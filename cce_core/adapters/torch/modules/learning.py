"""Whole models: all tables that learn their sketch, clustered in one call, or opened again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from cce_core import _check
from cce_core.adapters.torch.modules.module import Compressed, Optimizers, Weights
from cce_core.adapters.torch.modules.states import Averages
from cce_core.learning.cluster import ClusterReport
from cce_core.method import get_method
from cce_core.method.spec import CODES


def cluster_(
    model: nn.Module,
    optimizer: Optimizers = None,
    *,
    weights: Mapping[str, Weights] | None = None,
    averaged: Averages = None,
    **settings: Any,
) -> dict[str, ClusterReport]:
    """Cluster every table of a model that learns its sketch while training (`cce`, `cce_robe`, `vq`), shared ones once.

    A `tiered` table, which is clustered to fewer bytes, is left to its own `cluster(num_bytes=…)`.

    Args:
        model: any module, an `Embedding` itself too.
        optimizer: a torch optimiser, or several, whose moments go along; see `Embedding.cluster`.
        weights: how much each id counts, by the table's name; tables without an entry count all ids alike.
        averaged: a model whose parameters average this one's, such as an `AveragedModel`, or several: its tables of the same
            names come along; see `Embedding.cluster`.
        settings: as for `Embedding.cluster`.

    Returns:
        The reports, by name; empty where no table learns while it is trained.

    Raises:
        ValueError: a name in `weights` is not that of such a table, `averaged` lacks a table, or a `vq` table was clustered and
            not reopened. Nothing was clustered then.

    Cost:
        That of clustering each table.

    Example:
        >>> import torch
        >>> from cce_core.adapters.torch import Embedding, cluster_
        >>> model = torch.nn.ModuleDict({"item": Embedding(1000, 16, method="cce", num_params=2048, seed=0)})
        >>> list(cluster_(model))
        ['item']
    """
    tables = learning(model)
    if done := [name for name, m in tables.items() if m.phase == CODES]:
        raise ValueError(
            f"the table {done[0]!r} was clustered: it is in phase 'codes', and is clustered again after reopen_(model) alone; "
            "ClusterSchedule knows the time of each table"
        )
    return cluster_tables(tables, list(tables), optimizer, weights, averaged, settings)


def cluster_tables(
    tables: Mapping[str, Compressed], names: Sequence[str], optimizer: Optimizers, weights: Mapping[str, Weights] | None,
    averaged: Averages, settings: Mapping[str, Any],
) -> dict[str, ClusterReport]:  # fmt: skip
    """`cluster_` of some of the tables that learn."""
    weights = {} if weights is None else _check.instance("weights", weights, Mapping, "a dict by the tables' names")
    if unknown := [name for name in weights if name not in tables]:
        raise ValueError(
            f"weights names {unknown[0]!r}, which is no table that learns; those are {', '.join(tables) or 'none'}"
        )
    copies = _copies({name: tables[name] for name in names}, averaged)
    return {
        name: tables[name].cluster(optimizer=optimizer, weights=weights.get(name), averaged=copies[name], **settings)
        for name in names
    }


def reopen_(
    model: nn.Module, optimizer: Optimizers = None, *, moments: str = "remap", averaged: Averages = None
) -> list[str]:
    """Give the ids of every clustered `vq` table of a model rows again, for new data; see `Embedding.reopen`.

    Args:
        model, optimizer, averaged: as for `cluster_`.
        moments: as for `Embedding.cluster`.

    Returns:
        The tables' names.

    Raises:
        ValueError: a `vq` table has rows already, or there is none, or `averaged` lacks one. Nothing was opened then.

    Example:
        >>> import torch
        >>> from cce_core.adapters.torch import Embedding, cluster_, reopen_
        >>> model = torch.nn.ModuleDict({"item": Embedding(1000, 16, method="vq", num_bytes=3000, seed=0)})
        >>> list(cluster_(model)), model["item"].phase
        (['item'], 'codes')
        >>> reopen_(model), model["item"].phase
        (['item'], 'rows')
    """
    tables = {name: m for name, m in learning(model).items() if m.phase is not None}
    if not tables:
        raise ValueError("the model has no table with phases, such as 'vq': there is nothing to reopen")
    if rows := [name for name, m in tables.items() if m.phase != CODES]:
        raise ValueError(f"the table {rows[0]!r} has a row per id already: it is in phase 'rows'")
    copies = _copies(tables, averaged)
    for name, table in tables.items():
        table.reopen(optimizer=optimizer, moments=moments, averaged=copies[name])
    return list(tables)


def parameter_groups(model: nn.Module, *, lr: float, tables_lr: float) -> list[dict[str, Any]]:
    """A model's parameters for a torch optimiser, with a learning rate of its own for tables of narrow rows (a rank).

    Narrow rows learn through their projection, and want a few times the rate of whole vectors.

    Args:
        model: any module.
        lr: of all other parameters.
        tables_lr: of the memories and projections of compressed tables with a rank.

    Returns:
        At most two groups, {"params": [...], "lr": ...}, every parameter in one.

    Raises:
        ValueError: a rate is below 0, or the model has no parameters.

    Example:
        >>> import torch
        >>> from cce_core.adapters.torch import Embedding, parameter_groups
        >>> model = torch.nn.Sequential(Embedding(1000, 16, method="vq", num_bytes=3000), torch.nn.Linear(16, 1))
        >>> optimizer = torch.optim.Adagrad(parameter_groups(model, lr=0.01, tables_lr=0.1))
        >>> [(group["lr"], len(group["params"])) for group in optimizer.param_groups]
        [(0.01, 2), (0.1, 2)]
    """
    _check.instance("model", model, nn.Module, "a torch.nn.Module")
    rates = _check.number("lr", lr, 0.0), _check.number("tables_lr", tables_lr, 0.0)
    tables = [m for m in model.modules() if isinstance(m, Compressed) and m.spec.rank]
    narrow = {id(parameter) for table in tables for parameter in table.parameters()}
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
    for parameter in model.parameters():
        groups[id(parameter) in narrow].append(parameter)
    if not any(groups):
        raise ValueError("the model has no parameters to train")
    return [{"params": some, "lr": rate} for some, rate in zip(groups, rates, strict=True) if some]


def learning(model: nn.Module) -> dict[str, Compressed]:
    """The tables of a model that learn their sketch while training, by name."""
    _check.instance("model", model, nn.Module, "a torch.nn.Module")
    return {name: m for name, m in model.named_modules() if isinstance(m, Compressed) and _learns(m)}


def _copies(tables: Mapping[str, Compressed], averaged: Averages) -> dict[str, list[Compressed]]:
    """The averages of each table among given modules."""
    copies: dict[str, list[Compressed]] = {name: [] for name in tables}
    for other in averaged if isinstance(averaged, (list, tuple)) else [averaged]:
        if other is None:
            continue
        if not isinstance(other, nn.Module):
            raise TypeError(f"averaged takes modules, got {type(other).__name__}")
        theirs = {_plain_name(name): m for name, m in other.named_modules() if isinstance(m, Compressed)}
        for name, table in tables.items():
            copy = theirs.get(_plain_name(name))
            if copy is None:
                raise ValueError(
                    f"{type(other).__name__}, given as averaged, has no table {name!r}; it has {', '.join(theirs) or 'none'}"
                )
            copies[name] += table._averages(copy)
    return copies


def _plain_name(name: str) -> str:
    """A name without what wrappers put before it."""
    while name == "module" or name.startswith("module."):
        name = name[7:]
    return name


def _learns(module: Compressed) -> bool:
    method = get_method(module.spec.method)
    return method.learns and not method.post_training
