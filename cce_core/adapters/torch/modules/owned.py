"""Modules whose ids earn rows while they train: of `tiered`, with own rows for frequent ids and shared ones for all others.

The map of ids to own rows is the buffer `pointers`; what is counted of ids lies in buffers beside it. A table of the core over
the same memory counts ids and gives rows away, and here is when:

    a backward pass      notes which ids it is of, if they were looked up in training mode
    a step               of the optimiser that trains the memory: once it is done, those ids are counted, those of all ranks in
                         their order, newcomers are given rows, and what the optimiser knows of these rows is set to 0
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from cce_core import _check
from cce_core.adapters.torch import guard
from cce_core.adapters.torch.distributed import ddp
from cce_core.adapters.torch.distributed.ranks import Ranks, ranks_of
from cce_core.adapters.torch.modules.phases import Changes, Phased
from cce_core.adapters.torch.modules.stamp import Words, checksum, text_in
from cce_core.adapters.torch.modules.states import equal, others
from cce_core.adapters.torch.operators import eager
from cce_core.adapters.torch.operators.arrays import Device, words, write
from cce_core.adapters.torch.operators.facts import COUNTED, MEMORY, array_specs, spec_of
from cce_core.hashing.strings import hash_strings
from cce_core.method.spec import CODES, ROUNDINGS, TableSpec
from cce_core.method.tiered import Tiers
from cce_core.tables.table import Table
from cce_core.tables.tiered import TieredTable

_MOST = 1 << 20  # ids that are noted and not yet counted
_alive: weakref.WeakSet[Owned] = weakref.WeakSet()


def check_owned(spec: TableSpec, dtype: torch.dtype, shard_pointers: bool) -> None:
    """ValueError for what a table whose ids earn rows cannot be."""
    if shard_pointers:
        raise ValueError(
            f"the map of a {spec.method!r} table changes while it trains, and is whole on every rank: leave shard_pointers out"
        )
    if dtype != torch.float32:
        raise ValueError(
            f"rows of a {spec.method!r} table change hands in torch.float32, got {dtype}: give dtype=torch.float32, and "
            "a codec for fewer bytes"
        )
    if spec.codec == "int4" and spec.rounding == ROUNDINGS[1]:
        raise ValueError(
            "codec='int4' with rounding='stochastic' needs what the nearest code leaves over, which modules do not keep: take "
            "codec='int8', or rounding='straight-through'"
        )


class Stream:
    """What came since the last step, and the core's table over a module's memory.

    Attributes:
        met: ids that backward passes were of, int64, a tensor for each.
        traffic: what the table has counted of its own work; None before there is one.
        table: the core's table, with float32 values where the module trains these; None until it is asked for.
        at: where its arrays lie.
    """

    def __init__(self, met: list[Tensor], traffic: NDArray[np.int64] | None = None) -> None:
        self.met, self.traffic = met, traffic
        self.table: TieredTable | None = None
        self.at: list[int] = []

    def __reduce__(self) -> Any:
        return Stream, (self.met, self.traffic)  # a copy has a memory of its own


class Owned(Phased):
    """A module that may be of that kind, as `_facts.owned` says.

    It has up to five buffers more: `own_counts`, uint8, how often the owner of each own row was met lately; with some policies
    `own_seen`, int32, and `own_young`, uint8; and the `sketch` and `clock`, int64, of all other ids.
    """

    num_embeddings: int | None
    pointers: Tensor
    _stream: Stream

    def _begin(self, device: Device, pointers: NDArray[Any] | None) -> None:
        super()._begin(device, pointers)
        if self._facts.owned:
            self._stream = Stream([])
            _listen(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._facts.owned:
            _listen(self)

    @property
    def phase(self) -> str | None:
        """As for every module; "codes" while ids of a `tiered` table have settled."""
        return CODES if self._facts.owned and len(self._spec.sizes) > 1 else super().phase

    # --- ids ----------------------------------------------------------------------------------------------------------

    def _ids(self, input: Any) -> Any:
        """What a forward pass was given, strings hashed if the table takes every id.

        Raises:
            RuntimeError: the table's ids earn rows, and it is where none can be found.
        """
        if self._facts.owned:
            self._check_place()
        return (
            input if isinstance(input, Tensor) or self.num_embeddings is not None else _hashed(input, self.seed.device)
        )

    def _check_place(self) -> None:
        memory: Any = self.memory
        place = memory.device.type
        if place not in ("cpu", "meta") or memory.dtype != torch.float32 or hasattr(memory, "full_tensor"):
            shown = "sharded over processes" if hasattr(memory, "full_tensor") else f"{memory.dtype} on {memory.device}"
            raise RuntimeError(
                f"a {self._spec.method!r} table finds and gives rows on the CPU, in whole parameters of torch.float32, and its "
                f"memory is {shown}: leave the module there (module.cpu().float(), not within fully_shard), and move what it "
                "gives: module(ids.cpu()).to(device)"
            )

    def _counted(self, vectors: Tensor, ids: Tensor) -> Tensor:
        """The same vectors, whose ids are noted when, and each time, a gradient of these comes back, if the module trains now."""
        if not self._facts.owned:
            return super()._counted(vectors, ids)
        trained = self.training and self.memory.requires_grad and vectors.requires_grad
        if trained and not eager.transformed() and not eager.exporting():
            _note(self, vectors, ids)
        return vectors

    def _meet(self, ids: Tensor) -> None:
        """Note ids of a backward pass; many such passes without a step must not fill the memory."""
        stream = self._stream
        ids = ids if self.padding_idx is None else ids[ids != self.padding_idx]
        stream.met.append(ids.clone())
        if sum(map(len, stream.met)) > _MOST and self._ranks() is None:
            with guard.writing(self):
                self._live().count(self._noted())

    def _ranks(self) -> Ranks | None:
        """The processes that train the module together: those of the DistributedDataParallel that it is in."""
        group = ddp.group_of(self)
        return None if group is None else ranks_of(group)

    def _noted(self) -> NDArray[np.uint64]:
        """The ids that were noted since this was called, flat."""
        met, self._stream.met = self._stream.met, []
        return words(torch.cat([*met, torch.empty(0, dtype=torch.int64)])).copy()

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _live(self) -> TieredTable:
        """The core's table over the module's own memory; of straight-through rounding over the values behind the codes."""
        stream = self._stream
        if stream.table is None or self._places(stream.table.arrays()) != stream.at:
            exact = self._facts.coded and not self._facts.stored
            spec = dataclasses.replace(self.spec, codec="float32") if exact else self.spec
            of = array_specs(spec)
            shaped = zip(of.items(), map(words, self._held(of)), strict=True)
            arrays = {name: array.view(one.dtype).reshape(one.shape) for (name, one), array in shaped}
            stream.table, stream.at = self._going_on(TieredTable(spec, arrays)), self._places(of)
        return stream.table

    def _held(self, names: Iterable[str]) -> list[Tensor]:
        """What the core's table calls by these names."""
        return [self.codes if name == MEMORY and self._facts.stored else getattr(self, name) for name in names]

    def _places(self, names: Iterable[str]) -> list[int]:
        """Where that lies."""
        return [tensor.data_ptr() for tensor in self._held(names)]

    def _going_on(self, table: TieredTable) -> TieredTable:
        """A table that has done what this module's has."""
        stream = self._stream
        stream.traffic = table.traffic = table.traffic if stream.traffic is None else stream.traffic
        return table

    def _core(self, arrays: Mapping[str, NDArray[Any]]) -> Table:
        """A table of the core of arrays like this module's."""
        return self._going_on(TieredTable(self.spec, arrays)) if self._facts.owned else Table(self.spec, arrays)

    @torch.no_grad()
    def _step(self, group: Mapping[str, Any], state: MutableMapping[Any, Any]) -> None:
        """After a step of an optimiser: count, give rows to those that have earned them, and let these begin without a past.

        Args:
            group: of the optimiser's parameters, the one with the memory.
            state: what it knows of the memory.
        """
        self._check_place()
        memory, mine = self.memory, self._noted()
        ranks = self._ranks()
        parts = [mine] if ranks is None else ranks.gather_uneven(mine)
        with guard.writing(self):
            table = self._live()
            for ids in parts:
                table.count(ids)
            with guard.changing():
                rows = torch.from_numpy(table.settle())
                for name in COUNTED:
                    if (counted := self._buffers.get(name)) is not None:
                        torch.autograd.graph.increment_version(counted)
                if not len(rows):
                    return
                for key, value in state.items():
                    if isinstance(value, Tensor) and value.dim() and len(value) == len(memory):
                        first = group.get("initial_accumulator_value", 0.0) if key == "sum" else 0.0
                        state[key] = _forgotten(value, rows, first)
                self._handed_on(rows)

    def _handed_on(self, rows: Tensor | None = None) -> None:
        """Rows have changed hands: gradients that name them are of nobody, graphs of before raise when they are walked, and the
        stamp is of the map as it is now.
        """
        if rows is not None and self.memory.grad is not None:
            self.memory.grad = _forgotten(self.memory.grad, rows)
        for tensor in (self.memory, self.pointers, *((self.codes, self.scales) if self._facts.stored else ())):
            torch.autograd.graph.increment_version(tensor)
        write(self.stamp, self._stamped(checksum(words(self.pointers))))
        self._settled()

    def erase(self, ids: Any) -> Tensor:
        """Forget ids of a `tiered` table: their rows are free, and hold what their shared rows do; see `TieredTable.erase`.

        Args:
            ids: a tensor of integers of any shape; or strings.

        Returns:
            Whether each had a row, bool in the shape of ids.

        Raises:
            ValueError: the method gives ids no rows of their own.

        Example:
            >>> import torch
            >>> from cce_core.adapters.torch import Embedding, FusedSGD
            >>> emb = Embedding(None, 8, method="tiered", num_bytes=1000, seed=0)
            >>> optimizer = FusedSGD(emb.parameters(), lr=0.1)
            >>> emb(torch.tensor([5, 6])).sum().backward()
            >>> optimizer.step()
            >>> emb.erase(torch.tensor([5, 7]))
            tensor([ True, False])
        """
        if not self._facts.owned:
            raise ValueError(f"ids of a {self._spec.method!r} table do not earn rows, which could be taken away again")
        words_of: Tensor = self._ids(ids)
        _check.instance("ids", words_of, Tensor, "a tensor of integers, or strings")
        with guard.writing(self), guard.changing(), torch.no_grad():
            table = self._live()
            assert table.owners is not None
            rows = torch.from_numpy(table.owners.find(words_of.numpy()).reshape(-1)).long()
            had = table.erase(words_of.numpy())
            self._handed_on(rows[rows >= 0])
        return torch.as_tensor(had)

    # --- states -------------------------------------------------------------------------------------------------------

    def _becoming(self, spec: TableSpec, new: Mapping[str, Tensor]) -> Changes:
        """As for every module; the core's table is to be over the new numbers."""
        changes, calls = super()._becoming(spec, new)
        if self._facts.owned:
            calls = [*calls, functools.partial(self.__dict__.update, _stream=Stream([], self._stream.traffic))]
        return changes, calls

    def _become(self, spec: TableSpec, new: Mapping[str, Tensor]) -> None:
        """As for every module; what was met before is forgotten."""
        super()._become(spec, new)
        if self._facts.owned:
            self._stream = Stream([])

    def _save_to_state_dict(self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool) -> None:
        """As for every module; rows may have changed hands in the core's table, too."""
        if self._facts.owned and self.stamp.device.type != "meta":
            right = self._stamped(checksum(words(self.pointers)))
            if not np.array_equal(words(self.stamp).view(np.int64), right):
                with guard.writing(self), guard.changing():
                    self._handed_on()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Any], prefix: str, *rest: Any) -> None:
        """As for every module; what was met before is forgotten."""
        known = len(rest[-1])
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if self._facts.owned and len(rest[-1]) == known:
            self._stream = Stream([])

    def _other_spec(self, stamp: Words) -> TableSpec | None:
        """As for every module; ids are known by as many buckets, however many of them have settled."""
        if not self._facts.owned:
            return super()._other_spec(stamp)
        try:
            spec = dataclasses.replace(spec_of(text_in(stamp)), seed=self._spec.seed)
        except (KeyError, TypeError, ValueError):
            return None
        alike = dataclasses.replace(spec, sizes=self._spec.sizes) == self._spec != spec
        return spec if alike and Tiers.of(spec).buckets == Tiers.of(self._spec).buckets else None

    def _look_closer(self) -> None:
        """As for every module; but an average of rows that have changed hands is nobody's vector."""
        if self._facts.owned:
            now = words(self.stamp).view(np.int64)
            self._stream.table = None  # the seed may be another
            if self.stamp is self._mark.stamp and not np.array_equal(now, self._mark.words):
                theirs: list[Any] = [other for other in others(self) if other._mark.known == int(now[0])]
                name = "codes" if self._facts.stored else MEMORY
                if theirs and not any(equal(getattr(self, name), getattr(other, name)) for other in theirs):
                    raise RuntimeError(
                        "this table got the map of another, but not its memory, where rows have changed hands meanwhile: an "
                        f"average of what a row held is no id's vector. Average the parameters of a {self._spec.method!r} table "
                        "no more than its buffers: take both from the model, by load_state_dict"
                    )
        super()._look_closer()


