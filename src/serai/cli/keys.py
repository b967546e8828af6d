"""`serai keys`: API keys."""

from pathlib import Path
from typing import Annotated

import typer

from serai.cli.output import options_of, show

app = typer.Typer(help="API keys: make, list, revoke.", no_args_is_help=True)
_COLUMNS = ("id", "name", "user_id", "prefix", "role", "scopes", "expires_at", "last_used_at", "revoked_at")


@app.command("list")
def list_keys(context: typer.Context) -> None:
    """List your keys; an admin sees all."""
    from serai.cli.client import Client

    show(context, Client(context).every("/keys"), _COLUMNS)


@app.command()
def create(
    context: typer.Context,
    name: str,
    user: Annotated[str | None, typer.Option(help="Whose key it is: a user's id. Yours if left out.")] = None,
    role: Annotated[str | None, typer.Option(help="viewer, user, moderator or admin.")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="Narrow it to a group of routes; may be repeated.")] = None,
    expires_in_s: Annotated[int | None, typer.Option(help="Seconds until it expires.")] = None,
) -> None:
    """Make a key and print it: this once and never again."""
    from serai.cli.client import Client

    body = {"name": name, "user_id": user, "role": role, "scopes": scope or [], "expires_in_s": expires_in_s}
    made = Client(context).call("POST", "/keys", body=body)
    if options_of(context).as_json:
        show(context, made)
    else:
        print(made["key"])


@app.command()
def revoke(context: typer.Context, key_id: str) -> None:
    """Revoke a key."""
    from serai.cli.client import Client

    Client(context).call("DELETE", f"/keys/{key_id}")
    show(context, {"revoked": key_id})


@app.command()
def recover(
    context: typer.Context,
    home: Annotated[Path | None, typer.Option(help="Folder of everything the server keeps.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML).")] = None,
) -> None:
    """Make a further admin key and write it to admin.key, for whoever owns the home; the server must be stopped."""
    from serai.auth.first_start import recover as write
    from serai.cli.database import opened
    from serai.clock import SystemClock
    from serai.errors import ConfigurationError
    from serai.ids import new_id
    from serai.storage import schema

    with opened(home, config, alone=True) as (database, _, folder):
        if database.read_sync(schema.current) is None:
            raise ConfigurationError("There is no database here to make a key for.", hint="Name the home with --home.")
        schema.upgrade(database)
        path = write(database, folder, SystemClock(), new_id)
    show(context, {"written": str(path)})
