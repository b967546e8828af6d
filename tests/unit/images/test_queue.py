"""The figures of the queue: states, models, means and rates of the last ones, one's own places."""

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from serai.clock import SystemClock
from serai.events import Failed
from serai.ids import new_id
from serai.images.model import KIND
from serai.images.store.queue import Figures, QueueState, queue_state
from serai.jobs import store
from serai.jobs.model import Job, NewJob
from serai.jobs.store import Outcome
from serai.storage.database import Database
from serai.storage.tables.jobs import jobs

CLOCK = SystemClock()


def put(database: Database, model: str | None = "m", owner: str = "ann", kind: str = KIND, **payload: Any) -> Job:
    asked = {"prompt": "x", **({} if model is None else {"model": model}), **payload}
    new = NewJob(id=new_id("job"), kind=kind, version=1, payload=asked, owner_id=owner, resource="images")
    return database.run_sync(store.enqueue, CLOCK, new)


def claim(database: Database, count: int = 1) -> list[Job]:
    return database.run_sync(
        store.claim,
        CLOCK,
        token=new_id("claim"),
        holder="srv_1",
        kinds={KIND: 1, "digest": 1},
        wanted={"images": count},
        lease_s=60.0,
    )


def end(database: Database, job: Job, seconds: float = 1.0, *, model: str = "m", is_good: bool = True) -> None:
    """End a running job that ran for so long."""
    outcome = Outcome(decision={"model": model, "version": "1.0.0"})
    if is_good:
        database.run_sync(store.finish, CLOCK, job.id, str(job.claim), {"images": []}, outcome)
    else:
        failed = Failed(code="LOAD_FAILED", message="It cannot be loaded.")
        database.run_sync(store.fail, CLOCK, job.id, str(job.claim), failed, pause_s=None, outcome=outcome)
    now = CLOCK.now()
    times = {"started_at": now - timedelta(seconds=seconds), "finished_at": now}
    database.run_sync(lambda connection: connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(times)))


def state(database: Database, owner: str = "ann", concurrency: int = 1) -> QueueState:
    return database.read_sync(queue_state, CLOCK, owner_id=owner, concurrency=concurrency)


def test_an_empty_queue_has_no_means(database: Database) -> None:
    """Nothing is made up where nothing ran; jobs of other kinds are none of it."""
    put(database, kind="digest")
    assert state(database) == QueueState(all=Figures(), by_model={}, own=())


def test_jobs_count_by_state_and_model(database: Database) -> None:
    """Ended ones under who answered, others under what was asked; means are of those that succeeded."""
    for _ in range(4):
        put(database, "m")
    first, second, third = claim(database, 3)
    end(database, first, 2.0)
    end(database, second, 6.0, model="spare")
    end(database, third, 60.0, is_good=False)
    put(database, None)
    put(database, None, service="draw")
    claim(database)
    found = state(database)
    assert found.all == Figures(queued=2, running=1, succeeded=2, failed=1, mean_s=4.0, failure_rate=1 / 3)
    assert dict(found.by_model) == {
        "auto": Figures(queued=1),
        "draw": Figures(queued=1),
        "m": Figures(running=1, succeeded=1, failed=1, mean_s=2.0, failure_rate=0.5),
        "spare": Figures(succeeded=1, mean_s=6.0, failure_rate=0.0),
    }


def test_what_ended_long_ago_says_nothing_of_now(database: Database) -> None:
    """After a day it is no part of the means."""
    put(database)
    (job,) = claim(database)
    end(database, job)
    past = {"finished_at": CLOCK.now() - timedelta(days=2)}
    database.run_sync(lambda connection: connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(past)))
    assert state(database).all == Figures()


def test_ones_own_places_come_with_the_time_to_wait(database: Database) -> None:
    """By the mean of the last ones and how many run at once; those of others are not shown."""
    put(database)
    (job,) = claim(database)
    end(database, job, 8.0)
    mine = [put(database, owner="ann"), put(database, owner="ann")]
    others = put(database, owner="bob")
    found = state(database, concurrency=4)
    assert {place.job_id for place in found.own} == {job.id for job in mine}
    assert all(place.eta_s == 2.0 * place.position for place in found.own)
    (other,) = state(database, "bob").own
    assert (other.job_id, other.eta_s) == (others.id, 8.0 * other.position)
    places = sorted([*(place.position for place in found.own), other.position])
    assert places == [1, 2, 3]
