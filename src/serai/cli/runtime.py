"""`serai ps`, and what loads and unloads models."""

from typing import Annotated

import typer

from serai.cli.changes import at
from serai.cli.output import options_of, show

Reference = Annotated[str, typer.Argument(help="A model, model@version, or a service.")]
_COLUMNS = ("model", "versions", "engine", "device", "state", "memory", "threads", "in_flight", "expires", "pinned")


def ps(context: typer.Context) -> None:
    """List what is loaded."""
    from serai.cli.client import Client

    found = Client(context).call("GET", "/ps")
    if options_of(context).as_json:
        show(context, found)
    else:
        show(
            context,
            [{**one, "memory": size(one["bytes"]), "expires": _expiry(one)} for one in found["items"]],
            _COLUMNS,
        )


def load(
    context: typer.Context,
    reference: Reference,
    keep_alive: Annotated[
        float | None, typer.Option(help="Seconds that it stays after its last use; -1: until it is unloaded.")
    ] = None,
) -> None:
    """Load a model before it is asked for."""
    from serai.cli.client import Client

    path = f"{at('models', reference)}/load"
    show(context, Client(context, timeout_s=None).call("POST", path, body={"keep_alive": keep_alive}))


def unload(
    context: typer.Context,
    reference: Reference,
    force: Annotated[bool, typer.Option("--force", help="At once: what runs on it fails.")] = False,
) -> None:
    """Unload a model; what runs on it may finish."""
    from serai.cli.client import Client

    path = f"{at('models', reference)}/unload"
    show(context, Client(context, timeout_s=None).call("POST", path, body={"force": force}))


def clear_cooldown(context: typer.Context, reference: Reference) -> None:
    """Let a model that failed to load be tried again at once."""
    from serai.cli.client import Client

    Client(context).call("POST", f"{at('models', reference)}/cooldown/clear")
    show(context, {"cleared": reference})


def size(count: float) -> str:
    """Return bytes as people read them: '1.5 GiB'."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _expiry(one: dict[str, object]) -> object:
    return one["expires_at"] or ("in use" if one["in_flight"] else "never")
