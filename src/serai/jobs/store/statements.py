"""The statements on every job's way, built once: building one takes several times as long as running it.

A time is a parameter of them: `instant` is its SQL, `at` its value. On PostgreSQL the database's clock
decides, because several servers share it and leases compare times that different servers wrote; on
SQLite the server's does.
"""

from datetime import timedelta
from functools import cache, lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from serai.clock import Clock
from serai.jobs.model import TABLE, TERMINAL, Move, sources
from serai.storage.tables.base import Instant
from serai.storage.tables.jobs import job_events, jobs

Moment = sa.ColumnElement[Any]

# Written out, not bound, so that the planners see that the partial indexes of the queue apply.
IS_QUEUED = jobs.c.status == sa.literal_column("'queued'")
IS_RUNNING = jobs.c.status == sa.literal_column("'running'")


def instant(dialect: str, name: str) -> Moment:
    """Return the SQL of a moment whose value, made by `at`, is the parameter `name`."""
    if dialect == "sqlite":
        return sa.bindparam(name, type_=Instant())
    return _of_the_database(sa.bindparam(name, type_=sa.BigInteger()))


def at(connection: Connection, clock: Clock, *, in_s: float = 0.0) -> Any:
    """Return the value of an `instant` that lies `in_s` seconds from now."""
    if connection.dialect.name == "sqlite":
        return clock.now() + timedelta(seconds=in_s)
    return int(in_s * 1_000_000)


def moment(connection: Connection, clock: Clock, *, in_s: float = 0.0) -> Moment:
    """Return the time `in_s` seconds from now as SQL, for a statement that is built when it is needed."""
    value = at(connection, clock, in_s=in_s)
    if connection.dialect.name == "sqlite":
        return sa.literal(value, Instant)
    return _of_the_database(sa.literal(value, sa.BigInteger))


def _of_the_database(later: sa.ColumnElement[int]) -> Moment:
    epoch = sa.extract("epoch", sa.func.statement_timestamp())
    return sa.type_coerce(sa.cast(epoch * 1_000_000, sa.BigInteger) + later, Instant)


@cache
def insert_job(dialect: str) -> sa.Executable:
    """Store a job that is new, or nothing where its owner used the key before. Its columns, and `now`."""
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = insert(jobs).values(created_at=instant(dialect, "now"))
    return statement.on_conflict_do_nothing(index_elements=["owner_id", "idempotency_key"]).returning(jobs)


@cache
def last_rounds() -> sa.Executable:
    """Select the rounds that bound the next one of `for_owner` in the lane of `for_resource` at `for_priority`."""
    lane = jobs.c.resource == sa.bindparam("for_resource")
    served = [
        sa.select(sa.func.max(jobs.c.round)).where(lane, jobs.c.status == status).scalar_subquery()
        for status in ("running", "succeeded", "failed")
    ]
    is_owners = jobs.c.owner_id == sa.bindparam("for_owner")
    mine = (lane, IS_QUEUED, is_owners, jobs.c.priority == sa.bindparam("for_priority"))
    return sa.select(*served, sa.select(sa.func.max(jobs.c.round)).where(*mine).scalar_subquery())


@lru_cache(maxsize=64)
def claim_jobs(dialect: str, kinds: tuple[tuple[str, int], ...]) -> sa.Executable:
    """Claim the first `free` jobs of `of_resource`; also `claim`, `holder`, `progress`, `now`, `until`, `far`."""
    now = instant(dialect, "now")
    # A pause longer than any that is given means that the clock was set back meanwhile.
    due = sa.or_(jobs.c.run_at.is_(None), jobs.c.run_at <= now, jobs.c.run_at > instant(dialect, "far"))
    ready = (IS_QUEUED, due, jobs.c.cancel_requested_at.is_(None), jobs.c.open_children == 0)
    known = sa.or_(*(sa.and_(jobs.c.kind == kind, jobs.c.version <= newest) for kind, newest in kinds))
    picked = sa.select(jobs.c.id).where(jobs.c.resource == sa.bindparam("of_resource"), *ready, known)
    picked = picked.order_by(jobs.c.rank, jobs.c.id).limit(sa.bindparam("free", type_=sa.Integer()))
    values = {
        "status": "running",
        "lease_until": instant(dialect, "until"),
        "run_at": None,
        "attempts": jobs.c.attempts + 1,
        "started_at": sa.func.coalesce(jobs.c.started_at, now),
        "last_seq": jobs.c.last_seq + 1,
    }
    chosen = sa.select(picked.with_for_update(skip_locked=True).cte("picked").c.id)
    return sa.update(jobs).where(jobs.c.id.in_(chosen)).values(values).returning(jobs)


@cache
def move_job(dialect: str, how: Move, *, unless_cancelled: bool = False) -> sa.Executable:
    """Move the job `of_id` and add `stored` to its events; other columns as they are given.

    From running it names `of_claim`; a queued one has no claim. `now` is needed for an end, `later` for
    a retry. `unless_cancelled`: only where no cancel was asked for.
    """
    target = TABLE[sources(how)[0], how]
    values: dict[str, Any] = {"status": target, "claim": None, "lease_until": None}
    values["last_seq"] = jobs.c.last_seq + sa.bindparam("stored", type_=sa.BigInteger())
    if target in TERMINAL:
        values["finished_at"] = instant(dialect, "now")
    if how == "retry":
        values["run_at"] = instant(dialect, "later")
    fence = jobs.c.claim.is_not_distinct_from(sa.bindparam("of_claim", type_=sa.Text()))
    where = [jobs.c.id == sa.bindparam("of_id"), jobs.c.status.in_(sources(how)), fence]
    if unless_cancelled:
        where.append(jobs.c.cancel_requested_at.is_(None))
    return sa.update(jobs).where(*where).values(values).returning(jobs)


@cache
def add_events() -> sa.Executable:
    """Count `stored` more events of the job `of_id`, held by `of_claim`; other columns as they are given."""
    more = jobs.c.last_seq + sa.bindparam("stored", type_=sa.BigInteger())
    fence = (jobs.c.id == sa.bindparam("of_id"), jobs.c.claim == sa.bindparam("of_claim"), IS_RUNNING)
    return sa.update(jobs).where(*fence).values(last_seq=more).returning(jobs)


@cache
def insert_event(dialect: str) -> sa.Executable:
    """Store one event: its columns, and `now`."""
    return sa.insert(job_events).values(created_at=instant(dialect, "now"))
