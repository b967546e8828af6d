"""What storage promises when its process is killed at any moment, or its disk is full.

This file is also the program of the processes that are killed: `python test_storage_kill.py <role> <folder>`.
"""

import asyncio
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Self

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serai.clock import ManualClock
from serai.errors import ConfigurationError, DiskFull
from serai.storage import schema
from serai.storage.backup import BackupRefused, backup, restore
from serai.storage.blobs import Blob, FileBlobs
from serai.storage.connect import open_sqlite
from serai.storage.home import Home
from serai.storage.links import link, record
from serai.storage.tables.blobs import blob_links, blobs

pytestmark = pytest.mark.fault
NOW = ManualClock().now()
PIECE = b"x" * 2**20


# The processes ---------------------------------------------------------------------------------


def say(text: str) -> None:
    """Tell the test what is done and safe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write_rows(folder: Path) -> None:
    """Write a blob and its link in a transaction, say its number, and go on without end."""
    database = open_sqlite(folder / "serai.db")
    number = database.run_sync(lambda c: c.execute(sa.select(sa.func.count()).select_from(blobs)).scalar_one())
    while True:
        database.run_sync(write_row, f"{number:064x}")
        say(f"{number:064x}")
        number += 1


def write_row(connection: Connection, digest: str) -> None:
    record(connection, Blob(digest=digest, size=1), NOW)
    link(connection, holder=f"file_{digest}", digest=digest, owner_id="ada")


def put_blobs(folder: Path) -> None:
    """Put blobs of 1 to 3 MiB, say the digest of each, and go on without end."""
    store = FileBlobs(folder / "blobs", clock=ManualClock())
    chance = random.Random(os.getpid())

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(chance.randint(1, 48)):
            yield chance.randbytes(65536)

    async def put() -> None:
        while True:
            say((await store.put(chunks(), max_bytes=2**23)).digest)

    asyncio.run(put())


def put_half(folder: Path) -> None:
    """Put the first half of a blob, say so, and wait."""
    store = FileBlobs(folder / "blobs", clock=ManualClock())

    async def chunks() -> AsyncIterator[bytes]:
        yield PIECE
        yield PIECE
        say("half")
        await asyncio.Event().wait()

    asyncio.run(store.put(chunks(), max_bytes=2**23))


def take_backup(folder: Path) -> None:
    """Take a backup, and say when it is there."""
    database = open_sqlite(folder / "serai.db")
    backup(database, folder / "blobs", folder / "saved", now=NOW, version="1")
    say("done")


def serve(folder: Path) -> None:
    """Hold the home as a server does, say so, and wait."""
    Home.open(folder / "home").lock()
    say("locked")
    sys.stdin.read()


ROLES = {role.__name__: role for role in (write_rows, put_blobs, put_half, take_backup, serve)}


class Child:
    """A process in one of the roles; killed when the block ends."""

    def __init__(self, role: str, folder: Path) -> None:
        command = [sys.executable, __file__, role, str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._said: IO[str] = self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.__exit__(None, None, None)

    def hear(self) -> str:
        """Return the next thing that it says."""
        line = self._said.readline()
        assert line, "the process ended by itself"
        return line.strip()

    def kill(self) -> list[str]:
        """Kill it with SIGKILL; return what it had said and nobody had heard yet."""
        self._process.kill()
        return [line.strip() for line in self._said.read().split("\n")[:-1]]

    @property
    def runs(self) -> bool:
        return self._process.poll() is None


# The tests -------------------------------------------------------------------------------------


def test_no_acknowledged_write_is_lost_by_a_kill(sqlite_path: Path, tmp_path: Path) -> None:
    """After each of 20 kills in the middle of writing the database is sound and has every write that was told of."""
    chance = random.Random(20)
    acknowledged: set[str] = set()
    for _ in range(20):
        with Child("write_rows", tmp_path) as child:
            acknowledged.update(child.hear() for _ in range(chance.randint(1, 40)))
            acknowledged.update(child.kill())
        with closing(sqlite3.connect(sqlite_path)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
        database = open_sqlite(sqlite_path)
        rows = database.read_sync(lambda c: set(c.execute(sa.select(blobs.c.digest)).scalars()))
        links = database.read_sync(lambda c: set(c.execute(sa.select(blob_links.c.digest)).scalars()))
        database.close_sync()
        assert acknowledged <= rows == links
        assert len(rows) <= len(acknowledged) + 20  # a kill may cut the telling, once each
    assert len(acknowledged) >= 100


def stored(folder: Path) -> list[Path]:
    return sorted((folder / "blobs").glob("??/*"))


def test_a_killed_upload_is_never_taken_for_a_blob(tmp_path: Path) -> None:
    """Half an upload has no digest's name; it is swept when it is old."""
    with Child("put_half", tmp_path) as child:
        assert child.hear() == "half"
        child.kill()
    assert stored(tmp_path) == []
    (left,) = (tmp_path / "blobs" / "incoming").iterdir()
    os.utime(left, (0, 0))
    store = FileBlobs(tmp_path / "blobs", clock=ManualClock())
    asyncio.run(store.sweep(NOW, lambda _: set()))
    assert list((tmp_path / "blobs" / "incoming").iterdir()) == []


