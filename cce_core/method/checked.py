"""What a table's spec may say. What `make_table` asks of callers is asked of files and states, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cce_core import _check
from cce_core.method import get_method
from cce_core.method.base import Method, Request, checked_chunks
from cce_core.method.spec import ROUNDINGS, TableSpec
from cce_core.storage.codec import Codec
from cce_core.storage.codec import codec as get_codec

MOST_DIM, MOST_IDS = 2**24, 2**48


def checked(spec: TableSpec) -> TableSpec:
    """The spec, if `make_table` makes it for some budget.

    Nothing is made of a number before it is within its bounds, so that it costs a few comparisons whatever the spec says.

    Raises:
        TypeError: a field is of another type.
        ValueError: a field is out of range, or fields contradict each other.
    """
    for name in ("method", "codec", "rounding"):
        if not isinstance(getattr(spec, name), str):
            raise TypeError(f"{name} must be text, got {type(getattr(spec, name)).__name__}")
    rule = get_method(spec.method)
    check_codec(rule, get_codec(spec.codec))
    _check.choice("rounding", spec.rounding, ROUNDINGS)
    for name, least, most in (("dim", 1, MOST_DIM), ("n_chunks", 1, MOST_DIM), ("seed", 0, 2**64 - 1)):
        _check.integer(name, getattr(spec, name), least, most)
    if spec.vocab is not None:
        _check.integer("vocab", spec.vocab, 1, MOST_IDS)
    for j, size in enumerate(spec.sizes):
        _check.integer(f"sizes[{j}]", size, 1, MOST_IDS)
    checked_rank(rule, spec.rank, spec.dim)
    options = checked_options(rule, dict(spec.options))
    request = Request.of(spec)
    rule.check(request)
    if checked_chunks(rule, options, spec.n_chunks, spec.inner, "rank" if spec.rank else "dim") != spec.n_chunks:
        raise ValueError(f"method {rule.name!r} has no chunks: n_chunks must be 1, got {spec.n_chunks}")
    rule.check_sizes(request, spec.sizes)
    return spec


def checked_options(rule: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options in full, as the plain types that files hold."""
    known = ", ".join(rule.options) or "none"
    if unknown := sorted(set(options) - set(rule.options)):
        raise ValueError(f"unknown option {unknown[0]!r} for method {rule.name!r}; its own options are: {known}")
    if missing := sorted(set(rule.options) - set(options)):
        raise ValueError(f"option {missing[0]!r} of method {rule.name!r} is missing; its options are: {known}")
    chosen = {name: v.item() if isinstance(v, np.generic) else v for name, v in options.items()}
    for name, default in rule.options.items():
        if isinstance(default, bool) and not isinstance(chosen[name], bool):
            raise TypeError(f"{name} must be True or False, got {chosen[name]!r}")
    return chosen


def check_codec(rule: Method, coder: Codec) -> None:
    """Refuse a codec for a method that takes none."""
    if coder.name != "float32" and not rule.codecs:
        raise ValueError(
            f"method {rule.name!r} keeps its numbers in float32: leave codec out, or choose another method"
        )


def checked_rank(rule: Method, rank: Any, dim: int) -> int:
    """The rank, if the method takes it."""
    rank = _check.integer("rank", rank, 0, dim)
    if rank and not rule.projects:
        raise ValueError(f"method {rule.name!r} takes no rank: its vectors are not read from a memory; leave rank out")
    return rank
