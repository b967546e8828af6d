"""Every change of a job. What follows a claim is fenced: it names the claim, or it changes nothing."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serai.clock import Clock
from serai.errors import DatabaseUnavailable, InternalError
from serai.events import Done, Event, Failed, Loading, Progress, Queued
from serai.jobs.model import (
    MAX_PAUSE_S,
    ROUNDS_PER_PRIORITY,
    ClaimLost,
    IdempotencyMismatch,
    Job,
    JobCrashed,
    JobFinished,
    JobNotFinished,
    NewJob,
    QueueFull,
    check_json,
)
from serai.jobs.store.reading import get
from serai.jobs.store.rows import (
    CANCEL_TOPIC,
    QUEUE_TOPIC,
    apply,
    as_json,
    end_cancelled,
    held,
    insert_bodies,
    move,
)
from serai.jobs.store.statements import (
    IS_QUEUED,
    IS_RUNNING,
    add_events,
    at,
    claim_jobs,
    insert_job,
    last_rounds,
    moment,
    move_job,
)
from serai.storage.notices import announce
from serai.storage.tables.blobs import blob_links, blobs
from serai.storage.tables.jobs import jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What else a run leaves when it ends: events not stored yet, blobs to keep, the decision that served it."""

    events: Sequence[Event] = ()
    digests: Sequence[str] = ()
    decision: Mapping[str, Any] | None = None
    writes: Sequence[Callable[[Connection, Job], None]] = ()
    """What else is written if, and only if, the job ends with its result."""


NOTHING_ELSE = Outcome()


def enqueue(connection: Connection, clock: Clock, new: NewJob) -> Job:
    """Store the job, or return the one that the owner stored with the same idempotency key.

    May be called inside any writing transaction: the job exists if and only if that commits.
    Raises IdempotencyMismatch, QueueFull, and for its parent JobNotFound or JobFinished.
    """
    earlier = find_same(connection, new)
    if earlier is not None:
        return earlier
    _check_room(connection, new)
    round_ = _next_round(connection, new)
    values = {
        **{name: getattr(new, name) for name in _COPIED},
        "round": round_,
        "rank": round_ + new.priority * ROUNDS_PER_PRIORITY,
        **_FRESH,
        "now": at(connection, clock),
    }
    row = connection.execute(insert_job(connection.dialect.name), values).one_or_none()
    if row is None:  # another transaction stored the same key between our look and our insert
        return find_same(connection, new) or _refuse_overtaken()
    if new.parent_id is not None:
        _count_child(connection, new.parent_id, new.owner_id)
    announce(connection, QUEUE_TOPIC, new.resource)
    return Job.from_row(row)


_COPIED = (
    *("id", "kind", "version", "payload", "owner_id", "resource", "priority", "max_errors", "parent_id"),
    *("retry_of", "idempotency_key", "request_digest", "webhook_url"),
)
_FRESH = {"status": "queued", "attempts": 0, "error_count": 0, "crash_count": 0} | {
    "children": 0,
    "open_children": 0,
    "last_seq": 0,
}


def _refuse_overtaken() -> Job:
    raise DatabaseUnavailable("The same request is being stored at this moment.", retry_after=1)


def find_same(connection: Connection, new: NewJob) -> Job | None:
    """Return the job that the owner stored with the same idempotency key. Raises IdempotencyMismatch."""
    if new.idempotency_key is None:
        return None
    same = (jobs.c.owner_id == new.owner_id, jobs.c.idempotency_key == new.idempotency_key)
    row = connection.execute(sa.select(jobs).where(*same)).one_or_none()
    if row is None:
        return None
    if row.request_digest != new.request_digest:
        raise IdempotencyMismatch("This idempotency key was used for a different request.")
    return Job.from_row(row)


def _check_room(connection: Connection, new: NewJob) -> None:
    if new.max_queued is None:
        return
    waiting = sa.select(jobs.c.id).where(jobs.c.resource == new.resource, IS_QUEUED).limit(new.max_queued).subquery()
    if connection.execute(sa.select(sa.func.count()).select_from(waiting)).scalar_one() >= new.max_queued:
        raise QueueFull(f"{new.max_queued} jobs wait already.", retry_after=5)


