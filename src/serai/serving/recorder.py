"""Decisions on their way to the database: in the background, in batches, and never in the way of an answer."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from serai.errors import SeraiError
from serai.serving.store import DecisionRow, add_decisions
from serai.storage.database import Database

log = structlog.get_logger(__name__)

BATCH: Final = 256
GATHERED_S: Final = 0.1
"""Writes are this far apart, so that the calls of a busy server share commits; a lone call is written at once."""
_RETRY_S: Final = 1.0


class DecisionRecorder:
    """Takes rows without waiting and writes them. What does not fit, or cannot be written, is counted and logged.

    While the database is away the rows stay here, at most `bound` of them.
    """

    def __init__(self, database: Database, *, on_dropped: Callable[[int], None], bound: int = 10_000) -> None:
        self._database = database
        self._on_dropped = on_dropped
        self._bound = bound
        self._rows: deque[DecisionRow] = deque()
        self._arrived = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, row: DecisionRow) -> None:
        """Take a row; never waits. Over the bound it is dropped."""
        if len(self._rows) >= self._bound:
            self._on_dropped(1)
            return
        self._rows.append(row)
        self._arrived.set()
        if self._task is None:
            self._task = asyncio.create_task(self._write_all(), name="decisions")

    async def close(self) -> None:
        """Write what is here; what the database does not take now is dropped, counted and logged."""
        self._closing.set()
        self._arrived.set()
        if self._task is not None:
            await self._task
            self._task = None
        if self._rows:
            log.error("decisions_not_stored", count=len(self._rows))
            self._on_dropped(len(self._rows))
            self._rows.clear()

    async def _write_all(self) -> None:
        while self._rows or not self._closing.is_set():
            await self._arrived.wait()
            self._arrived.clear()
            while self._rows:
                written = await self._write()
                if not written and self._closing.is_set():
                    return
                if not written or len(self._rows) < BATCH:
                    await self._pause(GATHERED_S if written else _RETRY_S)

    async def _write(self) -> bool:
        """Write the first batch; say whether to go on. Rows that the database refuses for good are dropped."""
        batch = [self._rows[number] for number in range(min(BATCH, len(self._rows)))]
        try:
            await self._database.run(add_decisions, batch)
        except SeraiError as error:
            log.warning("decisions_waiting", count=len(self._rows), code=error.code)
            return False
        except Exception:
            log.exception("decisions_refused", count=len(batch))
            self._on_dropped(len(batch))
        for _ in batch:
            self._rows.popleft()
        return True

    async def _pause(self, seconds: float) -> None:
        """Wait before the next write; a close does not wait."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()
