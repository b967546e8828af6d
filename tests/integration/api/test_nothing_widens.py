"""No credential makes more of itself, and nobody takes more than is theirs to take."""

import asyncio
from pathlib import Path

import pytest

from support.api import Running, running

pytestmark = pytest.mark.anyio


async def test_a_token_makes_no_key(server: Running) -> None:
    """A token ends in minutes; a key that it made would not."""
    token = (await server.admin.post("/tokens")).json()["token"]
    async with server.client(token) as client:
        refused = await client.post("/keys", json={"name": "for ever"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "FORBIDDEN")


async def test_a_key_that_expires_makes_none_for_others_that_lives_longer(server: Running) -> None:
    """An expiring admin key gives its end to every key that it makes."""
    user = (await server.admin.post("/users", json={"name": "eve", "role": "admin"})).json()["id"]
    short = (await server.admin.post("/keys", json={"name": "short", "expires_in_s": 600})).json()
    async with server.client(short["key"]) as client:
        made = (await client.post("/keys", json={"name": "k", "user_id": user})).json()
        assert made["expires_at"] == short["expires_at"]
        longer = await client.post("/keys", json={"name": "k", "user_id": user, "expires_in_s": 6000})
    assert longer.status_code == 403


@pytest.mark.parametrize("change", [{"password": "correct horse battery"}, {"role": "admin"}])
async def test_a_narrowed_key_widens_nobody(server: Running, change: dict[str, str]) -> None:
    """With the scope `users` alone, neither a password to sign in with nor an admin's role can be given."""
    me = (await server.admin.get("/whoami")).json()["user_id"]
    narrow = (await server.admin.post("/keys", json={"name": "n", "scopes": ["users"]})).json()["key"]
    async with server.client(narrow) as client:
        assert (await client.patch(f"/users/{me}", json=change)).status_code == 403
        assert (await client.post("/users", json={"name": "eve", **change})).status_code == 403
        assert (await client.post("/users", json={"name": "bob", "role": "user"})).status_code == 201


async def test_an_unknown_caller_sends_no_large_body(server: Running) -> None:
    """Signing in needs a few hundred bytes; more is refused before it is read."""
    refused = await server.anonymous.post("/login", json={"api_key": "x" * 20_000})
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "TOO_LARGE")


async def test_an_upload_over_the_quota_is_cut_where_the_quota_ends(tmp_path: Path) -> None:
    """Nothing beyond what is left of the share reaches the disk."""
    async with running(tmp_path / "home", disk_quota_bytes=1000) as server:
        refused = await server.admin.post("/files", content=b"x" * 500_000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "QUOTA_EXCEEDED")
    kept = [path for path in (tmp_path / "home" / "blobs").rglob("*") if path.is_file() and path.stat().st_size]
    assert kept == []


async def test_what_is_cancelled_or_revoked_twice_is_told_once(server_on_both: Running) -> None:
    """Parallel repeats of one change leave one audit entry."""
    admin = server_on_both.admin
    key = (await admin.post("/keys", json={"name": "k"})).json()["id"]
    await asyncio.gather(*(admin.delete(f"/keys/{key}") for _ in range(6)))
    secret = {"value": "v" * 20, "origins": ["https://api.example.com"]}
    put = await asyncio.gather(*(admin.put("/secrets/one", json=secret) for _ in range(6)))
    assert {answer.status_code for answer in put} == {200}
    gone = await asyncio.gather(*(admin.delete("/secrets/one") for _ in range(6)))
    assert sorted(answer.status_code for answer in gone) == [204, 404, 404, 404, 404, 404]
    log = (await admin.get("/audit?limit=200")).json()["items"]
    told = [entry["action"] for entry in log if entry["object_id"] in (key, "one")]
    assert (told.count("keys.revoke"), told.count("secrets.delete")) == (1, 1)
