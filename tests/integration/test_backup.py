"""Backups: from either database into either, while the server works; and what is refused."""

import asyncio
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio.lowlevel
import msgspec
import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from serai.clock import ManualClock
from serai.storage import migrations, schema
from serai.storage.backup import BackupDamaged, BackupRefused, Manifest, backup, restore
from serai.storage.blobs import Blob, FileBlobs, blob_path
from serai.storage.connect import open_postgresql, open_sqlite
from serai.storage.database import Database
from serai.storage.links import Collector, link, record, unlink
from serai.storage.tables import access, blobs
from support.rows import Rows, contents, fill

REVISIONS = [s.revision for s in ScriptDirectory(str(Path(migrations.__file__).parent)).walk_revisions()]
NOW = ManualClock().now()
_NUMBERS = itertools.count()
Opener = Callable[[str], Database]


@pytest.fixture
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens a new database of a kind, in which nothing was ever made."""
    databases = []

    def open_one(kind: str) -> Database:
        number = next(_NUMBERS)
        if kind == "sqlite":
            database = open_sqlite(tmp_path / f"{number}.db")
        else:
            url = request.getfixturevalue("postgres_server").create(f"backup_{number}")
            database = open_postgresql(url, pool_size=3, listen=False)
        databases.append(database)
        return database

    yield open_one
    for database in databases:
        database.close_sync()


KINDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]
PAIRS = [
    pytest.param("sqlite", "sqlite", id="sqlite-to-sqlite"),
    pytest.param("sqlite", "postgresql", id="sqlite-to-postgresql", marks=pytest.mark.postgres),
    pytest.param("postgresql", "sqlite", id="postgresql-to-sqlite", marks=pytest.mark.postgres),
]


def put(folder: Path, data: bytes) -> Blob:
    return asyncio.run(FileBlobs(folder, clock=ManualClock()).put(data, max_bytes=2**24))


def add_file(connection: Connection, file_id: str, blob: Blob) -> None:
    """Write what one upload writes: the blob, its link and the file, in one transaction."""
    record(connection, blob, NOW)
    link(connection, holder=file_id, digest=blob.digest, owner_id="ada")
    row = {"id": file_id, "owner_id": "ada", "digest": blob.digest, "name": "n", "media_type": "t", "size": blob.size}
    connection.execute(sa.insert(blobs.files).values(**row, info={}, created_at=NOW))


def remove_file(connection: Connection, file_id: str) -> None:
    connection.execute(sa.delete(blobs.files).where(blobs.files.c.id == file_id))
    unlink(connection, file_id)


def add_extremes(connection: Connection) -> None:
    """Write the values that a copy most easily spoils."""
    moment = NOW.replace(microsecond=123457)
    row = {"name": "extreme", "ciphertext": bytes(range(256)), "created_at": moment, "updated_at": moment}
    origins = [2**62, -1, 0.1, 1e-300, "", "\u2028\r\n\t\\\"'%s:x", "نمونه\u200cای", "\U0001f42b", None, {"": [[]]}]
    connection.execute(sa.insert(access.secrets).values(**row, origins=origins, updated_by=""))


@pytest.mark.parametrize(("from_kind", "to_kind"), PAIRS)
def test_everything_comes_back(opened: Opener, tmp_path: Path, from_kind: str, to_kind: str) -> None:
    """Every row of every table and every blob is restored as it was, on the same database or the other one."""
    source, target = opened(from_kind), opened(to_kind)
    schema.upgrade(source)
    source.run_sync(fill)
    source.run_sync(lambda connection: connection.execute(sa.delete(blobs.blob_links)))
    for table in (blobs.files, blobs.blobs):
        source.run_sync(lambda connection, table=table: connection.execute(sa.delete(table)))
    source.run_sync(add_extremes)
    kept = [put(tmp_path / "blobs", data) for data in (b"", b"one", bytes(range(256)) * 9000)]
    for number, blob in enumerate(kept):
        source.run_sync(add_file, f"file_{number}", blob)
    put(tmp_path / "blobs", b"named by no row")

    manifest = backup(source, tmp_path / "blobs", tmp_path / "saved", now=NOW, version="1.2.3")
    assert restore(tmp_path / "saved", target, tmp_path / "restored") == manifest

    rows = source.read_sync(contents)
    assert target.read_sync(contents) == rows
    assert {name: entry.rows for name, entry in manifest.tables.items()} == {n: len(r) for n, r in rows.items()}
    assert (manifest.version, manifest.schema, manifest.taken_at) == ("1.2.3", schema.HEAD, NOW)
    assert (manifest.blobs, manifest.blob_bytes, manifest.missing) == (3, sum(blob.size for blob in kept), ())
    restored = FileBlobs(tmp_path / "restored", clock=ManualClock())
    assert [asyncio.run(restored.verify(blob.digest)) for blob in kept] == [True] * 3
    assert sorted(p.name for p in (tmp_path / "restored").glob("??/*")) == sorted(blob.digest for blob in kept)
    assert list((tmp_path / "restored" / "incoming").iterdir()) == []
    target.run_sync(fill_more)


def fill_more(connection: Connection) -> None:
    """Use the restored database: what follows on from the restored rows can be written."""
    add_file(connection, "file_new", Blob(digest="f" * 64, size=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("revision", REVISIONS)
def test_a_backup_of_any_revision_is_restored(opened: Opener, tmp_path: Path, kind: str, revision: str) -> None:
    """A backup that an older server took, of an older schema, is loaded and brought up to this server's."""
    source, target = opened("sqlite"), opened(kind)
    schema.upgrade(source, revision)
    source.run_sync(fill)
    manifest = backup(source, tmp_path / "blobs", tmp_path / "saved", now=NOW, version="0")
    assert manifest.schema == revision
    assert len(manifest.missing) == 4  # the made-up rows name blobs that no disk has
    schema.upgrade(target)
    restore(tmp_path / "saved", target, tmp_path / "restored")
    schema.upgrade(source)
    assert target.read_sync(schema.current) == schema.HEAD
    assert target.read_sync(contents) == source.read_sync(contents)


