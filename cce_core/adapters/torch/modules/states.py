"""What of a module's state is no matter of floats: the sketch, its stamp, and the copies that follow a module."""

from __future__ import annotations

import functools
import uuid
import warnings
import weakref
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cce_core.adapters.torch import guard
from cce_core.adapters.torch.modules.stamp import Words, averaged_from, checksum, is_of, is_right, other_table, stamped
from cce_core.adapters.torch.operators.arrays import Device, tensor_of, words, write_tensor
from cce_core.adapters.torch.operators.facts import MEMORY, Facts
from cce_core.adapters.torch.operators.pooled import Bags

Averages: TypeAlias = torch.nn.Module | Sequence[torch.nn.Module] | None
SMALL = ("seed", "keys", "generation")
SKETCH = (*SMALL, "pointers")
_MIXED = (
    "these are the numbers of no table: seed, keys, pointers, generation and stamp belong together and are integers, which no "
    "average keeps. Average the float tensors alone, and take the others from the latest state as they are"
)
_CARRY = "cluster_(model, optimizer, averaged=the_average)"
_alive: weakref.WeakSet[Stated] = weakref.WeakSet()


class Mark:
    """What a module knows of its own sketch, apart from its buffers, which others may write into.

    Attributes:
        kin: a name that a module shares with its copies alone.
        stamp, version: the stamp as it was last seen, and its version; None where torch counts none.
        memory, written: likewise of the memory.
        words: what it said.
        known: word 0 of the stamp of the sketch that the memory belongs to.
        made: the same of the sketch that the module's own `cluster` made, else 0.
        follows: whether another has written into the buffers since: an average, whose memory follows another module's.
        copied: whether nobody has written anything since the module was copied.
    """

    def __init__(self, kin: str = "") -> None:
        self.kin = kin or uuid.uuid4().hex
        self.stamp: Tensor | None = None
        self.version: int | None = None
        self.memory: Tensor | None = None
        self.written: int | None = None
        self.words = np.empty(0, np.int64)
        self.known = self.made = 0
        self.follows = self.copied = False


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def reading(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A method that looks vectors up: of one whole table, whose sketch is in order. (`guard.reading`, without a call more.)"""

    @functools.wraps(method)
    def call(self: Stated, ids: Tensor, bags: Bags | None = None, wide: bool = False) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return method(self, ids, bags, wide)
        mark, stamp = self._mark, self._buffers["stamp"]
        assert stamp is not None
        same = stamp is mark.stamp
        if not same or (mark.version is not None and stamp._version != mark.version):
            self._look()
        cell = guard.here.cell
        cell.count += 1
        try:
            if guard.owner:
                guard.wait(cell)
            return method(self, ids, bags, wide)
        finally:
            cell.count -= 1

    return call


class Stated(torch.nn.Module):
    """A module whose buffers hold a sketch and a stamp."""

    memory: Tensor
    seed: Tensor
    stamp: Tensor
    _facts: Facts
    _plain: bool
    shard_pointers: bool

    def _begin(self, device: Device, pointers: NDArray[Any] | None) -> None:
        """The stamp, behind the other buffers; with the pointers of all ids."""
        self._mark = Mark()
        self.register_buffer("stamp", tensor_of(self._stamped(checksum(pointers)), device))
        self._settled()
        _alive.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mark": self._mark.kin}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        kin = self.__dict__.get("_mark", "")
        self._mark = Mark(kin)
        if "stamp" not in self._buffers:  # pickled by an earlier version
            pointers = None if self.shard_pointers else self._buffers.get("pointers")
            of_pointers = checksum(None if pointers is None else words(pointers))
            self.register_buffer("stamp", tensor_of(self._stamped(of_pointers), self.seed.device))
        self._settled()
        self._mark.copied = True
        _alive.add(self)

    # --- the stamp ----------------------------------------------------------------------------------------------------

    def _small(self) -> list[NDArray[Any]]:
        return [words(tensor) for name in SMALL if (tensor := self._buffers.get(name)) is not None]

    def _stamped(self, of_pointers: int) -> Words:
        """The stamp of the sketch as it is; words of no meaning on the meta device."""
        return stamped(self._facts.text, () if self.seed.device.type == "meta" else self._small(), of_pointers)

    def _settled(self) -> None:
        """The sketch and the memory are in order and belong together."""
        mark, memory = self._mark, self._parameters.get(MEMORY)
        mark.stamp, mark.version = self.stamp, _version(self.stamp)
        mark.memory, mark.written = memory, None if memory is None else _version(memory)
        mark.follows = mark.copied = False
        mark.words = (
            np.zeros(1, np.int64) if self.stamp.device.type == "meta" else words(self.stamp).view(np.int64).copy()
        )
        mark.known = int(mark.words[0])

    def _is_touched(self) -> bool:
        """Whether the stamp is another than when it was last seen."""
        mark, stamp = self._mark, self.stamp
        same = stamp is mark.stamp
        return not same or (mark.version is not None and stamp._version != mark.version)

    def _look(self) -> None:
        """Another has written into the stamp, or put another in its place: what does the sketch look like now?

        Raises:
            RuntimeError: it is no sketch, another table's, or one that the memory has nothing to do with.
        """
        traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if traced or guard.inside() or type(self.stamp) is not Tensor or self.stamp.device.type == "meta":
            return
        with guard.changing():
            if self._is_touched():  # else it was a change of ours that has ended meanwhile
                self._look_closer()

    def _look_closer(self) -> None:
        mark, now = self._mark, words(self.stamp).view(np.int64)
        same = np.array_equal(now, mark.words)  # moved, or written anew as it was
        if not same and not is_right(now, self._facts.text, self._small()):
            if not self._healed(now):
                said = other_table(now, self._facts.text)
                raise RuntimeError(
                    f"the buffers are of another table: {said}" if said else f"the buffers changed: {_MIXED}"
                )
            now = words(self.stamp).view(np.int64)
        written = self.stamp is mark.stamp  # else it was moved
        if mark.known not in (0, int(now[0])) and not mark.copied:
            for other in others(self):
                if other._mark.made == int(now[0]) and not equal(self.memory, other.memory):
                    raise RuntimeError(
                        "this table got the pointers that another learned in cluster(), but not its memory, and its own rows "
                        f"mean other things: call {_CARRY}, or load_state_dict where this is to be a copy"
                    )
        if mark.known != int(now[0]):
            mark.known, mark.made = int(now[0]), 0
        mark.stamp, mark.version, mark.words = self.stamp, _version(self.stamp), now.copy()
        if written:
            mark.follows, mark.copied = True, False

    def _healed(self, now: Words) -> bool:
        """Whether the buffers were averaged with those of a module that holds the same ones, and could be taken from it."""
        for other in others(self):
            if other._mark.kin == self._mark.kin and other._mark.known == self._mark.known and other._is_whole():
                whole = words(other.stamp).view(np.int64)
                if averaged_from(now, whole):
                    self._adopt(other)
                    return True
        return False

    def _is_whole(self) -> bool:
        return is_right(words(self.stamp).view(np.int64), self._facts.text, self._small())

    def _adopt(self, other: Stated) -> None:
        """Take another's sketch."""
        for name in (*SKETCH, "stamp"):
            if self._buffers.get(name) is not None:
                write_tensor(getattr(self, name), getattr(other, name))

    # --- copies -------------------------------------------------------------------------------------------------------

    def _averages(self, averaged: Averages) -> list[Any]:
        """The tables among given modules that average this one.

        Raises:
            ValueError: there is none, or which it is cannot be told.
        """
        if self._is_touched():
            self._look()
        found: list[Any] = []
        for model in averaged if isinstance(averaged, (list, tuple)) else [averaged]:
            if model is None:
                continue
            if not isinstance(model, torch.nn.Module):
                raise TypeError(f"averaged takes modules, got {type(model).__name__}")
            tables = [
                m
                for m in model.modules()
                if isinstance(m, Stated) and m is not self and m._facts.text == self._facts.text
            ]
            for one in tables:
                if one._is_touched():
                    one._look()
            same = [m for m in tables if m._mark.known == self._mark.known]
            kin = [m for m in same if m._mark.kin == self._mark.kin]
            if not kin and len(same) != 1:
                raise ValueError(
                    f"{type(model).__name__} holds {len(same) or 'no'} tables of this sketch: averaged= takes averages of this "
                    "very table, of before it is clustered; give the one module, or make it one with load_state_dict"
                )
            found += kin or same
        return found

    def _followers(self) -> list[Stated]:
        """The averages of this module that are alive: copies of it whose buffers another has kept equal to these.

        A copy into which nobody writes is one of how the module was, and stays so. Where another writes into the memory alone,
        nobody can tell an average from a model that is trained by itself.
        """
        found, alone = [], False
        for other in others(self):
            mark, stamp, memory = other._mark, other.stamp, other.memory
            if mark.kin != self._mark.kin or mark.known != self._mark.known:
                continue
            if mark.follows or (stamp is mark.stamp and mark.version not in (None, other.stamp._version)):
                found.append(other)
            elif memory is mark.memory and mark.written not in (None, other.memory._version):
                alone = alone or other.memory.grad is None
        if alone:
            warnings.warn(
                "a copy of this table, whose memory something else writes into, keeps the old pointers. If it is an average of "
                f"this one, its rows mean other things from now on: call {_CARRY}",
                stacklevel=4,
            )
        return found

    # --- states -------------------------------------------------------------------------------------------------------

    def _load_from_state_dict(
        self,
        state_dict: MutableMapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        """As for every module, of the same spec alone; a full table also takes the state of torch's own embedding."""
        if self._plain and prefix + "weight" in state_dict and prefix + "memory" not in state_dict:
            state_dict[prefix + "memory"] = state_dict.pop(prefix + "weight")
            state_dict.setdefault(prefix + "seed", self.seed.detach().clone())
        said = self._refused(state_dict, prefix, strict)
        if said:
            errors.append(f"the state of {prefix.rstrip('.') or 'this module'} is refused: {said}")
            return
        with guard.writing(self), guard.changing():
            super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
            self._settled()

    def _refused(self, state: MutableMapping[str, Any], prefix: str, strict: bool) -> str:
        """Why a state is not taken, or ""; one of before there were stamps gets its stamp here."""
        found: dict[str, Tensor] = {}
        for name in (*SKETCH, "stamp"):
            value = state.get(prefix + name)
            own = self._buffers.get(name)
            if isinstance(value, Tensor) and value.device.type != "meta" and (own is not None or name == "stamp"):
                if value.dtype != torch.int64:
                    return f"{name} is {value.dtype}, not torch.int64: {_MIXED}"
                found[name] = value
        given = found.pop("stamp", None)
        if given is not None:
            stamp = words(given).view(np.int64) if given.dim() == 1 else np.empty(0, np.int64)
            said = other_table(stamp, self._facts.text)
            if said:
                return f"it is of another table: {said}"
            if not is_of(stamp, self._facts.text):
                return f"its stamp cannot be read: {_MIXED}"
        held = {name: found.get(name, own) for name in SKETCH if (own := self._buffers.get(name)) is not None}
        if strict and held.keys() != found.keys():
            return ""  # which torch says
        if any(t.shape != getattr(self, name).shape or t.device.type == "meta" for name, t in held.items()):
            return ""  # which torch says
        if self.shard_pointers:  # those of the other ranks are not in the state
            of_pointers = 0 if given is None or stamp.size < 2 else int(stamp[1]) & (2**64 - 1)
        else:
            of_pointers = checksum(words(held["pointers"]) if "pointers" in held else None)
        right = stamped(self._facts.text, [words(held[name]) for name in SMALL if name in held], of_pointers)
        if given is None:
            if prefix + "stamp" not in state and found:
                state[prefix + "stamp"] = torch.from_numpy(right)
            elif prefix + "stamp" not in state:
                state[prefix + "stamp"] = self.stamp.detach().clone()
            return ""
        return "" if np.array_equal(stamp, right) else f"its checksum does not fit: {_MIXED}"


def others(module: Stated) -> list[Stated]:
    """All other modules that are alive, of the same table."""
    while True:
        try:
            alive = tuple(_alive)
            break
        except RuntimeError:  # another thread makes a module
            continue
    text = module._facts.text
    return [m for m in alive if m is not module and m._facts.text == text and m.seed.device.type != "meta"]


def equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.detach().cpu(), b.detach().cpu())
