"""A running application for the tests of the API: on SQLite, on both databases, or as a process of its own."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from support.api import Running, running
from support.process import ServerProcess, serving


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


@pytest.fixture(scope="session")
def spawned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One `serai serve` for the tests of this process that speak to a socket; without rate limits."""
    secret = "a secret for signing that the tests know"
    home = tmp_path_factory.mktemp("spawned") / "home"
    with serving(home, rate_limits="off", jwt_secret=secret, max_body_bytes=2**20) as server:
        yield server
