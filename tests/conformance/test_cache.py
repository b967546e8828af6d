"""The cache seam: one suite, in memory and on Redis; then Redis going away, and several servers."""

import asyncio
import itertools
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path

import anyio.lowlevel
import pytest
import sqlalchemy as sa
import structlog
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from serai.clock import ManualClock
from serai.errors import Unavailable
from serai.storage.cache import TOPIC, Cache, MemoryCache, RedisCache, get_or_load, invalidate_on_notices
from serai.storage.connect import open_postgresql
from serai.storage.database import Database
from serai.storage.notices import announce
from serai.storage.tables.blobs import blobs
from support.servers import LOOPBACK, RedisServer

pytestmark = pytest.mark.anyio
_NAMESPACES = (f"test{number}" for number in itertools.count())
PATIENT = 1.0  # seconds that a busy machine may need for what takes a millisecond
KINDS = ["memory", pytest.param("redis", marks=pytest.mark.redis)]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def make(kind: str, request: pytest.FixtureRequest, clock: ManualClock, namespace: str) -> Cache:
    if kind == "memory":
        return MemoryCache(clock=clock, max_entries=100)
    server: RedisServer = request.getfixturevalue("redis_server")
    return RedisCache(server.url, clock=clock, namespace=namespace, timeout_s=PATIENT)


@pytest.fixture(params=KINDS)
async def cache(request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[Cache]:
    made = make(request.param, request, clock, next(_NAMESPACES))
    yield made
    await made.close()


async def keep(cache: Cache, key: str, value: bytes, ttl_s: float = 60) -> None:
    await cache.set(key, value, ttl_s=ttl_s, since=await cache.mark(key))


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    with anyio.fail_after(seconds):
        while not await condition():
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("value", [b"", b"x", bytes(range(256)) * 100])
async def test_what_was_set_is_got(cache: Cache, value: bytes) -> None:
    """Any bytes come back under any text as key; what was never set is a miss."""
    assert await cache.get("model:نمونه") is None
    await keep(cache, "model:نمونه", b"first")
    await keep(cache, "model:نمونه", value)
    assert await cache.get("model:نمونه") == value
    assert await cache.get("model:") is None


async def test_a_value_ends_with_its_time(cache: Cache, clock: ManualClock) -> None:
    """After its seconds a value is gone, and not before; another with more time stays."""
    await keep(cache, "short", b"1", ttl_s=0.2)
    await keep(cache, "long", b"2", ttl_s=60)
    clock.advance(0.1)
    assert await cache.get("short") == b"1"

    async def gone() -> bool:
        clock.advance(0.1)
        return await cache.get("short") is None

    await until(gone)
    assert await cache.get("long") == b"2"


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan")])
async def test_no_time_is_refused(cache: Cache, ttl_s: float) -> None:
    """A life that is not longer than nothing is a mistake of the caller."""
    with pytest.raises(ValueError, match="more than 0"):
        await keep(cache, "key", b"1", ttl_s=ttl_s)


async def test_a_deleted_key_is_gone_alone(cache: Cache) -> None:
    """Deleting one key leaves the others, and the key can be set again."""
    await keep(cache, "a", b"1")
    await keep(cache, "b", b"2")
    cache.delete("a")
    assert [await cache.get("a"), await cache.get("b")] == [None, b"2"]
    await keep(cache, "a", b"3")
    assert await cache.get("a") == b"3"


async def test_clear_forgets_everything(cache: Cache) -> None:
    """No value from before survives; new ones are kept."""
    for key in "abc":
        await keep(cache, key, b"1")
    cache.clear()
    assert [await cache.get(key) for key in "abc"] == [None] * 3
    await keep(cache, "a", b"2")
    assert await cache.get("a") == b"2"


@pytest.mark.parametrize("everything", [False, True], ids=["delete", "clear"])
async def test_a_slow_reader_cannot_bring_back_the_old_value(cache: Cache, everything: bool) -> None:
    """What was read before an invalidation is not kept after it."""
    reading, changed = asyncio.Event(), asyncio.Event()
    row = b"old"

    async def load() -> bytes:
        value = row
        reading.set()
        await changed.wait()
        return value

    slow = asyncio.create_task(get_or_load(cache, "key", load, ttl_s=60))
    with anyio.fail_after(10):
        await reading.wait()
    row = b"new"
    if everything:
        cache.clear()
    else:
        cache.delete("key")
    changed.set()
    assert await slow == b"old"
    assert await cache.get("key") is None
    assert await get_or_load(cache, "key", load, ttl_s=60) == b"new"
    assert await cache.get("key") == b"new"


async def test_another_keys_invalidation_does_not_cost_a_value(cache: Cache) -> None:
    """Marks are per key: deleting one lets readers of others keep what they read."""
    since = await cache.mark("a")
    cache.delete("b")
    await cache.set("a", b"1", ttl_s=60, since=since)
    assert await cache.get("a") == b"1"


async def test_a_load_that_fails_is_not_kept(cache: Cache) -> None:
    """The error reaches the caller, and the next one loads again."""

    async def fail() -> bytes:
        raise ConnectionError

    async def work() -> bytes:
        return b"1"

    with pytest.raises(ConnectionError):
        await get_or_load(cache, "key", fail, ttl_s=60)
    assert await get_or_load(cache, "key", work, ttl_s=60) == b"1"
    assert await get_or_load(cache, "key", fail, ttl_s=60) == b"1"


async def test_a_delete_from_another_thread_holds_at_once(cache: Cache) -> None:
    """A notice arrives on any thread; the next get on the loop already misses."""
    for _ in range(50):
        await keep(cache, "key", b"1")
        await asyncio.to_thread(cache.delete, "key")
        assert await cache.get("key") is None


async def test_the_event_loop_is_never_blocked(cache: Cache) -> None:
    """No method waits on the event loop's thread."""
    with blockbuster_ctx():
        await keep(cache, "key", b"1")
        await cache.get("key")
        cache.delete("key")
        cache.clear()
        await cache.ping()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 3)),
        st.tuples(st.just("keep"), st.integers(0, 3)),
        st.tuples(st.sampled_from(["delete", "clear", "get"]), st.just(0)),
    ),
    max_size=40,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_no_interleaving_shows_an_old_value(
    request: pytest.FixtureRequest, kind: str, steps: list[tuple[str, int]]
) -> None:
    """However four slow readers, changes and gets are interleaved, a get is a miss or the row as it is now."""

    async def play() -> None:
        cache = make(kind, request, ManualClock(), next(_NAMESPACES))
        row = 0
        readers = {}
        for step, reader in steps:
            if step == "read":
                readers[reader] = (await cache.mark("key"), row)
            elif step == "keep" and reader in readers:
                since, value = readers.pop(reader)
                await cache.set("key", b"%d" % value, ttl_s=60, since=since)
            elif step in ("delete", "clear"):
                row += 1
                cache.clear() if step == "clear" else cache.delete("key")
            assert await cache.get("key") in (None, b"%d" % row)
        await cache.close()

    asyncio.run(play())


