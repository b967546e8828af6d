"""Fixtures of the tests of serving."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from serai.storage.connect import open_sqlite
from serai.storage.database import Database
from unit.serving.stage import Stage, staged


@pytest.fixture
def sqlite(sqlite_path: Path) -> Iterator[Database]:
    """A migrated, empty database."""
    database = open_sqlite(sqlite_path)
    yield database
    database.close_sync()


@pytest.fixture
async def stage(sqlite: Database, tmp_path: Path) -> AsyncIterator[Stage]:
    """Serving with fake engines in threads."""
    async with staged(sqlite, tmp_path) as opened:
        yield opened
