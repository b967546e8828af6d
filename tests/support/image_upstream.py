"""A stand-in for servers that make pictures, on loopback: OpenAI's images API and fal.ai's queue.

Left alone it makes real PNGs, of one colour each, and answers properly. `next_time` and `always` put something
else in place of a kind of request: an answer byte for byte, or a coroutine that writes what it likes.

    generations, edits                      OpenAI's
    submit, status, result, cancel          fal.ai's
    file                                    pictures by their address
"""

import asyncio
import base64
import io
import re
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from email import policy
from email.parser import BytesParser
from typing import Any, Literal

from PIL import Image

from support.upstream import END, STREAM_HEAD, Asked, Behaviour, Upstream, event, framed, reply

Kind = Literal["generations", "edits", "submit", "status", "result", "cancel", "file"]

_REQUEST = re.compile(r"/v1/.+/requests/(?P<id>r\d+)(?P<what>/status|/cancel)?")


def png(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (8, 8)) -> bytes:
    """Return a picture of one colour."""
    return _saved(Image.new("RGB", size, colour), "PNG")


def jpeg() -> bytes:
    """Return a small JPEG."""
    return _saved(Image.new("RGB", (8, 8), (3, 200, 3)), "JPEG")


def webp() -> bytes:
    """Return a small WebP."""
    return _saved(Image.new("RGB", (8, 8), (3, 3, 200)), "WEBP")


def image_event(kind: str, data: bytes, **more: Any) -> dict[str, Any]:
    """Return an event of a stream of pictures."""
    return {"type": kind, "b64_json": base64.b64encode(data).decode(), "created_at": 1, **more}