async def test_memory_is_bounded_and_forgets_the_least_used(clock: ManualClock) -> None:
    """The bound holds for values and for marks; a value whose mark was forgotten is simply not kept."""
    cache = MemoryCache(clock=clock, max_entries=3)
    for key in "abc":
        await keep(cache, key, key.encode())
    await cache.get("a")
    await keep(cache, "d", b"d")
    assert [await cache.get(key) for key in "abcd"] == [b"a", None, b"c", b"d"]
    since = await cache.mark("slow")
    for number in range(1000):
        await keep(cache, str(number), b"x")
    await cache.set("slow", b"1", ttl_s=60, since=since)
    assert await cache.get("slow") is None
    assert len(cache._values) == len(cache._marks) == 3


# Redis going away ------------------------------------------------------------------------------


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis server that the test may stop."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def info_logs() -> Iterator[None]:
    """Let `capture_logs` see what is logged at level info and above."""
    before = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    yield
    structlog.configure(wrapper_class=before)


class Stalled:
    """Stops a Redis server in its tracks, so that it answers nothing and forgets nothing."""

    def __init__(self, server: RedisServer) -> None:
        assert server._process is not None
        self._pid = server._process.pid

    def __enter__(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGCONT)


@pytest.mark.redis
@pytest.mark.usefixtures("info_logs")
async def test_while_redis_is_gone_the_cache_is_empty(own_redis: RedisServer, clock: ManualClock) -> None:
    """A get is a miss, a set is dropped, nothing raises but ping; it is logged once, and so is the return."""
    cache = RedisCache(own_redis.url, clock=clock, timeout_s=PATIENT)
    await keep(cache, "key", b"1")
    assert await cache.get("key") == b"1"
    await cache.ping()
    own_redis.stop()
    with capture_logs() as logs:
        for _ in range(5):
            assert await cache.get("key") is None
            await keep(cache, "key", b"2")
            clock.advance(1)
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("cache_unavailable", "warning")]
    assert own_redis.url not in str(logs)
    with pytest.raises(Unavailable):
        await cache.ping()
    own_redis.start()
    clock.advance(1)
    with capture_logs() as logs:
        await keep(cache, "key", b"3")
        assert await cache.get("key") == b"3"
    assert [entry["event"] for entry in logs] == ["cache_available"]
    await cache.close()


