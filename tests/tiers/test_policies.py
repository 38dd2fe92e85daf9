"""Rules of admission and eviction, all small cases, against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from reference import owners as naive

from cce_core._jit import COMPILED
from cce_core.tiers import Policy, policies

_NONE = np.empty(0, np.uint8)


@pytest.mark.parametrize("eviction", policies.EVICTIONS)
@pytest.mark.parametrize("grace", [0, 8])
def test_the_victim_of_every_three_candidates(eviction, grace):
    """All counts, last steps and times of grace of three rows, in every order; one of them may be out of the question."""
    policy = Policy(eviction=eviction, grace=grace, ttl=1)
    kinds = list(itertools.product((0, 3), (1, 2, 3), (0, 2) if grace else (0,)))
    for rows in itertools.product(kinds if COMPILED else kinds[::2], repeat=3):
        counts, seen, young = map(list, zip(*rows))
        for order in ((0, 1, 2), (2, 1, 0), (1, -1, 2), (-1, -1, -1)):
            found = policies.victim(
                policy.rule,
                np.array(order),
                np.array(counts, np.uint8),
                np.array(seen, np.uint32) if policy.uses_steps else _NONE.astype(np.uint32),
                np.array(young, np.uint8) if grace else _NONE,
                4,
            )
            wanted = naive.victim(policy, [row for row in order if row >= 0], counts, seen, young, 4)
            assert found == (-1 if wanted is None else wanted)


@pytest.mark.parametrize("admission", policies.ADMISSIONS)
def test_every_small_newcomer(admission):
    for lead, threshold, count, rival in itertools.product((1, 2), (1, 3), range(6), range(6)):
        policy = Policy(admission, lead=lead, admit_threshold=threshold, admit_probability=0.5)
        for chance in (0.0, 0.49, 0.5, 0.99):
            worth = policies.is_worth(policy.rule, count, chance)
            assert bool(worth) == naive.is_worth(policy, count, chance)
        assert bool(policies.wins(policy.rule, count, rival)) == naive.wins(policy, count, rival)


def test_draws_are_uniform_and_differ_by_id_and_step():
    n = 20_000 if COMPILED else 500
    draws = np.array([[policies.draw(np.uint64(i), np.uint64(coin)) for i in range(n)] for coin in (1, 2)])
    assert 0 <= draws.min() < draws.max() < 1
    assert np.abs(draws.mean(1) - 0.5).max() < 5 * (1 / 12 / n) ** 0.5
    assert abs(np.corrcoef(draws)[0, 1]) < 5 * n**-0.5
    assert draws[0, 0] == policies.draw(np.uint64(0), np.uint64(1))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"admission": "coin"}, "admission must be one of duel, frequency, probability; got 'coin'"),
        ({"eviction": "fifo"}, "eviction must be one of lfu_decay, lfu, lru, ttl; got 'fifo'"),
        ({"half_life": 0}, "half_life must be between 1 and"),
        ({"lead": 0}, "lead must be between 1 and 255, got 0"),
        ({"grace": -1}, "grace must be between 0 and"),
        ({"admit_threshold": 256}, "admit_threshold must be between 1 and 255, got 256"),
        ({"admit_probability": 1.5}, "admit_probability must be at least 0 and at most 1, got 1.5"),
        ({"ttl": 0}, "ttl must be between 1 and"),
    ],
)
def test_bad_settings_say_what_is_wrong(setting, message):
    with pytest.raises(ValueError, match=message):
        Policy(**setting)
