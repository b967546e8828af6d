"""Fixtures: serving on both databases."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serai.storage.database import Database
from unit.serving.stage import Stage, staged


@pytest.fixture
async def stage(database: Database, tmp_path: Path) -> AsyncIterator[Stage]:
    """Serving with fake engines in threads."""
    async with staged(database, tmp_path) as opened:
        yield opened
