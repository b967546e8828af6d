"""The webhooks that wait to be sent: claimed for a while, then delivered, put off or given up."""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serai.clock import Clock
from serai.jobs.store.statements import moment
from serai.storage.tables.jobs import job_webhooks

MAX_ATTEMPTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One message to send; `attempts` counts this one."""

    id: str
    job_id: str
    owner_id: str
    url: str
    body: str
    attempts: int
    claim: str


def claim_deliveries(
    connection: Connection, clock: Clock, *, token: str, lease_s: float, limit: int = 8
) -> list[Delivery]:
    """Take the messages that are due for `lease_s` seconds; a sender that dies leaves them to the next one."""
    due = sa.select(job_webhooks.c.id).where(job_webhooks.c.next_at <= moment(connection, clock))
    due = due.order_by(job_webhooks.c.next_at).limit(limit).with_for_update(skip_locked=True)
    values = {
        "claim": token,
        "attempts": job_webhooks.c.attempts + 1,
        "next_at": moment(connection, clock, in_s=lease_s),
    }
    chosen = sa.select(due.cte("due").c.id)
    statement = sa.update(job_webhooks).where(job_webhooks.c.id.in_(chosen)).values(values).returning(job_webhooks)
    names = ("id", "job_id", "owner_id", "url", "body", "attempts", "claim")
    return [Delivery(**{name: getattr(row, name) for name in names}) for row in connection.execute(statement)]


def mark_delivered(connection: Connection, clock: Clock, delivery: Delivery) -> None:
    """Note that the receiver took the message."""
    delivered = {"delivered_at": moment(connection, clock), "next_at": None, "claim": None, "last_problem": None}
    connection.execute(_claimed(delivery).values(delivered))


def mark_undelivered(
    connection: Connection, clock: Clock, delivery: Delivery, *, problem: str, pause_s: float | None
) -> None:
    """Put the message off for `pause_s` seconds, or give it up with None."""
    later = None if pause_s is None else moment(connection, clock, in_s=pause_s)
    connection.execute(_claimed(delivery).values(next_at=later, claim=None, last_problem=problem[:500]))


def _claimed(delivery: Delivery) -> sa.Update:
    mine = (job_webhooks.c.id == delivery.id, job_webhooks.c.claim == delivery.claim)
    return sa.update(job_webhooks).where(*mine)
