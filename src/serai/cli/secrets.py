"""`serai secrets`: keys of other servers, by name. Their values go in and never come out."""

import sys
from typing import Annotated, Any

import typer

from serai.cli.changes import at
from serai.cli.output import options_of, show

app = typer.Typer(help="Secrets that the server sends to others: list, set, delete.", no_args_is_help=True)
_COLUMNS = ("name", "origins", "source", "updated_at", "updated_by")

Name = Annotated[str, typer.Argument(help="Small letters, digits and '_'.")]


@app.command("list")
def list_secrets(context: typer.Context) -> None:
    """List the secrets with where they may be sent; values are told to nobody."""
    from serai.cli.client import Client

    show(context, Client(context).every("/secrets"), _COLUMNS)


@app.command("set")
def set_secret(
    context: typer.Context,
    name: Name,
    origin: Annotated[
        list[str], typer.Option("--origin", help="Where it may be sent: scheme://host; may be repeated.")
    ],
    keep_value: Annotated[
        bool,
        typer.Option("--keep-value", help="Change the origins alone; the value stays, or is SERAI_SECRET_<NAME>."),
    ] = False,
) -> None:
    """Set a secret. Its value is asked for, or read from stdin where that is a pipe or a file."""
    from serai.cli.client import Client

    body: dict[str, Any] = {"origins": origin} if keep_value else {"origins": origin, "value": _value()}
    made = Client(context).call("PUT", at("secrets", name), body=body)
    show(context, made if options_of(context).as_json else [made], _COLUMNS)


@app.command()
def delete(context: typer.Context, name: Name) -> None:
    """Remove a secret, with where it may be sent."""
    from serai.cli.client import Client

    Client(context).call("DELETE", at("secrets", name))
    show(context, {"deleted": name})


def _value() -> str:
    """Return the value: never from the arguments, which every process of the machine can read."""
    if sys.stdin.isatty():
        asked: str = typer.prompt("Value", hide_input=True)
        return asked
    given = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    if not given:
        raise typer.BadParameter("holds no value", param_hint="stdin")
    return given
