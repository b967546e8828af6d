"""Changes and their rehearsals, on a real database behind a bare request."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.engine import Connection
from starlette.requests import Request

from serai import audit
from serai.api.changes import Rehearsed, change, on_rehearsed
from serai.auth import store
from serai.auth.policy import Role
from serai.errors import InvalidInput
from serai.storage.connect import open_sqlite
from serai.storage.database import Database
from support.access import ACTOR, NOW, a_user, add_user

pytestmark = pytest.mark.anyio


@pytest.fixture
def database(sqlite_path: Path) -> Iterator[Database]:
    """An empty database."""
    opened = open_sqlite(sqlite_path)
    yield opened
    opened.close_sync()


def request(database: Database, query: str) -> Request:
    app = SimpleNamespace(state=SimpleNamespace(parts=SimpleNamespace(database=database)))
    return Request({"type": "http", "headers": [], "query_string": query.encode(), "app": app})


def names(database: Database) -> list[str]:
    return [user.name for user in database.read_sync(store.list_users, limit=10, after=None)]


async def told(rehearsed: Rehearsed) -> list[dict[str, Any]]:
    answer = json.loads((await on_rehearsed(Request({"type": "http"}), rehearsed)).body)
    assert answer["dry_run"] is True
    changes_: list[dict[str, Any]] = answer["changes"]
    return changes_


@pytest.mark.parametrize("query", ["", "dry_run=0"])
async def test_a_change_is_made(database: Database, query: str) -> None:
    """Without the parameter, or with 0, the function's own answer comes back and its work stays."""
    ada = a_user("ada")
    assert await change(request(database, query), store.create_user, ada, ACTOR) == ada
    assert names(database) == ["ada"]


async def test_a_rehearsal_tells_the_entries_in_order_and_undoes_all(database: Database) -> None:
    """Only its own entries are told, oldest first; rows, log and notices are as before."""
    add_user(database, "before")
    heard: list[str | None] = []
    database.notices.subscribe(store.TOPIC, heard.append)
    head = database.read_sync(audit.head)

    def two(connection: Connection) -> None:
        store.create_user(connection, a_user("ada", Role.ADMIN), ACTOR)
        store.create_user(connection, a_user("eve"), ACTOR)

    with pytest.raises(Rehearsed) as caught:
        await change(request(database, "dry_run=1"), two)
    assert [entry["after"]["name"] for entry in await told(caught.value)] == ["ada", "eve"]
    assert names(database) == ["before"]
    assert database.read_sync(audit.head) == head
    add_user(database, "after")
    assert len(heard) == 1  # the notice of `after`; those of the rehearsal were never told


async def test_what_would_be_refused_is_refused_in_rehearsal(database: Database) -> None:
    """A rehearsal does not promise what the change would not keep."""
    add_user(database, "ada")
    with pytest.raises(store.UserAlreadyExists):
        await change(request(database, "dry_run=1"), store.create_user, a_user("ada"), ACTOR)


@pytest.mark.parametrize("query", ["dry_run=2", "dry_run=", "dry_run=true", "dry_run=01", "dry_run=1&dry_run=no"])
async def test_another_word_is_refused_and_nothing_is_done(database: Database, query: str) -> None:
    """Who meant a rehearsal and spelled it otherwise gets no change by surprise."""
    with pytest.raises(InvalidInput, match="dry_run: must be 0 or 1"):
        await change(request(database, query), store.create_user, a_user("ada"), ACTOR)
    assert names(database) == []


async def test_a_change_of_many_things_tells_them_all_in_order(database: Database) -> None:
    """Nothing that would be done is left out, and nothing of another transaction is told."""
    database.run_sync(lambda connection: audit.record(connection, ACTOR, "other", "thing", "x", at=NOW))

    def many(connection: Connection) -> None:
        for number in range(5):
            audit.record(connection, ACTOR, "test", "thing", str(number), at=NOW)

    with pytest.raises(Rehearsed) as caught:
        await change(request(database, "dry_run=1"), many)
    assert [entry["object_id"] for entry in await told(caught.value)] == ["0", "1", "2", "3", "4"]


async def test_the_answer_has_the_changes_without_the_log_s_own_members(database: Database) -> None:
    """Action, object, before and after; neither number nor hashes, which will be others."""
    with pytest.raises(Rehearsed) as caught:
        await change(request(database, "dry_run=1"), store.create_user, a_user("ada"), ACTOR)
    (effect,) = await told(caught.value)
    assert set(effect) == {"action", "object_kind", "object_id", "before", "after"}
    assert (effect["action"], effect["before"]) == ("users.create", None)
