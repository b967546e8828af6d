"""Jobs that routes of every dialect make, and wait for: enqueued, rehearsed, followed to their end."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any

from anyio import CancelScope
from starlette.requests import Request

from serai.api.access import caller_of, is_rehearsal, parts_of
from serai.api.changes import Rehearsed
from serai.api.parts import Parts
from serai.auth.policy import ANY_SCOPE, Caller, Role, check_access
from serai.clock import Clock
from serai.errors import InvalidInput, OutboundRefused
from serai.events import Done, Event, Failed, fold
from serai.jobs import store
from serai.jobs.model import DEFAULT_PRIORITY, Job, JobFinished, JobNotFound, NewJob
from serai.storage.database import Connection

NEEDED: Mapping[str, tuple[Role, str]] = {"images": (Role.USER, "images"), "pull": (Role.MODERATOR, "models")}
"""Least role and scope of whoever enqueues a job of a kind, by whatever route; of others any user may."""


def one_key(of_body: str | None, of_header: str | None) -> str | None:
    """Return the idempotency key that body or header give. Raises InvalidInput where they differ."""
    if of_header is not None and of_body not in (None, of_header):
        raise InvalidInput.at("idempotency_key", "and the header Idempotency-Key differ")
    return of_body or of_header


def prepare(
    request: Request,
    kind: str,
    payload: Mapping[str, Any],
    *,
    priority: int = DEFAULT_PRIORITY,
    idempotency_key: str | None = None,
    webhook_url: str | None = None,
) -> NewJob:
    """Return a checked job of the caller's for `enqueue`.

    Raises UnknownJobKind, InvalidInput, and what `check_kind` raises.
    """
    parts, caller = parts_of(request), caller_of(request)
    check_kind(caller, kind)
    new = parts.runners.prepare(
        kind=kind,
        payload=payload,
        owner_id=caller.user_id,
        new_id=parts.new_id,
        priority=priority,
        idempotency_key=idempotency_key,
        webhook_url=webhook_url,
    )
    if webhook_url is not None:
        try:
            parts.outbound.check_url(webhook_url)
        except OutboundRefused as error:  # what DNS says is known only when it is called
            raise InvalidInput.at("webhook_url", error.message, hint=error.hint) from None
    return new


def check_kind(caller: Caller, kind: str) -> None:
    """Raise Forbidden unless the caller may have jobs of this kind done."""
    check_access(caller, *NEEDED.get(kind, (Role.USER, ANY_SCOPE)))


async def enqueue(request: Request, new: NewJob, also: Callable[[Connection, Job], None] | None = None) -> Job:
    """Store the job, or return the earlier one of its idempotency key; in a rehearsal only tell of it.

    `also`: what is written with a job that was not there before, in its transaction. Raises IdempotencyMismatch,
    QueueFull, and what `also` raises.
    """
    parts = parts_of(request)
    if is_rehearsal(request):
        raise Rehearsed.of("jobs.enqueue", "job", new.id, after={"kind": new.kind, "priority": new.priority})
    if also is None:
        return await parts.writes.run(store.enqueue, parts.clock, new)
    return await parts.database.run(_enqueue, parts.clock, new, also)


def _enqueue(connection: Connection, clock: Clock, new: NewJob, also: Callable[[Connection, Job], None]) -> Job:
    job = store.enqueue(connection, clock, new)
    if job.id == new.id:
        also(connection, job)
    return job


class Awaited:
    """A job whose client waits for it: when the client leaves, nobody wants what it makes, and it is cancelled."""

    def __init__(self, parts: Parts, job: Job) -> None:
        self._parts = parts
        self._job = job
        self._is_over = False

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the events of the job, each once, those of its past first; the last one is `Done` or `Failed`."""
        job = self._job
        async with aclosing(self._parts.feed.follow(job.id, owner_id=job.owner_id, after=None)) as entries:
            async for entry in entries:
                self._is_over = isinstance(entry.event, Done | Failed)
                if not entry.was_shown:
                    yield entry.event

    async def last(self) -> Done | Failed:
        """Return how the job ended; cancel it where this is cancelled."""
        try:
            async with aclosing(self.events()) as events:
                return await fold(events)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Cancel the job, if its end was not seen."""
        if self._is_over:
            return
        self._is_over = True
        with CancelScope(shield=True), suppress(JobFinished, JobNotFound):
            job = self._job
            await self._parts.database.run(store.cancel, self._parts.clock, job.id, owner_id=job.owner_id)
