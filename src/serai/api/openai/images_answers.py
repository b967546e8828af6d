"""Pictures as OpenAI's API tells them: whole, and as events. The job behind them ends with whoever waits for it."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any

import msgspec
from anyio import CancelScope
from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import parts_of
from serai.api.answers import START_WITHIN_S, Live, json_response, unless_gone
from serai.api.enqueue import Awaited
from serai.api.errors import NO_RETRY
from serai.api.json_lines import encode
from serai.api.openai import errors
from serai.api.openai.encoding import comments
from serai.api.openai.images_urls import address_of
from serai.api.openai.images_wire import Wish, in_our_words
from serai.errors import DeadlineExceeded, InvalidInput, SeraiError
from serai.events import PREVIEW, Done, Event, Failed, Media
from serai.jobs import store
from serai.jobs.model import Job
from serai.registry.decision import Decision
from serai.registry.snapshot import RegistrySnapshot
from serai.serving.errors import error_of
from serai.serving.headers import decision_headers, deprecation_headers

Output = Media | Done

_UNTOLD = {"quality": "auto", "background": "opaque"}
"""Steps decide the quality, and every picture is opaque."""


class Drawing:
    """The job of one call, followed to its end. Closed before that, it is cancelled."""

    def __init__(self, request: Request, job: Job, wish: Wish) -> None:
        parts = parts_of(request)
        self.request = request
        self.wish = wish
        self._job = job
        self._awaited = Awaited(parts, job)
        self._events = self._awaited.events()
        self._next: asyncio.Future[Event] | None = None
        self._first: Output | None = None
        self._now = parts.clock.monotonic
        self._until = self._now() + (wish.timeout_s or parts.settings.request_timeout_s)

    async def started(self) -> None:
        """Return at the first preview or the end, or when headers can wait no longer.

        Raises the error of a job that failed.
        """
        self._first = await self.output(START_WITHIN_S)

    async def output(self, within_s: float | None = None) -> Output | None:
        """Return the next preview or the end; None where neither came `within_s`.

        Raises the error of a job that failed, and DeadlineExceeded.
        """
        if self._first is not None:
            first, self._first = self._first, None
            return first
        until = self._until if within_s is None else min(self._until, self._now() + within_s)
        while (event := await self._event(until)) is not None:
            if isinstance(event, Failed):
                error = error_of(event)
                raise in_our_words(error) if isinstance(error, InvalidInput) else error
            if isinstance(event, Media | Done):
                return event
        if self._now() >= self._until:
            raise DeadlineExceeded("The pictures were not finished in the time given.")
        return None

    async def result(self) -> Mapping[str, Any]:
        """Return the result of the job. Raises the error of one that failed, and DeadlineExceeded."""
        while True:
            output = await self.output()
            if isinstance(output, Done):
                return output.result

    async def headers(self) -> dict[str, str]:
        """Return what is told of the call in headers, as it stands."""
        parts = parts_of(self.request)
        job = await parts.database.read(store.get, self._job.id, owner_id=self._job.owner_id)
        return {**headers_of(job, await parts.registry.current()), **_aside(self.wish)}

    async def aclose(self) -> None:
        """End the job, if it goes on."""
        with CancelScope(shield=True):
            if self._next is not None:
                self._next.cancel()
                await asyncio.gather(self._next, return_exceptions=True)
            await self._events.aclose()
            await self._awaited.aclose()

    async def _event(self, until: float) -> Event | None:
        """Return the next event; None where none came in time, which loses none."""
        if self._next is None:
            self._next = asyncio.ensure_future(anext(self._events))
        await asyncio.wait({self._next}, timeout=max(0.0, until - self._now()))
        if not self._next.done():
            return None
        event, self._next = self._next.result(), None
        return event


async def answer(drawing: Drawing) -> Response:
    """Return the answer to a call, with which the drawing is closed. What a job failed of is worth no other try."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(drawing.aclose)
        try:
            if not drawing.wish.streams:
                return await unless_gone(drawing.request, _whole(drawing))
            await unless_gone(drawing.request, drawing.started())
        except SeraiError as error:
            return errors.respond(error, {**await drawing.headers(), **NO_RETRY})
        headers = await drawing.headers()
        stack.pop_all()
        return Live(_frames(drawing, headers), headers, reply=drawing)


async def _whole(drawing: Drawing) -> Response:
    result = await drawing.result()
    pictures = result["images"]
    data = [await _entry(drawing, result, picture) for picture in pictures]
    created = _seconds(parts_of(drawing.request).clock.now())
    told = {"created": created, "data": data, **_shown(pictures[0]), "usage": usage_of(result)}
    return await asyncio.to_thread(json_response, told, 200, await drawing.headers())


