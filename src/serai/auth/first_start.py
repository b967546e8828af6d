"""The first start: one admin, whose key goes into a private file and nowhere else."""

import asyncio
from pathlib import Path

import structlog

from serai.audit import SYSTEM
from serai.auth import store
from serai.auth.credentials import key_digest, key_prefix, new_key
from serai.auth.policy import RequestLimits, Role
from serai.clock import Clock
from serai.ids import NewId
from serai.storage.database import Connection, Database
from serai.storage.home import Home

log = structlog.get_logger(__name__)

ADMIN_KEY_FILE = "admin.key"


async def first_start(database: Database, home: Home, clock: Clock, new_id: NewId) -> None:
    """Make the admin if there is no user. The file is written first: a key that nobody could read helps nobody."""
    if await database.read(store.list_users, limit=1, after=None):
        return
    admin, key = _admin(clock, new_id), new_key()
    api_key = _admin_key(admin, key, "first start", clock, new_id)
    path = await asyncio.to_thread(home.write_private, ADMIN_KEY_FILE, key.encode() + b"\n")
    if await database.run(store.create_first_admin, admin, api_key, key_digest(key)):
        log.info("the first admin key was written", file=str(path))
    else:  # another server on this database was faster
        path.unlink()


def recover(database: Database, home: Home, clock: Clock, new_id: NewId) -> Path:
    """Write a new admin key for whoever holds the home folder; return its file. The server must be stopped.

    The oldest admin that is not disabled gets the key; where there is none, a new admin does.
    """
    key = new_key()

    def step(connection: Connection) -> None:
        admin = store.find_admin(connection)
        if admin is None:
            admin = store.create_user(connection, _admin(clock, new_id, name=new_id("admin")), SYSTEM)
        store.create_key(connection, _admin_key(admin, key, "recovered", clock, new_id), key_digest(key), SYSTEM)

    database.run_sync(step)
    return home.write_private(ADMIN_KEY_FILE, key.encode() + b"\n")


def _admin(clock: Clock, new_id: NewId, name: str = "admin") -> store.User:
    now = clock.now()
    return store.User(
        id=new_id("user"),
        name=name,
        role=Role.ADMIN,
        password_hash=None,
        token_epoch=0,
        disk_quota_bytes=None,
        disabled_at=None,
        created_at=now,
        updated_at=now,
        created_by=SYSTEM.id,
    )


def _admin_key(admin: store.User, key: str, name: str, clock: Clock, new_id: NewId) -> store.ApiKey:
    return store.ApiKey(
        id=new_id("key"),
        user_id=admin.id,
        name=name,
        prefix=key_prefix(key),
        role=Role.ADMIN,
        scopes=frozenset(),
        limits=RequestLimits(),
        expires_at=None,
        revoked_at=None,
        last_used_at=None,
        created_at=clock.now(),
        created_by=SYSTEM.id,
    )
