"""From a credential to a caller: the database is asked once, then the answer is kept until access changes."""

import asyncio
import threading
from collections import OrderedDict
from dataclasses import replace
from datetime import datetime, timedelta

from serai.auth import store
from serai.auth.credentials import Claims, Passwords, Tokens, is_key, key_digest
from serai.auth.policy import Caller, Role
from serai.clock import Clock
from serai.errors import Unauthenticated
from serai.storage.database import Connection, Database

MAX_KEPT = 10_000
_REJECTED = "This key or token is not valid: unknown, expired or revoked."

NOBODY_ASKED = Caller(user_id="local", name="local", role=Role.ADMIN, limit_id="local")
"""The caller of everything where auth is off."""


class Callers:
    """Authenticates. What it keeps is dropped when anything about access changes, on any server.

    A caller read before a change is never kept after it: the generation tells.
    """

    def __init__(self, database: Database, tokens: Tokens, passwords: Passwords, clock: Clock) -> None:
        self._database = database
        self._tokens = tokens
        self._passwords = passwords
        self._clock = clock
        self._kept: OrderedDict[str, tuple[Caller, datetime | None]] = OrderedDict()
        self._generation = 0
        self._lock = threading.Lock()
        self._used: dict[str, datetime] = {}
        database.notices.subscribe(store.TOPIC, self._forget)

    async def by_bearer(self, credential: str) -> Caller:
        """Return who holds the API key or token. Raises Unauthenticated."""
        return await (self._by_key(credential) if is_key(credential) else self._by_token(credential))

    async def by_session(self, cookie: str) -> Caller:
        """Return who holds the session cookie. Raises Unauthenticated."""
        caller = await self._by_token(cookie)
        if caller.csrf is None:
            raise Unauthenticated(_REJECTED)
        return caller

    async def by_password(self, name: str, password: str) -> store.User:
        """Return the user of that name and password. Raises Unauthenticated, as slowly for an unknown name."""
        user = await self._database.read(store.find_user, name)
        stored = user.password_hash if user is not None and user.disabled_at is None else None
        matches = await asyncio.to_thread(self._passwords.matches, stored, password)
        if user is None or not matches:
            raise Unauthenticated("The name or the password is wrong.", hint="An admin can set a new password.")
        return user

    def issue(
        self, user: store.User, caller: Caller | None, life_s: float, csrf: str | None = None
    ) -> tuple[str, datetime]:
        """Return a token for `user` that holds no more than `caller` does, and when it expires."""
        expires = self._clock.now() + timedelta(seconds=life_s)
        claims = Claims(
            user_id=user.id,
            epoch=user.token_epoch,
            role=(caller.role if caller else user.role).label,
            scopes=tuple(sorted(caller.scopes)) if caller else (),
            key_id=caller.key_id if caller else None,
            csrf=csrf,
            expires_at=expires,
        )
        return self._tokens.sign(claims, self._clock.now()), expires

    async def write_last_used(self) -> None:
        """Store when keys were last used; called now and then."""
        used, self._used = self._used, {}
        if used:
            await self._database.run(store.touch_keys, used)

    async def _by_key(self, key: str) -> Caller:
        digest = key_digest(key)
        found = self._kept.get(digest)
        if found is None:
            generation = self._generation
            found = await self._database.read(_load_key, digest, self._clock.now())
            self._keep(digest, found, generation)
        caller, expires = found
        now = self._clock.now()
        if expires is not None and expires <= now:
            raise Unauthenticated(_REJECTED)
        if caller.key_id is not None:
            self._used[caller.key_id] = now
        return caller

    async def _by_token(self, token: str) -> Caller:
        claims = self._tokens.read(token, self._clock.now())
        if claims is None:
            raise Unauthenticated(_REJECTED)
        key = f"{claims.user_id} {claims.epoch} {claims.role} {claims.scopes} {claims.key_id}"
        found = self._kept.get(key)
        if found is None:
            generation = self._generation
            found = await self._database.read(_load_token, claims, self._clock.now())
            self._keep(key, found, generation)
        if found[1] is not None and found[1] <= self._clock.now():
            raise Unauthenticated(_REJECTED)
        return replace(found[0], csrf=claims.csrf, shows_key=False)

    def _keep(self, key: str, found: tuple[Caller, datetime | None], generation: int) -> None:
        with self._lock:
            if generation != self._generation:
                return
            self._kept[key] = found
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)

    def _forget(self, _: str | None) -> None:
        with self._lock:
            self._generation += 1
            self._kept.clear()


def _load_key(connection: Connection, digest: str, now: datetime) -> tuple[Caller, datetime | None]:
    found = store.find_key(connection, digest)
    if found is None:
        raise Unauthenticated(_REJECTED)
    key, user = found
    return _caller_of_key(key, user, now), key.expires_at


def _caller_of_key(key: store.ApiKey, user: store.User, now: datetime) -> Caller:
    expired = key.expires_at is not None and key.expires_at <= now
    if key.revoked_at is not None or user.disabled_at is not None or expired:
        raise Unauthenticated(_REJECTED)
    return Caller(
        user_id=user.id,
        name=user.name,
        role=min(key.role, user.role),
        limit_id=key.id,
        key_id=key.id,
        expires_at=key.expires_at,
        scopes=key.scopes,
        limits=key.limits,
        disk_quota_bytes=user.disk_quota_bytes,
        shows_key=True,
    )


def _load_token(connection: Connection, claims: Claims, now: datetime) -> tuple[Caller, datetime | None]:
    try:
        user = store.get_user(connection, claims.user_id)
        key = None if claims.key_id is None else store.get_key(connection, claims.key_id)
        role = min(Role.of(claims.role), user.role)
    except (store.UserNotFound, store.KeyNotFound, KeyError):
        raise Unauthenticated(_REJECTED) from None
    if user.disabled_at is not None or user.token_epoch != claims.epoch:
        raise Unauthenticated(_REJECTED)
    if key is not None:
        return _caller_of_key(key, user, now), key.expires_at
    caller = Caller(
        user_id=user.id,
        name=user.name,
        role=role,
        limit_id=user.id,
        scopes=frozenset(claims.scopes),
        disk_quota_bytes=user.disk_quota_bytes,
    )
    return caller, None
