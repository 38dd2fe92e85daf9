"""The model that sweeps train where they are given none: generalised matrix factorisation, its training loop and its measures."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core._progress import progress
from cce_core.datasets import Interactions, Split
from cce_core.tables import Collection, Table, make_table
from cce_core.training import AdamW, logistic_dot

NAMES = ("users", "items")


class GMF:
    """Generalised matrix factorisation: the probability of a like is σ(⟨user, item⟩)."""

    def __init__(self, users: Table, items: Table, optimizer: Any) -> None:
        self.users, self.items, self.optimizer = users, items, optimizer
        self.both = Collection([users, items])

    def score(self, rows: Interactions) -> NDArray[np.float32]:
        """The logits of all rows."""
        parts = [
            np.einsum("nd,nd->n", self.users.lookup(part.users), self.items.lookup(part.items))
            for part in rows.batches(1 << 16)
        ]
        return np.concatenate(parts)

    def step(self, pairs: NDArray[Any], labels: NDArray[np.float32]) -> NDArray[np.float32]:
        """One step of gradient descent on a batch of (user, item); returns the logits from before it."""
        seen = self.both.forward(pairs)
        u, v = self.both.split(seen.vectors)
        score = logistic_dot(u, v, labels)  # each vector becomes (σ(score) − label) / n · the other one
        self.optimizer.update(self.both, seen, seen.vectors)
        return score

    def epoch(self, rows: Interactions, batch_size: int, rng: np.random.Generator, bar: Any = None) -> float:
        """One pass over the rows in random order; returns the mean log loss on the way."""
        order = rng.permutation(len(rows))
        pairs, labels = np.stack([rows.users, rows.items], axis=1)[order], rows.labels[order]
        scores = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), batch_size):
            part = slice(start, start + batch_size)
            scores[part] = self.step(pairs[part], labels[part])
            if bar is not None:
                bar.update(len(labels[part]))
        return logloss(scores, labels)


def logloss(score: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """Mean cross-entropy in nats of logits.

    Example:
        >>> round(logloss(np.zeros(2, np.float32), np.array([0, 1], np.float32)), 6)
        0.693147
    """
    return float(np.mean(np.maximum(score, 0) - labels * score + np.log1p(np.exp(-np.abs(score))), dtype=np.float64))


def auc(score: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """Area under the ROC curve: how often a like scores above a dislike; a tie counts half.

    Example:
        >>> auc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([0, 0, 1, 1]))
        0.875
    """
    positive = labels > 0.5
    below = np.sort(score[~positive])
    likes = score[positive]
    wins = np.searchsorted(below, likes, "left").sum() + np.searchsorted(below, likes, "right").sum()
    return float(wins / (2 * likes.size * below.size))


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the model is trained.

    Attributes:
        epochs: passes over the training rows.
        batch_size: rows per step.
        lr: AdamW's learning rate.
        weight_decay: AdamW's λ.
        last_cluster: methods that learn cluster after each epoch up to this one, `vq` after it alone; None is 3/4 of them.
        by_counts: whether an id counts in clustering as often as training has it, or once.
        residual: whether the fresh half of a clustered table starts at the mean residual, or at zero.
        seed: of the order of the rows.
        patience: epochs without a better AUC after which training ends, once nothing is left to cluster; None trains to the end.
    """

    epochs: int = 8
    batch_size: int = 2048
    lr: float = 5e-3
    weight_decay: float = 1e-2
    last_cluster: int | None = None
    by_counts: bool = False
    residual: bool = True
    seed: int = 1
    patience: int | None = None

    def optimizer(self) -> AdamW:
        """It decays and moves every row in each step, whether the batch has it or not."""
        return AdamW(lr=self.lr, weight_decay=self.weight_decay)


@dataclasses.dataclass
class Result:
    """What a run reached: at its best epoch by validation AUC.

    Attributes:
        train_bytes: the most that training held at once: both tables with all that a step or a clustering takes.
        best: copies of the best epoch's tables, if they were asked for.
    """

    auc: float = 0.0
    last_auc: float = 0.0
    logloss: float = float("inf")
    best_epoch: int = 0
    train_seconds: float = 0.0
    cluster_seconds: float = 0.0
    train_bytes: int = 0
    clusters: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best: list[Table] = dataclasses.field(default_factory=list)

    def after(self, before: Result) -> Result:
        """This result with what it took to learn the tables from full ones first."""
        self.train_seconds += before.train_seconds + before.cluster_seconds
        self.clusters = before.clusters + self.clusters
        self.train_bytes = max(self.train_bytes, before.train_bytes)
        return self


def kept_bytes(tables: Any) -> int:
    """What several tables hold between steps while they are trained; see `Ledger.kept`."""
    return sum(table.ledger().kept for table in tables)


def step_bytes(tables: Any) -> int:
    """The most that several tables, updated in one step, have held at once; see `Ledger.step`."""
    return sum(ledger.kept + ledger.step for ledger in (table.ledger() for table in tables))


def _settled(epochs: int, settings: Settings, tables: dict[str, Table]) -> int:
    """The epoch after which nothing is clustered any more."""
    last = 3 * epochs // 4 if settings.last_cluster is None else settings.last_cluster
    method = tables["users"].method
    if method.post_training or not method.learns:
        return 0
    return last if tables["users"].phase is None else min(max(1, last), epochs)


