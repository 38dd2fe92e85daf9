"""Two entropies that show when learned pointers collapse: of one column, and of a pair of columns.

A column whose entropy is near 0 points everywhere to the same row. Two columns whose joint entropy is no more than
one's own are copies of each other: together they tell ids apart no better than one alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check

_TABLE = 1 << 20  # pairs are counted in a table up to this many cells, and up to four a label, by sorting beyond
_CHUNK = 1 << 20  # labels counted at a time


def column_entropy(labels: Any, k: int) -> float:
    """The entropy of a column of labels in nats, `−Σ_c p_c log p_c` with p_c the share of label c.

    Args:
        labels: integers (n,) in [0, k), n at least 1.
        k: how many labels there are.

    Returns:
        A number in [0, log k]: 0 where all labels are equal, log k where all are equally frequent.

    Raises:
        TypeError: labels or k are not integers.
        ValueError: no labels, or not one column of them; k out of range.
        IndexError: a label outside [0, k).

    Cost:
        One pass over the labels with scratch of k counts; one sort where k is beyond 2^20 and n.

    References:
        Tsang and Ahle, arXiv:2210.05974.

    Example:
        >>> from cce_core.clustering import column_entropy
        >>> round(column_entropy([0, 1, 2, 3], 4), 6), column_entropy([2, 2, 2], 4)
        (1.386294, 0.0)
    """
    k = _check.integer("k", k, 1, 2**31)
    return _column(_checked(labels, k), k)


def pair_entropy(a: Any, b: Any, k: int) -> float:
    """The joint entropy of two columns of labels in nats, `−Σ_cd p_cd log p_cd` with p_cd the share of the pair (c, d).

    Args:
        a: integers (n,) in [0, k), n at least 1.
        b: the same.
        k: how many labels there are.

    Returns:
        A number in [0, 2 log k], never below either column's own entropy (up to rounding).

    Raises:
        TypeError: labels or k are not integers.
        ValueError: no labels, columns of unequal length, k out of range.
        IndexError: a label outside [0, k).

    Cost:
        One pass over the labels where k² is at most 2^20 and 4·n, else one sort of n combined codes.

    References:
        Tsang and Ahle, arXiv:2210.05974.

    Example:
        >>> from cce_core.clustering import pair_entropy
        >>> round(pair_entropy([0, 0, 1, 1], [0, 1, 0, 1], 2), 6), round(pair_entropy([0, 1], [0, 1], 2), 6)
        (1.386294, 0.693147)
    """
    k = _check.integer("k", k, 1, 2**31)
    a, b = _checked(a, k), _checked(b, k)
    if a.size != b.size:
        raise ValueError(f"two columns must have the same number of labels, got {a.size} and {b.size}")
    return _pair(a, b, k)


def least_entropies(columns: Sequence[Any] | NDArray[Any], k: int) -> tuple[float, float]:
    """The least entropy of a column, H1, and the least of a pair of columns, H2.

    Args:
        columns: c columns of integers (n,) in [0, k): a list of them, or an array of shape (c, n).
        k: how many labels there are.

    Returns:
        (H1, H2) in nats, at most log k and 2 log k. For a single column H2 is that of the column with itself, H1.

    Raises:
        TypeError: labels or k are not integers.
        ValueError: no columns, no labels, columns of unequal length, k out of range.
        IndexError: a label outside [0, k).

    Cost:
        `column_entropy` for each column and `pair_entropy` for each of the c·(c − 1)/2 pairs.

    Example:
        >>> from cce_core.clustering import least_entropies
        >>> h1, h2 = least_entropies([[0, 1, 2, 3], [3, 2, 1, 0], [0, 0, 1, 1]], 4)
        >>> round(h1, 6), round(h2, 6)
        (0.693147, 1.386294)
    """
    k = _check.integer("k", k, 1, 2**31)
    checked = [_checked(column, k) for column in _check.sequence("columns", columns, "columns of labels")]
    if not checked:
        raise ValueError("there must be at least one column of labels: columns is empty")
    if len({column.size for column in checked}) > 1:
        sizes = ", ".join(str(column.size) for column in checked)
        raise ValueError(f"columns must have the same number of labels, got {sizes}")
    first = min(_column(column, k) for column in checked)
    pairs = [_pair(a, b, k) for a, b in itertools.combinations(checked, 2)]
    return first, min(pairs, default=first)


def _checked(labels: Any, k: int) -> NDArray[Any]:
    """One column of labels as it is (no copy), its labels known to be in [0, k)."""
    column = _check.array("labels", labels, "integers")
    if column.ndim != 1 or column.size == 0:
        raise ValueError(f"labels must be one column (n,) with at least one label, got shape {column.shape}")
    if column.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got {column.dtype}; labels = labels.astype(np.int64)")
    least, most = int(column.min()), int(column.max())
    if least < 0 or most >= k:
        raise IndexError(f"labels must be between 0 and {k - 1}, got {least if least < 0 else most}")
    return column


def _column(column: NDArray[Any], k: int) -> float:
    if k > max(_TABLE, column.size):  # mostly labels that do not occur
        return _entropy(np.unique(column, return_counts=True)[1], column.size, math.log(k))
    counts = np.zeros(k, np.int64)
    for low in range(0, column.size, max(_CHUNK, k)):
        counts += np.bincount(column[low : low + max(_CHUNK, k)].astype(np.intp), minlength=k)
    return _entropy(counts, column.size, math.log(k))


def _pair(a: NDArray[Any], b: NDArray[Any], k: int) -> float:
    n = a.size
    if k * k <= min(_TABLE, 4 * n):
        counts = np.zeros(k * k, np.int64)
        for low in range(0, n, _CHUNK):
            part = slice(low, low + _CHUNK)
            codes = a[part].astype(np.intp) * k + b[part].astype(np.intp)
            counts += np.bincount(codes, minlength=k * k)
    else:
        kind = np.uint32 if k * k <= 2**32 else np.uint64
        codes = a.astype(kind)
        codes *= kind(k)
        codes += b.astype(kind)
        codes.sort()
        starts = np.flatnonzero(np.concatenate(([True], codes[1:] != codes[:-1])))
        counts = np.diff(starts, append=n)
    return _entropy(counts, n, 2.0 * math.log(k))


def _entropy(counts: NDArray[np.int64], n: int, most: float) -> float:
    shares = counts[counts > 0] / n
    return min(max(0.0, -float(np.sum(shares * np.log(shares)))), most)  # rounding may pass either end
