"""`serai versions`: the releases of a model, from draft to retired."""

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
    brief,
    check_publish,
    filled,
    listed,
    published,
    send,
    tell_next,
)
from serai.cli.output import options_of, show

app = typer.Typer(
    help="Versions: list, show, create, update, publish, deprecate, activate, retire, delete, diff, impact.",
    no_args_is_help=True,
)
_COLUMNS = ("version", "status", "published", "immutable", "weights", "notes")
_NOTES_WIDTH = 60

Notes = Annotated[str | None, typer.Option("--notes", help="Release notes.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="May be repeated; all tags together replace the old.")]


@app.command("list")
def list_versions(
    context: typer.Context,
    model: str,
    status: Annotated[str | None, typer.Option(help="draft, active, deprecated or retired.")] = None,
    limit: Limit = 50,
) -> None:
    """List the versions of a model, the newest first."""
    found = listed(context, at("models", model, "versions"), limit, status=status)
    if options_of(context).as_json:
        show(context, found)
    else:
        show(context, [_line(version) for version in found["items"]], _COLUMNS)


@app.command("show")
def show_version(context: typer.Context, model: str, version: str) -> None:
    """Show all of a version."""
    from serai.cli.client import Client

    found = Client(context).call("GET", at("models", model, "versions", version))
    show(context, found if options_of(context).as_json else filled(found))


@app.command()
def create(  # noqa: PLR0913, PLR0917 - the options of a command are its parameters
    context: typer.Context,
    model: str,
    version: Annotated[str | None, typer.Argument(help="For example 1.1.0; may stand in the file instead.")] = None,
    notes: Notes = None,
    based_on: Annotated[str | None, typer.Option(help="The version to take over from; the newest if left out.")] = None,
    status: Annotated[str | None, typer.Option(help="draft or active.")] = None,
    tag: Tags = None,
    file: CardFile = None,
    fields: Fields = None,
    publish: Publish = False,
    dry_run: DryRun = False,
) -> None:
    """Add a version; what is left out is taken over from the one it is based on."""
    check_publish(publish=publish, dry_run=dry_run)
    options = {"version": version, "release_notes": notes, "based_on": based_on, "status": status, "tags": tag}
    body = body_of(file, fields, **options)
    made = send(context, "POST", at("models", model, "versions"), body=body, dry_run=dry_run)
    if publish:
        made = published(context, model, made["version"])
    _show(context, made)
    tell_next(context, model, made)


@app.command()
def update(
    context: typer.Context,
    model: str,
    version: str,
    notes: Notes = None,
    tag: Tags = None,
    file: CardFile = None,
    fields: Fields = None,
    dry_run: DryRun = False,
) -> None:
    """Change a version. Of an immutable one, release notes, tags and results may be changed."""
    body = body_of(file, fields, release_notes=notes, tags=tag)
    _show(context, send(context, "PATCH", at("models", model, "versions", version), body=body, dry_run=dry_run))


@app.command()
def deprecate(
    context: typer.Context,
    model: str,
    version: str,
    reason: Annotated[str | None, typer.Option(help="Told to whoever still uses it.")] = None,
    sunset_at: Annotated[str | None, typer.Option(help="From when it may stop answering (RFC 3339).")] = None,
    force: Force = False,
    dry_run: DryRun = False,
) -> None:
    """Deprecate a version that no service uses; with --force the services go on with it."""
    body = body_of(None, None, reason=reason, sunset_at=sunset_at)
    _move(context, model, version, "deprecate", body=body, force=force, dry_run=dry_run)


@app.command()
def activate(context: typer.Context, model: str, version: str, dry_run: DryRun = False) -> None:
    """Make a draft or a deprecated version active."""
    _move(context, model, version, "activate", dry_run=dry_run)


@app.command()
def publish(context: typer.Context, model: str, version: str, dry_run: DryRun = False) -> None:
    """Publish a version; what it is cannot be changed afterwards."""
    _move(context, model, version, "publish", dry_run=dry_run)


@app.command()
def unpublish(context: typer.Context, model: str, version: str, force: Force = False, dry_run: DryRun = False) -> None:
    """Take a version back from publication; it stays immutable."""
    _move(context, model, version, "unpublish", force=force, dry_run=dry_run)


@app.command()
def retire(context: typer.Context, model: str, version: str, force: Force = False, dry_run: DryRun = False) -> None:
    """End a deprecated version: it answers no more."""
    _move(context, model, version, "retire", force=force, dry_run=dry_run)


@app.command()
def delete(context: typer.Context, model: str, version: str, force: Force = False, dry_run: DryRun = False) -> None:
    """Remove a version; its number is never used again."""
    send(context, "DELETE", at("models", model, "versions", version), force=force, dry_run=dry_run)
    show(context, {"deleted": f"{model}@{version}"})


@app.command()
def diff(context: typer.Context, model: str, version: str, other: str) -> None:
    """Tell what changed from VERSION to OTHER, and what may break."""
    from serai.cli.client import Client

    found = Client(context).call("GET", at("models", model, "versions", version, "diff", other))
    if options_of(context).as_json:
        show(context, found)
        return
    rows = list(_changes(found))
    if rows:
        show(context, rows, ("what", "before", "after"))
    print("They are the same thing." if found["identical"] else "They are not the same thing.")
    for sentence in found["breaking"]:
        print(f"May break: {sentence}")


@app.command()
def impact(context: typer.Context, model: str, version: str) -> None:
    """Tell who would be touched if this version went."""
    from serai.cli.client import Client

    found = Client(context).call("GET", at("models", model, "versions", version, "services"))
    if options_of(context).as_json:
        show(context, found)
        return
    uses = [{**use, "published": "yes" if use["published"] else "no"} for use in found["uses"]]
    show(context, uses, ("service", "reference", "role", "published"))
    print(f"aliases: {', '.join(found['aliases']) or 'none'}")


def _move(
    context: typer.Context,
    model: str,
    version: str,
    verb: str,
    *,
    dry_run: bool,
    body: dict[str, Any] | None = None,
    force: bool = False,
) -> None:
    path = at("models", model, "versions", version, verb)
    _show(context, send(context, "PATCH", path, body=body or None, force=force, dry_run=dry_run))


def _show(context: typer.Context, version: Mapping[str, Any]) -> None:
    if options_of(context).as_json:
        show(context, version)
    else:
        show(context, [_line(version)], _COLUMNS)


def _line(version: Mapping[str, Any]) -> dict[str, Any]:
    first, _, rest = version["release_notes"].partition("\n")
    shortened = f"{first[:_NOTES_WIDTH].rstrip()}…" if rest or len(first) > _NOTES_WIDTH else first
    published = version["published_at"] is not None and version["unpublished_at"] is None
    return {
        **version,
        "published": "yes" if published else "no",
        "immutable": "yes" if version["immutable"] else "no",
        "notes": shortened or None,
    }


def _changes(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a line for each thing that differs."""
    rows = [
        (f"{prefix}{change['name']}", change["before"], change["after"])
        for prefix, part in (("", "fields"), ("option ", "engine_options"), ("parameter ", "parameters"))
        for change in found[part]
    ]
    files = found["files"]
    rows += [(f"file {path}", None, "added") for path in files["added"]]
    rows += [(f"file {path}", "removed", None) for path in files["removed"]]
    rows += [(f"file {path}", "changed", "changed") for path in files["changed"]]
    rows += [(f"file {before}", "moved to", after) for before, after in files["moved"]]
    rows += [(f"bytes on {pair['device']}", pair["before"], pair["after"]) for pair in found["memory"]]
    rows += [
        (f"{pair['name']} {pair['dataset']} {pair['metric']}", pair["before"], pair["after"])
        for pair in found["benchmarks"]
    ]
    return [{"what": what, "before": brief(before), "after": brief(after)} for what, before, after in rows]