class Working:
    """A server at work: one that adds and removes files, and a collector."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.clock = ManualClock()
        self.store = FileBlobs(folder, clock=self.clock)
        self.written = self.collected = 0
        self.stopped = False

    async def write(self) -> None:
        """Keep eight files of thirty contents that come again, each step a second later than the one before."""
        live: list[str] = []
        while not self.stopped:
            self.clock.advance(1)
            blob = await self.store.put(b"%d" % (self.written % 30), max_bytes=99)
            live.append(f"file_{self.written}")
            await self.database.run(add_file, live[-1], blob)
            if len(live) > 8:
                await self.database.run(remove_file, live.pop(0))
            self.written += 1

    async def collect(self) -> None:
        """Remove what was let go, with a grace of four steps."""
        collector = Collector(self.database, self.store, grace_s=4)
        while not self.stopped:
            self.collected += (await collector.run(self.clock.now())).blobs
            await anyio.lowlevel.checkpoint()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds."""
        with anyio.fail_after(60):
            while not condition():
                await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
@pytest.mark.parametrize(("from_kind", "to_kind"), PAIRS)
async def test_a_backup_of_a_working_server_is_of_one_moment(
    opened: Opener, tmp_path: Path, from_kind: str, to_kind: str
) -> None:
    """While files come and go and the collector removes, each backup has every blob that its rows name."""
    source = opened(from_kind)
    schema.upgrade(source)
    server = Working(source, tmp_path / "blobs")
    for number in range(100):
        await source.run(add_file, f"ballast_{number}", await server.store.put(b"ballast%d" % number, max_bytes=99))
    work = [asyncio.create_task(server.write()), asyncio.create_task(server.collect())]
    manifests = []
    for number in range(4):
        goal = server.collected + 10
        await server.until(lambda goal=goal: server.collected >= goal)
        before, saved = server.written, tmp_path / f"saved{number}"
        manifests.append(await asyncio.to_thread(backup, source, tmp_path / "blobs", saved, now=NOW, version="1"))
        assert server.written > before + 1
    server.stopped = True
    await asyncio.gather(*work)
    assert len({manifest.tables["files"].sha256 for manifest in manifests}) == 4
    for number, manifest in enumerate(manifests):
        target, blobs_folder = opened(to_kind), tmp_path / f"restored{number}"
        await asyncio.to_thread(restore, tmp_path / f"saved{number}", target, blobs_folder)
        await check_restored(manifest, await target.read(contents), FileBlobs(blobs_folder, clock=server.clock))


