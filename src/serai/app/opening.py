"""Opening everything that a server works with, in an order in which it can be closed again."""

import asyncio
import hmac
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from serai.api.parts import Parts
from serai.app.ground import open_ground
from serai.app.images import image_resource, open_images
from serai.app.models import open_models
from serai.app.pulls import open_pulls, pull_resource, sweep
from serai.app.work import start_background, start_jobs
from serai.auth.callers import Callers
from serai.auth.credentials import Passwords, Tokens
from serai.auth.limits import Defaults, Limiter
from serai.clock import Clock
from serai.errors import DiskFull
from serai.ids import NewId
from serai.jobs.digest import DigestRunner
from serai.jobs.feed import Feed
from serai.jobs.group import GroupedWrites
from serai.jobs.metrics import JobMetrics
from serai.jobs.runner import Resource, Runner, Runners
from serai.settings import Settings
from serai.storage import links
from serai.storage.blobs import FileBlobs
from serai.storage.cache import Cache
from serai.storage.database import Database
from serai.storage.home import Home
from serai.telemetry.metrics import Metrics


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
    ground = await open_ground(settings, clock, new_id, metrics, stack, home)
    database, passwords = ground.database, Passwords()
    limiter = _limiter(settings, clock, stack)
    models = await open_models(ground, limiter)
    pulls, files = open_pulls(ground, models)
    parts = Parts(
        settings=settings,
        clock=clock,
        new_id=new_id,
        started=clock.monotonic(),
        stopping=asyncio.Event(),
        metrics=metrics,
        database=database,
        blobs=ground.blobs,
        cache=ground.cache,
        outbound=ground.outbound,
        decoder=ground.decoder,
        passwords=passwords,
        secrets=ground.secrets,
        callers=Callers(database, Tokens(_jwt_secrets(settings, ground.home)), passwords, clock),
        limiter=limiter,
        registry=ground.registry,
        runtime=models.runtime,
        serving=models.serving,
        chats=models.chats,
        embedder=models.embedder,
        sessions=models.sessions,
        kept_responses=models.kept_responses,
        runners=_runners(settings, database, ground.blobs, [pulls, open_images(ground, models), *runners]),
        feed=_open_feed(database, stack),
        job_metrics=JobMetrics(),
        writes=GroupedWrites(database),
        webhook_master=hmac.digest(ground.secrets_key.encode(), b"serai webhooks v1", "sha256"),
        checks=_checks(database, ground.cache, settings),
    )
    start_background(stack, parts, lambda: sweep(files, ground.registry, clock, settings))
    start_jobs(stack, parts, ground.home)
    return parts


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
    resources = [resource, pull_resource(settings), image_resource(settings)]
    return Runners(resources, [DigestRunner(read_blob, resource=resource.name), *further])


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
