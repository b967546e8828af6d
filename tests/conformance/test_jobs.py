"""The stored queue: one suite, on SQLite and on PostgreSQL."""

import asyncio
import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy.engine import Connection

from serai.clock import SystemClock
from serai.errors import InternalError, InvalidInput
from serai.events import Done, Failed, Progress
from serai.ids import new_id
from serai.jobs import store
from serai.jobs.model import (
    MOVES,
    ROUNDS_PER_PRIORITY,
    STATUSES,
    TABLE,
    ClaimLost,
    EventsGone,
    IdempotencyMismatch,
    IllegalMove,
    Job,
    JobFinished,
    JobNotFinished,
    JobNotFound,
    NewJob,
    QueueFull,
)
from serai.jobs.store import Outcome
from serai.jobs.store.rows import move
from serai.storage.database import Database
from serai.storage.tables.blobs import blob_links, blobs
from serai.storage.tables.jobs import job_events, job_webhooks, jobs

CLOCK = SystemClock()
KINDS = {"work": 1}
FAILED = Failed(code="UPSTREAM_FAILED", message="no")


class Queue:
    """The store with the arguments that the tests do not vary."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def put(self, **changes: Any) -> Job:
        values: dict[str, Any] = {"kind": "work", "version": 1, "payload": {}, "owner_id": "ann", "resource": "cpu"}
        new = NewJob(**{"id": new_id("job"), **values, **changes})
        return self.database.run_sync(store.enqueue, CLOCK, new)

    def take(self, n: int = 1, *, holder: str = "a", token: str | None = None, resource: str = "cpu") -> list[Job]:
        arguments: dict[str, Any] = {"token": token or new_id("claim"), "holder": holder, "kinds": KINDS}
        return self.database.run_sync(store.claim, CLOCK, wanted={resource: n}, lease_s=30, **arguments)

    def take_one(self) -> tuple[str, str]:
        (job,) = self.take()
        assert job.claim is not None
        return job.id, job.claim

    def get(self, job_id: str) -> Job:
        return self.database.read_sync(store.get, job_id, owner_id=None)

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.database.run_sync(function, CLOCK, *args, **kwargs)

    def events(self, job_id: str, after: int | None = None) -> list[tuple[int, Any]]:
        page = self.database.read_sync(store.events, job_id, owner_id=None, after=after)
        return [(stored.seq, stored.event) for stored in page.events]

    def pass_time(self, seconds: float) -> None:
        """Let the leases and the pauses be `seconds` older."""
        by = int(seconds * 1e6)
        older = {
            name: sa.type_coerce(sa.type_coerce(jobs.c[name], sa.BigInteger) - by, jobs.c[name].type)
            for name in ("lease_until", "run_at")
        }
        self.database.run_sync(lambda connection: connection.execute(sa.update(jobs).values(older)))

    def rows(self, table: sa.Table) -> list[Any]:
        return list(self.database.read_sync(lambda connection: connection.execute(sa.select(table)).all()))


@pytest.fixture
def queue(database: Database) -> Queue:
    return Queue(database)


def test_a_job_goes_through_the_queue_once(queue: Queue) -> None:
    """Enqueue, claim, finish: the result is stored, nothing is left to claim, the events are 1, 2, 3."""
    job = queue.put(payload={"n": [1, 2.5, "سلام", None, True]})
    job_id, claim = queue.take_one()
    queue.run(store.append_events, job_id, claim, Outcome(events=[Progress(stage="half", fraction=0.5)]))
    ended = queue.run(store.finish, job_id, claim, {"ok": 1})
    assert (ended.id, ended.status, ended.result, ended.claim) == (job.id, "succeeded", {"ok": 1}, None)
    assert queue.get(job.id).payload == {"n": [1, 2.5, "سلام", None, True]}
    assert queue.take() == []
    started, half, done = queue.events(job.id)
    assert started == (1, Progress(stage="started", detail={"attempt": 1}))
    assert half == (2, Progress(stage="half", fraction=0.5))
    assert done == (3, Done(result={"ok": 1}))


def test_enqueue_belongs_to_the_transaction_of_the_caller(queue: Queue) -> None:
    """A caller's transaction that fails leaves no job."""

    def change(connection: Connection) -> None:
        new = NewJob(id=new_id("job"), kind="work", version=1, payload={}, owner_id="ann", resource="cpu")
        store.enqueue(connection, CLOCK, new)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        queue.database.run_sync(change)
    assert queue.take() == []


