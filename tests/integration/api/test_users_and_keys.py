"""Users, keys, tokens and sessions, through the API, on both databases."""

import pytest
from support.api import Running

pytestmark = pytest.mark.anyio


async def test_a_rehearsal_tells_the_change_and_makes_none(server_on_both: Running) -> None:
    """dry_run=1 answers with the audit entries that would be written, and nothing is there afterwards."""
    admin = server_on_both.admin
    before = (await admin.get("/audit/head")).json()
    answer = await admin.post("/users?dry_run=1", json={"name": "ada"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["dry_run"] is True
    assert [(c["action"], c["after"]["name"]) for c in answer.json()["changes"]] == [("users.create", "ada")]
    assert [u["name"] for u in (await admin.get("/users")).json()["items"]] == ["admin"]
    assert (await admin.get("/audit/head")).json() == before
