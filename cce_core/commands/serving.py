"""`cce serve`: the tables of files over HTTP. What it imports needs no Numba, and so the server holds none."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def serve(
    places: Annotated[
        list[Path], typer.Argument(metavar="FILE|DIR…", help="saved tables, or folders of them (*.safetensors)")
    ],
    host: Annotated[
        str, typer.Option(help="address; any but loopback opens it to others, and it asks nobody who they are")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8080,
    deltas: Annotated[Path | None, typer.Option(help="folder where deltas come (*.delta)")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="processes")] = 1,
    max_ids: Annotated[int, typer.Option(min=1, help="ids of a request")] = 16_384,
    max_body: Annotated[int, typer.Option(min=1, help="bytes of a request's body")] = 1 << 20,
    poll: Annotated[float, typer.Option(min=0, help="seconds between looks for new files and deltas; 0: never")] = 1.0,
    verify: Annotated[str, typer.Option(help="of files that are opened: header, or all")] = "header",
) -> None:
    """Serve tables over HTTP: lookups and bags as JSON, raw floats or Arrow. Ends with SIGTERM, when requests are answered."""
    try:
        from cce_core.serving.server import processes, settings
    except ImportError as error:
        raise ImportError(f"serve needs {error.name}: pip install 'cce-core[serve]'") from None
    asked = settings.Settings(tuple(places), deltas, verify, settings.Limits(max_ids, max_body), poll)
    raise typer.Exit(processes.serve(asked, host, port, workers))
