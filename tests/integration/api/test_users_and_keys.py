"""Users, keys, tokens and sessions, through the API: the whole life of whatever proves who calls."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from serai.auth.credentials import is_key
from serai.settings import Settings
from support.api import ROLES, Running, running

pytestmark = pytest.mark.anyio
PASSWORD = "correct horse battery"


async def said(call: Any, status: int = 200) -> Any:
    """Return the JSON answer of a call that must have that status."""
    answer = await call
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


async def code_of(call: Any, status: int) -> str:
    """Return the error code of a call that must be refused with that status."""
    return str((await said(call, status))["error"]["code"])


@pytest.fixture
async def clients(server: Running) -> AsyncIterator[AsyncExitStack]:
    """Where a test's own clients are closed."""
    async with AsyncExitStack() as stack:
        yield stack


async def key_client(server: Running, clients: AsyncExitStack, maker: httpx.AsyncClient, **body: Any) -> Any:
    """Return a client with a new key that `maker` makes."""
    made = await said(maker.post("/keys", json={"name": "k", **body}), 201)
    return await clients.enter_async_context(server.client(made["key"]))


class TestUsers:
    """Users."""

    async def test_their_whole_life(self, server_on_both: Running) -> None:
        """Made, shown, listed, changed, disabled, enabled and removed; each step is in the log."""
        admin = server_on_both.admin
        made = await said(admin.post("/users", json={"name": "ada", "password": PASSWORD}), 201)
        assert (made["name"], made["role"], made["has_password"], made["disabled"]) == ("ada", "user", True, False)
        one = f"/users/{made['id']}"
        assert await said(admin.get(one)) == made
        assert [user["name"] for user in (await said(admin.get("/users")))["items"]] == ["admin", "ada"]
        changed = await said(admin.patch(one, json={"role": "moderator", "disk_quota_bytes": 5}))
        assert (changed["role"], changed["disk_quota_bytes"], changed["has_password"]) == ("moderator", 5, True)
        assert (await said(admin.patch(one, json={"disk_quota_bytes": None})))["disk_quota_bytes"] is None
        assert (await said(admin.patch(one, json={"disabled": True})))["disabled"] is True
        assert (await said(admin.patch(one, json={"disabled": False})))["disabled"] is False
        await said(admin.delete(one), 204)
        assert await code_of(admin.get(one), 404) == "USER_NOT_FOUND"
        entries = (await said(admin.get(f"/audit?object_id={made['id']}")))["items"]
        assert [entry["action"] for entry in entries] == ["users.delete", *["users.update"] * 4, "users.create"]
        assert "argon2" not in str(entries)
        assert (await said(admin.post("/audit/verify")))["ok"] is True

    REFUSED: ClassVar[list[tuple[dict[str, Any], str]]] = [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "Ada"}, "name"),
        ({"name": "../etc"}, "name"),
        ({"name": "a" * 65}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "ada\n"}, "name"),
        ({"name": "ada", "role": "owner"}, "role"),
        ({"name": "ada", "role": 4}, "role"),
        ({"name": "ada", "password": "short"}, "password"),
        ({"name": "ada", "password": "x" * 257}, "password"),
        ({"name": "ada", "disk_quota_bytes": -1}, "disk_quota_bytes"),
        ({"name": "ada", "disk_quota_bytes": "5"}, "disk_quota_bytes"),
        ({"name": "ada", "admin": True}, "admin"),
        ({"name": "ada", "token_epoch": 5}, "token_epoch"),
    ]

    async def test_what_is_no_user_is_refused(self, server: Running) -> None:
        """The field is named, what was sent is not repeated, and nothing was made."""
        for body, field in self.REFUSED:
            refused = await said(server.admin.post("/users", json=body), 422)
            assert [entry["field"] for entry in refused["error"]["details"]] == [field]
        assert len((await said(server.admin.get("/users")))["items"]) == 1

    async def test_a_name_is_taken_once(self, server: Running) -> None:
        """A second user of that name is a conflict."""
        await said(server.admin.post("/users", json={"name": "ada"}), 201)
        assert await code_of(server.admin.post("/users", json={"name": "ada"}), 409) == "USER_ALREADY_EXISTS"

    async def test_the_last_admin_stays(self, server_on_both: Running) -> None:
        """It can neither remove, nor disable, nor lower itself until there is another."""
        admin = server_on_both.admin
        me = (await said(admin.get("/whoami")))["user_id"]
        for call in (
            admin.delete(f"/users/{me}"),
            admin.patch(f"/users/{me}", json={"disabled": True}),
            admin.patch(f"/users/{me}", json={"role": "user"}),
        ):
            assert await code_of(call, 409) == "LAST_ADMIN"
        await said(admin.post("/users", json={"name": "second", "role": "admin"}), 201)
        await said(admin.delete(f"/users/{me}"), 204)
        assert await code_of(admin.get("/users"), 401) == "UNAUTHENTICATED"

    async def test_lists_come_in_pages(self, server: Running) -> None:
        """Along the cursors every user comes once; a foreign cursor and a limit out of bounds are refused."""
        for number in range(5):
            await said(server.admin.post("/users", json={"name": f"user-{number}"}), 201)
        seen: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            page = await said(server.admin.get(f"/users?limit=2{f'&cursor={cursor}' if cursor else ''}"))
            seen += [user["name"] for user in page["items"]]
            cursor = page["next_cursor"]
        assert seen == ["admin", *(f"user-{number}" for number in range(5))]
        for query in ("cursor=%21", "limit=0", "limit=201", "limit=x", "offset=1"):
            assert await code_of(server.admin.get(f"/users?{query}"), 422) == "INVALID_INPUT"

    async def test_everybody_sees_who_they_are(self, server: Running, clients: AsyncExitStack) -> None:
        """Role, scopes and used space of the caller itself."""
        ada = await server.make_user("ada", "moderator")
        me = await said(ada.get("/whoami"))
        assert (me["name"], me["role"], me["scopes"], me["csrf_token"]) == ("ada", "moderator", [], None)
        assert (me["user_id"], me["disk_used_bytes"]) == (server.user_ids["ada"], 0)
        narrow = await key_client(server, clients, ada, role="viewer", scopes=["users", "files"])
        me = await said(narrow.get("/whoami"))
        assert (me["role"], me["scopes"]) == ("viewer", ["files", "users"])


