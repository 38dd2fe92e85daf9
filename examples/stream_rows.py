"""Who keeps the rows of `stream.py`: the library's tables, a dictionary that grows without bound, and CAFE's rule.

Each takes ids of users and items, any 64-bit ones, gives the vectors of both side by side, (n, 2·dim), and learns from their
gradients by Adagrad. `stored` is what it keeps to serve from, `held` what it keeps while it trains.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import cce_core as cce
from cce_core.hashing import mix_hash

Words = NDArray[np.uint64]
Floats = NDArray[np.float32]
SIDES = ("user", "item")
# Learning rates and settings that were the best of those tried; see docs/streams.md.
OWN: dict[str, dict[str, Any]] = {"cafe": {"hot": 0.999, "slots": 1, "decay": 0.98}}
LR = 0.1
_INT = 32  # bytes of an int of Python's


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """A method and its settings as people write them.

    Example:
        >>> parsed("hash:rank=4:codec=int8:lr=0.2")
        ('hash', {'rank': 4, 'codec': 'int8', 'lr': 0.2})
    """
    name, *rest = text.split(":")
    found: dict[str, Any] = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise ValueError(f"--method {text}: expected such as {name}:rank=4, got {part!r}")
        found[key.replace("-", "_")] = _value(value)
    return name, found


def _value(text: str) -> Any:
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def streamable() -> list[str]:
    """The library's methods that a stream without end can use: not those with a row or a code for every id."""
    return [m.name for m in cce.methods() if m.budgeted and not m.post_training and m.name not in ("vq", "ldim")]


def make_rows(text: str, dim: int, num_bytes: int, seed: int) -> Any:
    """The keeper of rows that `text` names, within a budget of stored bytes.

    Raises:
        ValueError: there is no such method or setting, or the budget is too small.
    """
    name, given = parsed(text)
    options = {"lr": LR, **OWN.get(name, {}), **given}
    if name == "dict":
        return Dictionary(dim, seed, **options)
    if name == "cafe":
        return Cafe(dim, num_bytes, seed, **options)
    if name not in streamable():
        raise ValueError(f"--method {name}: the methods are dict, cafe, {', '.join(streamable())}")
    return Tables(name, dim, num_bytes, seed, **options)


