"""Values kept for a while so that a row need not be read again: in memory, or in Redis for several servers.

    policy = await get_or_load(cache, f"model:{id}", load, ttl_s=300)       # load() reads the row
    announce(connection, "cache", f"model:{id}")                           # in the transaction that changes it

A value read before a change must not come back after it, neither by a slow reader nor by another
server. So a key has a *mark* that every `delete` changes: a reader takes the mark before it reads the
row, and what it then stores counts only while the mark is still that one.
"""

import asyncio
import itertools
import secrets
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import NewType, Protocol, TypeVar, cast

import structlog

from serai.clock import Clock
from serai.errors import ConfigurationError, Unavailable
from serai.storage.database import Database

R = TypeVar("R")
Mark = NewType("Mark", bytes)
"""Stands for 'nothing has invalidated this key since'; opaque."""

TOPIC = "cache"
"""The topic under which a transaction announces the keys whose rows it changes."""

MAX_TTL_S = 86_400.0
"""A cache may forget at any time; none keeps a value longer than this."""

_NO_MARK = Mark(b"")
_EVERYTHING = ""
_log = structlog.get_logger(__name__)


class Cache(Protocol):
    """The seam. A key is a text of 1 to 500 characters. A cache that does not answer is an empty one."""

    async def get(self, key: str) -> bytes | None:
        """Return the value, or None; never waits longer than a fraction of a second."""
        ...

    async def mark(self, key: str) -> Mark:
        """Return the key's mark; to be taken before the value for `set` is read or computed."""
        ...

    async def set(self, key: str, value: bytes, *, ttl_s: float, since: Mark) -> None:
        """Keep `value` for `ttl_s` seconds (> 0), unless the key was deleted since its mark `since`."""
        ...

    def delete(self, key: str) -> None:
        """Forget the key; from any thread, without blocking.

        No later `get` of this server returns the old value; other servers that share the cache stop
        seeing it as soon as the cache can be told.
        """
        ...

    def clear(self) -> None:
        """Do as `delete` does, for every key."""
        ...

    async def ping(self) -> None:
        """Raise Unavailable if the cache does not answer."""
        ...

    async def close(self) -> None:
        """Let go of connections; nothing may be called afterwards."""
        ...


async def get_or_load(cache: Cache, key: str, load: Callable[[], Awaitable[bytes]], *, ttl_s: float) -> bytes:
    """Return the cached value of `key`, else what `load` returns, which is kept; a failure is not."""
    found = await cache.get(key)
    if found is not None:
        return found
    since = await cache.mark(key)
    value = await load()
    await cache.set(key, value, ttl_s=ttl_s, since=since)
    return value


def invalidate_on_notices(cache: Cache, database: Database) -> Callable[[], None]:
    """Delete from `cache` what any server announces as changed; returns what ends that.

    It begins with an empty cache, and empties it again whenever notices may have been missed.
    """

    def on_notice(key: str | None) -> None:
        if key is None:
            cache.clear()
        else:
            cache.delete(key)

    unsubscribe = database.notices.subscribe(TOPIC, on_notice)
    cache.clear()
    return unsubscribe


class MemoryCache:
    """A cache of this process: at most `max_entries` values, the least recently used goes first."""

    def __init__(self, *, clock: Clock, max_entries: int = 50_000) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._values: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._marks: OrderedDict[str, Mark] = OrderedDict()
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # held for a few dictionary operations only

    async def get(self, key: str) -> bytes | None:
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            value, expires = found
            if self._clock.monotonic() >= expires:
                del self._values[key]
                return None
            self._values.move_to_end(key)
            return value

    async def mark(self, key: str) -> Mark:
        with self._lock:
            mark = self._marks.setdefault(key, Mark(b"%d" % next(self._numbers)))
            self._trim(self._marks, key)
            return mark

    async def set(self, key: str, value: bytes, *, ttl_s: float, since: Mark) -> None:
        expires = self._clock.monotonic() + _checked(ttl_s)
        with self._lock:
            if self._marks.get(key) == since:  # a mark that was trimmed away only costs this value
                self._values[key] = (value, expires)
                self._trim(self._values, key)

    def delete(self, key: str) -> None:
        with self._lock:
            self._marks.pop(key, None)
            self._values.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._marks.clear()
            self._values.clear()

    async def ping(self) -> None:
        return

    async def close(self) -> None:
        self.clear()

    def _trim(self, entries: OrderedDict[str, R], newest: str) -> None:
        entries.move_to_end(newest)
        if len(entries) > self._max_entries:
            entries.popitem(last=False)


