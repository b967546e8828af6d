"""What runs beside the requests: jobs, webhooks, and what is done now and then."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any

import structlog

from serai.api.parts import Parts
from serai.app.images import prune_pictures
from serai.chat import store as chat_store
from serai.errors import Unavailable
from serai.jobs import store as jobs_store
from serai.jobs.run import Parts as RunParts
from serai.jobs.supervisor import Pace, Supervisor
from serai.jobs.webhooks import Send, Webhooks
from serai.outbound import Outbound
from serai.serving.store import prune_decisions
from serai.storage.home import Home
from serai.storage.links import Collector

log = structlog.get_logger(__name__)

_RANDOM = secrets.SystemRandom().random
_LAST_USED_EVERY_S = 30.0
_FIGURES_EVERY_S = 10.0
_PINNED_EVERY_S = 5.0
"""How long a model that a pinned service is bound to by now may be missing from memory."""
_PINNED_AGAIN_S = 60.0
"""After so long a pinned model that failed, or was lost, is tried again."""
_JOB_DRAIN_S = 2.0
"""How long a stop lets running jobs end by themselves; the others go back to the queue, and lose no attempt."""


def start_background(stack: AsyncExitStack, parts: Parts, sweep_models: Callable[[], Awaitable[object]]) -> None:
    """Start what runs now and then; each ends with the server."""
    collector = Collector(parts.database, parts.blobs, grace_s=parts.settings.blob_grace_s)
    parts.metrics.register(parts.job_metrics)

    async def count_jobs() -> None:
        parts.job_metrics.update(await parts.database.read(jobs_store.figures, parts.clock))

    def oldest() -> datetime:
        return parts.clock.now() - timedelta(days=parts.settings.decision_retention_days)

    every: dict[str, tuple[float, Callable[[], Awaitable[object]]]] = {
        "last-used": (_LAST_USED_EVERY_S, parts.callers.write_last_used),
        "job-metrics": (_FIGURES_EVERY_S, count_jobs),
        "pinned": (_PINNED_EVERY_S, _pinner(parts)),
        "cleanup": (parts.settings.cleanup_interval_s, lambda: collector.run(parts.clock.now())),
        "models": (parts.settings.cleanup_interval_s, sweep_models),
        "decisions": (parts.settings.cleanup_interval_s, lambda: parts.database.run(prune_decisions, oldest())),
        "pictures": (parts.settings.cleanup_interval_s, lambda: prune_pictures(parts)),
        "sessions": (
            parts.settings.cleanup_interval_s,
            lambda: parts.database.run(chat_store.prune, parts.clock.now()),
        ),
    }
    tasks = [asyncio.create_task(_repeat(name, s, work), name=name) for name, (s, work) in every.items()]
    stack.push_async_callback(parts.callers.write_last_used)
    stack.push_async_callback(_end, tasks)


def _pinner(parts: Parts) -> Callable[[], Awaitable[object]]:
    """Return what brings memory in line with the registry: when that changed, and now and then.

    Models of pinned services are loaded and pinned; those of deleted versions are unloaded.
    """
    seen: object = None
    due = 0.0

    async def keep_pinned() -> None:
        nonlocal seen, due
        snapshot, now = await parts.registry.current(), parts.clock.monotonic()
        if snapshot is not seen or now >= due:
            seen, due = snapshot, now + _PINNED_AGAIN_S
            await parts.serving.residency.unload_deleted()
            await parts.serving.residency.keep_pinned(timeout_s=parts.settings.load_timeout_s)

    return keep_pinned


def start_jobs(stack: AsyncExitStack, parts: Parts, home: Home) -> None:
    """Start the supervisor and the webhooks. When the server stops, running jobs go back to the queue."""
    settings = parts.settings
    pace = Pace(
        lease_s=settings.job_lease_s,
        beat_s=settings.job_lease_s / 3,
        retention=timedelta(days=settings.job_retention_days),
        crash_limit=settings.job_crash_limit,
    )
    run_parts = RunParts(
        database=parts.database,
        writes=parts.writes,
        clock=parts.clock,
        feed=parts.feed,
        folder=home.folder("jobs"),
        random=_RANDOM,
    )
    supervisor = Supervisor(
        parts.runners,
        run_parts,
        incarnation=home.incarnation,
        is_alone=parts.database.dialect == "sqlite",
        new_id=parts.new_id,
        pace=pace,
    )
    webhooks = Webhooks(
        parts.database,
        _send_through(parts.outbound),
        master=parts.webhook_master,
        clock=parts.clock,
        new_id=parts.new_id,
        random=_RANDOM,
    )
    supervising = asyncio.create_task(supervisor.run(), name="jobs")
    sending = asyncio.create_task(webhooks.run(), name="webhooks")

    async def ask_jobs() -> dict[str, Any]:
        if supervising.done() or sending.done():
            raise Unavailable("Jobs are not being run: a defect ended what runs them.", hint="Restart the server.")
        return {"running": supervisor.running}

    parts.checks["jobs"] = ask_jobs

    async def stop() -> None:
        parts.stopping.set()
        await supervisor.stop(drain_s=_JOB_DRAIN_S)
        await supervising

    stack.push_async_callback(_end, [sending])
    stack.push_async_callback(stop)


def _send_through(outbound: Outbound) -> Send:
    async def send(url: str, *, headers: Mapping[str, str], body: bytes) -> int:
        reply = await outbound.request("POST", url, headers=headers, content=body, follow_redirects=False)
        return reply.status

    return send


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _repeat(name: str, seconds: float, work: Callable[[], Awaitable[object]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception:
            log.exception("background work failed", work=name)