def _forgotten(tensor: Tensor, rows: Tensor, value: float = 0.0) -> Tensor:
    """A tensor with a part for each row of a memory, those of some rows set to a value; of a sparse one they are taken out."""
    if not tensor.is_sparse:
        tensor[rows] = value
        return tensor
    tensor = tensor.coalesce()
    stays = ~torch.isin(tensor.indices()[0], rows)
    return torch.sparse_coo_tensor(
        tensor.indices()[:, stays], tensor.values()[stays], tensor.shape, is_coalesced=True, check_invariants=False
    )


@torch.compiler.disable
def _hashed(input: Any, device: Device) -> Any:
    """Strings as int64 ids; all else as it came."""
    if isinstance(input, (str, bytes, list, tuple, np.ndarray)) and np.asarray(input).dtype.kind in "OSTU":
        return torch.from_numpy(hash_strings(input).view(np.int64)).to(device)
    return input


@torch.compiler.disable
def _note(module: Owned, vectors: Tensor, ids: Tensor) -> None:
    """Let a module meet ids when a gradient of their vectors comes back."""
    if vectors.grad_fn is not None and vectors.device.type != "meta":
        vectors.grad_fn.register_hook(lambda *grads: module._meet(ids))  # once they are known to be good


def _listen(module: Owned) -> None:
    """Let steps of optimisers end with those of this module."""
    _alive.add(module)
    _hook()


@functools.cache
def _hook() -> None:
    register_optimizer_step_post_hook(_stepped)


def _stepped(optimizer: torch.optim.Optimizer, *given: Any) -> None:
    """What trained memories go on with: in the order of the optimiser's parameters, which all ranks share."""
    modules = {id(module._parameters.get(MEMORY)): module for module in tuple(_alive)}
    for group in optimizer.param_groups if modules else ():
        for parameter in group["params"]:
            module = modules.get(id(parameter))
            if module is not None and parameter.grad is not None:
                module._step(group, optimizer.state.get(parameter, {}))
