"""`serai image`: make a picture from a text, watch it come, save it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serai.cli.output import options_of

if TYPE_CHECKING:
    from serai.cli.client import Client

_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


def image(  # noqa: PLR0913, PLR0917 - the options of a command are its parameters
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="A model, model@version, or a service.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="A file, or a folder for several.")] = Path(),
    negative: Annotated[str | None, typer.Option(help="What it must not show.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT; else the model's own.")] = None,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="How closely the text is followed.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed, the same picture.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=8, help="How many pictures.")] = 1,
    adapter: Annotated[list[str] | None, typer.Option(help="NAME or NAME=SCALE; may be repeated.")] = None,
    start: Annotated[Path | None, typer.Option("--from", help="A picture to start from, or to edit.")] = None,
    mask: Annotated[Path | None, typer.Option(help="With --from: white is painted anew.")] = None,
    strength: Annotated[float | None, typer.Option(min=0, max=1, help="How much of --from is forgotten.")] = None,
    format_: Annotated[str | None, typer.Option("--format", help="png, jpeg or webp; else by the file's name.")] = None,
) -> None:
    """Make pictures. Ctrl-C stops looking; the job goes on, and 'serai jobs cancel' ends it."""
    from serai.cli.client import Client, Refused

    client = Client(context)
    settings = {
        **_size(size),
        "num_images": count,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "seed": seed,
        "strength": strength,
        "adapters": [_adapter(one) for one in adapter] if adapter else None,
        "format": format_ or {name: form for form, name in _SUFFIXES.items()}.get(out.suffix.lower()),
    }
    body = {
        "prompt": prompt,
        "model": model,
        "negative_prompt": negative,
        "image": _uploaded(client, start),
        "mask": _uploaded(client, mask),
        "settings": {name: value for name, value in settings.items() if value is not None},
    }
    given = {name: value for name, value in body.items() if value is not None}
    accepted = client.call("POST", "/images/generations", body=given)
    tell = _draw if sys.stdout.isatty() and not options_of(context).as_json else _wait
    try:
        last = tell(client.events(f"/jobs/{accepted['job_id']}/events"))
    except KeyboardInterrupt:
        typer.echo(f"The job goes on; 'serai jobs cancel {accepted['job_id']}' ends it.", err=True)
        raise
    if last["type"] == "failed":
        raise Refused(f"{last['message']} [{last['code']}]", hint=last["hint"])
    _save(context, client, last["result"], out)


def _size(text: str | None) -> dict[str, int]:
    if text is None:
        return {}
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise typer.BadParameter("is written WIDTHxHEIGHT: 512x512", param_hint="--size")
    return {"width": int(width), "height": int(height)}


def _adapter(text: str) -> dict[str, Any]:
    name, _, scale = text.partition("=")
    try:
        return {"id": name, "scale": float(scale or 1)}
    except ValueError:
        raise typer.BadParameter("is written NAME or NAME=SCALE", param_hint="--adapter") from None


def _uploaded(client: "Client", path: Path | None) -> str | None:
    """Upload a file and return its id."""
    if path is None:
        return None
    return str(client.upload("/files", path.read_bytes(), name=path.name)["id"])


def _wait(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    *_, last = events
    return last


def _draw(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Show the place in the queue, the load, then a bar of the steps, until the last event; return that."""
    from rich.progress import BarColumn, Progress, TextColumn

    last: dict[str, Any] = {}
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TextColumn("{task.fields[figures]}"))
    with Progress(*columns) as screen:
        bar = screen.add_task("waiting", total=1.0, figures="")
        for last in events:
            match last:
                case {"type": "queued"}:
                    screen.update(bar, description="waiting", figures=f"place {last['position']}")
                case {"type": "loading"}:
                    screen.update(bar, description="loading", completed=last["fraction"] or 0, figures=last["model"])
                case {"type": "progress", "fraction": float() | int()}:
                    figures = f"{last['done']}/{last['total']}" if last["total"] else ""
                    screen.update(bar, description=last["stage"], completed=last["fraction"], figures=figures)
    return last


def _save(context: typer.Context, client: "Client", result: dict[str, Any], out: Path) -> None:
    """Write the pictures, and print where and from which seed each is."""
    import json

    pictures = result["images"]
    is_folder = out.is_dir() or len(pictures) > 1 or not out.suffix
    if is_folder:
        out.mkdir(parents=True, exist_ok=True)
    saved = []
    for picture in pictures:
        path = out / f"{picture['id']}{_SUFFIXES[picture['format']]}" if is_folder else out
        path.write_bytes(client.download(picture["url"]))
        saved.append({**picture, "file": str(path)})
    if options_of(context).as_json:
        print(json.dumps({**result, "images": saved}, indent=2, ensure_ascii=False))
        return
    for one in saved:
        size = f"{one['width']}×{one['height']}"
        print(f"{one['file']}  {size}, seed {one['seed']}, {result['model']}@{result['version']}")
