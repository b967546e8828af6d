"""Durable jobs: enqueue, look, follow, cancel, try again."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Header, Path, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from serai.api.access import Routes, actor_of, caller_of, parts_of
from serai.api.changes import change
from serai.api.enqueue import check_kind, one_key, prepare
from serai.api.enqueue import enqueue as enqueue_job
from serai.api.image_jobs import enqueue_images
from serai.api.streams import SSE_TYPE, sse, with_heartbeat
from serai.api.wire import Cursor, Limit, Moment, Page, Wire, place_of, token_of
from serai.audit import Actor, record
from serai.auth.policy import Caller, Role
from serai.errors import InvalidInput
from serai.images.inputs import hold_inputs
from serai.images.model import KIND as IMAGES
from serai.images.model import ImageRequest
from serai.jobs import store
from serai.jobs.model import DEFAULT_PRIORITY, Job
from serai.jobs.webhooks import owner_secret
from serai.storage.database import Connection

routes = Routes("jobs")

_RESUMED = "Last-Event-ID"

JobId = Annotated[str, Path(max_length=64)]
StatusName = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class JobIn(Wire):
    kind: Annotated[str, Field(min_length=1, max_length=64)]
    payload: dict[str, Any] = Field({}, description='What the kind asks for; `digest` takes {"text"} or {"blob"}.')
    priority: Annotated[int, Field(ge=0, le=9)] = Field(DEFAULT_PRIORITY, description="0 is the most urgent.")
    idempotency_key: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        None, description="The same as the header Idempotency-Key: the same call again gives the same job."
    )
    webhook_url: Annotated[str, Field(max_length=2048)] | None = None


class Accepted(Wire):
    job_id: str
    status: StatusName
    status_url: str
    events_url: str


class JobOut(Wire):
    id: str
    kind: str
    status: StatusName
    reason: str | None = Field(description="Why a queued job does not run: blocked, children, backing_off, cancelling.")
    progress: dict[str, Any] | None
    position: int | None = Field(description="Place in the queue; 1 is next.")
    priority: int
    attempts: int
    owner_id: str
    parent_id: str | None
    children: int
    retry_of: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: dict[str, Any] | None
    result: dict[str, Any] | None
    decision: dict[str, Any] | None


class WebhookSecret(Wire):
    secret: str = Field(description="For checking signatures as Standard Webhooks has it.")


@routes.post("/jobs", access=Role.USER, status_code=202)
async def enqueue(
    request: Request, body: JobIn, idempotency_key: Annotated[str | None, Header(max_length=255)] = None
) -> Accepted:
    """Enqueue a job. It survives restarts, and runs until it ends, is cancelled, or gives up."""
    return await accept(request, body, idempotency_key=one_key(body.idempotency_key, idempotency_key))


async def accept(request: Request, body: JobIn, *, idempotency_key: str | None) -> Accepted:
    """Enqueue a job for the caller, once all is checked that can be known of it before.

    Raises Forbidden where its kind asks for a higher role, or for a scope that the key does not have.
    """
    if body.kind == IMAGES:
        asked = ImageRequest.of(body.payload)
        job = await enqueue_images(
            request,
            asked,
            priority=body.priority,
            idempotency_key=idempotency_key,
            webhook_url=body.webhook_url,
        )
        return _accepted(job)
    new = prepare(
        request,
        body.kind,
        body.payload,
        priority=body.priority,
        idempotency_key=idempotency_key,
        webhook_url=body.webhook_url,
    )
    return _accepted(await enqueue_job(request, new))


@routes.get("/jobs", access=Role.VIEWER)
async def list_jobs(
    request: Request,
    limit: Limit = 50,
    cursor: Cursor = None,
    status: Annotated[StatusName | None, Query()] = None,
    kind: Annotated[str | None, Query(max_length=64)] = None,
    since: Annotated[Moment | None, Query(alias="from", description="Created at or after.")] = None,
    parent_id: Annotated[str | None, Query(max_length=64)] = None,
) -> Page[JobOut]:
    """List your jobs, the newest first; an admin sees all."""
    parts = parts_of(request)
    found, place = await parts.database.read(
        store.list_jobs,
        owner_id=_owner(caller_of(request)),
        status=status,
        kind=kind,
        since=since,
        parent_id=parent_id,
        cursor=place_of(cursor),
        limit=limit,
    )
    items = [_show(request, job, None) for job in found]
    return Page(items=items, next_cursor=None if place is None else token_of(place))


@routes.get("/jobs/webhook-secret", access=Role.USER)
async def webhook_secret(request: Request) -> WebhookSecret:
    """Return the secret with which you check that a webhook came from this server."""
    return WebhookSecret(secret=owner_secret(parts_of(request).webhook_master, caller_of(request).user_id))


@routes.get("/jobs/{job_id}", access=Role.VIEWER)
async def get_job(request: Request, job_id: JobId) -> JobOut:
    """Show a job; a queued one with its place."""
    owner = _owner(caller_of(request))

    def look(connection: Connection) -> tuple[Job, int | None]:
        job = store.get(connection, job_id, owner_id=owner)
        return job, store.position(connection, job)

    job, position = await parts_of(request).database.read(look)
    return _show(request, job, position)


@routes.delete("/jobs/{job_id}", access=Role.USER, status_code=204)
async def delete_job(request: Request, job_id: JobId) -> None:
    """Remove a job that has ended, with its events."""
    owner = _owner(caller_of(request))
    await change(request, _delete, job_id, owner, actor_of(request), parts_of(request).clock.now())


@routes.get("/jobs/{job_id}/events", access=Role.VIEWER, response_class=Response)
async def events(
    request: Request,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header()] = None,
    after: Annotated[int | None, Query(ge=0, lt=2**63, description="As Last-Event-ID.")] = None,
) -> Response:
    """Follow a job as server-sent events, to its end. Events with an id are kept: resume with Last-Event-ID."""
    parts, owner = parts_of(request), _owner(caller_of(request))
    start = after if last_event_id is None else _event_number(last_event_id)
    try:
        await parts.database.read(store.events, job_id, owner_id=owner, after=start, limit=1)
    except InvalidInput as error:
        if last_event_id is None:
            raise
        raise InvalidInput.at(_RESUMED, "names an event that this job never had") from error

    async def frames() -> AsyncGenerator[bytes, None]:
        async with aclosing(parts.feed.follow(job_id, owner_id=owner, after=start)) as followed:
            async for entry in followed:
                if entry.was_shown and entry.seq is not None:
                    # A browser keeps the number of a frame without data, and tells nobody of it.
                    yield b"id: %d\n\n" % entry.seq
                else:
                    yield sse(entry.event, entry.seq)

    headers = {"x-accel-buffering": "no"}
    return StreamingResponse(with_heartbeat(frames(), until=parts.stopping), media_type=SSE_TYPE, headers=headers)


@routes.post("/jobs/{job_id}/cancel", access=Role.USER)
async def cancel(request: Request, job_id: JobId) -> JobOut:
    """Cancel a job: at once while it waits, at its next step while it runs; 409 with the result of one that ended."""
    parts, owner = parts_of(request), _owner(caller_of(request))
    job = await change(request, _cancel, parts.clock, job_id, owner, actor_of(request))
    return _show(request, job, None)


@routes.post("/jobs/{job_id}/retry", access=Role.USER, status_code=202)
async def retry(request: Request, job_id: JobId) -> Accepted:
    """Enqueue a job that failed or was cancelled again, as a new one."""
    parts, owner = parts_of(request), _owner(caller_of(request))
    usual = parts.settings.disk_quota_bytes
    found = await parts.database.read(store.get, job_id, owner_id=owner)
    check_kind(caller_of(request), found.kind)
    job = await change(request, _retry, parts.clock, job_id, owner, parts.new_id("job"), actor_of(request), usual)
    return _accepted(job)


def _cancel(connection: Connection, clock: Any, job_id: str, owner: str | None, actor: Actor) -> Job:
    before = store.get(connection, job_id, owner_id=owner)
    job = store.cancel(connection, clock, job_id, owner_id=owner)
    if job != before:  # a second cancel changes nothing
        _record(connection, actor, "jobs.cancel", clock.now(), before, job)
    return job


def _retry(
    connection: Connection, clock: Any, job_id: str, owner: str | None, new_id: str, actor: Actor, usual: int
) -> Job:
    before = store.get(connection, job_id, owner_id=owner)
    job = store.retry(connection, clock, job_id, owner_id=owner, new_id=new_id)
    if job.kind == IMAGES:
        hold_inputs(connection, job, usual, clock.now())
    _record(connection, actor, "jobs.retry", clock.now(), before, job)
    return job


def _delete(connection: Connection, job_id: str, owner: str | None, actor: Actor, at: datetime) -> None:
    before = store.get(connection, job_id, owner_id=owner)
    store.delete(connection, job_id, owner_id=owner)
    _record(connection, actor, "jobs.delete", at, before, None)


def _record(connection: Connection, actor: Actor, action: str, at: datetime, before: Job, after: Job | None) -> None:
    told = [None if job is None else {"id": job.id, "kind": job.kind, "status": job.status} for job in (before, after)]
    record(connection, actor, action, "job", before.id, at=at, before=told[0], after=told[1])


def _accepted(job: Job) -> Accepted:
    url = f"/jobs/{job.id}"
    return Accepted(job_id=job.id, status=job.status, status_url=url, events_url=f"{url}/events")


def _show(request: Request, job: Job, position: int | None) -> JobOut:
    return JobOut(
        id=job.id,
        kind=job.kind,
        status=job.status,
        reason=parts_of(request).runners.reason(job),
        progress=_plain(job.progress),
        position=position,
        priority=job.priority,
        attempts=job.attempts,
        owner_id=job.owner_id,
        parent_id=job.parent_id,
        children=job.children,
        retry_of=job.retry_of,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        error=_plain(job.error),
        result=_plain(job.result),
        decision=_plain(job.decision),
    )


def _plain(value: Any) -> dict[str, Any] | None:
    return None if value is None else dict(value)


def _event_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidInput.at(_RESUMED, "must be the id of an event of this job")
    return int(text)


def _owner(caller: Caller) -> str | None:
    return None if caller.is_admin else caller.user_id
