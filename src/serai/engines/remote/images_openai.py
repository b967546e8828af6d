"""Pictures by OpenAI's images API: generations, edits, and their streams with partial pictures."""

import hashlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import anyio.to_thread
import msgspec

from serai.engines.errors import RemoteFailed
from serai.engines.options import RemoteOptions
from serai.engines.remote.call import JSON, LARGE, RemoteCall, is_event_stream, whole
from serai.engines.remote.failures import failure_in_band
from serai.engines.remote.images_pixels import (
    MAX_PICTURE_BYTES,
    MAX_REPLY_BYTES,
    fetched,
    png_of,
    transparency_png_of,
)
from serai.engines.remote.images_result import done_of, media_of, preview_of
from serai.engines.remote.requests import url_below
from serai.engines.remote.sse import EventParser
from serai.engines.tasks import GenerateImage
from serai.errors import InvalidInput
from serai.events import Event, Media, Progress
from serai.outbound import StreamedReply
from serai.registry.source import RemoteSource

MAX_EVENT_BYTES: Final = MAX_PICTURE_BYTES * 4 // 3 + 64 * 1024
MAX_REVISED_CHARS: Final = 32_000
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_UNKNOWN = ("seed", "num_inference_steps", "guidance_scale")
"""Settings of which this API has no equivalent."""


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0


class _Image(msgspec.Struct):
    b64_json: bytes | None = None
    url: str | None = None
    revised_prompt: str | None = None


class _Images(msgspec.Struct):
    data: list[_Image] | None = None
    usage: _Usage | None = None
    error: Any = None


class _Event(msgspec.Struct):
    type: str = ""
    b64_json: bytes | None = None
    usage: _Usage | None = None
    error: Any = None


_images = msgspec.json.Decoder(_Images)
_events = msgspec.json.Decoder(_Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A POST to `path` below the endpoint."""

    path: str
    headers: Mapping[str, str]
    content: bytes = field(repr=False)


@dataclass(slots=True, kw_only=True)
class _Answer:
    """What came of one request."""

    pictures: list[bytes] = field(default_factory=list)
    usage: _Usage | None = None
    revised_prompt: str | None = None


async def openai_events(
    task: GenerateImage, source: RemoteSource, options: RemoteOptions, call: RemoteCall
) -> AsyncGenerator[Event]:
    """Yield the events of a task. All pictures are here before the first is told."""
    request = await anyio.to_thread.run_sync(partial(request_for, task, source.model, options))
    yield Progress(stage="generating", detail={"image": 0, "images": task.images})
    answer, body = _Answer(), None
    async with call.asked(
        "POST",
        url_below(source.endpoint, request.path),
        headers=request.headers,
        content=request.content,
        max_bytes=MAX_REPLY_BYTES,
    ) as reply:
        if is_event_stream(reply):
            async with aclosing(_streamed(reply, call, answer)) as previews:
                async for preview in previews:
                    yield preview
        else:
            body = await whole(reply)
    answered = call.clock.monotonic()
    if body is not None:
        await _take(answer, body, call, source.endpoint, task.images)
    if len(answer.pictures) < task.images:
        raise RemoteFailed("The server behind this model made fewer pictures than it was asked for.")
    ended = call.clock.monotonic()
    pictures = [media_of("picture", data, index=at) for at, data in enumerate(answer.pictures)]
    for picture in pictures:
        yield picture
    yield done_of(
        task,
        seeds=[task.seed + at for at in range(task.images)],
        spent_s=ended - call.began,
        fetching_s=ended - answered,
        unused=[*_unused(task)],
        usage=None if answer.usage is None else msgspec.to_builtins(answer.usage),
        revised_prompt=answer.revised_prompt,
    )


def request_for(task: GenerateImage, model: str, options: RemoteOptions) -> Request:
    """Return what to send. Takes as long as encoding pictures. Raises InvalidInput for what cannot be asked."""
    if task.negative_prompt:
        raise InvalidInput.at("negative_prompt", "is not known to the server behind this model")
    fields: dict[str, Any] = {
        "model": model,
        "prompt": task.prompt,
        "n": task.images,
        "size": f"{task.width}x{task.height}",
    }
    if options.partial_images and task.preview_steps and task.images == 1:
        # The events of a stream do not say which of several pictures they belong to.
        fields |= {"stream": True, "partial_images": options.partial_images}
    if task.source is None:
        return Request(path="/images/generations", headers=JSON, content=msgspec.json.encode(fields))
    files = [("image", png_of(task.source))]
    if task.mask is not None:
        files.append(("mask", transparency_png_of(task.mask)))
    boundary, content = form_of(fields, files)
    headers = {**JSON, "content-type": f"multipart/form-data; boundary={boundary}"}
    return Request(path="/images/edits", headers=headers, content=content)


def form_of(fields: Mapping[str, Any], files: Sequence[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Return the boundary and the body of a form (RFC 7578) with PNG files; `fields` in JSON's notation, texts plain.

    The boundary is a digest of all that it separates, so that nothing in there can hold it.
    """
    parts = []
    for name, value in fields.items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        parts.append(f'content-disposition: form-data; name="{name}"\r\n\r\n{text}'.encode())
    for name, data in files:
        head = (
            f'content-disposition: form-data; name="{name}"; filename="{name}.png"\r\ncontent-type: image/png\r\n\r\n'
        )
        parts.append(head.encode() + data)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    boundary = digest.hexdigest()
    mark = f"--{boundary}".encode()
    return boundary, b"".join(mark + b"\r\n" + part + b"\r\n" for part in parts) + mark + b"--\r\n"


async def _streamed(reply: StreamedReply, call: RemoteCall, answer: _Answer) -> AsyncGenerator[Media]:
    """Yield the previews of a stream, and put its picture into `answer`."""
    parser = EventParser(MAX_EVENT_BYTES)
    async with aclosing(reply.aiter_bytes()) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            for data in parser.feed(piece):
                if data == b"[DONE]":
                    return
                event: _Event = await _read(_events, data)
                if event.error is not None:
                    raise failure_in_band(event.error, secret=call.secret_value)
                if event.b64_json is None:
                    continue
                if event.type.endswith(".partial_image"):
                    preview = preview_of(event.b64_json)
                    if preview is not None:
                        yield preview
                elif event.type.endswith(".completed"):
                    answer.pictures.append(event.b64_json)
                    answer.usage = event.usage
                    return


async def _take(answer: _Answer, body: bytes, call: RemoteCall, endpoint: str, count: int) -> None:
    """Put the pictures of an answer that is no stream into `answer`, at most so many."""
    images: _Images = await _read(_images, body)
    if images.error is not None:
        raise failure_in_band(images.error, secret=call.secret_value)
    answer.usage = images.usage
    for image in (images.data or ())[:count]:
        answer.revised_prompt = answer.revised_prompt or (image.revised_prompt or "")[:MAX_REVISED_CHARS] or None
        if image.b64_json is not None:
            answer.pictures.append(image.b64_json)
        elif image.url:
            answer.pictures.append(await fetched(call, endpoint, image.url))


async def _read(decoder: "msgspec.json.Decoder[Any]", data: bytes) -> Any:
    try:
        return decoder.decode(data) if len(data) < LARGE else await anyio.to_thread.run_sync(decoder.decode, data)
    except _UNREADABLE:
        raise RemoteFailed("The server behind this model answered something that it should not.") from None


def _unused(task: GenerateImage) -> Iterator[str]:
    yield from _UNKNOWN
    if task.source is not None:
        yield "strength"
