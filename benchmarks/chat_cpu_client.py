"""The client of the chat benchmark: streams from any server of OpenAI's API, and costs next to nothing meanwhile.

What comes is only kept with its time; it is read when the last answer is over.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httptools
import msgspec

LOOPBACK = "127.0.0.1"
NEW_TOKENS = 32
_PATIENCE_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Burst:
    """What came of requests that were sent at once: `first_s` has the time to the first text of each."""

    requests: int
    seconds: float
    first_s: list[float]

    @property
    def tokens_per_s(self) -> float:
        return self.requests * NEW_TOKENS / self.seconds


@dataclass(frozen=True)
class Address:
    """Where a server is, and what it calls the model."""

    port: int
    model: str
    key: str = "none"

    def request(self, prompt: str, *, stream: bool) -> bytes:
        """Return the bytes of a request for exactly `NEW_TOKENS` tokens, the likeliest ones."""
        body = msgspec.json.encode(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": NEW_TOKENS,
                "temperature": 0,
                "stream": stream,
            }
        )
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {LOOPBACK}:{self.port}\r\n"
            f"authorization: Bearer {self.key}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class Call(asyncio.Protocol):
    """One answer on a connection of its own."""

    def __init__(self) -> None:
        self.pieces: list[tuple[float, bytes]] = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._began = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def ask(self, request: bytes) -> None:
        self._began = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.pieces.append((time.perf_counter() - self._began, body))

    def on_message_complete(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(ConnectionError("the server closed a connection in the midst of an answer"))

    def close(self) -> None:
        self._transport.close()

    @property
    def body(self) -> bytes:
        """Return the whole answer. Raises RuntimeError for one that is an error."""
        body = b"".join(piece for _, piece in self.pieces)
        if self._parser.get_status_code() != 200:
            raise RuntimeError(f"{self._parser.get_status_code()} {body[:2000].decode('utf-8', 'replace')}")
        return body

    def first_text_s(self) -> float:
        """Return when the first text was here. Raises RuntimeError unless the answer has its full length."""
        frames = [frame[6:] for frame in self.body.replace(b"\r\n", b"\n").split(b"\n\n") if frame[:6] == b"data: "]
        told = [msgspec.json.decode(frame) for frame in frames if frame != b"[DONE]"]
        reasons = [choice.get("finish_reason") for frame in told for choice in frame.get("choices", ())]
        if "length" not in reasons:
            raise RuntimeError(f"an answer ended for {reasons}: {self.body[-500:].decode('utf-8', 'replace')}")
        so_far = b""
        for at, piece in self.pieces:
            so_far += piece
            if any(_has_text(frame) for frame in so_far.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]):
                return at
        raise RuntimeError("an answer has no text")


def _has_text(frame: bytes) -> bool:
    if not frame.startswith(b"data: {"):
        return False
    choices = msgspec.json.decode(frame[6:]).get("choices") or [{}]
    return bool(choices[0].get("delta", {}).get("content"))


async def stream(address: Address, prompts: Sequence[str]) -> Burst:
    """Send all prompts at once and read the answers to their ends."""
    calls = [await _connected(address) for _ in prompts]
    requests = [address.request(prompt, stream=True) for prompt in prompts]
    began = time.perf_counter()
    for call, request in zip(calls, requests, strict=True):
        call.ask(request)
    async with asyncio.timeout(_PATIENCE_S):
        await asyncio.gather(*(call.over for call in calls))
    seconds = time.perf_counter() - began
    for call in calls:
        call.close()
    return Burst(requests=len(prompts), seconds=seconds, first_s=[call.first_text_s() for call in calls])


async def usage(address: Address, prompt: str) -> tuple[dict[str, Any], str]:
    """Return the usage that the server tells for an answer that is not streamed, and its text."""
    call = await _connected(address)
    call.ask(address.request(prompt, stream=False))
    async with asyncio.timeout(_PATIENCE_S):
        await call.over
    call.close()
    told = msgspec.json.decode(call.body)
    return told["usage"], told["choices"][0]["message"]["content"]


async def _connected(address: Address) -> Call:
    _, call = await asyncio.get_running_loop().create_connection(Call, LOOPBACK, address.port)
    return call
