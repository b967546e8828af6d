"""What a server keeps of the registry in memory: its own changes at once, those of others when it hears of them."""

from collections.abc import Iterator

import pytest

from serai.clock import ManualClock
from serai.registry import releases
from serai.registry.registry import Registry
from serai.registry.rules import RegistryRules
from serai.storage.connect import open_postgresql, open_sqlite
from serai.storage.database import Connection, Database
from support.registry import ANN
from unit.registry.build import a_model, a_version

pytestmark = pytest.mark.anyio
NOW = ManualClock().now()


class Broken(Exception):
    """Ends a transaction after the registry was changed in it."""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Each database, without the thread that listens: when that begins, it takes anything for changed."""
    if request.param == "sqlite":
        opened = open_sqlite(request.getfixturevalue("sqlite_path"))
    else:
        opened = open_postgresql(request.getfixturevalue("postgres_url"), pool_size=2, listen=False)
    yield opened
    opened.close_sync()


@pytest.fixture
def registry(database: Database) -> Iterator[Registry]:
    made = Registry(database, RegistryRules())
    yield made
    made.close()


@pytest.fixture
def other(database: Database) -> Iterator[Registry]:
    """What another server on the same database has."""
    made = Registry(database, RegistryRules())
    yield made
    made.close()


def reads_of(database: Database) -> list[str]:
    """Return a list that grows by a word for each reading transaction from now on."""
    seen: list[str] = []
    database.observe = lambda mode, seconds: seen.append(mode) if mode == "read" else None
    return seen


async def create(database: Database, registry: Registry, name: str) -> None:
    model, version = a_model(name), a_version(name)
    await database.run(registry.write, releases.create_model, ANN, NOW, model, version)


async def test_what_this_server_changed_is_there_without_reading(database: Database, registry: Registry) -> None:
    """The change itself has read what it made, so the first call after it finds it in memory."""
    await registry.current()
    reads = reads_of(database)
    await create(database, registry, "m")
    snapshot = await registry.current()
    assert list(snapshot.models) == ["m"]
    assert reads == []


async def test_what_another_server_changed_is_read_once(
    database: Database, registry: Registry, other: Registry
) -> None:
    """It heard of the change; after one look it asks no more."""
    await registry.current()
    await other.current()
    await create(database, registry, "m")
    reads = reads_of(database)
    assert list((await other.current()).models) == ["m"]
    assert list((await other.current()).models) == ["m"]
    assert reads == ["read"]


async def test_changes_of_two_servers_in_turn_are_all_there(
    database: Database, registry: Registry, other: Registry
) -> None:
    """Whoever writes catches up first, so what it keeps afterwards lacks nothing of the other."""
    await registry.current()
    await other.current()
    for number, writer in enumerate((registry, other, registry, registry, other)):
        await create(database, writer, f"m{number}")
    for one in (registry, other):
        assert sorted((await one.current()).models) == ["m0", "m1", "m2", "m3", "m4"]


async def test_a_change_that_was_undone_is_not_kept(database: Database, registry: Registry) -> None:
    """Neither at once, nor when a later change takes the number that its entry in the log would have had."""
    await create(database, registry, "m")
    await registry.current()

    def change_and_break(connection: Connection) -> None:
        registry.write(connection, releases.create_model, ANN, NOW, a_model("undone"), a_version("undone"))
        raise Broken

    with pytest.raises(Broken):
        await database.run(change_and_break)
    assert list((await registry.current()).models) == ["m"]
    await create(database, registry, "n")
    snapshot = await registry.current()
    assert list(snapshot.models) == ["m", "n"]
    assert snapshot == await database.read(Registry(database, registry.rules).catch_up)