def _count_child(connection: Connection, parent_id: str, owner_id: str) -> None:
    accepts = (jobs.c.id == parent_id, jobs.c.owner_id == owner_id, IS_QUEUED, jobs.c.cancel_requested_at.is_(None))
    counted = {"children": jobs.c.children + 1, "open_children": jobs.c.open_children + 1}
    if connection.execute(sa.update(jobs).where(*accepts).values(counted)).rowcount == 0:
        raise JobFinished.of(get(connection, parent_id, owner_id=owner_id))


def _next_round(connection: Connection, new: NewJob) -> int:
    """Return the round in which the job is served: start-time fair queueing, one lane per resource.

    An owner's jobs take successive rounds; one who comes later starts at the round that is being
    served, not at the end. Source: Goyal, Vin, Cheng, "Start-time Fair Queuing" (SIGCOMM 1996), with
    equal weights and unit lengths.
    """
    lane = {"for_resource": new.resource, "for_owner": new.owner_id, "for_priority": new.priority}
    found = connection.execute(last_rounds(), lane).one()
    return 1 + max((int(value) for value in found if value is not None), default=0)


def claim(
    connection: Connection,
    clock: Clock,
    *,
    token: str,
    holder: str,
    kinds: Mapping[str, int],
    wanted: Mapping[str, int],
    lease_s: float,
) -> list[Job]:
    """Take up to `wanted[resource]` jobs per resource for `lease_s` seconds, in the order of their rank.

    `kinds` maps each kind that the caller can run to the newest payload version it understands;
    others stay queued. `token` is the fence of these claims: never used before.
    """
    if not kinds:
        return []
    now, started = at(connection, clock), as_json(Progress(stage="started"))
    parameters = {
        "claim": token,
        "holder": holder,
        "progress": started,
        "now": now,
        "until": at(connection, clock, in_s=lease_s),
        "far": at(connection, clock, in_s=MAX_PAUSE_S),
    }
    statement = claim_jobs(connection.dialect.name, tuple(sorted(kinds.items())))
    taken: list[Job] = []
    for resource, free in wanted.items():
        if free > 0:
            rows = connection.execute(statement, {**parameters, "of_resource": resource, "free": free})
            taken += sorted((Job.from_row(row) for row in rows), key=lambda job: (job.rank, job.id))
    for job in taken:
        begun = {**started, "detail": {"attempt": job.attempts}}
        insert_bodies(connection, clock, job, [begun])
    return taken


def renew(connection: Connection, clock: Clock, held_jobs: Mapping[str, str], *, lease_s: float) -> dict[str, bool]:
    """Extend the leases of `held_jobs` (id → claim); return those still held → whether a cancel was asked for."""
    if not held_jobs:
        return {}
    pairs = sa.tuple_(jobs.c.id, jobs.c.claim).in_(list(held_jobs.items()))
    values = {"lease_until": moment(connection, clock, in_s=lease_s)}
    statement = sa.update(jobs).where(pairs, IS_RUNNING).values(values)
    rows = connection.execute(statement.returning(jobs.c.id, jobs.c.cancel_requested_at))
    return {row.id: row.cancel_requested_at is not None for row in rows}


def append_events(connection: Connection, clock: Clock, job_id: str, token: str, outcome: Outcome) -> Job:
    """Store events of a running job under the next numbers. Raises ClaimLost."""
    job = apply(connection, clock, add_events(), job_id, token, outcome.events, _shown(outcome))
    if job is None:
        raise ClaimLost("The job is held by another claim, or has ended.")
    return job


