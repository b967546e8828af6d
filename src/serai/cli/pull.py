"""`serai pull`: fetch a model's weights, with a progress bar."""

import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any

import typer

from serai.cli.output import options_of, show
from serai.cli.runtime import size


def pull(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A repository of the hub, a model of the registry, or a folder.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    quantize: Annotated[str, typer.Option(help="auto, q4, q8, fp16, fp32, or no.")] = "auto",
    name: Annotated[str | None, typer.Option(help="Its id in the registry.")] = None,
    init: Annotated[bool, typer.Option("--init", help="Load it when it is here.")] = False,
    wait: Annotated[bool, typer.Option(help="Follow it to its end; without, the job goes on by itself.")] = True,
) -> None:
    """Fetch a model. Ctrl-C stops looking; the pull goes on, and 'serai jobs cancel' ends it."""
    from serai.cli.client import Client, Refused

    client = Client(context)
    body = {"model": model, "revision": revision, "quantize": quantize, "name": name, "init": init}
    accepted = client.call("POST", "/pull", body={key: value for key, value in body.items() if value is not None})
    if not wait:
        show(context, accepted)
        return
    tell = _print_json if options_of(context).as_json else _draw if sys.stdout.isatty() else _print_stages
    try:
        last = tell(client.events(f"/jobs/{accepted['job_id']}/events"))
    except KeyboardInterrupt:
        typer.echo(f"The pull goes on; 'serai jobs cancel {accepted['job_id']}' ends it.", err=True)
        raise
    if last.get("type") == "failed":
        raise Refused(f"{last['message']} [{last['code']}]", hint=last["hint"])
    if not options_of(context).as_json:
        show(context, last["result"])


def _print_json(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    import json

    last: dict[str, Any] = {}
    for last in events:
        print(json.dumps(last, ensure_ascii=False), flush=True)
    return last


def _print_stages(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Print a line for each stage until the last event, and return it."""
    last: dict[str, Any] = {}
    told: set[str] = set()
    for last in events:
        if last["type"] == "progress" and last["fraction"] is not None and last["stage"] not in told:
            told.add(last["stage"])
            amount = f" {size(last['total'])}" if last["stage"] == "download" and last["total"] else ""
            print(f"{last['stage']}{amount}", flush=True)
    return last


def _draw(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Draw one bar over all stages until the last event, and return it."""
    from rich.progress import BarColumn, Progress, TextColumn

    last: dict[str, Any] = {}
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns) as screen:
        bar = screen.add_task("pull", total=1.0, figures="")
        for last in events:
            if last["type"] == "progress" and last["fraction"] is not None:
                screen.update(bar, description=last["stage"], completed=last["fraction"], figures=_figures(last))
    return last


def _figures(event: dict[str, Any]) -> str:
    """Return the bytes of a download, how fast they come, and how long it will take."""
    detail = event["detail"] or {}
    if event["stage"] != "download" or not detail:
        return ""
    left = detail["eta_s"]
    return (
        f"{size(detail['downloaded_bytes'])} of {size(detail['total_bytes'])}, {size(detail['speed'])}/s"
        f"{'' if left is None else f', {timedelta(seconds=round(left))} left'}"
    )
