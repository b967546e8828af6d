"""uvicorn's HTTP protocol with the bounds it lacks: how long and how slow a head may be, how much is not body.

What cannot be read as HTTP gets the same error envelope as everything else.
"""

import asyncio
import json
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serai.errors import DeadlineExceeded, MalformedRequest, SeraiError, TooLarge

HEAD_TIMEOUT_S = 15.0
MAX_HEAD_BYTES = 128 * 1024
"""Before a head is parsed; the setting max_header_bytes is the finer bound after it."""
GONE = "serai.gone"
"""An extension of a request's scope with a future, of the same name, that is done when the connection is lost."""
MAX_FRAMING = 8
"""Bytes of chunk sizes, chunk extensions and trailers for one byte of body, beyond MAX_HEAD_BYTES."""


class _JoinedWrites:
    """A transport that sends the head of an answer with what follows it at once: a packet costs more than both.

    Where nothing follows in the same turn of the loop, the head goes alone. All else is the transport's.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""
        self._turn: asyncio.Handle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def write(self, data: bytes) -> None:
        if self._turn is None and data.startswith(b"HTTP/"):
            self._head, self._turn = data, self._loop.call_soon(self._send_head)
        elif self._turn is None:
            self._transport.write(data)
        else:
            self._turn.cancel()
            head, self._head, self._turn = self._head, b"", None
            self._transport.write(head + data)

    def close(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._send_head()
        self._transport.close()

    def _send_head(self) -> None:
        head, self._head, self._turn = self._head, b"", None
        if not self._transport.is_closing():
            self._transport.write(head)


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request is not body enough (431) or whose head takes too long (408)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", _JoinedWrites(transport, self.loop))
        self._gone = self.loop.create_future()
        self._framing_bytes = self._body_bytes = 0
        self._in_head = True
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        self._gone.set_result(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._framing_bytes += len(data)
        super().data_received(data)
        if self._framing_bytes > MAX_HEAD_BYTES + MAX_FRAMING * self._body_bytes and not self.transport.is_closing():
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._refuse(status, TooLarge("The request's head, or what surrounds its body, is too large."))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {GONE: {GONE: self._gone}}
        if not self._in_head:  # a further request on a kept connection
            self._in_head, self._framing_bytes, self._body_bytes = True, 1, 0  # at least the byte that began it
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_too_slow)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer is dropped: nobody reads it, and it would join the headers after their check
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= len(body)
        self._body_bytes += len(body)
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_timer.cancel()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, MalformedRequest("This is not an HTTP request that can be read."))

    def _head_too_slow(self) -> None:
        if not self.transport.is_closing():
            if self._framing_bytes:
                self._refuse(HTTPStatus.REQUEST_TIMEOUT, DeadlineExceeded("The request's head took too long."))
            else:
                self.transport.close()

    def _refuse(self, status: HTTPStatus, error: SeraiError) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.response_started and not (self._in_head and cycle.response_complete):
            self.transport.close()  # this request has its answer, or part of one, which another would garble
            return
        told: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
        body = json.dumps({"error": {**told, "request_id": None, "details": None}}).encode()
        again = "x-should-retry: false\r\n" if status is HTTPStatus.REQUEST_TIMEOUT else ""
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n{again}"
            f"content-length: {len(body)}\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
