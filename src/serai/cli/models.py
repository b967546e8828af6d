"""`serai models`: the cards, each with its versions."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from serai.cli.changes import (
    CardFile,
    DryRun,
    Fields,
    Force,
    Limit,
    Publish,
    at,
    body_of,
    check_publish,
    filled,
    listed,
    published,
    send,
    tell_next,
)
from serai.cli.output import options_of, show

app = typer.Typer(help="Models: list, show, create, update, delete.", no_args_is_help=True)
_COLUMNS = ("id", "task", "default_version", "versions", "aliases", "licence", "priority", "active")
_VERSION_COLUMNS = ("version", "status", "published", "immutable", "weights")

Name = Annotated[str | None, typer.Option(help="Display name.")]
Licence = Annotated[str | None, typer.Option(help="SPDX id or name.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="May be repeated; all tags together replace the old.")]


@app.command("list")
def list_models(
    context: typer.Context,
    task: Annotated[str | None, typer.Option()] = None,
    status: Annotated[str | None, typer.Option(help="Only those with a version of this status.")] = None,
    tag: Annotated[str | None, typer.Option()] = None,
    search: Annotated[str | None, typer.Option(help="Words in id, names, publisher, description or tags.")] = None,
    include_deprecated: Annotated[bool, typer.Option("--include-deprecated")] = False,
    limit: Limit = 50,
) -> None:
    """List the models."""
    old = True if include_deprecated else None
    filters = {"task": task, "version_status": status, "tag": tag, "search": search, "include_deprecated": old}
    found = listed(context, "/models", limit, **filters)
    if options_of(context).as_json:
        show(context, found)
    else:
        show(context, [_line(model) for model in found["items"]], _COLUMNS)


@app.command("show")
def show_model(
    context: typer.Context,
    model: str,
    version: Annotated[str | None, typer.Option(help="A version or alias, of which all is shown too.")] = None,
) -> None:
    """Show a card with its versions."""
    from serai.cli.client import Client

    _show(context, Client(context).call("GET", at("models", model), version=version))


@app.command()
def create(  # noqa: PLR0913, PLR0917 - the options of a command are its parameters
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="The id; may stand in the file instead.")] = None,
    task: Annotated[str | None, typer.Option(help="chat, embedding, image-generation, …")] = None,
    version: Annotated[str | None, typer.Option(help="The first version, for example 1.0.0.")] = None,
    name: Name = None,
    licence: Licence = None,
    tag: Tags = None,
    file: CardFile = None,
    fields: Fields = None,
    publish: Publish = False,
    dry_run: DryRun = False,
) -> None:
    """Register a model with its first version."""
    from serai.cli.client import Client

    check_publish(publish=publish, dry_run=dry_run)
    options = {"id": model, "task": task, "version": version, "name": name, "licence": licence, "tags": tag}
    body = body_of(file, fields, **options)
    made = send(context, "POST", "/models", body=body, dry_run=dry_run)
    if publish:
        published(context, made["id"], made["versions"][0]["version"])
        made = Client(context).call("GET", at("models", made["id"]))
    _show(context, made)
    tell_next(context, made["id"], made["versions"][0])


@app.command()
def update(
    context: typer.Context,
    model: str,
    version: Annotated[str | None, typer.Option(help="The version that fields of a version are meant for.")] = None,
    name: Name = None,
    licence: Licence = None,
    tag: Tags = None,
    file: CardFile = None,
    fields: Fields = None,
    dry_run: DryRun = False,
) -> None:
    """Change a card."""
    body = body_of(file, fields, version=version, name=name, licence=licence, tags=tag)
    _show(context, send(context, "PATCH", at("models", model), body=body, dry_run=dry_run))


@app.command()
def delete(context: typer.Context, model: str, force: Force = False, dry_run: DryRun = False) -> None:
    """Remove a model with its versions; their numbers are never used again."""
    send(context, "DELETE", at("models", model), force=force, dry_run=dry_run)
    show(context, {"deleted": model})


def version_line(version: Mapping[str, Any]) -> dict[str, Any]:
    """Return a version of a card as a line of a table."""
    return {**version, "published": _yes(version["published"]), "immutable": _yes(version["immutable"])} | {
        "weights": version["availability"]
    }


def _show(context: typer.Context, model: Mapping[str, Any]) -> None:
    if options_of(context).as_json:
        show(context, model)
        return
    show(context, filled(model, "versions", "version"))
    show(context, [version_line(version) for version in model["versions"]], _VERSION_COLUMNS)
    if model["version"] is not None:
        show(context, filled(model["version"]))


def _line(model: Mapping[str, Any]) -> dict[str, Any]:
    aliases = [f"{name} → {version}" for name, version in model["aliases"].items()]
    return {**model, "versions": len(model["versions"]), "aliases": aliases} | {
        "licence": model["licence"] or None,
        "active": _yes(model["active"]),
    }


def _yes(value: bool) -> str:
    return "yes" if value else "no"
