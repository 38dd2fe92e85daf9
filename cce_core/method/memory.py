"""The memory of a table as it is kept, and the float32 values that are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core.hashing.mix import derive_key
from cce_core.method.spec import ROUNDING, ROUNDINGS, TableSpec
from cce_core.sketching.descriptors import Memory
from cce_core.storage.codec import BLOCK, FLOAT32, INT4, NOTHING_LEFT, codec

_UNITS = 512  # whose blocks are float32 values at a time
Change = Callable[[NDArray[np.float32], NDArray[np.uint64], Any], None]


class QuantizedMemory:
    """Codes and scales, and, while training with a codec, float32 values behind them.

    With straight-through rounding the values are kept between steps: lookups read the rounded ones, gradients move the exact
    ones. With stochastic rounding they exist during a step alone, and what a step leaves over is rounded at random.

    Steps of int4 are too coarse for that: a move by d that is rounded at random to steps of q adds a variance of d · q, and
    training drowned in it (AUC on Gowalla, 4 epochs: 0.716, straight-through 0.837). So of int4 the sixteenths of a step that
    the nearest code leaves over are kept while training, in 4 bits a float, and these are rounded at random.

    Args:
        spec: names the codec and the rounding.
        size: floats.
        codes, scales: as `Codec.encode` gives them; scales may be empty.

    Attributes:
        rounds: how often values were rounded; each round draws its own numbers.
    """

    def __init__(self, spec: TableSpec, size: int, codes: Any, scales: Any) -> None:
        self.codec, self.size, self.codes, self.scales = codec(spec.codec), size, codes, scales
        self._stochastic, self._seed, self.rounds = spec.rounding == ROUNDINGS[1], spec.seed, 0
        self._master: NDArray[np.float32] | None = codes if self.codec.number == FLOAT32 else None
        self._remainders: NDArray[np.uint8] | None = None
        self.codes_view = Memory(self.codec.number, codes, scales)

    def master(self) -> NDArray[np.float32]:
        """The trained values, float32 (size,): the array itself, or, with a codec, those that `requantize` will round."""
        if self._master is None:
            self._master = self._values()
        return self._master

    def _values(self, blocks: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """What training goes on from, decoded: of all, or of some blocks of 64 floats."""
        if self._remainders is None and blocks is None:
            return self.decoded()
        return self.codec.decode(self.codes, self.scales, self.size, blocks, self._remainders)

    def decoded(self) -> NDArray[np.float32]:
        """What lookups read, float32 (size,): the array itself, or, with a codec, a decoded copy."""
        return self.codes if self.codec.number == FLOAT32 else self.codec.decode(self.codes, self.scales, self.size)

    def reload(self) -> None:
        """Forget the values behind the codes, which were written over."""
        self._remainders = None
        if self.codec.number != FLOAT32:
            self._master = None

    def requantize(self) -> None:
        """Round the trained values into the codes, where they have changed since they were asked for."""
        if self._master is None or self.codec.number == FLOAT32:
            return
        key = self._next_key()
        self.codec.encode_into(self._master, self.codes, self.scales, key, self._remainders)
        if self._stochastic:
            self._master = None

    def update_rows(self, index: NDArray[np.int64], unit: int, change: Change) -> int:
        """With a codec: have some units changed, and round the blocks of 64 floats in which they lie, and no others.

        Args:
            index: the units, each once.
            unit: floats of each.
            change: is given float32 values, where in them some of the units begin, and which of them these are.

        Returns:
            Most bytes of the values that were made for this alone, a few hundred units at a time.
        """
        if not self._stochastic:
            self.master()
        first = index * unit
        if self._master is not None:
            change(self._master, first.view(np.uint64), slice(None))
            if self._stochastic:  # somebody has asked for the values, and may have changed any
                self.requantize()
            else:
                self.codec.encode_blocks(_blocks(first, unit), self._master, self.size, self.codes, self.scales)
            return 0
        key, most, order, start = self._next_key(), 0, np.argsort(first), 0
        low = first[order] // BLOCK
        ends = np.append(np.flatnonzero(low[1:] > (first[order[:-1]] + unit - 1) // BLOCK) + 1, len(order))
        while start < len(order):  # parts that share no block
            stop = int(ends[min(int(np.searchsorted(ends, start + _UNITS)), len(ends) - 1)])
            part, start = order[start:stop], stop
            blocks, begin = _blocks(first[part], unit), first[part]
            values = self._values(blocks)
            change(values, (np.searchsorted(blocks, begin // BLOCK) * BLOCK + begin % BLOCK).view(np.uint64), part)
            self.codec.encode_blocks(blocks, values, self.size, self.codes, self.scales, key, self._remainders)
            most = max(most, values.nbytes)
        return most

    def read_rows(self, index: NDArray[np.int64], unit: int, exact: bool = True) -> NDArray[np.float32]:
        """The values of some units, float32 (n, unit): what training goes on from; or, not `exact`, what lookups read."""
        if self._master is not None and (exact or self.codec.number == FLOAT32):
            return self._master.reshape(-1, unit)[index]
        first = index * unit
        blocks = _blocks(first, unit)
        values = self._values(blocks) if exact else self.codec.decode(self.codes, self.scales, self.size, blocks)
        at = np.searchsorted(blocks, first // BLOCK) * BLOCK + first % BLOCK
        return values[at[:, None] + np.arange(unit)]

    def _next_key(self) -> int | None:
        """Of the draws of one more rounding."""
        self.rounds += 1
        if self._stochastic and self.codec.number == INT4 and self._remainders is None:
            self._remainders = np.full(len(self.codes), NOTHING_LEFT, np.uint8)
        return derive_key(self._seed, ROUNDING, self.rounds) if self._stochastic else None

    def updates(self, values: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """What must be copied where to make `values` the memory: (to, from) for codes, scales, trained values and remainders."""
        codes, scales = (values, self.scales) if self.codec.number == FLOAT32 else self.codec.encode(values)
        remainders = np.empty(0, np.uint8) if self._remainders is None else self._remainders
        left = np.full_like(remainders, NOTHING_LEFT)
        if self._master is None or self.codec.number == FLOAT32:
            return self.codes, codes, self.scales, scales, self.scales[:0], self.scales[:0], remainders, left
        if self._stochastic:  # what somebody has asked for and not settled: no more than the codes know
            values = self.codec.decode(codes, scales, self.size)
        return self.codes, codes, self.scales, scales, self._master, values, remainders, left

    @property
    def training_bytes(self) -> int:
        """Bytes of the values that are held beside the codes."""
        return 0 if self._master is None or self.codec.number == FLOAT32 else self._master.nbytes

    @property
    def held(self) -> dict[str, int]:
        """Bytes by kind of what is held beside the codes while training."""
        left = {} if self._remainders is None else {"remainders": self._remainders.nbytes}
        return {"values": self.training_bytes, **left}


def _blocks(first: NDArray[np.int64], unit: int) -> NDArray[np.int64]:
    """The blocks of 64 floats that units reach into, in order: those of one unit follow each other."""
    low, high = first // BLOCK, (first + unit - 1) // BLOCK
    most = int((high - low).max(initial=0))
    return np.unique(np.concatenate([np.minimum(low + k, high) for k in range(most + 1)]))