async def check_restored(manifest: Manifest, rows: Rows, store: FileBlobs) -> None:
    """Hold what every transaction of `Working` keeps true: a file has its link, a link its blob, a blob its bytes."""
    assert {name: len(r) for name, r in rows.items()} == {name: e.rows for name, e in manifest.tables.items()}
    files = {(row["id"], row["digest"]) for row in rows["files"]}
    assert files == {(row["holder"], row["digest"]) for row in rows["blob_links"]}
    assert 108 <= len(files) <= 109
    assert {digest for _, digest in files} <= {row["digest"] for row in rows["blobs"]}
    assert manifest.missing == ()
    for row in rows["blobs"]:
        assert await store.verify(row["digest"])


@pytest.fixture
def saved(opened: Opener, tmp_path: Path) -> Path:
    """A small whole backup: three files, and a row in every other table."""
    source = opened("sqlite")
    schema.upgrade(source)
    for number in range(3):
        source.run_sync(add_file, f"file_{number}", put(tmp_path / "blobs", b"data%d" % number))
    backup(source, tmp_path / "blobs", tmp_path / "saved", now=NOW, version="1")
    return tmp_path / "saved"


def test_a_backup_is_private_and_whole(saved: Path) -> None:
    """Folders have mode 0700, files 0600; nothing else is beside it."""
    assert {path.stat().st_mode & 0o777 for path in (saved, *saved.rglob("*")) if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in saved.rglob("*") if path.is_file()} == {0o600}
    assert not saved.with_name("saved.partial").exists()


def test_a_place_that_is_not_empty_is_refused(opened: Opener, saved: Path, tmp_path: Path) -> None:
    """A backup never mixes with another one, nor with what somebody keeps; an empty folder is fine."""
    source = opened("sqlite")
    schema.upgrade(source)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "cut.partial").mkdir()
    (tmp_path / "empty").mkdir()
    for place in (saved, tmp_path / "file", tmp_path / "cut"):
        with pytest.raises(BackupRefused) as refusal:
            backup(source, tmp_path / "blobs", place, now=NOW, version="1")
        assert refusal.value.hint
        assert str(tmp_path) not in f"{refusal.value.message}{refusal.value.hint}"
    assert backup(source, tmp_path / "blobs", tmp_path / "empty", now=NOW, version="1").blobs == 0


def test_an_empty_database_has_no_backup(opened: Opener, tmp_path: Path) -> None:
    """A database that was never used is more likely the wrong one; nothing is written."""
    with pytest.raises(BackupRefused, match="empty"):
        backup(opened("sqlite"), tmp_path / "blobs", tmp_path / "saved", now=NOW, version="1")
    assert not list(tmp_path.glob("saved*"))


