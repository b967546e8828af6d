"""Two servers on one PostgreSQL are one system: what is taken away on the one is gone on the other within a second."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.api import Running, running

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

SEEN_S = 1.0
SECRET = "a secret for signing that both servers know"


@dataclass
class Pair:
    one: Running
    two: Running

    async def both(self, key: str) -> tuple[httpx.AsyncClient, httpx.AsyncClient]:
        """Return clients of the two servers with the same key."""
        enter = self.one.stack.enter_async_context
        return await enter(self.one.client(key)), await enter(self.two.client(key))


@pytest.fixture
async def pair(tmp_path: Path, anyio_backend: str, postgres_url: str) -> AsyncIterator[Pair]:
    settings: dict[str, Any] = {"database_url": postgres_url, "jwt_secret": SECRET, "database_pool_size": 3}
    async with running(tmp_path / "one", **settings) as one:
        key = one.admin.headers["authorization"].partition(" ")[2]
        async with running(tmp_path / "two", admin_key=key, **settings) as two:
            yield Pair(one, two)


async def until(client: httpx.AsyncClient, status: int) -> float:
    """Return the seconds until /whoami answers with that status; fail after a second."""
    started = time.monotonic()
    while (await client.get("/whoami")).status_code != status:
        assert time.monotonic() - started < SEEN_S, f"not {status} within {SEEN_S} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - started


async def test_the_second_start_makes_no_second_admin(pair: Pair, tmp_path: Path) -> None:
    """The first server's admin and key are the system's; the second writes no key of its own."""
    assert not (tmp_path / "two" / "admin.key").exists()
    assert len((await pair.two.admin.get("/users")).json()["items"]) == 1


async def test_a_revoked_key_is_seen_on_the_other_server(pair: Pair) -> None:
    """The other server has the key in memory; within a second it refuses it and every token made from it."""
    await pair.one.make_user("ada", "user")
    made = (await pair.one.admin.post("/keys", json={"name": "k", "user_id": pair.one.user_ids["ada"]})).json()
    here, there = await pair.both(made["key"])
    token = (await here.post("/tokens")).json()["token"]
    _, token_there = await pair.both(token)
    for client in (here, there, token_there):
        assert (await client.get("/whoami")).status_code == 200
    assert (await pair.one.admin.delete(f"/keys/{made['id']}")).status_code == 204
    assert (await here.get("/whoami")).status_code == 401
    await until(there, 401)
    await until(token_there, 401)


@pytest.mark.parametrize("how", ["disable", "delete", "role", "password"])
async def test_a_changed_user_is_seen_on_the_other_server(pair: Pair, how: str) -> None:
    """Disabled or deleted: 401. A lesser role: 403. A new password: tokens and sessions end."""
    user = await pair.one.make_user("ada", "admin")
    key = user.headers["authorization"].partition(" ")[2]
    token = (await user.post("/tokens")).json()["token"]
    _, there = await pair.both(key)
    _, token_there = await pair.both(token)
    assert [(await client.get("/users")).status_code for client in (there, token_there)] == [200, 200]
    target = f"/users/{pair.one.user_ids['ada']}"
    if how == "delete":
        changed = await pair.one.admin.delete(target)
    else:
        body = {"disable": {"disabled": True}, "role": {"role": "viewer"}, "password": {"password": "new and long"}}
        changed = await pair.one.admin.patch(target, json=body[how])
    assert changed.status_code < 300, changed.text
    await until(token_there, 401)
    if how in ("disable", "delete"):
        await until(there, 401)
    else:
        assert (await there.get("/users")).status_code == (403 if how == "role" else 200)


async def test_what_one_makes_the_other_has(pair: Pair) -> None:
    """A user, a key and a job of the one are read from the other at once; the chain of the audit log is one."""
    user = await pair.one.make_user("ada", "user")
    _, there = await pair.both(user.headers["authorization"].partition(" ")[2])
    job = (await user.post("/jobs", json={"kind": "digest", "payload": {"text": "x"}})).json()
    assert (await there.get(f"/jobs/{job['job_id']}")).status_code == 200
    made = await asyncio.gather(
        *(server.admin.post("/users", json={"name": f"user{n}"}) for n in range(10) for server in (pair.one, pair.two))
    )
    assert sorted({answer.status_code for answer in made}) == [201, 409]
    verdicts = [(await server.admin.post("/audit/verify")).json() for server in (pair.one, pair.two)]
    assert verdicts[0] == verdicts[1]
    assert verdicts[0]["ok"]
