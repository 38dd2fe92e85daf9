"""Who is given an own row, and who gives one up: rules over a few numbers of each row, without any state of their own.

    score      lfu, lfu_decay: the row's count (of the latter halved at each half-life)      lru, ttl: the step it was last met
    may go     not in its time of grace; and for ttl, not met for more than `ttl` steps
    victim     of the newcomer's candidates that may go the one of the least score, the first of equal ones
    is worth   duel: always      frequency: count ≥ threshold      probability: a draw by id and step < probability
    wins       is worth it, and a row is free; or a victim is there, and for the duel count ≥ the victim's count + lead

A duel needs no threshold: rows are given at first sight while they are free, and then to whoever is met more often than an owner.
`lead` is its hysteresis, without which two ids met equally often would take one row from each other for ever.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from cce_core import _check
from cce_core._jit import jit
from cce_core.hashing.mix import keyed, premix

ADMISSIONS = DUEL, FREQUENCY, PROBABILITY = "duel", "frequency", "probability"
EVICTIONS = LFU_DECAY, LFU, LRU, TTL = "lfu_decay", "lfu", "lru", "ttl"
_DUEL, _FREQUENCY = 0, 1
_LFU, _LRU, _TTL = 1, 2, 3
MOST_STEPS = 2**62
MOST_COUNT = 255
_SHIFT = np.uint64(11)
_NO_VICTIM = np.int64(-1)


@dataclasses.dataclass(frozen=True)
class Policy:
    """The rules of admission and eviction, checked.

    Args:
        admission: "duel" (with the owner that would go), "frequency" (a count is reached) or "probability" (a draw each time).
        eviction: "lfu_decay" (least often met lately), "lfu" (least often met), "lru" (met longest ago) or "ttl" (not met for
            `ttl` steps; nobody else goes).
        half_life: steps after which counts are halved, of candidates too, and of owners but for "lfu". None: whenever candidates
            have five counts for each row, which suits batches and tables of any size.
        lead: by how much a duel must be won, at least 1.
        grace: steps for which a new owner keeps its row whatever comes; rounded up to a multiple of 4, and up to a quarter more.
        admit_threshold: the count of "frequency", 1 to 255.
        admit_probability: the chance of "probability", of each step in which the id is met.
        ttl: the steps of "ttl".

    Raises:
        TypeError, ValueError: an unknown name, or a number out of range.

    Example:
        >>> from cce_core.tiers import Policy
        >>> Policy(half_life=500).eviction
        'lfu_decay'
        >>> Policy(admission="luck")
        Traceback (most recent call last):
        ...
        ValueError: admission must be one of duel, frequency, probability; got 'luck'
    """

    admission: str = DUEL
    eviction: str = LFU_DECAY
    half_life: int | None = None
    lead: int = 2
    grace: int = 0
    admit_threshold: int = 2
    admit_probability: float = 0.1
    ttl: int = 1000

    def __post_init__(self) -> None:
        _check.choice("admission", self.admission, ADMISSIONS)
        _check.choice("eviction", self.eviction, EVICTIONS)
        if self.half_life is not None:
            _check.integer("half_life", self.half_life, 1, MOST_STEPS)
        _check.integer("lead", self.lead, 1, MOST_COUNT)
        _check.integer("grace", self.grace, 0, MOST_STEPS)
        _check.integer("admit_threshold", self.admit_threshold, 1, MOST_COUNT)
        _check.number("admit_probability", self.admit_probability, 0.0, 1.0)
        _check.integer("ttl", self.ttl, 1, MOST_STEPS)

    @property
    def uses_steps(self) -> bool:
        """Whether it must be known when each row was last met."""
        return self.eviction in (LRU, TTL)

    @property
    def cell_bits(self) -> int:
        """Of a candidate's count: 4, or 8 if a rule asks for more than 15 can tell. In as many bytes smaller cells are more, and
        so fewer ids share one.
        """
        wanted = self.admit_threshold if self.admission == FREQUENCY else self.lead
        return 4 if wanted <= 12 else 8

    @property
    def rule(self) -> tuple[Any, ...]:
        """As the compiled functions take it."""
        return (
            ADMISSIONS.index(self.admission), EVICTIONS.index(self.eviction), self.lead, self.admit_threshold,
            float(self.admit_probability), self.ttl,
        )  # fmt: skip


@jit
def draw(word: np.uint64, coin: np.uint64) -> np.float64:
    """A number in [0, 1), a pure function of an id and of the step's key."""
    return np.float64(keyed(premix(word), coin) >> _SHIFT) * 2.0**-53


@jit
def is_worth(rule: Any, count: int, chance: np.float64) -> bool:
    """Whether a newcomer of that count, and of that draw, is to be given a row if one is free."""
    if rule[0] == _DUEL:
        return True
    if rule[0] == _FREQUENCY:
        return count >= rule[3]
    return chance < rule[4]


@jit
def victim(rule: Any, candidates: Any, counts: Any, seen: Any, young: Any, now: int) -> np.int64:
    """Whose row may go, of the candidates; −1 if nobody's may.

    Args:
        rule: `Policy.rule`.
        candidates: row numbers; negative ones are not considered.
        counts: of all rows.
        seen: the step in which each was last met; empty if the rule does not ask.
        young: what is left of each row's time of grace; empty without one.
        now: the present step.
    """
    best, least = _NO_VICTIM, np.int64(0)
    for row in candidates:
        if row < 0 or (len(young) > 0 and young[row] > 0):
            continue
        score = np.int64(seen[row]) if rule[1] >= _LRU else np.int64(counts[row])
        if rule[1] == _TTL and now - score <= rule[5]:
            continue
        if best < 0 or score < least:
            best, least = np.int64(row), score
    return best


@jit
def wins(rule: Any, count: int, rival: np.int64) -> bool:
    """Whether a newcomer that is worth a row takes that of a victim of that count."""
    return rule[0] != _DUEL or count >= rival + rule[2]
