"""An empty database for each test of the registry, without the cost of making one on PostgreSQL."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from serai.clock import ManualClock
from serai.storage.connect import open_postgresql, open_sqlite
from serai.storage.database import Database
from serai.storage.tables import metadata
from support.registry import Desk, Opener


@pytest.fixture(scope="session")
def emptied_postgresql(request: pytest.FixtureRequest) -> Iterator[Database]:
    """One migrated PostgreSQL database that nobody listens to; `registry_database` empties it before each use."""
    server = request.getfixturevalue("postgres_server")
    opened = open_postgresql(server.create("emptied", template="template_serai"), pool_size=8, listen=False)
    yield opened
    opened.close_sync()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def registry_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A migrated, empty database: the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "postgresql":
        opened = request.getfixturevalue("emptied_postgresql")
        empty(opened)
        yield opened
        return
    opened = open_sqlite(request.getfixturevalue("sqlite_path"))
    yield opened
    opened.close_sync()


def empty(database: Database) -> None:
    """Take every row away; TRUNCATE asks no row's trigger."""
    names = ", ".join(f'"{table.name}"' for table in metadata.sorted_tables)
    database.run_sync(lambda connection: connection.execute(sa.text(f"TRUNCATE {names} CASCADE")))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty_databases(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Database]]:
    """Gives an empty database each time it is called, for the examples of a test; one at a time is open."""
    opened: list[Database] = []

    def another() -> Database:
        if request.param == "postgresql":
            database: Database = request.getfixturevalue("emptied_postgresql")
            empty(database)
            return database
        while opened:
            opened.pop().close_sync()
        template: Path = request.getfixturevalue("sqlite_template")
        opened.append(open_sqlite(Path(shutil.copy(template, tmp_path / "example.db"))))
        return opened[-1]

    yield another
    for database in opened:
        database.close_sync()


@pytest.fixture
def start(registry_database: Database) -> Iterator[Opener]:
    """Starts registries on one empty database, each with rules of its own; they stand for servers."""
    opened: list[Desk] = []

    def another(clock: ManualClock | None = None, **rules: Any) -> Desk:
        opened.append(Desk(registry_database, clock=clock, **rules))
        return opened[-1]

    yield another
    for desk in opened:
        desk.registry.close()


@pytest.fixture
def desk(start: Opener) -> Desk:
    """One registry with the rules as they come."""
    return start()
