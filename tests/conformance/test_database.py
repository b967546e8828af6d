"""The database seam: one suite, on SQLite and on PostgreSQL."""

import asyncio
import threading
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serai.errors import InvalidInput
from serai.storage.database import Database
from serai.storage.notices import announce
from serai.storage.tables import access, blobs
from serai.storage.tables.base import from_microseconds, to_microseconds

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)


def add_blob(connection: Connection, digest: str, size: int = 1) -> None:
    connection.execute(sa.insert(blobs.blobs).values(digest=digest, size=size, created_at=NOW))


def count_blobs(connection: Connection) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(blobs.blobs)).scalar_one()


async def test_a_transaction_commits_whole(database: Database) -> None:
    """What a function wrote is there for the next one."""
    await database.run(add_blob, "a")
    assert await database.read(count_blobs) == 1


async def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    """An exception after a write undoes the write and reaches the caller."""

    def fail(connection: Connection) -> None:
        add_blob(connection, "a")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await database.run(fail)
    assert await database.read(count_blobs) == 0


async def test_a_reading_transaction_cannot_write(database: Database) -> None:
    """A write inside `read` is refused by the database itself."""
    with pytest.raises(Exception, match=r"read.?only"):
        await database.read(add_blob, "a")
    assert await database.read(count_blobs) == 0


async def test_a_reading_transaction_sees_one_state(database: Database) -> None:
    """What others commit while a reading transaction runs stays invisible to it."""
    inside, written = threading.Event(), threading.Event()

    def count_twice(connection: Connection) -> tuple[int, int]:
        first = count_blobs(connection)
        inside.set()
        assert written.wait(10)
        return first, count_blobs(connection)

    async def write() -> None:
        await asyncio.get_running_loop().run_in_executor(None, inside.wait, 10)
        await database.run(add_blob, "a")
        written.set()

    counts, _ = await asyncio.gather(database.read(count_twice), write())
    assert counts == (0, 0)


async def test_concurrent_read_modify_write_loses_no_update(database: Database) -> None:
    """200 increments from 20 tasks end at 200: none is lost, none fails with a lock."""
    await database.run(add_blob, "counter", 0)

    def increment(connection: Connection) -> None:
        row = sa.select(blobs.blobs.c.size).where(blobs.blobs.c.digest == "counter").with_for_update()
        size = connection.execute(row).scalar_one()
        connection.execute(sa.update(blobs.blobs).values(size=size + 1))

    async def ten() -> None:
        for _ in range(10):
            await database.run(increment)

    await asyncio.gather(*(ten() for _ in range(20)))
    assert await database.read(lambda c: c.execute(sa.select(blobs.blobs.c.size)).scalar_one()) == 200


@pytest.mark.parametrize("size", [2**63, -(2**63) - 1, 10**30])
async def test_a_number_out_of_range_is_invalid_input(database: Database, size: int) -> None:
    """A number that no 64-bit column holds is the caller's error on both databases."""
    with pytest.raises(InvalidInput):
        await database.run(add_blob, "a", size)
    assert await database.read(count_blobs) == 0


async def test_a_lone_surrogate_is_invalid_input(database: Database) -> None:
    """A string that is not text is the caller's error on both databases."""
    with pytest.raises(InvalidInput):
        await database.run(add_blob, "\ud800")
    assert await database.read(count_blobs) == 0


async def test_foreign_keys_hold(database: Database) -> None:
    """A row that points nowhere is refused."""
    link = sa.insert(blobs.blob_links).values(holder="h", digest="missing", owner_id="u", size=1)
    with pytest.raises(sa.exc.IntegrityError):
        await database.run(lambda connection: connection.execute(link))


async def test_moments_keep_their_microseconds_and_their_zone(database: Database) -> None:
    """A moment comes back equal and timezone-aware."""
    await database.run(add_blob, "a")
    back = await database.read(lambda c: c.execute(sa.select(blobs.blobs.c.created_at)).scalar_one())
    assert back == NOW
    assert back.tzinfo is UTC
    assert from_microseconds(to_microseconds(NOW)) == NOW


async def test_json_comes_back_as_it_went(database: Database) -> None:
    """Lists, nesting, Persian and the difference of 1 and true survive."""
    origins = ["https://نمونه.example", 1, True, None, {"a": [1.5]}]
    values = {"name": "s", "ciphertext": b"\x00\xff", "origins": origins, "created_at": NOW, "updated_at": NOW}
    await database.run(lambda c: c.execute(sa.insert(access.secrets).values(**values, updated_by="u")))
    row = await database.read(lambda c: c.execute(sa.select(access.secrets)).one())
    assert (row.origins, row.ciphertext) == (origins, b"\x00\xff")


async def test_a_notice_is_told_after_the_commit(database: Database) -> None:
    """A subscriber hears of a change only when it can see it."""
    heard: list[tuple[str | None, int]] = []
    database.notices.subscribe("blobs", lambda payload: heard.append((payload, database.read_sync(count_blobs))))

    def change(connection: Connection) -> None:
        announce(connection, "blobs", "a")
        add_blob(connection, "a")

    await database.run(change)
    assert [entry for entry in heard if entry[0] is not None] == [("a", 1)]


async def test_a_notice_of_a_failed_transaction_is_never_told(database: Database) -> None:
    """What was rolled back was not announced, not even by the next commit on that connection."""
    heard: list[str | None] = []
    database.notices.subscribe("blobs", heard.append)

    def fail(connection: Connection) -> None:
        announce(connection, "blobs", "a")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await database.run(fail)
    await database.run(add_blob, "b")
    assert [payload for payload in heard if payload is not None] == []


async def test_the_audit_table_refuses_update_and_delete(database: Database) -> None:
    """Append-only is enforced by the database, not by good manners."""
    entry = {"seq": 1, "at": NOW, "actor": "a", "action": "x", "object_kind": "k", "object_id": "i"}
    from serai.storage.tables.log import audit

    await database.run(lambda c: c.execute(sa.insert(audit).values(**entry, prev_hash="", hash="h")))
    for statement in (sa.update(audit).values(actor="b"), sa.delete(audit)):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            await database.run(lambda connection, statement=statement: connection.execute(statement))