class TestKeys:
    """API keys."""

    async def test_their_whole_life(self, server_on_both: Running) -> None:
        """Made and shown once, used, listed without the key, revoked; then it opens nothing."""
        admin = server_on_both.admin
        made = await said(admin.post("/keys", json={"name": "laptop", "role": "viewer"}), 201)
        assert is_key(made["key"])
        assert made["key"].startswith(made["prefix"])
        async with server_on_both.client(made["key"]) as laptop:
            assert (await said(laptop.get("/whoami")))["key_id"] == made["id"]
            shown = await said(admin.get(f"/keys/{made['id']}"))
            listed = (await said(admin.get("/keys")))["items"]
            assert shown in listed
            assert "key" not in shown
            assert made["key"] not in str(listed)
            await said(admin.delete(f"/keys/{made['id']}"), 204)
            assert await code_of(laptop.get("/whoami"), 401) == "UNAUTHENTICATED"
        assert (await said(admin.get(f"/keys/{made['id']}")))["revoked_at"] is not None
        await said(admin.delete(f"/keys/{made['id']}"), 204)  # again changes nothing
        entries = (await said(admin.get(f"/audit?object_id={made['id']}")))["items"]
        assert [entry["action"] for entry in entries] == ["keys.revoke", "keys.create"]
        assert made["key"] not in str(entries)

    async def test_roles_never_widen(self, server: Running) -> None:
        """A user makes keys up to its own role, and none above it."""
        makers = {held: await server.make_user(f"maker-{held}", held) for held in ROLES[1:]}
        for (held, maker), asked in product(makers.items(), ROLES):
            call = maker.post("/keys", json={"name": "k", "role": asked})
            if ROLES.index(asked) <= ROLES.index(held):
                assert (await said(call, 201))["role"] == asked
            else:
                assert await code_of(call, 403) == "FORBIDDEN"

    async def test_a_lesser_key_makes_no_greater_one(self, server: Running, clients: AsyncExitStack) -> None:
        """An admin's key with the role user is a user's key: no admin's key, no key for others, no limits."""
        lesser = await key_client(server, clients, server.admin, role="user")
        other = (await said(server.admin.post("/users", json={"name": "ada"}), 201))["id"]
        for body in ({"role": "admin"}, {"user_id": other}, {"limits": {"per_minute": 10**6}}):
            assert await code_of(lesser.post("/keys", json={"name": "k", **body}), 403) == "FORBIDDEN"
        assert (await said(lesser.post("/keys", json={"name": "k"}), 201))["role"] == "user"

    async def test_scopes_never_widen(self, server: Running, clients: AsyncExitStack) -> None:
        """A narrowed key makes keys that are as narrow or narrower, says so, and reaches no other route."""
        narrow = await key_client(server, clients, server.admin, scopes=["keys", "files"])
        for scopes in ([], ["users"], ["keys", "users"]):
            assert await code_of(narrow.post("/keys", json={"name": "k", "scopes": scopes}), 403) == "FORBIDDEN"
        narrower = await key_client(server, clients, narrow, scopes=["files"])
        await said(narrower.get("/files"))
        assert await code_of(narrower.get("/keys"), 403) == "FORBIDDEN"
        assert await code_of(narrower.get("/users"), 403) == "FORBIDDEN"

    async def test_scopes_do_not_widen_for_others_either(self, server: Running, clients: AsyncExitStack) -> None:
        """An admin's narrowed key cannot make itself a wide one by way of another user."""
        narrow = await key_client(server, clients, server.admin, scopes=["keys"])
        other = (await said(server.admin.post("/users", json={"name": "ada"}), 201))["id"]
        body = {"name": "k", "user_id": other}
        assert await code_of(narrow.post("/keys", json=body), 403) == "FORBIDDEN"
        assert (await said(narrow.post("/keys", json={**body, "scopes": ["keys"]}), 201))["scopes"] == ["keys"]

    async def test_lives_never_lengthen(self, server: Running, clients: AsyncExitStack) -> None:
        """A key that expires makes keys that expire no later, whether asked to or not."""
        short = await key_client(server, clients, server.admin, expires_in_s=1000)
        end = datetime.fromisoformat((await said(server.admin.get("/keys")))["items"][-1]["expires_at"])
        heir = await said(short.post("/keys", json={"name": "k"}), 201)
        assert datetime.fromisoformat(heir["expires_at"]) == end
        shorter = await said(short.post("/keys", json={"name": "k", "expires_in_s": 10}), 201)
        assert datetime.fromisoformat(shorter["expires_at"]) < end - timedelta(seconds=900)
        assert await code_of(short.post("/keys", json={"name": "k", "expires_in_s": 2000}), 403) == "FORBIDDEN"

    async def test_a_key_for_another_has_at_most_their_role(self, server: Running) -> None:
        """An admin makes keys for others, up to what they are."""
        other = (await said(server.admin.post("/users", json={"name": "ada", "role": "user"}), 201))["id"]
        body = {"name": "k", "user_id": other}
        assert (await said(server.admin.post("/keys", json=body), 201))["role"] == "user"
        assert (await said(server.admin.post("/keys", json={**body, "role": "viewer"}), 201))["role"] == "viewer"
        assert await code_of(server.admin.post("/keys", json={**body, "role": "moderator"}), 403) == "FORBIDDEN"
        nobody = {"name": "k", "user_id": "user_none"}
        assert await code_of(server.admin.post("/keys", json=nobody), 404) == "USER_NOT_FOUND"

    async def test_a_key_keeps_the_limits_of_its_maker(self, server: Running, clients: AsyncExitStack) -> None:
        """A limit is not shaken off by making a second key."""
        ada = (await said(server.admin.post("/users", json={"name": "ada"}), 201))["id"]
        limits = {"per_minute": 50, "per_hour": None, "tokens_per_minute": 7}
        limited = await key_client(server, clients, server.admin, user_id=ada, limits=limits)
        assert (await said(limited.post("/keys", json={"name": "k"}), 201))["limits"] == limits

    REFUSED: ClassVar[list[tuple[dict[str, Any], str]]] = [
        ({"scopes": ["everything"]}, "scopes"),
        ({"scopes": ["files", "*"]}, "scopes"),
        ({"scopes": "files"}, "scopes"),
        ({"name": "a\x7f"}, "name"),
        ({"name": ""}, "name"),
        ({"expires_in_s": 0}, "expires_in_s"),
        ({"expires_in_s": 10**12}, "expires_in_s"),
        ({"expires_in_s": 1.5}, "expires_in_s"),
        ({"limits": {"per_minute": 0}}, "limits.per_minute"),
        ({"limits": {"per_second": 1}}, "limits.per_second"),
        ({"key": "sk-serai-mine"}, "key"),
    ]

    async def test_what_is_no_key_is_refused(self, server: Running) -> None:
        """Unknown scopes and members, and numbers out of bounds, are named."""
        for body, field in self.REFUSED:
            refused = await said(server.admin.post("/keys", json={"name": "k", **body}), 422)
            assert [entry["field"] for entry in refused["error"]["details"]] == [field]

    async def test_a_limit_of_a_key_is_kept(self, server: Running, clients: AsyncExitStack) -> None:
        """The second of two requests that are allowed shows 0, the third is refused with Retry-After."""
        limited = await key_client(server, clients, server.admin, limits={"per_minute": 2})
        answers = [await limited.get("/whoami") for _ in range(2)]
        assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["1", "0"]
        refused = await limited.get("/whoami")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "RATE_LIMITED")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        await said(server.admin.get("/whoami"))

    async def test_what_a_user_loses_its_keys_lose(self, server: Running) -> None:
        """Disabled: refused; enabled again: back; lowered: lowered; removed: gone."""
        ada = await server.make_user("ada", "moderator")
        one = f"/users/{server.user_ids['ada']}"
        await said(server.admin.patch(one, json={"disabled": True}))
        assert await code_of(ada.get("/whoami"), 401) == "UNAUTHENTICATED"
        await said(server.admin.patch(one, json={"disabled": False}))
        assert (await said(ada.get("/whoami")))["role"] == "moderator"
        await said(server.admin.patch(one, json={"role": "viewer"}))
        assert (await said(ada.get("/whoami")))["role"] == "viewer"
        await said(server.admin.delete(one), 204)
        assert await code_of(ada.get("/whoami"), 401) == "UNAUTHENTICATED"


