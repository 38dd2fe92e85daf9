"""Triton kernels on a GPU: lookups, training steps and k-means assignment, against torch and against a copy's bandwidth.

    forward   1 M ids of a 100 M vocabulary, cce with 4 chunks and no projection, dim 32 and 128: the fraction of the bandwidth
              that a device-to-device copy reaches, counting only ids, pointers and vectors; eager torch; torch.compile of that
    train     lookup, backward and Adagrad, fused, against autograd and torch.optim.Adagrad
    assign    nearest of 4,096 centroids for 10 M points of 8 coordinates, against torch.cdist and argmin in blocks
    auc       what the MovieLens example reaches, and how far that is from the CPU (`gpu_auc.py`)

Every case is checked against its definition before it is timed, by device events, in turn with its peer, over inputs that take
turns too, so that none stays in a cache. Needs a GPU: without one it says so and times nothing.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import cce_core as cce
from bench import gpu_auc
from bench.timing import Row
from cce_core.clustering import assign as cpu_assign

CHUNKS, ROWS, INPUTS = 4, 4096, 4


@dataclasses.dataclass(frozen=True)
class GpuRow(Row):
    """A comparison on a GPU, whose name it bears."""

    gpu: str = ""

    @property
    def fraction(self) -> float:
        """Of the copy's bandwidth."""
        return self.floor / statistics.median(self.ours)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        out = {**super().as_json(), "copy_fraction": self.fraction, "gpu": self.gpu}
        for who, times in (("ours", self.ours), ("peer", self.peers)):
            out |= {f"{who}_p{p}_s": float(np.percentile(times, p)) for p in (20, 50, 80)}
        return out

    def __str__(self) -> str:
        return f"{super().__str__()}, {self.fraction:.0%} of a copy's bandwidth"


def timed(device: str, n: int, *programs: Callable[[int], Any]) -> list[list[float]]:
    """Seconds of each program, n times A B A B …, by events on the device; a program is told which input to take."""
    import torch

    times: list[list[float]] = [[] for _ in programs]
    for turn in range(n + 3):
        for program, seconds in zip(programs, times, strict=True):
            if device == "cpu":  # for a trial of this file alone, under the interpreter
                program(turn % INPUTS)
                seconds.append(1.0)
                continue
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            program(turn % INPUTS)
            end.record()
            end.synchronize()
            if turn >= 3:
                seconds.append(start.elapsed_time(end) / 1e3)
    return times


class Eager:
    """cce as one writes it in torch: 64-bit pointers, an affine hash modulo a prime, a gather and a sum a chunk."""

    def __init__(self, device: str, vocab: int, dim: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        self.width, self.prime = dim // CHUNKS, 2**31 - 1
        self.pointers = torch.empty((CHUNKS, vocab), dtype=torch.int64, device=device)
        for row in self.pointers:
            row.random_(0, ROWS)
        self.a, self.b = torch.randint(1, self.prime, (2, CHUNKS, 1), generator=generator).to(device)
        self.memory = torch.randn((2, CHUNKS, ROWS, self.width), generator=generator).to(device).requires_grad_()

    def __call__(self, ids: Any) -> Any:
        import torch

        hashed = (self.a * (ids % self.prime) + self.b) % self.prime % ROWS
        pointed = self.pointers[:, ids]
        chunks = [self.memory[0, c][pointed[c]] + self.memory[1, c][hashed[c]] for c in range(CHUNKS)]
        return torch.cat(chunks, 1)


def check_lookup(table: Any, tables: Any, ids: Any) -> None:
    """Refuse to time vectors that are not the CPU core's, bit for bit."""
    if not np.array_equal(tables.lookup(ids[:1000]).cpu().numpy(), table.lookup(ids[:1000].cpu().numpy())):
        raise AssertionError("vectors are not those of cce_core; nothing is timed")


def lookups(device: str, vocab: int, n: int, dim: int, turns: int, copy: float, gpu: str) -> Iterator[GpuRow]:
    """`forward` and `train` for one dim."""
    import torch

    from cce_kernels.steps import Trainer
    from cce_kernels.tables import Tables, from_table

    table = cce.make_table("cce", vocab, dim, num_params=2 * ROWS * dim, n_chunks=CHUNKS, rank=0)
    tables = Tables([(table.spec, from_table(table, device))])
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randint(0, vocab, (n,), generator=generator).to(device) for _ in range(INPUTS)]
    check_lookup(table, tables, batches[0])
    eager = Eager(device, vocab, dim)
    moved = n * (8 + table.layout.bits_per_id // 8 + 4 * dim)
    case = f"{n:,} ids of {vocab:,}, dim {dim}"

    def ours(turn: int) -> Any:
        return tables.lookup(batches[turn], check=False)

    def plain(turn: int) -> Any:
        with torch.no_grad():
            return eager(batches[turn])

    times = timed(device, turns, ours, plain)
    yield GpuRow("forward", case, times[0], "eager torch", times[1], 8.0, moved, moved / copy, gpu)
    if device != "cpu":
        compiled = torch.compile(eager.__call__)

        def faster(turn: int) -> Any:
            with torch.no_grad():
                return compiled(batches[turn])

        times = timed(device, turns, ours, faster)
        yield GpuRow("forward", case, times[0], "torch.compile", times[1], 2.0, moved, moved / copy, gpu)
    grads = torch.randn((n, dim), generator=generator).to(device) * 1e-3
    check_training(table, tables, batches[0][:1000], grads[:1000])
    trainer = Trainer(tables, cce.Adagrad(lr=1e-2))
    optimizer = torch.optim.Adagrad([eager.memory], lr=1e-2)

    def step(turn: int) -> None:
        tables.lookup(batches[turn], check=False)
        trainer.update(batches[turn], grads, check=False)

    def theirs(turn: int) -> None:
        optimizer.zero_grad()
        eager(batches[turn]).backward(grads)
        optimizer.step()

    times = timed(device, turns, step, theirs)
    # Forward as above; backward reads ids, pointers and gradients.
    yield GpuRow("train", case, times[0], "eager torch with Adagrad", times[1], 4.0, 2 * moved, (2 * moved) / copy, gpu)


def check_training(table: Any, tables: Any, ids: Any, grads: Any) -> None:
    """Refuse to time gradients that are not the CPU core's up to the order of the sums."""
    found = tables.backward(ids, grads)[0][0]["memory"].cpu().numpy()
    wanted = table.backward(ids.cpu().numpy(), grads.cpu().numpy(), dense=True)["memory"]
    if not np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted):
        raise AssertionError("gradients are not those of cce_core; nothing is timed")


