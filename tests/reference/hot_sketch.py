"""Naive twin of CAFE's sketch: buckets as lists of [key, score], one id after the other."""

from __future__ import annotations


class Buckets:
    """Four slots per bucket; an id takes a free one, or that of the least score, and its score with it."""

    def __init__(self, n: int, slots: int = 4) -> None:
        self.slots = [[[None, 0.0, None] for _ in range(slots)] for _ in range(n)]

    def add(self, bucket: int, key: int, score: float):
        """Add to a key's score; the row of whoever lost the slot, or None."""
        slots = self.slots[bucket]
        for slot in slots:
            if slot[0] == key:
                slot[1] += score
                return None
        least = next((slot for slot in slots if slot[0] is None), None) or min(slots, key=lambda slot: slot[1])
        row = least[2]
        least[:] = [key, least[1] + score, None]
        return row
