"""Locks in the database: one holder at a time among all servers, until the transaction ends."""

from enum import IntEnum

import sqlalchemy as sa

from serai.storage.database import Connection


class Lock(IntEnum):
    """What is locked, by the number that PostgreSQL knows it under; two parts never share one."""

    SCHEMA = 0x5E8A1
    AUDIT = 0x5E8A2
    USERS = 0x5E8A3
    REGISTRY = 0x5E8A4


def hold(connection: Connection, lock: Lock | str) -> None:
    """Wait for `lock`, and hold it until the transaction ends; a text locks what it names alone.

    Does nothing on SQLite, whose writers are serial already.
    """
    if connection.dialect.name != "postgresql":
        return
    if isinstance(lock, Lock):
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": int(lock)})
    else:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": lock})
