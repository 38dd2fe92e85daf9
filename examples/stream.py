"""Learn from a stream of clicks without end in one pass, each batch predicted before it is learned, in a budget of bytes.

    python examples/stream.py --rows 1000000 --num-bytes 1000000
    python examples/stream.py --rows 1000000 --method dict

Users and items have raw 64-bit ids, of which new ones come every minute (`ClickStream`); the best that could be reached is known.
The model is a factorization machine of the two: of vectors u and v the logit is w + u_0 + v_0 + Σ_{k>0} u_k · v_k.

Methods: tiered (own rows for the ids that earn them), dict (a row for every id, without bound), cafe (CAFE's rule, arXiv
2312.03256), and the library's hashed ones; settings of a method come after colons, as in hash:rank=4:codec=int8:lr=0.2.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

# Before NumPy comes: on matrices as small as these, threads only wait.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from stream_rows import Floats, Words, make_rows
from tqdm import tqdm

import cce_core as cce
from cce_core.datasets import ClickStream, Interactions
from cce_core.tuning import auc, logloss

OF_THE_RUN = ("method", "num_bytes", "dim", "batch_size", "window", "seed", "strings")  # what a saved run was made with


@dataclasses.dataclass
class Window:
    """What was predicted within some rows before they were learned.

    Attributes:
        rows: where it ends.
        auc: of the predictions; `best_auc` that of the true probabilities.
        logloss: likewise, in nats.
        stored: bytes to serve from, at its end.
        held: bytes while training, at its end.
        resident: bytes of the process, at its end; 0 where the system does not say.
        seconds: since the beginning, of learning alone.
    """

    rows: int
    auc: float
    best_auc: float
    logloss: float
    best_logloss: float
    stored: int
    held: int
    resident: int
    seconds: float

    HEAD = "        rows     AUC    best    loss    best        stored          held  resident    rows/s"

    def __str__(self) -> str:
        fits = f"{self.auc:>7.4f} {self.best_auc:>7.4f} {self.logloss:>7.4f} {self.best_logloss:>7.4f}"
        sizes = f"{self.stored:>13,} {self.held:>13,} {self.resident / 2**20:>5.0f} MiB"
        return f"{self.rows:>12,} {fits} {sizes} {self.rows / max(self.seconds, 1e-9):>9,.0f}"


class Machine:
    """A factorization machine of two vectors, trained by Adagrad.

    Args:
        rows: who keeps the vectors.
        lr: learning rate of w.
    """

    def __init__(self, rows: Any, lr: float = 0.1) -> None:
        self.rows, self.lr, self.w, self.square = rows, lr, 0.0, 0.0

    def predict(self, users: Words, items: Words) -> Floats:
        """The logits (n,)."""
        self.vectors = self.rows.forward(users, items)
        u, v = np.split(self.vectors, 2, axis=1)
        return np.float32(self.w) + u[:, 0] + v[:, 0] + np.einsum("nk,nk->n", u[:, 1:], v[:, 1:])

    def learn(self, logits: Floats, labels: Floats) -> None:
        """A step for what was just predicted."""
        slope = 1.0 / (1.0 + np.exp(-logits)) - labels
        u, v = np.split(self.vectors, 2, axis=1)
        grads = np.concatenate([v, u], axis=1)
        grads[:, 0] = grads[:, u.shape[1]] = 1.0
        grads *= slope[:, None]
        total = float(slope.sum(dtype=np.float64))
        self.square += total * total
        self.w -= self.lr * total / (self.square**0.5 + 1e-10)
        self.rows.learn(grads)
        del self.vectors


@dataclasses.dataclass
class Progress:
    """A run so far: all that it needs to go on with the same bits.

    Attributes:
        settings: what it was made with.
        machine: the model.
        at: the row that comes next.
        scores: of the window that is not over: logits, labels and true probabilities of each batch.
        windows: those that are.
        seconds: of learning.
        peak: the most stored bytes so far.
        peak_held: the most bytes while training.
    """

    settings: dict[str, Any]
    machine: Machine
    at: int = 0
    scores: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    windows: list[Window] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    peak: int = 0
    peak_held: int = 0

    def save(self, path: Path) -> None:
        """Write it whole, or not at all."""
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with fresh.open("wb") as file:
                pickle.dump(self, file, pickle.HIGHEST_PROTOCOL)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)


def resident() -> int:
    """Bytes of this process that are in memory now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def words(rows: Interactions) -> tuple[Words, Words]:
    """Ids as 64-bit words; strings are hashed."""
    if rows.users.dtype.kind == "U":
        return cce.hash_strings(rows.users), cce.hash_strings(rows.items)
    return rows.users.view(np.uint64), rows.items.view(np.uint64)


def close(progress: Progress) -> Window:
    """The window that is over."""
    logits, labels, chances = (np.concatenate(part) for part in zip(*progress.scores, strict=True))
    clipped = np.clip(chances, 1e-12, 1 - 1e-12)
    truth = np.log(clipped / (1 - clipped)).astype(np.float32)
    rows = progress.machine.rows
    window = Window(
        progress.at, auc(logits, labels), auc(truth, labels), logloss(logits, labels), logloss(truth, labels),
        rows.stored, rows.held, resident(), progress.seconds,
    )  # fmt: skip
    progress.scores = []
    progress.windows.append(window)
    return window


