"""Looking at jobs, following their stored events, counting them, and removing old ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serai.clock import Clock
from serai.errors import InvalidInput
from serai.events import Event
from serai.jobs.model import EventsGone, Job, JobNotFinished, JobNotFound, Status
from serai.jobs.store.rows import KEEP_EVENTS
from serai.jobs.store.statements import IS_QUEUED, IS_RUNNING, moment
from serai.storage.tables.blobs import blob_links
from serai.storage.tables.jobs import job_events, jobs

MAX_PAGE = 200
WAIT_WINDOW_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    seq: int
    event: Event
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Events in order, and what the job was at the same instant.

    A page that reaches `last_seq` of a job that has ended is the last one.
    """

    events: tuple[StoredEvent, ...]
    last_seq: int
    status: Status


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildrenSummary:
    """How many children are in each status; a child that was retried counts as its newest retry."""

    by_status: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.by_status.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class KindFigures:
    """What the metrics of one kind are made of. Times in seconds."""

    kind: str
    queued: int
    running: int
    oldest_queued_s: float
    """Age of the job that waits longest; 0 where none does."""
    mean_wait_s: float
    """From enqueue to first start, over the jobs that run or ended in the last WAIT_WINDOW_S seconds."""
    open_attempts: int
    """Attempts that the queued and running jobs have used."""


def get(connection: Connection, job_id: str, *, owner_id: str | None, lock: bool = False) -> Job:
    """Return the job. Raises JobNotFound where it is missing or not `owner_id`'s (None: anybody's)."""
    statement = sa.select(jobs).where(jobs.c.id == job_id)
    if owner_id is not None:
        statement = statement.where(jobs.c.owner_id == owner_id)
    row = connection.execute(statement.with_for_update() if lock else statement).one_or_none()
    if row is None:
        raise JobNotFound("There is no such job.")
    return Job.from_row(row)


def list_jobs(
    connection: Connection,
    *,
    owner_id: str | None,
    status: Status | None = None,
    kind: str | None = None,
    since: datetime | None = None,
    parent_id: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> tuple[list[Job], str | None]:
    """Return one page of jobs, newest first, and the cursor of the next page or None."""
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidInput.at("limit", f"must be between 1 and {MAX_PAGE}")
    conditions = {jobs.c.owner_id: owner_id, jobs.c.status: status, jobs.c.kind: kind, jobs.c.parent_id: parent_id}
    statement = sa.select(jobs).where(*(column == value for column, value in conditions.items() if value is not None))
    if since is not None:
        statement = statement.where(jobs.c.created_at >= since)
    if cursor is not None:
        statement = statement.where(jobs.c.id < cursor)
    rows = connection.execute(statement.order_by(jobs.c.id.desc()).limit(limit + 1)).all()
    page = [Job.from_row(row) for row in rows[:limit]]
    return page, page[-1].id if len(rows) > limit else None


def position(connection: Connection, job: Job) -> int | None:
    """Return the place of a queued job among those that wait for its resource (1 is next); None otherwise."""
    if job.status != "queued":
        return None
    ahead = sa.tuple_(jobs.c.rank, jobs.c.id) < sa.tuple_(sa.literal(job.rank), sa.literal(job.id))
    statement = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.resource == job.resource, IS_QUEUED, ahead)
    return connection.execute(statement).scalar_one() + 1


def events(
    connection: Connection, job_id: str, *, owner_id: str | None, after: int | None = None, limit: int = MAX_PAGE
) -> EventPage:
    """Return the stored events that follow number `after` (None: from the oldest that is kept).

    Raises JobNotFound, and EventsGone where an event after `after` has been evicted.
    """
    job = get(connection, job_id, owner_id=owner_id)
    if after is not None and not 0 <= after <= job.last_seq:
        raise InvalidInput.at("after", "names an event that this job never had")
    oldest = max(1, job.last_seq - KEEP_EVENTS + 1)
    if after is not None and after < oldest - 1:
        raise EventsGone(f"The events up to number {oldest - 1} are no longer kept.")
    statement = sa.select(job_events).where(job_events.c.job_id == job_id, job_events.c.seq > (after or 0))
    rows = connection.execute(statement.order_by(job_events.c.seq).limit(limit))
    found = tuple(StoredEvent(seq=row.seq, event=_event(row.event), created_at=row.created_at) for row in rows)
    return EventPage(events=found, last_seq=job.last_seq, status=job.status)


