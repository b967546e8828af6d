"""What the writing functions share: the time, one move of one row, and what ends with a job."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serai.clock import Clock
from serai.events import Done, Event, Failed, Progress
from serai.jobs.model import ClaimLost, Job, Move, check_json, check_move
from serai.jobs.store.statements import IS_QUEUED, IS_RUNNING, at, insert_event, moment, move_job
from serai.storage.notices import announce
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
    pause_s: float = 0.0,
) -> Job:
    """Make one move of a job that this transaction has locked, with its events. Raises IllegalMove, ClaimLost.

    `pause_s`: before a retry.
    """
    check_move(job.status, how)
    statement = move_job(connection.dialect.name, how)
    later = {"later": at(connection, clock, in_s=pause_s)} if how == "retry" else {}
    moved = apply(connection, clock, statement, job.id, job.claim, events, {**(values or {}), **later})
    if moved is None:
        raise ClaimLost("The job was moved by somebody else.")
    return moved


def apply(
    connection: Connection,
    clock: Clock,
    statement: sa.Executable,
    job_id: str,
    claim: str | None,
    events: Sequence[Event],
    values: Mapping[str, Any],
) -> Job | None:
    """Run a statement of a move with what follows from it: events, webhook, parent, notices. None: it did not apply."""
    bodies = [as_json(event) for event in events]
    now = at(connection, clock)
    parameters = {**values, "of_id": job_id, "of_claim": claim, "stored": len(bodies), "now": now}
    row = connection.execute(statement, parameters).one_or_none()
    if row is None:
        return None
    moved = Job.from_row(row)
    insert_bodies(connection, clock, moved, bodies)
    if moved.is_terminal:
        _on_end(connection, clock, moved)
    elif moved.status == "queued":
        announce(connection, QUEUE_TOPIC, moved.resource)
    return moved


def end_cancelled(connection: Connection, clock: Clock, job: Job, events: Sequence[Event] = ()) -> Job:
    """End a locked job as cancelled."""
    final = Failed(code="CANCELLED", message="The job was cancelled.")
    error = {"code": final.code, "message": final.message, "hint": None}
    return move(connection, clock, job, "cancel", events=[*events, final], values={"error": error})


def insert_bodies(connection: Connection, clock: Clock, job: Job, bodies: Sequence[Mapping[str, Any]]) -> None:
    """Store the events whose numbers end at `job.last_seq`; evict what is over the bound; tell the followers."""
    if not bodies:
        return
    start, now = job.last_seq - len(bodies) + 1, at(connection, clock)
    rows = [{"job_id": job.id, "seq": start + n, "event": body, "now": now} for n, body in enumerate(bodies)]
    connection.execute(insert_event(connection.dialect.name), rows)
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
    body = as_json(progress)
    insert_bodies(connection, clock, parent, [body])
    connection.execute(sa.update(jobs).where(jobs.c.id == parent_id).values(progress=body))
    if parent.open_children == 0:
        announce(connection, QUEUE_TOPIC, parent.resource)
