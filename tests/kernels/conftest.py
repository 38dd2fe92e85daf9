"""What compiled kernels take of a GPU's registers, for the log."""

from __future__ import annotations


def pytest_terminal_summary(terminalreporter):
    """The kernels that spill, and how many there are."""
    found = [
        value
        for report in terminalreporter.stats.get("passed", [])
        if report.when == "call"
        for name, value in report.user_properties
        if name == "kernel"
    ]
    if found:
        terminalreporter.section("kernels")
        for line, spilled in sorted(found):
            if spilled:
                terminalreporter.line(line)
        terminalreporter.line(f"{len(found)} compiled, {sum(spilled > 0 for _, spilled in found)} of them spill")
