"""`serai services`: the names that clients call, and which version answers."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from serai.cli.changes import CardFile, DryRun, Fields, Force, Limit, Reason, at, body_of, filled, listed, send
from serai.cli.models import version_line
from serai.cli.output import options_of, show

app = typer.Typer(
    help="Services: list, show, create, update, delete, switch, rollback, history, publish, unpublish, explain.",
    no_args_is_help=True,
)
_COLUMNS = ("id", "task", "bound_to", "fallback", "published", "pinned", "warnings")
_VERSION_COLUMNS = ("version", "status", "published", "immutable", "weights")
_ANSWERED_COLUMNS = ("since", "until", "answered", "revision", "by", "reason")
_REVISION_COLUMNS = ("revision", "targets", "fallback", "created_at", "by", "reason")

Model = Annotated[str | None, typer.Option(help="What it is bound to: model, model@1.2.0 or model@alias.")]
Split = Annotated[
    list[str] | None, typer.Option("--split", metavar="REFERENCE=PERCENT", help="A share of the calls; repeated.")
]
Fallback = Annotated[
    list[str] | None,
    typer.Option("--fallback", metavar="REFERENCE", help="Tried next: a model reference or service:ID; repeated."),
]

Preload = Annotated[
    bool | None,
    typer.Option("--preload/--no-preload", help="Load it before; left out: if what answers now is loaded."),
]


@app.command("list")
def list_services(
    context: typer.Context, task: Annotated[str | None, typer.Option()] = None, limit: Limit = 50
) -> None:
    """List the services."""
    found = listed(context, "/services", limit, task=task)
    if options_of(context).as_json:
        show(context, found)
    else:
        show(context, [_line(service) for service in found["items"]], _COLUMNS)


@app.command("show")
def show_service(context: typer.Context, service: str) -> None:
    """Show a service with the versions to which it could be switched."""
    from serai.cli.client import Client

    found = Client(context).call("GET", at("services", service))
    if options_of(context).as_json:
        show(context, found)
        return
    show(context, filled(found, "revision", "available_versions") | _state(found["revision"]))
    show(context, [version_line(version) for version in found["available_versions"]], _VERSION_COLUMNS)


@app.command()
def create(
    context: typer.Context,
    service: Annotated[str | None, typer.Argument(help="The id; may stand in the file instead.")] = None,
    task: Annotated[str | None, typer.Option(help="chat, embedding, image-generation, …")] = None,
    model: Model = None,
    split: Split = None,
    fallback: Fallback = None,
    file: CardFile = None,
    fields: Fields = None,
    dry_run: DryRun = False,
) -> None:
    """Create a service; bound to nothing, it lets the policy choose."""
    body = body_of(file, fields, id=service, task=task, **_binding(model, split, fallback))
    _show(context, send(context, "POST", "/services", body=body, dry_run=dry_run))


@app.command()
def update(
    context: typer.Context,
    service: str,
    model: Model = None,
    split: Split = None,
    fallback: Fallback = None,
    reason: Reason = None,
    file: CardFile = None,
    fields: Fields = None,
    dry_run: DryRun = False,
) -> None:
    """Change a service; binding, chain, limits and configuration make a new revision."""
    body = body_of(file, fields, reason=reason, **_binding(model, split, fallback))
    _show(context, send(context, "PATCH", at("services", service), body=body, dry_run=dry_run))


@app.command()
def delete(context: typer.Context, service: str, force: Force = False, dry_run: DryRun = False) -> None:
    """Remove a service; its history stays."""
    send(context, "DELETE", at("services", service), force=force, dry_run=dry_run)
    show(context, {"deleted": service})


@app.command()
def switch(
    context: typer.Context,
    service: str,
    version: Annotated[str | None, typer.Argument(help="A version of the bound model.")] = None,
    alias: Annotated[str | None, typer.Option(help="An alias of the bound model, instead of a version.")] = None,
    reason: Reason = None,
    preload: Preload = None,
    dry_run: DryRun = False,
) -> None:
    """Switch all calls to another version of the bound model: loaded before, the old one drained after."""
    body = body_of(None, None, version=version, alias=alias, reason=reason, preload=preload)
    _show(context, send(context, "PATCH", at("services", service, "version"), body=body, dry_run=dry_run))


@app.command()
def rollback(
    context: typer.Context,
    service: str,
    to: Annotated[int | None, typer.Option(help="A revision; the state before if left out.")] = None,
    reason: Reason = None,
    preload: Preload = None,
    dry_run: DryRun = False,
) -> None:
    """Go back to the state before: version, weights, chain, limits and configuration."""
    body = body_of(None, None, to=to, reason=reason, preload=preload)
    _show(context, send(context, "POST", at("services", service, "rollback"), body=body, dry_run=dry_run))


@app.command()
def history(
    context: typer.Context,
    service: str,
    moment: Annotated[str | None, typer.Option("--at", help="What answered then (RFC 3339).")] = None,
) -> None:
    """Tell with which versions a service answered, and when."""
    from serai.cli.client import Client

    found = Client(context).call("GET", at("services", service, "history"), at=moment)
    if options_of(context).as_json:
        show(context, found)
        return
    show(context, [{**line, "answered": line["versions"]} for line in found["answered"]], _ANSWERED_COLUMNS)
    rows = [{**one, **_state(one), "revision": one["n"], "by": one["created_by"]} for one in found["revisions"]]
    show(context, rows, _REVISION_COLUMNS)


@app.command()
def publish(context: typer.Context, service: str, dry_run: DryRun = False) -> None:
    """Publish a service; the versions that it uses cannot be changed while it is."""
    _show(context, send(context, "POST", at("services", service, "publish"), dry_run=dry_run))


@app.command()
def unpublish(context: typer.Context, service: str, dry_run: DryRun = False) -> None:
    """Take a service back from publication."""
    _show(context, send(context, "POST", at("services", service, "unpublish"), dry_run=dry_run))


@app.command()
def explain(
    context: typer.Context,
    service: str,
    model: Annotated[str | None, typer.Option(help="The caller's own choice: a reference, or 'auto'.")] = None,
    marketplace: Annotated[str | None, typer.Option()] = None,
    fast: Annotated[bool, typer.Option("--fast", help="As if require_fast were asked for.")] = False,
    high_quality: Annotated[bool, typer.Option("--high-quality", help="As if require_high_quality were.")] = False,
    complexity: Annotated[float | None, typer.Option(min=0, max=1, help="Of the picture.")] = None,
    client_key: Annotated[str | None, typer.Option(help="Keeps a client on one side of a split.")] = None,
) -> None:
    """Tell which version would answer such a call, and why; nothing is run."""
    from serai.cli.client import Client

    wanted = {"model": model, "marketplace": marketplace, "complexity": complexity, "client_key": client_key}
    asked = {"require_fast": fast or None, "require_high_quality": high_quality or None}
    found = Client(context).call("GET", at("services", service, "explain"), **wanted, **asked)
    if options_of(context).as_json:
        show(context, found)
        return
    print(found["explanation"].replace(". ", ".\n"))
    print(f"Reason: {found['reason']}.")
    for warning in found["warnings"]:
        print(f"Warning: {warning}")


def _binding(model: str | None, split: list[str] | None, fallback: list[str] | None) -> dict[str, Any]:
    targets = [_share(text) for text in split or ()]
    return {"model_id": model, "split": targets or None, "fallback": [_link(text) for text in fallback or ()] or None}


def _share(text: str) -> dict[str, Any]:
    reference, _, weight = text.rpartition("=")
    if not reference or not weight.isdecimal():
        raise typer.BadParameter("is written REFERENCE=PERCENT, for example chat@1.2.0=90", param_hint="--split")
    return {**_target(reference), "weight": int(weight)}


def _link(text: str) -> dict[str, Any]:
    kind, colon, service = text.partition(":")
    return {"service": service} if colon and kind == "service" else _target(text)


def _target(reference: str) -> dict[str, Any]:
    from serai.registry.reference import parse_reference

    parsed = parse_reference(reference)
    named = {"model": parsed.name, "version": parsed.version, "alias": parsed.alias}
    return {name: value for name, value in named.items() if value is not None}


def _show(context: typer.Context, service: Mapping[str, Any]) -> None:
    if options_of(context).as_json:
        show(context, service)
        return
    show(context, [_line(service)], _COLUMNS[:-1])
    for warning in service["warnings"]:
        print(f"Warning: {warning}")


def _line(service: Mapping[str, Any]) -> dict[str, Any]:
    state = _state(service["revision"])
    return {
        **service,
        "bound_to": state.get("targets", "the policy's choice"),
        "fallback": state.get("fallback"),
        "published": "yes" if service["published"] else "no",
        "pinned": "yes" if service["pinned"] else "no",
    }


def _state(revision: Mapping[str, Any]) -> dict[str, str]:
    """Return what a revision holds, in few words."""
    targets, fallback = revision["targets"], revision["fallback"]
    shown = {"targets": _references(targets, with_weights=len(targets) > 1), "fallback": _references(fallback)}
    shown |= filled({name: revision[name] for name in ("shadow", "limits", "config")})
    return {name: text for name, text in shown.items() if text}


def _references(targets: Iterable[Mapping[str, Any]], *, with_weights: bool = False) -> str:
    told = []
    for target in targets:
        name = target.get("model") or f"service:{target['service']}"
        selector = target.get("version") or target.get("alias")
        share = f" {target.get('weight', 100)} %" if with_weights else ""
        told.append((f"{name}@{selector}" if selector else name) + share)
    return ", ".join(told)
