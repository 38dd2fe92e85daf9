"""Fills the figures of `docs/reliability.md` from a report that `CCE_CAMPAIGN_REPORT` named.

python docs/fill_reliability.py report.json
"""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

PAGE = Path(__file__).with_name("reliability.md")
BEGIN, END = "<!-- figures: filled by docs/fill_reliability.py -->\n", "<!-- end of figures -->"


def table(report: dict[str, dict[str, object]]) -> str:
    """A row for each campaign: what was tried, what was lost, and how long it took."""
    lines = ["| campaign | tried | lost | seconds |", "|---|---|---|---|"]
    for name, row in sorted(report.items()):
        tried = {key: n for key, n in row.items() if key not in ("lost", "outcome", "seconds")}
        told = ", ".join(f"{key} {n:,}" for key, n in tried.items())
        lost = row.get("lost", "none counted") if row["outcome"] == "passed" else f"**{row.get('lost', '?')}** (failed)"
        lines.append(f"| `{name.rpartition('::')[2]}` | {told} | {lost} | {row['seconds']} |")
    return "\n".join(lines)


def main() -> None:
    """Replace what stands between the two marks."""
    report = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    where = f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}"
    PAGE.write_text(f"{before}{BEGIN}\n{where}:\n\n{table(report)}\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
