"""Triton kernels on a GPU: lookups, training steps and k-means assignment, against torch and against a copy's bandwidth.

    forward   1 M ids of a 100 M vocabulary, cce with 4 chunks and no projection, dim 32 and 128: the fraction of the bandwidth
              that a device-to-device copy reaches, counting only ids, pointers and vectors; eager torch; torch.compile of that
    train     lookup, backward and Adagrad, fused, against autograd and torch.optim.Adagrad
    module    the same two through the torch adapter: `Embedding`, its operators, `FusedAdagrad`
    assign    nearest of 4,096 centroids for 10 M points of 8 coordinates, against torch.cdist and argmin in blocks
    auc       what the MovieLens example reaches, and how far that is from the CPU (`gpu_auc.py`)

Every case is checked against its definition before it is timed, in turn with its peer, over inputs that take turns too, so that
none stays in a cache. What is timed is the device: launches queue up behind an idle stretch before its clock starts. Beside it
stand the seconds of a call among several in a row, the host's share included (`wall`). A case that fails is a row that says so.

Needs a GPU: without one it says so and times nothing. `TRITON_INTERPRET=1 python -m bench gpu` tries all of it on the CPU, at
small sizes; its rows hold NaN for times.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import cce_core as cce
from bench.speed import gpu_auc
from bench.speed.timing import Figures, Row
from cce_core.clustering import assign as cpu_assign

CHUNKS, ROWS, INPUTS = 4, 4096, 4
HEAD_START = 10_000_000  # cycles for which the device is kept busy while its work is launched: some milliseconds


@dataclasses.dataclass(frozen=True)
class GpuRow(Row):
    """A comparison on a GPU, whose name it bears."""

    gpu: str = ""
    wall: tuple[float, ...] = ()

    @property
    def fraction(self) -> float:
        """Of the copy's bandwidth."""
        return self.floor / statistics.median(self.ours)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        out = {**super().as_json(), "copy_fraction": self.fraction, "gpu": self.gpu}
        for who, times in (("ours", self.ours), ("peer", self.peers)):
            out |= {f"{who}_p{p}_s": float(np.percentile(times, p)) for p in (20, 50, 80)}
        return out | dict(zip(("ours_wall_s", "peer_wall_s"), self.wall, strict=False))

    def __str__(self) -> str:
        return f"{super().__str__()}, {self.fraction:.0%} of a copy's bandwidth"


def timed(device: str, n: int, *programs: Callable[[int], Any]) -> list[list[float]]:
    """Seconds of each program on the device, n times A B A B …; a program is told which input to take."""
    import torch

    times: list[list[float]] = [[] for _ in programs]
    for turn in range(n + 3):
        for program, seconds in zip(programs, times, strict=True):
            if device == "cpu":  # a trial of this file alone, under the interpreter
                program(turn % INPUTS)
                seconds.append(float("nan"))
                continue
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            torch.cuda._sleep(HEAD_START)
            start.record()
            program(turn % INPUTS)
            end.record()
            end.synchronize()
            if turn >= 3:
                seconds.append(start.elapsed_time(end) / 1e3)
    return times


def in_a_row(device: str, *programs: Callable[[int], Any], n: int = 20) -> tuple[float, ...]:
    """Seconds of a call of each program among n of them, the host's work included."""
    import torch

    out = []
    for program in programs if device != "cpu" else ():
        torch.cuda.synchronize()
        start = time.perf_counter()
        for turn in range(n):
            program(turn % INPUTS)
        torch.cuda.synchronize()
        out.append((time.perf_counter() - start) / n)
    return tuple(out)


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
    """`forward`, `train` and `module` for one dim."""
    import torch

    from cce_core.adapters.torch import Embedding, FusedAdagrad
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
    wall = in_a_row(device, ours, plain)
    yield GpuRow("forward", case, times[0], "eager torch", times[1], 8.0, moved, moved / copy, gpu, wall)
    compiled = torch.compile(eager.__call__, backend="aot_eager" if device == "cpu" else "inductor")

    def faster(turn: int) -> Any:
        with torch.no_grad():
            return compiled(batches[turn])

    times = timed(device, turns, ours, faster)
    wall = in_a_row(device, ours, faster)
    yield GpuRow("forward", case, times[0], "torch.compile", times[1], 2.0, moved, moved / copy, gpu, wall)
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
    wall = in_a_row(device, step, theirs)
    # Forward as above; backward reads ids, pointers and gradients.
    peer, both = "eager torch with Adagrad", 2 * moved
    yield GpuRow("train", case, times[0], peer, times[1], 4.0, both, both / copy, gpu, wall)
    module = Embedding(vocab, dim, method="cce", num_params=2 * ROWS * dim, n_chunks=CHUNKS, rank=0, seed=0).to(device)
    check_module(table, module, batches[0][:1000])
    fused = FusedAdagrad(module.parameters(), lr=1e-2)

    def looked_up(turn: int) -> Any:
        with torch.no_grad():
            return module(batches[turn])

    def stepped(turn: int) -> None:
        fused.zero_grad()
        module(batches[turn]).backward(grads)
        fused.step()

    times, wall = timed(device, turns, looked_up, plain), in_a_row(device, looked_up, plain)
    yield GpuRow("module", f"{case}: forward", times[0], "eager torch", times[1], 8.0, moved, moved / copy, gpu, wall)
    times, wall = timed(device, turns, stepped, theirs), in_a_row(device, stepped, theirs)
    yield GpuRow("module", f"{case}: a step", times[0], peer, times[1], 4.0, both, both / copy, gpu, wall)


