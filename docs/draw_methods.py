"""Draw the pictures of docs/methods.md, one a linear method: its sketch H, and where the blocks of M lie.

`python docs/draw_methods.py` writes docs/methods/*.svg; it needs matplotlib (`pip install -e '.[plot]'`). With `--time`
it prints the times of the page's table instead; `OPENBLAS_NUM_THREADS=1` then keeps all of it on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cce_core as cce
from cce_core.sketching.layout import DIGIT, HASH, IDENTITY, MAP, POINTER

VOCAB, DIM, GROUPS = 24, 8, 4
FOLDER = Path(__file__).parent / "methods"
COLOURS = {IDENTITY: "#333333", HASH: "#d9730d", POINTER: "#1f5fbf", DIGIT: "#2e8540", MAP: "#8250df"}
WORDS = {
    IDENTITY: "the id itself",
    HASH: "hashed",
    POINTER: "learned",
    DIGIT: "a digit of the id",
    MAP: "own or shared",
}
PALE = 0.95

# Tables so small that every block can be seen.
TINY: dict[str, dict[str, Any]] = {
    "full": {},
    "ldim": {"num_params": 24 * 2 + 3 * 8},
    "hash": {"num_params": 8 * 8},
    "bloom": {"num_params": 8 * 12, "n_hashes": 3},
    "hemb": {"num_params": 8 * 24, "n_hashes": 2},
    "rhemb": {"num_params": 32},
    "ce": {"num_params": 8 * 8, "n_chunks": 4},
    "qr": {"num_params": 8 * 5, "n_chunks": 2},
    "robe": {"num_params": 20, "n_chunks": 2},
    "hnet": {"num_params": 6},
    "cce": {"num_params": 2 * 8 * 5, "n_chunks": 4, "rank": 0},
    "cce_robe": {"num_params": 2 * 10, "n_chunks": 2},
    "pq": {"num_params": 8 * 6, "n_chunks": 4},
    "vq": {"num_params": 8 * 6, "rank": 0},
    "sparse": {"num_params": 8 * 10 + 16},
    "sparse2": {"num_params": 2 * 8 * 10},
    "tiered": {"num_params": 8 * 13, "rank": 0},
}


def tiny(name: str) -> cce.Table:
    """A table of 24 ids; a learned one has learned from vectors in four groups of six ids, so that it shows."""
    table = cce.make_table(name, vocab=VOCAB, dim=DIM, seed=1, **TINY[name])
    rng = np.random.default_rng(0)
    if table.method.learns:
        groups = np.repeat(rng.standard_normal((GROUPS, DIM)), VOCAB // GROUPS, axis=0)
        table.cluster(vectors=groups + 0.2 * rng.standard_normal((VOCAB, DIM)))
    if name == "tiered":  # the even ids are met, and the first ten of them have rows of their own
        table.backward(np.arange(0, 20, 2), np.zeros((10, DIM)))
        table.settle()
        table.requantize()
    if name == "hemb":  # its weights begin as ones: drawn as if they were trained, so that they show
        weights = table.parameters()["weights"]
        weights[:] = rng.uniform(0.2, 1, len(weights))
    return table


def groups_of(table: cce.Table) -> list[tuple[int, str, str]]:
    """The blocks in the order of H's columns: how many belong together, their colour and what addresses them."""
    layout, seen = table.layout, dict[tuple[int, int, int], tuple[int, str, str]]()
    for j, column in enumerate(layout.columns):
        where = (j // layout.terms, column.base, column.stride)
        seen.setdefault(where, (column.rows, COLOURS[column.kind], WORDS[column.kind]))
    bias = [(1, "#999999", "every id: the bias")] if table.spec.rank else []
    return [*seen.values(), *bias]


def painted(values: NDArray[Any], colours: NDArray[Any]) -> NDArray[Any]:
    """RGB of a matrix: the larger a number's magnitude, the fuller its column's colour; zeros are pale."""
    share = np.abs(values)[..., None] / np.abs(values).max()
    share = np.where(share > 0, 0.25 + 0.75 * share, 0)
    return np.uint8(np.round(255 * (share * colours + (1 - share) * PALE)))


def draw(name: str) -> None:
    """Write the picture of one method: H, and below each of its columns the block of M that it stands for."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import colors, patches, pyplot

    matplotlib.rcParams.update({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 8})
    table = tiny(name)
    h, m, _ = table.factors()
    m.data[:] = 1  # where a block lies, not what it holds
    groups = groups_of(table)
    colour = np.array([colors.to_rgb(c) for n, c, _ in groups for _ in range(n)])
    cell, left, foot, gap, head = 0.09, 0.45, 0.3, 0.25, 0.25  # inches
    rows, columns = h.shape
    inner = m.shape[1]
    size = max(left + columns * cell + 0.1, 2.6), foot + inner * cell + gap + rows * cell + head
    figure = pyplot.figure(figsize=size)
    panels = (
        (h.toarray(), foot + inner * cell + gap, f"H: {rows} ids × {columns} blocks", "ids"),
        (m.toarray().T, foot, "", "Mᵀ"),
    )
    for values, bottom, title, label in panels:
        tall = values.shape[0] * cell
        axes = figure.add_axes((left / size[0], bottom / size[1], columns * cell / size[0], tall / size[1]))
        axes.imshow(painted(values, colour), interpolation="none", aspect="auto", extent=(0, columns, 0, 1))
        axes.set(xticks=[], yticks=[], ylabel=label)
        axes.set_title(title, loc="left")
        for end in np.cumsum([n for n, _, _ in groups])[:-1]:
            axes.axvline(end, color="black", linewidth=0.6)
    handles = [patches.Patch(color=c, label=word) for word, c in {word: c for _, c, word in groups}.items()]
    figure.legend(handles=handles, loc="lower left", ncols=len(handles), frameon=False, handlelength=1)
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def timed(
    turns: int = 300, vocab: int = 100_000, dim: int = 32, num_params: int = 65_536
) -> Iterator[tuple[str, float]]:
    """Median seconds of a lookup of 1,000 ids on one thread, all methods in turn; fresh random ids in every turn."""
    cce.set_num_threads(1)
    tables = {}
    for method in cce.methods():
        room = 2 * vocab + 3 * dim if method.name == "ldim" else num_params  # a narrow table does not fit: rank 2
        budget: dict[str, Any] = {"num_params": room} if method.budgeted else {}
        budget |= {"phase": "codes"} if method.phased else {}
        tables[method.name] = cce.make_table(method.name, vocab, dim, seed=0, **budget)
    rng, seconds = np.random.default_rng(0), dict[str, list[float]]((name, []) for name in tables)
    for turn in range(turns + 10):
        ids = rng.integers(0, vocab, 1000)
        for name, table in tables.items():
            start = time.perf_counter()
            table.lookup(ids)
            if turn >= 10:
                seconds[name].append(time.perf_counter() - start)
    return ((name, statistics.median(taken)) for name, taken in seconds.items())


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--time", action="store_true", help="time lookups instead of drawing")
    if parser.parse_args().time:
        times = dict(timed())
        for name, seconds in times.items():
            print(f"{name:10}{seconds * 1e6:8.1f} µs  {seconds / times['full']:6.2f} × full")
        return 0
    FOLDER.mkdir(exist_ok=True)
    for name in TINY:
        draw(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
