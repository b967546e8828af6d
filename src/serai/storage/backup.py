"""Backups: the database and the blobs together, in a form that either database can take back.

    manifest.json           format, schema revision, time, and of every table: rows, size, SHA-256
    tables/<name>.jsonl     a row a line: {"column": value}; bytes as {"$base64": "…"}, times in microseconds
    blobs/ab/<digest>       hard links where the disk allows it, else copies

A backup is taken while the server works: all tables are read in one transaction that sees a single
state, and nothing is collected until every blob of that state is in. It is written under another name
and renamed when it is whole and synced, so what has the name is whole.

It does not hold the key that encrypts the secret store, nor the one that signs tokens: keep those apart
from it, or the secrets that it holds are lost. It does hold password hashes: keep it private.
"""

import base64
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serai.errors import Conflict, InvalidInput
from serai.storage import schema
from serai.storage.blobs import blob_path, file_digest, incoming_path, keep_all, place
from serai.storage.database import Database
from serai.storage.home import disk_errors, make_folder, open_private, sync_folder
from serai.storage.tables.base import Json

FORMAT = 1
_MANIFEST = "manifest.json"
_BATCH = 500
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


class BackupRefused(Conflict):
    code = "BACKUP_REFUSED"


class BackupDamaged(InvalidInput):
    code = "BACKUP_DAMAGED"
    default_hint = "Nothing was restored. Take another backup; this one is not what was written."


class TableFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    rows: int
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a backup holds; `missing` are blobs that the database named and the disk had no more."""

    format: int
    version: str
    schema: str
    taken_at: datetime
    tables: dict[str, TableFile]
    blobs: int
    blob_bytes: int
    missing: tuple[str, ...]


def backup(database: Database, blobs_folder: Path, destination: Path, *, now: datetime, version: str) -> Manifest:
    """Write a backup into `destination` (missing or empty) and return what it holds; blocks for long.

    Memory is bounded whatever the size. `version` is the server's. Raises BackupRefused, DiskFull, and
    what the database raises; nothing is then left.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise BackupRefused("The place for the backup is not empty.", hint="Name a folder that does not exist yet.")
    partial = destination.with_name(destination.name + ".partial")
    make_folder(partial.parent)
    make_folder(blobs_folder)
    try:
        partial.mkdir(0o700)
    except FileExistsError:
        raise BackupRefused(
            "Another backup to this place is running, or was cut off.",
            hint="If none is running, remove the folder of that name that ends in .partial.",
        ) from None
    try:
        with disk_errors(), keep_all(blobs_folder):
            manifest = _write(database, blobs_folder, partial, now, version)
            partial.rename(destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(destination.parent)
    return manifest


def restore(source: Path, database: Database, blobs_folder: Path) -> Manifest:
    """Bring the backup `source` into a database without rows and into `blobs_folder`; blocks for long.

    Everything is verified before anything is written; blobs come first, then all rows in one
    transaction, then the schema is brought up to this server's. Raises BackupDamaged, BackupRefused
    (the database has rows, or the backup is of a newer server), DiskFull.
    """
    manifest = _verify(source)
    _prepare(database, manifest.schema)
    make_folder(incoming_path(blobs_folder).parent)
    with disk_errors(), keep_all(blobs_folder):
        for row in _blob_rows(source):
            if row["digest"] not in manifest.missing:
                _restore_blob(blob_path(source / "blobs", row["digest"]), blobs_folder, row["digest"])
        database.run_sync(_load, source, manifest)
    schema.upgrade(database)
    return manifest


def _write(database: Database, blobs_folder: Path, partial: Path, now: datetime, version: str) -> Manifest:
    (partial / "tables").mkdir(0o700)
    (partial / "blobs").mkdir(0o700)
    revision, tables = database.read_sync(_dump, partial / "tables")
    sync_folder(partial / "tables")
    count, size, missing = _save_blobs(partial, blobs_folder)
    manifest = Manifest(
        format=FORMAT,
        version=version,
        schema=revision,
        taken_at=now.astimezone(UTC),
        tables=tables,
        blobs=count,
        blob_bytes=size,
        missing=tuple(missing),
    )
    with open(partial / _MANIFEST, "xb", opener=open_private) as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest)))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(partial)
    return manifest


