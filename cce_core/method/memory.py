"""The memory of a table as it is kept, and the float32 values that are trained."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core.hashing.mix import derive_key
from cce_core.method.spec import ROUNDING, ROUNDINGS, TableSpec
from cce_core.sketching.descriptors import Memory
from cce_core.storage.codec import FLOAT32, codec


class QuantizedMemory:
    """Codes and scales, and, while training with a codec, float32 values behind them.

    With straight-through rounding the values are kept between steps: lookups read the rounded ones, gradients move the exact
    ones. With stochastic rounding they exist during a step alone, and what a step leaves over is rounded at random.

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
        self.codes_view = Memory(self.codec.number, codes, scales)

    def master(self) -> NDArray[np.float32]:
        """The trained values, float32 (size,): the array itself, or, with a codec, those that `requantize` will round."""
        if self._master is None:
            self._master = self.decoded()
        return self._master

    def decoded(self) -> NDArray[np.float32]:
        """What lookups read, float32 (size,): the array itself, or, with a codec, a decoded copy."""
        return self.codes if self.codec.number == FLOAT32 else self.codec.decode(self.codes, self.scales, self.size)

    def requantize(self) -> None:
        """Round the trained values into the codes, where they have changed since they were asked for."""
        if self._master is None or self.codec.number == FLOAT32:
            return
        self.rounds += 1
        key = derive_key(self._seed, ROUNDING, self.rounds) if self._stochastic else None
        self.codec.encode_into(self._master, self.codes, self.scales, key)
        if self._stochastic:
            self._master = None

    def updates(self, values: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """What must be copied where to make `values` the memory: (to, from) for codes, scales and trained values."""
        codes, scales = (values, self.scales) if self.codec.number == FLOAT32 else self.codec.encode(values)
        if self._master is None or self.codec.number == FLOAT32:
            return self.codes, codes, self.scales, scales, self.scales[:0], self.scales[:0]
        if self._stochastic:  # what somebody has asked for and not settled: no more than the codes know
            values = self.codec.decode(codes, scales, self.size)
        return self.codes, codes, self.scales, scales, self._master, values

    @property
    def training_bytes(self) -> int:
        """Bytes of the values that are held beside the codes."""
        return 0 if self._master is None or self.codec.number == FLOAT32 else self._master.nbytes
