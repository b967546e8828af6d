"""Changes, and their rehearsals: `dry_run=1` does everything in a transaction, tells it, and undoes it."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, TypeVar

from fastapi.responses import JSONResponse
from starlette.requests import Request

from serai import audit
from serai.api.access import is_rehearsal, parts_of
from serai.storage.database import Connection

P = ParamSpec("P")
R = TypeVar("R")


class Rehearsed(Exception):
    """Leaves a transaction, and then the route, with what the change would have done."""

    def __init__(self, effects: list[dict[str, Any]]) -> None:
        super().__init__("rehearsed")
        self.effects = effects

    @classmethod
    def of(cls, action: str, kind: str, object_id: str, *, after: Any) -> "Rehearsed":
        """Return the rehearsal of one change that writes no audit entry."""
        effect = {"action": action, "object_kind": kind, "object_id": object_id, "before": None, "after": after}
        return cls([effect])


async def change(
    request: Request, function: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
) -> R:
    """Run a store function in one writing transaction; in a rehearsal raise `Rehearsed` instead of committing."""
    database = parts_of(request).database
    if not is_rehearsal(request):
        return await database.run(function, *args, **kwargs)

    def rehearse(connection: Connection) -> R:
        audit.take_effects(connection)
        function(connection, *args, **kwargs)
        raise Rehearsed(audit.take_effects(connection))

    return await database.run(rehearse)


async def attempt(
    request: Request, function: Callable[Concatenate[Connection, P], Any], *args: P.args, **kwargs: P.kwargs
) -> None:
    """Raise what `change` would raise, and leave everything as it is: asked before what takes long."""

    def rehearse(connection: Connection) -> None:
        function(connection, *args, **kwargs)
        raise Rehearsed(audit.take_effects(connection))

    with suppress(Rehearsed):
        await parts_of(request).database.run(rehearse)


async def on_rehearsed(request: Request, error: Exception) -> JSONResponse:
    """Answer a rehearsal: what would be in the audit log."""
    return JSONResponse({"dry_run": True, "changes": error.effects if isinstance(error, Rehearsed) else []})
