"""How much memory units were measured to take: known at once, remembered across starts."""

import asyncio
from collections.abc import Mapping
from typing import Protocol

import structlog

from serai.clock import Clock
from serai.errors import SeraiError
from serai.runtime import store
from serai.runtime.model import UnitId
from serai.storage.database import Database

_log = structlog.get_logger(__name__)


class Footprints(Protocol):
    """What was measured, by unit: the digest of the weights, engine, quantization, kind of device. Never blocks."""

    def get(self, unit: UnitId) -> int | None:
        """Return the most bytes that a unit was measured to take; None for one that was never loaded."""

    def put(self, unit: UnitId, size: int) -> None:
        """Remember what was measured; a smaller figure than before changes nothing."""


class MemoryFootprints:
    """Forgets everything with the process."""

    def __init__(self, known: Mapping[UnitId, int] | None = None) -> None:
        self._known = dict(known or {})

    def get(self, unit: UnitId) -> int | None:
        return self._known.get(unit)

    def put(self, unit: UnitId, size: int) -> None:
        self._known[unit] = max(size, self._known.get(unit, 0))


class DatabaseFootprints:
    """Kept in memory and in the database: read by `open`, written in the background, complete after `close`.

    A write that fails is logged and made again with the next one: at worst a model is measured anew.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[UnitId, int] = {}
        self._unwritten: dict[UnitId, int] = {}
        self._writing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Read what earlier starts, and other servers, have measured."""
        self._known = await self._database.read(store.footprints)

    def get(self, unit: UnitId) -> int | None:
        return self._known.get(unit)

    def put(self, unit: UnitId, size: int) -> None:
        if size <= self._known.get(unit, 0):
            return
        self._known[unit] = self._unwritten[unit] = size
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write(), name="footprints")

    async def close(self) -> None:
        """Return when everything is written, or could not be."""
        if self._writing is not None:
            await self._writing
        await self._write()

    async def _write(self) -> None:
        while self._unwritten:
            written, self._unwritten = self._unwritten, {}
            try:
                await self._database.run(store.put_footprints, self._clock, written)
            except SeraiError as error:
                self._unwritten = {**written, **self._unwritten}
                _log.warning("footprints_not_written", units=len(self._unwritten), problem=error.code)
                return
