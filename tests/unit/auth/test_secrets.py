"""The secret store: encrypted in the database, given back to outgoing calls alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serai import audit
from serai.auth.secrets import Secret, SecretNotFound, SecretStore
from serai.errors import ConfigurationError, InvalidInput
from serai.storage.connect import open_sqlite
from serai.storage.database import Database
from serai.storage.tables.access import secrets
from support.access import ACTOR, NOW

KEY, VALUE = "k" * 32, "hf_planted-secret-value"
ORIGINS = ["https://hub.example"]


@pytest.fixture
def database(sqlite_path: Path) -> Iterator[Database]:
    """An empty database."""
    opened = open_sqlite(sqlite_path)
    yield opened
    opened.close_sync()


@pytest.fixture
def store() -> SecretStore:
    """A store without values from the environment."""
    return SecretStore(KEY, {})


def put(database: Database, store: SecretStore, name: str, value: str | None, origins: list[str] = ORIGINS) -> None:
    database.run_sync(store.put, name, value, origins, ACTOR, NOW)


def test_a_value_comes_back_for_a_call_with_its_origins(database: Database, store: SecretStore) -> None:
    """`reveal` gives what was put, and where it may go."""
    put(database, store, "hub", VALUE)
    found = database.read_sync(store.reveal, "hub")
    assert (found.name, found.value, found.origins) == ("hub", VALUE, frozenset(ORIGINS))


def test_it_is_not_readable_where_it_lies(database: Database, store: SecretStore, sqlite_path: Path) -> None:
    """Neither the row, nor the audit log, nor the database's files hold the value."""
    put(database, store, "hub", VALUE)
    rows = database.read_sync(lambda c: [dict(row._mapping) for row in c.execute(sa.select(secrets))])
    entries = database.read_sync(audit.entries, limit=10)
    assert VALUE not in f"{rows} {entries}"
    assert not [path for path in sqlite_path.parent.iterdir() if VALUE.encode() in path.read_bytes()]


def test_what_is_told_of_it_hides_it(database: Database, store: SecretStore) -> None:
    """Neither what the API shows nor the repr of the revealed secret holds the value."""
    put(database, store, "hub", VALUE)
    assert VALUE not in repr(database.read_sync(store.reveal, "hub"))
    assert VALUE not in repr(database.read_sync(store.list, limit=10, after=None))
    assert repr(Secret(name="hub", value=VALUE, origins=frozenset())) == "Secret(name='hub', value=***)"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_survives(database: Database, store: SecretStore, value: str) -> None:
    """Whatever characters a value has, the same come back; equal values look different where they lie."""
    put(database, store, "one", value)
    put(database, store, "two", value)
    found = [database.read_sync(store.reveal, name).value for name in ("one", "two")]
    stored = database.read_sync(lambda c: list(c.execute(sa.select(secrets.c.ciphertext)).scalars()))
    assert found == [value, value]
    assert stored[0] != stored[1]


def test_another_key_cannot_read_it(database: Database, store: SecretStore) -> None:
    """The refusal says what to do and nothing of the value; the right key still reads it."""
    put(database, store, "hub", VALUE)
    with pytest.raises(ConfigurationError, match="hub cannot be decrypted") as caught:
        database.read_sync(SecretStore("x" * 32, {}).reveal, "hub")
    assert VALUE not in f"{caught.value.message} {caught.value.hint}"
    assert database.read_sync(SecretStore(KEY, {}).reveal, "hub").value == VALUE


@pytest.mark.parametrize("damage", [b"x", b"x" * 12, b"x" * 100])
def test_a_damaged_value_is_a_refusal(database: Database, store: SecretStore, damage: bytes) -> None:
    """What was changed in the database does not decrypt to something else, and is no crash."""
    put(database, store, "hub", VALUE)
    database.run_sync(lambda c: c.execute(sa.update(secrets).values(ciphertext=damage)))
    with pytest.raises(ConfigurationError, match="cannot be decrypted"):
        database.read_sync(store.reveal, "hub")


