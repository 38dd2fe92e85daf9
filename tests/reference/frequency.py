"""Counts of ids from their definitions: count-min, plain and conservative, in lists; and one counter per id."""

from __future__ import annotations

from collections import Counter

from reference.hashing import derive_key, keyed, premix


class Sketch:
    """Rows of cells; conservative unless `plain`."""

    def __init__(self, width, bits=8, depth=3, half_life=None, seed=0, plain=False, sample=None):
        self.rows = [[0] * width for _ in range(depth)]
        self.keys = [derive_key(seed, 0x736B65746368, j) for j in range(depth)]
        self.width, self.bits, self.half_life, self.plain, self.clock = width, bits, half_life, plain, 0
        self.sample, self.mass = sample, 0

    def places(self, i):
        mixed = premix(i % 2**64)
        return [keyed(mixed, key) * self.width >> 64 for key in self.keys]

    def estimate(self, i):
        return min(row[at] for row, at in zip(self.rows, self.places(i)))

    def add(self, i):
        self.mass += 1
        least = self.estimate(i)
        for row, at in zip(self.rows, self.places(i)):
            if (self.plain or row[at] == least) and row[at] < 2**self.bits - 1:
                row[at] += 1

    def step(self):
        """Whether counts were halved."""
        self.clock += 1
        if not ((self.half_life and self.clock % self.half_life == 0) or (self.sample and self.mass >= self.sample)):
            return False
        self.rows, self.mass = [[cell // 2 for cell in row] for row in self.rows], self.mass // 2
        return True

    def words(self, n_words):
        """The cells row by row as they lie in memory, low bits first, in 64-bit words."""
        total = sum(cell << self.bits * k for k, cell in enumerate(cell for row in self.rows for cell in row))
        return [total >> 64 * k & 2**64 - 1 for k in range(n_words)]


class Exact:
    """A counter of its own for every id: halved with 1 → 0 and stopping at `most`, and without rounding or end."""

    def __init__(self, half_life=None, most=255):
        self.halved, self.real, self.half_life, self.clock, self.most = Counter(), Counter(), half_life, 0, most

    def add(self, i):
        self.halved[i] = min(self.halved[i] + 1, self.most)
        self.real[i] += 1.0

    def step(self, halve=False):
        self.clock += 1
        if halve or (self.half_life and self.clock % self.half_life == 0):
            for i in self.real:
                self.halved[i] //= 2
                self.real[i] /= 2