@pytest.mark.redis
async def test_a_delete_during_an_outage_holds_after_it(own_redis: RedisServer, clock: ManualClock) -> None:
    """The old value, which Redis kept through the outage, is deleted before anything is read again."""
    cache, stranger = (RedisCache(own_redis.url, clock=clock, timeout_s=PATIENT) for _ in range(2))
    await keep(cache, "key", b"old")
    await keep(cache, "other", b"other")
    with Stalled(own_redis):
        assert await cache.get("key") is None
        cache.delete("key")
        assert await cache.get("key") is None
    assert await stranger.get("key") == b"old"
    clock.advance(1)
    assert await cache.get("other") == b"other"
    assert await stranger.get("key") is None
    await cache.close()
    await stranger.close()


@pytest.mark.redis
async def test_a_reader_from_before_an_outage_cannot_bring_back_the_old_value(
    own_redis: RedisServer, clock: ManualClock
) -> None:
    """A mark that was taken before the outage is no longer good after a delete during it, nor after a restart."""
    cache = RedisCache(own_redis.url, clock=clock, timeout_s=PATIENT)
    since = await cache.mark("key")
    with Stalled(own_redis):
        assert await cache.get("key") is None
        cache.delete("key")
    clock.advance(1)
    await cache.set("key", b"old", ttl_s=60, since=since)
    assert await cache.get("key") is None
    since = await cache.mark("key")
    own_redis.stop()
    own_redis.start()
    await cache.get("key")
    clock.advance(1)
    await cache.set("key", b"old", ttl_s=60, since=since)
    assert await cache.get("key") is None
    await cache.close()


@pytest.mark.redis
async def test_more_deletes_than_are_remembered_become_a_clear(own_redis: RedisServer, clock: ManualClock) -> None:
    """The memory of what is owed is bounded; over the bound everything goes, never too little."""
    cache = RedisCache(own_redis.url, clock=clock, timeout_s=PATIENT, max_owed=3)
    for key in ("a", "b", "c", "d", "kept"):
        await keep(cache, key, b"old")
    with Stalled(own_redis):
        assert await cache.get("a") is None
        for number in range(10_000):
            cache.delete("abcd"[number % 4])
        assert len(cache._owed) <= 3
    clock.advance(1)
    assert [await cache.get(key) for key in ("a", "b", "c", "d", "kept")] == [None] * 5
    await cache.close()


@pytest.mark.redis
async def test_requests_do_not_hang_on_a_silent_redis(clock: ManualClock) -> None:
    """A hundred gets at once on a server that accepts and says nothing miss within two seconds, later ones at once."""
    with socket.socket() as silent:
        silent.bind((LOOPBACK, 0))
        silent.listen(200)
        cache = RedisCache(f"redis://{LOOPBACK}:{silent.getsockname()[1]}/0", clock=clock)
        with anyio.fail_after(2):
            assert await asyncio.gather(*(cache.get(str(number)) for number in range(100))) == [None] * 100
        with anyio.fail_after(0.1):
            assert await cache.get("key") is None
        await cache.close()


@pytest.mark.redis
async def test_a_delete_is_written_once(redis_server: RedisServer, clock: ManualClock) -> None:
    """However many callers find it owed at the same time, it is written once: a second time would undo a later set."""
    written: list[str] = []

    class Watched(RedisCache):
        async def _write_deletes(self, owed: Iterable[str]) -> None:
            written.extend(owed)
            await super()._write_deletes(owed)

    cache = Watched(redis_server.url, clock=clock, timeout_s=PATIENT, namespace=next(_NAMESPACES))
    await keep(cache, "key", b"1")
    cache.delete("key")
    await asyncio.gather(*(cache.get("key") for _ in range(5)))
    assert written == ["key"]
    await cache.close()


@pytest.mark.redis
async def test_a_delete_is_told_to_the_others_without_being_asked(
    redis_server: RedisServer, clock: ManualClock
) -> None:
    """Servers that share the cache stop seeing a deleted value although the deleter does nothing more."""
    namespace = next(_NAMESPACES)
    one, two = (RedisCache(redis_server.url, clock=clock, timeout_s=PATIENT, namespace=namespace) for _ in range(2))
    await keep(one, "key", b"1")
    assert await two.get("key") == b"1"
    await asyncio.to_thread(one.delete, "key")

    async def gone() -> bool:
        return await two.get("key") is None

    await until(gone)
    await one.close()
    await two.close()


