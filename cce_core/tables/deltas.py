"""What has changed since a moment, for copies that follow a table: pages of its arrays, in a chain that keeps its order.

    signature  the digest of the arrays at a moment, and one of each page of 128 bytes
    delta      the pages whose digests are others now; the digest of its parent, that of the table it makes, and a number
    apply      parent = the copy's digest: its pages are exchanged, all at once      child = the copy's: nothing is left to do

A page is a page, whatever has changed in it: rows that were trained, rows that were given to new ids, and rows that were taken
from others, whose fingerprints are then 0. So a copy has the very bits of the table.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import operator
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from cce_core import _check
from cce_core._guard import Changing
from cce_core.method.spec import TableSpec
from cce_core.method.state import TableState
from cce_core.storage.files import digest, load_arrays, save_arrays
from cce_core.storage.header import FileFormatError

PAGE = 128
COUNTS = ("counts", "own_counts", "own_seen", "own_young", "sketch", "clock")  # what training reads alone


@dataclasses.dataclass(frozen=True, eq=False)
class Signature:
    """A moment in the life of a table, from which a delta can begin.

    Attributes:
        sequence: how many deltas led to it.
        digest: of all arrays that are followed.
        spec: of the table.
        pages: of each of these arrays a digest per page, 6 % of its bytes.
    """

    sequence: int
    digest: str
    spec: TableSpec
    pages: Mapping[str, NDArray[np.uint64]]

    @property
    def nbytes(self) -> int:
        """Bytes of the digests."""
        return sum(array.nbytes for array in self.pages.values())


@dataclasses.dataclass(frozen=True, eq=False)
class Delta:
    """What a copy must exchange to be as a table is.

    Attributes:
        sequence: its number, 1 for the first.
        parent: the digest of what it changes.
        child: the digest of what comes of that.
        spec: of the table.
        pages: of each array the numbers of the pages that are others, int64.
        data: these pages, one behind the other, uint8.
        signature: of the table by then, from which the next delta begins; None of one that was loaded.
    """

    sequence: int
    parent: str
    child: str
    spec: TableSpec
    pages: Mapping[str, NDArray[np.int64]]
    data: Mapping[str, NDArray[np.uint8]]
    signature: Signature | None = None

    def __repr__(self) -> str:
        n = sum(map(len, self.pages.values()))
        return f"<delta {self.sequence}: {n:,} pages, {self.nbytes:,} bytes, {self.parent} -> {self.child}>"

    @property
    def nbytes(self) -> int:
        """Bytes of pages and their numbers."""
        return sum(array.nbytes for arrays in (self.pages, self.data) for array in arrays.values())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, with a checksum: whole, or not at all. `load_delta` reads it."""
        arrays: dict[str, NDArray[Any]] = {f"{name} pages": array for name, array in self.pages.items()}
        arrays |= {f"{name} data": array for name, array in self.data.items()}
        chain = {"sequence": self.sequence, "parent": self.parent, "child": self.child}
        save_arrays(path, arrays, {"delta": chain, "table": self.spec.as_json()})


@dataclasses.dataclass(frozen=True, eq=False)
class Applied:
    """What a delta has changed in a copy.

    Attributes:
        sequence: the delta's number.
        given: identities of owners that have rows now and had none (or others), uint64.
        taken: identities of owners that have none now: the tombstones.
        n_pages: how many pages were exchanged; 0 if the delta had been applied before.
    """

    sequence: int
    given: NDArray[np.uint64]
    taken: NDArray[np.uint64]
    n_pages: int


