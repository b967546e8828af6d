"""What every test shares: the databases, the servers, and the rule that nothing is skipped in silence."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from serai.storage.connect import open_postgresql, open_sqlite
from serai.storage.database import Database
from serai.storage.schema import upgrade
from support.blocking import guard_event_loop
from support.servers import PostgresServer, RedisServer, find_postgresql, find_redis

CI = os.environ.get("CI", "").lower() in ("1", "true")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {
        "postgres": None if find_postgresql() else "PostgreSQL's binaries are not installed (apt install postgresql)",
        "redis": None if find_redis() else "the Redis server is not installed (apt install redis-server)",
    }
    no_device = None if shutil.which("nvidia-smi") else "there is no CUDA device (see 'make test-gpu')"
    for item in items:
        if no_device and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=no_device))
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                if CI:
                    raise pytest.UsageError(f"{item.nodeid} cannot run, and CI skips nothing: {reason}")
                item.add_marker(pytest.mark.skip(reason=f"NOT TESTED: {reason}"))


@pytest.fixture(autouse=True, scope="session")
def _quiet_logs() -> None:
    """Errors alone are shown, as one line of JSON: the development format is slow and long."""
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
    )


@pytest.fixture(scope="session", autouse=True)
def _event_loop_guard() -> Iterator[None]:
    """Every test fails where a coroutine of ours blocks the event loop."""
    with guard_event_loop():
        yield


@pytest.fixture
def anyio_backend() -> str:
    """The server runs on asyncio; so do the tests."""
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL server for this test process, with a migrated database named `template_serai`."""
    # Not below pytest's own folder: PostgreSQL runs as another user, and a parallel run closes that folder to it.
    with tempfile.TemporaryDirectory(prefix="serai-postgres-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        server = PostgresServer(Path(folder) / "server")
        server.start()
        database = open_postgresql(server.create("template_serai"), pool_size=1, listen=False)
        upgrade(database)
        database.close_sync()
        yield server
        server.stop()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis server for this test process."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite database to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    database = open_sqlite(path)
    upgrade(database)
    database.close_sync()
    return path


@pytest.fixture
def sqlite_path(tmp_path: Path, sqlite_template: Path) -> Path:
    """A migrated, empty SQLite database file of this test alone."""
    return Path(shutil.copy(sqlite_template, tmp_path / "serai.db"))


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a migrated, empty PostgreSQL database of this test alone."""
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = f"test_{next(_NUMBERS)}"
    yield server.create(name, template="template_serai")
    server.drop(name)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A migrated, empty database: the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        opened = open_sqlite(request.getfixturevalue("sqlite_path"))
    else:
        opened = open_postgresql(request.getfixturevalue("postgres_url"), pool_size=4)
    yield opened
    opened.close_sync()


def _numbers() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


_NUMBERS = _numbers()
