"""`serai ps`, and what loads and unloads models."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import typer

from serai.cli.changes import at
from serai.cli.output import options_of, show

Reference = Annotated[str, typer.Argument(help="A model, model@version, or a service.")]
COLUMNS = ("versions", "engine", "device", "memory", "state", "expires")


def ps(context: typer.Context) -> None:
    """List what is loaded; with --json all that is known of it."""
    from serai.cli.client import Client
    from serai.clock import SystemClock

    found = Client(context).call("GET", "/ps")
    if options_of(context).as_json:
        show(context, found)
    else:
        now = SystemClock().now()
        show(context, [line(one, now) for one in found["items"]], COLUMNS, folds="versions")


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


def line(one: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return what is loaded as a line of the table, short enough for a narrow terminal."""
    calls, expires = one["in_flight"], one["expires_at"]
    state = f"{calls} in use" if calls and one["state"] == "ready" else one["state"]
    if one["pinned"]:
        leaves = "pinned"
    elif expires is not None:
        leaves = f"in {_span((datetime.fromisoformat(expires) - now).total_seconds())}"
    else:
        leaves = "-" if calls or one["state"] != "ready" else "never"
    return {**one, "memory": size(one["bytes"]), "state": state, "expires": leaves}


def _span(seconds: float) -> str:
    """Return a time as people say it: '45 s', '5 min', '2 h', '3 d'."""
    for unit, length, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{max(seconds, 0) / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