def load_delta(path: str | os.PathLike[str]) -> Delta:
    """Read what `Delta.save` wrote.

    Raises:
        OSError: the file cannot be read.
        FileFormatError: it is torn, damaged, or no delta.
    """
    arrays, values = load_arrays(path)
    try:
        chain, spec = values["delta"], TableSpec.from_json(values["table"])
        names = [name.removesuffix(" pages") for name in arrays if name.endswith(" pages")]
        return Delta(
            _check.integer("sequence", chain["sequence"], 1), str(chain["parent"]), str(chain["child"]), spec,
            {name: arrays[f"{name} pages"] for name in names}, {name: arrays[f"{name} data"] for name in names},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{os.fspath(path)} is no delta: {str(error)[:200]}") from error


def signature_of(state: TableState, complete: bool) -> Signature:
    """The present moment of a table: of what lookups read, or `complete`, so that a copy can go on training."""
    with state.guard.door:
        arrays = _followed(state, complete)
        return Signature(0, _digest(state, arrays), state.spec, {name: _pages(array) for name, array in arrays.items()})


def delta_of(state: TableState, since: Signature) -> Delta:
    """What has changed since."""
    _check.instance("since", since, Signature, "a signature, as signature() or an earlier delta has it")
    with state.guard.door:
        if since.spec != state.spec:
            raise ValueError(
                f"this signature is of another table, or of this one before its sizes changed: of {since.spec} and not of "
                f"{state.spec}; save the whole table, and take a new signature"
            )
        held = state.arrays()
        arrays = {name: held[name] for name in since.pages}
        now = Signature(
            since.sequence + 1, _digest(state, arrays), state.spec, {n: _pages(array) for n, array in arrays.items()}
        )
        pages = {name: np.flatnonzero(now.pages[name] != since.pages[name]) for name in arrays}
        data = {
            name: np.concatenate([_page(arrays[name], n) for n in own.tolist()])
            for name, own in pages.items()
            if len(own)
        }
    return Delta(now.sequence, since.digest, now.digest, state.spec, {name: pages[name] for name in data}, data, now)


def apply_delta(state: TableState, delta: Delta) -> Applied:
    """Exchange the pages, all or none."""
    _check.instance("delta", delta, Delta, "a Delta, as delta() or load_delta gives it")
    if delta.spec != state.spec:
        raise ValueError(f"delta {delta.sequence} is of another table: {delta.spec} and not {state.spec}")
    if not state.writeable:
        raise ValueError("the table is mapped read-only; load it with mmap=False to apply deltas")
    with Changing((state.guard,)):
        held = state.arrays()
        complete = {_digest(state, _followed(state, whole)): whole for whole in (False, True)}
        nothing = Applied(delta.sequence, np.empty(0, np.uint64), np.empty(0, np.uint64), 0)
        if delta.child in complete:
            return nothing
        if delta.parent not in complete:
            raise ValueError(
                f"delta {delta.sequence} changes a table of digest {delta.parent}, and this one has {', '.join(complete)}: apply "
                "those between first, or load a whole copy"
            )
        whole, new = complete[delta.parent], {}
        for name, pages in delta.pages.items():
            if name not in held or not all(0 <= n < _n_pages(held[name]) for n in pages.tolist()):
                raise ValueError(f"delta {delta.sequence} has pages of {name!r} that the table has not")
            if sum(len(_page(held[name], n)) for n in pages.tolist()) != delta.data[name].size:
                raise ValueError(f"delta {delta.sequence} is damaged: the pages of {name!r} have other lengths")
            array = new[name] = held[name].copy()
            flat, start = array.reshape(-1).view(np.uint8), 0
            for n in pages.tolist():
                page = flat[n * PAGE : (n + 1) * PAGE]
                page[:] = delta.data[name][start : start + len(page)]
                start += len(page)
        if _digest(state, {**_followed(state, whole), **new}) != delta.child:
            raise ValueError(f"delta {delta.sequence} is damaged: what it makes has not the digest that it says")
        before = _owners(state)
        try:  # in one call that Python does not interrupt
            collections.deque(itertools.starmap(operator.setitem, [(held[n], ..., new[n]) for n in new]), maxlen=0)
        finally:
            state.reloaded()
        after = _owners(state)
    given, taken = np.setdiff1d(after, before), np.setdiff1d(before, after)
    return Applied(delta.sequence, given[given > 0], taken[taken > 0], sum(map(len, delta.pages.values())))


def _owners(state: TableState) -> NDArray[np.uint64]:
    """Identities of those that have rows of their own, where ids earn them."""
    known = state.owners
    return np.empty(0, np.uint64) if known is None else known.map.identities(np.arange(known.map.n_slots))


def _followed(state: TableState, complete: bool) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in state.arrays().items() if complete or name not in COUNTS}


def _digest(state: TableState, arrays: Mapping[str, NDArray[Any]]) -> str:
    return digest(arrays, repr(state.spec))


def _n_pages(array: NDArray[Any]) -> int:
    return -(-array.nbytes // PAGE)


def _page(array: NDArray[Any], n: int) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)[n * PAGE : (n + 1) * PAGE]


def _pages(array: NDArray[Any]) -> NDArray[np.uint64]:
    """A digest of each page."""
    data = array.reshape(-1).view(np.uint8).data
    starts = range(0, array.nbytes, PAGE)
    return np.fromiter((xxhash.xxh3_64_intdigest(data[at : at + PAGE]) for at in starts), np.uint64, len(starts))


class Followed:
    """What has copies elsewhere that follow it: a table, or tables with one memory."""

    def _whole(self) -> TableState:
        """The arrays."""
        assert isinstance(self, TableState)
        return self

    def signature(self, *, complete: bool = False) -> Signature:
        """The present moment, from which `delta` tells what has changed.

        Args:
            complete: follow counts too (of `vq`; of `tiered` also the sketch and the clock), so that a copy can go on training;
                else what lookups read.

        Returns:
            A `Signature`, which takes 6 % of the bytes of what it follows.
        """
        return signature_of(self._whole(), _check.flag("complete", complete))

    def delta(self, since: Signature) -> Delta:
        """What has changed since a signature: trained rows and projections, learned pointers, rows that were given and taken.

        Args:
            since: a `signature()`, or the `signature` of the delta before.

        Returns:
            A `Delta`: `save` it, or hand it to `apply_delta` of a copy. Its own `signature` is where the next one begins.

        Raises:
            TypeError, ValueError: that is no signature of this table, or its sizes are others since, as after a `cluster()` of
                `vq` or `tiered`: save the whole table then.

        Cost:
            A pass over the arrays, and the pages of 128 bytes in which something has changed.

        Example:
            >>> import copy, numpy as np, cce_core as cce
            >>> table = cce.make_table("tiered", None, 8, num_bytes=1000)
            >>> copied, signature = copy.deepcopy(table), table.signature()
            >>> cce.SGD(lr=0.1).update(table, [5, 6], np.ones((2, 8)))
            >>> delta = table.delta(signature)
            >>> done = copied.apply_delta(delta)
            >>> delta.sequence, len(done.given), bool((copied.lookup([5, 6, 7]) == table.lookup([5, 6, 7])).all())
            (1, 2, True)
            >>> copied.apply_delta(delta).n_pages  # again: it does no harm
            0
        """
        return delta_of(self._whole(), since)

    def apply_delta(self, delta: Delta) -> Applied:
        """Be as the table is that the delta was made of: to the bit, all at once.

        Args:
            delta: made of the table of which this is a copy; one that was applied already changes nothing.

        Returns:
            What was changed; of a `tiered` table who was given rows, and from whom they were taken.

        Raises:
            TypeError: it is no delta.
            ValueError: it is of another table, out of order or damaged, or this table is mapped. Nothing is changed.

        Cost:
            Passes over the arrays, and a copy of those that change.
        """
        return apply_delta(self._whole(), delta)
