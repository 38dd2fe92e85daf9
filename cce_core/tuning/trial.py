"""One run of a sweep, in whichever process: make the tables, train them, and write down what came of it."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import inspect
import math
import platform
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from cce_core._threads import get_num_threads
from cce_core.datasets import Interactions, Split
from cce_core.storage.ledger import Ledger
from cce_core.tables import BudgetError, Table, make_table
from cce_core.tuning import gmf, points, rows
from cce_core.tuning.candidates import Candidate

COLUMNS = ("users", "items", "labels")


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is to be run: all that its result depends on.

    Attributes:
        candidate: the method, its table's options and its training's settings.
        budget: bytes of all tables that it may store; None for a method without a budget.
        seed: of tables, training and (of `full`, too) nothing else: all trials share one split.
        share: how much of the whole training it has, above 0 and at most 1.
        context: what all trials of a sweep share, in words: data, dim and the training's defaults.
    """

    candidate: Candidate
    budget: int | None
    seed: int
    share: float
    context: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The trial in words."""
        of = self.candidate
        own = (
            f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in (*of.table, *of.training)
        )
        budget = () if self.budget is None else (f"num_bytes={self.budget}",)
        return (f"method={of.method}", *own, *budget, f"share={self.share:g}", *self.context, "--seed", str(self.seed))

    @property
    def key(self) -> str:
        """What it is known by."""
        return rows.digest(self.words)


class Runner:
    """Runs trials; it can be pickled, and then its data lie in a folder that all processes read.

    Args:
        vocabs: ids of every table, by name.
        dim: floats of a vector.
        epochs: passes of a whole training.
        batch_size: rows per step.
        split: what the built-in model learns from; None where `train` is given.
        train: the caller's own training.
    """

    def __init__(
        self,
        vocabs: Mapping[str, int],
        dim: int,
        epochs: int,
        batch_size: int,
        split: Split | None,
        train: Callable[..., Any] | None,
    ) -> None:
        self.vocabs, self.dim, self.epochs, self.batch_size = dict(vocabs), dim, epochs, batch_size
        self.split, self.train, self.folder, self.token = split, train, "", secrets.token_hex(8)

    @property
    def full_bytes(self) -> int:
        """Of all tables with a float32 row per id."""
        return 4 * self.dim * sum(self.vocabs.values())

    def spill(self) -> tempfile.TemporaryDirectory[str] | None:
        """Write the data where other processes find them, for as long as the folder is kept."""
        if self.split is None:
            return None
        kept = tempfile.TemporaryDirectory(prefix="cce-sweep-")
        for part in ("train", "valid"):
            for name in COLUMNS:
                np.save(Path(kept.name, f"{part}-{name}.npy"), getattr(getattr(self.split, part), name))
        self.folder = kept.name
        return kept

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.folder and self.split is not None:
            empty = self.split.train.take(slice(0, 0))
            state["split"] = dataclasses.replace(self.split, train=empty, valid=empty)
        return state

    def data(self) -> Split:
        """The split, here or from the folder."""
        assert self.split is not None
        return self.split if len(self.split.train) else _read(self.folder, self.split)

    def tables(self, trial: Trial) -> dict[str, Table]:
        """Fresh tables within the trial's budget, each with a share of it as of the full tables' bytes."""
        made = {}
        for k, (name, vocab) in enumerate(self.vocabs.items()):
            own: dict[str, Any] = dict(trial.candidate.table)
            if trial.budget is not None:
                own["num_bytes"] = max(1, trial.budget * vocab // sum(self.vocabs.values()))
            made[name] = make_table(trial.candidate.method, vocab, self.dim, seed=2 * trial.seed + k, **own)
        return made

    def settings(self, trial: Trial) -> gmf.Settings:
        """How the built-in model is trained in a trial."""
        epochs = max(1, round(trial.share * self.epochs))
        own: dict[str, Any] = {"batch_size": self.batch_size} | dict(trial.candidate.training)
        return gmf.Settings(epochs=epochs, seed=trial.seed, **own)

    def __call__(self, trial: Trial) -> dict[str, Any]:
        """Run it, and return its row; an error becomes a row too."""
        try:
            tables, wall, cpu = self.tables(trial), time.perf_counter(), time.process_time()
            found = self._fit(tables, trial) if self.train is None else self._called(tables, trial)
            ledger = functools.reduce(Ledger.__add__, (table.ledger() for table in tables.values()))
            found.setdefault("train_bytes", gmf.step_bytes(tables.values()))
            specs = [table.spec for table in tables.values()]
            row = start_of(trial, self) | versions() | {
                "bytes": ledger.total,
                "full_bytes": self.full_bytes,
                "ratio": self.full_bytes / ledger.total,
                "bytes_by_kind": rows.by_kind(dict(ledger.stored)),
                "training_bytes_by_kind": rows.by_kind(dict(ledger.training)),
                "num_params": sum(table.num_params for table in tables.values()),
                "user_rank": specs[0].rank,
                "item_rank": specs[-1].rank,
                "codec": specs[0].codec,
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": time.process_time() - cpu,
                "threads": get_num_threads(),
                "status": "ok",
            } | found  # fmt: skip
            if wrong := rows.out_of_range(row):
                return failure(self, trial, f"{wrong}: a smaller learning rate may help")
            return row
        except Exception as error:
            return failure(self, trial, error)

    def _fit(self, tables: dict[str, Table], trial: Trial) -> dict[str, Any]:
        """The built-in model."""
        split, settings = self.data(), self.settings(trial)
        users, items = tables.values()
        before = gmf.Result()
        if users.method.post_training:
            before = gmf.learn((users, items), self._teacher(split, settings))
        result = gmf.train(gmf.GMF(users, items, settings.optimizer()), split, settings).after(before)
        return {
            "auc": result.auc,
            "logloss": result.logloss,
            "best_epoch": result.best_epoch,
            "train_bytes": result.train_bytes,
            "cluster_seconds": result.cluster_seconds,
            "clusterings": len(result.clusters),
            "train_rows": len(split.train),
            "valid_rows": len(split.valid),
            "best_reachable_auc": split.best_auc,
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "lr": settings.lr,
        }

    def _teacher(self, split: Split, settings: gmf.Settings) -> gmf.Result:
        """The full tables that methods learn from, trained once per process for all budgets that come one after the other."""
        key = (self.token, settings)
        if key not in _teachers:
            _teachers.clear()
            users, items = (
                make_table("full", n, self.dim, seed=2 * settings.seed + k) for k, n in enumerate(self.vocabs.values())
            )
            model = gmf.GMF(users, items, settings.optimizer())
            _teachers[key] = gmf.train(model, split, settings, keep_best=True)
        return _teachers[key]

    def _called(self, tables: dict[str, Table], trial: Trial) -> dict[str, Any]:
        """The caller's own training; methods that learn from a trained table are given one that it trained."""
        assert self.train is not None
        before = 0
        if next(iter(tables.values())).method.post_training:
            full = {name: make_table("full", t.spec.vocab, t.spec.dim, seed=t.spec.seed) for name, t in tables.items()}
            self._call(full, dataclasses.replace(trial, budget=None))
            before = gmf.step_bytes(full.values()) + gmf.kept_bytes(tables.values())
            for name, table in tables.items():
                table.cluster(vectors=full[name])
        measured = self._call(tables, trial)
        if late := [name for name, table in tables.items() if table.phase == "rows"]:
            raise ValueError(
                f"train must call cluster() of tables in phase 'rows', late and once: {', '.join(late)} still are"
            )
        found = measured if isinstance(measured, Mapping) else {"score": measured}
        allowed = (*rows.MEASURES, "train_bytes", "best_epoch")
        if not found or (unknown := sorted(set(found) - set(allowed))):
            raise ValueError(
                f"train must return a number or some of {', '.join(allowed)}; got {unknown if found else found!r}"
            )
        peak = max(before, gmf.step_bytes(tables.values()))
        return {"train_bytes": peak} | {k: int(v) if k in allowed[3:] else float(v) for k, v in found.items()}

    def _call(self, tables: dict[str, Table], trial: Trial) -> Any:
        """Call it with those of the arguments that it takes."""
        train = self.train
        assert train is not None
        given = {
            "budget": trial.budget,
            "seed": trial.seed,
            "share": trial.share,
            "settings": dict(trial.candidate.training),
        }
        takes = inspect.signature(train).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in takes):
            given = {name: value for name, value in given.items() if any(p.name == name for p in takes)}
        return train(tables, **given)