def finish(
    connection: Connection,
    clock: Clock,
    job_id: str,
    token: str,
    result: Mapping[str, Any],
    outcome: Outcome = NOTHING_ELSE,
) -> Job:
    """End the job with its result and keep its blobs, in this one transaction. Raises ClaimLost.

    A job whose cancel was accepted before ends as cancelled instead, and keeps nothing.
    """
    check_json(result, "result")  # as it was given: what an event makes of it may be storable where this is not
    done = Done(result=dict(result))
    statement = move_job(connection.dialect.name, "finish", unless_cancelled=True)
    values = {"result": as_json(done)["result"], "error": None, **_shown(outcome)}
    job = apply(connection, clock, statement, job_id, token, [*outcome.events, done], values)
    if job is None:  # the claim is lost, or a cancel was asked for
        return end_cancelled(connection, clock, held(connection, job_id, token), outcome.events)
    _link_blobs(connection, job, outcome.digests)
    for write in outcome.writes:
        write(connection, job)
    return job


def _link_blobs(connection: Connection, job: Job, digests: Sequence[str]) -> None:
    wanted = set(digests)
    if not wanted:
        return
    columns = [sa.literal(job.id), blobs.c.digest, sa.literal(job.owner_id), blobs.c.size]
    source = sa.select(*columns).where(blobs.c.digest.in_(wanted))
    insert = sa.insert(blob_links).from_select(["holder", "digest", "owner_id", "size"], source)
    if len(connection.execute(insert.returning(blob_links.c.digest)).all()) != len(wanted):
        raise InternalError("The job names a blob that was never stored.")


def fail(
    connection: Connection,
    clock: Clock,
    job_id: str,
    token: str,
    failed: Failed,
    *,
    pause_s: float | None,
    outcome: Outcome = NOTHING_ELSE,
) -> Job:
    """Count the failure; queue the job again after `pause_s`, or end it. Raises ClaimLost.

    It ends for good with `pause_s` None, at the job's `max_errors`, or as cancelled if that was asked.
    """
    job = held(connection, job_id, token)
    if job.cancel_requested_at is not None:
        return end_cancelled(connection, clock, job, outcome.events)
    error = {"code": failed.code, "message": failed.message, "hint": failed.hint}
    values: dict[str, Any] = {"error": error, "error_count": job.error_count + 1, **_shown(outcome)}
    if pause_s is None or job.error_count + 1 >= job.max_errors:
        return move(connection, clock, job, "fail", events=[*outcome.events, failed], values=values)
    again = Progress(stage="retrying", detail={"error": error, "pause_s": round(pause_s, 3)})
    values["progress"] = as_json(again)
    return move(connection, clock, job, "retry", events=[*outcome.events, again], values=values, pause_s=pause_s)


def release(connection: Connection, clock: Clock, job_id: str, token: str, outcome: Outcome = NOTHING_ELSE) -> Job:
    """Give back a job whose run a shutdown interrupted; that was no attempt. Raises ClaimLost."""
    job = held(connection, job_id, token)
    if job.cancel_requested_at is not None:
        return end_cancelled(connection, clock, job, outcome.events)
    interrupted = Progress(stage="interrupted")
    values = {**_shown(outcome), "attempts": job.attempts - 1, "progress": as_json(interrupted)}
    return move(connection, clock, job, "release", events=[*outcome.events, interrupted], values=values)


def cancel(connection: Connection, clock: Clock, job_id: str, *, owner_id: str | None) -> Job:
    """Stop the job and its children: at once where it waits, by its holder where it runs.

    Once accepted, it ends as cancelled whatever else happens. Raises JobNotFound, JobFinished.
    """
    job = get(connection, job_id, owner_id=owner_id, lock=True)
    if job.status == "cancelled" or job.cancel_requested_at is not None:
        return job
    if job.is_terminal:
        raise JobFinished.of(job)
    asked = {"cancel_requested_at": moment(connection, clock)}
    if job.open_children:
        open_ = (jobs.c.parent_id == job.id, jobs.c.finished_at.is_(None))
        connection.execute(sa.update(jobs).where(*open_).values(asked))
    elif job.status == "queued":
        return end_cancelled(connection, clock, job)
    connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(asked))
    announce(connection, CANCEL_TOPIC, job.id)
    return get(connection, job_id, owner_id=owner_id)


