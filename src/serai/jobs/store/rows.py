"""What the writing functions share: the time, one move of one row, and what ends with a job."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serai.clock import Clock
from serai.events import Done, Event, Failed, Progress
from serai.jobs.model import ClaimLost, Job, Move, check_json, check_move, sources
from serai.storage.notices import announce
from serai.storage.tables.base import Instant
from serai.storage.tables.jobs import job_events, job_webhooks, jobs

QUEUE_TOPIC = "jobs"
"""Something may be claimable; the payload is its resource."""
EVENTS_TOPIC = "job_events"
"""A job has new stored events; the payload is its id."""
CANCEL_TOPIC = "job_cancel"
"""Somebody asked a job to stop; the payload is its id."""
WEBHOOK_TOPIC = "job_webhooks"
"""A webhook waits to be sent; the payload is the job's id."""

KEEP_EVENTS = 1000
"""How many stored events of a job are kept; older ones are evicted."""

Moment = sa.ColumnElement[datetime]

# Written out, not bound, so that the planners see that the partial indexes of the queue apply.
IS_QUEUED = jobs.c.status == sa.literal_column("'queued'")
IS_RUNNING = jobs.c.status == sa.literal_column("'running'")


def moment(connection: Connection, clock: Clock, *, in_s: float = 0.0) -> Moment:
    """Return the time `in_s` seconds from now as SQL: the database's clock on PostgreSQL, `clock` on SQLite.

    Several servers share one PostgreSQL, and leases compare times that different servers wrote.
    """
    if connection.dialect.name == "sqlite":
        return sa.literal(clock.now() + timedelta(seconds=in_s), Instant)
    epoch = sa.extract("epoch", sa.func.statement_timestamp())
    return sa.type_coerce(sa.cast(epoch * 1_000_000, sa.BigInteger) + int(in_s * 1_000_000), Instant)


def held(connection: Connection, job_id: str, claim: str) -> Job:
    """Return the running job for its holder and lock it. Raises ClaimLost for everybody else."""
    statement = sa.select(jobs).where(jobs.c.id == job_id, jobs.c.claim == claim, IS_RUNNING).with_for_update()
    row = connection.execute(statement).one_or_none()
    if row is None:
        raise ClaimLost("The job is held by another claim, or has ended.")
    return Job.from_row(row)


def move(
    connection: Connection,
    clock: Clock,
    job: Job,
    how: Move,
    *,
    events: Sequence[Event] = (),
    values: Mapping[str, Any] | None = None,
) -> Job:
    """Make one move of a job that this transaction has locked, with its events. Raises IllegalMove, ClaimLost."""
    target = check_move(job.status, how)
    changes: dict[str, Any] = {"status": target, "last_seq": jobs.c.last_seq + len(events), **(values or {})}
    changes |= {"claim": None, "lease_until": None}
    now = moment(connection, clock)
    if target != "queued":
        changes["finished_at"] = now
    fence = jobs.c.claim == job.claim if job.claim else jobs.c.claim.is_(None)
    statement = sa.update(jobs).where(jobs.c.id == job.id, jobs.c.status.in_(sources(how)), fence)
    row = connection.execute(statement.values(changes).returning(jobs)).one_or_none()
    if row is None:
        raise ClaimLost("The job was moved by somebody else.")
    moved = Job.from_row(row)
    insert_events(connection, now, moved, events)
    if moved.is_terminal:
        _on_end(connection, clock, moved)
    else:
        announce(connection, QUEUE_TOPIC, moved.resource)
    return moved


def end_cancelled(connection: Connection, clock: Clock, job: Job, events: Sequence[Event] = ()) -> Job:
    """End a locked job as cancelled."""
    final = Failed(code="CANCELLED", message="The job was cancelled.")
    error = {"code": final.code, "message": final.message, "hint": None}
    return move(connection, clock, job, "cancel", events=[*events, final], values={"error": error})


def insert_events(connection: Connection, now: Moment, job: Job, events: Sequence[Event]) -> None:
    """Store the events whose numbers end at `job.last_seq`; evict what is over the bound; tell the followers."""
    if not events:
        return
    start = job.last_seq - len(events) + 1
    rows = [{"number": start + index, "body": as_json(event)} for index, event in enumerate(events)]
    statement = sa.insert(job_events).values(
        job_id=job.id, seq=sa.bindparam("number"), event=sa.bindparam("body"), created_at=now
    )
    connection.execute(statement, rows)
    if job.last_seq > KEEP_EVENTS:
        evicted = job_events.c.seq <= job.last_seq - KEEP_EVENTS
        connection.execute(sa.delete(job_events).where(job_events.c.job_id == job.id, evicted))
    announce(connection, EVENTS_TOPIC, job.id)


def as_json(event: Event) -> dict[str, Any]:
    """Return the event as the JSON that is stored. Raises InvalidInput for what the databases cannot hold."""
    body: dict[str, Any] = msgspec.to_builtins(event)
    check_json(body, "result" if isinstance(event, Done) else "event")
    return body


def _on_end(connection: Connection, clock: Clock, job: Job) -> None:
    if job.webhook_url is not None:
        _insert_webhook(connection, clock, job)
    if job.parent_id is not None:
        _on_child_end(connection, clock, job.parent_id)


def _insert_webhook(connection: Connection, clock: Clock, job: Job) -> None:
    if job.finished_at is None:
        raise AssertionError("a job that ended has the time of its end")
    data = {"id": job.id, "kind": job.kind, "status": job.status, "result": job.result, "error": job.error}
    body = {"type": f"job.{job.status}", "timestamp": job.finished_at.isoformat(), "data": data}
    now = moment(connection, clock)
    row = sa.insert(job_webhooks).values(
        id=job.id.replace("job_", "whk_", 1),
        job_id=job.id,
        owner_id=job.owner_id,
        url=job.webhook_url,
        body=json.dumps(body, ensure_ascii=False, separators=(",", ":")),
        attempts=0,
        next_at=now,
        created_at=now,
    )
    connection.execute(row)
    announce(connection, WEBHOOK_TOPIC, job.id)


def _on_child_end(connection: Connection, clock: Clock, parent_id: str) -> None:
    """Count the child off; the last one makes its parent claimable. A parent that has ended stays as it is."""
    waiting = sa.and_(jobs.c.id == parent_id, IS_QUEUED, jobs.c.open_children > 0)
    counted = {"open_children": jobs.c.open_children - 1, "last_seq": jobs.c.last_seq + 1}
    row = connection.execute(sa.update(jobs).where(waiting).values(counted).returning(jobs)).one_or_none()
    if row is None:
        return
    parent = Job.from_row(row)
    done = parent.children - parent.open_children
    progress = Progress(
        stage="children", fraction=done / parent.children, done=done, total=parent.children, unit="jobs"
    )
    insert_events(connection, moment(connection, clock), parent, [progress])
    connection.execute(sa.update(jobs).where(jobs.c.id == parent_id).values(progress=as_json(progress)))
    if parent.open_children == 0:
        announce(connection, QUEUE_TOPIC, parent.resource)
