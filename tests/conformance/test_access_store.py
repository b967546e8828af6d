"""Users and keys on both databases: what is stored, what is refused, and that an admin is always left."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from serai import audit
from serai.auth import store
from serai.auth.callers import Callers
from serai.auth.credentials import Passwords, Tokens, key_digest, new_key
from serai.auth.policy import RequestLimits, Role
from serai.auth.store import KeyNotFound, LastAdmin, UserAlreadyExists, UserNotFound
from serai.clock import ManualClock
from serai.errors import SeraiError, Unauthenticated
from serai.storage.connect import open_postgresql
from serai.storage.database import Database
from serai.storage.notices import announce
from serai.storage.tables.access import api_keys
from support.access import ACTOR, NOW, a_key, a_user, add_key, add_user

LATER = NOW + timedelta(hours=1)


def update(database: Database, user: store.User, **changes: Any) -> store.User:
    return database.run_sync(store.update_user, user.id, changes, ACTOR, LATER)


def newest(database: Database) -> audit.Entry:
    return database.read_sync(audit.entries, limit=1)[0]


def together(*calls: Callable[[], object]) -> list[object]:
    """Run the calls at the same time, each in its thread; return their answers, or errors of ours."""
    ready = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        ready.wait(30)
        try:
            return call()
        except SeraiError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


class TestUsers:
    """Users."""

    def test_a_user_comes_back_as_it_was_stored(self, database: Database) -> None:
        """By id and by name, with every field; a name that is not there is None, an id an error."""
        full = a_user("آدا", Role.MODERATOR, password_hash="$h", disk_quota_bytes=2**50, disabled_at=LATER)
        assert database.run_sync(store.create_user, full, ACTOR) == full
        assert database.read_sync(store.get_user, full.id) == full
        assert database.read_sync(store.find_user, "آدا") == full
        assert database.read_sync(store.find_user, "ada") is None
        with pytest.raises(UserNotFound):
            database.read_sync(store.get_user, "user_none")

    def test_a_name_is_taken_once(self, database: Database) -> None:
        """The second is refused and leaves nothing, no entry in the log either."""
        add_user(database, "ada")
        head = database.read_sync(audit.head)
        with pytest.raises(UserAlreadyExists, match="ada"):
            add_user(database, "ada")
        assert len(database.read_sync(store.list_users, limit=9, after=None)) == 1
        assert database.read_sync(audit.head) == head

    def test_a_name_is_taken_once_by_many_at_once(self, database: Database) -> None:
        """Of ten that come together one succeeds; the others hear that the name is taken, and nobody of a crash."""
        answers = together(*[lambda: add_user(database, "ada")] * 10)
        assert sorted(type(answer).__name__ for answer in answers) == ["User"] + ["UserAlreadyExists"] * 9

    def test_users_are_listed_in_pages(self, database: Database) -> None:
        """In the order of their ids, behind the one that is given."""
        ids = [add_user(database, f"user-{number}").id for number in range(5)]
        assert [user.id for user in database.read_sync(store.list_users, limit=3, after=None)] == ids[:3]
        assert [user.id for user in database.read_sync(store.list_users, limit=3, after=ids[2])] == ids[3:]

    def test_a_change_touches_what_it_names(self, database: Database) -> None:
        """The rest stays; the log has before and after without the hash of the password."""
        ada = add_user(database, "ada", password_hash="$old")
        changed = update(database, ada, role=Role.MODERATOR, password_hash="$new", disk_quota_bytes=5)
        expected = replace(ada, role=Role.MODERATOR, password_hash="$new", disk_quota_bytes=5, updated_at=LATER)
        assert changed == database.read_sync(store.get_user, ada.id) == expected
        entry = newest(database)
        assert (entry.action, entry.before["role"], entry.after["role"]) == ("users.update", "user", "moderator")
        assert "$old" not in str(entry)
        assert "$new" not in str(entry)

    def test_ending_tokens_raises_the_epoch_by_one_each_time(self, database: Database) -> None:
        """Ten at once raise it by ten: none works on what another is about to replace."""
        ada = add_user(database, "ada")
        calls = [lambda: database.run_sync(store.update_user, ada.id, {}, ACTOR, LATER, ends_tokens=True)] * 10
        together(*calls)
        assert database.read_sync(store.get_user, ada.id).token_epoch == 10

    def test_what_is_not_there_cannot_be_changed(self, database: Database) -> None:
        """Neither updated nor removed."""
        with pytest.raises(UserNotFound):
            update(database, a_user("ghost"), role=Role.ADMIN)
        with pytest.raises(UserNotFound):
            database.run_sync(store.delete_user, "user_none", ACTOR, NOW)

    def test_the_database_knows_no_other_role(self, database: Database) -> None:
        """Whatever writes to the table, a fifth role cannot get in."""
        add_user(database, "ada")
        with pytest.raises(sa.exc.IntegrityError):
            database.run_sync(lambda c: c.execute(sa.text("UPDATE users SET role = 'owner'")))


class TestTheLastAdmin:
    """There is always one who may do everything."""

    @pytest.fixture
    def root(self, database: Database) -> store.User:
        """The only admin, beside a user and a disabled admin."""
        add_user(database, "ada")
        add_user(database, "gone", Role.ADMIN, disabled_at=NOW)
        return add_user(database, "root", Role.ADMIN)

    def test_it_is_neither_removed_nor_disabled_nor_lowered(self, database: Database, root: store.User) -> None:
        """Each way is refused with a hint, and changes nothing."""
        ways: list[Callable[[], object]] = [
            lambda: update(database, root, role=Role.MODERATOR),
            lambda: update(database, root, disabled_at=LATER),
            lambda: database.run_sync(store.delete_user, root.id, ACTOR, LATER),
        ]
        for way in ways:
            with pytest.raises(LastAdmin):
                way()
            assert database.read_sync(store.get_user, root.id) == root

    def test_it_may_change_otherwise(self, database: Database, root: store.User) -> None:
        """A new password is no loss."""
        assert update(database, root, password_hash="$new").password_hash == "$new"

    def test_others_come_and_go(self, database: Database, root: store.User) -> None:
        """A user and a disabled admin are not what the rule protects; with a second admin the first may go."""
        ada, gone = (database.read_sync(store.find_user, name) for name in ("ada", "gone"))
        assert ada is not None
        assert gone is not None
        database.run_sync(store.delete_user, gone.id, ACTOR, LATER)
        update(database, ada, role=Role.ADMIN)
        database.run_sync(store.delete_user, root.id, ACTOR, LATER)
        with pytest.raises(LastAdmin):
            update(database, ada, role=Role.USER)

    def test_two_admins_that_remove_each_other_leave_one(self, database: Database, root: store.User) -> None:
        """Together, in every combination of ways: one succeeds, the other is refused."""
        for first in ("delete", "disable", "lower"):
            for second in ("delete", "disable", "lower"):
                pair = [add_user(database, f"{first}-{second}-{number}", Role.ADMIN) for number in range(2)]
                with_root = [user for user in admins(database) if user.id not in {admin.id for admin in pair}]
                for user in with_root:
                    update(database, user, role=Role.USER)
                answers = together(
                    lambda: lose(database, pair[0], first),  # noqa: B023 - run before the loop goes on
                    lambda: lose(database, pair[1], second),  # noqa: B023
                )
                assert sum(isinstance(answer, LastAdmin) for answer in answers) == 1, (first, second, answers)
                assert len(admins(database)) == 1


def admins(database: Database) -> list[store.User]:
    users = database.read_sync(store.list_users, limit=99, after=None)
    return [user for user in users if user.role is Role.ADMIN and user.disabled_at is None]


def lose(database: Database, user: store.User, way: str) -> None:
    if way == "delete":
        database.run_sync(store.delete_user, user.id, ACTOR, LATER)
    elif way == "disable":
        update(database, user, disabled_at=LATER)
    else:
        update(database, user, role=Role.USER)


class TestKeys:
    """API keys."""

    def test_a_key_comes_back_as_it_was_stored(self, database: Database) -> None:
        """By id, and by the digest of its text together with its user; another digest finds nothing."""
        ada = add_user(database, "ada")
        limits = RequestLimits(per_minute=1, per_hour=2, tokens_per_minute=3)
        key, text = add_key(
            database, ada, Role.VIEWER, scopes=frozenset({"files", "jobs"}), limits=limits, expires_at=LATER
        )
        assert database.read_sync(store.get_key, key.id) == key
        assert database.read_sync(store.find_key, key_digest(text)) == (key, ada)
        assert database.read_sync(store.find_key, key_digest(new_key())) is None
        with pytest.raises(KeyNotFound):
            database.read_sync(store.get_key, "key_none")

    def test_the_text_of_a_key_is_nowhere(self, database: Database) -> None:
        """Neither in its row nor in the log."""
        _, text = add_key(database, add_user(database, "ada"))
        rows = database.read_sync(lambda c: [tuple(row) for row in c.execute(sa.select(api_keys))])
        assert text not in f"{rows} {database.read_sync(audit.entries, limit=9)}"

    def test_it_needs_its_user(self, database: Database) -> None:
        """For somebody who is not there, none is made."""
        with pytest.raises(UserNotFound):
            database.run_sync(store.create_key, a_key("user_none"), "d", ACTOR)

    def test_it_goes_with_its_user(self, database: Database) -> None:
        """Removing the user removes all its keys, and no others."""
        ada, eve = add_user(database, "ada"), add_user(database, "eve")
        (gone, _), (also, _), (stays, _) = add_key(database, ada), add_key(database, ada), add_key(database, eve)
        database.run_sync(store.delete_user, ada.id, ACTOR, LATER)
        assert database.read_sync(store.list_keys, user_id=None, limit=9, after=None) == [stays]
        for key in (gone, also):
            with pytest.raises(KeyNotFound):
                database.read_sync(store.get_key, key.id)

    def test_a_key_made_while_its_user_is_removed_is_made_or_refused(self, database: Database) -> None:
        """Never left over, and never a crash."""
        for number in range(5):
            user = add_user(database, f"user-{number}")
            together(
                lambda: database.run_sync(store.delete_user, user.id, ACTOR, LATER),  # noqa: B023
                lambda: add_key(database, user),  # noqa: B023
            )
        assert database.read_sync(store.list_keys, user_id=None, limit=9, after=None) == []

    def test_revoking_is_for_good_and_once(self, database: Database) -> None:
        """The first time counts; a second one changes neither the time nor the log."""
        key, _ = add_key(database, add_user(database, "ada"))
        database.run_sync(store.revoke_key, key.id, ACTOR, NOW)
        head = database.read_sync(audit.head)
        database.run_sync(store.revoke_key, key.id, ACTOR, LATER)
        assert database.read_sync(store.get_key, key.id) == replace(key, revoked_at=NOW)
        assert database.read_sync(audit.head) == head
        with pytest.raises(KeyNotFound):
            database.run_sync(store.revoke_key, "key_none", ACTOR, NOW)

    def test_keys_are_listed_by_owner_in_pages(self, database: Database) -> None:
        """One owner's or all, in the order of their ids."""
        ada, eve = add_user(database, "ada"), add_user(database, "eve")
        keys = [add_key(database, user)[0] for user in (ada, eve, ada, eve, ada)]

        def listed(user_id: str | None, limit: int, after: str | None = None) -> list[store.ApiKey]:
            return database.read_sync(store.list_keys, user_id=user_id, limit=limit, after=after)

        assert listed(None, 9) == keys
        assert listed(ada.id, 9) == keys[::2]
        assert listed(ada.id, 9, keys[0].id) == keys[2::2]
        assert listed(None, 2, keys[1].id) == keys[2:4]

    def test_last_use_is_noted_for_many_at_once(self, database: Database) -> None:
        """A key that is gone meanwhile is no error."""
        ada = add_user(database, "ada")
        one, other = add_key(database, ada)[0], add_key(database, ada)[0]
        database.run_sync(store.touch_keys, {one.id: NOW, other.id: LATER, "key_gone": NOW})
        assert database.read_sync(store.get_key, one.id).last_used_at == NOW
        assert database.read_sync(store.get_key, other.id).last_used_at == LATER


