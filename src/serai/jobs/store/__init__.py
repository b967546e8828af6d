"""The SQL of the jobs: plain synchronous functions for `Database.run` and `Database.read`.

job = await database.run(store.enqueue, clock, runners.prepare(kind="digest", …))
job = await database.read(store.get, job.id, owner_id=caller.id)
"""

from serai.jobs.store.outbox import Delivery, claim_deliveries, mark_delivered, mark_undelivered
from serai.jobs.store.reading import (
    ChildrenSummary,
    EventPage,
    KindFigures,
    StoredEvent,
    children_summary,
    delete,
    events,
    figures,
    get,
    list_jobs,
    position,
    prune,
)
from serai.jobs.store.rows import CANCEL_TOPIC, EVENTS_TOPIC, KEEP_EVENTS, QUEUE_TOPIC, WEBHOOK_TOPIC
from serai.jobs.store.writing import (
    Outcome,
    append_events,
    cancel,
    claim,
    enqueue,
    fail,
    find_same,
    finish,
    recover,
    release,
    renew,
    retry,
    settle_cancelled,
)

__all__ = [
    "CANCEL_TOPIC",
    "EVENTS_TOPIC",
    "KEEP_EVENTS",
    "QUEUE_TOPIC",
    "WEBHOOK_TOPIC",
    "ChildrenSummary",
    "Delivery",
    "EventPage",
    "KindFigures",
    "Outcome",
    "StoredEvent",
    "append_events",
    "cancel",
    "children_summary",
    "claim",
    "claim_deliveries",
    "delete",
    "enqueue",
    "events",
    "fail",
    "figures",
    "find_same",
    "finish",
    "get",
    "list_jobs",
    "mark_delivered",
    "mark_undelivered",
    "position",
    "prune",
    "recover",
    "release",
    "renew",
    "retry",
    "settle_cancelled",
]
