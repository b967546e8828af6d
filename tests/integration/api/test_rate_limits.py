"""How often one may ask: per key and per failing address, counted in memory or by servers that share Redis."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import limits.aio.storage.memory
import limits.aio.strategies
import pytest

from support.api import Running, running
from support.servers import RedisServer
from support.waiting import eventually

pytestmark = pytest.mark.anyio

LIMITS = {"rate_limit_per_minute": 20, "rate_limit_per_hour": 1000, "address_limit_per_minute": 5}


@pytest.fixture(autouse=True)
def _the_middle_of_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what counts in memory the minute does not turn in the middle of a test, which would let one more pass."""
    moment = time.time() // 60 * 60 + 30
    for module in (limits.aio.storage.memory, limits.aio.strategies):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: moment))


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
async def limited(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Running]:
    """The application with small limits, counted in memory and counted in Redis."""
    url = None
    if request.param == "redis":
        url = fresh(request.getfixturevalue("redis_server"))
    async with running(tmp_path / "home", redis_url=url, **LIMITS) as started:
        yield started


_DATABASES = iter(range(1, 16))


def fresh(server: RedisServer) -> str:
    """Return the URL of an empty database in the server."""
    return f"{server.url[: server.url.rindex('/')]}/{next(_DATABASES)}"


async def ask(client: httpx.AsyncClient, times: int) -> list[int]:
    return [(await client.get("/whoami")).status_code for _ in range(times)]


async def test_every_answer_tells_what_is_left(limited: Running) -> None:
    """X-RateLimit-Limit, -Remaining and -Reset on answers of every kind, errors too; nothing on what is public."""
    user = await limited.make_user("ada", "user")
    left = []
    for path, status in (("/whoami", 200), ("/files/nothing", 404), ("/users", 403), ("/keys?limit=x", 422)):
        answer = await user.get(path)
        assert answer.status_code == status
        assert answer.headers["x-ratelimit-limit"] == "20"
        assert 0 <= int(answer.headers["x-ratelimit-reset"]) <= 60
        left.append(int(answer.headers["x-ratelimit-remaining"]))
    assert left == [19, 18, 17, 16]
    for path in ("/live", "/ready", "/users"):
        assert "x-ratelimit-limit" not in (await limited.anonymous.get(path)).headers


async def test_one_too_many_is_429_for_that_key_alone(limited: Running) -> None:
    """With Retry-After, in the one form, and nothing of the call is done; another key of the same user goes on."""
    user = await limited.make_user("ada", "user")
    other = await user.post("/keys", json={"name": "other"})
    assert await ask(user, 20) == [200] * 19 + [429]
    refused = await user.post("/keys", json={"name": "not made"})
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "RATE_LIMITED"
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert (refused.headers["x-ratelimit-limit"], refused.headers["x-ratelimit-remaining"]) == ("20", "0")
    async with limited.client(other.json()["key"]) as second:
        assert await ask(second, 1) == [200]
        names = [key["name"] for key in (await second.get("/keys")).json()["items"]]
    assert "not made" not in names


async def test_a_token_and_a_session_count_on_their_key(limited: Running) -> None:
    """Making more credentials from a key makes no more requests."""
    user = await limited.make_user("ada", "user")
    token = (await user.post("/tokens")).json()["token"]
    async with limited.client(token) as second:
        assert await ask(second, 10) == [200] * 10
        assert await ask(user, 10) == [200] * 9 + [429]
        assert await ask(second, 1) == [429]


async def test_requests_at_the_same_time_are_counted_one_by_one(limited: Running) -> None:
    """Forty at once: exactly twenty pass."""
    user = await limited.make_user("ada", "user")
    statuses = await asyncio.gather(*(ask(user, 1) for _ in range(40)))
    assert sorted(status for one in statuses for status in one) == [200] * 20 + [429] * 20


async def test_an_address_that_guesses_is_stopped(limited: Running) -> None:
    """Wrong keys count on the address; when they are used up even the guess of a right one is 429, with Retry-After."""
    async with limited.client("sk-serai-" + "A" * 43) as guessing:
        assert await ask(guessing, 6) == [401] * 5 + [429]
        refused = await guessing.get("/whoami")
        assert 0 < int(refused.headers["retry-after"]) <= 60
    user = limited.admin
    assert (await user.get("/whoami")).status_code == 429
    assert (await limited.anonymous.get("/live")).status_code == 200
    assert (await limited.anonymous.post("/login", json={"name": "admin", "password": "x"})).status_code == 429


@pytest.mark.postgres
@pytest.mark.redis
async def test_two_servers_count_together_and_each_alone_while_redis_is_gone(
    tmp_path: Path, anyio_backend: str, redis_server: RedisServer, postgres_url: str
) -> None:
    """Shared while Redis is there; served and counted locally while it is not; shared again when it is back."""
    settings = {"redis_url": fresh(redis_server), "database_url": postgres_url, **LIMITS}
    async with running(tmp_path / "a", **settings) as one:
        key = one.admin.headers["authorization"].partition(" ")[2]
        async with running(tmp_path / "b", admin_key=key, **settings) as two:
            user = await one.make_user("ada", "user")
            elsewhere = await one.stack.enter_async_context(two.client(user.headers["authorization"].partition(" ")[2]))
            assert await ask(user, 6) == [200] * 6
            assert (await elsewhere.get("/whoami")).headers["x-ratelimit-remaining"] == "13"
            redis_server.stop()
            try:
                # Each server begins to count anew: nobody is locked out, and nobody is let loose.
                assert await ask(user, 21) == [200] * 20 + [429]
                assert await ask(elsewhere, 21) == [200] * 20 + [429]
                health = (await one.admin.get("/health")).json()
                assert health["status"] == "degraded"
                assert health["checks"]["cache"]["status"] == "failed"
            finally:
                redis_server.start()
            await eventually(lambda: healthy(one), lambda: healthy(two))
            # Redis kept nothing: the count begins anew, and is one again.
            await eventually(lambda: shares(user, elsewhere))


async def healthy(server: Running) -> bool:
    answer = await server.admin.get("/health")
    return answer.status_code == 200 and answer.json()["status"] == "healthy"


async def shares(user: httpx.AsyncClient, elsewhere: httpx.AsyncClient) -> bool:
    here, there = await user.get("/whoami"), await elsewhere.get("/whoami")
    if 429 in (here.status_code, there.status_code):
        return False  # still its own count, which is used up
    return int(here.headers["x-ratelimit-remaining"]) - int(there.headers["x-ratelimit-remaining"]) == 1
