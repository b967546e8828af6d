"""`serai pull`: fetch a model's weights, with a progress bar."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from serai.cli.output import REFUSED, options_of, show


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
    from serai.cli.client import Client

    client = Client(context)
    body = {"model": model, "revision": revision, "quantize": quantize, "name": name, "init": init}
    accepted = client.call("POST", "/pull", body={key: value for key, value in body.items() if value is not None})
    if not wait:
        show(context, accepted)
        return
    events = client.events(f"/jobs/{accepted['job_id']}/events")
    last = _print_json(events) if options_of(context).as_json else _draw(events)
    if last.get("type") == "failed":
        typer.echo(f"serai: {last['message']} [{last['code']}]", err=True)
        if last.get("hint"):
            typer.echo(f"hint: {last['hint']}", err=True)
    if last.get("type") != "done":
        raise typer.Exit(REFUSED)
    if not options_of(context).as_json:
        show(context, last["result"])


def _print_json(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    import json

    last: dict[str, Any] = {}
    for last in events:
        print(json.dumps(last, ensure_ascii=False), flush=True)
    return last


def _draw(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Draw the stages as bars (in bytes where bytes are told) until the last event, and return it."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    last: dict[str, Any] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as screen:
        bars: dict[str, Any] = {}
        for last in events:
            if last["type"] != "progress":
                continue
            stage = last["stage"]
            if stage not in bars:
                bars[stage] = screen.add_task(stage, total=None)
            if last.get("total"):
                screen.update(bars[stage], total=last["total"], completed=last.get("done") or 0)
            elif last.get("fraction") is not None:
                screen.update(bars[stage], total=1.0, completed=last["fraction"])
    return last