def assignments(device: str, n: int, k: int, d: int, turns: int, copy: float, gpu: str) -> Iterator[GpuRow]:
    """`assign`, against blocks of 65,536 points."""
    import torch

    from cce_kernels.kmeans import assign

    generator = torch.Generator().manual_seed(2)
    points = [torch.randn((n, d), generator=generator).to(device) for _ in range(INPUTS)]
    centroids = torch.randn((k, d), generator=generator).to(device)
    few = slice(0, 2000)
    want = cpu_assign(points[0][few].cpu().numpy(), centroids.cpu().numpy())
    if not np.array_equal(assign(points[0][few], centroids)[0].cpu().numpy(), want[0]):
        raise AssertionError("labels are not those of cce_core; nothing is timed")

    def ours(turn: int) -> Any:
        return assign(points[turn], centroids, check=False)

    def blocks(turn: int) -> Any:
        return torch.cat([torch.cdist(part, centroids).argmin(1) for part in points[turn].split(1 << 16)])

    times = timed(device, turns, ours, blocks)
    moved = n * (4 * d + 8) + 4 * k * d
    yield GpuRow(
        "assign", f"{n:,} points, d {d}, k {k:,}", times[0], "cdist + argmin", times[1], 3.0, moved, moved / copy, gpu
    )


def copy_bandwidth(device: str, nbytes: int) -> float:
    """Bytes read and written a second by a copy on the device."""
    import torch

    source = torch.randn(nbytes // 4, device=device)
    target = torch.empty_like(source)
    times = timed(device, 20, lambda turn: target.copy_(source))
    return 2 * nbytes / statistics.median(times[0])


def run(quick: bool) -> Iterator[Row | gpu_auc.AucRow]:
    """All cases at the sizes above; `quick` repeats them less."""
    try:
        import torch
        import triton
    except ImportError as error:
        print(f"gpu: {error.name} is not installed (pip install 'cce-core[torch,triton]'): nothing is timed")
        return
    if not torch.cuda.is_available():
        print("gpu: torch finds no GPU here: nothing is timed")
        return
    turns, gpu = (10 if quick else 50), torch.cuda.get_device_name()
    copy = copy_bandwidth("cuda", 1 << 30)
    print(f"gpu: {gpu}, torch {torch.__version__}, triton {triton.__version__}, a copy moves {copy / 1e9:.0f} GB/s")
    for dim in (32, 128):
        yield from lookups("cuda", 100_000_000, 1_000_000, dim, turns, copy, gpu)
        torch.cuda.empty_cache()
    yield from assignments("cuda", 10_000_000, 4096, 8, 5 if quick else 20, copy, gpu)
    yield from gpu_auc.run("cuda", quick)
