"""The database seam: plain synchronous functions over a connection, one transaction per call.

    user = await database.run(store.create_user, name="ada")      # a writing transaction
    user = await database.read(store.get_user, "user_…")          # a reading one

The function runs in a thread, so the event loop never waits for the database. SQLite has one
writer thread (`BEGIN IMMEDIATE`; a deferred transaction that turns into a writer fails under
contention) and a few readers; PostgreSQL has as many threads as pooled connections.

A function may be run again when PostgreSQL asks for it (deadlock, serialization), so it must touch
nothing but its connection. A caller that is cancelled stops waiting; the transaction still ends.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

from serai.clock import SystemClock
from serai.errors import DatabaseUnavailable, DiskFull, InvalidInput, SeraiError
from serai.storage.notices import Notices, take_announced

__all__ = ["Connection", "Database", "Dialect", "begin_with"]

P = ParamSpec("P")
R = TypeVar("R")
Dialect = Literal["sqlite", "postgresql"]

_ATTEMPTS = 4
_DEADLOCK_STATES = frozenset({"40001", "40P01"})
_DISK_FULL_STATE = "53100"


class Database:
    """Runs store functions, each in one transaction. Made by `open_sqlite` or `open_postgresql`.

    Raises DatabaseUnavailable where the database does not answer, DiskFull where it cannot grow,
    InvalidInput for a value that it cannot hold. Every one of them leaves nothing half-written.
    """

    def __init__(self, writer: Engine, reader: Engine, *, write_threads: int, read_threads: int) -> None:
        self._writer = writer
        self._reader = reader
        self._write_pool = ThreadPoolExecutor(write_threads, thread_name_prefix="database-write")
        self._read_pool = ThreadPoolExecutor(read_threads, thread_name_prefix="database-read")
        self.dialect: Dialect = "sqlite" if writer.dialect.name == "sqlite" else "postgresql"
        self.notices = Notices()
        self._seconds = SystemClock().monotonic
        self.observe: Callable[[Literal["read", "write"], float], None] = lambda mode, seconds: None
        """Told the seconds of every awaited transaction, its wait for a thread and a connection included."""

    @property
    def engine(self) -> Engine:
        """The engine that may write; for migrations and backups."""
        return self._writer

    async def run(self, function: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function(connection, …)` in one writing transaction, in a thread."""
        return await self._in_thread("write", lambda: self.run_sync(function, *args, **kwargs))

    async def read(self, function: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function(connection, …)` in one transaction that sees a single state and cannot write."""
        return await self._in_thread("read", lambda: self.read_sync(function, *args, **kwargs))

    def run_sync(self, function: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do as `run` does, on this thread."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._writer.begin() as connection:
                    take_announced(connection)
                    result = function(connection, *args, **kwargs)
                    announced = take_announced(connection)
            except exc.DBAPIError as error:
                if attempt < _ATTEMPTS and _sqlstate(error) in _DEADLOCK_STATES:
                    continue
                translated = _translate(error)
                if isinstance(translated, DatabaseUnavailable):
                    # The commit may have happened and its answer been lost: take anything as changed.
                    self.notices.dispatch_gap()
                raise translated from error
            except (exc.TimeoutError, OverflowError, UnicodeEncodeError) as error:
                raise _translate(error) from error
            for notice in announced:
                self.notices.dispatch(notice)
            return result
        raise AssertionError("the last attempt returns or raises")

    def read_sync(self, function: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do as `read` does, on this thread."""
        try:
            with self._reader.begin() as connection:
                return function(connection, *args, **kwargs)
        except (exc.DBAPIError, exc.TimeoutError, OverflowError, UnicodeEncodeError) as error:
            raise _translate(error) from error

    async def _in_thread(self, mode: Literal["read", "write"], call: Callable[[], R]) -> R:
        pool = self._write_pool if mode == "write" else self._read_pool
        started = self._seconds()
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, call)
        finally:
            self.observe(mode, self._seconds() - started)

    async def ping(self) -> None:
        """Ask the database something; raises DatabaseUnavailable."""
        await self.read(lambda connection: connection.execute(sa.text("SELECT 1")).scalar_one())

    async def close(self) -> None:
        """Let running transactions end, then close every connection."""
        await asyncio.get_running_loop().run_in_executor(None, self.close_sync)

    def close_sync(self) -> None:
        """Do as `close` does, on this thread."""
        self.notices.close()
        self._write_pool.shutdown()
        self._read_pool.shutdown()
        self._writer.dispose()
        self._reader.dispose()


def _sqlstate(error: exc.DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def _translate(error: Exception) -> SeraiError | Exception:
    """Return the error of ours for a driver's; defects (a bad statement, a broken constraint) stay as they are."""
    if isinstance(error, OverflowError | UnicodeEncodeError | exc.DataError):
        return InvalidInput("A value cannot be stored: a number out of range or a character that is not text.")
    if isinstance(error, exc.TimeoutError):
        return DatabaseUnavailable("The database is too busy: no connection became free in time.", retry_after=1)
    if not isinstance(error, exc.DBAPIError):
        return error
    reason = _sqlite_reason(error.orig) if isinstance(error.orig, sqlite3.Error) else _postgresql_reason(error)
    if reason == "full":
        return DiskFull("The database cannot grow: the disk is full.")
    if reason == "unavailable":
        return DatabaseUnavailable("The database does not answer.", retry_after=2)
    return error


def _sqlite_reason(error: sqlite3.Error) -> str | None:
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte of an extended result code
    if primary == sqlite3.SQLITE_FULL:
        return "full"
    unavailable = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
    return "unavailable" if primary in unavailable else None


def _postgresql_reason(error: exc.DBAPIError) -> str | None:
    state = _sqlstate(error)
    if state == _DISK_FULL_STATE:
        return "full"
    if state is None:  # the driver never got an answer
        return "unavailable" if isinstance(error, exc.OperationalError | exc.InterfaceError) else None
    # Classes: connection, resources, operator intervention, system, rolled back for another.
    # Single ones: lock not available, ended because the transaction did nothing for too long.
    return "unavailable" if state[:2] in ("08", "53", "57", "58", "40") or state in ("55P03", "25P03") else None


def begin_with(statement: str) -> Callable[[Connection], Any]:
    """Return a listener that starts each SQLite transaction with `statement`."""
    return lambda connection: connection.exec_driver_sql(statement)
