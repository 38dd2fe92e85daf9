"""python -m cce_core, and the command `cce`: 0 when it worked, 2 and one line for bad input, 130 for Ctrl-C."""

from __future__ import annotations

import os
import sys

# Before NumPy comes: on matrices as small as these, threads only wait.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main(argv: list[str] | None = None) -> int:
    """Run a command, and return its exit code."""
    try:
        import typer
    except ImportError:
        sys.stderr.write("cce: error: the command needs Typer: pip install 'cce-core[cli]'\n")
        return 2
    words = sys.argv[1:] if argv is None else argv
    try:
        if words[:1] == ["serve"]:  # which neither compiles nor trains: without what does
            from cce_core.commands.serving import app

            code = app(words[1:], prog_name="cce serve", standalone_mode=False)
        else:
            from cce_core.commands.app import app

            code = app(words or ["--help"], prog_name="cce", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except typer.Exit as stop:
        code = stop.exit_code
    except (ValueError, TypeError, OSError, ImportError, IndexError, MemoryError) as error:
        _end_workers()
        sys.stderr.write(f"cce: error: {' '.join(str(error).split())}\n")
        return 2
    except Exception as error:  # of the command line: Typer's own have an exit code and a message
        if not hasattr(error, "exit_code"):
            raise
        said = " ".join(error.format_message().split()) if hasattr(error, "format_message") else str(error)
        if said:
            sys.stderr.write(f"cce: error: {said} (cce --help)\n")
        return 2
    if code == 130:  # Typer may have caught Ctrl-C
        _end_workers()
        sys.stderr.write("\ninterrupted\n")
    return code if isinstance(code, int) else 0


def _end_workers() -> None:
    """End the processes of a sweep, if one has run."""
    if (pool := sys.modules.get("cce_core.tuning.pool")) is not None:
        pool.end_workers()


if __name__ == "__main__":
    sys.exit(main())
