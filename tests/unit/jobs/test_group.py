"""Writes that share a transaction: each gets its own answer, and nobody pays for another's mistake."""

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serai.errors import DatabaseUnavailable
from serai.jobs.group import GroupedWrites
from serai.jobs.model import QueueFull
from serai.storage.database import Database
from serai.storage.notices import announce
from serai.storage.tables.blobs import blobs

pytestmark = pytest.mark.anyio
NUMBERS = [f"{number:03}" for number in range(100)]


def add(connection: Connection, digest: str) -> str:
    connection.execute(sa.insert(blobs).values(digest=digest, size=1, created_at=sa.literal(0, sa.BigInteger)))
    announce(connection, "added", digest)
    return digest


def stored(database: Database) -> list[str]:
    return sorted(database.read_sync(lambda c: c.execute(sa.select(blobs.c.digest)).scalars().all()))


async def test_many_writes_take_few_transactions(database: Database) -> None:
    """All are committed and answered, in a handful of commits."""
    commits: list[object] = []
    sa.event.listen(database.engine, "commit", commits.append)
    writes = GroupedWrites(database)
    assert await asyncio.gather(*(writes.run(add, number) for number in NUMBERS)) == NUMBERS
    assert stored(database) == NUMBERS
    assert len(commits) <= 5


async def test_an_error_is_its_callers_alone(database: Database) -> None:
    """One that raises leaves nothing; the others are written and told once."""
    told: list[str | None] = []
    database.notices.subscribe("added", told.append)

    def fail(connection: Connection) -> None:
        add(connection, "wrong")
        raise QueueFull("no")

    writes = GroupedWrites(database)
    calls = [*(writes.run(add, number) for number in NUMBERS[:5]), writes.run(fail), writes.run(add, "after")]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results.pop(5), QueueFull)
    assert results == [*NUMBERS[:5], "after"]
    assert stored(database) == [*NUMBERS[:5], "after"]
    assert [entry for entry in told if entry is not None] == results


async def test_a_caller_that_goes_away_disturbs_nobody(database: Database) -> None:
    """Its write still happens; the next ones are answered."""
    writes = GroupedWrites(database)
    first = asyncio.create_task(writes.run(add, "a"))
    second = asyncio.create_task(writes.run(add, "b"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "b"
    assert await writes.run(add, "c") == "c"
    assert stored(database) == ["a", "b", "c"]


async def test_a_database_that_is_away_is_told_to_all(database: Database) -> None:
    """Every caller of the group gets the error, and the next group is tried anew."""

    def away(connection: Connection) -> None:
        raise DatabaseUnavailable("away")

    writes = GroupedWrites(database)
    results = await asyncio.gather(writes.run(add, "a"), writes.run(away), return_exceptions=True)
    assert [type(result) for result in results] == [DatabaseUnavailable] * 2
    assert await writes.run(add, "a") == "a"
