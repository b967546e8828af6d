"""How much may be asked: counted per key, per user and per address, in memory and in Redis."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serai.auth.limits import Allowance, Defaults, Limiter
from serai.auth.policy import Caller, RequestLimits, Role
from serai.clock import ManualClock, SystemClock
from serai.errors import RateLimited
from support.servers import RedisServer

pytestmark = pytest.mark.anyio
DEFAULTS = Defaults(per_minute=3, per_hour=5, tokens_per_minute=1000, address_per_minute=2)


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still until it is told to move."""
    return ManualClock()


@pytest.fixture
def limiter(clock: ManualClock) -> Limiter:
    """Counts in memory."""
    return Limiter(DEFAULTS, clock)


def caller(name: str = "key_1", **own: Any) -> Caller:
    return Caller(user_id="user_1", name="ada", role=Role.USER, limit_id=name, limits=RequestLimits(**own))


async def admitted(limiter: Limiter, who: Caller, times: int) -> int:
    """Return how many of `times` requests were admitted."""
    count = 0
    for _ in range(times):
        try:
            await limiter.admit(who)
        except RateLimited:
            continue
        count += 1
    return count


class TestRequests:
    """Requests of a key."""

    async def test_the_minute_has_its_number(self, limiter: Limiter) -> None:
        """So many pass and no more; the refusal says the limit, the period and when to come again."""
        assert await admitted(limiter, caller(), 3) == 3
        with pytest.raises(RateLimited) as caught:
            await limiter.admit(caller())
        assert caught.value.message == "The limit of 3 requests per minute is reached."
        assert caught.value.details == {"limit": 3, "per": "minute", "of": "key"}
        assert caught.value.retry_after is not None
        assert 1 <= caught.value.retry_after <= 60

    async def test_a_minute_later_it_goes_on_until_the_hour_is_used_up(
        self, limiter: Limiter, clock: ManualClock
    ) -> None:
        """Both windows hold at once."""
        assert await admitted(limiter, caller(), 9) == 3
        clock.advance(121)  # the window before weighs nothing any more
        assert await admitted(limiter, caller(), 9) == 2
        with pytest.raises(RateLimited, match="5 requests per hour"):
            await limiter.admit(caller())
        clock.advance(7201)
        assert await admitted(limiter, caller(), 9) == 3

    async def test_who_waits_as_told_is_admitted(self, limiter: Limiter, clock: ManualClock) -> None:
        """Retry-After is no lie: after that many whole seconds the next request passes."""
        clock.advance(17.3)
        await admitted(limiter, caller(), 3)
        for _ in range(2):
            with pytest.raises(RateLimited) as caught:
                await limiter.admit(caller())
            clock.advance(math.ceil(caught.value.retry_after or 0))
            assert await admitted(limiter, caller(), 1) == 1

    async def test_keys_do_not_share_their_numbers(self, limiter: Limiter) -> None:
        """One that is used up leaves the others alone."""
        assert await admitted(limiter, caller("key_1"), 9) == 3
        assert await admitted(limiter, caller("key_2"), 9) == 3

    async def test_a_key_may_have_numbers_of_its_own(self, limiter: Limiter) -> None:
        """They replace the server's, up and down; what is left out stays the server's."""
        assert await admitted(limiter, caller("less", per_minute=1), 9) == 1
        assert await admitted(limiter, caller("more", per_minute=9), 9) == 5
        assert await admitted(limiter, caller("most", per_minute=9, per_hour=9), 9) == 9

    async def test_the_headers_tell_the_tightest_window(self, limiter: Limiter) -> None:
        """Limit, remaining and reset of whichever has least left."""
        told = [await limiter.admit(caller()) for _ in range(3)]
        assert [(a.limit, a.remaining) for a in told if a] == [(3, 2), (3, 1), (3, 0)]
        assert Allowance(limit=3, remaining=1, reset_s=12.2).headers() == {
            "x-ratelimit-limit": "3",
            "x-ratelimit-remaining": "1",
            "x-ratelimit-reset": "13",
        }

    async def test_the_reset_lies_within_the_window(self, clock: ManualClock) -> None:
        """A calendar that jumped makes no wait of years."""
        other = ManualClock()
        limiter = Limiter(DEFAULTS, other)
        await limiter.admit(caller())
        other.jump(-(10**9))
        assert (await limiter.admit(caller()) or Allowance(limit=0, remaining=0, reset_s=-1)).reset_s <= 3600
        other.jump(2 * 10**9)
        assert 0 <= (await limiter.admit(caller()) or Allowance(limit=0, remaining=0, reset_s=-1)).reset_s <= 3600

    async def test_switched_off_it_counts_nothing(self, clock: ManualClock) -> None:
        """Everything passes, and no header tells a limit."""
        limiter = Limiter(DEFAULTS, clock, enabled=False)
        assert [await limiter.admit(caller()) for _ in range(9)] == [None] * 9
        for _ in range(9):
            await limiter.admit_address("192.0.2.1")
            await limiter.check_address("192.0.2.1")
            await limiter.spend_tokens(caller(), 10**9)
            await limiter.check_tokens(caller())