@pytest.mark.anyio
async def test_two_hundred_jobs_and_ten_claimants_never_share_a_job(queue: Queue) -> None:
    """Concurrent claims take every job exactly once."""
    for _ in range(200):
        queue.put()
    taken: list[str] = []

    async def claimant(number: int) -> None:
        while True:
            token = f"{number}-{len(taken)}-{new_id('claim')}"
            arguments: dict[str, Any] = {"token": token, "holder": str(number), "kinds": KINDS, "lease_s": 30}
            got = await queue.database.run(store.claim, CLOCK, wanted={"cpu": 3}, **arguments)
            if not got:
                return
            taken.extend(job.id for job in got)

    await asyncio.gather(*(claimant(number) for number in range(10)))
    assert len(taken) == 200
    assert len(set(taken)) == 200


LATE: dict[str, Callable[[Queue, str, str], Any]] = {
    "append_events": lambda q, job, claim: q.run(store.append_events, job, claim, Outcome(events=[FAILED])),
    "finish": lambda q, job, claim: q.run(store.finish, job, claim, {}),
    "fail": lambda q, job, claim: q.run(store.fail, job, claim, FAILED, pause_s=None),
    "fail_again": lambda q, job, claim: q.run(store.fail, job, claim, FAILED, pause_s=1),
    "release": lambda q, job, claim: q.run(store.release, job, claim),
}


@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
def test_a_holder_that_lost_its_claim_changes_nothing(queue: Queue, late: Callable[[Queue, str, str], Any]) -> None:
    """After the lease ran out and another took the job, every write of the first is refused."""
    queue.put()
    job_id, old = queue.take_one()
    queue.pass_time(31)
    queue.run(store.recover, crash_limit=3)
    assert queue.take_one()[0] == job_id
    before = (queue.get(job_id), queue.events(job_id))
    with pytest.raises(ClaimLost):
        late(queue, job_id, old)
    assert queue.run(store.renew, {job_id: old}, lease_s=99) == {}
    assert (queue.get(job_id), queue.events(job_id)) == before


@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
def test_what_has_ended_stays_as_it_ended(queue: Queue, late: Callable[[Queue, str, str], Any]) -> None:
    """No write under the old claim reaches a finished job."""
    queue.put()
    job_id, claim = queue.take_one()
    queue.run(store.finish, job_id, claim, {"first": True})
    before = (queue.get(job_id), queue.events(job_id))
    with pytest.raises(ClaimLost):
        late(queue, job_id, claim)
    assert (queue.get(job_id), queue.events(job_id)) == before


ILLEGAL = [(status, how) for status in STATUSES for how in MOVES if (status, how) not in TABLE]


@pytest.mark.parametrize(("status", "how"), ILLEGAL)
def test_every_move_that_is_not_in_the_table_is_refused(queue: Queue, status: str, how: Any) -> None:
    """An illegal move raises and changes neither the row nor its events."""
    job = bring_to(queue, status)
    before = (queue.get(job.id), queue.events(job.id))
    with pytest.raises(IllegalMove):
        queue.database.run_sync(move, CLOCK, job, how, events=[FAILED], values={"result": {}})
    assert (queue.get(job.id), queue.events(job.id)) == before


@pytest.mark.parametrize(("status", "how"), [pair for pair in TABLE if pair[1] != "claim"])
def test_every_move_of_the_table_is_made_once(queue: Queue, status: str, how: Any) -> None:
    """A legal move lands where the table says; the same move by one who read the old row is refused."""
    job = bring_to(queue, status)
    values = {"result": {}} if how == "finish" else {}
    queue.database.run_sync(move, CLOCK, job, how, values=values)
    assert queue.get(job.id).status == TABLE[(job.status, how)]
    with pytest.raises(ClaimLost):
        queue.database.run_sync(move, CLOCK, job, how, values=values)


def bring_to(queue: Queue, status: str) -> Job:
    job = queue.put()
    if status == "cancelled":
        queue.run(store.cancel, job.id, owner_id=None)
    elif status != "queued":
        job_id, claim = queue.take_one()
        if status == "succeeded":
            queue.run(store.finish, job_id, claim, {})
        elif status == "failed":
            queue.run(store.fail, job_id, claim, FAILED, pause_s=None)
    return queue.get(job.id)


