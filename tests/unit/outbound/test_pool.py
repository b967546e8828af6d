"""Kept connections: used again by the same origin, bounded in number, never one that the other side has closed."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpcore
import pytest

from serai.outbound.hops import Hop
from serai.outbound.pinning import PinnedBackend, resolve_host
from serai.outbound.pool import ConnectionPool, Exchange
from serai.outbound.targets import AddressPolicy, parse_target

pytestmark = pytest.mark.anyio

LOOPBACK = "127.0.0.1"
SECONDS = 60
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@dataclass
class Server:
    """Answers every request with 'ok' and counts its connections; `last` is the newest."""

    port: int = 0
    opened: int = 0
    closed: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.writers.append(writer)
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.release()
        finally:
            writer.close()


@asynccontextmanager
async def running() -> AsyncIterator[Server]:
    server = Server()
    listener = await asyncio.start_server(server.serve, LOOPBACK, 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for writer in server.writers:
            writer.close()


@asynccontextmanager
async def pool(max_idle: int = 10, keepalive_expiry: float = 600) -> AsyncIterator[ConnectionPool]:
    opened = ConnectionPool(
        ssl_context=ssl.create_default_context(),
        backend=PinnedBackend(AddressPolicy.allowing([LOOPBACK]), resolve_host),
        keepalive_expiry=keepalive_expiry,
        max_idle=max_idle,
    )
    try:
        yield opened
    finally:
        await opened.aclose()


async def begin(connections: ConnectionPool, server: Server) -> Exchange:
    target = parse_target(f"http://{LOOPBACK}:{server.port}/")
    hop = Hop.first("GET", target, defaults={}, headers=None, content=None, json=None, secret=None)
    async with asyncio.timeout(SECONDS):
        return await connections.ask(hop, SECONDS)


async def body_of(exchange: Exchange) -> bytes:
    body = b""
    while piece := await exchange.next_piece():
        body += piece
    return body


async def call(connections: ConnectionPool, server: Server) -> None:
    exchange = await begin(connections, server)
    assert await body_of(exchange) == b"ok"
    exchange.close()


async def test_calls_in_turn_share_a_connection() -> None:
    """Each origin has its own."""
    async with running() as one, running() as two, pool() as connections:
        for _ in range(5):
            await call(connections, one)
            await call(connections, two)
        assert (one.opened, two.opened) == (1, 1)


async def test_calls_at_once_have_a_connection_each() -> None:
    """And later calls use those again, the newest first."""
    async with running() as server, pool() as connections:
        for _ in range(3):
            exchanges = [await begin(connections, server) for _ in range(4)]
            for exchange in exchanges:
                await body_of(exchange)
                exchange.close()
                exchange.close()
        assert server.opened == 4


async def test_idle_connections_are_bounded() -> None:
    """Of all origins together, the longest unused is closed."""
    async with running() as one, running() as two, pool(max_idle=2) as connections, asyncio.timeout(SECONDS):
        await call(connections, one)
        exchanges = [await begin(connections, two) for _ in range(3)]
        for exchange in exchanges:
            await body_of(exchange)
            exchange.close()
        await one.closed.acquire()
        await two.closed.acquire()
        await call(connections, two)
        assert (one.opened, two.opened) == (1, 3)


async def test_a_connection_that_the_server_closed_is_not_used() -> None:
    """The call opens another one."""
    async with running() as server, pool() as connections:
        for count in range(1, 4):
            await call(connections, server)
            assert server.opened == count
            server.writers[-1].close()
            await server.writers[-1].wait_closed()


async def test_what_was_idle_too_long_is_closed() -> None:
    """By the next call that ends, whichever origin it is of."""
    async with running() as one, running() as two, pool(keepalive_expiry=-1) as connections, asyncio.timeout(SECONDS):
        await call(connections, one)
        await one.closed.acquire()
        await call(connections, two)
        await call(connections, two)
        assert two.opened == 2


async def test_a_body_that_was_not_read_costs_the_connection() -> None:
    """What is left on the wire must not become the next answer."""
    async with running() as server, pool() as connections, asyncio.timeout(SECONDS):
        exchange = await begin(connections, server)
        exchange.close()
        await server.closed.acquire()
        await call(connections, server)
        assert server.opened == 2


async def test_closing_spares_calls_that_go_on() -> None:
    """Idle connections are closed at once, one in use when its call is over."""
    async with running() as server, pool() as connections, asyncio.timeout(SECONDS):
        first, second = await begin(connections, server), await begin(connections, server)
        await body_of(first)
        first.close()
        await connections.aclose()
        await server.closed.acquire()
        assert await body_of(second) == b"ok"
        second.close()
        await server.closed.acquire()


@pytest.mark.parametrize("broken", [b"junk\r\n\r\n", b""])
async def test_a_failed_call_keeps_nothing(broken: bytes) -> None:
    """A connection on which something else than an answer came is closed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(broken)
        writer.write_eof()
        if not await reader.read(1):
            left.set()
        writer.close()

    left = asyncio.Event()
    listener = await asyncio.start_server(serve, LOOPBACK, 0)
    async with listener, pool() as connections, asyncio.timeout(SECONDS):
        with pytest.raises(httpcore.RemoteProtocolError):
            await begin(connections, Server(port=listener.sockets[0].getsockname()[1]))
        await left.wait()


async def test_a_cancelled_call_closes_its_connection() -> None:
    """While it waits for the answer: the server sees it go."""
    arrived, left = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        if not await reader.read(1):
            left.set()
        writer.close()

    listener = await asyncio.start_server(serve, LOOPBACK, 0)
    async with listener, pool() as connections, asyncio.timeout(SECONDS):
        waiting = asyncio.create_task(begin(connections, Server(port=listener.sockets[0].getsockname()[1])))
        await arrived.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await left.wait()


async def test_a_pool_whose_closing_is_cancelled_closes_every_connection() -> None:
    """Those too that it had not come to."""
    for turns in range(1, 5):
        async with running() as server, pool() as connections, asyncio.timeout(SECONDS):
            exchanges = [await begin(connections, server) for _ in range(3)]
            for exchange in exchanges:
                await body_of(exchange)
                exchange.close()
            await cancelled_after(turns, asyncio.create_task(connections.aclose()))
            for _ in range(server.opened):
                await server.closed.acquire()


async def cancelled_after(turns: int, task: asyncio.Task[None]) -> None:
    """Let the loop turn so many times, cancel the task, and wait for its end."""
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
