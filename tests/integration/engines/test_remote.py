"""Models behind other servers, over real connections of loopback: streams, failures, cancellation, secrets."""

import asyncio
from array import array
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from serai.clock import SystemClock
from serai.engines.errors import RemoteFailed
from serai.engines.options import HttpOptions, RemoteOptions
from serai.engines.remote.engine import RemoteEngine, RemoteTask
from serai.engines.tasks import Array, Chat, Embed, Fetch, Generate, Sampling
from serai.errors import DeadlineExceeded, InvalidInput, RateLimited, SeraiError
from serai.events import Done, Event, Text
from serai.outbound import Outbound, OutboundSecret
from serai.registry.source import RemoteSource
from support.upstream import END, LOOPBACK, STREAM_HEAD, Asked, Upstream, chunk, event, framed, reply, streams

pytestmark = pytest.mark.anyio

SECONDS = 60
CHAT = "/chat/completions"


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as server:
        yield server


@pytest.fixture
async def engine() -> AsyncIterator[RemoteEngine]:
    clock = SystemClock()
    async with Outbound(clock=clock, allow=[LOOPBACK]) as outbound:
        yield RemoteEngine(outbound, clock=clock)


def chat(text: str = "salām bar to", **sampling: Any) -> Chat:
    return Chat(messages=({"role": "user", "content": text},), sampling=Sampling(**sampling))


def events_of(
    engine: RemoteEngine,
    upstream: Upstream,
    task: RemoteTask,
    *,
    secret: OutboundSecret | None = None,
    timeout_s: float = SECONDS,
    path: str = "",
    **options: Any,
) -> aclosing[Any]:
    source = RemoteSource(endpoint=upstream.endpoint + path, model="m-1")
    typed = HttpOptions(**options) if isinstance(task, Fetch) else RemoteOptions(**options)
    return aclosing(engine.run(task, source, options=typed, secret=secret, timeout_s=timeout_s))


async def collect(engine: RemoteEngine, upstream: Upstream, task: RemoteTask, **more: Any) -> list[Event]:
    async with events_of(engine, upstream, task, **more) as events:
        return [one async for one in events]


def text_of(events: list[Event]) -> str:
    return "".join(one.delta for one in events if isinstance(one, Text))


def result(events: list[Event]) -> dict[str, Any]:
    assert isinstance(events[-1], Done)
    return events[-1].result


async def test_a_chat_streams(engine: RemoteEngine, upstream: Upstream) -> None:
    """Words come as events, the end with reason, usage and timings; the server saw model and messages."""
    events = await collect(engine, upstream, chat())
    assert text_of(events) == "salām bar to"
    assert len(events) == 4
    assert result(events)["finish_reasons"] == ["stop"]
    assert result(events)["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "cached_tokens": 0}
    assert set(result(events)["timings"]) == {"prompt_s", "generation_s"}
    assert (upstream.requests[0].path, upstream.requests[0].body["model"]) == ("/v1/chat/completions", "m-1")
    assert upstream.requests[0].headers["accept-encoding"] == "identity"


async def test_texts_and_vectors(engine: RemoteEngine, upstream: Upstream) -> None:
    """Completions and embeddings of the same server."""
    events = await collect(engine, upstream, Generate(prompt="a b c", sampling=Sampling(max_tokens=2)))
    assert (text_of(events), result(events)["finish_reasons"]) == ("a b", ["length"])
    told = Array.of(result(await collect(engine, upstream, Embed(texts=("ab", "abc"))))["embeddings"])
    assert (told.shape, list(array("f", told.data))) == ((2, 3), [2, 1, 0.5, 3, 1, 0.5])


async def test_any_api_is_fetched(engine: RemoteEngine, upstream: Upstream) -> None:
    """`http` sends a body to the endpoint itself and gives back what came."""
    upstream.behave("/odd", reply(200, {"picture": "cut"}))
    assert result(await collect(engine, upstream, Fetch(body={"a": 1}), path="/odd")) == {"body": {"picture": "cut"}}
    assert upstream.requests[0].body == {"a": 1}
    upstream.behave("/odd", reply(200, {"picture": "x" * 1_000_000}))
    assert len(result(await collect(engine, upstream, Fetch(body={}), path="/odd"))["body"]["picture"]) == 1_000_000


async def test_a_stream_in_single_bytes(engine: RemoteEngine, upstream: Upstream) -> None:
    """Characters of several bytes, comments and CRLF survive any cutting."""
    odd = [b": hello\r\n\r\n", chunk("سلام "), chunk("🦊"), b": keep-alive\n\n", chunk(finish="stop")]
    upstream.behave(CHAT, streams(*odd, step=1))
    assert text_of(await collect(engine, upstream, chat())) == "سلام 🦊"


async def test_connections_are_used_again(engine: RemoteEngine, upstream: Upstream) -> None:
    """Calls one after the other share a connection, streams and whole answers alike."""
    for _ in range(5):
        await collect(engine, upstream, chat())
        await collect(engine, upstream, Embed(texts=("a",)))
    assert (upstream.connections, len(upstream.requests)) == (1, 10)


async def test_the_first_word_comes_before_the_second(engine: RemoteEngine, upstream: Upstream) -> None:
    """A word is told when it comes, not when the answer is over."""
    go_on = asyncio.Event()

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + framed(event(chunk("one"))))
        await go_on.wait()
        writer.write(framed(event(chunk(" two", finish="stop")) + event("[DONE]")) + END)

    upstream.behave(CHAT, behave)
    async with asyncio.timeout(SECONDS), events_of(engine, upstream, chat()) as events:
        assert await anext(events) == Text(delta="one")
        go_on.set()
        assert [type(one) async for one in events] == [Text, Done]