def test_blobs_are_whole_after_kills(tmp_path: Path) -> None:
    """After each of 10 kills every blob that was told of is there, and every file under a digest has it."""
    chance = random.Random(10)
    told: set[str] = set()
    for _ in range(10):
        with Child("put_blobs", tmp_path) as child:
            told.update(child.hear() for _ in range(chance.randint(1, 8)))
            told.update(child.kill())
        store = FileBlobs(tmp_path / "blobs", clock=ManualClock())
        found = {path.name for path in stored(tmp_path)}
        assert told <= found
        for digest in found:
            assert asyncio.run(store.verify(digest))


@pytest.mark.parametrize("pattern", ["tables/*", "blobs/??/*", "manifest.json"])
def test_a_killed_backup_is_never_taken_for_one(sqlite_path: Path, tmp_path: Path, pattern: str) -> None:
    """Killed while it writes rows, blobs or its end, it has not the name; the next one is whole."""
    database = open_sqlite(sqlite_path)
    store = FileBlobs(tmp_path / "blobs", clock=ManualClock())
    for number in range(150):
        blob = asyncio.run(store.put(b"%d" % number, max_bytes=9))
        database.run_sync(write_row, blob.digest)
    partial, saved = tmp_path / "saved.partial", tmp_path / "saved"
    cut = 0
    for _ in range(5):
        with Child("take_backup", tmp_path) as child:
            while child.runs and not saved.exists() and not any(partial.glob(pattern)):
                pass
            child.kill()
        if saved.exists():  # it was faster than the kill: then it is whole
            target = open_sqlite(tmp_path / "whole.db")
            assert restore(saved, target, tmp_path / "restored").blobs == 150
            target.close_sync()
            (tmp_path / "whole.db").unlink()
            shutil.rmtree(saved)
            continue
        cut += 1
        with pytest.raises(BackupRefused, match="cut off"):
            backup(database, tmp_path / "blobs", saved, now=NOW, version="1")
        with pytest.raises(BackupRefused, match="no backup"):
            restore(saved, database, tmp_path / "restored")
        shutil.rmtree(partial)
    assert cut or pattern == "manifest.json"
    assert backup(database, tmp_path / "blobs", saved, now=NOW, version="1").blobs == 150
    database.close_sync()


def test_a_kill_gives_the_home_free(tmp_path: Path) -> None:
    """The lock of a killed server binds nobody."""
    home = Home.open(tmp_path / "home")
    with Child("serve", tmp_path) as child:
        assert child.hear() == "locked"
        with pytest.raises(ConfigurationError):
            home.lock()
    home.lock()
    home.unlock()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("NOT TESTED: this user may not mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_full_disk_keeps_nothing_half(small_disk: Path, sqlite_path: Path) -> None:
    """A blob, a backup and a private file that do not fit are refused as DiskFull and leave nothing."""
    store = FileBlobs(small_disk / "blobs", clock=ManualClock())

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 65536

    for data in (PIECE * 2, chunks()):
        with pytest.raises(DiskFull):
            asyncio.run(store.put(data, max_bytes=2**23))
    assert files_in(small_disk) == []

    home = Home.open(small_disk)
    home.write_private("key", b"old")
    with pytest.raises(DiskFull):
        home.write_private("key", PIECE * 2)
    assert [(path.name, path.read_bytes()) for path in files_in(small_disk)] == [("key", b"old")]

    database = open_sqlite(sqlite_path)
    database.run_sync(lambda c: [write_row(c, f"{number:064x}") for number in range(10_000)])
    with pytest.raises(DiskFull):
        backup(database, small_disk / "blobs", small_disk / "saved", now=NOW, version="1")
    database.close_sync()
    assert not list(small_disk.glob("saved*"))


def test_a_full_disk_under_the_database_is_told_and_passes(small_disk: Path) -> None:
    """A write that does not fit is DiskFull and undone; when there is space again, writing goes on."""
    (small_disk / "ballast").write_bytes(b"x" * 500_000)
    database = open_sqlite(small_disk / "serai.db")
    schema.upgrade(database)
    database.run_sync(write_row, "0" * 64)

    def write_many(connection: Connection) -> None:
        for number in range(1, 5000):
            write_row(connection, f"{number:064x}")

    with pytest.raises(DiskFull):
        database.run_sync(write_many)
    assert database.read_sync(lambda c: c.execute(sa.select(blobs.c.digest)).scalars().all()) == ["0" * 64]
    (small_disk / "ballast").unlink()
    database.run_sync(write_row, "1" * 64)
    database.close_sync()


if __name__ == "__main__":
    ROLES[sys.argv[1]](Path(sys.argv[2]))
