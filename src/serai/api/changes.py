"""Changes, and their rehearsals: `dry_run=1` does everything in a transaction, tells it, and undoes it."""

from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from fastapi.responses import JSONResponse
from sqlalchemy.engine import Connection
from starlette.requests import Request

from serai import audit
from serai.api.access import is_rehearsal, parts_of

P = ParamSpec("P")
R = TypeVar("R")

MAX_EFFECTS = 200


class Rehearsed(Exception):
    """Leaves a transaction, and then the route, with what the change would have done."""

    def __init__(self, effects: list[audit.Entry]) -> None:
        super().__init__("rehearsed")
        self.effects = effects


async def change(
    request: Request, function: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
) -> R:
    """Run a store function in one writing transaction; in a rehearsal raise `Rehearsed` instead of committing."""
    database = parts_of(request).database
    if not is_rehearsal(request):
        return await database.run(function, *args, **kwargs)

    def rehearse(connection: Connection) -> R:
        start = audit.head(connection).seq
        function(connection, *args, **kwargs)
        newest = audit.entries(connection, limit=MAX_EFFECTS)
        raise Rehearsed([entry for entry in reversed(newest) if entry.seq > start])

    return await database.run(rehearse)


async def on_rehearsed(request: Request, error: Exception) -> JSONResponse:
    """Answer a rehearsal: the audit entries that the change would have written."""
    effects = error.effects if isinstance(error, Rehearsed) else []
    told = [
        {
            "action": entry.action,
            "object_kind": entry.object_kind,
            "object_id": entry.object_id,
            "before": entry.before,
            "after": entry.after,
        }
        for entry in effects
    ]
    return JSONResponse({"dry_run": True, "changes": told})
