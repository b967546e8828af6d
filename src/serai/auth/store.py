"""Users and API keys in the database. Every change writes its audit entry and announces `access`."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Row

from serai.audit import SYSTEM, Actor, record
from serai.auth.policy import RequestLimits, Role
from serai.errors import Conflict, NotFound
from serai.storage.locks import Lock, hold
from serai.storage.notices import announce
from serai.storage.tables.access import api_keys, secrets, users

TOPIC = "access"


class UserNotFound(NotFound):
    code = "USER_NOT_FOUND"


class UserAlreadyExists(Conflict):
    code = "USER_ALREADY_EXISTS"


class LastAdmin(Conflict):
    code = "LAST_ADMIN"
    default_hint = "Give another user the role admin first."


class KeyNotFound(NotFound):
    code = "KEY_NOT_FOUND"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    id: str
    name: str
    role: Role
    password_hash: str | None
    token_epoch: int
    disk_quota_bytes: int | None
    disabled_at: datetime | None
    created_at: datetime
    updated_at: datetime
    created_by: str

    @classmethod
    def from_row(cls, row: Row[Any]) -> "User":
        values = dict(row._mapping)
        return cls(**{**values, "role": Role.of(values["role"])})

    def audited(self) -> dict[str, Any]:
        """Return what the audit log may show."""
        return {
            "name": self.name,
            "role": self.role.label,
            "disabled": self.disabled_at is not None,
            "has_password": self.password_hash is not None,
            "disk_quota_bytes": self.disk_quota_bytes,
            "token_epoch": self.token_epoch,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    id: str
    user_id: str
    name: str
    prefix: str
    role: Role
    scopes: frozenset[str]
    limits: RequestLimits
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    created_at: datetime
    created_by: str

    @classmethod
    def from_row(cls, row: Row[Any]) -> "ApiKey":
        limits = RequestLimits(
            per_minute=row.limit_per_minute,
            per_hour=row.limit_per_hour,
            tokens_per_minute=row.limit_tokens_per_minute,
        )
        return cls(
            id=row.id,
            user_id=row.user_id,
            name=row.name,
            prefix=row.prefix,
            role=Role.of(row.role),
            scopes=frozenset(row.scopes),
            limits=limits,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            last_used_at=row.last_used_at,
            created_at=row.created_at,
            created_by=row.created_by,
        )

    def audited(self) -> dict[str, Any]:
        """Return what the audit log may show."""
        expires = None if self.expires_at is None else self.expires_at.isoformat()
        return {
            "user_id": self.user_id,
            "name": self.name,
            "prefix": self.prefix,
            "role": self.role.label,
            "scopes": sorted(self.scopes),
            "expires_at": expires,
            "revoked": self.revoked_at is not None,
        }


def create_user(connection: Connection, user: User, actor: Actor) -> User:
    """Insert `user`. Raises UserAlreadyExists if the name is taken."""
    lock_users(connection)
    taken = connection.execute(sa.select(users.c.id).where(users.c.name == user.name)).first()
    if taken is not None:
        raise UserAlreadyExists(f"There is a user {user.name} already.")
    values = {column.name: getattr(user, column.name) for column in users.c}
    connection.execute(sa.insert(users).values(**{**values, "role": user.role.label}))
    record(connection, actor, "users.create", "user", user.id, at=user.created_at, after=user.audited())
    announce(connection, TOPIC, user.id)
    return user


def create_first_admin(connection: Connection, admin: User, key: ApiKey, digest: str) -> bool:
    """Insert the first user with its key, unless another server was faster; says whether it did."""
    lock_users(connection)
    if list_users(connection, limit=1, after=None):
        return False
    create_user(connection, admin, SYSTEM)
    create_key(connection, key, digest, SYSTEM)
    return True


def get_user(connection: Connection, user_id: str) -> User:
    """Return the user. Raises UserNotFound."""
    row = connection.execute(sa.select(users).where(users.c.id == user_id)).first()
    if row is None:
        raise UserNotFound("No such user.", hint="GET /users lists them.")
    return User.from_row(row)


def find_user(connection: Connection, name: str) -> User | None:
    """Return the user of that name, if there is one."""
    row = connection.execute(sa.select(users).where(users.c.name == name)).first()
    return None if row is None else User.from_row(row)


def find_admin(connection: Connection) -> User | None:
    """Return the oldest admin that is not disabled, if there is one."""
    admins = sa.select(users).where(users.c.role == Role.ADMIN.label, users.c.disabled_at.is_(None))
    row = connection.execute(admins.order_by(users.c.id).limit(1)).first()
    return None if row is None else User.from_row(row)


def list_users(connection: Connection, *, limit: int, after: str | None) -> list[User]:
    """Return at most `limit` users in the order of their ids, behind `after`."""
    query = sa.select(users).order_by(users.c.id).limit(limit)
    if after is not None:
        query = query.where(users.c.id > after)
    return [User.from_row(row) for row in connection.execute(query)]


def update_user(
    connection: Connection,
    user_id: str,
    changes: dict[str, Any],
    actor: Actor,
    at: datetime,
    *,
    ends_tokens: bool = False,
) -> User:
    """Apply `changes` (columns of `users`). Raises UserNotFound, LastAdmin."""
    lock_users(connection)
    before = get_user(connection, user_id)
    values = dict(changes)
    if "role" in values:
        values["role"] = values["role"].label
    if ends_tokens:
        values["token_epoch"] = before.token_epoch + 1
    connection.execute(sa.update(users).where(users.c.id == user_id).values(**values, updated_at=at))
    after = get_user(connection, user_id)
    _keep_an_admin(connection, before)
    record(connection, actor, "users.update", "user", user_id, at=at, before=before.audited(), after=after.audited())
    announce(connection, TOPIC, user_id)
    return after


def delete_user(connection: Connection, user_id: str, actor: Actor, at: datetime) -> None:
    """Remove the user and its keys. Raises UserNotFound, LastAdmin."""
    lock_users(connection)
    before = get_user(connection, user_id)
    connection.execute(sa.delete(users).where(users.c.id == user_id))
    _keep_an_admin(connection, before)
    record(connection, actor, "users.delete", "user", user_id, at=at, before=before.audited())
    announce(connection, TOPIC, user_id)


def lock_users(connection: Connection) -> None:
    """Serialise what counts admins, takes names and names users; SQLite's writers are serial already."""
    hold(connection, Lock.USERS)