def test_a_backup_that_fails_leaves_nothing(opened: Opener, tmp_path: Path) -> None:
    """An error in the middle removes what was written so far."""
    source = opened("sqlite")
    schema.upgrade(source)
    blob = put(tmp_path / "blobs", b"data")
    source.run_sync(add_file, "file_1", blob)
    path = blob_path(tmp_path / "blobs", blob.digest)
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match=r"directory|permitted"):
        backup(source, tmp_path / "blobs", tmp_path / "saved", now=NOW, version="1")
    assert not list(tmp_path.glob("saved*"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_blob_that_is_lost_does_not_prevent_a_backup(opened: Opener, tmp_path: Path, kind: str) -> None:
    """What the disk has no more is listed; the rest is saved and restored."""
    source, target = opened(kind), opened(kind)
    schema.upgrade(source)
    lost, kept = (put(tmp_path / "blobs", data) for data in (b"lost", b"kept"))
    source.run_sync(add_file, "file_1", lost)
    source.run_sync(add_file, "file_2", kept)
    blob_path(tmp_path / "blobs", lost.digest).unlink()
    manifest = backup(source, tmp_path / "blobs", tmp_path / "saved", now=NOW, version="1")
    assert (manifest.missing, manifest.blobs) == ((lost.digest,), 1)
    restore(tmp_path / "saved", target, tmp_path / "restored")
    assert target.read_sync(contents) == source.read_sync(contents)
    assert [path.name for path in (tmp_path / "restored").glob("??/*")] == [kept.digest]


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_bytes(msgspec.json.encode(change(msgspec.json.decode(path.read_bytes()))))


def some_blob(saved: Path) -> Path:
    return next(iter((saved / "blobs").glob("??/*")))


def replace(path: Path, data: bytes) -> None:
    path.unlink()  # it may share its bytes with the store
    path.write_bytes(data)


def link_instead(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("moved")))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a row changed": lambda saved: (saved / "tables/files.jsonl").write_bytes(
        (saved / "tables/files.jsonl").read_bytes().replace(b"ada", b"eve")
    ),
    "rows cut off": lambda saved: os.truncate(saved / "tables/files.jsonl", 10),
    "rows missing": lambda saved: (saved / "tables/files.jsonl").unlink(),
    "blob changed": lambda saved: replace(some_blob(saved), b"evil!"),
    "blob missing": lambda saved: some_blob(saved).unlink(),
    "blob a link": lambda saved: (
        (path := some_blob(saved)).rename(saved / "moved") and path.symlink_to(saved / "moved")
    ),
    "manifest cut off": lambda saved: os.truncate(saved / "manifest.json", 40),
    "manifest not JSON": lambda saved: (saved / "manifest.json").write_bytes(b"\xff\xfe"),
    "manifest with more": lambda saved: rewrite(saved / "manifest.json", lambda m: m | {"more": 1}),
    "table too many": lambda saved: rewrite(
        saved / "manifest.json", lambda m: m | {"tables": m["tables"] | {"more": m["tables"]["secrets"]}}
    ),
    "table outside": lambda saved: rewrite(
        saved / "manifest.json", lambda m: m | {"tables": m["tables"] | {"../manifest": m["tables"]["files"]}}
    ),
    "no blobs table": lambda saved: rewrite(
        saved / "manifest.json", lambda m: m | {"tables": {k: v for k, v in m["tables"].items() if k != "blobs"}}
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_backup_changes_nothing(opened: Opener, saved: Path, tmp_path: Path, damage: Any) -> None:
    """Whatever is not as it was written is found before anything is restored."""
    damage(saved)
    target = opened("sqlite")
    with pytest.raises((BackupDamaged, BackupRefused)) as refusal:
        restore(saved, target, tmp_path / "restored")
    assert refusal.value.hint
    assert str(tmp_path) not in refusal.value.message
    assert not (tmp_path / "restored").exists()
    assert target.read_sync(schema.current) is None


@pytest.mark.parametrize("change", [{"format": 2}, {"schema": "9999"}])
def test_a_newer_backup_is_refused(opened: Opener, saved: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    """What this server cannot understand is left alone."""
    rewrite(saved / "manifest.json", lambda manifest: manifest | change)
    with pytest.raises(BackupRefused, match="newer"):
        restore(saved, opened("sqlite"), tmp_path / "restored")


def test_what_is_no_backup_is_refused(opened: Opener, tmp_path: Path) -> None:
    """Any other folder, and a backup that was cut off, has no manifest."""
    with pytest.raises(BackupRefused, match="no backup"):
        restore(tmp_path, opened("sqlite"), tmp_path / "restored")


@pytest.mark.parametrize("kind", KINDS)
def test_a_database_with_rows_is_refused(opened: Opener, saved: Path, tmp_path: Path, kind: str) -> None:
    """A restore never mixes with what is there, and leaves it untouched."""
    target = opened(kind)
    schema.upgrade(target)
    target.run_sync(add_extremes)
    before = target.read_sync(contents)
    with pytest.raises(BackupRefused, match="has rows"):
        restore(saved, target, tmp_path / "restored")
    assert target.read_sync(contents) == before
    assert not (tmp_path / "restored").exists()


def test_a_restore_heals_and_does_not_touch_the_backup(opened: Opener, saved: Path, tmp_path: Path) -> None:
    """Restoring into the folder of the damaged blobs replaces them; deleting there leaves the backup whole."""
    names = [path.name for path in (saved / "blobs").glob("??/*")]
    for name in names:
        replace(blob_path(tmp_path / "blobs", name), b"rot")
    restore(saved, opened("sqlite"), tmp_path / "blobs")
    store = FileBlobs(tmp_path / "blobs", clock=ManualClock())
    assert all(asyncio.run(store.verify(name)) for name in names)
    for name in names:
        asyncio.run(store.delete(name))
    assert restore(saved, opened("sqlite"), tmp_path / "again").blobs == 3


def test_the_manifest_is_plain_json(saved: Path) -> None:
    """Whoever finds the backup in ten years can read what it holds."""
    manifest = msgspec.json.decode((saved / "manifest.json").read_bytes())
    assert manifest["tables"]["files"]["rows"] == 3
    assert manifest["taken_at"] == "2026-01-01T00:00:00Z"
    assert msgspec.convert(manifest, Manifest).blobs == 3
    row = msgspec.json.decode((saved / "tables/files.jsonl").read_bytes().splitlines()[0])
    assert (row["id"], row["created_at"]) == ("file_0", 1_767_225_600_000_000)
