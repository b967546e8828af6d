"""`serai serve`: run the server until SIGTERM or Ctrl-C."""

from pathlib import Path
from typing import Annotated

import typer


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    home: Annotated[Path | None, typer.Option(help="Folder of everything the server keeps.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML).")] = None,
) -> None:
    """Run the server. The first start makes an admin key and says in which file it lies."""
    from serai import server, settings

    server.run(settings.load(file=config, overrides={"host": host, "port": port, "home": home}))