def check_module(table: Any, module: Any, ids: Any) -> None:
    """Refuse to time a module that takes plain torch operations, or whose vectors and gradients are not the CPU core's."""
    from cce_core.adapters.torch.operators import cuda

    if cuda.kernels() is None:
        raise AssertionError("the torch adapter has not found the kernels; nothing is timed")
    vectors, words = module(ids), ids.cpu().numpy()
    vectors.backward(vectors.detach())
    found, module.memory.grad = module.memory.grad.cpu().numpy().reshape(-1), None
    wanted = table.lookup(words)
    if not np.array_equal(vectors.detach().cpu().numpy(), wanted):
        raise AssertionError("the module's vectors are not those of cce_core; nothing is timed")
    slopes = table.backward(words, wanted, dense=True)["memory"]
    if not np.linalg.norm(found - slopes) <= 1e-5 * np.linalg.norm(slopes):
        raise AssertionError("the module's gradients are not those of cce_core; nothing is timed")


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

    times, wall = timed(device, turns, ours, blocks), in_a_row(device, ours, blocks, n=3)
    moved = n * (4 * d + 8) + 4 * k * d
    case = f"{n:,} points, d {d}, k {k:,}"
    yield GpuRow("assign", case, times[0], "cdist + argmin", times[1], 3.0, moved, moved / copy, gpu, wall)


def copy_bandwidth(device: str, nbytes: int) -> float:
    """Bytes read and written a second by a copy on the device."""
    import torch

    source = torch.randn(nbytes // 4, device=device)
    target = torch.empty_like(source)
    times = timed(device, 20, lambda turn: target.copy_(source))
    return 2 * nbytes / statistics.median(times[0])


def run(quick: bool) -> Iterator[Row | Figures | gpu_auc.AucRow]:
    """All cases at the sizes above; `quick` repeats them less. Under the interpreter, on the CPU and at small sizes."""
    try:
        import torch
        import triton
    except ImportError as error:
        print(f"gpu: {error.name} is not installed (pip install 'cce-core[torch,triton]'): nothing is timed")
        return
    trial = os.environ.get("TRITON_INTERPRET") == "1"
    if not trial and not torch.cuda.is_available():
        print("gpu: torch finds no GPU here: nothing is timed")
        return
    if trial:
        device, gpu, turns, (vocab, n), points = "cpu", "none: a trial", 1, (5000, 300), (3000, 50)
    else:
        device, gpu, turns = "cuda", torch.cuda.get_device_name(), (10 if quick else 50)
        (vocab, n), points = (100_000_000, 1_000_000), (10_000_000, 4096)
    copy = copy_bandwidth(device, 1 << (20 if trial else 30))
    print(f"gpu: {gpu}, torch {torch.__version__}, triton {triton.__version__}, a copy moves {copy / 1e9:.0f} GB/s")
    yield Figures("copy", gpu, {"bytes_per_s": copy})
    for dim in (32, 128):
        yield from tried(f"dim {dim}", lookups(device, vocab, n, dim, turns, copy, gpu))
    yield from tried("assign", assignments(device, *points, 8, min(turns, 5 if quick else 20), copy, gpu))
    yield from tried(
        "auc", gpu_auc.run(device, quick or trial, ["--epochs", "1", "--batch-size", "8192"] if trial else [])
    )


def tried(name: str, rows: Iterator[Any]) -> Iterator[Any]:
    """The rows of a case; where it fails, one that says how, so that the other cases are measured all the same."""
    import torch

    try:
        yield from rows
    except Exception as error:
        traceback.print_exc()
        yield Figures("failed", name, {"error": f"{type(error).__name__}: {error}"})
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
