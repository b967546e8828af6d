"""Reading the database of a model management service of the shape that this registry replaces.

Two tables: `models` (`model_id`, `version`, …) and `services` (`service_id`, `model_id`, …), before or
after that service learned of versions. Whatever other columns there are come along by their names.
The source is opened for reading alone.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from serai.errors import ConfigurationError, DatabaseUnavailable, InvalidInput

Row = Mapping[str, Any]

_TABLES = {
    "models": (frozenset({"model_id", "version"}), sa.text("SELECT * FROM models")),
    "services": (frozenset({"service_id", "model_id"}), sa.text("SELECT * FROM services")),
}
_SQLITE_HEAD = b"SQLite format 3\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyRows:
    """The rows of both tables, by column; values as the driver gives them."""

    models: tuple[Row, ...]
    services: tuple[Row, ...]


def read_legacy(source: str) -> LegacyRows:
    """Return the rows of `source`: the path of a SQLite file, or a postgresql:// URL.

    Both tables are read in one state. Raises InvalidInput for what is no such database,
    DatabaseUnavailable where PostgreSQL does not answer, ConfigurationError without its driver.
    """
    with _opened(source) as connection:
        found = {name: _read(connection, name) for name in _TABLES}
    return LegacyRows(models=found["models"], services=found["services"])


@contextmanager
def _opened(source: str) -> Iterator[Connection]:
    engine = _postgresql(source) if source.startswith(("postgresql://", "postgres://")) else _sqlite(Path(source))
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":  # its driver begins no transaction for reading
                connection.exec_driver_sql("BEGIN")
            yield connection
    except exc.DBAPIError:
        raise DatabaseUnavailable("The database to import from does not answer, or cannot be read.") from None
    finally:
        engine.dispose()


def _sqlite(path: Path) -> sa.Engine:
    if not path.is_file():
        raise InvalidInput("There is no such file to import from.", hint="Name a SQLite file or a postgresql:// URL.")
    with path.open("rb") as file:
        if file.read(len(_SQLITE_HEAD)) != _SQLITE_HEAD:
            raise InvalidInput("The file to import from is no SQLite database.")
    address = f"file:{quote(str(path.absolute()))}?mode=ro"
    return sa.create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(address, uri=True, isolation_level=None),
        poolclass=sa.pool.NullPool,
    )


def _postgresql(url: str) -> sa.Engine:
    target = sa.make_url(url.replace("postgres://", "postgresql://", 1)).set(drivername="postgresql+psycopg")
    options = "-c default_transaction_read_only=on -c timezone=UTC"
    try:
        return sa.create_engine(
            target,
            poolclass=sa.pool.NullPool,
            isolation_level="REPEATABLE READ",
            connect_args={"connect_timeout": 10, "options": options},
        )
    except ImportError:
        raise ConfigurationError(
            "The source is PostgreSQL, whose driver is not installed.", hint="pip install 'serai[postgres]'"
        ) from None


def _read(connection: Connection, table: str) -> tuple[Row, ...]:
    needed, query = _TABLES[table]
    if not sa.inspect(connection).has_table(table):
        raise InvalidInput(f"The database to import from has no table {table!r}.")
    result = connection.execute(query)
    missing = sorted(needed - set(result.keys()))
    if missing:
        raise InvalidInput(f"The table {table!r} of the database to import from has no column {missing[0]!r}.")
    return tuple(dict(row) for row in result.mappings())
