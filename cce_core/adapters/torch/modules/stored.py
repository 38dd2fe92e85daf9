"""Modules whose memory lies in its codec while it is trained: codes and scales are buffers, and the parameter has no numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Self

import torch
from torch import Tensor

from cce_core.adapters.torch import guard
from cce_core.adapters.torch.modules.states import Stated
from cce_core.adapters.torch.operators import stored
from cce_core.adapters.torch.operators.arrays import Device
from cce_core.adapters.torch.operators.facts import MEMORY, part_of
from cce_core.adapters.torch.optim.codes import refuse_others


class Stored(Stated):
    """A module that may be of that kind, as `_facts.stored` says.

    `codes` are uint8, the bytes of what the codec makes of the memory, and `scales` float32. States hold both in place of the
    parameter `memory`, which is there for its gradient, and for the fused optimisers, that find the codes by it.
    """

    codes: Tensor
    scales: Tensor

    def _store(self, arrays: Mapping[str, Tensor], device: Device, dtype: torch.dtype) -> None:
        """Make codes and scales the module's own, and the parameter that stands for them."""
        if dtype != torch.float32:
            raise ValueError(f"rounding='stochastic' trains codes, by steps in torch.float32, not {dtype}")
        for name in ("codes", "scales"):
            self.register_buffer(name, arrays[name].to(device, copy=True))
        layout = part_of(self._facts.text, MEMORY).layout
        empty = torch.empty(0, dtype=dtype, device=device)
        self.register_parameter(MEMORY, torch.nn.Parameter(stored.hollow(layout.n_units, layout.unit, empty)))

    def _hollow(self) -> None:
        """Take back the room that a copy or a move has given to the parameter."""
        if self._facts.stored:
            memory = self._parameters[MEMORY]
            assert memory is not None
            if not stored.is_hollow(memory):
                memory.data = stored.hollow(memory.shape[0], memory.shape[1], memory)
            stored.own(self)
            refuse_others()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As for every module."""
        super()._apply(fn, recurse)
        self._hollow()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._hollow()

    def _save_to_state_dict(self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool) -> None:
        """As for every module, without a parameter that has no numbers."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._facts.stored:
            del destination[prefix + MEMORY]

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Any], prefix: str, *rest: Any) -> None:
        """Likewise."""
        if not self._facts.stored:
            return super()._load_from_state_dict(state_dict, prefix, *rest)
        with guard.writing(self), guard.changing():
            memory: Any = self._parameters.pop(MEMORY)
            try:
                super()._load_from_state_dict(state_dict, prefix, *rest)
            finally:
                if memory.device != self.codes.device:  # they were assigned, where the module had shapes alone
                    data = stored.hollow(memory.shape[0], memory.shape[1], self.codes.new_empty(0, dtype=memory.dtype))
                    memory = torch.nn.Parameter(data, memory.requires_grad)
                others = dict(self._parameters)
                self._parameters.clear()
                self._parameters |= {MEMORY: memory, **others}
