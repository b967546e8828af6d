"""Opening the database that the settings name."""

import os
import secrets
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Engine

from serai.errors import ConfigurationError
from serai.storage.database import Database, begin_with

# Magic numbers of file systems on which locks and mmap of SQLite are not reliable (linux/magic.h).
_NETWORK_FILE_SYSTEMS = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x73757245: "Coda",
    0x5346414F: "AFS",
    0x01021997: "9P",
    0x00C36400: "Ceph",
    0x47504653: "GPFS",
    0x0BD00BD0: "Lustre",
    0x65735546: "FUSE",
}

# A peer that vanished without a word is noticed within half a minute; a listener would never write, and never know.
_KEEPALIVES: dict[str, Any] = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}


def open_sqlite(path: Path, *, readers: int = 4, timeout_s: float = 10.0) -> Database:
    """Open the database file at `path` (made with mode 0600 if missing).

    Raises ConfigurationError where the file lies on a network file system.
    """
    refuse_network_file_system(path.parent)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    writer = _sqlite_engine(path, pool_size=1, timeout_s=timeout_s)
    reader = _sqlite_engine(path, pool_size=readers, timeout_s=timeout_s)
    event.listen(writer, "begin", begin_with("BEGIN IMMEDIATE"))
    event.listen(reader, "begin", begin_with("BEGIN"))
    event.listen(reader, "connect", lambda raw, _: raw.execute("PRAGMA query_only = ON"))
    return Database(writer, reader, write_threads=1, read_threads=readers)


def open_postgresql(
    url: str, *, pool_size: int = 8, timeout_s: float = 10.0, idle_s: float | None = None, listen: bool = True
) -> Database:
    """Open the PostgreSQL database at `url`; connections are made when they are needed.

    `idle_s`: how long a transaction may do nothing before the database ends it, at least half a minute
    by default. `listen`: hear what other servers announce. Raises ConfigurationError without the driver.
    """
    try:
        import psycopg
    except ImportError:
        raise ConfigurationError(
            "database_url names PostgreSQL, whose driver is not installed.", hint="pip install 'serai[postgres]'"
        ) from None
    target = sa.make_url(url).set(drivername="postgresql+psycopg")
    milliseconds = int(timeout_s * 1000)
    patience = max(milliseconds, 30_000)
    idle = patience if idle_s is None else int(idle_s * 1000)
    # A server that is stopped in the middle of a transaction must not keep its row locks for ever.
    options = (
        f"-c timezone=UTC -c lock_timeout={milliseconds} -c statement_timeout={patience} "
        f"-c idle_in_transaction_session_timeout={idle}"
    )
    origin = secrets.token_hex(8)
    engine = sa.create_engine(
        target,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout_s,
        pool_pre_ping=True,
        hide_parameters=True,  # an exception's text must not carry what users wrote into the logs
        connect_args={"connect_timeout": max(2, int(timeout_s)), "options": options, **_KEEPALIVES},
        execution_options={"origin": origin},
    )
    reader = engine.execution_options(postgresql_readonly=True, isolation_level="REPEATABLE READ")
    # Both share the pool; writers that wait for a lock must leave connections to the readers.
    writing = max(1, pool_size // 2)
    database = Database(engine, reader, write_threads=writing, read_threads=max(1, pool_size - writing))
    if listen:
        conninfo = target.set(drivername="postgresql").render_as_string(hide_password=False)
        database.notices.listen(
            lambda: psycopg.connect(conninfo, autocommit=True, connect_timeout=5, **_KEEPALIVES), origin
        )
    return database


def refuse_network_file_system(folder: Path) -> None:
    """Raise ConfigurationError if `folder` lies where SQLite's locks cannot be trusted."""
    name = _NETWORK_FILE_SYSTEMS.get(_file_system_type(folder))
    if name is not None:
        raise ConfigurationError(
            f"{folder} lies on a network file system ({name}), where SQLite would lose data.",
            hint="Choose a `home` on a local disk, or set `database_url` to a PostgreSQL database.",
        )


def _file_system_type(folder: Path) -> int:
    """Return f_type of statfs(2), or 0 where the platform does not tell."""
    import ctypes
    import sys

    if sys.platform != "linux":
        return 0
    buffer = (ctypes.c_long * 32)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(folder), buffer) != 0:
        return 0
    return int(buffer[0]) & 0xFFFFFFFF


def _sqlite_engine(path: Path, *, pool_size: int, timeout_s: float) -> Engine:
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        poolclass=sa.pool.QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout_s,
        hide_parameters=True,
        connect_args={"check_same_thread": False, "timeout": timeout_s},
    )

    @event.listens_for(engine, "connect")
    def _configure(raw: Any, _: Any) -> None:
        raw.isolation_level = None  # transactions are begun by the listener, not by the driver
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute("PRAGMA synchronous = FULL")
        raw.execute("PRAGMA foreign_keys = ON")
        raw.execute(f"PRAGMA busy_timeout = {int(timeout_s * 1000)}")
        raw.execute("PRAGMA trusted_schema = OFF")

    return engine
