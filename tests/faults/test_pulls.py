"""Pulls whose server is killed with SIGKILL, and hubs that fail in the middle."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serai.clock import SystemClock
from serai.ids import new_id
from serai.jobs import store
from serai.jobs.model import Job, NewJob
from serai.storage.connect import open_sqlite
from serai.storage.database import Database
from support.hub_server import HubServer, safetensors
from support.pulls import pulling
from support.waiting import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.fault]

REPO = "acme/tiny"
CLOCK = SystemClock()
TESTS = Path(__file__).parents[1]
FIRST, SECOND = safetensors(300_000, seed=1), safetensors(700_000, seed=2)
FILES = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": FIRST,
    "model-00002-of-00002.safetensors": SECOND,
}
BIG = "model-00002-of-00002.safetensors"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer({REPO: FILES}) as server:
        yield server


@contextlib.contextmanager
def a_server(database: Path, folder: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server that pulls, in a process of its own; it is killed with the block."""
    command = [sys.executable, "-m", "support.pulls", "--database", str(database), "--folder", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    process = subprocess.Popen([*command, "--url", url], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait(30)
        process.stdout.close()


def put(database: Database) -> Job:
    payload = {"model": REPO, "quantize": "no"}
    new = NewJob(
        id=new_id("job"),
        kind="pull",
        version=1,
        payload=payload,
        owner_id="user_ann",
        resource="pulls",
        max_queued=None,
    )
    return database.run_sync(store.enqueue, CLOCK, new)


def on_disk(folder: Path) -> dict[str, int]:
    """Return the bytes of each part and each finished blob of the folder."""
    found = [*(folder / "models" / "partial").glob("*"), *(folder / "models" / "blobs").glob("[!.]*")]
    return {path.name: path.stat().st_size for path in found if path.suffix != ".etag"}


async def test_a_killed_pull_goes_on_and_fetches_no_finished_byte_again(
    hub: HubServer, sqlite_path: Path, tmp_path: Path
) -> None:
    """After SIGKILL in mid-file the next server asks for what is not on the disk, and for nothing else."""
    database = open_sqlite(sqlite_path)
    held = hub.hold(BIG, at=900_000)
    with a_server(sqlite_path, tmp_path, hub.url) as server:
        job = put(database)
        assert await asyncio.to_thread(held.reached.wait, 60)
        await asyncio.to_thread(wait_until, lambda: len(FIRST) in on_disk(tmp_path).values(), 60)
        await asyncio.to_thread(wait_until, lambda: max(on_disk(tmp_path).values()) > len(FIRST) + 2**17, 60)
        server.send_signal(signal.SIGKILL)
        server.wait(30)
    held.release.set()
    part = max(on_disk(tmp_path).values())
    assert len(FIRST) < part <= 900_000
    asked = len(hub.requests)
    async with pulling(database, tmp_path, hub.url) as puller:
        ended = await puller.ended(job)
        version = await puller.version("tiny@1.0.0")
        assert puller.files.verify("tiny", "1.0.0", version.files) == ()
    database.close_sync()
    assert ended.status == "succeeded", ended.error
    assert ended.attempts == 2
    later = [(path, headers.get("range")) for _, path, headers in hub.requests[asked:] if "/cdn/" in path]
    assert later == [(f"/cdn/{REPO}/{hub.commit(REPO)}/{BIG}", f"bytes={part}-")]
    assert ended.result is not None
    assert ended.result["fetched_bytes"] <= len(SECOND) - part + len(FILES["config.json"])


async def test_a_server_killed_before_the_file_is_verified_leaves_nothing_usable(
    hub: HubServer, sqlite_path: Path, tmp_path: Path
) -> None:
    """A part never has the name of a blob or of a version's file."""
    database = open_sqlite(sqlite_path)
    held = hub.hold(BIG, at=len(SECOND) - 1)
    with a_server(sqlite_path, tmp_path, hub.url) as server:
        put(database)
        assert await asyncio.to_thread(held.reached.wait, 60)
        server.send_signal(signal.SIGKILL)
        server.wait(30)
    held.release.set()
    database.close_sync()
    models = tmp_path / "models"
    assert not [path for path in (models / "versions").rglob("*") if path.is_file()]
    assert {path.stat().st_size for path in (models / "blobs").iterdir()} <= {len(FIRST), 2}


async def test_many_kills_end_in_one_version_with_true_bytes(
    hub: HubServer, sqlite_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the server dies, the job ends once, with every byte as announced."""
    database = open_sqlite(sqlite_path)
    job: Any = None
    for at in (300_000, 300_000):
        held = hub.hold(BIG, at=at)
        with a_server(sqlite_path, tmp_path, hub.url) as server:
            job = job or put(database)
            assert await asyncio.to_thread(held.reached.wait, 60)
            server.send_signal(signal.SIGKILL)
            server.wait(30)
        held.release.set()
    async with pulling(database, tmp_path, hub.url) as puller:
        ended = await puller.ended(job)
        version = await puller.version("tiny@1.0.0")
        assert puller.files.verify("tiny", "1.0.0", version.files) == ()
        assert len((await puller.see()).models["tiny"].candidates) == 1
    database.close_sync()
    assert ended.status == "succeeded", ended.error
    assert sum(file.size for file in version.files) == sum(map(len, FILES.values()))


async def test_a_source_that_dies_and_comes_back_costs_no_byte_twice(
    hub: HubServer, database: Database, tmp_path: Path
) -> None:
    """Cut off again and again in one file, the pull ends with each byte sent once."""
    for at in (400_000, 300_000, 200_000):
        hub.cut(BIG, at=at)
    async with pulling(database, tmp_path, hub.url) as puller:
        result = await puller.result(REPO, quantize="no")
    assert result["fetched_bytes"] == sum(map(len, FILES.values()))
    assert hub.served[BIG] == len(SECOND)