class RedisCache:
    """A cache that servers share.

    Redis holds one random *generation* for all keys and, per deleted key, a random *version*. A value
    is stored behind the two that made up its mark, and counts only while they are still the current
    ones: deleting is writing a new version, clearing is writing a new generation, and a reader that
    was slower than either stores something that nobody will take.

    While Redis does not answer, a get is a miss and a set is dropped, at once except for one attempt a
    second; deletes are remembered and written before anything is read again. More of them than
    `max_owed` become one clear. A server that starts in between cannot know them: it starts with a
    clear (`invalidate_on_notices`).
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        namespace: str = "serai",
        timeout_s: float = 0.25,
        retry_s: float = 1.0,
        max_owed: int = 1000,
    ) -> None:
        """Connects when it is first used, from one event loop. Raises ConfigurationError without the driver."""
        try:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import RedisError
        except ImportError:
            raise ConfigurationError(
                "redis_url names Redis, whose driver is not installed.", hint="pip install 'serai[redis]'"
            ) from None
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=32,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,  # what the driver would tell of itself it looks up in files, on the event loop
        )
        self._redis = Redis.from_pool(pool)
        self._failures = (RedisError, OSError)
        self._clock = clock
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._max_owed = max_owed
        self._lock = threading.Lock()
        self._owed: dict[str, int] = {}  # keys still to be deleted, each with the number of its latest delete
        self._numbers = itertools.count()
        self._payment = asyncio.Lock()
        self._down_until: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._paying: asyncio.Task[None] | None = None

    async def get(self, key: str) -> bytes | None:
        async def read() -> bytes | None:
            found = await self._redis.mget(*self._keys(key))
            generation, version, value = cast("list[bytes | None]", found)
            mark = _join(generation, version)
            return value[len(mark) :] if mark and value is not None and value.startswith(mark) else None

        return await self._attempt(read, None)

    async def mark(self, key: str) -> Mark:
        async def read() -> Mark:
            generation, version, _ = self._keys(key)
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.set(generation, _random(), nx=True)
                pipe.mget(generation, version)
                return _join(*(await pipe.execute())[1])

        return await self._attempt(read, _NO_MARK)

    async def set(self, key: str, value: bytes, *, ttl_s: float, since: Mark) -> None:
        milliseconds = max(1, int(_checked(ttl_s) * 1000))

        async def write() -> None:
            await self._redis.set(self._keys(key)[2], since + value, px=milliseconds)

        if since != _NO_MARK:
            await self._attempt(write, None)

    def delete(self, key: str) -> None:
        with self._lock:
            self._owed[key] = next(self._numbers)
            if len(self._owed) > self._max_owed:
                self._owed = {_EVERYTHING: next(self._numbers)}
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._start_paying)

    def clear(self) -> None:
        self.delete(_EVERYTHING)

    async def ping(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._redis.ping()
        except self._failures:
            raise Unavailable("The cache does not answer.", retry_after=self._retry_s) from None

    async def close(self) -> None:
        self._loop = None
        if self._paying is not None:
            self._paying.cancel()
            await asyncio.wait([self._paying])
        await self._redis.aclose()

    async def _attempt(self, operation: Callable[[], Awaitable[R]], otherwise: R) -> R:
        """Return what `operation` returns once all deletes are written, or `otherwise` if Redis does not answer."""
        self._loop = asyncio.get_running_loop()
        if self._down_until is not None and self._clock.monotonic() < self._down_until:
            return otherwise
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._pay()
                result = await operation()
        except self._failures as error:
            if self._down_until is None:
                _log.warning("cache_unavailable", reason=type(error).__name__)
            self._down_until = self._clock.monotonic() + self._retry_s
            return otherwise
        if self._down_until is not None:
            _log.info("cache_available")
            self._down_until = None
        return result

    async def _pay(self) -> None:
        """Write the owed deletes; those made meanwhile stay owed."""
        if not self._owed:
            return
        async with self._payment:  # two payments of one delete would undo what was set between them
            with self._lock:
                owed = dict(self._owed)
            if owed:
                await self._write_deletes(owed)
            with self._lock:
                for key, number in owed.items():
                    if self._owed.get(key) == number:
                        del self._owed[key]

    async def _write_deletes(self, owed: Iterable[str]) -> None:
        async with self._redis.pipeline(transaction=True) as pipe:
            for key in owed:
                generation, version, value = self._keys(key)
                if key == _EVERYTHING:
                    pipe.set(generation, _random())
                else:
                    pipe.set(version, _random(), ex=int(2 * MAX_TTL_S))  # outlives every value of an older mark
                    pipe.delete(value)
            await pipe.execute()

    def _start_paying(self) -> None:
        if self._loop is not None and (self._paying is None or self._paying.done()):
            self._paying = self._loop.create_task(self._pay_all())

    async def _pay_all(self) -> None:
        async def nothing() -> bool:
            return True

        answers = True
        while self._owed and answers:
            answers = await self._attempt(nothing, False)

    def _keys(self, key: str) -> tuple[str, str, str]:
        """Return the Redis keys of the generation, of the key's version and of its value."""
        return f"{self._namespace}:generation", f"{self._namespace}:version:{key}", f"{self._namespace}:value:{key}"


def _checked(ttl_s: float) -> float:
    if not ttl_s > 0:
        raise ValueError("a value is kept for more than 0 seconds")
    return min(ttl_s, MAX_TTL_S)


def _random() -> bytes:
    return secrets.token_bytes(8)


def _join(generation: bytes | None, version: bytes | None) -> Mark:
    """Return the mark, 16 bytes; without a generation no value counts."""
    return _NO_MARK if generation is None else Mark(generation + (version or bytes(8)))
