"""`serai db`: the schema, and backups. Works on the database itself, not through the server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serai.cli.output import show

if TYPE_CHECKING:
    from serai.settings import Settings
    from serai.storage.database import Database

app = typer.Typer(help="The database: upgrade, downgrade, backup, restore.", no_args_is_help=True)
Home = Annotated[Path | None, typer.Option(help="Folder of everything the server keeps.")]
Config = Annotated[Path | None, typer.Option(help="Settings file (TOML).")]


@app.command()
def upgrade(context: typer.Context, revision: str = "head", home: Home = None, config: Config = None) -> None:
    """Bring the schema up; a start of the server does so by itself."""
    from serai.storage import schema

    with _opened(home, config, alone=True) as (database, _):
        before = database.read_sync(schema.current)
        schema.upgrade(database, revision)
        show(context, {"from": before, "to": database.read_sync(schema.current)})


@app.command()
def downgrade(context: typer.Context, revision: str, home: Home = None, config: Config = None) -> None:
    """Bring the schema down to REVISION; the server must be stopped."""
    from serai.storage import schema

    with _opened(home, config, alone=True) as (database, _):
        before = database.read_sync(schema.current)
        schema.downgrade(database, revision)
        show(context, {"from": before, "to": database.read_sync(schema.current)})


@app.command()
def backup(context: typer.Context, destination: Path, home: Home = None, config: Config = None) -> None:
    """Write database and blobs, consistent with each other, into a new folder; the server may go on."""
    from serai import __version__
    from serai.clock import SystemClock
    from serai.storage.backup import backup as write

    with _opened(home, config, alone=False) as (database, settings):
        manifest = write(database, settings.blobs_folder, destination, now=SystemClock().now(), version=__version__)
    rows = sum(table.rows for table in manifest.tables.values())
    show(context, {"backup": str(destination), "schema": manifest.schema, "rows": rows, "blobs": manifest.blobs})


@app.command()
def restore(context: typer.Context, source: Path, home: Home = None, config: Config = None) -> None:
    """Load a backup into an empty database, of either kind; the server must be stopped."""
    from serai.storage.backup import restore as read

    with _opened(home, config, alone=True) as (database, settings):
        manifest = read(source, database, settings.blobs_folder)
    rows = sum(table.rows for table in manifest.tables.values())
    show(context, {"restored": str(source), "schema": manifest.schema, "rows": rows, "blobs": manifest.blobs})


@contextmanager
def _opened(home: Path | None, config: Path | None, *, alone: bool) -> Iterator[tuple["Database", "Settings"]]:
    """Open the database; `alone` holds the home, so that no server runs on it meanwhile."""
    from serai import settings as settings_module
    from serai.app import open_database
    from serai.storage.home import Home as HomeFolder

    settings = settings_module.load(file=config, overrides={"home": home})
    folder = HomeFolder.open(settings.home)
    if alone:
        folder.lock()
    try:
        database = open_database(settings)
        try:
            yield database, settings
        finally:
            database.close_sync()
    finally:
        if alone:
            folder.unlock()
