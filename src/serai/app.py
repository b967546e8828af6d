"""The composition root: settings become parts, parts become the ASGI application.

The only module that names every concrete class. Nothing here is started at import; the lifespan
opens what the server needs and closes it in the opposite order.
"""

import asyncio
import hmac
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields
from datetime import timedelta
from typing import Any

import structlog
from fastapi import FastAPI

from serai.api.build import build
from serai.api.parts import Parts
from serai.auth.callers import Callers
from serai.auth.credentials import Passwords, Tokens
from serai.auth.first_start import first_start
from serai.auth.limits import Defaults, Limiter
from serai.auth.secrets import SecretStore
from serai.clock import Clock, SystemClock
from serai.decode.decoder import Decoder
from serai.errors import DiskFull, SeraiError, Unavailable
from serai.ids import NewId, new_id
from serai.jobs import store as jobs_store
from serai.jobs.digest import DigestRunner
from serai.jobs.feed import Feed
from serai.jobs.group import GroupedWrites
from serai.jobs.metrics import JobMetrics
from serai.jobs.run import Parts as RunParts
from serai.jobs.runner import Resource, Runner, Runners
from serai.jobs.supervisor import Pace, Supervisor
from serai.jobs.webhooks import Send, Webhooks
from serai.outbound import Outbound
from serai.registry.registry import Registry
from serai.registry.rules import RegistryRules
from serai.registry.seed import seed
from serai.settings import Settings
from serai.storage import links, schema
from serai.storage.blobs import FileBlobs
from serai.storage.cache import Cache, MemoryCache, RedisCache, invalidate_on_notices
from serai.storage.connect import open_postgresql, open_sqlite
from serai.storage.database import Database
from serai.storage.home import Home
from serai.storage.links import Collector
from serai.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_RANDOM = secrets.SystemRandom().random
_LAST_USED_EVERY_S = 30.0
_FIGURES_EVERY_S = 10.0
_JOB_DRAIN_S = 2.0
"""How long a stop lets running jobs end by themselves; the others go back to the queue, and lose no attempt."""


def create_app(
    settings: Settings,
    *,
    clock: Clock | None = None,
    new_id: NewId = new_id,
    home: Home | None = None,
    runners: Sequence[Runner] = (),
) -> FastAPI:
    """Return the application for `settings`.

    `home`: the server's folder, if the caller holds it locked already. `runners`: further kinds of
    job; they share the resource `cpu`.
    """
    metrics = Metrics()
    own_clock = clock or SystemClock()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                app.state.parts = await open_parts(settings, own_clock, new_id, metrics, stack, home, runners)
            except SeraiError as refusal:
                app.state.refusal = refusal
                raise
            yield

    return build(settings, metrics, own_clock, new_id, lifespan)


def open_database(settings: Settings) -> Database:
    """Open the database that the settings name; its schema is left as it is."""
    if settings.database_url is not None:
        return open_postgresql(
            settings.database_url, pool_size=settings.database_pool_size, timeout_s=settings.database_timeout_s
        )
    return open_sqlite(settings.sqlite_path, readers=settings.database_pool_size, timeout_s=settings.database_timeout_s)


async def open_parts(
    settings: Settings,
    clock: Clock,
    new_id: NewId,
    metrics: Metrics,
    stack: AsyncExitStack,
    home: Home | None,
    runners: Sequence[Runner] = (),
) -> Parts:
    """Open everything; `stack` closes it, the last first."""
    if home is None:
        home = Home.open(settings.home)
        home.lock()
        stack.callback(home.unlock)
    database = await _open_database(settings, metrics, stack)
    blobs = FileBlobs(settings.blobs_folder, clock=clock, min_free_bytes=settings.min_free_disk_bytes)
    cache = _open_cache(settings, clock)
    stack.push_async_callback(cache.close)
    stack.callback(invalidate_on_notices(cache, database))
    outbound, decoder = _open_doors(settings, clock, stack)
    await first_start(database, home, clock, new_id)
    passwords, secret_key = Passwords(), _secrets_key(settings, home)
    parts = Parts(
        settings=settings,
        clock=clock,
        new_id=new_id,
        started=clock.monotonic(),
        stopping=asyncio.Event(),
        metrics=metrics,
        database=database,
        blobs=blobs,
        cache=cache,
        outbound=outbound,
        decoder=decoder,
        passwords=passwords,
        secrets=SecretStore(secret_key, {name: value.get_secret_value() for name, value in settings.secrets.items()}),
        callers=Callers(database, Tokens(_jwt_secrets(settings, home)), passwords, clock),
        limiter=_limiter(settings, clock, stack),
        registry=await _open_registry(settings, database, clock, stack),
        runners=_runners(settings, database, blobs, runners),
        feed=_open_feed(database, stack),
        writes=GroupedWrites(database),
        webhook_master=hmac.digest(secret_key.encode(), b"serai webhooks v1", "sha256"),
        checks=_checks(database, cache, settings),
    )
    _start_background(stack, parts)
    _start_jobs(stack, parts, home)
    return parts