def _dump(connection: Connection, folder: Path) -> tuple[str, dict[str, TableFile]]:
    """Write every table of the database as it is now, whatever its revision."""
    revision = schema.current(connection)
    if revision is None:
        raise BackupRefused("The database is empty.", hint="Nothing was ever kept in it; is it the right one?")
    written = {}
    for table, order in _tables(connection):
        statement = sa.select(table).order_by(*order).execution_options(yield_per=_BATCH)
        rows = connection.execute(statement).mappings()
        written[table.name] = _write_rows(folder / f"{table.name}.jsonl", rows)
    return revision, written


def _write_rows(path: Path, rows: "sa.MappingResult") -> TableFile:
    digest, size, count = hashlib.sha256(), 0, 0
    with open(path, "xb", opener=open_private) as file:
        for row in rows:
            line = json.dumps(dict(row), default=_tagged, ensure_ascii=False, allow_nan=False).encode() + b"\n"
            digest.update(line)
            size += file.write(line)
            count += 1
        file.flush()
        os.fsync(file.fileno())
    return TableFile(rows=count, size=size, sha256=digest.hexdigest())


def _save_blobs(partial: Path, blobs_folder: Path) -> tuple[int, int, list[str]]:
    """Link or copy the blobs that the written rows name; return their number, their bytes, and who is missing."""
    count, size, missing = 0, 0, []
    folders = {partial / "blobs"}
    for row in _blob_rows(partial):
        target = blob_path(partial / "blobs", row["digest"])
        for folder in (target.parent.parent, target.parent):
            folder.mkdir(0o700, exist_ok=True)
            folders.add(folder)
        try:
            _link_or_copy(blob_path(blobs_folder, row["digest"]), target)
        except FileNotFoundError:
            missing.append(row["digest"])
        else:
            count, size = count + 1, size + row["size"]
    for folder in folders:
        sync_folder(folder)
    return count, size, missing


