"""Users and keys in a database, for tests of what stands on them."""

from datetime import UTC, datetime
from itertools import count
from typing import Any

from serai.audit import Actor
from serai.auth import store
from serai.auth.credentials import key_digest, key_prefix, new_key
from serai.auth.policy import RequestLimits, Role
from serai.storage.database import Database

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ACTOR = Actor(id="user_test", address="192.0.2.1", request_id="req_1")
_NUMBERS = count(1)


def a_user(name: str, role: Role = Role.USER, **values: Any) -> store.User:
    """Return a user with an id of its own, not stored."""
    given: dict[str, Any] = {
        "id": f"user_{next(_NUMBERS):06}",
        "name": name,
        "role": role,
        "password_hash": None,
        "token_epoch": 0,
        "disk_quota_bytes": None,
        "disabled_at": None,
        "created_at": NOW,
        "updated_at": NOW,
        "created_by": ACTOR.id,
    }
    return store.User(**{**given, **values})


def a_key(user_id: str, role: Role = Role.USER, **values: Any) -> store.ApiKey:
    """Return a key with an id of its own, not stored; its text is made by `add_key`."""
    given: dict[str, Any] = {
        "id": f"key_{next(_NUMBERS):06}",
        "user_id": user_id,
        "name": "test",
        "prefix": "sk-serai-000000",
        "role": role,
        "scopes": frozenset(),
        "limits": RequestLimits(),
        "expires_at": None,
        "revoked_at": None,
        "last_used_at": None,
        "created_at": NOW,
        "created_by": ACTOR.id,
    }
    return store.ApiKey(**{**given, **values})


def add_user(database: Database, name: str, role: Role = Role.USER, **values: Any) -> store.User:
    """Store a user."""
    return database.run_sync(store.create_user, a_user(name, role, **values), ACTOR)


def add_key(database: Database, user: store.User, role: Role | None = None, **values: Any) -> tuple[store.ApiKey, str]:
    """Store a key of `user` and return it with its text."""
    text = new_key()
    key = a_key(user.id, user.role if role is None else role, **{"prefix": key_prefix(text), **values})
    return database.run_sync(store.create_key, key, key_digest(text), ACTOR), text
