"""`serai image`: make a picture from a text, watch it come, save it."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serai.cli.output import options_of

if TYPE_CHECKING:
    from serai.cli.client import Client

_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def image(  # noqa: PLR0913, PLR0917 - the options of a command are its parameters
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="A model, model@version, or a service.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="A file, or a folder. Several are NAME-1.png …")] = Path(),
    negative: Annotated[str | None, typer.Option(help="What it must not show.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT; else the model's own.")] = None,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="How closely the text is followed.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed, the same picture.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=8, help="How many pictures.")] = 1,
    adapter: Annotated[list[str] | None, typer.Option(help="NAME or NAME=SCALE; may be repeated.")] = None,
    start: Annotated[
        Path | None, typer.Option("--from", exists=True, dir_okay=False, help="A picture to start from, or to edit.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="With --from: white is painted anew.")
    ] = None,
    strength: Annotated[float | None, typer.Option(min=0, max=1, help="How much of --from is forgotten.")] = None,
    format_: Annotated[str | None, typer.Option("--format", help="png, jpeg or webp; else by the file's name.")] = None,
) -> None:
    """Make pictures. Ctrl-C stops looking; the job goes on, and 'serai jobs cancel' ends it."""
    from serai.cli.client import Client

    form = _form(out, format_)
    _check_out(out, count)
    client = Client(context)
    settings = {
        **_size(size),
        "num_images": count,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "seed": seed,
        "strength": strength,
        "adapters": [_adapter(one) for one in adapter] if adapter else None,
        "format": form,
    }
    with _uploaded(client, image=start, mask=mask) as sources:
        asked = {"prompt": prompt, "model": model, "negative_prompt": negative, "settings": _given(settings)}
        accepted = client.call("POST", "/images/generations", body=_given(asked | sources))
    result = _followed(context, client, accepted)
    for field, tokens in result.get("truncated", {}).items():
        typer.echo(f"The model did not read the last {tokens} tokens of the {field.replace('_', ' ')}.", err=True)
    _save(context, client, result, out)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _followed(context: typer.Context, client: "Client", accepted: Mapping[str, Any]) -> dict[str, Any]:
    """Show how a job goes on, and return its result. Raises Refused for one that fails."""
    from serai.cli.client import Refused

    tell = _draw if sys.stdout.isatty() and not options_of(context).as_json else _wait
    try:
        last = tell(client.events(f"/jobs/{accepted['job_id']}/events"))
    except KeyboardInterrupt:
        typer.echo(f"The job goes on; 'serai jobs cancel {accepted['job_id']}' ends it.", err=True)
        raise
    if last["type"] == "failed":
        raise Refused(f"{last['message']} [{last['code']}]", hint=last["hint"])
    return dict(last["result"])


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


def _form(out: Path, format_: str | None) -> str | None:
    """Return the format that is asked for, None for the server's own. Raises BadParameter."""
    if _is_folder(out):
        return format_
    by_name = _FORMATS.get(out.suffix.lower())
    if by_name is None:
        known = ", ".join(_FORMATS)
        raise typer.BadParameter(f"ends with {out.suffix!r}; a picture ends with one of {known}", param_hint="--out")
    if format_ not in (None, by_name):
        raise typer.BadParameter(f"is {format_!r}, but {out.name} would hold {by_name}", param_hint="--format")
    return by_name


def _is_folder(out: Path) -> bool:
    """Say whether pictures are put into `out` under their ids; else it is the name of a file."""
    return out.is_dir() or not out.suffix


def _check_out(out: Path, count: int) -> None:
    """Raise BadParameter where pictures could not be written: before they are drawn."""
    if not _is_folder(out):
        for path in _files(out, count):
            if path.is_dir():
                raise typer.BadParameter(f"{path} is a folder", param_hint="--out")
            _check_writable(path if path.exists() else path.parent)
        return
    there = out
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise typer.BadParameter(f"{there} is no folder", param_hint="--out")
    _check_writable(there)


def _check_writable(path: Path) -> None:
    if not path.exists():
        raise typer.BadParameter(f"there is no folder {path}", param_hint="--out")
    if not os.access(path, os.W_OK):
        raise typer.BadParameter(f"{path} may not be written", param_hint="--out")


def _files(out: Path, count: int) -> list[Path]:
    """Return the name of each picture where `out` is that of a file: a.png, or a-1.png and so on."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, count + 1)]


@contextmanager
def _uploaded(client: "Client", **paths: Path | None) -> Iterator[dict[str, str]]:
    """Upload files, and give their digests by field. A job that names them holds them; no file is left besides."""
    given = {field: path for field, path in paths.items() if path is not None}
    files: dict[str, Any] = {}
    try:
        for field, path in given.items():
            files[field] = client.upload("/files", path.read_bytes(), name=path.name)
        yield {field: str(file["sha256"]) for field, file in files.items()}
    finally:
        for file in files.values():
            client.call("DELETE", f"/files/{file['id']}")


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
    if _is_folder(out):
        paths = [out / f"{picture['id']}{_SUFFIXES[picture['format']]}" for picture in pictures]
    else:
        paths = _files(out, len(pictures))
    saved = []
    for path, picture in zip(paths, pictures, strict=True):
        _write(path, client.download(picture["url"]), picture)
        saved.append({**picture, "file": str(path)})
    if options_of(context).as_json:
        print(json.dumps({**result, "images": saved}, indent=2, ensure_ascii=False))
        return
    for one in saved:
        size = f"{one['width']}×{one['height']}"
        print(f"{one['file']}  {size}, seed {one['seed']}, {result['model']}@{result['version']}")


def _write(path: Path, data: bytes, picture: Mapping[str, Any]) -> None:
    from serai.cli.client import Refused

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        hint = f"The picture is kept: GET {picture['url']}."
        raise Refused(f"{path}: {error.strerror}.", hint=hint) from None
