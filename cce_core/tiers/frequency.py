"""How often ids without end were met lately, in a given number of bytes: count-min, updated conservatively, halved by steps.

    cells of an id   one in each of `depth` rows of `width` cells, by `depth` hashes
    met              of these cells those that hold the least of them go up by one       (all of them in a plain count-min)
    estimate         the least of them
    every half-life  every cell is halved, 1 becomes 0

So an estimate is never below what a counter of the id's own would hold, halved at the same steps: collisions only add. Cells are
packed at 4 or 8 bits and stop at 15 or 255. Ids that have own rows need no cell: their counters are beside their rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.hashing.mix import derive_keys, keyed, multiply_high, premix
from cce_core.storage.files import digest
from cce_core.storage.packed import read_bits, write_bits

BITS = (4, 8)  # of a cell
_STREAM = 0x736B65746368  # "sketch"
_MOST_DEPTH, _MOST_STEPS = 16, 2**62
_IDS_A_THREAD = 1 << 13
_WORDS_A_THREAD = 1 << 16
_LOW_BITS = {4: np.uint64(0x7777777777777777), 8: np.uint64(0x7F7F7F7F7F7F7F7F)}  # what a halved cell may hold
_one = np.uint64(1)


@jit
def _cell(mixed: np.uint64, keys: Any, row: int, width: np.uint64, bits: np.uint64) -> np.uint64:
    """The first bit of an id's cell in a row."""
    return (np.uint64(row) * width + multiply_high(keyed(mixed, keys[row]), width)) * bits


@jit
def _add_many(ids: Any, keys: Any, words: Any, width: np.uint64, bits: np.uint64) -> None:
    cells, most = np.empty(keys.shape[0], np.uint64), (_one << bits) - _one
    for n in range(ids.shape[0]):
        mixed, least = premix(ids[n]), most
        for row in range(keys.shape[0]):
            cells[row] = _cell(mixed, keys, row, width, bits)
            least = min(least, read_bits(words, cells[row], bits))
        if least < most:
            for row in range(keys.shape[0]):
                if read_bits(words, cells[row], bits) == least:
                    write_bits(words, cells[row], bits, least + _one)


@jit
def _estimate_many(
    start: int, stop: int, ids: Any, keys: Any, words: Any, width: np.uint64, bits: np.uint64, out: Any
) -> None:
    for n in range(start, stop):
        mixed, least = premix(ids[n]), (_one << bits) - _one
        for row in range(keys.shape[0]):
            least = min(least, read_bits(words, _cell(mixed, keys, row, width, bits), bits))
        out[n] = least


@jit
def _halve_many(start: int, stop: int, words: Any, low_bits: np.uint64) -> None:
    for n in range(start, stop):
        words[n] = (words[n] >> _one) & low_bits


