"""The server's part that pulls, on each database."""

from pathlib import Path
from typing import Any

import pytest

from serai.storage.database import Database
from support.pulls import pulling


@pytest.fixture
def start(database: Database, tmp_path: Path) -> Any:
    def begin(url: str, **options: Any) -> Any:
        return pulling(database, options.pop("folder", tmp_path), url, **options)

    return begin