def _link_or_copy(source: Path, target: Path) -> None:
    """Give the bytes of `source` the new name `target`; both may share them, as a blob never changes."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with open(source, "rb", opener=open_private) as original, open(target, "xb", opener=open_private) as copy:
            shutil.copyfileobj(original, copy, 2**20)
            copy.flush()
            os.fsync(copy.fileno())


def _restore_blob(saved: Path, blobs_folder: Path, digest: str) -> None:
    temporary = incoming_path(blobs_folder)
    try:
        _link_or_copy(saved, temporary)
        place(blobs_folder, temporary, digest)
    finally:
        temporary.unlink(missing_ok=True)  # renaming a link onto another link of the same file leaves both


def _verify(source: Path) -> Manifest:
    """Return the manifest if every file of the backup is what was written."""
    try:
        manifest = msgspec.json.decode((source / _MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise BackupRefused(
            "This is no backup: it has no manifest.", hint="Name the folder that the backup was written to."
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BackupDamaged("The backup's manifest cannot be read.") from None
    if "blobs" not in manifest.tables:
        raise BackupDamaged("The backup's manifest names no blobs.")
    if manifest.format != FORMAT or manifest.schema > schema.HEAD:
        raise BackupRefused("The backup was made by a newer server.", hint="Restore it with that version or a later.")
    for name, entry in manifest.tables.items():
        if not name.isidentifier():
            raise BackupDamaged("The backup's manifest names a table that cannot be one.")
        _verify_file(source / "tables" / f"{name}.jsonl", entry.sha256)
    for row in _blob_rows(source):
        if row["digest"] not in manifest.missing:
            _verify_file(blob_path(source / "blobs", row["digest"]), row["digest"])
    return manifest


def _verify_file(path: Path, digest: str) -> None:
    try:
        found = file_digest(path)
    except OSError:
        raise BackupDamaged(f"{path.name} is missing from the backup, or cannot be read.") from None
    if found != digest:
        raise BackupDamaged(f"{path.name} is not what was written into the backup.")


def _prepare(database: Database, revision: str) -> None:
    """Bring a database without rows to the schema of the backup."""

    def look(connection: Connection) -> str | None:
        _refuse_rows(connection)
        return schema.current(connection)

    found = database.read_sync(look)
    if found is not None and found > revision:
        schema.downgrade(database, revision)
    else:
        schema.upgrade(database, revision)


def _load(connection: Connection, source: Path, manifest: Manifest) -> None:
    _refuse_rows(connection)
    tables = [table for table, _ in _tables(connection)]
    if {table.name for table in tables} != set(manifest.tables):
        raise BackupDamaged("The backup's tables are not those of its schema revision.")
    for table in tables:
        rows = (_from_json(table, row) for row in _read_rows(source, table.name))
        while batch := list(islice(rows, _BATCH)):
            connection.execute(sa.insert(table), batch)
    for name in _derived(connection):
        connection.execute(sa.insert(sa.table(name, sa.column(name))).values({name: "rebuild"}))


def _refuse_rows(connection: Connection) -> None:
    for table, _ in _tables(connection):
        if connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is not None:
            raise BackupRefused(
                "The database is in use: it has rows.", hint="Restore into a new database, or a new `home`."
            )


def _tables(connection: Connection) -> Iterator[tuple[sa.Table, list[sa.ColumnElement[Any]]]]:
    """Yield the tables that the database has, what others point to first, and for each an order of its rows.

    In that order a row comes after the row of its own table that it points to (a child after its
    parent). The tables are read from the database and not from the code, so a backup of any revision
    can be made and loaded; times are then plain integers. What is derived from other tables is left
    out, and made again.
    """
    inspector = sa.inspect(connection)
    derived = _derived(connection)
    for name, _ in inspector.get_sorted_table_and_fkc_names():
        if name is None or name == "alembic_version" or name.startswith(tuple(derived)):
            continue
        columns = [
            sa.Column(column["name"], Json if isinstance(column["type"], sa.JSON) else column["type"])
            for column in inspector.get_columns(name)
        ]
        table = sa.Table(name, sa.MetaData(), *columns)
        keys = inspector.get_foreign_keys(name)
        own = [c for key in keys if key["referred_table"] == name for c in key["constrained_columns"]]
        primary = inspector.get_pk_constraint(name)["constrained_columns"]
        yield table, [*(table.c[column].is_not(None) for column in own), *(table.c[column] for column in primary)]


def _derived(connection: Connection) -> list[str]:
    """Return SQLite's full text indexes. They hold no rows of their own; the tables inside begin with their names."""
    if connection.dialect.name != "sqlite":
        return []
    virtual = sa.text("SELECT name FROM sqlite_master WHERE sql LIKE 'CREATE VIRTUAL TABLE%'")
    return list(connection.execute(virtual).scalars())


def _blob_rows(folder: Path) -> Iterator[dict[str, Any]]:
    return _read_rows(folder, "blobs")


def _read_rows(folder: Path, table: str) -> Iterator[dict[str, Any]]:
    with open(folder / "tables" / f"{table}.jsonl", "rb", opener=open_private) as file:
        for line in file:
            yield json.loads(line)


def _tagged(value: object) -> dict[str, str]:
    if isinstance(value, bytes):
        return {"$base64": base64.b64encode(value).decode()}
    raise TypeError(f"a {type(value).__name__} has no form in a backup")


def _from_json(table: sa.Table, row: Mapping[str, Any]) -> dict[str, Any]:
    if row.keys() != set(table.c.keys()):
        raise BackupDamaged(f"A row of table {table.name} has other columns than its schema revision.")
    return {
        name: base64.b64decode(value["$base64"])
        if value is not None and isinstance(table.c[name].type, sa.LargeBinary)
        else value
        for name, value in row.items()
    }
