"""What a picture began with: known as long as its job is there, and what that named."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from serai.audit import Actor
from serai.clock import SystemClock
from serai.files import store as files_store
from serai.files.store import File
from serai.ids import new_id
from serai.images.model import KIND, Picture
from serai.images.store import Sources, sources_of
from serai.jobs import store as jobs_store
from serai.jobs.model import NewJob
from serai.storage import links
from serai.storage.blobs import Blob
from serai.storage.database import Connection, Database
from serai.storage.tables.blobs import files
from serai.storage.tables.jobs import jobs

AT = datetime(2026, 1, 2, tzinfo=UTC)
PHOTO, MASK = "a" * 64, "b" * 64
NOTHING = Sources(named={}, digests={})


def made(database: Database, *, strength: float | None = None, **payload: str) -> Picture:
    """Return a picture whose job has this payload."""
    asked = {"prompt": "x", **payload}
    new = NewJob(id=new_id("job"), kind=KIND, version=1, payload=asked, owner_id="ann", resource="images")
    job = database.run_sync(jobs_store.enqueue, SystemClock(), new)
    return Picture(
        id="img_1",
        owner_id="ann",
        job_id=job.id,
        position=0,
        model="m",
        version="1.0.0",
        decision={},
        prompt="x",
        negative_prompt="",
        settings={"format": "png"} if strength is None else {"format": "png", "strength": strength},
        seed=1,
        width=8,
        height=8,
        format="png",
        digest="0" * 64,
        size=1,
        thumb_digest="1" * 64,
        thumb_size=1,
        generation_ms=1,
        created_at=AT,
    )


def upload(connection: Connection, owner: str) -> str:
    file = File(
        id=new_id("file"),
        owner_id=owner,
        digest=PHOTO,
        name="photo.png",
        media_type="image/png",
        size=1,
        info={},
        created_at=AT,
    )
    return files_store.add(connection, file, 100, Actor(id=owner)).id


def hold(connection: Connection, owner: str) -> None:
    links.record(connection, Blob(digest=MASK, size=1), AT)
    links.link(connection, holder="job_x", digest=MASK, owner_id=owner)


def forget(database: Database, table: Any) -> None:
    database.run_sync(lambda connection: connection.execute(sa.delete(table)))


def test_what_is_there_is_named(database: Database) -> None:
    """A file by its id and a blob by its digest, both with their digests; of words alone there is nothing."""
    file_id = database.run_sync(upload, "ann")
    database.run_sync(hold, "ann")
    both = made(database, image=file_id, mask=MASK)
    assert database.read_sync(sources_of, both) == Sources(
        named={"image": file_id, "mask": MASK}, digests={"image_sha256": PHOTO, "mask_sha256": MASK}
    )
    assert database.read_sync(sources_of, made(database)) == NOTHING


@pytest.mark.parametrize("owner", ["ann", "bob"])
def test_what_is_gone_or_anothers_is_not_known(database: Database, owner: str) -> None:
    """Neither the file that was removed, nor what is there for others alone."""
    picture = made(database, image=database.run_sync(upload, owner))
    assert (database.read_sync(sources_of, picture) is None) == (owner == "bob")
    forget(database, files)
    assert database.read_sync(sources_of, picture) is None
    database.run_sync(hold, "bob")
    assert database.read_sync(sources_of, made(database, image=MASK)) is None


def test_without_its_job_the_strength_tells(database: Database) -> None:
    """That there was a picture; which one is not known any more."""
    file_id = database.run_sync(upload, "ann")
    begun, plain = made(database, strength=0.8, image=file_id), made(database)
    forget(database, jobs)
    assert database.read_sync(sources_of, begun) is None
    assert database.read_sync(sources_of, plain) == NOTHING
    assert database.read_sync(sources_of, replace(plain, job_id="job_0")) == NOTHING