def test_the_first_admin_is_made_once(database: Database) -> None:
    """Ten servers that start together on an empty database make one admin with one key."""

    def start() -> bool:
        admin = a_user("admin", Role.ADMIN)
        return database.run_sync(store.create_first_admin, admin, a_key(admin.id, Role.ADMIN), key_digest(new_key()))

    assert sorted(together(*[start] * 10), key=bool) == [False] * 9 + [True]
    assert len(database.read_sync(store.list_users, limit=9, after=None)) == 1
    assert len(database.read_sync(store.list_keys, user_id=None, limit=9, after=None)) == 1


def test_every_change_is_logged_with_its_actor(database: Database) -> None:
    """Who, from where, in which request, on what."""
    ada = add_user(database, "ada")
    key, _ = add_key(database, ada)
    update(database, ada, disk_quota_bytes=1)
    database.run_sync(store.revoke_key, key.id, ACTOR, LATER)
    database.run_sync(store.delete_user, ada.id, ACTOR, LATER)
    entries = database.read_sync(audit.entries, limit=9)[::-1]
    assert [(entry.action, entry.object_id) for entry in entries] == [
        ("users.create", ada.id),
        ("keys.create", key.id),
        ("users.update", ada.id),
        ("keys.revoke", key.id),
        ("users.delete", ada.id),
    ]
    assert {(entry.actor, entry.address, entry.request_id) for entry in entries} == {
        (ACTOR.id, ACTOR.address, ACTOR.request_id)
    }
    assert database.read_sync(audit.verify).ok