def headers_of(job: Job, snapshot: RegistrySnapshot) -> dict[str, str]:
    """Return the job, and what other answers tell: who draws, why, in place of whom. A decision may be to come."""
    headers = {"X-Serai-Job": job.id}
    if job.decision is None:
        return headers
    decision = msgspec.convert(job.decision, Decision)
    headers |= decision_headers(decision, str(job.decision["id"]))
    entry = snapshot.models.get(decision.model)
    candidate = None if entry is None else entry.candidates.get(decision.version)
    if candidate is not None:
        headers |= deprecation_headers(candidate.version, snapshot.rules)
    return headers


def usage_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokens that another server counted; models here count none, and clients read the numbers."""
    told = result.get("usage") or {}
    details = told.get("input_tokens_details") or {}
    input_, output = int(told.get("input_tokens") or 0), int(told.get("output_tokens") or 0)
    return {
        "input_tokens": input_,
        "output_tokens": output,
        "total_tokens": int(told.get("total_tokens") or input_ + output),
        "input_tokens_details": {
            "text_tokens": int(details.get("text_tokens") or 0),
            "image_tokens": int(details.get("image_tokens") or 0),
        },
    }


async def _frames(drawing: Drawing, headers: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
    """Yield the frames of a stream whose headers are sent.

    The headers name at most who drew the first preview. If that one breaks down, another may draw the picture: comments
    before the last frame tell each header that is new or turned out otherwise. There are no more partial pictures than
    were asked for, whoever drew them.
    """
    wish, told = drawing.wish, 0
    try:
        while True:
            output = await drawing.output()
            if isinstance(output, Done):
                yield await _late(drawing, headers) + await _completed(drawing, output.result)
                return
            if isinstance(output, Media) and output.name == PREVIEW and told < wish.partials:
                yield _partial(drawing, output, told)
                told += 1
    except SeraiError as error:
        yield await _late(drawing, headers) + _frame("error", errors.openai_error(error)[1])
    finally:
        await drawing.aclose()


async def _late(drawing: Drawing, headers: Mapping[str, str]) -> bytes:
    """Return as comments what is other than in the headers that were sent."""
    return comments({name: value for name, value in (await drawing.headers()).items() if headers.get(name) != value})


def _partial(drawing: Drawing, preview: Media, index: int) -> bytes:
    """Return the event of a preview. It is smaller than the picture will be, and says of its own format."""
    body = {
        "b64_json": base64.b64encode(preview.data).decode(),
        "partial_image_index": index,
        "created_at": _seconds(parts_of(drawing.request).clock.now()),
        "size": drawing.wish.size,
        **_UNTOLD,
        "output_format": preview.media_type.removeprefix("image/"),
    }
    return _frame(f"{drawing.wish.event}.partial_image", body)


async def _completed(drawing: Drawing, result: Mapping[str, Any]) -> bytes:
    picture = result["images"][0]
    body = {
        **await _entry(drawing, result, picture),
        "created_at": _seconds(parts_of(drawing.request).clock.now()),
        **_shown(picture),
        "usage": usage_of(result),
    }
    return await asyncio.to_thread(_frame, f"{drawing.wish.event}.completed", body)


async def _entry(drawing: Drawing, result: Mapping[str, Any], picture: Mapping[str, Any]) -> dict[str, Any]:
    """Return one picture: its bytes or its address, what was made of its prompt, and its id and seed here."""
    entry: dict[str, Any] = {"id": picture["id"], "seed": picture["seed"]}
    revised = result.get("revised_prompt")
    if revised:
        entry["revised_prompt"] = revised
    if drawing.wish.as_url:
        return {"url": address_of(drawing.request, picture["id"]), **entry}
    return {"b64_json": await _coded(drawing.request, picture["sha256"]), **entry}


async def _coded(request: Request, digest: str) -> str:
    with await parts_of(request).blobs.open(digest) as file:
        return await asyncio.to_thread(lambda: base64.b64encode(file.read()).decode())


def _shown(picture: Mapping[str, Any]) -> dict[str, Any]:
    size = f"{picture['width']}x{picture['height']}"
    return {"size": size, **_UNTOLD, "output_format": picture["format"]}


def _frame(kind: str, body: Mapping[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + encode({"type": kind, **body}) + b"\n\n"


def _aside(wish: Wish) -> dict[str, str]:
    return {"X-Serai-Ignored": ", ".join(wish.left_aside)} if wish.left_aside else {}


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
