"""What an optimiser knows of a parameter, and what the fused loops ask of an optimiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cce_core._arrays import Floats
from cce_core.method.state import TableState
from cce_core.tables.collection import Collection


@dataclasses.dataclass
class State:
    """What an optimiser knows of one parameter: how many steps it has taken, and arrays such as moments.

    Attributes:
        step: steps so far.
        arrays: by name.
        projection: whether the parameter is a projection, which may have a learning rate of its own.
    """

    step: int = 0
    arrays: dict[str, NDArray[Any]] = dataclasses.field(default_factory=dict)
    projection: bool = False

    def array(self, name: str, size: int) -> NDArray[np.float32]:
        """The array of that name, zeros when it is first asked for."""
        if name not in self.arrays:
            self.arrays[name] = np.zeros(size, np.float32)
        return self.arrays[name]

    def halves(self, name: str, size: int) -> NDArray[np.float32]:
        """The same of bfloat16 numbers, two in the room of each float32: for compiled loops, which read them as what they are."""
        if name not in self.arrays:
            self.arrays[name] = np.zeros(size + size % 2, np.uint16)
        return self.arrays[name].view(np.float32)


class Fused(Protocol):
    """An optimiser as the fused loops see it; each of these stands with `Optimizer`."""

    kernel_id: Any
    max_norm: float | None
    projection_lr: float | None
    last: tuple[Callable[[], Any], list[int], list[Any]]

    def updates_all(self) -> bool: ...

    def constants(self, step: int, lr: float | None = None) -> tuple[float, ...]: ...

    def prepare(self, both: Collection, now: list[int], make: Callable[[Any, Collection, Any], Any]) -> list[Any]: ...

    def state_of(self, table: TableState, name: str) -> State: ...

    def states_of_memory(self, table: TableState) -> list[NDArray[np.float32]]: ...

    def state_arrays(self, size: int, unit: int, state: State) -> list[NDArray[np.float32]]: ...

    def state_bytes(self, table: TableState) -> int: ...

    def apply(self, p: Floats, index: NDArray[np.int64] | None, g: Floats, unit: int, state: State) -> None: ...

    def apply_gradients(self, gradients: Sequence[tuple[TableState, dict[str, Any]]]) -> None: ...
