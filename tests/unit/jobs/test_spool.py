"""The text of a running job, in memory and in its file."""

import asyncio
import resource
import signal
from pathlib import Path

import pytest

from serai.errors import DiskFull
from serai.events import Event, Text
from serai.jobs.model import OutputTooLarge
from serai.jobs.spool import Spool

pytestmark = pytest.mark.anyio


async def read_all(spool: Spool) -> list[Event]:
    found: list[Event] = []
    offset = 0
    while offset < spool.size:
        for offset, event in await spool.read(offset):  # noqa: B007, B020 - the offset is the reader's place
            found.append(event)
    return found


async def test_text_is_read_across_file_and_memory(tmp_path: Path) -> None:
    """What was written and what waits are one stream; a delta larger than one read is one event."""
    spool = Spool(tmp_path / "a" / "text")
    events = [Text(delta=f"{n}\n" * (n * 100), index=n % 3) for n in range(60)] + [Text(delta="x" * 600_000)]
    for number, event in enumerate(events):
        spool.add(event)
        if number % 7 == 0:
            await spool.flush()
    assert await read_all(spool) == events
    await spool.flush()
    assert spool.unwritten == 0
    assert await read_all(spool) == events


async def test_text_that_is_added_during_a_flush_is_not_lost(tmp_path: Path) -> None:
    """The writer's thread and the loop do not disturb each other."""
    spool = Spool(tmp_path / "text")
    events = [Text(delta=str(n)) for n in range(500)]

    async def add() -> None:
        for event in events:
            spool.add(event)
            await asyncio.sleep(0)

    async def flush() -> None:
        for _ in range(50):
            await spool.flush()

    await asyncio.gather(add(), flush(), flush())
    assert await read_all(spool) == events


async def test_a_full_disk_loses_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    """A write that the system refuses half-way is repeated at the same place."""
    spool = Spool(tmp_path / "text")
    events = [Text(delta="x" * 1000) for _ in range(50)]
    for event in events:
        spool.add(event)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(DiskFull):
            await spool.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert await read_all(spool) == events
    await spool.flush()
    assert await read_all(spool) == events


async def test_a_spool_is_bounded(tmp_path: Path) -> None:
    """The text that would pass the bound is refused."""
    spool = Spool(tmp_path / "text", max_bytes=100)
    spool.add(Text(delta="x" * 50))
    with pytest.raises(OutputTooLarge):
        spool.add(Text(delta="x" * 50))
