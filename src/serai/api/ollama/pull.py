"""Pulling a model: a job of this server, told as Ollama tells a pull."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import Routes, caller_of, is_rehearsal, parts_of
from serai.api.answers import Live, json_response, unless_gone
from serai.api.changes import Rehearsed
from serai.api.ollama import errors
from serai.api.ollama.encoding import line
from serai.api.ollama.wire import OllamaPullIn
from serai.api.parts import Parts
from serai.api.streams import NDJSON_TYPE
from serai.auth.policy import Role
from serai.errors import InvalidInput
from serai.events import Done, Event, Failed, Progress
from serai.jobs import store
from serai.serving.errors import error_of

routes = Routes("models")

PULL = "pull"
_SUCCESS = {"status": "success"}
_BEFORE_SUCCESS = ("verifying sha256 digest", "writing manifest")


@routes.post("/api/pull", access=Role.MODERATOR, operation_id="ollama_pull", response_class=Response)
async def pull(request: Request, body: OllamaPullIn) -> Response:
    """Fetch a model. The job goes on when the client leaves; the same pull again follows it."""
    parts, caller = parts_of(request), caller_of(request)
    for name in ("username", "password"):
        if getattr(body, name):
            raise InvalidInput.at(name, "is not supported here: an admin stores the hub's token as a secret")
    new = parts.runners.prepare(
        kind=PULL, payload={"model": body.reference}, owner_id=caller.user_id, new_id=parts.new_id
    )
    if is_rehearsal(request):
        raise Rehearsed.of("models.pull", "job", new.id, after={"model": body.reference})
    job = await parts.writes.run(store.enqueue, parts.clock, new)
    told = _told(parts, job.id, caller.user_id)
    if body.stream is not False:
        return Live(_lines(told), {}, media_type=NDJSON_TYPE, heartbeat=None)
    last = await unless_gone(request, _last(told))
    if isinstance(last, Failed):
        raise error_of(last)
    return json_response(_SUCCESS)


async def _told(parts: Parts, job_id: str, owner_id: str) -> AsyncGenerator[Event, None]:
    async with aclosing(parts.feed.follow(job_id, owner_id=owner_id, after=None)) as followed:
        async for entry in followed:
            yield entry.event


async def _last(events: AsyncGenerator[Event, None]) -> Event | None:
    last = None
    async with aclosing(events):
        async for event in events:
            last = event
    return last


async def _lines(events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    before: dict[str, Any] = {"status": "pulling manifest"}
    yield line(before)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Failed):
                yield errors.line(error_of(event))
            elif isinstance(event, Done):
                yield b"".join(line({"status": status}) for status in _BEFORE_SUCCESS) + line(_SUCCESS)
            elif isinstance(event, Progress):
                shown = _progress(event)
                if shown != before:
                    yield line(shown)
                before = shown


def _progress(event: Progress) -> dict[str, Any]:
    """Return a step in Ollama's words; the bytes of all files count as one layer."""
    if event.stage == "resolve":
        return {"status": "pulling manifest"}
    if event.stage == "verify":
        return {"status": _BEFORE_SUCCESS[0]}
    if event.stage != "download":
        return {"status": event.stage}
    detail = event.detail or {}
    total = event.total if event.total is not None else detail.get("total_bytes")
    done = event.done if event.done is not None else detail.get("downloaded_bytes")
    shown: dict[str, Any] = {"status": "pulling weights", "digest": "weights"}
    if total:
        shown |= {"total": int(total), "completed": int(done or 0)}
    return shown