class TestAddresses:
    """Requests of an address that no caller stands for."""

    async def test_an_address_has_its_number(self, limiter: Limiter, clock: ManualClock) -> None:
        """What is admitted is counted, per address, and comes back with time."""
        for _ in range(2):
            await limiter.admit_address("192.0.2.1")
        with pytest.raises(RateLimited, match="2 requests per minute"):
            await limiter.admit_address("192.0.2.1")
        await limiter.admit_address("192.0.2.2")
        clock.advance(121)
        await limiter.admit_address("192.0.2.1")

    async def test_looking_counts_nothing(self, limiter: Limiter) -> None:
        """A valid credential costs the address nothing, but one that is used up is refused before the look-up."""
        for _ in range(9):
            await limiter.check_address("192.0.2.1")
        await limiter.admit_address("192.0.2.1")
        await limiter.admit_address("192.0.2.1")
        with pytest.raises(RateLimited):
            await limiter.check_address("192.0.2.1")

    async def test_an_address_is_no_key(self, limiter: Limiter) -> None:
        """The numbers of the two do not mix, whatever an id looks like."""
        await limiter.admit_address("same")
        await limiter.admit_address("same")
        assert await admitted(limiter, caller("same"), 9) == 3


class TestTokens:
    """Model tokens of a key."""

    async def test_they_are_paid_after_use(self, limiter: Limiter, clock: ManualClock) -> None:
        """While there are any left a request may begin; the one after is refused; time gives them back."""
        await limiter.check_tokens(caller())
        await limiter.spend_tokens(caller(), 999)
        await limiter.check_tokens(caller())
        await limiter.spend_tokens(caller(), 1)
        with pytest.raises(RateLimited, match="1000 tokens per minute"):
            await limiter.check_tokens(caller())
        clock.advance(121)
        await limiter.check_tokens(caller())

    @pytest.mark.parametrize("uses", [(600, 600), (1, 1000), (10**9,), (999, 2)])
    async def test_what_goes_over_is_counted_too(self, limiter: Limiter, uses: tuple[int, ...]) -> None:
        """A use greater than what is left uses it up: it is not free."""
        for tokens in uses:
            await limiter.check_tokens(caller())
            await limiter.spend_tokens(caller(), tokens)
        with pytest.raises(RateLimited):
            await limiter.check_tokens(caller())

    @pytest.mark.parametrize("tokens", [0, -5])
    async def test_nothing_costs_nothing(self, limiter: Limiter, tokens: int) -> None:
        """No use and nonsense change no count."""
        await limiter.spend_tokens(caller(), tokens)
        await limiter.spend_tokens(caller(), 999)
        await limiter.check_tokens(caller())

    async def test_a_key_may_have_a_number_of_its_own(self, limiter: Limiter) -> None:
        """And requests are not tokens."""
        await limiter.spend_tokens(caller(tokens_per_minute=10), 10)
        with pytest.raises(RateLimited, match="10 tokens per minute"):
            await limiter.check_tokens(caller(tokens_per_minute=10))
        assert await admitted(limiter, caller(), 9) == 3


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test alone, to be stopped and started."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.mark.redis
class TestShared:
    """Several servers, one count."""

    async def test_two_servers_share_the_numbers(self, redis: RedisServer) -> None:
        """What one admits the other counts."""
        one, other = (Limiter(DEFAULTS, SystemClock(), redis_url=redis.url) for _ in range(2))
        assert await admitted(one, caller(), 2) == 2
        assert await admitted(other, caller(), 2) == 1
        await one.aclose()
        await other.aclose()

    async def test_without_redis_each_server_counts_for_itself(self, redis: RedisServer) -> None:
        """Callers are neither locked out nor let loose; when Redis is back, its counts hold again."""
        clock = ManualClock()
        limiter = Limiter(DEFAULTS, clock, redis_url=redis.url)
        assert await admitted(limiter, caller(), 9) == 3
        redis.stop()
        assert await admitted(limiter, caller(), 9) == 3
        redis.start()
        assert await admitted(limiter, caller(), 9) == 0  # it is not asked again so soon
        clock.advance(1)
        assert await admitted(limiter, caller(), 9) == 3  # this Redis keeps nothing over a restart
        await limiter.aclose()

    async def test_a_redis_that_hangs_holds_nobody_up(self, redis: RedisServer) -> None:
        """One request waits for the timeout; the ones after it are counted here at once."""
        clock = ManualClock()
        limiter = Limiter(DEFAULTS, clock, redis_url=redis.url)
        await limiter.admit(caller())
        redis.pause()
        started = time.monotonic()
        assert await admitted(limiter, caller(), 9) == 3
        waited = time.monotonic() - started
        redis.resume()
        await limiter.aclose()
        assert 0.4 < waited < 5  # one timeout of half a second, not one for each of nine requests

    async def test_every_form_of_address_is_taken(self, redis: RedisServer) -> None:
        """What the setting allows names a Redis; one that does not answer locks nobody out."""
        for url in (redis.url, redis.url.replace("redis://", "rediss://"), "unix:///no/such/redis.sock"):
            limiter = Limiter(DEFAULTS, SystemClock(), redis_url=url)
            assert await admitted(limiter, caller("another"), 1) == 1
            await limiter.aclose()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("unknown", "unknown", True),
    ],
)
async def test_who_owns_a_network_is_one_client(one: str, other: str, same: bool) -> None:
    """An IPv6 client can take any address of its /64, so the whole of it counts as one."""
    once = replace(DEFAULTS, address_per_minute=1)
    limiter = Limiter(once, ManualClock())
    await limiter.admit_address(one)
    if same:
        with pytest.raises(RateLimited):
            await limiter.admit_address(other)
    else:
        await limiter.admit_address(other)
