"""Who holds which blob: one suite, on SQLite and on PostgreSQL; and the collector."""

import asyncio
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serai.clock import ManualClock
from serai.storage.blobs import Blob, BlobNotFound, Blobs, FileBlobs, MemoryBlobs
from serai.storage.database import Database
from serai.storage.links import Collected, Collector, forget_unreferenced, link, record, recorded, unlink, usage
from serai.storage.tables.blobs import blob_links, files

pytestmark = pytest.mark.anyio
NOW = ManualClock().now()
LATER = NOW + timedelta(days=1)
BLOBS = [Blob(digest=letter * 64, size=size) for letter, size in (("a", 1), ("b", 20), ("c", 300))]
A, B, C = BLOBS


def keep(connection: Connection, blob: Blob, holder: str, owner_id: str = "ada") -> None:
    record(connection, blob, NOW)
    link(connection, holder=holder, digest=blob.digest, owner_id=owner_id)


async def test_a_link_needs_a_record(database: Database) -> None:
    """What nobody put cannot be held."""
    with pytest.raises(BlobNotFound):
        await database.run(link, holder="file_1", digest=A.digest, owner_id="ada")


async def test_recording_and_linking_again_changes_nothing(database: Database) -> None:
    """Both may be repeated, as a retried job does."""
    for _ in range(2):
        await database.run(keep, A, "file_1")
    links = await database.read(lambda c: c.execute(sa.select(blob_links)).all())
    assert [tuple(row) for row in links] == [("file_1", A.digest, "ada", 1)]


async def test_usage_counts_each_blob_once_for_each_owner(database: Database) -> None:
    """Two holders of one owner share a blob; two owners each pay for it."""
    for blob, holder, owner in ((A, "f1", "ada"), (A, "f2", "ada"), (B, "f3", "ada"), (A, "f4", "bob")):
        await database.run(keep, blob, holder, owner)
    assert [await database.read(usage, owner) for owner in ("ada", "bob", "eve")] == [21, 1, 0]
    assert await database.run(unlink, "f1") == 1
    assert await database.read(usage, "ada") == 21
    assert await database.run(unlink, "f2") == 1
    assert await database.read(usage, "ada") == 20
    assert await database.run(unlink, "f2") == 0


async def test_only_what_no_row_names_is_forgotten(database: Database) -> None:
    """A link saves a blob, and so does any other row that points to it; the rest goes when it is old."""
    await database.run(keep, A, "f1")
    for blob in (B, C):
        await database.run(record, blob, NOW)
    row = {
        "id": "file_1",
        "owner_id": "ada",
        "digest": B.digest,
        "name": "n",
        "media_type": "t",
        "size": 20,
        "info": {},
    }
    await database.run(lambda c: c.execute(sa.insert(files).values(**row, created_at=NOW)))
    assert await database.run(forget_unreferenced, NOW) == 0
    assert await database.run(forget_unreferenced, LATER) == 1
    assert await database.read(recorded, [blob.digest for blob in BLOBS]) == {A.digest, B.digest}


async def test_recording_again_makes_a_blob_new(database: Database) -> None:
    """A blob that is put again starts its grace again, even if it was about to be forgotten."""
    await database.run(record, A, NOW)
    await database.run(record, A, LATER)
    assert await database.run(forget_unreferenced, LATER) == 0


@pytest.mark.parametrize("database", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)
async def test_a_link_that_commits_while_the_collector_looks_wins(database: Database) -> None:
    """A transaction that links an old blob and has not committed yet keeps it from being forgotten."""
    await database.run(record, A, NOW)
    linked, commit = threading.Event(), threading.Event()

    def link_slowly(connection: Connection) -> None:
        link(connection, holder="f1", digest=A.digest, owner_id="ada")
        linked.set()
        assert commit.wait(10)

    linking = asyncio.create_task(database.run(link_slowly))
    await asyncio.to_thread(linked.wait, 10)
    assert await database.run(forget_unreferenced, LATER) == 0
    commit.set()
    await linking
    assert await database.run(forget_unreferenced, LATER) == 0
    assert await database.read(usage, "ada") == 1


@pytest.mark.parametrize("database", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)
async def test_a_link_after_the_collector_looked_is_told_the_truth(database: Database) -> None:
    """Who links what the collector is just forgetting waits for it, and learns that it is gone."""
    await database.run(record, A, NOW)
    forgotten, commit = threading.Event(), threading.Event()

    def forget_slowly(connection: Connection) -> int:
        gone = forget_unreferenced(connection, LATER)
        forgotten.set()
        assert commit.wait(10)
        return gone

    forgetting = asyncio.create_task(database.run(forget_slowly))
    await asyncio.to_thread(forgotten.wait, 10)
    linking = asyncio.create_task(database.run(link, holder="f1", digest=A.digest, owner_id="ada"))
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    while await database.read(lambda c: c.execute(waiting).scalar_one()) == 0:
        pass
    commit.set()
    assert await forgetting == 1
    with pytest.raises(BlobNotFound):
        await linking


async def test_the_collector_removes_rows_and_blobs_after_the_grace(database: Database) -> None:
    """Abandoned, released and never recorded blobs go once they are older than the grace; held ones stay."""
    clock = ManualClock()
    store = MemoryBlobs(clock=clock)
    held, released, unrecorded = [await store.put(data, max_bytes=9) for data in (b"h", b"r", b"u")]
    await database.run(keep, held, "f1")
    await database.run(keep, released, "f2")
    await database.run(unlink, "f2")
    collector = Collector(database, store, grace_s=60)
    clock.advance(60)
    assert await collector.run(clock.now()) == Collected(rows=0, blobs=0)
    clock.advance(1)
    assert await collector.run(clock.now()) == Collected(rows=1, blobs=2)
    assert [await store.size(blob.digest) for blob in (held, released, unrecorded)] == [1, None, None]
    assert await collector.run(clock.now()) == Collected(rows=0, blobs=0)


async def test_the_collector_works_in_batches(database: Database) -> None:
    """More abandoned blobs than one batch are all removed in one run."""
    clock = ManualClock()
    store = MemoryBlobs(clock=clock)
    put = [await store.put(str(number).encode(), max_bytes=9) for number in range(1203)]
    await database.run(lambda connection: [record(connection, blob, NOW) for blob in put])
    clock.advance(10)
    assert await Collector(database, store, grace_s=1).run(clock.now()) == Collected(rows=1203, blobs=1203)


@pytest.mark.parametrize("kind", ["files", "memory"])
async def test_collectors_at_once_do_each_thing_once(database: Database, tmp_path: Path, kind: str) -> None:
    """Servers that collect at the same time get in nobody's way."""
    clock = ManualClock()
    store: Blobs = MemoryBlobs(clock=clock) if kind == "memory" else FileBlobs(tmp_path / "blobs", clock=clock)
    put = [await store.put(str(number).encode(), max_bytes=9) for number in range(50)]
    await database.run(lambda connection: [record(connection, blob, NOW) for blob in put])
    clock.advance(10)
    collectors = [Collector(database, store, grace_s=1) for _ in range(4)]
    done = await asyncio.gather(*(collector.run(clock.now()) for collector in collectors))
    assert sum(collected.rows for collected in done) == 50
    assert sum(collected.blobs for collected in done) == 50
    assert [await store.size(blob.digest) for blob in put] == [None] * 50