def test_the_database_itself_refuses_a_claim_without_running(queue: Queue) -> None:
    """The CHECK constraints hold against a statement that forgets the rules."""
    job = queue.put()
    for wrong in ({"status": "running"}, {"claim": "x"}, {"status": "succeeded"}, {"status": "lost"}):
        with pytest.raises(sa.exc.IntegrityError):
            queue.database.run_sync(
                lambda c, wrong=wrong: c.execute(sa.update(jobs).where(jobs.c.id == job.id).values(wrong))
            )


def test_a_failure_is_tried_again_after_its_pause_up_to_the_bound(queue: Queue) -> None:
    """Two failures queue the job again, each after its pause; the third is final."""
    queue.put(max_errors=3)
    for count in (1, 2):
        job_id, claim = queue.take_one()
        assert queue.run(store.fail, job_id, claim, FAILED, pause_s=60).status == "queued"
        assert queue.take() == []
        queue.pass_time(61)
        assert queue.get(job_id).error_count == count
    job_id, claim = queue.take_one()
    ended = queue.run(store.fail, job_id, claim, FAILED, pause_s=60)
    assert (ended.status, ended.error["code"], ended.attempts) == ("failed", "UPSTREAM_FAILED", 3)


def test_a_deterministic_failure_is_final_at_once(queue: Queue) -> None:
    """A failure without a pause is not tried again."""
    queue.put(max_errors=3)
    assert queue.run(store.fail, *queue.take_one(), FAILED, pause_s=None).status == "failed"


def test_crashes_are_counted_apart_and_poison_ends(queue: Queue) -> None:
    """Each lease that runs out queues the job again without an error; the third ends it with the reason."""
    queue.put()
    for crashes in (1, 2, 3):
        job_id, _ = queue.take_one()
        assert queue.run(store.recover, crash_limit=3) == []
        queue.pass_time(31)
        (job,) = queue.run(store.recover, crash_limit=3)
        assert (job.crash_count, job.error_count) == (crashes, 0)
    assert (job.id, job.status, job.error["code"]) == (job_id, "failed", "JOB_CRASHED")


def test_what_the_caller_knows_to_be_alive_is_not_recovered(queue: Queue) -> None:
    """However long ago its lease ran out; of the others those that ran out are."""
    queue.put(), queue.put()
    alive, dead = queue.take(2)
    queue.pass_time(31)
    (recovered,) = queue.run(store.recover, crash_limit=3, but={alive.id})
    assert (recovered.id, recovered.crash_count) == (dead.id, 1)
    assert queue.get(alive.id) == dataclasses.replace(alive, lease_until=queue.get(alive.id).lease_until)


def test_a_renewed_lease_does_not_run_out(queue: Queue) -> None:
    """A holder that renews keeps its job."""
    queue.put()
    job_id, claim = queue.take_one()
    queue.pass_time(29)
    assert queue.run(store.renew, {job_id: claim}, lease_s=30) == {job_id: False}
    queue.pass_time(29)
    assert queue.run(store.recover, crash_limit=3) == []


def test_a_new_incarnation_takes_back_what_the_old_one_ran(queue: Queue) -> None:
    """On one node, the jobs of an earlier server are queued at once, its own are left alone."""
    queue.put()
    queue.put()
    (old,) = queue.take(holder="old")
    (mine,) = queue.take(holder="new")
    recovered = queue.run(store.recover, crash_limit=3, not_holder="new")
    assert [job.id for job in recovered] == [old.id]
    assert queue.get(mine.id).status == "running"


def test_an_interruption_is_not_an_attempt(queue: Queue) -> None:
    """A released job is queued at once with its counts as before the claim."""
    queue.put()
    job_id, claim = queue.take_one()
    queue.run(store.release, job_id, claim)
    job = queue.get(job_id)
    assert (job.status, job.attempts, job.error_count, job.crash_count) == ("queued", 0, 0, 0)
    assert queue.take_one()[0] == job_id


def test_an_interruption_keeps_what_was_decided(queue: Queue) -> None:
    """The next run goes on with the decision, one that itself decides nothing does not lose it."""
    decision = {"source": {"revision": "a" * 40}}
    queue.put()
    for outcome in (Outcome(events=[Progress(stage="resolved")], decision=decision), Outcome()):
        job_id, claim = queue.take_one()
        queue.run(store.release, job_id, claim, outcome)
        job = queue.get(job_id)
        assert (job.decision, job.progress and job.progress["stage"]) == (decision, "interrupted")