async def silence(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.Event().wait()


def cut(whole: bytes) -> Behaviour:
    """Return a behaviour that sends the half of an answer and closes the connection."""

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(whole[: -len(whole) // 2])
        await writer.drain()
        writer.transport.abort()

    return behave


@dataclass
class ImageUpstream(Upstream):
    """The server. For fal.ai's API its endpoint is the queue's root, for OpenAI's the API's."""

    gives_urls: bool = False
    """Whether OpenAI's API answers with addresses."""
    files_at: str = ""
    """Where the pictures' addresses lead; empty: to this server."""
    looks: tuple[dict[str, Any], ...] = ({"status": "IN_QUEUE", "queue_position": 1}, {"status": "IN_PROGRESS"})
    """What the first looks at a request in the queue are told; then it is completed."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What the queue's results hold besides."""
    forms: list[dict[str, bytes]] = field(default_factory=list)
    """The forms of edits, file or text by name."""
    submitted: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    was_cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    _next: dict[str, deque[Behaviour | bytes]] = field(default_factory=lambda: defaultdict(deque))
    _always: dict[str, Behaviour | bytes] = field(default_factory=dict)
    _told: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def next_time(self, kind: Kind, *behaviours: Behaviour | bytes) -> None:
        """Answer the next requests of a kind so, one by one, and those after them properly again."""
        self._next[kind].extend(behaviours)

    def always(self, kind: Kind, behaviour: Behaviour | bytes) -> None:
        """Answer every request of a kind so."""
        self._always[kind] = behaviour

    def asked(self, text: str) -> list[Asked]:
        """Return the requests whose path holds a text."""
        return [one for one in self.requests if text in one.path]

    async def _answer(self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = asked.path.partition("?")[0]
        self._behaviours[path] = self._play
        await super()._answer(asked, reader, writer)

    async def _play(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        kind, proper = self._kind(asked.path.partition("?")[0])
        waiting = self._next[kind]
        behaviour = waiting.popleft() if waiting else self._always.get(kind, proper)
        if isinstance(behaviour, bytes):
            writer.write(behaviour)
        else:
            await behaviour(asked, writer)

    def _kind(self, path: str) -> tuple[str, Behaviour]:
        if path.endswith("/images/generations"):
            return "generations", self._generate
        if path.endswith("/images/edits"):
            return "edits", self._edit
        if "/files/" in path:
            return "file", self._file
        found = _REQUEST.fullmatch(path)
        if found is None:
            return "submit", self._submit
        whats: dict[str | None, tuple[str, Behaviour]] = {
            None: ("result", self._result),
            "/status": ("status", self._status),
            "/cancel": ("cancel", self._cancel),
        }
        return whats[found["what"]]

    # OpenAI's

    async def _generate(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        body = asked.body
        await self._images(body, "image_generation", writer)

    async def _edit(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        head = f"content-type: {asked.headers['content-type']}\r\n\r\n".encode()
        form = BytesParser(policy=policy.HTTP).parsebytes(head + asked.content)
        parts: dict[str, bytes] = {}
        for part in form.iter_parts():
            name, content = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
            assert isinstance(name, str)
            assert isinstance(content, bytes)
            parts[name] = content
        self.forms.append(parts)
        texts = {name: parts[name].decode() for name in ("n", "size", "partial_images") if name in parts}
        await self._images(texts | {"stream": parts.get("stream") == b"true"}, "image_edit", writer)

    async def _images(self, body: Mapping[str, Any], name: str, writer: asyncio.StreamWriter) -> None:
        width, _, height = str(body["size"]).partition("x")
        pictures = [png((at, 100, 200), (int(width), int(height))) for at in range(int(body["n"]))]
        usage = {"input_tokens": 7, "output_tokens": 100, "total_tokens": 107}
        if body.get("stream"):
            writer.write(STREAM_HEAD)
            for at in range(int(body["partial_images"])):
                partial = image_event(f"{name}.partial_image", png((9, 9, 9)), partial_image_index=at)
                writer.write(framed(event(partial)))
                await writer.drain()
            writer.write(framed(event(image_event(f"{name}.completed", pictures[0], usage=usage))) + END)
            return
        if self.gives_urls:
            data = [{"url": f"{self._files}/{at}.png", "revised_prompt": "more"} for at in range(len(pictures))]
        else:
            data = [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures]
        writer.write(reply(200, {"created": 1, "data": data, "usage": usage}))

    # fal.ai's

    async def _submit(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        self.submitted.append(asked.body)
        app = "/".join(asked.path.split("/")[2:4])  # without the path below the app
        id_ = f"r{len(self.submitted)}"
        root = f"{self.endpoint}/{app}/requests/{id_}"
        urls = {"response_url": root, "status_url": f"{root}/status", "cancel_url": f"{root}/cancel"}
        writer.write(reply(200, {"request_id": id_, "queue_position": 0, "status": "IN_QUEUE", **urls}))

    async def _status(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        id_ = _id(asked)
        told = self._told[id_]
        self._told[id_] += 1
        if told < len(self.looks):
            writer.write(reply(202, {"request_id": id_, **self.looks[told]}))
        else:
            writer.write(reply(200, {"request_id": id_, "status": "COMPLETED", "metrics": {"inference_time": 1.0}}))

    async def _result(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        id_ = _id(asked)
        sent = self.submitted[int(id_[1:]) - 1]
        picture = {"url": f"{self._files}/{id_}.png", "width": 8, "height": 8, "content_type": "image/png"}
        result = {"images": [picture], "seed": sent["seed"], "has_nsfw_concepts": [False], "prompt": sent["prompt"]}
        writer.write(reply(200, result | dict(self.more)))

    async def _cancel(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        self.cancelled.append(_id(asked))
        self.was_cancelled.set()
        writer.write(reply(202, {"status": "CANCELLATION_REQUESTED"}))

    async def _file(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(200, png(), content_type="application/octet-stream"))

    @property
    def _files(self) -> str:
        return f"{self.files_at or self.endpoint}/files"


def _id(asked: Asked) -> str:
    found = _REQUEST.fullmatch(asked.path.partition("?")[0])
    assert found is not None
    return found["id"]


def _saved(image: Image.Image, kind: str) -> bytes:
    with io.BytesIO() as file:
        image.save(file, kind)
        return file.getvalue()
