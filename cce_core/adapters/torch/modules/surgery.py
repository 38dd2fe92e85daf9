"""Whole models: every embedding swapped for a compressed one in place."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cce_core import _check
from cce_core.adapters.torch.modules.bag import EmbeddingBag
from cce_core.adapters.torch.modules.embedding import Embedding
from cce_core.adapters.torch.modules.module import Compressed
from cce_core.adapters.torch.modules.tied import TiedLinear
from cce_core.adapters.torch.operators.facts import MEMORY
from cce_core.hashing.mix import derive_key
from cce_core.learning.least_squares import linear_in_memory
from cce_core.method import get_method
from cce_core.tables.table import Table

_SAMPLE = 4096  # ids that tell a table's scale
Skip = str | Iterable[str] | Callable[[str, nn.Module], bool] | None


@dataclass(frozen=True)
class Swap:
    """What became of one embedding of a model.

    Attributes:
        name: where it is; of a shared one, the first place.
        rows, dim: its shape.
        before: bytes of its weight.
        after: stored bytes of what stands there now.
        method: that it was compressed by; "" where it was left as it is.
        why: why it was left as it is; else "".
        tied: names of the output layers that read its table: `TiedLinear` now.
    """

    name: str
    rows: int
    dim: int
    before: int
    after: int
    method: str = ""
    why: str = ""
    tied: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompressionReport:
    """What `compress_` did: one `Swap` for every embedding of the model, in its order; printed, it is a table.

    Attributes:
        tables: the embeddings.

    Example:
        >>> import torch
        >>> from cce_core.adapters.torch import compress_
        >>> report = compress_(torch.nn.Sequential(torch.nn.Embedding(10_000, 32)), method="hash", ratio=10, fresh=True)
        >>> report.before, report.after <= report.before / 10
        (1280000, True)
    """

    tables: tuple[Swap, ...]

    @property
    def before(self) -> int:
        """Bytes of all embeddings before."""
        return sum(swap.before for swap in self.tables)

    @property
    def after(self) -> int:
        """Stored bytes of all embeddings now."""
        return sum(swap.after for swap in self.tables)

    @property
    def ratio(self) -> float:
        """How many times smaller they are, all together."""
        return self.before / self.after if self.after else 1.0

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("embedding", "rows", "dim", "bytes before", "bytes after", "ratio", "")]
        for s in self.tables:
            what = ", tied: ".join([s.method or f"left: {s.why}", *s.tied])
            rows.append((s.name, *_shown(s.rows, s.dim, s.before, s.after), f"{s.before / max(1, s.after):.1f}x", what))
        rows.append(("all", "", "", *_shown(self.before, self.after), f"{self.ratio:.1f}x", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for name, *numbers, what in rows:
            cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *cells, what]).rstrip())
        return "\n".join(lines)


def _shown(*numbers: int) -> tuple[str, ...]:
    return tuple(f"{n:,}" for n in numbers)


def compress_(
    model: nn.Module,
    *,
    method: str = "cce",
    ratio: float | None = None,
    num_bytes: int | None = None,
    min_rows: int = 1000,
    skip: Skip = None,
    fresh: bool = False,
    seed: int | None = None,
    **options: Any,
) -> CompressionReport:
    """Swap every `nn.Embedding` and `nn.EmbeddingBag` of a model for a compressed one, in place.

    A module that stands in several places is swapped once and shared again; so are modules that share one weight. An `nn.Linear`
    whose weight is an embedding's (the output layer of a language model) becomes a `TiedLinear` with its bias. Device, dtype,
    padding_idx, mode, sparse, `requires_grad` and the training flag stay. The new tables come near to the present weights, so a
    trained model keeps what it knows: methods that learn their sketch learn it from them, other linear ones are solved for by
    least squares. With `fresh=True` the weights are forgotten but for their scale and the tables start as new ones do, which is
    quicker and what a model that has not been trained wants. Parameters are new ones: **make the optimiser afterwards**, as DDP
    and FSDP. (A list of parameters that a model keeps for itself, as deepctr-torch does for its penalties, still has the old.)

    Left as they are, with the reason in the report: tables of few rows or skipped; subclasses with a forward pass of their own;
    those with hooks or parametrisations, with `max_norm`, or whose weight a module of another kind reads too.

    Args:
        model: any module; it must not itself be the embedding.
        method: as for `Embedding`.
        ratio: each table gets its present bytes over this; above 0, or
        num_bytes: the most stored bytes of all swapped tables together, shared out by the square roots of their present bytes, at
            most these: a table of few rows is read as often as one of many, so each of its rows counts more. Methods without a
            budget (`full`, `int8`, `int4`) take neither.
        min_rows: tables of fewer rows are left as they are.
        skip: names of embeddings to leave, or patterns such as "decoder.*", one or several; or a function of name and module.
        fresh: whether the present weights are forgotten.
        seed: of all tables, each of which gets one of its own; None draws them from torch's generator.
        options: as for `Embedding` (`n_chunks`, `rank`, `codec`, the method's own).

    Returns:
        A `CompressionReport`.

    Raises:
        ValueError: the model has no embedding, or is one; neither or both of `ratio` and `num_bytes` are given; a name or pattern
            matches none; a table's budget is too small, or its method cannot be solved for. The model is as before.

    Cost:
        With `fresh=False`, that of clustering every table; for a moment, the old and the new tables are both in memory.

    Example:
        >>> import torch
        >>> from cce_core.adapters.torch import compress_
        >>> model = torch.nn.Sequential(torch.nn.Embedding(10_000, 16), torch.nn.Linear(16, 1))
        >>> report = compress_(model, method="pq", ratio=10, seed=0)
        >>> report.ratio > 10, type(model[0]).__module__
        (True, 'cce_core.adapters.torch.modules.embedding')
    """
    _check.instance("model", model, nn.Module, "a torch.nn.Module")
    budgeted = get_method(_check.instance("method", method, str, "a method's name")).budgeted
    if budgeted and (ratio is None) == (num_bytes is None):
        raise ValueError(f"give ratio= or num_bytes=, one of them; got ratio={ratio!r} and num_bytes={num_bytes!r}")
    if not budgeted and not (ratio is num_bytes is None):
        raise ValueError(f"method {method!r} is as large as it is: give neither ratio nor num_bytes")
    if ratio is not None:
        ratio = _check.number("ratio", ratio, 0.0, open_at_least=True)
    if num_bytes is not None:
        num_bytes = _check.integer("num_bytes", num_bytes, 1)
    min_rows = _check.integer("min_rows", min_rows, 0)
    if isinstance(model, (nn.Embedding, nn.EmbeddingBag)):
        raise ValueError("the model is itself an embedding, which has no place to be swapped in: use from_pretrained")
    found = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    if not found:
        raise ValueError("the model has no nn.Embedding or nn.EmbeddingBag")
    readers = _readers(model)
    left = _left(found, readers, _skipped(skip, found), min_rows, method)
    groups: dict[int, list[str]] = {}  # the names of the embeddings that read one weight
    for name, module in found.items():
        if name not in left:
            groups.setdefault(id(module.weight), []).append(name)
    sizes = [_bytes(found[names[0]]) for names in groups.values()]
    budgets: list[int | None] = [None] * len(sizes)
    if ratio is not None:
        budgets = [max(1, math.floor(size / ratio)) for size in sizes]
    elif num_bytes is not None:
        budgets = [*_shared_out(num_bytes, sizes)]
    new: dict[str, Compressed] = {}
    for k, names in enumerate(groups.values()):
        module = found[names[0]]
        own = None if seed is None else derive_key(seed, k)
        try:
            made = _made(module, fresh, {"method": method, "seed": own, "num_bytes": budgets[k], **options})
        except ValueError as error:
            raise ValueError(
                f"{names[0]!r} ({module.num_embeddings:,} x {module.embedding_dim}): {error} "
                "(or leave it as it is, with min_rows= or skip=)"
            ) from error
        new |= dict.fromkeys(names, made)
    swaps, first = [], {names[0] for names in groups.values()}
    for name, module in found.items():
        shape = module.num_embeddings, module.embedding_dim, _bytes(module)
        if name in left:
            swaps.append(Swap(name, *shape, shape[2], why=left[name]))
        elif name in first:
            heads = tuple(
                place for place, attribute, reader in readers[id(module.weight)] if _is_head(attribute, reader)
            )
            swaps.append(Swap(name, *shape, _stored(new[name]), method, tied=heads))
    places: dict[int, nn.Module] = {id(found[name]): made for name, made in new.items()}
    for name in first:
        for _, attribute, reader in readers[id(found[name].weight)]:
            if _is_head(attribute, reader):
                places[id(reader)] = _tied(reader, new[name])
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in places:
                setattr(parent, name, places[id(child)])
    return CompressionReport(tuple(swaps))


def _shared_out(num_bytes: int, sizes: list[int]) -> list[int]:
    """Bytes of each table that has so many now: by their square roots, and none more than it has."""
    out, left = list(sizes), num_bytes
    roots = {k: math.sqrt(size) for k, size in enumerate(sizes)}
    while roots:  # what those that keep their bytes leave goes to the others
        each = left / sum(roots.values())
        whole = [k for k, root in roots.items() if sizes[k] <= each * root]
        for k in whole:
            left -= sizes[k]
            del roots[k]
        if not whole:
            return [max(1, math.floor(each * roots[k])) if k in roots else out[k] for k in range(len(out))]
    return out


def _bytes(module: nn.Embedding | nn.EmbeddingBag) -> int:
    return int(module.weight.numel() * module.weight.element_size())


def _stored(module: Compressed) -> int:
    """Stored bytes; on the meta device those of a table of the same sizes."""
    ledger = Table(module.spec).ledger() if module._is_meta() else module.ledger()
    return ledger.total


def _skipped(skip: Skip, found: Mapping[str, nn.Module]) -> set[str]:
    """The names that `skip` means."""
    if skip is None:
        return set()
    if callable(skip):
        return {name for name, module in found.items() if skip(name, module)}
    out = set()
    patterns = [skip] if isinstance(skip, str) else skip
    if not isinstance(patterns, (list, tuple, set, frozenset)) or not all(isinstance(one, str) for one in patterns):
        raise TypeError(f"skip must be a name or pattern, several of them, or a function, got {_check.shown(skip)}")
    for pattern in patterns:
        names = fnmatch.filter(found, pattern)
        if not names:
            raise ValueError(f"skip={pattern!r} matches none of the model's embeddings: {', '.join(found)}")
        out.update(names)
    return out


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """What a replacement takes over: modules of one weight are one only where these agree."""
    more = (module.mode, module.include_last_offset) if isinstance(module, nn.EmbeddingBag) else ()
    return (
        module.padding_idx, module.max_norm, module.norm_type, module.scale_grad_by_freq, module.sparse, module.training, *more
    )  # fmt: skip


Readers = dict[int, list[tuple[str, str, nn.Module]]]


def _readers(model: nn.Module) -> Readers:
    """Who has each parameter: the module's name, the attribute's and the module."""
    readers: Readers = {}
    for place, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                readers.setdefault(id(parameter), []).append((place, name, module))
    return readers


def _is_head(attribute: str, module: nn.Module) -> bool:
    """Whether it is an output layer that a `TiedLinear` can stand for."""
    return attribute == "weight" and type(module) is nn.Linear and "forward" not in vars(module) and not _hooked(module)


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _tied(head: Any, table: Compressed) -> TiedLinear:
    """The layer that takes an output layer's place."""
    made = TiedLinear(table).train(head.training)
    made.bias = head.bias
    return made


def _left(found: Mapping[str, Any], readers: Readers, skipped: set[str], min_rows: int, method: str) -> dict[str, str]:
    """Why embeddings are left as they are."""
    out: dict[str, str] = {}
    for name, module in found.items():
        plain = nn.EmbeddingBag if isinstance(module, nn.EmbeddingBag) else nn.Embedding
        if name in skipped:
            out[name] = "skipped"
        elif module.num_embeddings < min_rows:
            out[name] = f"fewer than {min_rows:,} rows"
        elif type(module).forward is not plain.forward or "forward" in vars(module):
            out[name] = f"{type(module).__name__} has a forward pass of its own"
        elif torch.nn.utils.parametrize.is_parametrized(module):
            out[name] = "it is parametrised"
        elif _hooked(module):
            out[name] = "it has hooks"
        elif module.max_norm is not None and method != "full":
            out[name] = "it has max_norm"
        else:
            for place, attribute, reader in readers[id(module.weight)]:
                same = place in found and attribute == "weight" and place not in out
                if same and _settings(reader) == _settings(module) and type(reader) is type(module):
                    continue
                if not _is_head(attribute, reader):
                    out[name] = f"its weight is {place}.{attribute} too" if place else f"its weight is {attribute} too"
    # Of modules that share a weight, all are swapped or none.
    lone = {id(found[name].weight): why for name, why in out.items()}
    for name, module in found.items():
        if name not in out and id(module.weight) in lone:
            out[name] = f"it shares its weight with one that is left: {lone[id(module.weight)]}"
    return out


def _made(module: nn.Embedding | nn.EmbeddingBag, fresh: bool, options: dict[str, Any]) -> Compressed:
    """The module that takes an embedding's place."""
    made: Compressed
    weight = module.weight
    common: dict[str, Any] = {
        "padding_idx": module.padding_idx,
        "max_norm": module.max_norm,
        "norm_type": module.norm_type,
        "scale_grad_by_freq": module.scale_grad_by_freq,
        "sparse": module.sparse,
        "_weight": None if fresh or weight.is_meta else weight.detach(),
        "device": weight.device,
        "dtype": weight.dtype,
        **options,
    }
    shape = module.num_embeddings, module.embedding_dim
    if isinstance(module, nn.EmbeddingBag):
        made = EmbeddingBag(*shape, mode=module.mode, include_last_offset=module.include_last_offset, **common)
    else:
        made = Embedding(*shape, **common)
    if fresh and not weight.is_meta:
        _scale(made, weight)
    return made.train(module.training).requires_grad_(weight.requires_grad)


@torch.no_grad()
def _scale(made: Compressed, weight: torch.Tensor) -> None:
    """Bring a new table to the scale of the one it replaces, where that is a matter of its memory alone."""
    if not linear_in_memory(made.spec):
        return
    n = weight.shape[0]
    ids = torch.linspace(0, n - 1, min(n, _SAMPLE), device=weight.device).long()
    theirs, ours = weight[ids].float().square().mean(), made._vectors(ids).float().square().mean()
    if theirs > 0 and ours > 0:
        if made._facts.stored and not made.spec.rank:
            table = made._copied()
            table.parameters()[MEMORY][:] *= float((theirs / ours).sqrt())
            table.requantize()
            return made._take(table)
        last: Any = made.projection if made.spec.rank else made.memory  # a projection has a constant row too
        last.mul_((theirs / ours).sqrt())
