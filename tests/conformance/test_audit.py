"""The audit log on both databases: what was written cannot be changed, moved or taken away unnoticed."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection

from serai import audit
from serai.audit import SYSTEM, Actor, Head, Verdict
from serai.audit.store import GENESIS
from serai.storage.database import Database
from serai.storage.migrations.triggers import drop_append_only
from serai.storage.tables.log import audit as table

NOW = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
ADA = Actor(id="user_ada", address="192.0.2.1", request_id="req_1")
_NUMBERS = count(1)

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def write(database: Database, number: int, actor: Actor = ADA) -> None:
    """Append `number` entries, each with everything that an entry may have."""

    def function(connection: Connection) -> None:
        for _ in range(number):
            object_id = f"thing_{next(_NUMBERS)}"
            audit.record(connection, actor, "things.change", "thing", object_id, at=NOW, before={"a": 1}, after=[2])

    database.run_sync(function)


def tamper(database: Database, statement: sa.Executable) -> None:
    """Change the log for good, as only somebody with the database's own rights can: without its triggers."""
    database.run_sync(lambda connection: (_drop_triggers(connection), connection.execute(statement)))


def _drop_triggers(connection: Connection) -> None:
    with Operations.context(MigrationContext.configure(connection)):
        drop_append_only("audit")


def verdict(database: Database, kept: Head | None = None) -> Verdict:
    return database.read_sync(audit.verify, kept)


def rows(database: Database) -> list[dict[str, Any]]:
    return database.read_sync(lambda c: [dict(r._mapping) for r in c.execute(sa.select(table).order_by(table.c.seq))])


def test_an_empty_log_is_whole(database: Database) -> None:
    """Nothing is a chain too; its head is the beginning."""
    begin = Head(seq=0, hash=GENESIS)
    assert database.read_sync(audit.head) == begin
    assert verdict(database) == Verdict(ok=True, entries=0, broken_at=None, problem=None, head=begin)


def test_entries_come_back_as_they_were_written(database: Database) -> None:
    """Every field, the newest first; each links to the one before it."""
    database.run_sync(audit.record, ADA, "a.b", "thing", "1", at=NOW, before={"x": [1, None]}, after=None)
    database.run_sync(audit.record, SYSTEM, "a.c", "thing", "2", at=NOW + timedelta(seconds=1), after="سرای")
    second, first = database.read_sync(audit.entries, limit=10)
    assert (first.seq, first.at, first.actor, first.action, first.object_kind, first.object_id) == (
        1,
        NOW,
        "user_ada",
        "a.b",
        "thing",
        "1",
    )
    assert (first.before, first.after, first.address, first.request_id) == (
        {"x": [1, None]},
        None,
        "192.0.2.1",
        "req_1",
    )
    assert (second.seq, second.actor, second.after, second.address, second.request_id) == (
        2,
        "system",
        "سرای",
        None,
        None,
    )
    assert (first.prev_hash, second.prev_hash) == (GENESIS, first.hash)
    assert database.read_sync(audit.head) == Head(seq=2, hash=second.hash)


def test_the_hash_can_be_recomputed_by_others(database: Database) -> None:
    """SHA-256 over the canonical JSON of the row without its hash, times in microseconds: no code of ours needed."""
    write(database, 1)
    row = database.read_sync(lambda c: dict(c.execute(sa.text("SELECT * FROM audit")).one()._mapping))
    told = row.pop("hash")
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == told


@given(before=values, after=values)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_survives_and_verifies(database: Database, before: Any, after: Any) -> None:
    """What was written is read, and the chain holds over it; on both databases alike."""
    database.run_sync(audit.record, ADA, "a", "thing", "1", at=NOW, before=before, after=after)
    entry = database.read_sync(audit.entries, limit=1)[0]
    assert (entry.before, entry.after) == (before, after)
    assert verdict(database).ok


