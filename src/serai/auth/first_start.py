"""The first start: one admin, whose key goes into a private file and nowhere else."""

import asyncio

import structlog

from serai.audit import SYSTEM
from serai.auth import store
from serai.auth.credentials import key_digest, key_prefix, new_key
from serai.auth.policy import RequestLimits, Role
from serai.clock import Clock
from serai.ids import NewId
from serai.storage.database import Database
from serai.storage.home import Home

log = structlog.get_logger(__name__)

ADMIN_KEY_FILE = "admin.key"


async def first_start(database: Database, home: Home, clock: Clock, new_id: NewId) -> None:
    """Make the admin if there is no user. The file is written first: a key that nobody could read helps nobody."""
    if await database.read(store.list_users, limit=1, after=None):
        return
    key, now = new_key(), clock.now()
    admin = store.User(
        id=new_id("user"),
        name="admin",
        role=Role.ADMIN,
        password_hash=None,
        token_epoch=0,
        disk_quota_bytes=None,
        disabled_at=None,
        created_at=now,
        updated_at=now,
        created_by=SYSTEM.id,
    )
    api_key = store.ApiKey(
        id=new_id("key"),
        user_id=admin.id,
        name="first start",
        prefix=key_prefix(key),
        role=Role.ADMIN,
        scopes=frozenset(),
        limits=RequestLimits(),
        expires_at=None,
        revoked_at=None,
        last_used_at=None,
        created_at=now,
        created_by=SYSTEM.id,
    )
    path = await asyncio.to_thread(home.write_private, ADMIN_KEY_FILE, key.encode() + b"\n")
    if await database.run(store.create_first_admin, admin, api_key, key_digest(key)):
        log.info("the first admin key was written", file=str(path))
    else:  # another server on this database was faster
        path.unlink()
