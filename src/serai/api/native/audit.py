"""The audit log, for admins: read it, take its head away, verify its chain."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query
from pydantic import Field
from starlette.requests import Request

from serai import audit
from serai.api.access import Routes, parts_of
from serai.api.wire import Cursor, Limit, Moment, Page, Wire, number_of, page_of
from serai.auth.policy import Role

routes = Routes("audit")

Word = Annotated[str | None, Query(max_length=256)]

Since = Annotated[Moment | None, Query(description="RFC 3339, with its zone.")]


class EntryOut(Wire):
    seq: int
    at: datetime
    actor: str
    action: str
    object_kind: str
    object_id: str
    before: Any
    after: Any
    address: str | None
    request_id: str | None
    prev_hash: str
    hash: str


class HeadOut(Wire):
    """Keep this elsewhere: `verify` with it notices a log that was cut."""

    seq: int
    hash: str


class KeptHead(Wire):
    seq: int = Field(ge=0, lt=2**63)
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")


class VerdictOut(Wire):
    ok: bool
    entries: int
    broken_at: int | None
    problem: str | None
    head: HeadOut


@routes.get("/audit", access=Role.ADMIN)
async def list_entries(
    request: Request,
    limit: Limit = 50,
    cursor: Cursor = None,
    object_kind: Word = None,
    object_id: Word = None,
    actor: Word = None,
    action: Word = None,
    since: Since = None,
    until: Since = None,
) -> Page[EntryOut]:
    """List who changed what, the newest first."""
    rows = await parts_of(request).database.read(
        audit.entries,
        limit=limit + 1,
        before_seq=number_of(cursor),
        kind=object_kind,
        object_id=object_id,
        actor=actor,
        action=action,
        since=since,
        until=until,
    )
    return page_of(rows, limit, EntryOut.model_validate, lambda entry: str(entry.seq))


@routes.get("/audit/head", access=Role.ADMIN)
async def get_head(request: Request) -> HeadOut:
    """Return the end of the chain."""
    return HeadOut.model_validate(await parts_of(request).database.read(audit.head))


@routes.post("/audit/verify", access=Role.ADMIN, rehearsable=False)
async def verify(request: Request, body: KeptHead | None = None) -> VerdictOut:
    """Recompute the whole chain, and find a head that was kept on it."""
    kept = None if body is None else audit.Head(seq=body.seq, hash=body.hash)
    return VerdictOut.model_validate(await parts_of(request).database.read(audit.verify, kept))