class TestTokens:
    """Short-lived tokens."""

    async def test_a_token_does_what_its_key_does_and_no_more(self, server: Running, clients: AsyncExitStack) -> None:
        """The same role, scopes and id; it makes no further token and opens no session."""
        narrow = await key_client(server, clients, server.admin, role="user", scopes=["keys", "users"])
        made = await said(narrow.post("/tokens"), 201)
        async with server.client(made["token"]) as client:
            assert await said(client.get("/whoami")) == await said(narrow.get("/whoami"))
            assert await code_of(client.get("/files"), 403) == "FORBIDDEN"
            assert await code_of(client.get("/users"), 403) == "FORBIDDEN"
            assert await code_of(client.post("/tokens"), 403) == "FORBIDDEN"
        login = await server.anonymous.post("/login", json={"api_key": made["token"]})
        assert login.status_code in (401, 422)  # longer than any key, or not one

    async def test_it_ends_with_its_key(self, server: Running, clients: AsyncExitStack) -> None:
        """A revoked key takes its tokens along at once."""
        made = await said(server.admin.post("/keys", json={"name": "k"}), 201)
        async with server.client(made["key"]) as by_key:
            token = (await said(by_key.post("/tokens"), 201))["token"]
        by_token = await clients.enter_async_context(server.client(token))
        await said(by_token.get("/whoami"))
        await said(server.admin.delete(f"/keys/{made['id']}"), 204)
        assert await code_of(by_token.get("/whoami"), 401) == "UNAUTHENTICATED"

    async def test_a_change_of_its_user_ends_it(self, server: Running, clients: AsyncExitStack) -> None:
        """A new password, another role, disabling or enabling; the key itself goes on."""
        ada = await server.make_user("ada", "user")
        for change in ({"password": PASSWORD}, {"role": "viewer"}, {"disabled": False}):
            token = (await said(ada.post("/tokens"), 201))["token"]
            by_token = await clients.enter_async_context(server.client(token))
            await said(by_token.get("/whoami"))
            await said(server.admin.patch(f"/users/{server.user_ids['ada']}", json=change))
            assert await code_of(by_token.get("/whoami"), 401) == "UNAUTHENTICATED"
            await said(ada.get("/whoami"))

    async def test_a_quota_is_no_such_change(self, server: Running, clients: AsyncExitStack) -> None:
        """What does not touch access ends no token."""
        ada = await server.make_user("ada", "user")
        by_token = await clients.enter_async_context(server.client((await said(ada.post("/tokens"), 201))["token"]))
        await said(server.admin.patch(f"/users/{server.user_ids['ada']}", json={"disk_quota_bytes": 1}))
        await said(by_token.get("/whoami"))