def _keep_an_admin(connection: Connection, changed: User) -> None:
    if changed.role is not Role.ADMIN or changed.disabled_at is not None:
        return
    admins = sa.select(sa.func.count()).where(users.c.role == Role.ADMIN.label, users.c.disabled_at.is_(None))
    if connection.execute(admins).scalar_one() == 0:
        raise LastAdmin("This would leave the server without an admin.")


def create_key(connection: Connection, key: ApiKey, digest: str, actor: Actor) -> ApiKey:
    """Insert `key`, found later by the SHA-256 `digest` of its text. Raises UserNotFound."""
    lock_users(connection)  # so that the user is not removed meanwhile
    get_user(connection, key.user_id)
    connection.execute(
        sa.insert(api_keys).values(
            id=key.id,
            user_id=key.user_id,
            name=key.name,
            digest=digest,
            prefix=key.prefix,
            role=key.role.label,
            scopes=sorted(key.scopes),
            limit_per_minute=key.limits.per_minute,
            limit_per_hour=key.limits.per_hour,
            limit_tokens_per_minute=key.limits.tokens_per_minute,
            expires_at=key.expires_at,
            created_at=key.created_at,
            created_by=key.created_by,
        )
    )
    record(connection, actor, "keys.create", "key", key.id, at=key.created_at, after=key.audited())
    announce(connection, TOPIC, key.id)
    return key


def get_key(connection: Connection, key_id: str) -> ApiKey:
    """Return the key. Raises KeyNotFound."""
    row = connection.execute(sa.select(api_keys).where(api_keys.c.id == key_id)).first()
    if row is None:
        raise KeyNotFound("No such key.", hint="GET /keys lists yours.")
    return ApiKey.from_row(row)


def find_key(connection: Connection, digest: str) -> tuple[ApiKey, User] | None:
    """Return the key whose text has that SHA-256, with its user."""
    row = connection.execute(sa.select(api_keys).where(api_keys.c.digest == digest)).first()
    return None if row is None else (ApiKey.from_row(row), get_user(connection, row.user_id))


def list_keys(connection: Connection, *, user_id: str | None, limit: int, after: str | None) -> list[ApiKey]:
    """Return at most `limit` keys in the order of their ids, behind `after`; of one user or of all."""
    query = sa.select(api_keys).order_by(api_keys.c.id).limit(limit)
    if user_id is not None:
        query = query.where(api_keys.c.user_id == user_id)
    if after is not None:
        query = query.where(api_keys.c.id > after)
    return [ApiKey.from_row(row) for row in connection.execute(query)]


def revoke_key(connection: Connection, key_id: str, actor: Actor, at: datetime) -> None:
    """End the key for good; revoking it again changes nothing. Raises KeyNotFound."""
    before = get_key(connection, key_id)
    announce(connection, TOPIC, key_id)
    living = sa.update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    if connection.execute(living.values(revoked_at=at)).rowcount == 0:
        return
    after = get_key(connection, key_id)
    record(connection, actor, "keys.revoke", "key", key_id, at=at, before=before.audited(), after=after.audited())


def touch_keys(connection: Connection, used: dict[str, datetime]) -> None:
    """Note when keys were last used."""
    for key_id, at in used.items():
        connection.execute(sa.update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=at))


def find_secret(connection: Connection, name: str) -> Row[Any] | None:
    """Return the row of a secret, if there is one; its value is ciphertext."""
    return connection.execute(sa.select(secrets).where(secrets.c.name == name)).first()


def list_secrets(connection: Connection, *, limit: int, after: str | None) -> list[Row[Any]]:
    """Return at most `limit` rows of secrets by name, behind `after`."""
    query = sa.select(secrets).order_by(secrets.c.name).limit(limit)
    if after is not None:
        query = query.where(secrets.c.name > after)
    return list(connection.execute(query))


def put_secret(
    connection: Connection, name: str, ciphertext: bytes, origins: list[str], *, at: datetime, by: str
) -> None:
    """Insert or replace the row of a secret."""
    values = {"ciphertext": ciphertext, "origins": origins, "updated_at": at, "updated_by": by}
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    insert = dialect.insert(secrets).values(name=name, created_at=at, **values)
    connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=values))


def delete_secret(connection: Connection, name: str) -> bool:
    """Remove the row of a secret; says whether there was one."""
    return connection.execute(sa.delete(secrets).where(secrets.c.name == name)).rowcount > 0
