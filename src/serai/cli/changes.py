"""What the commands of the registry share: paths, bodies, rehearsals, and lists over several pages."""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TextIO
from urllib.parse import quote

import typer

from serai.cli.output import options_of, show

MAX_PAGE = 200

DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what would change, and change nothing.")]
Force = Annotated[bool, typer.Option("--force", help="An admin's word: do it although services use it.")]
Limit = Annotated[int, typer.Option(min=1, help="Most lines that are listed.")]
Publish = Annotated[
    bool, typer.Option("--publish", help="Publish it at once; what it is cannot be changed afterwards.")
]
Reason = Annotated[str | None, typer.Option(help="Why; it is kept in the history.")]
CardFile = Annotated[
    typer.FileText | None, typer.Option("--file", help="A JSON file with the fields of the API; '-' reads stdin.")
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the API, as JSON or text; may be repeated."),
]


def at(*segments: str) -> str:
    """Return the path of these segments."""
    return "".join(f"/{quote(segment, safe='')}" for segment in segments)


def body_of(file: TextIO | None, fields: list[str] | None, **options: Any) -> dict[str, Any]:
    """Return the members of `file`, then the options that were given, then the `fields`; later ones win."""
    body = {} if file is None else _object_in(file)
    body.update({name: value for name, value in options.items() if value is not None and value != []})
    for text in fields or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise typer.BadParameter("is written FIELD=VALUE", param_hint="--set")
        body[name] = _value(value)
    return body


def send(
    context: typer.Context,
    method: str,
    path: str,
    *,
    dry_run: bool,
    body: Any = None,
    force: bool = False,
) -> Any:
    """Make a change and return the answer. A rehearsal is printed, and ends the command."""
    from serai.cli.client import Client

    asked = {"dry_run": "1" if dry_run else None, "force": "true" if force else None}
    answer = Client(context, timeout_s=None).call(method, path, body=body, **asked)  # a switch waits for its load
    if dry_run:
        _show_rehearsal(context, answer)
        raise typer.Exit
    return answer


def published(context: typer.Context, model: str, version: str) -> Any:
    """Publish a version and return it."""
    return send(context, "PATCH", at("models", model, "versions", version, "publish"), dry_run=False)


def check_publish(*, publish: bool, dry_run: bool) -> None:
    """Refuse to rehearse the publication of what is not there. Raises BadParameter."""
    if publish and dry_run:
        raise typer.BadParameter("cannot be rehearsed before the version is there", param_hint="--publish")


def listed(context: typer.Context, path: str, limit: int, **filters: Any) -> dict[str, Any]:
    """Return `limit` items at most, of as many pages as that takes; stderr says if there are more."""
    from serai.cli.client import Client

    client, cursor = Client(context), None
    items: list[Any] = []
    while True:
        page = client.call("GET", path, limit=min(limit - len(items), MAX_PAGE), cursor=cursor, **filters)
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None or len(items) >= limit:
            break
    if cursor is not None:
        print(f"There are more than {limit}; --limit shows more.", file=sys.stderr)
    return {"items": items, "next_cursor": cursor}


def brief(value: Any) -> str:
    """Return a value in few characters: '-' for nothing, JSON for what has parts."""
    if value is None or value in ("", [], {}):
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def filled(value: Mapping[str, Any], *leave_out: str) -> dict[str, str]:
    """Return the members that hold something, in few characters each."""
    return {name: brief(member) for name, member in value.items() if name not in leave_out and brief(member) != "-"}


def tell_next(context: typer.Context, model: str, version: Mapping[str, Any]) -> None:
    """Say what is still to be done with a version that answers nobody yet; programs see its status."""
    if version["status"] == "draft" and not options_of(context).as_json:
        print("It is a draft, and answers nobody yet. Next:")
        print(f"  serai versions publish {model} {version['version']}")


def _object_in(file: TextIO) -> dict[str, Any]:
    try:
        found = json.load(file)
    except ValueError as error:
        raise typer.BadParameter(f"is not JSON: {error}", param_hint="--file") from None
    if not isinstance(found, dict):
        raise typer.BadParameter("must hold one JSON object", param_hint="--file")
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _show_rehearsal(context: typer.Context, answer: Mapping[str, Any]) -> None:
    if options_of(context).as_json:
        show(context, answer)
        return
    changes = answer["changes"]
    print("Nothing was changed. " + ("This would happen:" if changes else "Nothing would happen."))
    for change in changes:
        print(f"{change['action']} {change['object_id']}")
        for line in _differences(change["before"], change["after"]):
            print(f"  {line}")


def _differences(before: Any, after: Any, name: str = "") -> Iterator[str]:
    """Yield a line for each member that differs; of what is new or gone, for each that holds something."""
    if isinstance(before, dict | None) and isinstance(after, dict | None) and (before or after):
        old, new = before or {}, after or {}
        for member in {**old, **new}:
            yield from _differences(old.get(member), new.get(member), f"{name}.{member}" if name else member)
    elif brief(before) != brief(after):
        yield f"{name}: {brief(before)} → {brief(after)}"
