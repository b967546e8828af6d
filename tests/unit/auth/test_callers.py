"""From a credential to a caller: who is known, from when to when, and never longer."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from serai.auth import callers as module
from serai.auth import store
from serai.auth.callers import Callers
from serai.auth.credentials import Claims, Passwords, Tokens, new_key
from serai.auth.policy import RequestLimits, Role
from serai.clock import ManualClock
from serai.errors import Unauthenticated
from serai.storage.connect import open_sqlite
from serai.storage.database import Database
from support.access import ACTOR, NOW, add_key, add_user

pytestmark = pytest.mark.anyio
TOKENS = Tokens(["s" * 32])
PASSWORDS = Passwords()


@pytest.fixture
def database(sqlite_path: Path) -> Iterator[Database]:
    """An empty database; the store's behaviour on both kinds is in the conformance suite."""
    opened = open_sqlite(sqlite_path)
    yield opened
    opened.close_sync()


@pytest.fixture
def clock() -> ManualClock:
    """It stands at the time at which the test's users were made."""
    return ManualClock(NOW)


@pytest.fixture
def callers(database: Database, clock: ManualClock) -> Callers:
    """What is tested, on a real database."""
    return Callers(database, TOKENS, PASSWORDS, clock)


class Counted:
    """A real database whose reads are counted, and can be held back after they have read."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.reads = 0
        self.has_read = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.notices, self.run = database.notices, database.run

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        self.reads += 1
        found = await self._database.read(function, *args)
        self.has_read.set()
        await self.go_on.wait()
        return found


async def refused(call: Awaitable[object]) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await call
    return caught.value.message


class TestKeys:
    """Callers by API key."""

    async def test_a_key_gives_its_caller(self, callers: Callers, database: Database) -> None:
        """Everything that later decisions need comes from key and user."""
        user = add_user(database, "ada", Role.MODERATOR, disk_quota_bytes=7)
        limits = RequestLimits(per_minute=5)
        key, text = add_key(database, user, Role.USER, scopes=frozenset({"files"}), limits=limits)
        caller = await callers.by_bearer(text)
        assert (caller.user_id, caller.name, caller.role, caller.key_id) == (user.id, "ada", Role.USER, key.id)
        assert (caller.scopes, caller.limits, caller.limit_id) == (frozenset({"files"}), limits, key.id)
        assert (caller.disk_quota_bytes, caller.csrf) == (7, None)

    async def test_an_unknown_key_is_refused(self, callers: Callers) -> None:
        """The form alone is nothing; the refusal is the one for every reason."""
        assert await refused(callers.by_bearer(new_key())) == module._REJECTED

    async def test_a_key_holds_no_more_than_its_user_has_now(self, callers: Callers, database: Database) -> None:
        """A user who was given a lesser role takes the keys along."""
        add_user(database, "root", Role.ADMIN)
        user = add_user(database, "ada", Role.ADMIN)
        _, text = add_key(database, user)
        assert (await callers.by_bearer(text)).role is Role.ADMIN
        await database.run(store.update_user, user.id, {"role": Role.VIEWER}, ACTOR, NOW)
        assert (await callers.by_bearer(text)).role is Role.VIEWER

    async def test_the_database_is_asked_once(self, database: Database, clock: ManualClock) -> None:
        """Until something about access changes, a known key costs no query."""
        counted = Counted(database)
        callers = Callers(counted, TOKENS, PASSWORDS, clock)  # type: ignore[arg-type]
        _, text = add_key(database, add_user(database, "ada"))
        for _ in range(5):
            await callers.by_bearer(text)
        assert counted.reads == 1
        add_user(database, "eve")
        await callers.by_bearer(text)
        assert counted.reads == 2

    async def test_refusals_are_not_kept(self, database: Database, callers: Callers) -> None:
        """A key that was tried before it existed works once it does, and noise fills no memory."""
        for _ in range(10):
            await refused(callers.by_bearer(new_key()))
        assert callers._kept == {}

    @pytest.mark.parametrize("change", ["revoke", "disable", "delete"])
    async def test_what_ends_a_key_ends_it_at_once(self, callers: Callers, database: Database, change: str) -> None:
        """The next call after the commit is refused, although the caller was kept."""
        user = add_user(database, "ada")
        key, text = add_key(database, user)
        await callers.by_bearer(text)
        if change == "revoke":
            await database.run(store.revoke_key, key.id, ACTOR, NOW)
        elif change == "disable":
            await database.run(store.update_user, user.id, {"disabled_at": NOW}, ACTOR, NOW)
        else:
            await database.run(store.delete_user, user.id, ACTOR, NOW)
        assert await refused(callers.by_bearer(text)) == module._REJECTED

    async def test_a_change_that_was_undone_ends_nothing(self, callers: Callers, database: Database) -> None:
        """A revocation whose transaction fails did not happen."""
        key, text = add_key(database, add_user(database, "ada"))

        def fail(connection: Any) -> None:
            store.revoke_key(connection, key.id, ACTOR, NOW)
            raise RuntimeError("undone")

        with pytest.raises(RuntimeError, match="undone"):
            await database.run(fail)
        assert (await callers.by_bearer(text)).key_id == key.id

    async def test_a_key_expires_although_its_caller_is_kept(
        self, callers: Callers, database: Database, clock: ManualClock
    ) -> None:
        """Nothing is announced when time passes: the kept caller has its end with it."""
        _, text = add_key(database, add_user(database, "ada"), expires_at=NOW + timedelta(seconds=10))
        clock.advance(9.9)
        await callers.by_bearer(text)
        clock.advance(0.1)
        await refused(callers.by_bearer(text))

    async def test_a_read_that_a_change_overtook_is_not_kept(self, database: Database, clock: ManualClock) -> None:
        """The read saw the key valid, then it was revoked, then the read came back: the next call is refused."""
        held = Counted(database)
        held.go_on.clear()
        callers = Callers(held, TOKENS, PASSWORDS, clock)  # type: ignore[arg-type]
        key, text = add_key(database, add_user(database, "ada"))
        slow = asyncio.create_task(callers.by_bearer(text))
        await held.has_read.wait()
        await database.run(store.revoke_key, key.id, ACTOR, NOW)
        held.go_on.set()
        assert (await slow).key_id == key.id  # it was valid when it was asked
        assert callers._kept == {}
        await refused(callers.by_bearer(text))

    async def test_a_gap_in_the_notices_forgets_all(self, callers: Callers, database: Database) -> None:
        """After a lost connection anything may have changed."""
        _, text = add_key(database, add_user(database, "ada"))
        await callers.by_bearer(text)
        assert len(callers._kept) == 1
        database.notices.dispatch_gap()
        assert callers._kept == {}

    async def test_what_is_kept_is_bounded(
        self, callers: Callers, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The oldest goes when there are too many."""
        monkeypatch.setattr(module, "MAX_KEPT", 2)
        user = add_user(database, "ada")
        texts = [add_key(database, user)[1] for _ in range(4)]
        for text in texts:
            await callers.by_bearer(text)
        assert len(callers._kept) == 2

    async def test_last_use_is_written_now_and_then(
        self, callers: Callers, database: Database, clock: ManualClock
    ) -> None:
        """One write for many calls, with the time of the last of them; a key that was not used stays."""
        user = add_user(database, "ada")
        (used, text), (idle, _) = add_key(database, user), add_key(database, user)
        for _ in range(3):
            clock.advance(1)
            await callers.by_bearer(text)
        assert (await database.read(store.get_key, used.id)).last_used_at is None
        await callers.write_last_used()
        assert (await database.read(store.get_key, used.id)).last_used_at == NOW + timedelta(seconds=3)
        assert (await database.read(store.get_key, idle.id)).last_used_at is None