def test_cancel_of_a_waiting_job_ends_it_at_once(queue: Queue) -> None:
    """It is cancelled, never claimed, and its last event says so; asking twice is no error."""
    job = queue.put()
    assert queue.run(store.cancel, job.id, owner_id="ann").status == "cancelled"
    assert queue.run(store.cancel, job.id, owner_id="ann").status == "cancelled"
    assert queue.take() == []
    assert queue.events(job.id) == [(1, Failed(code="CANCELLED", message="The job was cancelled."))]


ENDINGS: dict[str, Callable[[Queue, str, str], Any]] = {
    "finish": lambda q, job, claim: q.run(store.finish, job, claim, {"done": True}),
    "fail": lambda q, job, claim: q.run(store.fail, job, claim, FAILED, pause_s=None),
    "retry": lambda q, job, claim: q.run(store.fail, job, claim, FAILED, pause_s=1),
    "release": lambda q, job, claim: q.run(store.release, job, claim),
    "recover": lambda q, job, claim: (q.pass_time(31), q.run(store.recover, crash_limit=3)),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_an_accepted_cancel_beats_every_other_ending(queue: Queue, ending: Callable[[Queue, str, str], Any]) -> None:
    """Whatever happens to a running job after its cancel was accepted, it ends as cancelled."""
    queue.put()
    job_id, claim = queue.take_one()
    assert queue.run(store.cancel, job_id, owner_id=None).status == "running"
    assert queue.run(store.renew, {job_id: claim}, lease_s=30) == {job_id: True}
    ending(queue, job_id, claim)
    job = queue.get(job_id)
    assert (job.status, job.result) == ("cancelled", None)


def test_cancel_after_success_is_refused_with_the_result(queue: Queue) -> None:
    """The error carries the status and the result."""
    queue.put()
    job_id, claim = queue.take_one()
    queue.run(store.finish, job_id, claim, {"a": 1})
    with pytest.raises(JobFinished) as refused:
        queue.run(store.cancel, job_id, owner_id="ann")
    assert refused.value.details == {"status": "succeeded", "result": {"a": 1}, "error": None}


def test_one_idempotency_key_is_one_job_per_owner(queue: Queue) -> None:
    """The same request returns the first job, a different one is refused, another owner is not concerned."""
    first = queue.put(idempotency_key="k", payload={"a": 1, "b": 2})
    assert queue.put(idempotency_key="k", payload={"b": 2, "a": 1}).id == first.id
    with pytest.raises(IdempotencyMismatch):
        queue.put(idempotency_key="k", payload={"a": 2})
    assert queue.put(idempotency_key="k", owner_id="bob").id != first.id
    assert queue.put().id != queue.put().id


@pytest.mark.anyio
async def test_concurrent_requests_with_one_key_store_one_job(queue: Queue) -> None:
    """Twenty at the same moment all get the same job."""
    news = [
        NewJob(
            id=new_id("job"), kind="work", version=1, payload={}, owner_id="ann", resource="cpu", idempotency_key="k"
        )
        for _ in range(20)
    ]
    stored = await asyncio.gather(*(queue.database.run(store.enqueue, CLOCK, new) for new in news))
    assert len({job.id for job in stored}) == 1
    assert len(queue.rows(jobs)) == 1


def test_owners_take_turns(queue: Queue) -> None:
    """One who enqueues after a flood of another's jobs is served in turn, not at its end."""
    for _ in range(6):
        queue.put(owner_id="ann")
    queue.take(2)
    for _ in range(2):
        queue.put(owner_id="bob")
    assert [job.owner_id for job in queue.take(6)] == ["ann", "bob", "ann", "bob", "ann", "ann"]


def test_an_urgent_job_overtakes_and_a_low_one_waits_a_bounded_number_of_rounds(queue: Queue) -> None:
    """Priority is a head start of rounds: the least urgent job is not starved by a stream of urgent ones."""
    low = queue.put(owner_id="bob", priority=6)
    waited = 0
    while True:
        queue.put(priority=5)
        (job,) = queue.take()
        queue.run(store.finish, job.id, job.claim, {})
        if job.id == low.id:
            break
        waited += 1
    assert 1 <= waited <= ROUNDS_PER_PRIORITY + 1


def test_a_resource_that_is_busy_does_not_hold_up_another(queue: Queue) -> None:
    """Claims are per resource, and so are the rounds."""
    for _ in range(5):
        queue.put(resource="gpu")
    other = queue.put(resource="network")
    assert [job.id for job in queue.take(resource="network")] == [other.id]
    assert other.round == 1


def test_a_kind_or_version_that_is_unknown_stays_queued(queue: Queue) -> None:
    """It is neither run nor lost."""
    strange, newer = queue.put(kind="strange"), queue.put(version=2)
    known = queue.put()
    assert [job.id for job in queue.take(9)] == [known.id]
    assert {queue.get(job.id).status for job in (strange, newer)} == {"queued"}


def test_a_full_queue_refuses(queue: Queue) -> None:
    """The bound counts what waits for the resource, and is a 503 with a time to come back."""
    queue.put(max_queued=2)
    queue.put(max_queued=2)
    with pytest.raises(QueueFull) as refused:
        queue.put(max_queued=2)
    assert refused.value.retry_after
    queue.put(max_queued=2, resource="gpu")
    queue.take()
    queue.put(max_queued=2)


def test_a_foreign_job_is_not_there(queue: Queue) -> None:
    """To another owner every door says 'no such job'."""
    job = queue.put()
    for call in (
        lambda c: store.get(c, job.id, owner_id="eve"),
        lambda c: store.events(c, job.id, owner_id="eve"),
        lambda c: store.cancel(c, CLOCK, job.id, owner_id="eve"),
        lambda c: store.retry(c, CLOCK, job.id, owner_id="eve", new_id=new_id("job")),
        lambda c: store.delete(c, job.id, owner_id="eve"),
    ):
        with pytest.raises(JobNotFound):
            queue.database.run_sync(call)
    with pytest.raises(JobNotFound):
        queue.put(owner_id="eve", parent_id=job.id)


def test_a_parent_waits_for_its_children(queue: Queue) -> None:
    """It is claimable when the last child has ended, however each ended; its events count them."""
    parent = queue.put()
    children = [queue.put(parent_id=parent.id, resource="net") for _ in range(3)]
    assert queue.take() == []
    one, two, three = queue.take(3, resource="net")
    queue.run(store.finish, one.id, one.claim, {})
    queue.run(store.fail, two.id, two.claim, FAILED, pause_s=None)
    assert queue.take() == []
    queue.run(store.cancel, three.id, owner_id=None)
    queue.run(store.release, three.id, three.claim)
    assert [job.id for job in queue.take()] == [parent.id]
    summary = queue.database.read_sync(store.children_summary, parent.id)
    assert (dict(summary.by_status), summary.total) == ({"succeeded": 1, "failed": 1, "cancelled": 1}, 3)
    assert [event.done for seq, event in queue.events(parent.id)[:3]] == [1, 2, 3]
    assert [job.id for job in children] == [one.id, two.id, three.id]


def test_cancel_of_a_parent_reaches_every_child(queue: Queue) -> None:
    """Waiting children and the parent end; a running child is told; nothing of them is claimed again."""
    parent = queue.put()
    for _ in range(3):
        queue.put(parent_id=parent.id)
    (running,) = queue.take()
    queue.run(store.cancel, parent.id, owner_id="ann")
    assert queue.take(9) == []
    assert queue.run(store.settle_cancelled) == 2
    assert queue.run(store.renew, {running.id: running.claim}, lease_s=30) == {running.id: True}
    queue.run(store.release, running.id, running.claim)
    assert queue.run(store.settle_cancelled) == 1
    assert {row.status for row in queue.rows(jobs)} == {"cancelled"}


def test_a_child_can_be_tried_again_before_and_after_its_parent_ended(queue: Queue) -> None:
    """The retry is a new job that stands for the old one in the summary."""
    parent = queue.put()
    child, _other = queue.put(parent_id=parent.id, resource="net"), queue.put(parent_id=parent.id, resource="net")
    (first,) = queue.take(resource="net")
    queue.run(store.fail, first.id, first.claim, FAILED, pause_s=None)
    again = queue.run(store.retry, child.id, owner_id="ann", new_id=new_id("job"))
    assert (again.retry_of, queue.get(parent.id).open_children) == (child.id, 2)
    for job in queue.take(2, resource="net"):
        queue.run(store.fail, job.id, job.claim, FAILED, pause_s=None)
    queue.run(store.finish, *queue.take_one(), {})
    third = queue.run(store.retry, again.id, owner_id="ann", new_id=new_id("job"))
    assert third.parent_id == parent.id
    (job,) = queue.take(resource="net")
    queue.run(store.finish, job.id, job.claim, {})
    summary = queue.database.read_sync(store.children_summary, parent.id)
    assert dict(summary.by_status) == {"succeeded": 1, "failed": 1}


def test_only_what_failed_or_was_cancelled_can_be_tried_again(queue: Queue) -> None:
    """Retry of an open or a succeeded job is refused."""
    job = queue.put()
    with pytest.raises(JobNotFinished):
        queue.run(store.retry, job.id, owner_id=None, new_id=new_id("job"))
    queue.run(store.finish, *queue.take_one(), {})
    with pytest.raises(JobFinished):
        queue.run(store.retry, job.id, owner_id=None, new_id=new_id("job"))


def test_a_finish_keeps_its_blobs_or_does_not_happen(queue: Queue) -> None:
    """Blobs are linked in the finishing transaction; a blob that was never stored refuses the finish."""
    queue.database.run_sync(
        lambda c: c.execute(sa.insert(blobs).values(digest="d", size=3, created_at=datetime.now(UTC)))
    )
    queue.put()
    job_id, claim = queue.take_one()
    with pytest.raises(InternalError):
        queue.run(store.finish, job_id, claim, {}, Outcome(digests=["d", "missing"]))
    assert queue.get(job_id).status == "running"
    queue.run(store.finish, job_id, claim, {}, Outcome(digests=["d", "d"]))
    assert [tuple(row) for row in queue.rows(blob_links)] == [(job_id, "d", "ann", 3)]
    queue.database.run_sync(store.delete, job_id, owner_id="ann")
    assert (queue.rows(blob_links), queue.rows(job_events), queue.rows(jobs)) == ([], [], [])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**63, "\x00", "\ud800", {"\x00": 1}, {1: 2}, b"x"])
