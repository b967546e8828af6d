"""The rows of sessions. Store functions, each run in a transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serai.chat.errors import SessionBusy, SessionNotFound
from serai.errors import Conflict
from serai.storage.tables.chat import chat_messages, chat_sessions

MAX_SESSIONS = 1000
"""Of one owner."""
MAX_KEPT = 4096
"""Messages of one session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A chat whose history the server keeps. `max_history`: how many of the last messages the model is told."""

    id: str
    owner_id: str
    model: str | None
    service: str | None
    options: Mapping[str, Any]
    max_history: int
    ttl_s: float
    last_seq: int
    created_at: datetime
    updated_at: datetime
    expires_at: datetime


_SHOWN = tuple(chat_sessions.c[name] for name in Session.__slots__)


def create(connection: Connection, session: Session) -> None:
    """Store a new session. Raises Conflict for one more than an owner may have."""
    living = (chat_sessions.c.owner_id == session.owner_id, chat_sessions.c.expires_at > session.created_at)
    count = connection.execute(sa.select(sa.func.count()).select_from(chat_sessions).where(*living)).scalar_one()
    if count >= MAX_SESSIONS:
        raise Conflict(
            f"A user has at most {MAX_SESSIONS} sessions.", hint="Delete one, or let some end: DELETE /sessions/{id}."
        )
    values = {name: getattr(session, name) for name in Session.__slots__}
    connection.execute(sa.insert(chat_sessions).values(values | {"claim": None, "claim_until": None}))


def get(connection: Connection, id_: str, *, owner_id: str, now: datetime) -> Session:
    """Return a session. Raises SessionNotFound, for another owner's and for one that has ended, too."""
    row = connection.execute(sa.select(*_SHOWN).where(*_living(id_, owner_id, now))).one_or_none()
    if row is None:
        raise SessionNotFound("There is no such session.")
    return Session(**row._mapping)


def messages(connection: Connection, id_: str, *, last: int) -> list[Mapping[str, Any]]:
    """Return the last messages of a session in OpenAI's form, the oldest of them first."""
    query = (
        sa.select(chat_messages.c.message)
        .where(chat_messages.c.session_id == id_)
        .order_by(chat_messages.c.seq.desc())
        .limit(last)
    )
    return list(connection.execute(query).scalars())[::-1]


def systems(connection: Connection, id_: str) -> list[Mapping[str, Any]]:
    """Return the system's messages that began the session; they are told however long it gets."""
    query = sa.select(chat_messages.c.message).where(chat_messages.c.session_id == id_).order_by(chat_messages.c.seq)
    first = list(connection.execute(query.limit(16)).scalars())
    count = next((number for number, message in enumerate(first) if message["role"] != "system"), len(first))
    return first[:count]


def claim(connection: Connection, id_: str, claim_id: str, *, owner_id: str, now: datetime, until: datetime) -> Session:
    """Begin to answer a message of a session, alone until `until`. Raises SessionNotFound, SessionBusy, Conflict."""
    session = get(connection, id_, owner_id=owner_id, now=now)
    is_free = sa.or_(chat_sessions.c.claim.is_(None), chat_sessions.c.claim_until < now)
    taken = connection.execute(
        sa.update(chat_sessions)
        .where(*_living(id_, owner_id, now), is_free)
        .values(claim=claim_id, claim_until=until, expires_at=max(session.expires_at, until))
    )
    if taken.rowcount == 0:
        raise SessionBusy("A message of this session is being answered.", retry_after=1)
    if session.last_seq >= MAX_KEPT:
        raise Conflict(f"A session has at most {MAX_KEPT} messages.", hint="Make a new one with POST /sessions.")
    return session


def append(
    connection: Connection,
    id_: str,
    claim_id: str | None,
    added: Sequence[Mapping[str, Any]],
    *,
    now: datetime,
    ttl_s: float,
) -> bool:
    """Add messages and give the claim back; False, and nothing added, where the claim is lost or the session gone."""
    is_ours = chat_sessions.c.claim.is_(None) if claim_id is None else chat_sessions.c.claim == claim_id
    row = connection.execute(
        sa.update(chat_sessions)
        .where(chat_sessions.c.id == id_, is_ours)
        .values(
            last_seq=chat_sessions.c.last_seq + len(added),
            claim=None,
            claim_until=None,
            updated_at=now,
            expires_at=now + timedelta(seconds=ttl_s),
        )
        .returning(chat_sessions.c.last_seq)
    ).one_or_none()
    if row is None:
        return False
    first = row.last_seq - len(added) + 1
    rows = [
        {"session_id": id_, "seq": first + number, "message": dict(message), "created_at": now}
        for number, message in enumerate(added)
    ]
    if rows:
        connection.execute(sa.insert(chat_messages), rows)
    return True


def delete(connection: Connection, id_: str, *, owner_id: str, now: datetime) -> None:
    """Remove a session with its messages. Raises SessionNotFound."""
    if connection.execute(sa.delete(chat_sessions).where(*_living(id_, owner_id, now))).rowcount == 0:
        raise SessionNotFound("There is no such session.")


def prune(connection: Connection, now: datetime) -> int:
    """Remove the sessions whose time is over; return how many."""
    return connection.execute(sa.delete(chat_sessions).where(chat_sessions.c.expires_at <= now)).rowcount


def _living(id_: str, owner_id: str, now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return chat_sessions.c.id == id_, chat_sessions.c.owner_id == owner_id, chat_sessions.c.expires_at > now
