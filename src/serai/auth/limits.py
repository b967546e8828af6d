"""How much may be asked: requests and model tokens per key, requests per address (library: limits).

Counted in memory (`serai.auth.windows`), or in Redis where several servers share the counts. While
Redis does not answer, each server counts for itself: callers are neither locked out nor let loose, and
nobody waits for it except for one attempt a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

import structlog
from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.aio.storage import RedisStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from serai.auth.policy import Caller
from serai.auth.windows import Stats, Windows
from serai.clock import Clock
from serai.errors import RateLimited

log = structlog.get_logger(__name__)

_TIMEOUT_S, _RETRY_S = 0.5, 1.0
_per_minute = lru_cache(maxsize=1024)(RateLimitItemPerMinute)
_per_hour = lru_cache(maxsize=1024)(RateLimitItemPerHour)


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """The server's limits, for keys that have none of their own."""

    per_minute: int
    per_hour: int
    tokens_per_minute: int
    address_per_minute: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What is left of the tightest window: the numbers of the X-RateLimit headers."""

    limit: int
    remaining: int
    reset_s: float

    def headers(self) -> dict[str, str]:
        """Return X-RateLimit-Limit, -Remaining and -Reset (seconds from now, rounded up)."""
        return {
            "x-ratelimit-limit": str(self.limit),
            "x-ratelimit-remaining": str(self.remaining),
            "x-ratelimit-reset": str(int(-(-self.reset_s // 1))),
        }


class Limiter:
    """Counts and refuses. `enabled=False` allows everything and tells nothing."""

    def __init__(self, defaults: Defaults, clock: Clock, *, redis_url: str | None = None, enabled: bool = True) -> None:
        self._defaults = defaults
        self._clock = clock
        self._enabled = enabled
        self._local = Windows(clock.monotonic)
        self._pool = _redis_pool(redis_url) if redis_url else None
        self._shared = SlidingWindowCounterRateLimiter(_shared_storage(self._pool)) if self._pool else None
        self._retry_at = 0.0
        self._shared_failed = False

    async def aclose(self) -> None:
        """Close the connections to Redis."""
        if self._pool is not None:
            await self._pool.aclose()

    async def admit(self, caller: Caller) -> Allowance | None:
        """Count one request of `caller`. Raises RateLimited; returns None where limits are off."""
        own, server = caller.limits, self._defaults
        minute, hour = _per_minute(own.per_minute or server.per_minute), _per_hour(own.per_hour or server.per_hour)
        return await self._count((minute, hour), "key", caller.limit_id)

    async def admit_address(self, address: str) -> None:
        """Count one request of `address` that no caller stands for. Raises RateLimited."""
        await self._count((_per_minute(self._defaults.address_per_minute),), "address", _network(address))

    async def check_address(self, address: str) -> None:
        """Raise RateLimited if `address` has used up its requests; counts nothing."""
        if not self._enabled:
            return
        item = _per_minute(self._defaults.address_per_minute)
        network = _network(address)
        if not await self._ask("test", item, "address", network):
            raise await self._refusal(item, "address", network)

    async def spend_tokens(self, caller: Caller, tokens: int) -> None:
        """Count model tokens that a request of `caller` used; the next request pays for going over."""
        if self._enabled and tokens > 0:
            item = _per_minute(caller.limits.tokens_per_minute or self._defaults.tokens_per_minute)
            # The library counts nothing of a cost that goes over: what is left of the window is used up instead.
            if not await self._ask("hit", item, "tokens", caller.limit_id, cost=min(tokens, item.amount)):
                left = (await self._stats(item, "tokens", caller.limit_id)).remaining
                if left:
                    await self._ask("hit", item, "tokens", caller.limit_id, cost=left)

    async def check_tokens(self, caller: Caller) -> None:
        """Raise RateLimited if `caller` has used up its tokens of this minute."""
        if not self._enabled:
            return
        item = _per_minute(caller.limits.tokens_per_minute or self._defaults.tokens_per_minute)
        if not await self._ask("test", item, "tokens", caller.limit_id):
            raise await self._refusal(item, "tokens", caller.limit_id)

    async def _count(self, items: Sequence[RateLimitItem], *names: str) -> Allowance | None:
        if not self._enabled:
            return None
        for item in items[1:]:  # what a longer window refuses is not to use up the shortest
            if not await self._ask("test", item, *names):
                raise await self._refusal(item, *names)
        allowances = []
        for item in items:
            if not await self._ask("hit", item, *names):
                raise await self._refusal(item, *names)
            allowances.append(await self._allowance(item, *names))
        return min(allowances, key=lambda allowance: allowance.remaining)

    async def _allowance(self, item: RateLimitItem, *names: str) -> Allowance:
        stats = await self._stats(item, *names)
        return Allowance(
            limit=item.amount, remaining=max(0, stats.remaining), reset_s=min(stats.reset_s, item.get_expiry())
        )

    async def _stats(self, item: RateLimitItem, *names: str) -> Stats:
        found = await self._ask("get_window_stats", item, *names)
        if isinstance(found, Stats):
            return found
        return Stats(found.remaining, max(0.0, found.reset_time - self._clock.now().timestamp()))

    async def _refusal(self, item: RateLimitItem, *names: str) -> RateLimited:
        allowance = await self._allowance(item, *names)
        what = "tokens" if names[0] == "tokens" else "requests"
        period = "hour" if isinstance(item, RateLimitItemPerHour) else "minute"
        details = {"limit": item.amount, "per": period, "of": names[0]}
        message = f"The limit of {item.amount} {what} per {period} is reached."
        return RateLimited(message, details=details, retry_after=max(1.0, allowance.reset_s))

    async def _ask(self, method: str, item: RateLimitItem, *names: str, **options: int) -> Any:
        if self._shared is not None and self._clock.monotonic() >= self._retry_at:
            try:
                answer = await getattr(self._shared, method)(item, *names, **options)
            except (OSError, _redis_error()) as error:
                if not self._shared_failed:
                    log.warning("rate limits are counted on this server alone", reason=type(error).__name__)
                self._shared_failed = True
                self._retry_at = self._clock.monotonic() + _RETRY_S
            else:
                self._shared_failed = False
                return answer
        return getattr(self._local, method)(item, *names, **options)


@lru_cache(maxsize=1024)
def _network(address: str) -> str:
    """Return what stands for one client: its IPv4 address, or the /64 in which an IPv6 client can take any."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(IPv6Network((int(found) >> 64 << 64, 64)))
    return address


def _redis_pool(url: str) -> Any:
    from redis.asyncio import BlockingConnectionPool
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return BlockingConnectionPool.from_url(
        url,
        max_connections=32,
        timeout=_TIMEOUT_S,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        driver_info=None,  # what the driver would tell of itself it looks up in files, on the event loop
    )


def _shared_storage(pool: Any) -> Storage:
    # The pool knows the address; this URL only says which kind of server it is.
    return RedisStorage("async+redis://", implementation="redispy", key_prefix="serai-limits", connection_pool=pool)


def _redis_error() -> type[Exception]:
    from redis.exceptions import RedisError

    return RedisError
