"""Naive twin of the stream of clicks: plain Python's integers, one row at a time."""

from __future__ import annotations

import math

from reference import datasets as base


def holder(n: int, keys, n_slots: int, zipf: float, minute: int, lifetime: float, returning: float) -> int:
    """The id of one side in row n; `keys` are that side's six."""
    slot = base.zipf_rank(base.uniform(base.hashed(n, keys[0])), n_slots, zipf)
    tenure = int(max(1.0, minute * lifetime ** base.uniform(base.hashed(slot, keys[1]))))
    x = n + base.hashed(slot, keys[2]) % tenure
    number = x // tenure
    if base.uniform(base.hashed(n, keys[4])) * tenure < x % tenure:
        number += 1
    if base.uniform(base.hashed(slot, keys[3])) < returning:
        number %= 3
    return base.hashed(base.hashed(slot, keys[5]) ^ number, keys[5])


def row(n: int, sides, keys, spec):
    """Row n: (user, item, probability, label)."""
    law = spec.minute, spec.lifetime, spec.returning
    user = holder(n, sides[:6], spec.n_users, spec.user_zipf, *law)
    item = holder(n, sides[6:], spec.n_items, spec.zipf, *law)
    p = base.probability(user, item, keys, spec.dim, *scales(spec))
    return user, item, p, 1.0 if base.uniform(base.hashed(n, keys[0])) < p else 0.0


def scales(spec):
    """Scale, center and bias of `probability`: the dot product has deviation √(dim (1 + 2 center²)) and mean dim center²."""
    unit = spec.scale / math.sqrt(1 + 2 * spec.center**2)
    bias = math.log(spec.rate / (1 - spec.rate)) - unit * math.sqrt(spec.dim) * spec.center**2
    return unit, spec.center, bias
