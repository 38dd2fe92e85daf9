"""Modules whose table becomes another: of `vq`, whose ids have rows while they learn, and pointers to shared ones afterwards.

Parameters stay the same objects in both phases, with other numbers of another shape, so that whoever holds them goes on with
them; buffers of the other phase are None. A state says in its stamp of which phase it is, and a module that takes it follows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cce_core.adapters.torch import guard
from cce_core.adapters.torch.distributed import ddp
from cce_core.adapters.torch.modules.stamp import Words, checksum, is_of, stamped
from cce_core.adapters.torch.modules.states import SMALL
from cce_core.adapters.torch.modules.stored import Stored
from cce_core.adapters.torch.operators import eager, stored
from cce_core.adapters.torch.operators.arrays import Call, put, replacing, words
from cce_core.adapters.torch.operators.counting import count
from cce_core.adapters.torch.operators.facts import COUNTED, MEMORY, array_specs, facts_of, part_of, text_of
from cce_core.method import get_method
from cce_core.method.spec import TableSpec

PHASED = ("counts", "passes", "pointers")  # buffers of one phase or the other
Changes = tuple[list[tuple[Tensor, Tensor]], list[Call]]  # for `put`


class Phased(Stored):
    """A module whose table may have phases, as `table.phase` says.

    In the phase "rows" it has two buffers more: `counts`, uint8 (num_embeddings,), how often training has met each id, in
    logarithms; and `passes`, int64 (1,), how many backward passes were counted.
    """

    counts: Tensor
    passes: Tensor
    generation: Tensor
    projection: Tensor
    padding_idx: int | None
    _spec: TableSpec

    @property
    def spec(self) -> TableSpec:
        """All sizes and seeds, as the core's table has them."""
        if self.seed.device.type == "meta":
            return self._spec
        return dataclasses.replace(self._spec, seed=int(self.seed) & (2**64 - 1))

    @property
    def phase(self) -> str | None:
        """ "rows" before `cluster()` and "codes" after it, for a method (`vq`) that then stores something else; else None."""
        found = dict(self._spec.options).get("phase")
        return None if found is None else str(found)

    # --- counters -----------------------------------------------------------------------------------------------------

    def _counted(self, vectors: Tensor, ids: Tensor) -> Tensor:
        """The same vectors, whose ids are counted when, and each time, a gradient of these comes back.

        In a compiled graph they are counted when they are looked up, if the module trains.
        """
        if self._buffers.get("counts") is None or not vectors.requires_grad or eager.transformed():
            return vectors
        if torch.compiler.is_compiling():
            if self.training and not eager.exporting():
                count(self.counts, self.passes, ids, self.seed, self.padding_idx)
        elif vectors.grad_fn is not None and vectors.device.type != "meta":
            vectors.grad_fn.register_prehook(functools.partial(_count, self, self.counts, ids))
        return vectors

    # --- from one phase to the other ----------------------------------------------------------------------------------

    def _changes(self, new: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """What makes the module's numbers these, without a change of phase; `Compressed` knows."""
        raise NotImplementedError

    def _becoming(self, spec: TableSpec, new: Mapping[str, Tensor]) -> Changes:
        """What makes this module the table of that spec with these arrays, its stamp among them; nothing is changed yet.

        Raises:
            RuntimeError: the memory would have another shape, but is sharded, or in a wrapped model that cannot follow.
        """
        facts = facts_of(spec)
        if facts.text == self._facts.text:
            return self._changes(new), []
        self._check_free()
        specs, changes, calls = array_specs(spec), [], list[Call]()
        if not facts.owned:
            changes.append((self.generation, new["generation"]))
        device, layout, buffers = self.seed.device, part_of(facts.text, MEMORY).layout, dict[str, Tensor | None]()
        if facts.stored:
            data = stored.hollow(layout.n_units, layout.unit, self.memory)
            for name in ("codes", "scales"):
                buffers[name] = new[name].to(device, copy=True)
        else:
            data = new[MEMORY].reshape(layout.n_units, layout.unit)
        calls += replacing(self.memory, data, facts.stored)
        if spec.rank:
            changes.append((self.projection, new["projection"]))
        coming = ("pointers", "generation", *COUNTED) if facts.owned else ("counts", "pointers")
        buffers |= {n: new[n].to(device, copy=True) if n in specs else None for n in coming if n in self._buffers}
        if not facts.owned:
            passes = None if "counts" not in specs else new.get("passes", torch.zeros(1, dtype=torch.int64))
            buffers["passes"] = None if passes is None else passes.to(device, copy=True)
        found = [new[name] if name in new else getattr(self, name) for name in SMALL if name == "seed" or name in specs]
        small = [words(tensor) for tensor in found if tensor.device.type != "meta"]
        of_pointers = checksum(words(new["pointers"]) if "pointers" in specs else None)
        calls += replacing(self.stamp, torch.from_numpy(stamped(facts.text, small, of_pointers)))
        calls.append(functools.partial(self._buffers.update, buffers))
        calls.append(functools.partial(self.__dict__.update, _spec=spec, _facts=facts))
        return changes, calls

    def _check_free(self) -> None:
        """RuntimeError where the memory cannot have another shape."""
        if any(hasattr(p, "full_tensor") for p in self.parameters()):
            raise RuntimeError(
                "a table whose parameters are sharded over processes cannot change its phase: cluster it before fully_shard"
            )
        ddp.wrappers(self)  # raises, where one cannot follow

    def _become(self, spec: TableSpec, new: Mapping[str, Tensor]) -> None:
        """Become it, within a change."""
        other = spec.options != self._spec.options
        put(*self._becoming(spec, new))
        for wrapper in ddp.wrappers(self) if other else ():
            ddp.rebuild(wrapper)

    # --- states -------------------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Any], prefix: str, *rest: Any) -> None:
        """As for every module; one of the other phase is followed there, if it is whole."""
        spec, errors = self._followed(state_dict, prefix), rest[-1]
        if spec is None:
            return super()._load_from_state_dict(state_dict, prefix, *rest)
        before, known = self._spec, len(errors)
        held = {name: tensor.detach().clone() for name, tensor in (*self.named_parameters(), *self.named_buffers())}
        grads = [(parameter, parameter.grad) for parameter in self.parameters()]
        names = (*array_specs(spec), "codes")
        new = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        with guard.writing(self), guard.changing():
            self._become(spec, new)
            super()._load_from_state_dict(state_dict, prefix, *rest)
            if len(errors) > known:
                self._become(before, held)
                self._settled()
                for parameter, grad in grads:
                    parameter.grad = grad

    def _other_spec(self, stamp: Words) -> TableSpec | None:
        """The spec that a stamp is of, if it is that of this table before or after a clustering."""
        if self.phase is None:
            return None
        method = get_method(self._spec.method)
        others = {method.reopened(self._spec), *method.clustered(self._spec)} - {self._spec}
        return next((other for other in others if is_of(stamp, text_of(other))), None)

    def _followed(self, state: Mapping[str, Any], prefix: str) -> TableSpec | None:
        """The spec of a state that is of this table before or after a clustering, and whole; else None."""
        stamp = state.get(prefix + "stamp")
        if not isinstance(stamp, Tensor) or stamp.dtype != torch.int64 or stamp.device.type == "meta":
            return None
        spec = self._other_spec(words(stamp).view(np.int64).reshape(stamp.shape))
        if spec is None:
            return None
        layout, specs = part_of(text_of(spec), MEMORY).layout, array_specs(spec)
        expected = {name: one.shape for name, one in specs.items() if name != "scales"}
        expected[MEMORY] = (layout.n_units, layout.unit)
        if self._facts.stored:
            (codes,), of_code = specs[MEMORY].shape, np.dtype(specs[MEMORY].dtype).itemsize
            expected["codes"], expected["scales"] = (
                (codes * of_code,),
                specs["scales"].shape if "scales" in specs else (0,),
            )
            del expected[MEMORY]
        values = {name: state.get(prefix + name) for name in expected}
        whole = all(isinstance(v, Tensor) and v.shape == expected[name] for name, v in values.items())
        return spec if whole else None


def _count(module: Phased, counts: Tensor, ids: Tensor, grads: Any) -> None:
    """Count ids, if the module still has these counters."""
    if counts is module._buffers.get("counts"):
        guard.reading(count)(counts, module.passes, ids, module.seed, module.padding_idx)