def test_what_is_no_json_is_not_logged_half(database: Database) -> None:
    """A defect of the caller fails its transaction and leaves no entry."""
    for value in (float("nan"), float("inf"), {"a": object()}, {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            database.run_sync(audit.record, ADA, "a", "thing", "1", at=NOW, after=value)
    assert database.read_sync(audit.head).seq == 0


def test_an_entry_exists_exactly_if_its_change_does(database: Database) -> None:
    """A transaction that fails after `record` leaves neither entry nor gap."""
    write(database, 1)

    def fail(connection: Connection) -> None:
        audit.record(connection, ADA, "a", "thing", "1", at=NOW)
        raise RuntimeError("undone")

    with pytest.raises(RuntimeError, match="undone"):
        database.run_sync(fail)
    write(database, 1)
    assert [entry.seq for entry in database.read_sync(audit.entries, limit=10)] == [2, 1]
    assert verdict(database).ok


def test_the_database_itself_refuses_changes(database: Database) -> None:
    """The log is append-only for everybody who does not take the triggers off."""
    write(database, 2)
    for statement in (sa.update(table).values(actor="eve"), sa.delete(table)):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            database.run_sync(Connection.execute, statement)
    assert (verdict(database).ok, verdict(database).entries) == (True, 2)


CHANGED: dict[str, Any] = {
    "at": NOW + timedelta(microseconds=1),
    "actor": "user_eve",
    "action": "things.read",
    "object_kind": "file",
    "object_id": "thing_0",
    "before": '{"a":2}',
    "after": None,
    "address": "192.0.2.2",
    "request_id": None,
    "prev_hash": "f" * 64,
    "hash": "e" * 64,
}


def test_every_column_is_tried() -> None:
    """A column that is added must be covered by the hash, and by the test below."""
    assert set(CHANGED) == set(table.columns.keys()) - {"seq"}


def after(database: Database, *statements: sa.Executable) -> Verdict:
    """Return the verdict on the log after somebody with the database's own rights did that, and undo it."""

    def tamper_look_undo(connection: Connection) -> Verdict:
        with connection.begin_nested() as inner:
            _drop_triggers(connection)
            for statement in statements:
                connection.execute(statement)
            found = audit.verify(connection)
            inner.rollback()
        return found

    return database.run_sync(tamper_look_undo)


def test_a_changed_column_is_found_at_its_row(database: Database) -> None:
    """Every column of the first, a middle and the last row: the verdict names the row, and what was whole before it."""
    write(database, 5)
    for column, value in CHANGED.items():
        for at in (1, 3, 5):
            found = after(database, sa.update(table).where(table.c.seq == at).values({column: value}))
            what = "it does not link to the entry before it" if column == "prev_hash" else "its content was changed"
            assert (found.ok, found.broken_at, found.entries, found.problem) == (False, at, at - 1, what), column
            assert found.head.seq == at - 1
    assert verdict(database).ok


def test_json_that_means_the_same_is_still_a_change(database: Database) -> None:
    """The very bytes are hashed: white space that was added is found."""
    write(database, 1)
    tamper(database, sa.update(table).values(before='{"a": 1}'))
    assert verdict(database).broken_at == 1


def test_a_missing_entry_is_found(database: Database) -> None:
    """The gap is named, and the row after it."""
    write(database, 5)
    for gone in (1, 2, 3, 4):
        found = after(database, sa.delete(table).where(table.c.seq == gone))
        assert (found.ok, found.broken_at, found.problem) == (False, gone + 1, f"entry {gone} is missing")


def test_entries_that_were_swapped_are_found(database: Database) -> None:
    """Two rows that change places do not link."""
    write(database, 4)
    moves = [sa.update(table).where(table.c.seq == old).values(seq=new) for old, new in ((2, 100), (3, 2), (100, 3))]
    assert after(database, *moves).broken_at == 2


def test_an_entry_that_was_slipped_in_is_found(database: Database) -> None:
    """A forged row at the end links to nothing unless it is made by the rules, and then it is an entry."""
    write(database, 2)
    forged = {**rows(database)[-1], "seq": 3, "object_id": "forged", "hash": "d" * 64}
    database.run_sync(lambda connection: connection.execute(sa.insert(table).values(**forged)))
    assert verdict(database).broken_at == 3


def test_a_log_that_was_cut_is_found_with_a_kept_head(database: Database) -> None:
    """The rows that are left hold together; only the head that was kept elsewhere tells."""
    write(database, 5)
    kept = database.read_sync(audit.head)
    tamper(database, sa.delete(table).where(table.c.seq >= 4))
    assert verdict(database).ok
    found = verdict(database, kept)
    assert (found.ok, found.broken_at, found.entries) == (False, 4, 3)
    assert found.problem == "the log ends at 3, before the kept head 5"


def test_a_log_that_was_cut_and_went_on_is_found_with_a_kept_head(database: Database) -> None:
    """New entries on the cut end make a whole chain, but not the one of the kept head."""
    write(database, 5)
    kept = database.read_sync(audit.head)
    tamper(database, sa.delete(table).where(table.c.seq >= 4))
    write(database, 3)
    assert verdict(database).ok
    found = verdict(database, kept)
    assert (found.ok, found.broken_at, found.problem) == (False, 5, "it is not the entry of the kept head")


def test_every_earlier_head_lies_on_a_whole_log(database: Database) -> None:
    """A kept head stays good while the log grows."""
    heads = [database.read_sync(audit.head)]
    for _ in range(4):
        write(database, 1)
        heads.append(database.read_sync(audit.head))
    assert all(verdict(database, head).ok for head in heads)
    for head in heads:
        assert not verdict(database, replace(head, hash="a" * 64)).ok


@given(data=st.data())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_single_change_goes_unnoticed(database: Database, data: st.DataObject) -> None:
    """Any column of any row, changed to anything else; undone, the log is whole again."""
    if not database.read_sync(audit.head).seq:
        write(database, 4)
    column = data.draw(st.sampled_from(sorted(set(CHANGED) - {"at"})))
    row = data.draw(st.sampled_from(rows(database)))
    other = data.draw(texts.filter(lambda text: text != row[column]))

    found = after(database, sa.update(table).where(table.c.seq == row["seq"]).values({column: other}))
    assert (found.ok, found.broken_at) == (False, row["seq"])
    assert verdict(database).ok


def test_writers_at_once_make_one_chain(database: Database) -> None:
    """20 threads of 10 entries each: 200 entries, no gap, no fork, none lost."""

    def ten(thread: int) -> None:
        for _ in range(10):
            write(database, 1, replace(ADA, id=f"user_{thread}"))

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(ten, range(20)))
    found = verdict(database)
    assert (found.ok, found.entries) == (True, 200)
    assert [row["seq"] for row in rows(database)] == list(range(1, 201))
    for thread in range(20):
        assert len(database.read_sync(audit.entries, limit=99, actor=f"user_{thread}")) == 10


class TestReading:
    """Filters and pages."""

    FOUND: ClassVar[list[tuple[dict[str, Any], list[int]]]] = [
        ({}, [8, 7, 6, 5, 4, 3, 2, 1]),
        ({"actor": "user_1"}, [8, 6, 4, 2]),
        ({"kind": "kind_1"}, [8, 7, 4, 3]),
        ({"kind": "kind_1", "object_id": "thing_3"}, [4]),
        ({"action": "removed", "actor": "user_0"}, [7, 5]),
        ({"since": NOW + timedelta(seconds=5)}, [8, 7, 6]),
        ({"until": NOW + timedelta(seconds=2)}, [2, 1]),
        ({"since": NOW + timedelta(seconds=2), "until": NOW + timedelta(seconds=4)}, [4, 3]),
        ({"before_seq": 3}, [2, 1]),
        ({"actor": ""}, []),
        ({"actor": "user_1' OR '1'='1"}, []),
        ({"object_id": "%"}, []),
    ]

    @pytest.fixture(autouse=True)
    def _log(self, database: Database) -> None:
        """Eight entries: two actors, two kinds, a second apart."""

        def function(connection: Connection) -> None:
            for number in range(8):
                audit.record(
                    connection,
                    Actor(id=f"user_{number % 2}"),
                    "changed" if number < 4 else "removed",
                    f"kind_{number // 2 % 2}",
                    f"thing_{number}",
                    at=NOW + timedelta(seconds=number),
                )

        database.run_sync(function)

    def test_filters_narrow(self, database: Database) -> None:
        """Each filter that is given must match; `since` is included and `until` is not."""
        for filters, found in self.FOUND:
            seen = [entry.seq for entry in database.read_sync(audit.entries, limit=99, **filters)]
            assert seen == found, filters

    def test_pages_meet_every_entry_once(self, database: Database) -> None:
        """`before_seq` of the last one of a page is where the next begins."""
        seen: list[int] = []
        before = None
        while page := database.read_sync(audit.entries, limit=3, before_seq=before):
            seen += [entry.seq for entry in page]
            before = seen[-1]
        assert seen == [8, 7, 6, 5, 4, 3, 2, 1]
