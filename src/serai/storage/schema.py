"""Bringing the schema to a revision. Alembic is imported only when there is something to do."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serai.errors import ConfigurationError, InvalidInput
from serai.storage.database import Database
from serai.storage.locks import Lock, hold

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0006"
"""The newest revision; a test holds it against the files in `migrations/versions`."""


def current(connection: Connection) -> str | None:
    """Return the revision of the database, or None for an empty one."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    row = connection.execute(sa.text("SELECT version_num FROM alembic_version")).first()
    return None if row is None else str(row[0])


def upgrade(database: Database, revision: str = "head") -> None:
    """Bring the database up to `revision`; one transaction, so a failure changes nothing."""
    target = HEAD if revision == "head" else revision

    def step(connection: Connection) -> None:
        hold(connection, Lock.SCHEMA)  # two servers that start together migrate once
        found = current(connection)
        if found == target:
            return
        if found is not None and found > HEAD:
            raise ConfigurationError(
                f"The database has schema {found}, which is newer than this server's {HEAD}.",
                hint="Start the newer server, or run its 'serai db downgrade' first.",
            )
        _move(connection, "upgrade", target)

    database.run_sync(step)


def downgrade(database: Database, revision: str) -> None:
    """Bring the database down to `revision` ('base' empties it); one transaction."""
    database.run_sync(_move, "downgrade", revision)


def _move(connection: Connection, way: Literal["upgrade", "downgrade"], revision: str) -> None:
    from alembic import command
    from alembic.util import CommandError

    move = command.upgrade if way == "upgrade" else command.downgrade
    try:
        move(_config(connection), revision)
    except CommandError:
        hint = f"Steps are named 0001 to {HEAD}; 'base' is the empty database."
        raise InvalidInput.at("revision", f"is not a step to which this database can {way}", hint=hint) from None


def _config(connection: Connection) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config