class Tables:
    """Tables of the library: `tiered` with one budget for both, others with half of it each.

    Methods that need a vocabulary are given ids hashed to one of `vocab`; None takes so many that a quarter of the budget are
    their pointers, of two chunks of 8 bits. Such as cluster do so every `cluster_every` steps.
    """

    def __init__(
        self, name: str, dim: int, num_bytes: int, seed: int, *, lr: float, projection_lr: float | None = None,
        rowwise: bool = True, vocab: int | None = None, cluster_every: int = 500, **options: Any,
    ) -> None:  # fmt: skip
        self.vocab: int | None = None
        self.tables: list[Any] = []
        if name == "tiered":
            self.both: Any = cce.make_collection(name, SIDES, dim, num_bytes=num_bytes, seed=seed, **options)
        else:
            learns = next(m for m in cce.methods() if m.name == name).learns
            if learns or name in ("qr", "tt"):
                self.vocab = num_bytes // 16 if vocab is None else vocab
            self.tables = [
                cce.make_table(name, self.vocab, dim, num_bytes=num_bytes // 2, seed=2 * seed + k, **options)
                for k in range(2)
            ]
            self.both = cce.Collection(self.tables)
        self.optimizer = cce.Adagrad(lr, rowwise=rowwise, projection_lr=projection_lr)
        self.every = cluster_every if self.vocab is not None and self.tables[0].method.learns else 0
        self.steps, self.seen = 0, None

    def ledger(self) -> Any:
        """Of both tables."""
        return self.tables[0].ledger() + self.tables[1].ledger() if self.tables else self.both.ledger()

    @property
    def stored(self) -> int:
        """Bytes to serve from."""
        return int(self.ledger().total)

    @property
    def held(self) -> int:
        """Bytes while it trains, from one step to the next."""
        return int(self.ledger().kept)

    @property
    def params(self) -> int:
        """Trained numbers."""
        return int(self.both.shared.num_params if not self.tables else sum(t.num_params for t in self.tables))

    def ids(self, users: Words, items: Words) -> NDArray[Any]:
        """(n, 2), as the tables take them."""
        if self.vocab is None:
            return np.stack([users, items], 1)
        return np.stack([mix_hash(ids, self.vocab, seed=7, stream=k) for k, ids in enumerate((users, items))], 1)

    def forward(self, users: Words, items: Words) -> Floats:
        """The vectors."""
        self.seen = self.both.forward(self.ids(users, items))
        return self.seen.vectors

    def learn(self, grads: Floats) -> None:
        """A step."""
        self.optimizer.update(self.both, self.seen, grads)
        self.steps, self.seen = self.steps + 1, None
        if self.every and self.steps % self.every == 0:
            for table in self.tables:
                table.cluster(residual=True)

    def __str__(self) -> str:
        if self.tables:
            return "\n".join(map(repr, self.tables))
        return repr(self.both)


class Dictionary:
    """A row of its own for every id that ever came: exact, and without bound.

    Its bytes are rows and 8 bytes per id, the least that a dictionary of them takes; training holds more, for rows grow by
    doubling, and Python's dict is as large as it is.

    Args:
        dim: floats of a row.
        seed: of first values.
        lr: learning rate.
        init: deviation of first values.
        rowwise: one number of the optimizer's state for a row, else one for each float.
        prior: whether a new row begins as its side's first row, which learns from all ids when they come first; else about 0.
    """

    def __init__(
        self, dim: int, seed: int, *, lr: float, init: float = 0.05, prior: bool = False, rowwise: bool = True
    ) -> None:
        self.dim, self.lr, self.init, self.prior, self.rowwise = dim, np.float32(lr), init, prior, rowwise
        self.rng = np.random.default_rng(seed)
        self.numbers: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.n = 0
        self.memory, self.squares = (np.empty((1024, n), np.float32) for n in (dim, 1 if rowwise else dim))
        for side in range(2 * prior):
            self._rows(np.zeros(1, np.uint64), side)

    @property
    def stored(self) -> int:
        """Rows and ids."""
        return self.n * (4 * self.dim + 8)

    @property
    def held(self) -> int:
        """All that there is."""
        own = sum(numbers.__sizeof__() + 2 * _INT * len(numbers) for numbers in self.numbers)
        return self.memory.nbytes + self.squares.nbytes + own

    @property
    def params(self) -> int:
        """Trained numbers."""
        return self.n * self.dim

    def _rows(self, ids: Words, side: int) -> NDArray[np.int64]:
        numbers, n = self.numbers[side], self.n
        rows = []
        for word in ids.tolist():
            row = numbers.get(word)
            if row is None:
                row = numbers[word] = n
                n += 1
            rows.append(row)
        if n > len(self.memory):
            grown = max(n, 2 * len(self.memory))
            self.memory, self.squares = (
                np.concatenate([old[: self.n], np.empty((grown - self.n, old.shape[1]), np.float32)])
                for old in (self.memory, self.squares)
            )
        fresh = self.rng.standard_normal((n - self.n, self.dim), np.float32) * np.float32(self.init)
        fresh[:, 0] = 0.0  # what an id adds by itself
        if self.prior and self.n > side:
            fresh[:] = self.memory[side]
        self.memory[self.n : n], self.squares[self.n : n] = fresh, 0.0
        self.n = n
        return np.array(rows, np.int64)

    def forward(self, users: Words, items: Words) -> Floats:
        """The vectors; new ids have rows from now on."""
        self.new = self.n
        self.seen = np.stack([self._rows(users, 0), self._rows(items, 1)], 1)
        return self.memory[self.seen].reshape(len(users), -1)

    def learn(self, grads: Floats) -> None:
        """A step."""
        rows, total = summed(self.seen, grads.reshape(-1, self.dim))
        if self.prior:
            first = (self.seen >= self.new).reshape(-1)
            sides = np.tile(np.arange(2), len(self.seen))
            self._step(*summed(sides[first], grads.reshape(-1, self.dim)[first]))
        self._step(rows, total)

    def _step(self, rows: NDArray[Any], total: Floats) -> None:
        squares = np.square(total)
        self.squares[rows] += squares.mean(1, keepdims=True) if self.rowwise else squares
        self.memory[rows] -= self.lr * total / (np.sqrt(self.squares[rows]) + np.float32(1e-10))

    def __str__(self) -> str:
        return "a dictionary that grows without bound"


def summed(rows: NDArray[Any], grads: Floats) -> tuple[NDArray[Any], Floats]:
    """Different rows, in order, and the sums of their gradients."""
    different, where = np.unique(rows, return_inverse=True)
    order = np.argsort(where.reshape(-1), kind="stable")
    starts = np.searchsorted(where.reshape(-1)[order], np.arange(len(different)))
    return different, np.add.reduceat(grads[order], starts, axis=0)


class HotSketch:
    """CAFE's sketch: buckets of four slots, each an id's fingerprint, its score and the row it has been given.

        the id is there       score += s
        a slot is free        it takes that, with s
        else                  it takes the slot of the least score c, and c + s

    Args:
        n_slots: a multiple of 4.
        seed: of both hashes.

    Paper:
        Zhang et al., CAFE, arXiv:2312.03256; the rule of the least slot: Metwally et al., Space-Saving (ICDT 2005).
    """

    SLOTS = 4
    BYTES = 12  # of a slot: three numbers of 32 bits

    def __init__(self, n_slots: int, seed: int) -> None:
        shape = n_slots // self.SLOTS, self.SLOTS
        self.keys, self.scores = np.zeros(shape, np.uint32), np.zeros(shape, np.float32)
        self.rows, self.seed = np.full(shape, -1, np.int32), seed

    def places(self, ids: Words) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """The bucket and the fingerprint (never 0) of each id."""
        buckets = mix_hash(ids, len(self.keys), seed=self.seed, stream=1).astype(np.int64)
        return buckets, (mix_hash(ids, 2**32 - 1, seed=self.seed, stream=2) + np.uint64(1)).astype(np.uint32)

    def find(self, ids: Words) -> NDArray[np.int64]:
        """The slot of each id, counted through all buckets; −1 for none."""
        buckets, keys = self.places(ids)
        hit = self.keys[buckets] == keys[:, None]
        return np.where(hit.any(1), buckets * self.SLOTS + hit.argmax(1), -1)

    def add(self, ids: Words, scores: Floats) -> NDArray[np.int32]:
        """Add to the scores of different ids, those that are there first, then newcomers in order; returns the rows whose owners
        lost their slots."""
        found, freed = self.find(ids), []
        here = found >= 0
        self.scores.reshape(-1)[found[here]] += scores[here]
        # Newcomers of one bucket come one after the other, those of different buckets at once.
        buckets, keys = self.places(ids[~here])
        added, order = scores[~here], np.argsort(buckets, kind="stable")
        turn = np.empty(len(order), np.int64)
        ordered = buckets[order]
        turn[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
        for k in range(int(turn.max(initial=-1)) + 1):
            now = np.flatnonzero(turn == k)
            at = buckets[now]
            slot = np.where(self.keys[at] == 0, np.float32(-1.0), self.scores[at]).argmin(1)
            freed.append(self.rows[at, slot])
            self.scores[at, slot] += added[now]  # 0 where the slot was free
            self.keys[at, slot], self.rows[at, slot] = keys[now], -1
        lost = np.concatenate([np.empty(0, np.int32), *freed])
        return lost[lost >= 0]


class Cafe:
    """CAFE's rule over a table of the library: ids of high scores have own rows, all others share their side's rows by hash.

    The score is the sum of the norms of an id's gradients, times `decay` every `period` steps, when the threshold becomes the
    score which as many ids reach as there are own rows. Who reaches it is given a free row, a copy of the shared one, with an
    optimizer's state of its own; who falls below it, or loses the slot, gives the row up.

    Args:
        dim: floats of a vector.
        num_bytes: of rows and sketch together.
        seed: of first values and hashes.
        lr: learning rate of the rows.
        projection_lr: that of a projection, with a rank.
        rowwise: one number of the optimizer's state for a row, else one for each float.
        hot: the share of rows that are own ones.
        slots: of the sketch, for each own row.
        decay: of the scores.
        period: steps between decays.
        options: of the rows, such as rank and codec; they are float32 and as wide as the vectors, as published.
    """

    def __init__(
        self, dim: int, num_bytes: int, seed: int, *, lr: float, projection_lr: float | None = None, rowwise: bool = True,
        hot: float = 0.7, slots: float = 2.0, decay: float = 0.9, period: int = 100, **options: Any,
    ) -> None:  # fmt: skip
        def parts(n: int) -> tuple[int, int, int]:
            own = max(1, int(hot * n))
            return own, max(2, n - own), 4 * -(-int(slots * own) // 4)

        def table(n: int) -> Any:
            return cce.make_table("full", n, dim, seed=seed, **options)

        def fits(n: int) -> bool:
            own, shared, n_slots = parts(n)
            return per_row * (own + shared) + fixed + HotSketch.BYTES * n_slots <= num_bytes

        few, many = (table(n).ledger().total for n in (64, 128))
        per_row, fixed = (many - few) / 64, 2 * few - many
        most = int(num_bytes / per_row)
        n = next((k for k in range(most, 1, -max(1, most // 2000)) if fits(k)), 0)
        if not n:
            raise cce.BudgetError(f"{num_bytes:,} bytes are too few for a sketch and rows")
        self.n_own, self.n_shared, n_slots = parts(n)
        self.rows, self.dim, self.seed = table(self.n_own + self.n_shared), dim, seed
        self.sketch = HotSketch(n_slots, seed)
        self.optimizer = cce.Adagrad(lr, rowwise=rowwise, projection_lr=projection_lr)
        self.free = list(range(self.n_own - 1, -1, -1))
        self.decay, self.period, self.threshold, self.steps = np.float32(decay), period, np.float32(0.0), 0

    @property
    def stored(self) -> int:
        """Rows and sketch."""
        return int(self.rows.ledger().total) + HotSketch.BYTES * self.sketch.keys.size

    @property
    def held(self) -> int:
        """The same, and the optimizer's state."""
        return int(self.rows.ledger().kept) + HotSketch.BYTES * self.sketch.keys.size

    @property
    def params(self) -> int:
        """Trained numbers."""
        return int(self.rows.num_params)

    def shared(self, ids: Words) -> NDArray[np.int64]:
        """The shared row of each id, of its own side's."""
        n = self.n_shared // 2
        places = mix_hash(ids, n, seed=self.seed, stream=3).astype(np.int64)
        return self.n_own + places + n * (ids >> np.uint64(63)).astype(np.int64)

    def forward(self, users: Words, items: Words) -> Floats:
        """The vectors."""
        hashed = [mix_hash(ids, 2**63, seed=self.seed, stream=4) for ids in (users, items)]
        self.ids = np.stack([hashed[0], hashed[1] | np.uint64(1 << 63)], 1).reshape(-1)
        slots = self.sketch.find(self.ids)
        own = np.where(slots >= 0, self.sketch.rows.reshape(-1)[slots], -1)
        self.seen = self.rows.forward(np.where(own >= 0, own, self.shared(self.ids)))
        return self.seen.vectors.reshape(len(users), -1)

    def learn(self, grads: Floats) -> None:
        """A step, scores, and rows that change hands."""
        grads = np.ascontiguousarray(grads).reshape(-1, self.dim)
        self.optimizer.update(self.rows, self.seen, grads)
        ids, total = summed(self.ids, grads)
        self.free += self.sketch.add(ids, np.sqrt(np.square(total).sum(1))).tolist()
        self.steps += 1
        scores, rows = self.sketch.scores.reshape(-1), self.sketch.rows.reshape(-1)
        if self.steps % self.period == 0:
            scores *= self.decay
            self.threshold = (
                np.partition(scores, -self.n_own)[-self.n_own] if len(scores) > self.n_own else np.float32(0)
            )
            cold = np.flatnonzero((rows >= 0) & (scores < self.threshold))
            self.free += rows[cold].tolist()
            rows[cold] = -1
        slots = self.sketch.find(ids)
        wanting = (slots >= 0) & (scores[slots] >= self.threshold) & (rows[slots] < 0)
        at = np.flatnonzero(wanting)
        at = at[np.argsort(-scores[slots[at]], kind="stable")][: len(self.free)]
        if len(at):
            given = np.array([self.free.pop() for _ in at], np.int64)
            rows[slots[at]] = given
            self.copy(self.shared(ids[at]), given)

    def copy(self, sources: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        """Rows become what others are, without a state."""
        unit = self.rows.block_sizes()["memory"]
        states = self.optimizer.states_of_memory(self.rows)
        for state in states:
            state.reshape(self.n_own + self.n_shared, -1)[targets] = 0.0
        if self.rows.spec.codec == "float32":
            memory = self.rows.parameters()["memory"].reshape(-1, unit)
            memory[targets] = memory[sources]
            self.rows.requantize()
            return
        values = self.rows.stored.read_rows(sources, unit)

        def change(p: Floats, at: Words, part: Any) -> None:
            p[at[:, None] + np.arange(unit, dtype=np.uint64)] = values[part]

        self.rows.update_rows(targets, change)

    def __str__(self) -> str:
        kept = f"{self.n_own:,} own and {self.n_shared:,} shared rows, {self.sketch.keys.size:,} slots"
        return f"<cafe: {kept}, {self.stored:,} bytes>\n{self.rows!r}"