def test_a_value_cannot_be_moved_to_another_name(database: Database, store: SecretStore) -> None:
    """Whoever can write the database cannot have a secret sent to the origins of another."""
    put(database, store, "hub", VALUE)
    put(database, store, "mine", "known", ["https://attacker.example"])
    copied = sa.select(secrets.c.ciphertext).where(secrets.c.name == "hub").scalar_subquery()
    database.run_sync(lambda c: c.execute(sa.update(secrets).where(secrets.c.name == "mine").values(ciphertext=copied)))
    with pytest.raises(ConfigurationError):
        database.read_sync(store.reveal, "mine")


class TestFromTheEnvironment:
    """Values that are given from outside."""

    given = SecretStore(KEY, {"hub": "from outside"})

    def test_it_needs_its_origins_only(self, database: Database) -> None:
        """Without origins it goes nowhere; with them it is revealed, and said to come from outside."""
        with pytest.raises(SecretNotFound):
            database.read_sync(self.given.reveal, "hub")
        put(database, self.given, "hub", None)
        assert database.read_sync(self.given.reveal, "hub").value == "from outside"
        assert database.read_sync(self.given.info, "hub").source == "environment"

    def test_it_wins_over_the_store(self, database: Database, store: SecretStore) -> None:
        """The environment replaces what is stored, and without it the stored value holds again."""
        put(database, store, "hub", VALUE)
        assert database.read_sync(self.given.reveal, "hub").value == "from outside"
        assert database.read_sync(store.reveal, "hub").value == VALUE
        assert database.read_sync(store.info, "hub").source == "store"

    def test_when_it_is_taken_away_there_is_no_value(self, database: Database, store: SecretStore) -> None:
        """A secret whose value was only outside is a refusal with a hint, not a crash."""
        put(database, self.given, "hub", None)
        with pytest.raises(ConfigurationError, match="hub has no value"):
            database.read_sync(store.reveal, "hub")

    def test_without_any_value_it_cannot_be_put(self, database: Database, store: SecretStore) -> None:
        """Neither stored nor outside: the missing variable is named, and nothing was kept."""
        with pytest.raises(InvalidInput, match="SERAI_SECRET_HUB is not set"):
            put(database, store, "hub", None)
        assert database.read_sync(store.list, limit=10, after=None) == []


def test_new_origins_keep_the_value(database: Database, store: SecretStore) -> None:
    """Putting without a value changes where it may go and nothing else; the log tells both lists."""
    put(database, store, "hub", VALUE)
    put(database, store, "hub", None, ["https://mirror.example"])
    found = database.read_sync(store.reveal, "hub")
    assert (found.value, found.origins) == (VALUE, frozenset({"https://mirror.example"}))
    newest = database.read_sync(audit.entries, limit=1)[0]
    assert (newest.before, newest.after) == (
        {"origins": ORIGINS},
        {"origins": ["https://mirror.example"], "value_changed": False},
    )


def test_a_deleted_secret_is_gone(database: Database, store: SecretStore) -> None:
    """It cannot be revealed, told of or deleted again."""
    put(database, store, "hub", VALUE)
    database.run_sync(store.delete, "hub", ACTOR, NOW)
    for read in (store.reveal, store.info):
        with pytest.raises(SecretNotFound):
            database.read_sync(read, "hub")
    with pytest.raises(SecretNotFound):
        database.run_sync(store.delete, "hub", ACTOR, NOW)


def test_they_are_listed_by_name(database: Database, store: SecretStore) -> None:
    """In pages, in order."""
    for name in ("c", "a", "b"):
        put(database, store, name, "v")
    assert [info.name for info in database.read_sync(store.list, limit=2, after=None)] == ["a", "b"]
    assert [info.name for info in database.read_sync(store.list, limit=2, after="b")] == ["c"]
