"""`make_table`: from a method's name and a budget to a table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from cce_core import _check
from cce_core.method import get_method, methods, resolved
from cce_core.method.base import Method, Request, checked_chunks
from cce_core.method.checked import MOST_DIM, MOST_IDS, check_codec, checked_options, checked_rank
from cce_core.method.spec import ROUNDINGS, BudgetError, TableSpec
from cce_core.storage.codec import codec as get_codec
from cce_core.tables.table import Table
from cce_core.tables.tiered import SharedState, TieredCollection, TieredTable

_MOST = 1 << 62
_MEMORY = 1 << 47  # bytes that a program can address


def make_table(
    method: str,
    vocab: int | None,
    dim: int,
    *,
    num_params: int | None = None,
    num_bytes: int | None = None,
    n_chunks: int | None = None,
    rank: int | str | None = None,
    codec: str | None = None,
    rounding: str | None = None,
    seed: int = 0,
    **options: Any,
) -> Table:
    """Make a compressed embedding table within a budget; every size follows from the budget in closed form.

    Args:
        method: a name among `methods()`, a plain one, such as "product_quantization" or "hash_embedding", or one that users of
            the paper's own code know, such as "simple" or "hemb_flat".
        vocab: ids go from 0 to vocab − 1; None, for methods that only hash, takes every 64-bit id.
        dim: floats of a vector.
        num_params: the most trained numbers (the field's habit), or
        num_bytes: the most stored bytes: memory, projection, pointers and hash keys (the truth). `full` needs neither.
        n_chunks: chunks of a vector, 4 if None; methods without chunks ignore it.
        rank: floats of the vectors in the memory, with a trained projection (rank × dim, and a bias) behind them; 0 for
            none, "auto" for the method's own choice, None for the method's default (0, but "auto" for `cce`).
        codec: how the memory is kept: "float32", "bfloat16" (2 bytes a float), "int8" or "int4" (1 or 1/2, and a float32
            scale for each 64); None for the method's own, which is float32 for all but `int8` and `int4`.
        rounding: how training rounds into a codec: "straight-through" keeps float32 values beside it while training,
            "stochastic" keeps none and rounds up or down at random; of int4 it keeps 4 bits a float, sixteenths of a code.
        seed: of the hashes and the first values.
        options: the method's own.

    A table never stores more than the full table of its vocabulary does (4 · vocab · dim bytes), whatever the budget, unless its
    method can't do with less; a `UserWarning` says so then, and `full` is the better choice.

    Returns:
        The table; its repr says what was chosen.

    Raises:
        BudgetError: the budget is too small; the message says the least that fits.
        ValueError: an unknown method or option, a dim (or rank) that n_chunks does not divide, both or no budgets.
        TypeError: a size is not a whole number.

    Example:
        >>> import cce_core as cce
        >>> table = cce.make_table("cce", vocab=1_000_000, dim=32, num_params=65_536, n_chunks=4, rank=0)
        >>> table.spec.sizes
        (1024,)
        >>> cce.make_table("cce", vocab=1_000_000, dim=32, num_bytes=100, rank=0)
        Traceback (most recent call last):
        ...
        cce_core.method.spec.BudgetError: 100 bytes are too few for 'cce' with vocab 1,000,000, dim 32, rank 0 \
and 4 chunks: the least that fits is 296 bytes
    """
    for option in ("tables", "names"):
        if option in options and get_method(resolved(str(method))[0]).owned:
            raise ValueError(f"{option!r} is for tables with one memory: make_collection makes them")
    budget: dict[str, Any] = {"num_params": num_params, "num_bytes": num_bytes}
    more: dict[str, Any] = {"n_chunks": n_chunks, "rank": rank, "codec": codec, "rounding": rounding, "seed": seed}
    spec = resolve(method, vocab, dim, **budget, **more, **options)
    return TieredTable(spec) if get_method(spec.method).owned else Table(spec)


def make_collection(
    method: str,
    tables: int | Iterable[str],
    dim: int,
    *,
    num_bytes: int | None = None,
    num_params: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> TieredCollection:
    """Make several tables within one budget, whose rows go where they are worth most: to the ids that are met most often.

    All tables have one memory, one map of (table, id) pairs, one sketch of counts, and so one threshold; each has its own
    projection and its own shared rows. The budget counts all of it.

    Args:
        method: "tiered"; of other methods tables share nothing: make them one by one, and a `Collection` of them.
        tables: how many, 1 to 1,024, or their names.
        dim: floats of a vector of each.
        num_bytes: the most stored bytes of all tables together, or
        num_params: the most trained numbers.
        seed: of the hashes and the first values.
        settings: rank, codec, rounding, and the method's own options, as for `make_table`.

    Returns:
        The tables, with every 64-bit id in each.

    Raises:
        BudgetError: the budget is too small; the message says the least that fits.
        ValueError: a method whose tables share nothing, an unknown option, names that are alike.
        TypeError: neither a number nor names.

    Example:
        >>> import cce_core as cce
        >>> cce.make_collection("tiered", 26, 16, num_bytes=100_000)
        <tiered collection: 26 tables, dim 16, rank 4, 10,976 own rows, int8, 99,980 bytes>
    """
    method = resolved(_check.instance("method", method, str, "a method's name"))[0]
    if not get_method(method).owned:
        raise ValueError(
            f"tables of method {method!r} share nothing: make each with make_table, and Collection([…]) of them; tables of "
            f"{', '.join(m.name for m in methods() if m.owned)} have one budget"
        )
    names = None
    if isinstance(tables, (int, np.integer)) and not isinstance(tables, bool):
        n = _check.integer("tables", tables, 1)
    else:
        given = _check.sequence("tables", tables, "a number, or names")
        if not all(isinstance(name, str) for name in given):
            raise TypeError(f"tables must be a number, or names, got {_check.shown(tables)}")
        n, names = len(given), json.dumps(given, ensure_ascii=False)
    spec = resolve(
        method, None, dim, num_bytes=num_bytes, num_params=num_params, seed=seed, tables=n, names=names, **settings
    )
    return TieredCollection(SharedState(spec))


def resolve(
    method: str, vocab: int | None, dim: int, *, num_params: int | None = None, num_bytes: int | None = None,
    n_chunks: int | None = None, rank: int | str | None = None, codec: str | None = None, rounding: str | None = None,
    seed: int = 0, **options: Any,
) -> TableSpec:  # fmt: skip
    """The spec that `make_table` makes a table of."""
    method, implied = resolved(_check.instance("method", method, str, "a method's name"))
    options = {**implied, **options}
    rule = get_method(method)
    coder = get_codec(rule.default_codec if codec is None else codec)
    check_codec(rule, coder)
    dim = _check.size("dim", dim, 1, MOST_DIM)
    seed = _check.seed(seed)
    if vocab is not None:
        vocab = _check.integer("vocab", vocab, 1, MOST_IDS)
    if num_params is not None and num_bytes is not None:
        raise ValueError("give num_params or num_bytes, not both")
    if rule.budgeted and num_params is None and num_bytes is None:
        raise ValueError(f"method {method!r} needs a budget: num_params= or num_bytes=")
    chosen = checked_options(rule, {**rule.options, **options})
    request = Request(
        vocab=vocab,
        dim=dim,
        rank=0,
        n_chunks=checked_chunks(rule, chosen, n_chunks, dim, "dim"),
        num_params=None if num_params is None else _check.size("num_params", num_params, 1, _MOST),
        num_bytes=None if num_bytes is None else _check.size("num_bytes", num_bytes, 1, _MOST),
        options=chosen,
        codec=coder,
    )
    rounding = _check.choice("rounding", rule.default_rounding if rounding is None else rounding, ROUNDINGS)

    def resolve(request: Request) -> TableSpec:
        request = _with_rank(rule, request, rank)
        return TableSpec(
            method=rule.name,
            vocab=vocab,
            dim=dim,
            rank=request.rank,
            n_chunks=request.n_chunks,
            sizes=rule.sizes(request),
            seed=seed,
            options=tuple(sorted(request.options.items())),
            codec=coder.name,
            rounding=rounding,
        )

    spec = within_full(rule, request, resolve) if rule.budgeted and vocab is not None else resolve(request)
    nbytes = rule.nbytes(spec)
    if not rule.budgeted and vocab is not None and nbytes > 4 * vocab * dim:
        _check.warn(
            f"this {method!r} table of rank {spec.rank} has {nbytes:,} bytes, more than the {4 * vocab * dim:,} of the full one: "
            "leave rank out, or take less. method='full' gives every id a row of its own for these bytes"
        )
    if nbytes > _MEMORY:
        raise ValueError(
            f"this {method!r} table would take {nbytes:,} bytes, more than any memory: give it a smaller vocab, dim, num_params "
            "or num_bytes"
        )
    return spec


def within_full(rule: Method, request: Request, resolve: Callable[[Request], TableSpec]) -> TableSpec:
    """The spec of the largest table within the budget that stores no more bytes than the full table; a warning where they differ.

    Where even the least that the method takes is more than that, it is the least.
    """
    assert request.vocab is not None
    params, nbytes = request.vocab * request.dim, 4 * request.vocab * request.dim
    in_params = request.num_params is not None
    asked = (request.num_params if in_params else request.num_bytes) or 0
    most = min(asked, params if in_params else nbytes)

    def of(budget: int) -> TableSpec | None:
        try:
            return resolve(
                dataclasses.replace(request, num_params=budget)
                if in_params
                else dataclasses.replace(request, num_bytes=budget)
            )
        except BudgetError:
            return None

    def fits(spec: TableSpec) -> bool:
        return rule.nbytes(rule.served(spec)) <= nbytes

    spec = of(most)
    if spec is not None and fits(spec) and most == asked:
        return spec
    if spec is None or not fits(spec):
        if spec is None and of(asked) is None:
            resolve(request)  # says what would fit
        least = _first(lambda budget: of(budget) is not None, 1, asked)
        spec = of(least)
        assert spec is not None
        if fits(spec) and least < most:

            def too_large(budget: int) -> bool:
                tried = of(budget)
                return tried is not None and not fits(tried)

            spec = of(_first(too_large, least + 1, most) - 1)
            assert spec is not None
    stored = rule.nbytes(rule.served(spec))
    outcome = (
        f"this one is kept within that, at {stored:,} bytes"
        if stored <= nbytes
        else f"even the smallest of this kind, at {stored:,} bytes, is larger"
    )
    _check.warn(
        f"{request.budget} for {rule.name!r}: the full table of vocab {request.vocab:,} and dim {request.dim} has {params:,} "
        f"parameters and {nbytes:,} bytes; {outcome}. method='full' gives every id a row of its own for these bytes"
    )
    return spec


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The first of [low, high] where `holds`, which it does at `high` and from some number on."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _with_rank(rule: Method, request: Request, rank: int | str | None) -> Request:
    """The request with its rank: as given, or the method's own choice."""
    rule.check(request)
    if rank is None or (isinstance(rank, str) and rank == "auto"):
        rank = rule.rank(request)
    elif isinstance(rank, str):
        raise ValueError(f'rank must be a whole number or "auto", got {rank!r}')
    rank = checked_rank(rule, rank, request.dim)
    checked_chunks(rule, request.options, request.n_chunks, rank or request.dim, "rank" if rank else "dim")
    request = dataclasses.replace(request, rank=rank)
    rule.check(request)
    return request