class TestTokens:
    """Callers by token."""

    async def test_a_token_of_a_key_is_the_key(self, callers: Callers, database: Database) -> None:
        """Role, scopes, limits and what is counted are those of the key."""
        user = add_user(database, "ada", Role.MODERATOR)
        _, text = add_key(database, user, Role.USER, scopes=frozenset({"files"}), limits=RequestLimits(per_hour=9))
        by_key = await callers.by_bearer(text)
        token, expires = callers.issue(user, by_key, 60)
        by_token = await callers.by_bearer(token)
        assert expires == NOW + timedelta(seconds=60)
        same = ("user_id", "role", "scopes", "limits", "limit_id", "key_id", "disk_quota_bytes", "expires_at")
        assert [getattr(by_token, name) for name in same] == [getattr(by_key, name) for name in same]
        assert (by_key.shows_key, by_token.shows_key) == (True, False)

    async def test_a_token_of_a_user_is_the_user(self, callers: Callers, database: Database) -> None:
        """Signed in by password: the user's own role, counted by user."""
        user = add_user(database, "ada", Role.MODERATOR)
        caller = await callers.by_bearer(callers.issue(user, None, 60)[0])
        assert (caller.role, caller.limit_id, caller.key_id, caller.scopes) == (
            Role.MODERATOR,
            user.id,
            None,
            frozenset(),
        )

    async def test_it_ends_with_its_time(self, callers: Callers, database: Database, clock: ManualClock) -> None:
        """Kept or not, a token that has expired is refused."""
        token, _ = callers.issue(add_user(database, "ada"), None, 60)
        await callers.by_bearer(token)
        clock.advance(60)
        await refused(callers.by_bearer(token))

    async def test_it_ends_with_its_key(self, callers: Callers, database: Database, clock: ManualClock) -> None:
        """Revoked or expired, the key takes its tokens along, although they were signed for longer."""
        user = add_user(database, "ada")
        _, short_text = add_key(database, user, expires_at=NOW + timedelta(seconds=10))
        long, long_text = add_key(database, user)
        tokens = [callers.issue(user, await callers.by_bearer(text), 600)[0] for text in (short_text, long_text)]
        for token in tokens:
            await callers.by_bearer(token)
        clock.advance(10)
        await refused(callers.by_bearer(tokens[0]))
        await database.run(store.revoke_key, long.id, ACTOR, NOW)
        await refused(callers.by_bearer(tokens[1]))

    @pytest.mark.parametrize("of_key", [False, True])
    async def test_a_greater_epoch_ends_all_earlier_tokens(
        self, callers: Callers, database: Database, of_key: bool
    ) -> None:
        """A new password, role or disabling raises it: tokens end, those made from keys too; new ones work."""
        user = add_user(database, "ada")
        _, text = add_key(database, user)
        maker = await callers.by_bearer(text) if of_key else None
        token, _ = callers.issue(user, maker, 600)
        await callers.by_bearer(token)
        changed = await database.run(store.update_user, user.id, {}, ACTOR, NOW, ends_tokens=True)
        await refused(callers.by_bearer(token))
        assert (await callers.by_bearer(callers.issue(changed, maker, 600)[0])).user_id == user.id

    @pytest.mark.parametrize("change", ["disable", "delete"])
    async def test_it_ends_with_its_user(self, callers: Callers, database: Database, change: str) -> None:
        """Who is gone cannot call with what was signed before."""
        user = add_user(database, "ada")
        token, _ = callers.issue(user, None, 600)
        await callers.by_bearer(token)
        if change == "disable":
            await database.run(store.update_user, user.id, {"disabled_at": NOW}, ACTOR, NOW)
        else:
            await database.run(store.delete_user, user.id, ACTOR, NOW)
        await refused(callers.by_bearer(token))

    @pytest.mark.parametrize("role", ["owner", "", "ADMIN "])
    async def test_a_role_that_does_not_exist_is_refused(self, callers: Callers, database: Database, role: str) -> None:
        """A signed token of an older server with another word is no crash."""
        user = add_user(database, "ada")
        claims = Claims(
            user_id=user.id, epoch=0, role=role, scopes=(), key_id=None, csrf=None, expires_at=NOW + timedelta(hours=1)
        )
        await refused(callers.by_bearer(TOKENS.sign(claims, NOW)))

    async def test_a_token_never_holds_more_than_the_user(self, callers: Callers, database: Database) -> None:
        """The lesser of the role that was signed and the one the user has."""
        user = add_user(database, "ada", Role.USER)
        claims = Claims(
            user_id=user.id,
            epoch=0,
            role="admin",
            scopes=(),
            key_id=None,
            csrf=None,
            expires_at=NOW + timedelta(hours=1),
        )
        assert (await callers.by_bearer(TOKENS.sign(claims, NOW))).role is Role.USER

    async def test_a_session_has_its_csrf_token_and_a_token_is_no_session(
        self, callers: Callers, database: Database
    ) -> None:
        """A bearer token in a cookie is refused: it could not be told from a forged request."""
        user = add_user(database, "ada")
        session, _ = callers.issue(user, None, 600, csrf="abc")
        other, _ = callers.issue(user, None, 600, csrf="def")
        assert (await callers.by_session(session)).csrf == "abc"
        assert (await callers.by_session(other)).csrf == "def"
        await refused(callers.by_session(callers.issue(user, None, 600)[0]))
        await refused(callers.by_session(""))


class TestPasswords:
    """Users by name and password."""

    async def test_the_right_password_gives_the_user(self, callers: Callers, database: Database) -> None:
        """And only that."""
        user = add_user(database, "ada", password_hash=PASSWORDS.hash("correct horse"))
        assert await callers.by_password("ada", "correct horse") == user
        told = {await refused(callers.by_password(*given)) for given in (("ada", "wrong horse"), ("eve", "x"))}
        assert told == {"The name or the password is wrong."}

    async def test_without_a_password_or_disabled_nobody_signs_in(self, callers: Callers, database: Database) -> None:
        """A user that has only keys, and one that was disabled, are refused like a wrong password."""
        add_user(database, "keys-only")
        add_user(database, "gone", password_hash=PASSWORDS.hash("correct horse"), disabled_at=NOW)
        for name in ("keys-only", "gone"):
            assert await refused(callers.by_password(name, "correct horse")) == "The name or the password is wrong."
