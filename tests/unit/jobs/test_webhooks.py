"""Webhooks: signed, at least once, tried again, given up in the end."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa

from serai.clock import SystemClock
from serai.errors import OutboundRefused, UpstreamFailed
from serai.ids import new_id
from serai.jobs import store
from serai.jobs.model import NewJob
from serai.jobs.store.outbox import MAX_ATTEMPTS
from serai.jobs.webhooks import Webhooks, owner_secret, pause_s, sign
from serai.storage.database import Database
from serai.storage.tables.jobs import job_webhooks

pytestmark = pytest.mark.anyio
CLOCK = SystemClock()
MASTER = b"m" * 32


class Receiver:
    """Answers with what the test says, and keeps what it got."""

    def __init__(self, *answers: int | Exception) -> None:
        self.answers = list(answers)
        self.got: list[tuple[str, Mapping[str, str], bytes]] = []
        self.arrived = asyncio.Event()

    async def __call__(self, url: str, *, headers: Mapping[str, str], body: bytes) -> int:
        self.got.append((url, headers, body))
        self.arrived.set()
        answer = self.answers.pop(0) if self.answers else 204
        if isinstance(answer, Exception):
            raise answer
        return answer


def webhooks(database: Database, receiver: Receiver) -> Webhooks:
    return Webhooks(database, receiver, master=MASTER, clock=CLOCK, new_id=new_id, random=lambda: 0.5)


async def end_a_job(database: Database) -> str:
    new = NewJob(
        id=new_id("job"),
        kind="work",
        version=1,
        payload={},
        owner_id="ann",
        resource="cpu",
        webhook_url="https://example.org/hook?x=1",
    )
    await database.run(store.enqueue, CLOCK, new)
    claim: dict[str, Any] = {"token": new_id("claim"), "holder": "a", "kinds": {"work": 1}, "lease_s": 30}
    (job,) = await database.run(store.claim, CLOCK, wanted={"cpu": 1}, **claim)
    await database.run(store.finish, CLOCK, job.id, job.claim, {"نتیجه": 1})
    return job.id


def outbox(database: Database) -> Any:
    return database.read_sync(lambda c: c.execute(sa.select(job_webhooks)).one())


def due_now(database: Database) -> None:
    when = job_webhooks.c.next_at.is_not(None)
    database.run_sync(
        lambda c: c.execute(sa.update(job_webhooks).where(when).values(next_at=job_webhooks.c.created_at))
    )


async def test_the_end_of_a_job_is_sent_signed(database: Database) -> None:
    """The receiver can check id, time and body with its own secret."""
    job_id = await end_a_job(database)
    receiver = Receiver()
    assert await webhooks(database, receiver).send_due() == 1
    ((url, headers, body),) = receiver.got
    assert url == "https://example.org/hook?x=1"
    key = base64.b64decode(owner_secret(MASTER, "ann").removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    assert headers["webhook-signature"] == "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    message = json.loads(body)
    assert message["type"] == "job.succeeded"
    assert message["data"] == {
        "id": job_id,
        "kind": "work",
        "status": "succeeded",
        "result": {"نتیجه": 1},
        "error": None,
    }
    assert await webhooks(database, receiver).send_due() == 0
    assert outbox(database).delivered_at is not None


async def test_a_signature_is_the_standards(database: Database) -> None:
    """The published example of the Standard Webhooks libraries."""
    headers = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_two_owners_have_different_secrets(database: Database) -> None:
    """One receiver cannot sign for another owner."""
    assert owner_secret(MASTER, "ann") != owner_secret(MASTER, "bob")


@pytest.mark.parametrize("trouble", [500, 302, 404, UpstreamFailed("gone"), TimeoutError()])
async def test_a_message_that_did_not_arrive_is_sent_again_later(database: Database, trouble: Any) -> None:
    """Not before its pause, with the same id; then it is done."""
    await end_a_job(database)
    receiver = Receiver(trouble)
    sender = webhooks(database, receiver)
    assert await sender.send_due() == 1
    assert await sender.send_due() == 0
    due_now(database)
    assert await sender.send_due() == 1
    first, second = receiver.got
    assert first[1]["webhook-id"] == second[1]["webhook-id"]
    row = outbox(database)
    assert (row.attempts, row.next_at, row.last_problem) == (2, None, None)


@pytest.mark.parametrize("trouble", [410, OutboundRefused("private")])
async def test_a_receiver_that_must_not_be_called_is_given_up(database: Database, trouble: Any) -> None:
    """Gone, or refused by the guard of the way out: never again."""
    await end_a_job(database)
    sender = webhooks(database, Receiver(trouble))
    await sender.send_due()
    row = outbox(database)
    assert (row.next_at, row.delivered_at) == (None, None)
    assert row.last_problem


async def test_a_receiver_that_never_answers_is_given_up_in_the_end(database: Database) -> None:
    """After the last attempt the message stays, undelivered, with its problem."""
    await end_a_job(database)
    receiver = Receiver(*[500] * 20)
    sender = webhooks(database, receiver)
    while await sender.send_due():
        due_now(database)
    assert len(receiver.got) == MAX_ATTEMPTS
    assert outbox(database).last_problem == "status 500"


async def test_a_sender_that_dies_leaves_the_message_to_the_next(database: Database) -> None:
    """A claim that ran out is claimed again, and the dead one's word counts no more."""
    await end_a_job(database)
    (stale,) = await database.run(store.claim_deliveries, CLOCK, token="dead", lease_s=120)
    due_now(database)
    receiver = Receiver(500)
    await webhooks(database, receiver).send_due()
    await database.run(store.mark_delivered, CLOCK, stale)
    assert outbox(database).delivered_at is None


async def test_the_sender_is_woken_by_the_end_of_a_job(database: Database) -> None:
    """A running sender needs no poll."""
    receiver = Receiver()
    task = asyncio.create_task(webhooks(database, receiver).run())
    try:
        await end_a_job(database)
        async with asyncio.timeout(8):
            await receiver.arrived.wait()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_pauses_grow_to_a_bound() -> None:
    """About a day in all, then none."""
    pauses = [pause_s(attempts, 0.5) for attempts in range(1, MAX_ATTEMPTS + 1)]
    assert pauses[:3] == [5.0, 30.0, 180.0]
    assert pauses[-1] is None
    assert 12 * 3600 < sum(pause for pause in pauses if pause) < 48 * 3600
