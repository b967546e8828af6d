"""A model server that takes no time: it speaks OpenAI's chat API and answers with as many words as it is asked for.

    python benchmarks/gateway_upstream.py PORT      prints a line when it listens, serves until it is ended

`max_tokens` says how many words. The model `mock` sends a short answer in one piece, and a long one word by
word, each in a write of its own, as fast as it is taken; `mock-paced` sends a word every `PACE_S`, as a real
model does.
"""

import asyncio
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import httptools
import msgspec
import uvloop

LOOPBACK = "127.0.0.1"
PACE_S = 0.02
SHORT = 64
"""Up to so many words an answer is sent in one piece."""

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_END = b"0\r\n\r\n"
_encode = msgspec.json.encode


def _event(value: Any) -> bytes:
    data = b"data: " + (value if isinstance(value, bytes) else _encode(value)) + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def _chunk(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "mock",
        "choices": [choice],
    }


def _usage(words: int) -> dict[str, int]:
    return {"prompt_tokens": 8, "completion_tokens": words, "total_tokens": 8 + words}


_OPENING = _event(_chunk({"role": "assistant", "content": ""}))
_WORDS = tuple(_event(_chunk({"content": text})) for text in (" word", " text"))  # LiteLLM ends what repeats itself
_CLOSING = _event(_chunk({}, "length"))


def _last(words: int, *, usage: bool) -> bytes:
    told = _event({**_chunk({}), "choices": [], "usage": _usage(words)}) if usage else b""
    return _CLOSING + told + _event(b"[DONE]") + _END


@cache
def _whole(words: int) -> bytes:
    message = {"role": "assistant", "content": " word" * words}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "mock"}
    body = _encode({**head, "choices": [choice], "usage": _usage(words)})
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


@cache
def _short(words: int, *, usage: bool) -> bytes:
    return _HEAD + _OPENING + b"".join(_WORDS[n % 2] for n in range(words)) + _last(words, usage=usage)


def _long(words: int, *, usage: bool) -> Iterator[bytes]:
    yield _HEAD + _OPENING
    for number in range(words):
        yield _WORDS[number % 2]
    yield _last(words, usage=usage)


class Connection(asyncio.Protocol):
    """One client's connection; it has one call at a time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._pieces: Iterator[bytes] = iter(())
        self._pace_s = 0.0
        self._timer: asyncio.Handle | None = None
        self._is_paused = False

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        asked = msgspec.json.decode(self._body) if self._body else {}  # LiteLLM asks what models there are
        self._body = b""
        words = asked.get("max_tokens") or asked.get("max_completion_tokens") or 1
        if not asked.get("stream"):
            self._transport.write(_whole(words))
            return
        usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        self._pace_s = PACE_S if asked["model"] == "mock-paced" else 0.0
        if words <= SHORT and not self._pace_s:
            self._transport.write(_short(words, usage=usage))
            return
        self._pieces = _long(words, usage=usage)
        self._send()

    def _send(self) -> None:
        self._timer = None
        if self._is_paused:
            return
        piece = next(self._pieces, None)
        if piece is not None:
            self._transport.write(piece)
            later = self._loop.call_later
            self._timer = later(self._pace_s, self._send) if self._pace_s else self._loop.call_soon(self._send)

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._timer is None:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._pieces = iter(())


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Connection, LOOPBACK, port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