def test_what_one_database_could_not_hold_is_refused_by_both(queue: Queue, value: Any) -> None:
    """A result with such a value is the runner's error, and the job still runs."""
    queue.put()
    job_id, claim = queue.take_one()
    with pytest.raises(InvalidInput):
        queue.run(store.finish, job_id, claim, {"value": [value]})
    assert queue.get(job_id).status == "running"


def test_old_events_are_evicted_and_a_resume_from_there_is_refused(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest events stay without a gap; an offset before them is EVENTS_GONE; without one the oldest kept come."""
    from serai.jobs.store import reading, rows

    monkeypatch.setattr(rows, "KEEP_EVENTS", 5)
    monkeypatch.setattr(reading, "KEEP_EVENTS", 5)
    queue.put()
    job_id, claim = queue.take_one()
    for step in range(2, 11):
        queue.run(store.append_events, job_id, claim, Outcome(events=[Progress(stage="s", done=step)]))
    assert [seq for seq, _ in queue.events(job_id)] == [6, 7, 8, 9, 10]
    assert [seq for seq, _ in queue.events(job_id, after=5)] == [6, 7, 8, 9, 10]
    with pytest.raises(EventsGone):
        queue.events(job_id, after=4)
    with pytest.raises(InvalidInput):
        queue.events(job_id, after=11)


def test_a_webhook_is_stored_by_the_transaction_that_ends_the_job(queue: Queue) -> None:
    """There is one message for every ended job with a URL, whichever way it ended, and none before."""
    queue.put(webhook_url="https://example.org/hook")
    cancelled = queue.put(webhook_url="https://example.org/hook")
    queue.put()
    job_id, claim = queue.take_one()
    assert queue.rows(job_webhooks) == []
    queue.run(store.finish, job_id, claim, {"a": 1})
    queue.run(store.cancel, cancelled.id, owner_id=None)
    queue.run(store.finish, *queue.take_one(), {})
    assert {row.job_id for row in queue.rows(job_webhooks)} == {job_id, cancelled.id}


def test_jobs_are_listed_in_pages_newest_first(queue: Queue) -> None:
    """Pages join without a gap or a double; filters narrow them; other owners' jobs are not in them."""
    ids = sorted((queue.put(kind="a" if n % 2 else "work").id for n in range(7)), reverse=True)
    queue.put(owner_id="bob")
    seen, cursor = [], None
    while True:
        page, cursor = queue.database.read_sync(store.list_jobs, owner_id="ann", cursor=cursor, limit=3)
        seen += [job.id for job in page]
        if cursor is None:
            break
    assert seen == ids
    for filters, count in (
        ({"kind": "a"}, 3),
        ({"status": "running"}, 0),
        ({"since": datetime.now(UTC) + timedelta(hours=1)}, 0),
        ({"since": datetime.now(UTC) - timedelta(hours=1)}, 7),
    ):
        page, _ = queue.database.read_sync(store.list_jobs, owner_id="ann", **filters)
        assert len(page) == count, filters


def test_the_position_counts_who_is_ahead_for_the_same_resource(queue: Queue) -> None:
    """1 is next; a job that runs has none."""
    made = [queue.put() for _ in range(3)]
    urgent = queue.put(priority=0)
    queue.put(resource="gpu")
    positions = [queue.database.read_sync(store.position, job) for job in (urgent, *made)]
    assert positions == [1, 2, 3, 4]
    (running,) = queue.take()
    assert queue.database.read_sync(store.position, running) is None


def test_old_jobs_are_pruned_and_open_ones_never(queue: Queue) -> None:
    """Only what ended before the retention time goes, a child not before its parent has ended."""
    parent = queue.put()
    queue.put(parent_id=parent.id)
    for _ in range(2):
        queue.put()
    child_and_other = queue.take(2)
    for job in child_and_other:
        queue.run(store.finish, job.id, job.claim, {})
    assert queue.run(store.prune, older_than=timedelta(hours=1)) == []
    gone = queue.run(store.prune, older_than=timedelta(hours=-1))
    assert gone == [job.id for job in child_and_other if job.parent_id is None]


def test_the_figures_count_depth_age_wait_and_attempts(queue: Queue) -> None:
    """One entry per kind, with times in seconds."""
    for _ in range(3):
        queue.put()
    queue.put(kind="strange")
    queue.run(store.finish, *queue.take_one(), {})
    queue.take()
    strange, work = queue.database.read_sync(store.figures, CLOCK)
    assert (strange.kind, strange.queued, strange.running, strange.mean_wait_s) == ("strange", 1, 0, 0.0)
    assert (work.kind, work.queued, work.running, work.open_attempts) == ("work", 1, 1, 1)
    assert 0 < work.oldest_queued_s < 60
    assert 0 < work.mean_wait_s < 60


class QueueMachine(RuleBasedStateMachine):
    """Any order of what clients, holders, deaths and restarts do, against a model in plain Python."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue(self.database)
        self.model: dict[str, dict[str, Any]] = {}
        self.claims: list[tuple[str, str]] = []

    @initialize()
    def empty(self) -> None:
        self.database.run_sync(lambda connection: connection.execute(sa.delete(jobs)))

    def running(self, draw: int) -> tuple[str, str] | None:
        """Pick one claim that was ever made; most of them are lost by now."""
        return self.claims[draw % len(self.claims)] if self.claims else None

    def holds(self, job_id: str, claim: str) -> bool:
        return self.model[job_id]["claim"] == claim

    @rule(owner=st.sampled_from(["ann", "bob", "cyd"]), priority=st.sampled_from([4, 5, 5, 6]))
    def enqueue(self, owner: str, priority: int) -> None:
        served = [j["round"] for j in self.model.values() if j["status"] in ("running", "succeeded", "failed")]
        same = [
            j["round"]
            for j in self.model.values()
            if (j["status"], j["owner"], j["priority"]) == ("queued", owner, priority)
        ]
        job = self.queue.put(owner_id=owner, priority=priority, max_errors=2)
        round_ = 1 + max([*served, *same], default=0)
        assert (job.round, job.rank) == (round_, round_ + ROUNDS_PER_PRIORITY * priority)
        self.model[job.id] = {
            "owner": owner,
            "priority": priority,
            "round": round_,
            "rank": job.rank,
            "status": "queued",
            "claim": None,
            "asked": False,
            "errors": 0,
            "crashes": 0,
            "attempts": 0,
            "events": 0,
        }

    @rule(n=st.integers(1, 3))
    def claim(self, n: int) -> None:
        waiting = [(j["rank"], job_id) for job_id, j in self.model.items() if j["status"] == "queued"]
        taken = self.queue.take(n)
        assert [job.id for job in taken] == [job_id for _, job_id in sorted(waiting)[:n]]
        for job in taken:
            entry = self.model[job.id]
            entry.update(status="running", claim=job.claim, attempts=entry["attempts"] + 1, events=entry["events"] + 1)
            self.claims.append((job.id, str(job.claim)))

    def write(self, draw: int, call: Callable[[str, str], Any], then: Callable[[dict[str, Any]], None]) -> None:
        """Write under any claim: one that is lost must be refused, one that holds must do `then`."""
        chosen = self.running(draw)
        if chosen is None:
            return
        if not self.holds(*chosen):
            with pytest.raises(ClaimLost):
                call(*chosen)
            return
        call(*chosen)
        entry = self.model[chosen[0]]
        entry["events"] += 1
        then(entry)

    def leave(self, entry: dict[str, Any], status: str) -> None:
        entry.update(status="cancelled" if entry["asked"] else status, claim=None)

    @rule(draw=st.integers(0, 999))
    def append(self, draw: int) -> None:
        events = Outcome(events=[Progress(stage="s")])
        self.write(draw, lambda *c: self.queue.run(store.append_events, *c, events), lambda entry: None)

    @rule(draw=st.integers(0, 999))
    def finish(self, draw: int) -> None:
        call = lambda *c: self.queue.run(store.finish, *c, {"by": c[1]})  # noqa: E731
        self.write(draw, call, lambda entry: self.leave(entry, "succeeded"))

    @rule(draw=st.integers(0, 999), pause_s=st.sampled_from([None, 0.0]))
    def fail(self, draw: int, pause_s: float | None) -> None:
        def then(entry: dict[str, Any]) -> None:
            if not entry["asked"]:
                entry["errors"] += 1
            self.leave(entry, "failed" if pause_s is None or entry["errors"] >= 2 else "queued")

        self.write(draw, lambda *c: self.queue.run(store.fail, *c, FAILED, pause_s=pause_s), then)

    @rule(draw=st.integers(0, 999))
    def release(self, draw: int) -> None:
        def then(entry: dict[str, Any]) -> None:
            entry["attempts"] -= not entry["asked"]
            self.leave(entry, "queued")

        self.write(draw, lambda *c: self.queue.run(store.release, *c), then)

    @rule(draw=st.integers(0, 999))
    def cancel(self, draw: int) -> None:
        if not self.model:
            return
        job_id = list(self.model)[draw % len(self.model)]
        entry = self.model[job_id]
        if entry["status"] in ("succeeded", "failed"):
            with pytest.raises(JobFinished):
                self.queue.run(store.cancel, job_id, owner_id=None)
            return
        self.queue.run(store.cancel, job_id, owner_id=None)
        if entry["status"] == "queued":
            entry.update(status="cancelled", events=entry["events"] + 1)
        elif entry["status"] == "running":
            entry["asked"] = True

    @rule(restart=st.booleans())
    def die(self, restart: bool) -> None:
        """Every holder dies: found by a new incarnation, or by the leases that run out."""
        if restart:
            self.queue.run(store.recover, crash_limit=3, not_holder="somebody new")
        else:
            self.queue.pass_time(31)
            self.queue.run(store.recover, crash_limit=3)
        for entry in self.model.values():
            if entry["status"] == "running":
                entry["crashes"] += not entry["asked"]
                entry["events"] += 1
                self.leave(entry, "failed" if entry["crashes"] >= 3 else "queued")

    @invariant()
    def the_store_is_the_model(self) -> None:
        stored = {row.id: row for row in self.queue.rows(jobs)}
        assert stored.keys() == self.model.keys()
        for job_id, entry in self.model.items():
            row = stored[job_id]
            found = (row.status, row.claim, row.error_count, row.crash_count, row.attempts, row.last_seq)
            names = ("status", "claim", "errors", "crashes", "attempts", "events")
            assert found == tuple(entry[name] for name in names), job_id
            assert (row.result is not None) == (row.status == "succeeded")

    @invariant()
    def the_events_have_no_gap_and_one_end(self) -> None:
        numbers: dict[str, list[int]] = {}
        finals: dict[str, int] = {}
        for row in self.queue.rows(job_events):
            numbers.setdefault(row.job_id, []).append(row.seq)
            finals[row.job_id] = finals.get(row.job_id, 0) + (row.event["type"] in ("done", "failed"))
        for job_id, entry in self.model.items():
            assert sorted(numbers.get(job_id, [])) == list(range(1, entry["events"] + 1))
            assert finals.get(job_id, 0) == (entry["status"] in ("succeeded", "failed", "cancelled"))


@pytest.fixture
def machine(database: Database) -> type[QueueMachine]:
    return type("BoundQueueMachine", (QueueMachine,), {"database": database})


def test_any_history_agrees_with_the_model(machine: type[QueueMachine]) -> None:
    """Random histories of every operation keep the store equal to the model and the invariants true."""
    few = settings(max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=few)  # type: ignore[no-untyped-call]
