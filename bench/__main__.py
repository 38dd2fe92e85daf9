"""python -m bench [name …] [--json FILE] [--quick] [--plot FILE]: correct first, then medians against a peer in one run."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from bench import dhe, epoch, kmeans, torch_step, tt
from bench.timing import Row

BENCHMARKS: dict[str, Callable[[bool], Iterable[Row]]] = {
    "dhe": dhe.run,
    "epoch": epoch.run,
    "kmeans": kmeans.run,
    "torch_step": torch_step.run,
    "tt": tt.run,
}


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (s.split(":")[1].strip() for s in info.read_text().splitlines() if s.startswith("model name")), model
        )
    versions = {}
    for name in ("numpy", "numba", "scipy", "torch", "faiss-cpu", "scikit-learn"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {"processor": model, "python": platform.python_version(), **versions}


def main() -> int:
    """Run the benchmarks that were named, all of them by default."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=str(__doc__).split(": ", 1)[1])
    parser.add_argument("names", nargs="*", metavar="name", help=f"among {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--plot", metavar="FILE", help="draw there how k-means grows (needs matplotlib)")
    args = parser.parse_args()
    kmeans.plot_to = args.plot
    unknown = sorted(set(args.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    print("  ".join(f"{k} {v}" for k, v in machine().items()))
    rows = []
    for name in args.names or BENCHMARKS:
        for row in BENCHMARKS[name](args.quick):
            print(row, flush=True)
            rows.append(row.as_json())
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
