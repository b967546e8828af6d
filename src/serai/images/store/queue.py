"""How the queue of pictures stands: what waits and runs, how the last ones went, and where one's own are."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serai.clock import Clock
from serai.images.model import KIND
from serai.jobs.model import Job
from serai.jobs.store import position
from serai.jobs.store.statements import IS_QUEUED, IS_RUNNING, moment
from serai.storage.tables.jobs import jobs

LAST: Final = 200
"""How many of the jobs that ended last the means and rates are of."""
WINDOW: Final = timedelta(days=1)
"""And no older than this."""
MAX_OWN: Final = 50
UNNAMED: Final = "auto"
"""The model of a job that left the choice to the policy, until it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Jobs in each state. `queued` and `running` are of now; the others of the LAST ones within WINDOW."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    mean_s: float | None = None
    """From the start to the end of those that succeeded; None where none did."""
    failure_rate: float | None = None
    """Share of the failed among those that succeeded or failed, 0 to 1; None where none did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A job that waits, and its place in the queue; 1 is next."""

    job_id: str
    position: int
    eta_s: float | None
    """Until it begins, by the mean of the last ones; None where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """The queue, the same for each model, and the caller's own jobs that wait, the next first."""

    all: Figures
    by_model: Mapping[str, Figures]
    """By what answered, or by what a job that waits or runs was asked of: a model's reference or a service's id."""
    own: tuple[Place, ...]


def queue_state(connection: Connection, clock: Clock, *, owner_id: str, concurrency: int = 1) -> QueueState:
    """Return how the queue stands for `owner_id`. `concurrency`: how many jobs run at once, for the ETAs."""
    found = [*_open(connection), *_ended(connection, clock)]
    all_ = _figures(found)
    models = sorted({row.model for row in found})
    return QueueState(
        all=all_,
        by_model={model: _figures([row for row in found if row.model == model]) for model in models},
        own=_own(connection, owner_id, None if all_.mean_s is None else all_.mean_s / concurrency),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    model: str
    status: str
    count: int = 1
    seconds: float = 0.0


_ASKED = sa.func.coalesce(
    jobs.c.decision["model"].as_string(),
    jobs.c.payload["model"].as_string(),
    jobs.c.payload["service"].as_string(),
    UNNAMED,
).label("model")


def _open(connection: Connection) -> list[_Row]:
    rows: list[_Row] = []
    for condition, status in ((IS_QUEUED, "queued"), (IS_RUNNING, "running")):  # each has an index of its own
        statement = sa.select(_ASKED, sa.func.count()).where(condition, jobs.c.kind == KIND).group_by(_ASKED)
        rows += (_Row(model=row[0], status=status, count=row[1]) for row in connection.execute(statement))
    return rows


def _ended(connection: Connection, clock: Clock) -> list[_Row]:
    lately = jobs.c.finished_at >= moment(connection, clock, in_s=-WINDOW.total_seconds())
    columns = (_ASKED, jobs.c.status, jobs.c.started_at, jobs.c.finished_at)
    statement = sa.select(*columns).where(jobs.c.kind == KIND, lately).order_by(jobs.c.finished_at.desc()).limit(LAST)
    return [_Row(model=row.model, status=row.status, seconds=_seconds(row)) for row in connection.execute(statement)]


def _seconds(row: Any) -> float:
    """Return how long a job ran; nothing for one that was cancelled before it began."""
    return 0.0 if row.started_at is None else max(0.0, (row.finished_at - row.started_at).total_seconds())


def _figures(rows: list[_Row]) -> Figures:
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row.status] += row.count
    times = [row.seconds for row in rows if row.status == "succeeded"]
    judged = counts["succeeded"] + counts["failed"]
    return Figures(
        queued=counts["queued"],
        running=counts["running"],
        succeeded=counts["succeeded"],
        failed=counts["failed"],
        cancelled=counts["cancelled"],
        mean_s=sum(times) / len(times) if times else None,
        failure_rate=counts["failed"] / judged if judged else None,
    )


def _own(connection: Connection, owner_id: str, pace_s: float | None) -> tuple[Place, ...]:
    mine = (jobs.c.kind == KIND, jobs.c.owner_id == owner_id, IS_QUEUED)
    statement = sa.select(jobs).where(*mine).order_by(jobs.c.rank, jobs.c.id).limit(MAX_OWN)
    places = []
    for row in connection.execute(statement):
        job = Job.from_row(row)
        place = position(connection, job)
        if place is not None:
            eta = None if pace_s is None else round(pace_s * place, 1)
            places.append(Place(job_id=job.id, position=place, eta_s=eta))
    return tuple(places)
