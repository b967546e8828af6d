"""`serai db`: the schema, and backups. Works on the database itself, not through the server."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serai.cli.changes import DryRun
from serai.cli.output import REFUSED, options_of, show

if TYPE_CHECKING:
    from serai.registry.legacy import Choices, Note
    from serai.settings import Settings
    from serai.storage.database import Connection, Database
    from serai.storage.home import Home as HomeFolder
    from serai.storage.legacy import LegacyRows

app = typer.Typer(help="The database: upgrade, downgrade, backup, restore, import-legacy.", no_args_is_help=True)
Home = Annotated[Path | None, typer.Option(help="Folder of everything the server keeps.")]
Config = Annotated[Path | None, typer.Option(help="Settings file (TOML).")]


@app.command()
def upgrade(context: typer.Context, revision: str = "head", home: Home = None, config: Config = None) -> None:
    """Bring the schema up; a start of the server does so by itself."""
    from serai.storage import schema

    with opened(home, config, alone=True) as (database, _, _):
        before = database.read_sync(schema.current)
        schema.upgrade(database, revision)
        show(context, {"from": before, "to": database.read_sync(schema.current)})


@app.command()
def downgrade(context: typer.Context, revision: str, home: Home = None, config: Config = None) -> None:
    """Bring the schema down to REVISION; the server must be stopped."""
    from serai.storage import schema

    with opened(home, config, alone=True) as (database, _, _):
        before = database.read_sync(schema.current)
        schema.downgrade(database, revision)
        show(context, {"from": before, "to": database.read_sync(schema.current)})


@app.command()
def backup(context: typer.Context, destination: Path, home: Home = None, config: Config = None) -> None:
    """Write database and blobs, consistent with each other, into a new folder; the server may go on."""
    from serai import __version__
    from serai.clock import SystemClock
    from serai.storage.backup import backup as write

    with opened(home, config, alone=False) as (database, settings, _):
        manifest = write(database, settings.blobs_folder, destination, now=SystemClock().now(), version=__version__)
    rows = sum(table.rows for table in manifest.tables.values())
    told = {"backup": str(destination), "schema": manifest.schema, "rows": rows, "blobs": manifest.blobs}
    show(context, {**told, "missing_blobs": list(manifest.missing)})
    if manifest.missing:  # the backup is whole but for blobs that the disk had lost before
        raise typer.Exit(REFUSED)


@app.command()
def restore(context: typer.Context, source: Path, home: Home = None, config: Config = None) -> None:
    """Load a backup into an empty database, of either kind; the server must be stopped."""
    from serai.storage.backup import restore as read

    with opened(home, config, alone=True) as (database, settings, _):
        manifest = read(source, database, settings.blobs_folder)
    rows = sum(table.rows for table in manifest.tables.values())
    show(context, {"restored": str(source), "schema": manifest.schema, "rows": rows, "blobs": manifest.blobs})


@app.command("import-legacy")
def import_legacy(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A SQLite file or a postgresql:// URL; it is only read.")],
    task: Annotated[list[str] | None, typer.Option(metavar="OLD=NEW", help="What a task is here; repeated.")] = None,
    rename_model: Annotated[list[str] | None, typer.Option(metavar="OLD=NEW", help="Another id; repeated.")] = None,
    rename_service: Annotated[list[str] | None, typer.Option(metavar="OLD=NEW", help="Another id; repeated.")] = None,
    dry_run: DryRun = False,
    home: Home = None,
    config: Config = None,
) -> None:
    """Take over models and services of a model management service (docs/how-to/versioning.md); all or nothing."""
    from serai.clock import SystemClock
    from serai.registry.legacy import Choices
    from serai.storage import schema
    from serai.storage.legacy import read_legacy

    choices = Choices(tasks=_pairs(task), models=_pairs(rename_model), services=_pairs(rename_service))
    rows = read_legacy(source)
    with opened(home, config, alone=True) as (database, settings, _):
        schema.upgrade(database)
        notes = _imported(database, settings, rows, choices, SystemClock().now(), dry_run=dry_run)
    show(context, [asdict(note) for note in notes], ("kind", "id", "note"))
    if not options_of(context).as_json:
        counts = f"{len({row['model_id'] for row in rows.models})} models and {len(rows.services)} services"
        print(f"Nothing was changed; {counts} can be imported." if dry_run else f"Imported {counts}.")


class _Rehearsed(Exception):
    """Leaves a transaction with the report of what it would have done."""

    def __init__(self, notes: "Sequence[Note]") -> None:
        super().__init__("rehearsed")
        self.notes = notes


def _imported(
    database: "Database", settings: "Settings", rows: "LegacyRows", choices: "Choices", at: datetime, *, dry_run: bool
) -> "Sequence[Note]":
    from serai.app import registry_rules
    from serai.registry import legacy
    from serai.registry.registry import Registry
    from serai.registry.seed import seed

    def step(connection: "Connection") -> "Sequence[Note]":
        registry = Registry(database, registry_rules(settings))
        try:
            seed(connection, registry, at)  # as a first start does; afterwards the registry is not empty any more
            notes = legacy.import_legacy(connection, registry, rows, choices, at)
        finally:
            registry.close()
        if dry_run:
            raise _Rehearsed(notes)
        return notes

    try:
        return database.run_sync(step)
    except _Rehearsed as rehearsed:
        return rehearsed.notes


def _pairs(given: list[str] | None) -> dict[str, str]:
    pairs = [text.rpartition("=") for text in given or ()]
    if not all(equals and new for _, equals, new in pairs):
        raise typer.BadParameter("is written OLD=NEW", param_hint="--task, --rename-model or --rename-service")
    return {old: new for old, _, new in pairs}


@contextmanager
def opened(
    home: Path | None, config: Path | None, *, alone: bool
) -> Iterator[tuple["Database", "Settings", "HomeFolder"]]:
    """Open the database that the settings name; `alone` holds the home, so that no server runs on it meanwhile."""
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
            yield database, settings, folder
        finally:
            database.close_sync()
    finally:
        if alone:
            folder.unlock()
