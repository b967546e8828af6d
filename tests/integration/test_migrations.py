"""The schema's history: every step up and down, with rows in every table, on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from serai.errors import ConfigurationError
from serai.storage import migrations, schema
from serai.storage.connect import open_postgresql, open_sqlite
from serai.storage.database import Database
from serai.storage.tables import metadata
from support.rows import Rows, contents, fill

SCRIPTS = ScriptDirectory(str(Path(migrations.__file__).parent))
REVISIONS = [script.revision for script in reversed(list(SCRIPTS.walk_revisions()))]
DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@pytest.fixture(params=DATABASES)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database in which nothing was ever made."""
    if request.param == "sqlite":
        database = open_sqlite(tmp_path / "empty.db")
    else:
        server = request.getfixturevalue("postgres_server")
        name = f"empty_{tmp_path.parent.name}_{tmp_path.name}".lower()[:60]
        database = open_postgresql(server.create(name), pool_size=1, listen=False)
    yield database
    database.close_sync()


def described(connection: Connection) -> dict[str, Any]:
    """Return all that the database says of its tables."""
    inspector = sa.inspect(connection)
    found = {}
    for table in inspector.get_table_names():
        if table != "alembic_version":
            found[table] = {
                "columns": sorted(
                    (c["name"], repr(c["type"]), c["nullable"], c["default"], c.get("computed"), c.get("identity"))
                    for c in inspector.get_columns(table)
                ),
                "primary": inspector.get_pk_constraint(table),
                "foreign": sorted(inspector.get_foreign_keys(table), key=str),
                "unique": sorted(inspector.get_unique_constraints(table), key=str),
                "checks": sorted(inspector.get_check_constraints(table), key=str),
                "indexes": sorted(described_index(index) for index in inspector.get_indexes(table)),
            }
    return found


def described_index(index: Any) -> list[tuple[str, str]]:
    options = index.pop("dialect_options", {})  # holds the condition of a partial index, as an object
    return sorted((name, str(value)) for name, value in {**index, **options}.items())


def common(rows: Rows, names: dict[str, set[str]]) -> Rows:
    """Return `rows` with the tables and columns in `names` alone."""
    return {
        table: [{column: row[column] for column in sorted(row.keys() & names[table])} for row in rows[table]]
        for table in sorted(rows.keys() & names.keys())
    }


def shape(connection: Connection) -> dict[str, set[str]]:
    inspector = sa.inspect(connection)
    return {table: {column["name"] for column in inspector.get_columns(table)} for table in inspector.get_table_names()}


def test_the_newest_revision_is_the_one_the_code_names() -> None:
    """There is one line of history, it ends at `schema.HEAD`, and its names sort by age."""
    assert SCRIPTS.get_heads() == [schema.HEAD]
    assert len(SCRIPTS.get_bases()) == 1
    assert sorted(REVISIONS) == REVISIONS


def test_a_fresh_schema_is_the_migrated_one(empty: Database) -> None:
    """Tables made from the code and tables made by the steps are alike in every column, key, check and index."""
    empty.run_sync(metadata.create_all)
    fresh = empty.run_sync(described)
    empty.run_sync(metadata.drop_all)
    schema.upgrade(empty)
    assert empty.run_sync(described) == fresh


@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index:UserWarning")
def test_autogenerate_has_nothing_to_add(database: Database) -> None:
    """Alembic finds no difference between the code's tables and the migrated ones."""

    def is_compared(name: str | None, kind: str, _: object) -> bool:
        # A full text index is made of tables on SQLite, and described by the test above.
        return kind != "table" or not (name or "").startswith("picture_search")

    def differences(connection: Connection) -> list[Any]:
        options = {
            "compare_type": True,
            "compare_server_default": True,
            "target_metadata": metadata,
            "include_name": is_compared,
        }
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))

    assert database.run_sync(differences) == []


def test_upgrading_again_changes_nothing(database: Database) -> None:
    """A database at the newest revision, with rows, stays as it is."""
    database.run_sync(fill)
    before = database.run_sync(contents)
    schema.upgrade(database)
    assert database.run_sync(contents) == before
    assert database.run_sync(schema.current) == schema.HEAD


def test_going_down_to_nothing_leaves_nothing(database: Database) -> None:
    """With rows in every table, 'base' removes every table, trigger, function, sequence and type; up works again."""
    before = database.run_sync(described)
    database.run_sync(fill)
    schema.downgrade(database, "base")

    def left(connection: Connection) -> list[str]:
        if connection.dialect.name == "sqlite":
            query = "SELECT name FROM sqlite_master WHERE name NOT LIKE '%alembic_version%'"
        else:
            query = (
                "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
                " AND relname NOT LIKE 'alembic_version%'"
                " UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
                " UNION ALL SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace"
                " AND typname NOT LIKE '%alembic_version'"
            )
        return list(connection.execute(sa.text(query)).scalars())

    assert database.run_sync(left) == []
    schema.upgrade(database)
    assert database.run_sync(described) == before


@pytest.mark.parametrize("revision", REVISIONS)
def test_rows_survive_the_way_up(empty: Database, revision: str) -> None:
    """Rows that were written at a revision are all there at the newest, in the columns that both have."""
    schema.upgrade(empty, revision)
    empty.run_sync(fill)
    before = empty.run_sync(contents)
    schema.upgrade(empty)
    names = empty.run_sync(shape)
    assert common(empty.run_sync(contents), empty_names(before)) == common(before, names)


@pytest.mark.parametrize("revision", REVISIONS[1:])
def test_rows_survive_a_step_down_and_up(empty: Database, revision: str) -> None:
    """Going one step down and up again keeps all rows in what the step before has."""
    schema.upgrade(empty, revision)
    empty.run_sync(fill)
    full = empty.run_sync(contents)
    schema.downgrade(empty, "-1")
    names = empty.run_sync(shape)
    assert common(empty.run_sync(contents), empty_names(full)) == common(full, names)
    schema.upgrade(empty, revision)
    assert common(empty.run_sync(contents), names) == common(full, names)


def empty_names(rows: Rows) -> dict[str, set[str]]:
    """Return the tables and columns that `rows` have."""
    return {table: set(of_table[0]) for table, of_table in rows.items() if of_table}


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_table_can_be_filled_at_every_revision(empty: Database, revision: str) -> None:
    """The rows of these tests reach every table, so that what they say holds for all."""
    schema.upgrade(empty, revision)
    empty.run_sync(fill)
    rows = empty.run_sync(contents)
    assert rows
    assert {table: len(of_table) for table, of_table in rows.items()} == dict.fromkeys(rows, 4)


def test_a_newer_database_is_refused(database: Database) -> None:
    """A server does not touch a database of a later version, and says what to do."""
    newer = sa.text("UPDATE alembic_version SET version_num = '9999'")
    database.run_sync(lambda connection: connection.execute(newer))
    before = database.run_sync(described)
    with pytest.raises(ConfigurationError, match="newer") as refusal:
        schema.upgrade(database)
    assert refusal.value.hint
    assert database.run_sync(described) == before


def test_no_value_comes_from_a_sequence(database: Database) -> None:
    """No column counts by itself: ids are made by the code, so a restored database has no counter to set."""
    inspector = sa.inspect(database.engine)
    assert inspector.get_sequence_names() == [] if database.dialect == "postgresql" else True
    autoincrement = [
        f"{table}.{column['name']}"
        for table in inspector.get_table_names()
        for column in inspector.get_columns(table)
        if column.get("identity") or "nextval" in str(column["default"])
    ]
    assert autoincrement == []