def train(
    model: Any,
    split: Split,
    settings: Settings,
    say: Callable[[str], Any] = lambda _: None,
    *,
    keep_best: bool = False,
    on_best: Callable[[dict[str, Table]], Any] | None = None,
    show: bool | None = False,
) -> Result:
    """Train, cluster between epochs, and judge after each.

    Args:
        model: a `GMF`, or what has its `users`, `items`, `epoch` and `score`.
        split: rows to learn from and to judge by.
        settings: see `Settings`.
        say: is given a line per epoch.
        keep_best: whether copies of the best epoch's tables are kept.
        on_best: is given the tables after every epoch that is the best so far.
        show: whether there is a progress bar; None shows one on a terminal.
    """
    rng = np.random.default_rng(settings.seed)
    result = Result()
    tables = dict(zip(NAMES, (model.users, model.items), strict=True))
    learned, phased = model.users.method.post_training, model.users.phase is not None
    last_cluster = _settled(settings.epochs, settings, tables)
    options: dict[str, dict[str, Any]] = {name: {"residual": settings.residual} for name in tables}
    if settings.by_counts:
        for name, ids in (("users", split.train.users), ("items", split.train.items)):
            options[name]["weights"] = np.bincount(ids, minlength=tables[name].spec.vocab)

    def judged(epoch: int, how: str) -> None:
        score = model.score(split.valid)
        here, loss = auc(score, split.valid.labels), logloss(score, split.valid.labels)
        result.last_auc = here
        served = model.users.phase != "rows"  # else it has more bytes than were asked for
        if served and here > result.auc:
            result.auc, result.logloss, result.best_epoch = here, loss, epoch
            if keep_best:
                result.best = [copy.deepcopy(table) for table in tables.values()]
            if on_best is not None:
                on_best(tables)
        bar.clear()
        say(f"epoch {epoch:3}  {how}  AUC {here:.4f}  log loss {loss:.4f}")

    with progress(settings.epochs * len(split.train), "train", unit="row", show=show, delay=0) as bar:
        for epoch in range(int(not learned), settings.epochs + 1):  # epoch 0 is the table as it was learned
            start = time.perf_counter()
            train_loss = model.epoch(split.train, settings.batch_size, rng, bar) if epoch else float("nan")
            result.train_seconds += time.perf_counter() - start
            result.train_bytes = max(result.train_bytes, step_bytes(tables.values()))
            judged(epoch, f"train loss {train_loss:.4f}" if epoch else "as learned       ")
            if epoch == last_cluster or (epoch < last_cluster and not phased):
                for name, table in tables.items():
                    if table.method.learns:
                        held = kept_bytes(tables.values())
                        report = table.cluster(**options[name])
                        result.train_bytes = max(result.train_bytes, held + report.scratch_bytes)
                        result.cluster_seconds += report.seconds
                        result.clusters.append({"epoch": epoch, "table": name, **dataclasses.asdict(report)})
                if phased:
                    judged(epoch, "clustered        ")
            wait = epoch - max(result.best_epoch, last_cluster)
            if settings.patience is not None and wait >= settings.patience:
                break
    return result


def learn(tables: tuple[Table, Table], teacher: Result) -> Result:
    """Let tables that compress a trained one learn from the best ones of `teacher`, a result with `keep_best`.

    Returns:
        The teacher's `Result`, with the seconds, reports and training bytes of the learning.
    """
    result = dataclasses.replace(teacher, clusters=list(teacher.clusters))
    held = kept_bytes(tables) + sum(table.ledger().total for table in teacher.best)
    result.train_bytes += held
    for name, table, full in zip(NAMES, tables, teacher.best, strict=True):
        report = table.cluster(vectors=full)
        result.train_bytes = max(result.train_bytes, held + report.scratch_bytes)
        result.cluster_seconds += report.seconds
        result.clusters.append({"epoch": 0, "table": name, **dataclasses.asdict(report)})
    return result


def learn_from_full(
    tables: tuple[Table, Table], split: Split, settings: Settings, say: Callable[[str], Any] = lambda _: None
) -> Result:
    """For methods that compress a trained table: train the full one, and learn from its best epoch; see `learn`."""
    users, items = (make_table("full", t.spec.vocab, t.spec.dim, seed=t.spec.seed) for t in tables)
    say(f"{tables[0].method.name} learns from a trained table: the full one first")
    teacher = train(GMF(users, items, settings.optimizer()), split, settings, say, keep_best=True)
    say(f"full table: AUC {teacher.auc:.4f} (epoch {teacher.best_epoch}); now {tables[0].method.name}")
    return learn(tables, teacher)


def fit(
    tables: tuple[Table, Table],
    split: Split,
    settings: Settings,
    say: Callable[[str], Any] = lambda _: None,
    **options: Any,
) -> Result:
    """Train both tables, after learning them from full ones if the method does so; `options` are `train`'s."""
    before = learn_from_full(tables, split, settings, say) if tables[0].method.post_training else Result()
    return train(GMF(*tables, settings.optimizer()), split, settings, say, **options).after(before)