# Several servers --------------------------------------------------------------------------------


def write_row(connection: Connection, size: int) -> None:
    connection.execute(sa.delete(blobs))
    connection.execute(sa.insert(blobs).values(digest="key", size=size, created_at=ManualClock().now()))
    announce(connection, TOPIC, "key")


async def read_row(database: Database) -> bytes:
    return b"%d" % await database.read(lambda c: c.execute(sa.select(blobs.c.size)).scalar_one())


async def test_a_server_starts_with_an_empty_cache(database: Database, cache: Cache) -> None:
    """What a shared cache holds from before the start may have changed while nobody listened."""
    await keep(cache, "key", b"old")
    invalidate_on_notices(cache, database)
    assert await cache.get("key") is None


async def test_a_change_is_seen_at_once_where_it_was_made(database: Database, cache: Cache) -> None:
    """When the writing call returns, this server's cache no longer has the value."""
    invalidate_on_notices(cache, database)
    for size in range(20):
        await database.run(write_row, size)
        assert await get_or_load(cache, "key", lambda: read_row(database), ttl_s=60) == b"%d" % size


@pytest.fixture
def servers(postgres_url: str) -> Iterator[tuple[Database, Database]]:
    """Two servers on one PostgreSQL, both listening."""
    opened = [open_postgresql(postgres_url, pool_size=2) for _ in range(2)]
    yield opened[0], opened[1]
    for database in opened:
        database.close_sync()


async def listening(database: Database, through: Database) -> None:
    """Return when `database` hears what `through` announces."""
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    end = database.notices.subscribe("hello", lambda _: loop.call_soon_threadsafe(heard.set) and None)

    async def ask() -> bool:
        await through.run(announce, "hello", "you")
        return heard.is_set()

    await until(ask)
    end()


@pytest.mark.postgres
@pytest.mark.parametrize("kind", KINDS)
async def test_a_change_is_seen_by_the_other_server_within_a_second(
    request: pytest.FixtureRequest, servers: tuple[Database, Database], kind: str, clock: ManualClock
) -> None:
    """A row that is changed through one server is read anew on the other, whose cache had it."""
    here, there = servers
    namespace = next(_NAMESPACES)
    caches = [make(kind, request, clock, namespace) for _ in servers]
    for cache, database in zip(caches, servers, strict=True):
        invalidate_on_notices(cache, database)
    await listening(there, here)
    await here.run(write_row, 0)
    for size in range(1, 11):

        async def old(size: int = size) -> bool:
            got = await get_or_load(caches[1], "key", lambda: read_row(there), ttl_s=60)
            return got == b"%d" % (size - 1) and await caches[1].get("key") == got

        await until(old)
        await here.run(write_row, size)

        async def new(size: int = size) -> bool:
            return await get_or_load(caches[1], "key", lambda: read_row(there), ttl_s=60) == b"%d" % size

        await until(new, 1)
    for cache in caches:
        await cache.close()


@pytest.mark.postgres
@pytest.mark.parametrize("kind", KINDS)
async def test_a_slow_reader_on_the_other_server_cannot_bring_back_the_old_value(
    request: pytest.FixtureRequest, servers: tuple[Database, Database], kind: str, clock: ManualClock
) -> None:
    """A row read there before it is changed here, and cached there after the notice, is not kept."""
    here, there = servers
    cache = make(kind, request, clock, next(_NAMESPACES))
    invalidate_on_notices(cache, there)
    await listening(there, here)
    await here.run(write_row, 1)
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    there.notices.subscribe(TOPIC, lambda key: loop.call_soon_threadsafe(heard.set) and None)
    await listening(there, here)
    heard.clear()

    since = await cache.mark("key")
    value = await read_row(there)
    await here.run(write_row, 2)
    with anyio.fail_after(5):
        await heard.wait()
    await cache.set("key", value, ttl_s=60, since=since)
    assert (value, await cache.get("key")) == (b"1", None)
    await cache.close()


@pytest.mark.postgres
async def test_a_server_that_may_have_missed_a_notice_forgets_everything(
    servers: tuple[Database, Database], clock: ManualClock
) -> None:
    """After its listening connection was lost a server trusts nothing that it cached before."""
    here, there = servers
    cache = MemoryCache(clock=clock)
    await listening(there, here)
    invalidate_on_notices(cache, there)
    await keep(cache, "key", b"old")
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
    await here.run(lambda connection: connection.execute(sa.text(cut)).all())

    async def gone() -> bool:
        return await cache.get("key") is None

    await until(gone)
