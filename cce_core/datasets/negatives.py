"""From interactions to a task: a split by time or at random, and, where all are positive, a negative beside each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.datasets.interactions import Interactions, Pairs, Split


def split_with_negatives(pairs: Pairs, seed: int = 0) -> Split:
    """Hold out a tenth of the pairs, the latest or some drawn at random, and draw a negative beside each positive.

    With `rng = numpy.random.default_rng(seed)`, in this order:

    1. `rng.permutation(n)` permutes all pairs; the first ⌊n / 10⌋ are for validation, the rest for training. Of pairs with times
       the latest ⌊n / 10⌋ are for validation (of equal times those further down the file), and nothing is permuted;
    2. in either part, validation first, each of its m pairs gets a negative of the same user: if `rng.random(m)` is below 1/2
       the item of one of the part's pairs (`rng.integers(m, size=m)`: by popularity), else any
       (`rng.integers(n_items, size=m)`);
    3. if a user has met its negative, in either part, another item is drawn (`rng.integers(n_items, size=…)`), unchecked.

    So half of the negatives are as popular as the positives are, and popularity alone tells little.

    Args:
        pairs: what `read_interactions` gives, at least 10.
        seed: of the permutation and the negatives.

    Returns:
        The `Split`: in both parts first the positives (label 1), then their negatives (label 0) in the same order.

    Raises:
        ValueError: there are fewer than 10 pairs, so that none would be held out.

    Cost:
        A sort of the pairs and a binary search per negative: 0.5 s for a million pairs. The result takes 40 bytes per pair, and
        about 50 more are needed at the peak.

    Example:
        >>> import numpy as np
        >>> from cce_core.datasets import Pairs, split_with_negatives
        >>> users, items = np.arange(100) % 5, np.arange(100) % 7
        >>> split = split_with_negatives(Pairs("mine", users, items, np.arange(5), np.arange(7)), seed=1)
        >>> len(split.train), len(split.valid), float(split.valid.labels.mean())
        (180, 20, 0.5)
    """
    _check.instance("pairs", pairs, Pairs, "what read_interactions gives")
    rng, n = np.random.default_rng(_check.seed(seed)), len(pairs)
    if n < 10:
        raise ValueError(f"{pairs.name} holds {n} pairs, expected at least 10: a tenth of them is held out")
    met = np.sort(pairs.users * pairs.n_items + pairs.items)
    order = _order(pairs, rng)
    valid, train = (
        _with_negatives(pairs.users[rows], pairs.items[rows], pairs.n_items, met, rng)
        for rows in (order[: n // 10], order[n // 10 :])
    )
    return Split(pairs.name, train, valid, pairs.n_users, pairs.n_items)


def split_pairs(pairs: Pairs, seed: int = 0) -> Split:
    """Hold out a tenth of the pairs, the latest if there are times, else drawn at random; negatives are drawn if none are there.

    Args:
        pairs: what `read_interactions` gives, at least 10.
        seed: of the split and of negatives.

    Returns:
        The `Split`: of labelled pairs as they are, else as `split_with_negatives` makes it.

    Raises:
        ValueError: there are fewer than 10 pairs, or either part has labels of one kind alone.

    Example:
        >>> import numpy as np
        >>> from cce_core.datasets import Pairs, split_pairs
        >>> labels, times = np.float32([0, 1] * 10), np.arange(20.0)
        >>> pairs = Pairs("mine", np.arange(20), np.arange(20), np.arange(20), np.arange(20), labels, times)
        >>> split_pairs(pairs).valid.users
        array([19, 18])
    """
    _check.instance("pairs", pairs, Pairs, "what read_interactions gives")
    if pairs.labels is None:
        return split_with_negatives(pairs, seed)
    n = len(pairs)
    if n < 10:
        raise ValueError(f"{pairs.name} holds {n} pairs, expected at least 10: a tenth of them is held out")
    order = _order(pairs, np.random.default_rng(_check.seed(seed)))
    rows = Interactions(pairs.users, pairs.items, pairs.labels)
    valid, train = rows.take(order[: n // 10]), rows.take(order[n // 10 :])
    for what, part in (("validation", valid), ("training", train)):
        if part.labels.min() == part.labels.max():
            raise ValueError(
                f"{pairs.name}: every label of the {what} part is {part.labels[0]:g}; expected some of either kind "
                "(of positives alone, leave the label out: negatives are drawn)"
            )
    return Split(pairs.name, train, valid, pairs.n_users, pairs.n_items)


def _order(pairs: Pairs, rng: np.random.Generator) -> NDArray[np.int64]:
    """The rows, those for validation first."""
    if pairs.times is None:
        return rng.permutation(len(pairs))
    return np.argsort(pairs.times, kind="stable")[::-1]


def _with_negatives(
    users: NDArray[np.int64], items: NDArray[np.int64], n_items: int, met: NDArray[np.int64], rng: np.random.Generator
) -> Interactions:
    """The positives of a part, then their negatives; `met` holds user · n_items + item of all positives, sorted."""
    m = users.size
    popular = rng.random(m) < 0.5
    negatives = items[rng.integers(m, size=m)]
    negatives = np.where(popular, negatives, rng.integers(n_items, size=m))
    again = _among(users * n_items + negatives, met)
    negatives[again] = rng.integers(n_items, size=np.count_nonzero(again))
    labels = np.repeat(np.array([1, 0], np.float32), m)
    return Interactions(np.concatenate([users, users]), np.concatenate([items, negatives]), labels)


def _among(keys: NDArray[np.int64], met: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which keys are in the sorted array `met`."""
    order = np.argsort(keys)  # in this order neighbours are in the cache: twice as quick in all
    keys = keys[order]
    places = np.searchsorted(met, keys)
    places[places == met.size] = 0
    found = np.empty(keys.size, bool)
    found[order] = met[places] == keys
    return found