async def hang(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Say one word and then nothing for ever."""
    writer.write(STREAM_HEAD + framed(event(chunk("one"))))
    await asyncio.Event().wait()


async def silence(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.Event().wait()


async def test_closing_the_iterator_ends_the_call(engine: RemoteEngine, upstream: Upstream) -> None:
    """The other server sees the connection close, and so stops computing."""
    upstream.behave(CHAT, hang)
    async with asyncio.timeout(SECONDS):
        async with events_of(engine, upstream, chat()) as events:
            assert await anext(events) == Text(delta="one")
            assert not upstream.gone.is_set()
        await upstream.gone.wait()


@pytest.mark.parametrize("behaviour", [hang, silence])
async def test_a_cancelled_task_ends_the_call(engine: RemoteEngine, upstream: Upstream, behaviour: Any) -> None:
    """Before the first word and after it."""
    arrived = asyncio.Event()

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await behaviour(asked, writer)

    upstream.behave(CHAT, behave)
    async with asyncio.timeout(SECONDS):
        running = asyncio.create_task(collect(engine, upstream, chat()))
        await arrived.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await upstream.gone.wait()


@pytest.mark.parametrize("behaviour", [hang, silence])
async def test_the_deadline_holds_for_all_of_it(engine: RemoteEngine, upstream: Upstream, behaviour: Any) -> None:
    """A server that is silent, or falls silent, is left at the deadline."""
    upstream.behave(CHAT, behaviour)
    async with asyncio.timeout(SECONDS):
        with pytest.raises(DeadlineExceeded, match="did not answer in time"):
            await collect(engine, upstream, chat(), timeout_s=0.3)
        await upstream.gone.wait()


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (reply(429, {"error": {"message": "slow"}}, retry_after="7"), RateLimited, "no more calls"),
        (reply(503, {"error": {"message": "busy"}}), RemoteFailed, "status 503"),
        (reply(400, {"error": {"message": "stop is too long", "param": "stop"}}), InvalidInput, "stop is too long"),
        (reply(401, {"error": {"message": "bad key sk-planted-canary"}}), RemoteFailed, "credentials"),
        (reply(302, b"", location="http://127.0.0.1/elsewhere"), RemoteFailed, "status 302"),
        (reply(200, {"choices": []}), RemoteFailed, "without a stream"),
        (reply(500, b"x" * 500_000), RemoteFailed, "status 500"),
        (b"HTTP/1.1 junk\r\n\r\n", RemoteFailed, "connection"),
        (b"\x00\x01\x02\r\n\r\n", RemoteFailed, "connection"),
        (streams(chunk("a"), cut=True), RemoteFailed, "connection"),
        (streams(chunk("a"), done=False), RemoteFailed, "broke off"),
        (streams(chunk("a"), b"data: junk\n\n"), RemoteFailed, "should not"),
        (streams(chunk("a"), {"error": {"message": "cuda at 10.0.0.9:1", "code": 500}}), RemoteFailed, "midst"),
        (streams(b"<html>nothing to see</html>\n\n", done=False), RemoteFailed, "broke off"),
    ],
)  # fmt: skip
async def test_failures(
    engine: RemoteEngine, upstream: Upstream, answer: Any, kind: type[SeraiError], words: str
) -> None:
    """Every way to fail is one error, without address, key or the server's own talk; the next call works."""
    upstream.behave(CHAT, answer)
    with pytest.raises(SeraiError, match=words) as failed:
        await collect(engine, upstream, chat())
    assert type(failed.value) is kind
    shown = f"{failed.value} {failed.value.hint} {failed.value.details}"
    for private in (str(upstream.port), LOOPBACK, "10.0.0.9", "planted-canary", "cuda"):
        assert private not in shown
    if kind is RateLimited:
        assert failed.value.retry_after == 7.0
    upstream.behave(CHAT, streams(chunk("well", finish="stop")))
    assert text_of(await collect(engine, upstream, chat())) == "well"


async def test_nobody_there(engine: RemoteEngine) -> None:
    """A refused connection is a failure of the server, without its address."""
    async with Upstream() as gone:
        pass
    with pytest.raises(RemoteFailed, match="connection") as failed:
        await collect(engine, gone, chat())
    assert str(gone.port) not in failed.value.message


async def test_a_secret_goes_where_it_may(engine: RemoteEngine, upstream: Upstream) -> None:
    """To the endpoint's origin it is sent as a bearer token; to any other nothing is sent at all."""
    origin = upstream.endpoint.removesuffix("/v1")
    secret = OutboundSecret(name="up", value="planted-canary", origins=frozenset({origin}))
    await collect(engine, upstream, chat(), secret=secret)
    assert upstream.requests[0].headers["authorization"] == "Bearer planted-canary"
    elsewhere = OutboundSecret(name="up", value="planted-canary", origins=frozenset({"https://api.example.com"}))
    with pytest.raises(RemoteFailed, match="may not be called") as failed:
        await collect(engine, upstream, chat(), secret=elsewhere)
    assert LOOPBACK not in f"{failed.value} {failed.value.hint}"
    assert len(upstream.requests) == 1


async def test_the_guard_of_the_way_out_holds(upstream: Upstream) -> None:
    """An address that nobody allowed is never connected to."""
    clock = SystemClock()
    async with Outbound(clock=clock) as outbound:
        with pytest.raises(RemoteFailed, match="may not be called"):
            await collect(RemoteEngine(outbound, clock=clock), upstream, chat())
    assert upstream.connections == 0


async def test_an_endpoint_has_so_many_calls_at_once(engine: RemoteEngine, upstream: Upstream) -> None:
    """Further calls wait for a slot, in order, and no longer than their own time; a cancelled one leaves."""
    arrived, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        arrived.release()
        await go_on.wait()
        await streams(chunk("well", finish="stop"))(asked, writer)

    upstream.behave(CHAT, behave)
    async with asyncio.timeout(SECONDS):
        running = [asyncio.create_task(collect(engine, upstream, chat(), max_concurrency=2)) for _ in range(5)]
        for _ in range(2):
            await arrived.acquire()
        with pytest.raises(DeadlineExceeded):
            await collect(engine, upstream, chat(), max_concurrency=2, timeout_s=0.05)
        running[4].cancel()
        assert len(upstream.requests) == 2
        go_on.set()
        done = await asyncio.gather(*running, return_exceptions=True)
    assert [text_of(one) for one in done[:4] if isinstance(one, list)] == ["well"] * 4
    assert isinstance(done[4], asyncio.CancelledError)
    assert len(upstream.requests) == 4


async def test_calls_at_once_never_mix(engine: RemoteEngine, upstream: Upstream) -> None:
    """Each of many calls at once gets its own words."""
    texts = [f"call{number} says{number} bye{number}" for number in range(40)]
    answers = await asyncio.gather(*(collect(engine, upstream, chat(text)) for text in texts))
    assert [text_of(answer) for answer in answers] == texts


async def test_what_cannot_be_asked_is_refused_before_the_call(engine: RemoteEngine, upstream: Upstream) -> None:
    """Nothing is sent for a request that the server cannot be asked."""
    with pytest.raises(InvalidInput, match="top_k"):
        await collect(engine, upstream, chat(top_k=5))
    assert upstream.connections == 0


async def test_an_endless_event_is_given_up(engine: RemoteEngine, upstream: Upstream) -> None:
    """A line without an end costs a bounded amount of memory, then the connection."""

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(framed(b"x" * 65536))
            await writer.drain()

    upstream.behave(CHAT, behave)
    async with asyncio.timeout(SECONDS):
        with pytest.raises(RemoteFailed, match="too long"):
            await collect(engine, upstream, chat())
        await upstream.gone.wait()