async def _open_database(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> Database:
    database = await asyncio.to_thread(open_database, settings)
    stack.push_async_callback(database.close)
    database.observe = lambda mode, seconds: metrics.transaction_seconds.labels(mode=mode).observe(seconds)
    await asyncio.to_thread(schema.upgrade, database)
    return database


def _open_doors(settings: Settings, clock: Clock, stack: AsyncExitStack) -> tuple[Outbound, Decoder]:
    outbound = Outbound(
        clock=clock,
        allow=settings.outbound_allow,
        timeout_s=settings.outbound_timeout_s,
        max_bytes=settings.outbound_max_bytes,
    )
    stack.push_async_callback(outbound.aclose)
    decoder = Decoder(
        memory_bytes=settings.decode_memory_bytes,
        timeout_s=settings.decode_timeout_s,
        max_image_pixels=settings.max_image_pixels,
        max_media_seconds=settings.max_media_seconds,
    )
    stack.push_async_callback(decoder.aclose)
    return outbound, decoder


async def _open_registry(settings: Settings, database: Database, clock: Clock, stack: AsyncExitStack) -> Registry:
    registry = Registry(database, registry_rules(settings))
    stack.callback(registry.close)
    await database.run(seed, registry, clock.now())
    await registry.current()
    return registry


def _open_feed(database: Database, stack: AsyncExitStack) -> Feed:
    feed = Feed(database)
    feed.open()
    stack.callback(feed.close)
    return feed


def _runners(settings: Settings, database: Database, blobs: FileBlobs, further: Sequence[Runner]) -> Runners:
    async def read_blob(owner_id: str, digest: str) -> AsyncIterator[bytes]:
        name = digest.removeprefix("sha256:")
        await database.read(links.check_held, owner_id, name)
        async for piece in blobs.read(name):
            yield piece

    resource = Resource(name="cpu", concurrency=settings.job_concurrency, max_queued=settings.job_max_queued)
    return Runners([resource], [DigestRunner(read_blob, resource=resource.name), *further])


def _open_cache(settings: Settings, clock: Clock) -> Cache:
    if settings.redis_url is not None:
        return RedisCache(settings.redis_url, clock=clock)
    return MemoryCache(clock=clock, max_entries=settings.cache_max_entries)


def _limiter(settings: Settings, clock: Clock, stack: AsyncExitStack) -> Limiter:
    defaults = Defaults(
        per_minute=settings.rate_limit_per_minute,
        per_hour=settings.rate_limit_per_hour,
        tokens_per_minute=settings.rate_limit_tokens_per_minute,
        address_per_minute=settings.address_limit_per_minute,
    )
    limiter = Limiter(defaults, clock, redis_url=settings.redis_url, enabled=settings.rate_limits == "on")
    stack.push_async_callback(limiter.aclose)
    return limiter


def _secrets_key(settings: Settings, home: Home) -> str:
    given = settings.secrets_key
    return given.get_secret_value() if given else home.read_or_create_secret("secrets.key")


def registry_rules(settings: Settings) -> RegistryRules:
    """Return the rules of the registry that the settings ask for."""
    return RegistryRules(**{field.name: getattr(settings, field.name) for field in fields(RegistryRules)})


def _jwt_secrets(settings: Settings, home: Home) -> list[str]:
    first = settings.jwt_secret.get_secret_value() if settings.jwt_secret else home.read_or_create_secret("jwt.key")
    return [first, *(secret.get_secret_value() for secret in settings.jwt_previous_secrets)]


def _checks(database: Database, cache: Cache, settings: Settings) -> dict[str, Callable[[], Awaitable[dict[str, Any]]]]:
    async def ask_database() -> dict[str, Any]:
        await database.ping()
        return {"kind": database.dialect}

    async def ask_cache() -> dict[str, Any]:
        await cache.ping()
        return {"kind": "redis" if settings.redis_url else "memory"}

    async def ask_disk() -> dict[str, Any]:
        free = (await asyncio.to_thread(shutil.disk_usage, settings.blobs_folder)).free
        if free < settings.min_free_disk_bytes:
            raise DiskFull(f"{free} bytes are free, fewer than min_free_disk_bytes.")
        return {"free_bytes": free}

    return {"database": ask_database, "cache": ask_cache, "disk": ask_disk}


def _start_background(stack: AsyncExitStack, parts: Parts) -> None:
    """Start what runs now and then; each ends with the server."""
    collector = Collector(parts.database, parts.blobs, grace_s=parts.settings.blob_grace_s)
    job_metrics = JobMetrics()
    parts.metrics.register(job_metrics)

    async def count_jobs() -> None:
        job_metrics.update(await parts.database.read(jobs_store.figures, parts.clock))

    every: dict[str, tuple[float, Callable[[], Awaitable[object]]]] = {
        "last-used": (_LAST_USED_EVERY_S, parts.callers.write_last_used),
        "job-metrics": (_FIGURES_EVERY_S, count_jobs),
        "cleanup": (parts.settings.cleanup_interval_s, lambda: collector.run(parts.clock.now())),
    }
    tasks = [asyncio.create_task(_repeat(name, s, work), name=name) for name, (s, work) in every.items()]
    stack.push_async_callback(parts.callers.write_last_used)
    stack.push_async_callback(_end, tasks)


def _start_jobs(stack: AsyncExitStack, parts: Parts, home: Home) -> None:
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
