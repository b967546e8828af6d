"""`serai run`: talk to a model from the terminal."""

import sys
from typing import Annotated, Any

import typer

from serai.cli.output import options_of


def run(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model, model@version, or a service.")],
    prompt: Annotated[
        str | None, typer.Argument(help="What to ask; without it, a conversation (or standard input).")
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told before.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    seed: Annotated[int | None, typer.Option()] = None,
) -> None:
    """Ask a model and print the answer as it comes. In a conversation, an empty line or Ctrl-D ends it."""
    from serai.cli.client import Client

    client = Client(context)
    options = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    request = {"model": model, "stream": True, **{name: value for name, value in options.items() if value is not None}}
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is not None:
        _ask(context, client, request, [*messages, {"role": "user", "content": prompt}])
        return
    while asked := _read():
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": _ask(context, client, request, messages)})


def _read() -> str:
    try:
        return input(">>> ").strip()
    except EOFError:
        return ""


def _ask(context: typer.Context, client: Any, request: dict[str, Any], messages: list[dict[str, str]]) -> str:
    """Print the answer as it comes, and return it whole. Raises Refused for an error, also after a part of it."""
    import json

    from serai.cli.client import refused

    as_json, said = options_of(context).as_json, []
    for frame in client.stream("POST", "/chat", body={**request, "messages": messages}):
        piece = frame.get("delta", {}).get("content") or ""
        said.append(piece)
        if as_json:
            print(json.dumps(frame, ensure_ascii=False), flush=True)
        else:
            print(piece, end="", flush=True)
        if "error" in frame:
            print(end="" if as_json else "\n", flush=True)
            raise refused(frame["error"])
    if not as_json:
        print()
    return "".join(said)
