"""The client of the gateway's benchmark: it costs little, so that what is measured is the server.

    python benchmarks/gateway_client.py     takes an `Order` per line on stdin, answers with an `Outcome` per line

Connections are kept; each has one call at a time. An answer is looked at no further than to its end; of a
stream the events are counted.
"""

import asyncio
import sys
import time
from collections.abc import Callable

import httptools
import msgspec
import uvloop

LOOPBACK = "127.0.0.1"
_PATIENCE_S = 300.0


class Order(msgspec.Struct, kw_only=True):
    """What is to be asked. `calls` are shared by `at_once` connections, after one of each that is not counted."""

    port: int
    key: str
    model: str
    calls: int
    at_once: int = 1
    words: int = 8
    stream: bool = False


class Outcome(msgspec.Struct, kw_only=True):
    """What came. `times_ms` has each counted call; `events` those of all streams."""

    times_ms: list[float]
    seconds: float
    events: int = 0
    failed: int = 0
    example: str = ""


class Connection(asyncio.Protocol):
    """Sends the same request again and again, as soon as the answer before is whole."""

    def __init__(self, request: bytes, share: Callable[[], bool]) -> None:
        self._request = request
        self._may_call = share
        self._parser = httptools.HttpResponseParser(self)
        self._began = 0.0
        self._is_warm = False
        self._newlines = 0
        self.times_ms: list[float] = []
        self.events = 0
        self.failed = 0
        self.example = b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_warm: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._ask()

    def go(self) -> None:
        """Begin with the calls that count."""
        self._is_warm = True
        self.events = 0
        self._ask_again()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._newlines += body.count(b"\n")
        if not self._is_warm:
            self.example += body[:400]

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() != 200:
            self.failed += 1
        self.events += self._newlines // 2
        self._newlines = 0
        self._parser = httptools.HttpResponseParser(self)
        if self._is_warm:
            self.times_ms.append((time.perf_counter() - self._began) * 1000)
            self._ask_again()
        else:
            self.is_warm.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        for waiting in (self.is_warm, self.over):
            if not waiting.done():
                waiting.set_exception(ConnectionError("the server closed a connection in the midst of a call"))

    def _ask_again(self) -> None:
        if self._may_call():
            self._ask()
        else:
            self.over.set_result(None)
            self._transport.close()

    def _ask(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._request)


async def carry_out(order: Order) -> Outcome:
    """Make the calls; return when the last is over."""
    left = order.calls

    def may_call() -> bool:
        nonlocal left
        left -= 1
        return left >= 0

    loop, request = asyncio.get_running_loop(), _request(order)
    made = [
        await loop.create_connection(lambda: Connection(request, may_call), LOOPBACK, order.port)
        for _ in range(order.at_once)
    ]
    connections = [connection for _, connection in made]
    async with asyncio.timeout(_PATIENCE_S):
        for connection in connections:
            await connection.is_warm
        began = time.perf_counter()
        for connection in connections:
            connection.go()
        await asyncio.gather(*(connection.over for connection in connections))
    return Outcome(
        times_ms=[each for connection in connections for each in connection.times_ms],
        seconds=time.perf_counter() - began,
        events=sum(connection.events for connection in connections),
        failed=sum(connection.failed for connection in connections),
        example=connections[0].example[:400].decode("utf-8", "replace"),
    )


def _request(order: Order) -> bytes:
    messages = [
        {"role": "system", "content": "You answer with words."},
        {"role": "user", "content": "Please say a few words, one after the other."},
    ]
    body = msgspec.json.encode(
        {"model": order.model, "messages": messages, "max_tokens": order.words, "stream": order.stream}
    )
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {LOOPBACK}:{order.port}\r\n"
        f"authorization: Bearer {order.key}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main() -> None:
    for line in sys.stdin.buffer:
        outcome = uvloop.run(carry_out(msgspec.json.decode(line, type=Order)))
        sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