@pytest.mark.anyio
@pytest.mark.postgres
async def test_a_revocation_is_seen_on_every_server_within_a_second(postgres_url: str) -> None:
    """Two servers on one PostgreSQL: what one revokes the other refuses, although it had kept the caller."""
    one, other = (open_postgresql(postgres_url, pool_size=2) for _ in range(2))
    heard: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def hear(payload: str) -> None:
        while await heard.get() != payload:
            pass

    try:
        there = Callers(other, Tokens(["s" * 32]), Passwords(), ManualClock(NOW))
        other.notices.subscribe(store.TOPIC, lambda payload: loop.call_soon_threadsafe(heard.put_nowait, payload))
        key, text = add_key(one, add_user(one, "ada"))
        for _ in range(100):  # until it listens: what is said before that is not heard
            await one.run(announce, store.TOPIC, "anybody there?")
            with suppress(TimeoutError):
                await asyncio.wait_for(hear("anybody there?"), 0.2)
                break
        assert (await there.by_bearer(text)).key_id == key.id
        await one.run(store.revoke_key, key.id, ACTOR, NOW)
        await asyncio.wait_for(hear(key.id), 1)
        with pytest.raises(Unauthenticated):
            await there.by_bearer(text)
    finally:
        await one.close()
        await other.close()