def _event(body: Any) -> Event:
    event: Event = msgspec.convert(body, Event)
    return event


def children_summary(connection: Connection, parent_id: str) -> ChildrenSummary:
    """Return how the children of a job stand."""
    newer = jobs.alias("newer")
    is_newest = ~sa.exists().where(newer.c.parent_id == parent_id, newer.c.retry_of == jobs.c.id)
    statement = sa.select(jobs.c.status, sa.func.count()).where(jobs.c.parent_id == parent_id, is_newest)
    rows = connection.execute(statement.group_by(jobs.c.status))
    return ChildrenSummary(by_status={row[0]: row[1] for row in rows})


def figures(connection: Connection, clock: Clock) -> list[KindFigures]:
    """Return the figures of every kind that has jobs waiting, running or lately ended."""
    lately = jobs.c.finished_at >= moment(connection, clock, in_s=-WAIT_WINDOW_S)
    columns = (jobs.c.kind, jobs.c.status, jobs.c.created_at, jobs.c.started_at, jobs.c.attempts)
    # Three index scans: a condition with OR would read every job that was ever kept.
    seen = sa.union_all(*(sa.select(*columns).where(part) for part in (IS_QUEUED, IS_RUNNING, lately))).subquery()
    queued, running = seen.c.status == "queued", seen.c.status == "running"
    wait = sa.func.avg(_microseconds(seen.c.started_at) - _microseconds(seen.c.created_at))
    statement = sa.select(
        seen.c.kind,
        sa.func.count(sa.case((queued, 1))).label("queued"),
        sa.func.count(sa.case((running, 1))).label("running"),
        sa.func.min(sa.case((queued, seen.c.created_at))).label("oldest"),
        moment(connection, clock).label("now"),
        wait.label("wait"),
        sa.func.sum(sa.case((sa.or_(queued, running), seen.c.attempts), else_=0)).label("attempts"),
    )
    return [_figures(row) for row in connection.execute(statement.group_by(seen.c.kind).order_by(seen.c.kind))]


def _microseconds(column: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    return sa.type_coerce(column, sa.BigInteger)


def _figures(row: Any) -> KindFigures:
    return KindFigures(
        kind=row.kind,
        queued=row.queued,
        running=row.running,
        oldest_queued_s=0.0 if row.oldest is None else max(0.0, (row.now - row.oldest).total_seconds()),
        mean_wait_s=max(0.0, float(row.wait or 0) / 1e6),
        open_attempts=int(row.attempts),
    )


def delete(connection: Connection, job_id: str, *, owner_id: str | None) -> None:
    """Remove a job that has ended, with its events and its hold on blobs. Raises JobNotFound, JobNotFinished."""
    job = get(connection, job_id, owner_id=owner_id, lock=True)
    if not job.is_terminal:
        raise JobNotFinished(f"The job is {job.status}.")
    _remove(connection, [job.id])


def prune(connection: Connection, clock: Clock, *, older_than: timedelta, limit: int = 500) -> list[str]:
    """Remove up to `limit` jobs that ended longer ago than `older_than`; return their ids.

    A child stays as long as its parent is open.
    """
    parent = jobs.alias("parent")
    open_parent = sa.exists().where(parent.c.id == jobs.c.parent_id, parent.c.finished_at.is_(None))
    before = moment(connection, clock, in_s=-older_than.total_seconds())
    statement = sa.select(jobs.c.id).where(jobs.c.finished_at < before, ~open_parent).limit(limit)
    ids = list(connection.execute(statement).scalars())
    _remove(connection, ids)
    return ids


def _remove(connection: Connection, ids: list[str]) -> None:
    if ids:
        connection.execute(sa.delete(blob_links).where(blob_links.c.holder.in_(ids)))
        connection.execute(sa.delete(jobs).where(jobs.c.id.in_(ids)))
