"""Who met what, and did it go well: the arrays that every data set of the house is read into, and the split by time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit


@dataclass(frozen=True, eq=False)
class Interactions:
    """Rows of (user, item, label), a column an array.

    Attributes:
        users: int64, shape (n,), from 0.
        items: int64, shape (n,), from 0.
        labels: float32, shape (n,), 0 or 1.

    Raises:
        TypeError: a column is no array.
        ValueError: the columns differ in length, or are not flat.

    Example:
        >>> import numpy as np
        >>> from cce_core.datasets import Interactions
        >>> rows = Interactions(np.array([0, 1, 1]), np.array([2, 0, 2]), np.array([1, 0, 1], np.float32))
        >>> len(rows), [len(batch) for batch in rows.batches(2)]
        (3, [2, 1])
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    labels: NDArray[np.float32]

    def __post_init__(self) -> None:
        for name in ("users", "items", "labels"):
            _check.instance(name, getattr(self, name), np.ndarray, "an array")
        shapes = self.users.shape, self.items.shape, self.labels.shape
        if len(set(shapes)) > 1 or len(shapes[0]) != 1:
            raise ValueError(f"users, items and labels must be flat and of one length, got shapes {shapes}")

    def __len__(self) -> int:
        return self.users.shape[0]

    def take(self, rows: Any) -> Interactions:
        """The rows that a slice, a boolean mask or an array of row numbers picks; a slice copies nothing."""
        rows = picked(rows)
        return Interactions(self.users[rows], self.items[rows], self.labels[rows])

    def batches(self, size: int, *, seed: int | None = None) -> Iterator[Interactions]:
        """All rows once, `size` at a time, the last batch shorter.

        Args:
            size: rows a batch, at least 1.
            seed: the rows' shuffle; None keeps their order and copies nothing. Give every epoch a seed of its own.
        """
        size = _check.integer("size", size, 1)
        order = None if seed is None else np.random.default_rng(_check.seed(seed)).permutation(len(self))
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.take(part if order is None else order[part])


def picked(rows: Any) -> Any:
    """Row numbers, a mask or a slice as an index of columns."""
    if isinstance(rows, slice):
        return rows
    array = _check.array("rows", rows, "row numbers, a mask or a slice")
    if array.ndim != 1 or array.dtype.kind not in "iub":
        if array.shape == (0,) and not isinstance(rows, np.ndarray):
            return array.astype(np.int64)
        raise TypeError(f"rows must be a slice, a flat mask or flat row numbers, got {_check.shown(rows)}")
    return array


@dataclass(frozen=True, eq=False)
class Ratings:
    """A file of ratings made binary: liked (above 3 stars) is 1, disliked (below 3) is 0, and 3 itself is dropped.

    Ids are compact: they number, in rising order of the file's own ids, the users and items that are left after the
    drop. Rows keep the file's order.

    Attributes:
        name: the data set's, or the file's.
        users: int64, shape (n,), in [0, n_users).
        items: int64, shape (n,), in [0, n_items).
        labels: float32, shape (n,), 0 or 1.
        timestamps: int64, shape (n,), seconds since 1970.
        user_ids: int64, shape (n_users,); user `u` is `user_ids[u]` in the file.
        item_ids: int64, shape (n_items,); likewise.
        n_neutral: how many ratings of 3 were dropped.
    """

    name: str
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    labels: NDArray[np.float32]
    timestamps: NDArray[np.int64]
    user_ids: NDArray[np.int64]
    item_ids: NDArray[np.int64]
    n_neutral: int

    def __len__(self) -> int:
        return self.users.shape[0]

    @property
    def n_users(self) -> int:
        """How many users there are."""
        return self.user_ids.shape[0]

    @property
    def n_items(self) -> int:
        """How many items there are."""
        return self.item_ids.shape[0]


@dataclass(frozen=True, eq=False)
class Pairs:
    """A file of interactions: without labels every pair is a positive. Ids are compact, rows keep the file's order.

    Attributes:
        name: the data set's, or the file's.
        users: int64, shape (n,), in [0, n_users).
        items: int64, shape (n,), in [0, n_items).
        user_ids: shape (n_users,), rising; user `u` is `user_ids[u]` in the file: int64, uint64, or text as objects.
        item_ids: shape (n_items,); likewise.
        labels: float32, shape (n,), 0 or 1; None where all are positives.
        times: float64, shape (n,); None where the file has none.
    """

    name: str
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    user_ids: NDArray[Any]
    item_ids: NDArray[Any]
    labels: NDArray[np.float32] | None = None
    times: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return self.users.shape[0]

    @property
    def n_users(self) -> int:
        """How many users there are."""
        return self.user_ids.shape[0]

    @property
    def n_items(self) -> int:
        """How many items there are."""
        return self.item_ids.shape[0]


@dataclass(frozen=True, eq=False)
class Split:
    """A data set ready to train on.

    Attributes:
        name: which data set it really is.
        train: the rows to learn from.
        valid: the rows to judge by; it shares none with `train`.
        n_users: ids of users are below it.
        n_items: ids of items are below it.
        best_auc: the AUC on `valid` of the true probabilities, which no model beats but by chance; known for synthetic
            data alone, else None.
        best_logloss: their mean log loss in nats; likewise.
    """

    name: str
    train: Interactions
    valid: Interactions
    n_users: int
    n_items: int
    best_auc: float | None = None
    best_logloss: float | None = None


@jit
def _latest(users: Any, times: Any, latest: Any) -> None:
    """Fill latest[u] (-1 at first) with the rows of user u's last interactions, the very last one first."""
    keep = latest.shape[1]
    for row in range(users.shape[0]):
        user, time = users[row], times[row]
        at = keep
        # Of equal times the row further down the file is the later one, hence <=.
        while at > 0 and (latest[user, at - 1] < 0 or times[latest[user, at - 1]] <= time):
            at -= 1
        if at < keep:
            for k in range(keep - 1, at, -1):
                latest[user, k] = latest[user, k - 1]
            latest[user, at] = row


def split_last(ratings: Ratings, n_last: int = 2) -> Split:
    """Hold out each user's last ratings by time for validation; the rest is for training.

    Of ratings with the same time, the one further down the file counts as the later one. A user with `n` ratings gives
    `min(n_last, n - 1)` of them to validation: training keeps at least one, so no validation row has a user that was
    never seen. (An item may be unseen.) Both parts keep the file's order.

    Args:
        ratings: what `read_ratings` gives.
        n_last: how many of each user's ratings to hold out, at least 0.

    Returns:
        The `Split`. With `n_last=2`, MovieLens 100K gives 70,969 training and 1,886 validation rows, of 943 users and
        1,642 items.

    Raises:
        ValueError: `n_last` is negative.

    Cost:
        One pass over the rows, O(n · n_last) time at worst; no sort.
    """
    _check.instance("ratings", ratings, Ratings, "what read_ratings gives")
    n_last = _check.size("n_last", n_last)
    latest = np.full((ratings.n_users, n_last), -1, np.int64)
    if n_last:
        _latest(ratings.users, ratings.timestamps, latest)
    spare = np.bincount(ratings.users, minlength=ratings.n_users) - 1
    latest[np.arange(n_last)[None, :] >= spare[:, None]] = -1
    held = np.zeros(len(ratings), bool)
    held[latest[latest >= 0]] = True
    rows = Interactions(ratings.users, ratings.items, ratings.labels)
    return Split(ratings.name, rows.take(~held), rows.take(held), ratings.n_users, ratings.n_items)
