"""Every data set by its name."""

from __future__ import annotations

import os

from cce_core import _check
from cce_core.datasets.fetch import INTERACTIONS, SOURCES, find, rating_file
from cce_core.datasets.interactions import Split, split_last
from cce_core.datasets.movielens import read_ratings
from cce_core.datasets.negatives import split_with_negatives
from cce_core.datasets.pairs import read_interactions
from cce_core.datasets.synthetic import synthetic_like


def names() -> tuple[str, ...]:
    """The names that `load` knows.

    Example:
        >>> from cce_core.datasets import names
        >>> names()[:4]
        ('ml-100k', 'ml-1m', 'ml-10m', 'ml-20m')
    """
    return (*SOURCES, *INTERACTIONS, *(f"synthetic-{name}" for name in SOURCES))


def load(
    name: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    seed: int = 0,
) -> Split:
    """A data set, read from disk and split.

    Of ratings each user's last two by time are the validation set. Of interactions without ratings (Gowalla, Book-Crossing, a
    file of one's own) it is a random tenth, and negatives are drawn beside them: see `split_with_negatives`.

    Args:
        name: one of `names()`, or the path of a file that `read_interactions` reads. `synthetic-ml-100k` and its like are drawn,
            not read: the shape of the data set named, from a known truth.
        data_dir: where to look first; then come the folder in the environment variable `CCE_DATA` and the user's cache.
        download: whether a data set that is not found may be downloaded, into the first of these folders that is given;
            only MovieLens' can be.
        seed: of synthetic data, and of the split of interactions; there is no chance in the split of ratings.

    Returns:
        The `Split`.

    Raises:
        ValueError: there is no such data set, or its file is torn, malformed or another one.
        FileNotFoundError: it is not on this machine, and `download` is False or it is never downloaded.
        ConnectionError: the download failed.

    Cost:
        The 25 million ratings of `ml-25m` take 4 to 8 seconds and, at the peak, about 1.1 GB of memory.

    Example:
        >>> import cce_core.datasets
        >>> cce_core.datasets.load("ml-10k")
        Traceback (most recent call last):
        ...
        ValueError: data set must be one of ml-100k, ml-1m, ..., or a file of interactions; got 'ml-10k'
    """
    path = _check.path("data set", name)
    download, seed = _check.flag("download", download), _check.seed(seed)
    data_dir = None if data_dir is None else _check.path("data_dir", data_dir)
    name = str(path)
    if name in INTERACTIONS:
        return split_with_negatives(read_interactions(find(name, data_dir), name=name), seed)
    if name not in names():
        if not path.is_file():
            raise ValueError(f"data set must be one of {', '.join(names())}, or a file of interactions; got {name!r}")
        return split_with_negatives(read_interactions(path), seed)
    if name not in SOURCES:
        return synthetic_like(name.removeprefix("synthetic-"), seed)
    source = SOURCES[name]
    path = rating_file(name, data_dir, download)
    return split_last(read_ratings(path, source.separator, name=name, n_lines=source.n_lines))
