"""PostgreSQL gone, crashed or stuck under a running server: told as 503, nothing accepted is lost, service returns."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.api import Running, running
from support.servers import PostgresServer
from support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.postgres, pytest.mark.fault]

HEALTH_S = 5.0
"""The bound of one check is two seconds; the rest is for a slow machine."""


@pytest.fixture
async def server(tmp_path: Path, anyio_backend: str, postgres_url: str) -> AsyncIterator[Running]:
    async with running(tmp_path / "home", database_url=postgres_url, database_timeout_s=2) as started:
        yield started


@contextmanager
def gone(postgres: PostgresServer, how: signal.Signals = signal.SIGINT) -> Iterator[None]:
    postgres.stop(how)
    try:
        yield
    finally:
        postgres.start()


async def healed(server: Running, seconds: float = 30) -> None:
    """Wait until the server is healthy again: it finds its database by itself."""

    async def answers() -> bool:
        return (await server.anonymous.get("/health")).status_code == 200

    await eventually(answers, seconds=seconds)


async def test_without_its_database_the_server_says_so_and_comes_back(
    server: Running, postgres_server: PostgresServer
) -> None:
    """/health and /ready 503, /live 200, every request 503 with Retry-After; afterwards all is as before."""
    user = await server.make_user("ada", "user")
    unknown = await server.stack.enter_async_context(server.client("sk-serai-" + "A" * 43))
    for known in (server.admin, user):  # from now on the server need not ask who they are
        assert (await known.get("/whoami")).status_code == 200
    with gone(postgres_server):
        for client in (server.anonymous, server.admin, unknown):
            started = time.monotonic()
            health = await client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
            assert time.monotonic() - started < HEALTH_S
        told = (await server.admin.get("/health")).json()["checks"]
        assert told["database"]["status"] == "failed"
        assert (await server.anonymous.get("/ready")).status_code == 503
        assert (await server.anonymous.get("/live")).status_code == 200
        for client, method, path, body in (
            (server.admin, "GET", "/users", None),
            (server.admin, "POST", "/users", {"name": "never"}),
            (user, "GET", "/files", None),
            (user, "POST", "/jobs", {"kind": "digest", "payload": {"text": "x"}}),
            (user, "DELETE", "/files/file_0", None),
            (unknown, "GET", "/whoami", None),
            (server.anonymous, "POST", "/login", {"name": "ada", "password": "some password"}),
        ):
            answer = await client.request(method, path, json=body)
            assert answer.status_code == 503, (method, path, answer.text)
            assert answer.json()["error"]["code"] == "DATABASE_UNAVAILABLE"
            assert int(answer.headers["retry-after"]) >= 1
    await healed(server)
    assert (await server.anonymous.get("/ready")).status_code == 200
    assert [one["name"] for one in (await server.admin.get("/users")).json()["items"]].count("never") == 0
    assert (await user.get("/whoami")).status_code == 200
    assert (await unknown.get("/whoami")).status_code == 401
    assert (await server.admin.post("/users", json={"name": "after"})).status_code == 201
    assert (await server.admin.post("/audit/verify")).json()["ok"]


async def test_what_was_accepted_survives_a_crash_of_the_database(
    server: Running, postgres_server: PostgresServer
) -> None:
    """Writers go on through the crash: each answer is 201 or 503, and each 201 is there afterwards."""
    accepted: list[str] = []
    over = asyncio.Event()

    async def write(number: int) -> None:
        for count in range(10_000):
            if over.is_set():
                return
            name = f"user{number}-{count}"
            answer = await server.admin.post("/users", json={"name": name})
            assert answer.status_code in (201, 503), answer.text
            if answer.status_code == 201:
                accepted.append(name)

    async def more_than(count: int) -> bool:
        return len(accepted) > count

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(write(number))
        await eventually(lambda: more_than(20))
        before = len(accepted)
        await asyncio.to_thread(postgres_server.stop, signal.SIGQUIT)
        await asyncio.to_thread(postgres_server.start)
        await healed(server)
        await eventually(lambda: more_than(before + 20))
        over.set()
    found = set()
    cursor: str | None = ""
    while cursor is not None:
        page = (await server.admin.get(f"/users?limit=200{f'&cursor={cursor}' if cursor else ''}")).json()
        found |= {user["name"] for user in page["items"]}
        cursor = page["next_cursor"]
    assert set(accepted) <= found
    verdict = (await server.admin.post("/audit/verify")).json()
    assert verdict["ok"], verdict


async def test_revocation_works_after_an_outage(
    server: Running, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """What a second server was told before the outage it does not go on believing after it."""
    key = server.admin.headers["authorization"].partition(" ")[2]
    url = server.settings.database_url
    async with running(tmp_path / "two", admin_key=key, database_url=url, database_timeout_s=2) as second:
        user = await server.make_user("ada", "user")
        there = await server.stack.enter_async_context(second.client(user.headers["authorization"].partition(" ")[2]))
        assert (await there.get("/whoami")).status_code == 200
        with gone(postgres_server):
            assert (await there.get("/files")).status_code == 503
        await healed(server)
        key_id = (await user.get("/whoami")).json()["key_id"]
        assert (await server.admin.delete(f"/keys/{key_id}")).status_code == 204

        async def refused() -> bool:
            return (await there.get("/whoami")).status_code == 401

        await eventually(refused, seconds=10)


async def test_a_database_that_hangs_is_told_in_time(server: Running, postgres_server: PostgresServer) -> None:
    """Stopped in its tracks, not gone: /health still answers, 503, within its bound; it heals when that ends."""
    starter, *stuck = processes(postgres_server)
    for pid in stuck:
        os.kill(pid, signal.SIGSTOP)
    try:
        for client in (server.anonymous, server.admin):
            started = time.monotonic()
            health = await client.get("/health")
            assert health.status_code == 503
            assert time.monotonic() - started < HEALTH_S
        assert (await server.anonymous.get("/live")).status_code == 200
    finally:
        for pid in (*stuck, starter):
            os.kill(pid, signal.SIGCONT)
    await healed(server)
    assert (await server.admin.get("/users")).status_code == 200


def processes(postgres: PostgresServer) -> list[int]:
    """Return the process that started the server, which stops when that does, then the server and its children."""
    server = int((postgres.data / "postmaster.pid").read_text().split()[0])
    above = int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])
    return [above, server, *(int(pid) for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split())]
