"""python -m bench [name …] [--json FILE] [--csv FILE] [--quick] [--plot FILE]: correct first, then medians against a peer.

`python -m bench sweep …`, `python -m bench plot DIR` and `python -m bench stream …` compare the methods' results: see each one's
--help.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

# Each has a module of that name in `speed/` with `run(quick)`, loaded when it is asked for: what one needs the others may
# do without. Sweeps and their pictures are in `methods/`.
BENCHMARKS = (
    "calls",
    "cluster",
    "compress",
    "dhe",
    "epoch",
    "gpu",
    "kmeans",
    "lookups",
    "scale",
    "serving",
    "torch_step",
    "tt",
)
DEFAULT = tuple(name for name in BENCHMARKS if name not in ("gpu", "scale"))  # a GPU, and gigabytes, are not everyone's


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (s.split(":")[1].strip() for s in info.read_text().splitlines() if s.startswith("model name")), model
        )
    versions = {}
    for name in ("numpy", "numba", "scipy", "torch", "triton", "faiss-cpu", "scikit-learn"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {"processor": model, "python": platform.python_version(), **versions}


def main() -> int:
    """Run the benchmarks that were named, all of them by default; or sweep, plot, or follow a stream."""
    if sys.argv[1:2] in (["sweep"], ["plot"], ["stream"]):
        return int(importlib.import_module(f"bench.methods.{sys.argv[1]}").main(sys.argv[2:]))
    parser = argparse.ArgumentParser(prog="python -m bench", description=str(__doc__).split(": ", 1)[1])
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"among {', '.join(BENCHMARKS)} (default: {', '.join(DEFAULT)})"
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--csv", metavar="FILE", help="write the rows there, a line each, with machine and versions")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw there how time grows, for kmeans and scale (needs matplotlib)"
    )
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    print("  ".join(f"{k} {v}" for k, v in machine().items()))
    rows: list[dict[str, Any]] = []
    try:
        for name in args.names or DEFAULT:
            module: Any = importlib.import_module(f"bench.speed.{name}")
            if hasattr(module, "plot_to"):
                module.plot_to = args.plot
            for row in module.run(args.quick):
                print(row, flush=True)
                rows.append(row.as_json())
    finally:  # what was measured before something failed
        write(rows, args.json, args.csv)
    return 0


def write(rows: list[dict[str, Any]], json_to: str | None, csv_to: str | None) -> None:
    """The rows into files, with the machine that they were measured on."""
    if json_to:
        Path(json_to).write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    if csv_to and rows:
        lines = [{**row, **machine()} for row in rows]
        with Path(csv_to).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for line in lines for name in line)))
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    sys.exit(main())
