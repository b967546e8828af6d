"""`serai aliases`: movable names of a model's versions."""

from typing import Annotated

import typer

from serai.cli.changes import DryRun, Force, Reason, at, send
from serai.cli.output import options_of, show

app = typer.Typer(help="Aliases: show, set, delete.", no_args_is_help=True)
_COLUMNS = ("epoch", "before", "after", "at", "by", "reason")
_NOWHERE = "none"


@app.command("show")
def show_alias(
    context: typer.Context,
    model: str,
    alias: Annotated[str | None, typer.Argument(help="Its moves; without it, all aliases of the model.")] = None,
    moment: Annotated[str | None, typer.Option("--at", help="Which version it named then (RFC 3339).")] = None,
) -> None:
    """Show where aliases point, or the moves of one."""
    from serai.cli.client import Client

    if alias is None:
        found = Client(context).call("GET", at("models", model))["aliases"]
        show(context, [{"alias": name, "version": version} for name, version in found.items()])
        return
    history = Client(context).call("GET", at("models", model, "aliases", alias), at=moment)
    if options_of(context).as_json:
        show(context, history)
        return
    print(f"{model}@{alias} → {history['version'] or 'nothing'}")
    if moment is None:
        show(context, history["events"], _COLUMNS)


@app.command("set")
def set_alias(
    context: typer.Context,
    model: str,
    alias: str,
    version: str,
    expected_from: Annotated[
        str | None, typer.Option(help="Move it only if it points to this version; 'none': only if there is none yet.")
    ] = None,
    reason: Reason = None,
    dry_run: DryRun = False,
) -> None:
    """Make or move an alias."""
    body: dict[str, str | None] = {"to": version}
    if expected_from is not None:
        body["expected_from"] = None if expected_from == _NOWHERE else expected_from
    if reason is not None:
        body["reason"] = reason
    moved = send(context, "PUT", at("models", model, "aliases", alias), body=body, dry_run=dry_run)
    if options_of(context).as_json:
        show(context, moved)
    else:
        print(f"{model}@{alias} → {moved['version']} (move {moved['epoch']})")


@app.command()
def delete(context: typer.Context, model: str, alias: str, force: Force = False, dry_run: DryRun = False) -> None:
    """Remove an alias that no service names."""
    send(context, "DELETE", at("models", model, "aliases", alias), force=force, dry_run=dry_run)
    show(context, {"deleted": f"{model}@{alias}"})
