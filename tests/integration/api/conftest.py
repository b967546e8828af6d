"""A running application for the tests of the API: on SQLite, or on both databases."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.api import Running, running


@pytest.fixture
async def server(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Running]:
    """The application on SQLite."""
    async with running(tmp_path / "home") as started:
        yield started


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def server_on_both(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Running]:
    """The application, once on each database."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    async with running(tmp_path / "home", database_url=url) as started:
        yield started