class TestSessions:
    """Signing in with a browser."""

    @pytest.fixture
    async def browser(self, server: Running) -> AsyncIterator[httpx.AsyncClient]:
        """A client without a key, that keeps cookies."""
        await said(server.admin.post("/users", json={"name": "ada", "role": "admin", "password": PASSWORD}), 201)
        async with server.client() as client:
            yield client

    async def test_by_password_from_login_to_logout(self, browser: httpx.AsyncClient) -> None:
        """The cookie opens what the user may; a change needs the token; after logout the cookie is gone."""
        login = await browser.post("/login", json={"name": "ada", "password": PASSWORD})
        assert login.status_code == 200, login.text
        cookie = login.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "Path=/" in cookie
        assert "Secure" not in cookie  # over plain http on loopback it would not come back
        me = await said(browser.get("/whoami"))
        assert (me["name"], me["role"], me["csrf_token"]) == ("ada", "admin", login.json()["csrf_token"])
        assert await code_of(browser.post("/users", json={"name": "eve"}), 403) == "FORBIDDEN"
        token = {"x-csrf-token": me["csrf_token"]}
        await said(browser.post("/users", json={"name": "eve"}, headers=token), 201)
        await said(browser.post("/logout", headers=token), 204)
        assert await code_of(browser.get("/whoami"), 401) == "UNAUTHENTICATED"

    async def test_a_change_without_the_right_token_is_refused(self, browser: httpx.AsyncClient) -> None:
        """Missing, empty or wrong: every method that changes; reading goes without."""
        await said(browser.post("/login", json={"name": "ada", "password": PASSWORD}))
        me = (await said(browser.get("/whoami")))["user_id"]
        calls = (
            ("POST", "/users"),
            ("POST", "/users?dry_run=1"),
            ("PATCH", f"/users/{me}"),
            ("DELETE", f"/users/{me}"),
            ("PUT", "/secrets/a"),
            ("POST", "/logout"),
        )
        for (method, path), token in product(calls, (None, "", "x", "null")):
            headers = {} if token is None else {"x-csrf-token": token}
            assert await code_of(browser.request(method, path, headers=headers), 403) == "FORBIDDEN"
        await said(browser.get("/users"))

    async def test_who_has_a_session_may_sign_in_anew(self, browser: httpx.AsyncClient) -> None:
        """The form of the front page has no token of an older session, and needs none; it replaces the session."""
        for _ in range(2):
            login = await said(browser.post("/login", json={"name": "ada", "password": PASSWORD}))
        assert (await said(browser.get("/whoami")))["csrf_token"] == login["csrf_token"]

    async def test_the_token_of_another_session_does_not_fit(self, server: Running, browser: httpx.AsyncClient) -> None:
        """Each session has its own, of the same user too."""
        first = await said(browser.post("/login", json={"name": "ada", "password": PASSWORD}))
        second = await said(browser.post("/login", json={"name": "ada", "password": PASSWORD}))
        assert first["csrf_token"] != second["csrf_token"]
        headers = {"x-csrf-token": first["csrf_token"]}
        assert await code_of(browser.post("/users", json={"name": "x"}, headers=headers), 403) == "FORBIDDEN"

    async def test_by_key_it_holds_what_the_key_holds(self, server: Running, browser: httpx.AsyncClient) -> None:
        """Role and scopes of the key; it ends when the key is revoked."""
        made = await said(
            server.admin.post("/keys", json={"name": "k", "role": "viewer", "scopes": ["users", "files"]}), 201
        )
        await said(browser.post("/login", json={"api_key": made["key"]}))
        me = await said(browser.get("/whoami"))
        assert (me["role"], me["scopes"], me["key_id"]) == ("viewer", ["files", "users"], made["id"])
        assert await code_of(browser.get("/users"), 403) == "FORBIDDEN"
        assert await code_of(browser.post("/tokens", headers={"x-csrf-token": me["csrf_token"]}), 403) == "FORBIDDEN"
        await said(server.admin.delete(f"/keys/{made['id']}"), 204)
        assert await code_of(browser.get("/whoami"), 401) == "UNAUTHENTICATED"

    REFUSED: ClassVar[list[tuple[dict[str, str], int]]] = [
        ({"name": "ada", "password": "wrong horse"}, 401),
        ({"name": "nobody", "password": PASSWORD}, 401),
        ({"name": "admin", "password": PASSWORD}, 401),
        ({"api_key": "sk-serai-" + "x" * 43}, 401),
        ({"api_key": "x"}, 401),
        ({}, 422),
        ({"name": "ada"}, 422),
        ({"password": PASSWORD}, 422),
        ({"name": "ada", "password": PASSWORD, "api_key": "x"}, 422),
        ({"user": "ada", "password": PASSWORD}, 422),
    ]

    async def test_what_is_no_proof_opens_no_session(self, browser: httpx.AsyncClient) -> None:
        """No cookie comes back, and the words do not tell whether the name exists."""
        for body, status in self.REFUSED:
            answer = await browser.post("/login", json=body)
            assert answer.status_code == status, answer.text
            assert "set-cookie" not in answer.headers
            if "name" in body and status == 401:
                assert answer.json()["error"]["message"] == "The name or the password is wrong."

    async def test_a_new_password_ends_every_session(self, server: Running, browser: httpx.AsyncClient) -> None:
        """And the old password opens none."""
        user = (await said(browser.post("/login", json={"name": "ada", "password": PASSWORD})))["user_id"]
        await said(server.admin.patch(f"/users/{user}", json={"password": "another good one"}))
        assert await code_of(browser.get("/whoami"), 401) == "UNAUTHENTICATED"
        assert await code_of(browser.post("/login", json={"name": "ada", "password": PASSWORD}), 401)
        await said(browser.post("/login", json={"name": "ada", "password": "another good one"}))

    async def test_guessing_is_limited_by_address(self, tmp_path: Path) -> None:
        """After so many tries an address is refused, the right password included, and others' keys go on."""
        async with running(tmp_path / "home", address_limit_per_minute=3) as server, server.client() as browser:
            await said(server.admin.post("/users", json={"name": "ada", "password": PASSWORD}), 201)
            for _ in range(3):
                await said(browser.post("/login", json={"name": "ada", "password": "wrong horse"}), 401)
            assert await code_of(browser.post("/login", json={"name": "ada", "password": PASSWORD}), 429)
            async with server.client("sk-serai-" + "x" * 43) as guesser:
                assert await code_of(guesser.get("/whoami"), 429) == "RATE_LIMITED"


