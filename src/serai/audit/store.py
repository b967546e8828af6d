"""The audit log's rows and their chain.

Each row holds the hash of the row before it, so that changing or removing one breaks every later
hash. Cutting off the end cannot be seen from the rows alone: keep a `head` elsewhere and hand it to
`verify`. Writers are serialised (SQLite has one; PostgreSQL takes an advisory lock until commit),
so the chain never forks and has no gaps.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from serai.storage.locks import Lock, hold
from serai.storage.tables.base import to_microseconds
from serai.storage.tables.log import audit

GENESIS = "0" * 64
EFFECTS = "serai_effects"
"""Under this key a connection's `info` has what its transaction recorded so far; see `take_effects`."""

# Made once: every change of anything runs them.
_HEAD = sa.select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)
_APPEND = sa.insert(audit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who acts: a user's id, or `system`; from which address; in which request."""

    id: str
    address: str | None = None
    request_id: str | None = None


SYSTEM = Actor(id="system")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One change. `before` and `after` are JSON values without secrets; None where there was or is nothing."""

    seq: int
    at: datetime
    actor: str
    action: str
    object_kind: str
    object_id: str
    before: Any
    after: Any
    address: str | None
    request_id: str | None
    prev_hash: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The end of the chain: what to keep elsewhere to notice a cut."""

    seq: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What `verify` found: `broken_at` is the first row whose hash, link or number is wrong."""

    ok: bool
    entries: int
    broken_at: int | None
    problem: str | None
    head: Head


def record(
    connection: Connection,
    actor: Actor,
    action: str,
    kind: str,
    object_id: str,
    *,
    at: datetime,
    before: Any = None,
    after: Any = None,
) -> int:
    """Append one entry and return its number; it exists exactly if the caller's transaction commits.

    Values must be JSON.
    """
    hold(connection, Lock.AUDIT)
    last = head(connection)
    row = {
        "seq": last.seq + 1,
        "at": at,
        "actor": actor.id,
        "action": action,
        "object_kind": kind,
        "object_id": object_id,
        "before": None if before is None else _canonical(before),
        "after": None if after is None else _canonical(after),
        "address": actor.address,
        "request_id": actor.request_id,
        "prev_hash": last.hash,
    }
    connection.execute(_APPEND, {**row, "hash": _hash(row)})
    effect = {"action": action, "object_kind": kind, "object_id": object_id, "before": before, "after": after}
    connection.info.setdefault(EFFECTS, []).append(effect)
    return last.seq + 1


def take_effects(connection: Connection) -> list[dict[str, Any]]:
    """Return and forget what was recorded on this connection in its transaction, in order."""
    effects: list[dict[str, Any]] = connection.info.pop(EFFECTS, [])
    return effects


def head(connection: Connection) -> Head:
    """Return the end of the chain; seq 0 for an empty log."""
    row = connection.execute(_HEAD).first()
    return Head(seq=0, hash=GENESIS) if row is None else Head(seq=row.seq, hash=row.hash)


def entries(
    connection: Connection,
    *,
    limit: int,
    before_seq: int | None = None,
    kind: str | None = None,
    object_id: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Entry]:
    """Return at most `limit` entries, the newest first, older than `before_seq`, that match every filter given."""
    query = sa.select(audit).order_by(audit.c.seq.desc()).limit(limit)
    equal = {audit.c.object_kind: kind, audit.c.object_id: object_id, audit.c.actor: actor, audit.c.action: action}
    query = query.where(*(column == value for column, value in equal.items() if value is not None))
    if before_seq is not None:
        query = query.where(audit.c.seq < before_seq)
    if since is not None:
        query = query.where(audit.c.at >= since)
    if until is not None:
        query = query.where(audit.c.at < until)
    return [_entry(row) for row in connection.execute(query)]


def verify(connection: Connection, kept: Head | None = None) -> Verdict:
    """Recompute the chain from its start; `kept`, an earlier head, must lie on it."""
    last = Head(seq=0, hash=GENESIS)
    if kept is not None and kept.seq == 0 and kept != last:
        return Verdict(ok=False, entries=0, broken_at=0, problem=_NOT_KEPT, head=last)
    query = sa.select(audit).order_by(audit.c.seq).execution_options(yield_per=1000)
    with connection.execute(query) as rows:
        for row in rows:
            problem = _problem(row, last, kept)
            if problem is not None:
                return Verdict(ok=False, entries=last.seq, broken_at=row.seq, problem=problem, head=last)
            last = Head(seq=row.seq, hash=row.hash)
    if kept is not None and kept.seq > last.seq:
        problem = f"the log ends at {last.seq}, before the kept head {kept.seq}"
        return Verdict(ok=False, entries=last.seq, broken_at=last.seq + 1, problem=problem, head=last)
    return Verdict(ok=True, entries=last.seq, broken_at=None, problem=None, head=last)


_NOT_KEPT = "it is not the entry of the kept head"


def _problem(row: Row[Any], last: Head, kept: Head | None) -> str | None:
    """Say what is wrong with `row` behind the entry `last`, if anything is."""
    if row.seq != last.seq + 1:
        return f"entry {last.seq + 1} is missing"
    if row.prev_hash != last.hash:
        return "it does not link to the entry before it"
    if row.hash != _hash(dict(row._mapping)):
        return "its content was changed"
    return _NOT_KEPT if kept is not None and kept.seq == row.seq and kept.hash != row.hash else None


def _entry(row: Row[Any]) -> Entry:
    values = dict(row._mapping)
    for name in ("before", "after"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return Entry(**values)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _hash(row: dict[str, Any]) -> str:
    """SHA-256 over the canonical JSON of every column but the hash itself."""
    content = {name: value for name, value in row.items() if name != "hash"}
    content["at"] = to_microseconds(content["at"])
    return hashlib.sha256(_canonical(content).encode()).hexdigest()
