"""Opening everything that a server works with, in an order in which it can be closed again."""

import asyncio
import hmac
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import fields
from typing import Any

import structlog

from serai.api.parts import Parts
from serai.app.work import start_background, start_jobs
from serai.auth.callers import Callers
from serai.auth.credentials import Passwords, Tokens
from serai.auth.first_start import first_start
from serai.auth.limits import Defaults, Limiter
from serai.auth.secrets import SecretStore
from serai.clock import Clock
from serai.decode.decoder import Decoder
from serai.errors import DiskFull
from serai.ids import NewId
from serai.jobs.digest import DigestRunner
from serai.jobs.feed import Feed
from serai.jobs.group import GroupedWrites
from serai.jobs.runner import Resource, Runner, Runners
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
from serai.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


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
    start_background(stack, parts)
    start_jobs(stack, parts, home)
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