@functools.lru_cache(maxsize=1)
def _read(folder: str, split: Split) -> Split:
    """The split whose columns lie in a folder, mapped."""
    train, valid = (
        Interactions(*(np.load(Path(folder, f"{part}-{name}.npy"), mmap_mode="r") for name in COLUMNS))
        for part in ("train", "valid")
    )
    return dataclasses.replace(split, train=train, valid=valid)


_teachers: dict[tuple[Any, ...], gmf.Result] = {}


@functools.cache
def versions() -> dict[str, str]:
    """Everything that a result was made with; `code` is a digest of our own sources."""
    code, house = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(house.rglob("*.py")):
        code.update(path.name.encode() + b"\0" + path.read_bytes())
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), platform.processor())
    return {
        "cce_core": sys.modules["cce_core"].__version__,
        "code": code.hexdigest()[:12],
        "python": platform.python_version(),
        "processor": model or platform.machine(),
        **{name: metadata.version(name) for name in ("numpy", "numba", "scipy")},
    }


def start_of(trial: Trial, runner: Runner) -> dict[str, Any]:
    """What is known of a trial before it is run."""
    budget = "own" if trial.budget is None else f"{points.size(trial.budget)} in all"
    return {
        "run": trial.key,
        "label": trial.candidate.label,
        "budget": budget,
        "seed": trial.seed,
        "share": trial.share,
        "command": " ".join(trial.words),
        "num_bytes": None if trial.budget is None else str(trial.budget),
        "dataset": runner.split.name if runner.split is not None else "yours",
        "method": trial.candidate.method,
        "dim": runner.dim,
        "n_tables": len(runner.vocabs),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def failure(runner: Runner, trial: Trial, error: BaseException | str) -> dict[str, Any]:
    """The row of a trial that gave no result."""
    what = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    status = "does not fit" if isinstance(error, BudgetError) else "failed"
    return {**start_of(trial, runner), **versions(), "status": status, "error": what[:500]}


def usual_batch(n: int) -> int:
    """A batch size for so many training rows: about 300 steps per epoch, a power of two.

    Example:
        >>> usual_batch(70_969), usual_batch(490_822), usual_batch(1_458_232)
        (256, 2048, 4096)
    """
    return int(2 ** min(13, max(5, round(math.log2(max(n, 1) / 300)))))
