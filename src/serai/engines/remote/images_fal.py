"""Pictures by fal.ai's queue: a request is handed in, looked after until it is completed, and its result fetched.

Each picture is a request of its own, because the queue takes one seed per request: so picture number i is
drawn from `seed + i`, and all of them are worked on at once.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
import msgspec

from serai.engines.errors import RemoteFailed
from serai.engines.options import RemoteOptions
from serai.engines.remote.call import RemoteCall, whole
from serai.engines.remote.images_pixels import MAX_REPLY_BYTES, data_uri, fetched, mask_png_of, png_of
from serai.engines.remote.images_result import done_of, media_of
from serai.engines.remote.requests import url_below
from serai.engines.tasks import GenerateImage
from serai.errors import InvalidInput, RateLimited, SeraiError, UpstreamFailed
from serai.events import Event, Progress
from serai.outbound import UpstreamTooLarge
from serai.registry.source import RemoteSource

Answered = TypeVar("Answered")

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0
"""Between two looks at a request."""
SECOND_LOOKS_S: Final = (0.2, 1.0)
"""Pauses before a look that failed is repeated: the work behind it goes on, and is paid for."""
MAX_PATIENCE_S: Final = 10.0
"""A server that asks for a longer pause is given up."""
CANCEL_S: Final = 2.0
"""How long a request is tried to be cancelled."""
MAX_SEED: Final = 2**63 - 1
MAX_AHEAD: Final = 10**9
"""Places of a queue that are believed."""
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Submission(msgspec.Struct, frozen=True):
    """A request in the queue."""

    status_url: str
    response_url: str
    cancel_url: str


class _Status(msgspec.Struct):
    status: str
    queue_position: int | None = None


class _Picture(msgspec.Struct):
    url: str


class _Result(msgspec.Struct):
    images: list[_Picture] | None = None
    image: _Picture | None = None
    seed: Any = None
    has_nsfw_concepts: Any = None


async def fal_events(
    task: GenerateImage, source: RemoteSource, options: RemoteOptions, call: RemoteCall
) -> AsyncGenerator[Event]:
    """Yield the events of a task, each picture as soon as it and those before it are ready.

    Whatever ends the iterator early cancels the requests that are not completed.
    """
    if call.secret is not None:
        call = replace(call, secret=replace(call.secret, prefix="Key "))
    body = await anyio.to_thread.run_sync(partial(body_for, task, options))
    submissions: list[_Submission] = []
    seeds: list[int] = []
    fetching_s = 0.0
    try:
        for number in range(task.images):
            submission = await _handed_in(call, source, body | {"seed": task.seed + number})
            submissions.append(submission)  # one by one: where a later one fails, these are to be cancelled
        for number, submission in enumerate(submissions):
            async with aclosing(_awaited(call, submission, {"image": number, "images": task.images})) as steps:
                async for step in steps:
                    yield step
            completed = call.clock.monotonic()
            seed, data = await _picture(call, source.endpoint, submission)
            fetching_s += call.clock.monotonic() - completed
            seeds.append(task.seed + number if seed is None else seed)
            yield media_of("picture", data, index=number)
    finally:
        await _cancel(call, submissions[len(seeds) :])
    spent_s = call.clock.monotonic() - call.began
    yield done_of(task, seeds=seeds, spent_s=spent_s, fetching_s=fetching_s)


def body_for(task: GenerateImage, options: RemoteOptions) -> dict[str, Any]:
    """Return what is sent for one picture, but for its seed. Takes as long as encoding pictures."""
    body: dict[str, Any] = {
        "prompt": task.prompt,
        "image_size": {"width": task.width, "height": task.height},
        "num_inference_steps": task.steps,
        "guidance_scale": task.guidance_scale,
        "num_images": 1,
    }
    if task.negative_prompt:
        body["negative_prompt"] = task.negative_prompt
    if task.source is not None:
        picture = data_uri(png_of(task.source))
        body[options.image_member] = picture if options.image_member == "image_url" else [picture]
        body["strength"] = task.strength
    if task.mask is not None:
        body["mask_url"] = data_uri(mask_png_of(task.mask))
    return body


async def _handed_in(call: RemoteCall, source: RemoteSource, body: dict[str, Any]) -> _Submission:
    url = url_below(source.endpoint, f"/{source.model.strip('/')}")
    content = await anyio.to_thread.run_sync(msgspec.json.encode, body)
    async with call.asked("POST", url, content=content, accepted=(200, 201, 202)) as reply:
        submission = _read(await whole(reply), _Submission)
    origin = call.outbound.check_url(source.endpoint).origin
    for address in (submission.status_url, submission.response_url, submission.cancel_url):
        if not address.startswith(f"{origin}/"):
            raise _nonsense()
    return submission


async def _awaited(call: RemoteCall, submission: _Submission, detail: dict[str, Any]) -> AsyncGenerator[Progress]:
    """Look at a request until it is completed; yield what is new of its way there."""
    pause_s, told = FIRST_PAUSE_S, None
    while True:
        status = _read(await _second_looks(call, partial(_body, call, submission.status_url)), _Status)
        if status.status == "COMPLETED":
            return
        if status.status not in ("IN_QUEUE", "IN_PROGRESS"):
            raise RemoteFailed("The server behind this model gave its answer up.")
        ahead = -1 if status.queue_position is None or status.status != "IN_QUEUE" else status.queue_position
        news = detail | {"queue_position": ahead + 1} if 0 <= ahead <= MAX_AHEAD else detail
        if news != told:
            told = news
            yield Progress(stage="generating", detail=news)
        await anyio.sleep(min(pause_s, call.remaining_s))
        pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)


async def _picture(call: RemoteCall, endpoint: str, submission: _Submission) -> tuple[int | None, bytes]:
    """Return the seed, where the server tells it, and the picture of a completed request."""
    result = _read(await _second_looks(call, partial(_body, call, submission.response_url)), _Result)
    if isinstance(result.has_nsfw_concepts, list) and True in result.has_nsfw_concepts:
        # What is sent in its place is black.
        raise InvalidInput.at("prompt", "led to a picture that the server behind this model holds back")
    picture = result.images[0] if result.images else result.image
    if picture is None:
        raise RemoteFailed("The server behind this model made fewer pictures than it was asked for.")
    is_seed = type(result.seed) is int and 0 <= result.seed <= MAX_SEED
    data = await _second_looks(call, partial(fetched, call, endpoint, picture.url))
    return result.seed if is_seed else None, data


async def _body(call: RemoteCall, url: str) -> bytes:
    async with call.asked("GET", url, accepted=(200, 202), max_bytes=MAX_REPLY_BYTES) as reply:
        return await whole(reply)


async def _second_looks(call: RemoteCall, look: Callable[[], Awaitable[Answered]]) -> Answered:
    """Look, and again where that failed in passing."""
    for least_s in SECOND_LOOKS_S:
        try:
            return await look()
        except UpstreamTooLarge:
            raise
        except (RateLimited, UpstreamFailed) as error:
            pause_s = max(least_s, error.retry_after or 0.0)
            if pause_s > MAX_PATIENCE_S:
                raise
            await anyio.sleep(min(pause_s, call.remaining_s))
    return await look()


async def _cancel(call: RemoteCall, submissions: Sequence[_Submission]) -> None:
    """Ask for requests to be cancelled; that this may fail makes no difference to anybody here."""
    with anyio.move_on_after(CANCEL_S, shield=True):
        for submission in submissions:
            with suppress(SeraiError):
                await call.outbound.request(
                    "PUT", submission.cancel_url, secret=call.secret, timeout_s=CANCEL_S, follow_redirects=False
                )


def _read(body: bytes, kind: type[Answered]) -> Answered:
    try:
        return msgspec.json.decode(body, type=kind)
    except _UNREADABLE:
        raise _nonsense() from None


def _nonsense() -> RemoteFailed:
    return RemoteFailed("The server behind this model answered something that it should not.")