class FrequencySketch:
    """Counts of ids that are many more than the bytes could hold, for those that might earn an own row.

        count − 1 < estimate ≤ count + e · N / width       the latter with probability at least 1 − e^−depth, for each id

    where `count` is how often the id was met, an occurrence of s steps ago counting 2^−⌊half-lives since⌋, N is the sum of the
    counts of all ids, and width = cells / depth. Full cells (15 or 255) count no further: the lower bound is that of a counter
    which stops there too. The upper bound is that of a plain count-min; conservative updates never give more, and where most ids
    come once they err about half as much.

    **Why this one.** Candidates must be compared with the owners of rows while all but a few of them are noise. Space-Saving and
    its kin keep the ids themselves, 8 bytes each, before a count; a Count Sketch is right on average, but noise lifts half of
    all rare ids; a Bloom filter before it costs its own bytes and forgets nothing. A conservative count-min errs upwards only,
    and least for those that are met often. Depth 3 was the best of 1 to 6 where there is about one cell per id, or a few.

    Args:
        num_bytes: of all arrays; none is wasted but the rest of a division by 8.
        bits: of a cell, 8 or 4.
        depth: hashes per id, 1 to 16.
        half_life: steps after which all counts are halved; None: no number of steps.
        sample: all counts are halved in the step in which their sum reaches it, as TinyLFU does; None: no sum.
        seed: of the hashes, 0 to 2^64 − 1.
        arrays: those of a sketch of the same sizes and seed, as `arrays` gives them, also mapped from a file. None: new ones.

    Raises:
        TypeError, ValueError: out of range; the least `num_bytes` is named.

    Cost:
        `depth` hashes and reads per id. `estimate` uses all threads and changes nothing; `add` goes through the ids in order on
        one thread, so that the bits never depend on the number of threads. A step costs nothing but once in a half-life: then a
        pass over the bytes.

    Paper:
        Cormode and Muthukrishnan, J. Algorithms 55 (2005); conservative updates: Estan and Varghese, SIGCOMM 2002; halving:
        Einziger et al., TinyLFU, arXiv:1512.00727.

    Example:
        >>> from cce_core.tiers import FrequencySketch
        >>> counts = FrequencySketch(1000, half_life=2)
        >>> counts.add([7, 7, 7, -1])
        >>> counts.estimate([7, -1, 8])
        array([3, 1, 0], dtype=int32)
        >>> counts.step(), counts.step()
        (False, True)
        >>> counts.estimate([7, -1, 8])
        array([1, 0, 0], dtype=int32)
    """

    def __init__(
        self,
        num_bytes: int,
        *,
        bits: int = 8,
        depth: int = 3,
        half_life: int | None = None,
        sample: int | None = None,
        seed: int = 0,
        arrays: dict[str, NDArray[Any]] | None = None,
    ) -> None:
        if _check.integer("bits", bits, 1) not in BITS:
            raise ValueError(f"bits must be 4 or 8, got {bits}")
        self.bits, self.depth, self.seed = int(bits), _check.integer("depth", depth, 1, _MOST_DEPTH), _check.seed(seed)
        self.half_life = None if half_life is None else _check.integer("half_life", half_life, 1, _MOST_STEPS)
        self.sample = None if sample is None else _check.integer("sample", sample, 1, _MOST_STEPS)
        n_words = _check.size("num_bytes", num_bytes) // 8 - 2
        self.width = n_words * 64 // self.bits // self.depth
        if self.width < 1:
            least = 16 + 8 * -(-self.depth * self.bits // 64)
            raise ValueError(f"num_bytes must be at least {least} for {depth} cells of {bits} bits, got {num_bytes:,}")
        expected = {"words": (np.uint64, (n_words,)), "clock": (np.int64, (2,))}
        if arrays is None:
            arrays = {name: np.zeros(shape, dtype) for name, (dtype, shape) in expected.items()}
        _check.instance("arrays", arrays, dict, "a dict of arrays")
        for name, (dtype, shape) in expected.items():
            array = _check.instance(name, arrays.get(name), np.ndarray, "an array")
            if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
                raise ValueError(
                    f"{name} must be a contiguous {np.dtype(dtype)} array of shape {shape}, as arrays() of a sketch of as "
                    f"many bytes gives it; got {array.dtype} {array.shape}"
                )
        self.words, self.clock = arrays["words"], arrays["clock"]
        for name, value in zip(("the step", "the sum of counts"), self.clock.tolist()):
            _check.integer(name, value, 0, _MOST_STEPS)
        keys = derive_keys(self.seed, self.depth, _STREAM)
        self._args = keys, self.words, np.uint64(self.width), np.uint64(self.bits)

    def __repr__(self) -> str:
        steps = "" if self.half_life is None else f", halved every {self.half_life:,} steps"
        sums = "" if self.sample is None else f", halved at {self.sample:,} counts"
        return f"<FrequencySketch: {self.depth} × {self.width:,} cells of {self.bits} bits{steps}{sums}>"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays themselves, not copies: what is saved."""
        return {"words": self.words, "clock": self.clock}

    def digest(self) -> str:
        """16 hexadecimal digits that equal sketches share."""
        return digest(self.arrays(), f"{self.bits} {self.depth} {self.half_life} {self.sample} {self.seed}")

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.words.nbytes + self.clock.nbytes

    @property
    def mass(self) -> int:
        """N, the sum of the counts of all ids, rounded down at each half-life."""
        return int(self.clock[1])

    @property
    def largest(self) -> int:
        """Where cells stop counting."""
        return 2**self.bits - 1

    def add(self, ids: Any) -> None:
        """Count every occurrence of ids, in order.

        Raises:
            TypeError: ids are not integers.
            ValueError: the sketch is read-only. Nothing is changed by either.
        """
        given = _check.as_ids(ids)
        self._writeable()
        _add_many(given.reshape(-1), *self._args)
        self.clock[1] += given.size

    def estimate(self, ids: Any) -> NDArray[np.int32]:
        """How often ids were met lately: int32 in the shape of ids, 0 to 15 or 255."""
        given = _check.as_ids(ids)
        out = np.empty(given.shape, np.int32)
        parallel_for(_estimate_many, given.size, _IDS_A_THREAD, given.reshape(-1), *self._args, out.reshape(-1))
        return out

    def step(self) -> bool:
        """Let the clock go on by one step.

        Returns:
            Whether all counts were halved.
        """
        self._writeable()
        self.clock[0] += 1
        now, mass = self.clock.tolist()
        ends = (self.half_life is not None and now % self.half_life == 0) or (
            self.sample is not None and mass >= self.sample
        )
        if ends:
            parallel_for(_halve_many, len(self.words), _WORDS_A_THREAD, self.words, _LOW_BITS[self.bits])
            self.clock[1] >>= 1
        return ends

    def _writeable(self) -> None:
        if not self.words.flags.writeable or not self.clock.flags.writeable:
            raise ValueError("the sketch is read-only, as it is mapped from a file: make it of copies to change it")