class TestWithoutAuth:
    """auth = off: a private machine."""

    async def test_everybody_is_the_admin_of_it(self, tmp_path: Path) -> None:
        """No key is needed, `whoami` says who everybody is, and keys that nobody needs cannot be made."""
        async with running(tmp_path / "home", auth="off") as server:
            me = await said(server.anonymous.get("/whoami"))
            assert (me["user_id"], me["role"]) == ("local", "admin")
            await said(server.anonymous.post("/users", json={"name": "ada"}), 201)
            assert await code_of(server.anonymous.post("/keys", json={"name": "k"}), 404) == "USER_NOT_FOUND"
            assert await code_of(server.anonymous.post("/tokens"), 403) == "FORBIDDEN"

    def test_the_settings_allow_it_on_loopback_alone(self) -> None:
        """The application cannot be composed otherwise."""
        with pytest.raises(ValueError, match="only on a loopback address"):
            Settings(auth="off", host="0.0.0.0")


async def test_every_change_can_be_rehearsed(server_on_both: Running) -> None:
    """dry_run=1 answers with the audit entries that would be written, and nothing is there afterwards."""
    admin = server_on_both.admin
    ada = (await said(admin.post("/users", json={"name": "ada"}), 201))["id"]
    key = (await said(admin.post("/keys", json={"name": "k", "user_id": ada}), 201))["id"]
    secret = {"value": "planted", "origins": ["https://hub.example"]}
    await said(admin.put("/secrets/old", json=secret))
    calls: dict[str, tuple[str, str, Any]] = {
        "users.create": ("POST", "/users", {"name": "eve", "password": PASSWORD}),
        "users.update": ("PATCH", f"/users/{ada}", {"role": "admin"}),
        "users.delete": ("DELETE", f"/users/{ada}", None),
        "keys.create": ("POST", "/keys", {"name": "new"}),
        "keys.revoke": ("DELETE", f"/keys/{key}", None),
        "secrets.put": ("PUT", "/secrets/new", secret),
        "secrets.delete": ("DELETE", "/secrets/old", None),
    }
    before = [await said(admin.get(path)) for path in ("/audit/head", "/users", "/secrets")]
    for action, (method, path, body) in calls.items():
        told = await said(admin.request(method, f"{path}?dry_run=1", json=body))
        assert told["dry_run"] is True
        assert [entry["action"] for entry in told["changes"]] == [action]
        assert "planted" not in str(told)
    assert [await said(admin.get(path)) for path in ("/audit/head", "/users", "/secrets")] == before
    assert len((await said(admin.get("/keys")))["items"]) == 2


async def test_what_cannot_be_rehearsed_refuses_to_be(server: Running) -> None:
    """A call without a rehearsal does not silently do the real thing."""
    for method, path in (("POST", "/tokens"), ("POST", "/login"), ("POST", "/logout"), ("GET", "/users")):
        refused = await said(server.admin.request(method, f"{path}?dry_run=1"), 422)
        assert refused["error"]["details"][0]["field"] == "dry_run"
    assert await code_of(server.admin.post("/users?dry_run=yes", json={"name": "ada"}), 422) == "INVALID_INPUT"
    assert len((await said(server.admin.get("/users")))["items"]) == 1
