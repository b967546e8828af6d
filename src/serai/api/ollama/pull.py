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
_STATUS: dict[str, str] = {
    "resolve": "pulling manifest",
    "download": "pulling weights",
    "verify": "verifying sha256 digest",
    "convert": "converting weights",
    "register": "writing manifest",
    "load": "loading",
}
_ORDER = {stage: number for number, stage in enumerate(_STATUS)}


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
            if not entry.was_shown:
                yield entry.event


async def _last(events: AsyncGenerator[Event, None]) -> Event | None:
    last = None
    async with aclosing(events):
        async for event in events:
            last = event
    return last


async def _lines(events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    steps = _Steps()
    yield line({"status": _STATUS["resolve"]})
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Failed):
                yield errors.line(error_of(event))
            elif isinstance(event, Done):
                yield steps.last()
            elif isinstance(event, Progress) and (told := steps.next(event)):
                yield told


class _Steps:
    """Tells the steps of a pull in Ollama's words; the bytes of all files count as one layer.

    It never goes back: a job's stored events repeat its live ones, and a pull that was interrupted
    begins again with what is on the disk.
    """

    def __init__(self) -> None:
        self._place = (_ORDER["resolve"], 0.0, 0)
        self._layer_left = 0
        """Bytes of the layer that were not told yet."""

    def next(self, event: Progress) -> bytes:
        """Return the lines for an event: none for one that tells nothing new."""
        stage = event.stage
        if stage not in _STATUS:
            return b""
        done, total = event.done or 0, event.total or 0
        place = (_ORDER[stage], event.fraction or 0.0, done)
        if place <= self._place:
            return b""
        self._place = place
        told = []
        if self._layer_left and stage != "download":
            self._layer_left = 0
            told.append(_layer(total, total))
        if stage == "download" and total:
            self._layer_left = total - done
            told.append(_layer(done, total))
        else:
            told.append({"status": _STATUS[stage]})
        return b"".join(map(line, told))

    def last(self) -> bytes:
        """Return the lines of a pull that is done; those that its own steps have told already are left out."""
        left = [_STATUS[stage] for stage in ("verify", "register") if _ORDER[stage] > self._place[0]]
        return b"".join(line({"status": status}) for status in (*left, _SUCCESS["status"]))


def _layer(done: int, total: int) -> dict[str, Any]:
    return {"status": _STATUS["download"], "digest": "weights", "total": total, "completed": done}
