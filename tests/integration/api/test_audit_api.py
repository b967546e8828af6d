"""The audit log through the API: reading, keeping its head, verifying."""

from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from support.api import Running

pytestmark = pytest.mark.anyio


async def said(call: Any, status: int = 200) -> Any:
    answer = await call
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


async def test_every_change_has_its_entry_with_who_where_and_why(server_on_both: Running) -> None:
    """Actor, address and request id are those of the request; before and after are those of the change."""
    admin = server_on_both.admin
    me = (await said(admin.get("/whoami")))["user_id"]
    made = await admin.post("/users", json={"name": "ada"}, headers={"x-request-id": "from-the-test"})
    await said(admin.patch(f"/users/{made.json()['id']}", json={"role": "moderator"}))
    changed, created = (await said(admin.get(f"/audit?object_id={made.json()['id']}")))["items"]
    assert (created["actor"], created["address"], created["request_id"]) == (me, "127.0.0.1", "from-the-test")
    assert (created["action"], created["before"], created["after"]["name"]) == ("users.create", None, "ada")
    assert (changed["before"]["role"], changed["after"]["role"]) == ("user", "moderator")
    assert changed["prev_hash"] == created["hash"]
    assert datetime.fromisoformat(created["at"]).tzinfo is not None


async def test_what_was_refused_has_no_entry(server: Running) -> None:
    """A conflict, a wrong body and a missing right change nothing, the log included."""
    head = await said(server.admin.get("/audit/head"))
    await said(server.admin.post("/users", json={"name": "admin"}), 409)
    await said(server.admin.post("/users", json={"name": "-"}), 422)
    await said(server.anonymous.post("/users", json={"name": "ada"}), 401)
    assert await said(server.admin.get("/audit/head")) == head


async def test_the_filters_narrow_and_pages_meet_every_entry_once(server: Running) -> None:
    """By kind, object, actor, action and time; the newest first, along the cursors to the first."""
    for number in range(6):
        await said(server.admin.post("/users", json={"name": f"user-{number}"}), 201)
    every = (await said(server.admin.get("/audit?limit=200")))["items"]
    assert [entry["seq"] for entry in every] == list(range(len(every), 0, -1))
    seen: list[int] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await said(server.admin.get(f"/audit?limit=4{f'&cursor={cursor}' if cursor else ''}"))
        seen += [entry["seq"] for entry in page["items"]]
        cursor = page["next_cursor"]
    assert seen == [entry["seq"] for entry in every]
    users = (await said(server.admin.get("/audit?object_kind=user&action=users.create")))["items"]
    assert [entry["after"]["name"] for entry in users[:6]] == [f"user-{number}" for number in (5, 4, 3, 2, 1, 0)]
    assert (await said(server.admin.get("/audit?actor=system&object_kind=user")))["items"] == [users[-1]]
    middle = datetime.fromisoformat(users[2]["at"])
    since = (await said(server.admin.get(f"/audit?since={quote(middle.isoformat())}")))["items"]
    until = (await said(server.admin.get(f"/audit?until={quote(middle.isoformat())}&limit=200")))["items"]
    assert since[-1] == users[2]
    assert len(since) + len(until) == len(every)
    late = quote((middle + timedelta(days=1)).isoformat())
    assert (await said(server.admin.get(f"/audit?since={late}"))) == {"items": [], "next_cursor": None}


async def test_a_question_that_makes_no_sense_is_refused(server: Running) -> None:
    """A time without zone, a cursor of another list, an unknown parameter, a number out of bounds."""
    user_cursor = "dXNlcl8x"
    for query in (
        "since=2026-01-01T00:00:00",
        "since=yesterday",
        "until=9999999",
        f"cursor={user_cursor}",
        "cursor=%00",
        "limit=0",
        "limit=201",
        "seq=1",
        "actor=" + "x" * 257,
    ):
        refused = await said(server.admin.get(f"/audit?{query}"), 422 if "%00" not in query else 400)
        assert refused["error"]["code"] in ("INVALID_INPUT", "MALFORMED_REQUEST"), query


async def test_a_whole_log_verifies_with_and_without_a_kept_head(server_on_both: Running) -> None:
    """A head taken earlier lies on the log that grew; one that never was does not."""
    admin = server_on_both.admin
    kept = await said(admin.get("/audit/head"))
    await said(admin.post("/users", json={"name": "ada"}), 201)
    plain = await said(admin.post("/audit/verify"))
    assert (plain["ok"], plain["broken_at"], plain["entries"]) == (True, None, plain["head"]["seq"])
    assert plain["head"] == await said(admin.get("/audit/head"))
    assert (await said(admin.post("/audit/verify", json=kept)))["ok"] is True
    other = await said(admin.post("/audit/verify", json={**kept, "hash": "0" * 64}))
    assert (other["ok"], other["broken_at"]) == (False, kept["seq"])
    cut = await said(admin.post("/audit/verify", json={"seq": kept["seq"] + 100, "hash": "a" * 64}))
    assert (cut["ok"], cut["broken_at"]) == (False, plain["entries"] + 1)


async def test_what_is_no_head_is_refused(server: Running) -> None:
    """Numbers out of range and hashes of another form are named."""
    good = {"seq": 1, "hash": "a" * 64}
    for body in ({}, {"seq": 1}, {**good, "seq": -1}, {**good, "seq": 2**63}, {**good, "hash": "A" * 64}, [good], "x"):
        await said(server.admin.post("/audit/verify", json=body), 422)
    assert (await said(server.admin.post("/audit/verify", json={**good, "more": 1}), 422))["error"]["details"] == [
        {"field": "more", "problem": "extra inputs are not permitted"}
    ]
