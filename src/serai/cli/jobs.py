"""`serai jobs`: durable jobs."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from serai.cli.output import REFUSED, options_of, show

app = typer.Typer(help="Jobs: submit, list, show, follow, cancel, retry.", no_args_is_help=True)
_COLUMNS = ("id", "kind", "status", "reason", "position", "attempts", "created_at", "finished_at")


@app.command("list")
def list_jobs(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed or cancelled.")] = None,
    kind: Annotated[str | None, typer.Option()] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    live: Annotated[bool, typer.Option("--live", help="Keep showing them as they change; Ctrl-C ends it.")] = False,
) -> None:
    """List the newest jobs."""
    from serai.cli.client import Client

    client = Client(context)
    if live:
        _live(client, status, kind, limit)
    else:
        show(context, client.call("GET", "/jobs", status=status, kind=kind, limit=limit), _COLUMNS)


@app.command("show")
def show_job(context: typer.Context, job_id: str) -> None:
    """Show a job."""
    from serai.cli.client import Client

    show(context, Client(context).call("GET", f"/jobs/{job_id}"))


@app.command()
def submit(
    context: typer.Context,
    kind: str,
    payload: Annotated[str, typer.Argument(help='JSON, for example \'{"text": "hello"}\'.')] = "{}",
    priority: Annotated[int, typer.Option(min=0, max=9, help="0 is the most urgent.")] = 5,
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same call again gives the same job.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
) -> None:
    """Enqueue a job."""
    from serai.cli.client import Client

    try:
        given = json.loads(payload)
    except ValueError as error:
        raise typer.BadParameter(f"is not JSON: {error}", param_hint="PAYLOAD") from None
    client = Client(context)
    body = {"kind": kind, "payload": given, "priority": priority, "idempotency_key": key}
    accepted = client.call("POST", "/jobs", body=body)
    if wait:
        _follow(context, client, accepted["job_id"])
    else:
        show(context, accepted)


@app.command()
def follow(context: typer.Context, job_id: str) -> None:
    """Print a job's events as they come, through restarts of the server; exit 1 unless it succeeds."""
    from serai.cli.client import Client

    _follow(context, Client(context), job_id)


@app.command()
def cancel(context: typer.Context, job_id: str) -> None:
    """Cancel a job."""
    from serai.cli.client import Client

    show(context, Client(context).call("POST", f"/jobs/{job_id}/cancel"))


@app.command()
def retry(context: typer.Context, job_id: str) -> None:
    """Enqueue a failed or cancelled job again."""
    from serai.cli.client import Client

    show(context, Client(context).call("POST", f"/jobs/{job_id}/retry"))


@app.command()
def delete(context: typer.Context, job_id: str) -> None:
    """Remove a job that has ended."""
    from serai.cli.client import Client

    Client(context).call("DELETE", f"/jobs/{job_id}")
    show(context, {"deleted": job_id})


def _follow(context: typer.Context, client: Any, job_id: str) -> None:
    last: dict[str, Any] = {}
    for last in client.events(f"/jobs/{job_id}/events"):
        if options_of(context).as_json:
            print(json.dumps(last, ensure_ascii=False), flush=True)
        else:
            print(_line(last), flush=True)
    if last.get("type") != "done":
        raise typer.Exit(REFUSED)


def _line(event: dict[str, Any]) -> str:
    kind = event["type"]
    if kind == "progress":
        amount = f" {event['done']}{'/' + str(event['total']) if event['total'] else ''} {event['unit'] or ''}"
        return f"… {event['stage']}{amount.rstrip() if event['done'] is not None else ''}"
    if kind == "done":
        return f"done {json.dumps(event['result'], ensure_ascii=False)}"
    if kind == "failed":
        return f"failed {event['code']}: {event['message']}"
    if kind == "text":
        return str(event["delta"])
    return json.dumps(event, ensure_ascii=False)


def _live(client: Any, status: str | None, kind: str | None, limit: int) -> None:
    from rich.live import Live

    from serai.cli.client import pause
    from serai.cli.output import table

    def pages() -> Iterator[Any]:
        while True:
            yield client.call("GET", "/jobs", status=status, kind=kind, limit=limit)["items"]

    with Live(refresh_per_second=4) as screen:
        for rows in pages():
            screen.update(table(rows, _COLUMNS))
            pause(1.0)