def settle_cancelled(connection: Connection, clock: Clock, *, limit: int = 200) -> int:
    """End up to `limit` waiting jobs whose cancel was asked for through their parent; return how many."""
    asked = (IS_QUEUED, jobs.c.cancel_requested_at.is_not(None), jobs.c.open_children == 0)
    statement = sa.select(jobs).where(*asked).limit(limit).with_for_update(skip_locked=True)
    found = [Job.from_row(row) for row in connection.execute(statement)]
    for job in found:
        end_cancelled(connection, clock, job)
    return len(found)


def recover(
    connection: Connection,
    clock: Clock,
    *,
    crash_limit: int,
    not_holder: str | None = None,
    but: Collection[str] = (),
    limit: int = 200,
) -> list[Job]:
    """Take jobs back from holders that died, and return them: queued again, failed at `crash_limit`, or cancelled.

    A holder is dead when its lease has run out, or, on a single node whose lock the caller has,
    when it is another incarnation than `not_holder`. `but`: jobs that the caller knows to be alive.
    """
    dead = jobs.c.lease_until < moment(connection, clock) if not_holder is None else jobs.c.holder != not_holder
    found = sa.select(jobs).where(IS_RUNNING, dead, jobs.c.id.not_in(list(but))).limit(limit)
    rows = connection.execute(found.with_for_update(skip_locked=True)).all()
    return [_recover(connection, clock, Job.from_row(row), crash_limit) for row in rows]


def _recover(connection: Connection, clock: Clock, job: Job, crash_limit: int) -> Job:
    if job.cancel_requested_at is not None:
        return end_cancelled(connection, clock, job)
    values: dict[str, Any] = {"crash_count": job.crash_count + 1}
    if job.crash_count + 1 >= crash_limit:
        failed = Failed.of(JobCrashed(f"The server died {crash_limit} times while it ran this job."))
        error = {"code": failed.code, "message": failed.message, "hint": failed.hint}
        return move(connection, clock, job, "fail", events=[failed], values=values | {"error": error})
    recovered = Progress(stage="recovered", detail={"crashes": job.crash_count + 1})
    values["progress"] = as_json(recovered)
    return move(connection, clock, job, "recover", events=[recovered], values=values)


def retry(connection: Connection, clock: Clock, job_id: str, *, owner_id: str | None, new_id: str) -> Job:
    """Enqueue a new job with the request of one that failed or was cancelled; that one stays as it ended.

    Raises JobNotFound, JobNotFinished, JobFinished for a job that succeeded.
    """
    old = get(connection, job_id, owner_id=owner_id, lock=True)
    if not old.is_terminal:
        raise JobNotFinished(f"The job is {old.status}.")
    if old.status == "succeeded":
        raise JobFinished.of(old)
    copied = {name: getattr(old, name) for name in _RETRIED}
    new = NewJob(id=new_id, retry_of=old.id, **copied)
    if old.parent_id is None:
        return enqueue(connection, clock, new)
    parent = get(connection, old.parent_id, owner_id=old.owner_id, lock=True)
    if not parent.is_terminal:
        return enqueue(connection, clock, replace(new, parent_id=parent.id))
    job = enqueue(connection, clock, new)  # a parent that has ended no longer waits, but keeps the child in its list
    row = connection.execute(
        sa.update(jobs).where(jobs.c.id == job.id).values(parent_id=parent.id).returning(jobs)
    ).one()
    return Job.from_row(row)


_RETRIED = ("kind", "version", "payload", "owner_id", "resource", "priority", "max_errors", "webhook_url")


def _shown(outcome: Outcome) -> dict[str, Any]:
    """Return the columns that a client sees of a running job."""
    shown: dict[str, Any] = {}
    steps = [event for event in outcome.events if isinstance(event, Progress | Loading | Queued)]
    if steps:
        shown["progress"] = as_json(steps[-1])
    if outcome.decision is not None:
        shown["decision"] = dict(outcome.decision)
    return shown
