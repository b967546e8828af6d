"""`serai audit`: who changed what, and whether the log is whole."""

import json
from pathlib import Path
from typing import Annotated

import typer

from serai.cli.output import REFUSED, show

app = typer.Typer(help="The audit log: list, head, verify.", no_args_is_help=True)
_COLUMNS = ("seq", "at", "actor", "action", "object_kind", "object_id", "address")


@app.command("list")
def list_entries(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    kind: Annotated[str | None, typer.Option(help="Kind of object: user, key, model, …")] = None,
    object_id: Annotated[str | None, typer.Option("--object")] = None,
    actor: str | None = None,
) -> None:
    """List the newest entries."""
    from serai.cli.client import Client

    found = Client(context).call("GET", "/audit", limit=limit, object_kind=kind, object_id=object_id, actor=actor)
    show(context, found, _COLUMNS)


@app.command()
def head(context: typer.Context) -> None:
    """Print the end of the chain; keep it elsewhere for `verify --head`."""
    from serai.cli.client import Client

    print(json.dumps(Client(context).call("GET", "/audit/head")))


@app.command()
def verify(
    context: typer.Context,
    kept: Annotated[Path | None, typer.Option("--head", help="A file with what `head` printed earlier.")] = None,
) -> None:
    """Recompute the chain; exit 1 if it is broken or cut."""
    from serai.cli.client import Client

    verdict = Client(context).call("POST", "/audit/verify", body=None if kept is None else _read(kept))
    show(context, verdict)
    if not verdict["ok"]:
        raise typer.Exit(REFUSED)


def _read(kept: Path) -> object:
    try:
        return json.loads(kept.read_text("utf-8"))
    except (OSError, ValueError):
        raise typer.BadParameter("is not a file with what `serai audit head` printed", param_hint="--head") from None