def follow(progress: Progress, stream: ClickStream, args: argparse.Namespace, say: Any = print) -> None:
    """Predict and learn, batch after batch, up to the last row."""
    machine, size, window = progress.machine, args.batch_size, args.window
    with tqdm(total=args.rows, initial=progress.at, unit="row", unit_scale=True, disable=None, leave=False) as bar:
        while progress.at < args.rows:
            start, stop = progress.at, min(progress.at + size, args.rows, (progress.at // window + 1) * window)
            rows, chances = stream.drawn(start, stop)
            began = time.perf_counter()
            users, items = words(rows)
            logits = machine.predict(users, items)
            machine.learn(logits, rows.labels)
            progress.seconds += time.perf_counter() - began
            progress.scores.append((logits, rows.labels, chances))
            progress.at = stop
            progress.peak = max(progress.peak, machine.rows.stored)
            progress.peak_held = max(progress.peak_held, machine.rows.held)
            bar.update(stop - start)
            if stop % window == 0 or (stop == args.rows and not args.save):
                line = close(progress)
                bar.clear()
                say(str(line))
                if args.save:
                    progress.save(Path(args.save))
    if args.save:
        progress.save(Path(args.save))


def begin(args: argparse.Namespace) -> Progress:
    """A new run, or the one to go on with.

    Raises:
        ValueError: the saved one was made with other settings.
    """
    settings = {name: getattr(args, name) for name in OF_THE_RUN}
    if args.resume is None:
        return Progress(settings, Machine(make_rows(args.method, args.dim, args.num_bytes, args.seed)))
    with open(args.resume, "rb") as file:
        progress = pickle.load(file)
    if not isinstance(progress, Progress):
        raise ValueError(f"--resume {args.resume}: this is no run that --save has written")
    for name, value in progress.settings.items():
        if value != settings[name]:
            option = name.replace("_", "-")
            raise ValueError(f"--resume {args.resume}: it was made with --{option} {value}, and not {settings[name]}")
    return progress


def summary(progress: Progress) -> dict[str, Any]:
    """The whole run: means of all windows but the first, which is for warming up if there are others."""
    counted = progress.windows[1:] or progress.windows
    rows = progress.machine.rows

    def mean(name: str) -> float:
        return float(np.mean([getattr(window, name) for window in counted])) if counted else float("nan")

    return {
        **progress.settings, "rows": progress.at,
        **{name: mean(name) for name in ("auc", "best_auc", "logloss", "best_logloss")},
        "stored": rows.stored, "peak": progress.peak, "held": rows.held, "peak_held": progress.peak_held,
        "params": rows.params, "resident": resident(), "seconds": progress.seconds,
        "windows": [dataclasses.asdict(window) for window in progress.windows],
    }  # fmt: skip


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="stream.py", description=str(__doc__).split("\n")[0])
    add = parser.add_argument
    add("--method", default="tiered", help="tiered, dict, cafe, hash, …, with settings after colons (default: tiered)")
    add("--num-bytes", type=int, default=1_000_000, help="most stored bytes of both tables (default: %(default)s)")
    add("--rows", type=int, default=1_000_000, help="rows to go through (default: %(default)s)")
    add("--dim", type=int, default=16, help="floats of a vector (default: %(default)s)")
    add("--batch-size", type=int, default=512, help="rows a step (default: %(default)s)")
    add("--window", type=int, default=100_000, help="rows that one line of the table tells of (default: %(default)s)")
    add("--strings", action="store_true", help="ids are strings, hashed on the way")
    add("--seed", type=int, default=1, help="of everything random (default: %(default)s)")
    add("--threads", type=int, help="threads of large calls (default: the cores)")
    add("--save", metavar="FILE", help="keep the run there, after every window and at the end")
    add("--resume", metavar="FILE", help="go on with a run that was kept (a pickle: your own files alone)")
    add("--json", metavar="FILE", help="write the result there")
    args = parser.parse_args(argv)
    for name in ("num_bytes", "rows", "dim", "batch_size", "window", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if not 0 <= args.seed < 2**62:
        parser.error(f"--seed must be between 0 and 2^62 - 1, got {args.seed}")
    return args


def job(args: argparse.Namespace, say: Any = print) -> dict[str, Any]:
    """From nothing, or a saved run, to the report."""
    stream = ClickStream(args.rows, strings=args.strings, seed=args.seed)
    progress = begin(args)
    say(str(progress.machine.rows))
    say(Window.HEAD)
    for window in progress.windows:
        say(str(window))
    follow(progress, stream, args, say)
    return summary(progress)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The whole job, with its report."""
    cce.set_num_threads(args.threads)
    report = job(args)
    rows = [
        (
            "AUC",
            f"{report['auc']:.4f} of {report['best_auc']:.4f} that could be reached (means but of the first window)",
        ),
        ("log loss", f"{report['logloss']:.4f} of {report['best_logloss']:.4f}"),
        ("bytes stored", f"{report['stored']:,} now, {report['peak']:,} at the most"),
        ("bytes in training", f"{report['held']:,} now, {report['peak_held']:,} at the most"),
        ("resident", f"{report['resident']:,} bytes of the whole process"),
        ("seconds", f"{report['seconds']:.1f}"),
    ]
    print("\n".join(f"  {name:<20}{value}" for name, value in rows))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    return report


def main(argv: list[str] | None = None) -> int:
    """The command: 0 when it worked, 2 and one line for bad input, 130 for Ctrl-C."""
    args = parse(argv)
    try:
        run(args)
    except KeyboardInterrupt:
        print("\ninterrupted" + (f"; --resume {args.save} goes on" if args.save else ""), file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, MemoryError, pickle.UnpicklingError) as error:
        print(f"stream.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
