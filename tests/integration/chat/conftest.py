"""Fixtures of the tests of chats."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from serai.storage.connect import open_sqlite
from serai.storage.database import Database
from support.chat_stage import ChatStage, chatting


@pytest.fixture
def sqlite(sqlite_path: Path) -> Iterator[Database]:
    """A migrated, empty database."""
    database = open_sqlite(sqlite_path)
    yield database
    database.close_sync()


@pytest.fixture
async def chats(sqlite: Database, tmp_path: Path, anyio_backend: str) -> AsyncIterator[ChatStage]:
    """The chat routes over fake engines in threads."""
    async with chatting(sqlite, tmp_path) as opened:
        yield opened
