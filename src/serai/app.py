"""The composition root: settings become parts, parts become the ASGI application.

The only module that names every concrete class. Nothing here is started at import; the lifespan
opens what the server needs and closes it in the opposite order.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields
from typing import Any

import structlog
from fastapi import FastAPI

from serai.api.build import build
from serai.api.parts import Parts
from serai.audit import SYSTEM
from serai.auth import store as access
from serai.auth.callers import Callers
from serai.auth.credentials import Passwords, Tokens, key_digest, key_prefix, new_key
from serai.auth.limits import Defaults, Limiter
from serai.auth.policy import RequestLimits, Role
from serai.auth.secrets import SecretStore
from serai.clock import Clock, SystemClock
from serai.decode.decoder import Decoder
from serai.errors import DiskFull
from serai.ids import NewId, new_id
from serai.outbound import Outbound
from serai.registry.registry import Registry
from serai.registry.rules import RegistryRules
from serai.registry.seed import seed
from serai.settings import Settings
from serai.storage import schema
from serai.storage.blobs import FileBlobs
from serai.storage.cache import Cache, MemoryCache, RedisCache, invalidate_on_notices
from serai.storage.connect import open_postgresql, open_sqlite
from serai.storage.database import Database
from serai.storage.home import Home
from serai.storage.links import Collector
from serai.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

ADMIN_KEY_FILE = "admin.key"
_LAST_USED_EVERY_S = 30.0


def create_app(
    settings: Settings, *, clock: Clock | None = None, new_id: NewId = new_id, home: Home | None = None
) -> FastAPI:
    """Return the application for `settings`. `home`: the server's folder, if the caller holds it locked already."""
    metrics = Metrics()
    own_clock = clock or SystemClock()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app.state.parts = await open_parts(settings, own_clock, new_id, metrics, stack, home)
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
    settings: Settings, clock: Clock, new_id: NewId, metrics: Metrics, stack: AsyncExitStack, home: Home | None
) -> Parts:
    """Open everything; `stack` closes it."""
    if home is None:
        home = Home.open(settings.home)
        home.lock()
        stack.callback(home.unlock)
    database = await asyncio.to_thread(open_database, settings)
    stack.push_async_callback(database.close)
    database.observe = lambda mode, seconds: metrics.transaction_seconds.labels(mode=mode).observe(seconds)
    await asyncio.to_thread(schema.upgrade, database)
    blobs = FileBlobs(settings.blobs_folder, clock=clock, min_free_bytes=settings.min_free_disk_bytes)
    cache = _open_cache(settings, clock)
    stack.push_async_callback(cache.close)
    invalidate_on_notices(cache, database)
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
    passwords = Passwords()
    tokens = Tokens(_jwt_secrets(settings, home))
    secret_key = (
        settings.secrets_key.get_secret_value() if settings.secrets_key else home.read_or_create_secret("secrets.key")
    )
    given = {name: value.get_secret_value() for name, value in settings.secrets.items()}
    await _ensure_admin(database, home, clock, new_id)
    registry = Registry(database, _rules(settings))
    stack.callback(registry.close)
    await database.run(seed, registry, clock.now())
    await registry.current()
    parts = Parts(
        settings=settings,
        clock=clock,
        new_id=new_id,
        started=clock.monotonic(),
        metrics=metrics,
        database=database,
        blobs=blobs,
        cache=cache,
        outbound=outbound,
        decoder=decoder,
        passwords=passwords,
        secrets=SecretStore(secret_key, given),
        callers=Callers(database, tokens, passwords, clock),
        limiter=_limiter(settings, clock),
        registry=registry,
        checks=_checks(database, cache, settings),
    )
    collector = Collector(database, blobs, grace_s=settings.blob_grace_s)
    await _start_background(stack, parts, collector)
    return parts


def _open_cache(settings: Settings, clock: Clock) -> Cache:
    if settings.redis_url is not None:
        return RedisCache(settings.redis_url, clock=clock)
    return MemoryCache(clock=clock, max_entries=settings.cache_max_entries)


def _limiter(settings: Settings, clock: Clock) -> Limiter:
    defaults = Defaults(
        per_minute=settings.rate_limit_per_minute,
        per_hour=settings.rate_limit_per_hour,
        tokens_per_minute=settings.rate_limit_tokens_per_minute,
        address_per_minute=settings.address_limit_per_minute,
    )
    return Limiter(defaults, clock, redis_url=settings.redis_url, enabled=settings.rate_limits == "on")


def _rules(settings: Settings) -> RegistryRules:
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


async def _ensure_admin(database: Database, home: Home, clock: Clock, new_id: NewId) -> None:
    """On the first start make one admin and its key; the key goes into a private file and nowhere else."""
    if await database.read(access.list_users, limit=1, after=None):
        return
    key, now = new_key(), clock.now()
    admin = access.User(
        id=new_id("user"),
        name="admin",
        role=Role.ADMIN,
        password_hash=None,
        token_epoch=0,
        disk_quota_bytes=None,
        disabled_at=None,
        created_at=now,
        updated_at=now,
        created_by=SYSTEM.id,
    )
    api_key = access.ApiKey(
        id=new_id("key"),
        user_id=admin.id,
        name="first start",
        prefix=key_prefix(key),
        role=Role.ADMIN,
        scopes=frozenset(),
        limits=RequestLimits(),
        expires_at=None,
        revoked_at=None,
        last_used_at=None,
        created_at=now,
        created_by=SYSTEM.id,
    )
    path = await asyncio.to_thread(home.write_private, ADMIN_KEY_FILE, key.encode() + b"\n")
    if await database.run(access.create_first_admin, admin, api_key, key_digest(key)):
        log.info("the first admin key was written", file=str(path))
    else:  # another server on this database was faster
        path.unlink()


async def _start_background(stack: AsyncExitStack, parts: Parts, collector: Collector) -> None:
    """Start what runs now and then; each ends with the server."""
    every = {
        "last-used": (_LAST_USED_EVERY_S, parts.callers.write_last_used),
        "cleanup": (parts.settings.cleanup_interval_s, lambda: collector.run(parts.clock.now())),
    }
    tasks = [asyncio.create_task(_repeat(name, s, work), name=name) for name, (s, work) in every.items()]

    async def stop() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await parts.callers.write_last_used()

    stack.push_async_callback(stop)


async def _repeat(name: str, seconds: float, work: Callable[[], Awaitable[object]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception:
            log.exception("background work failed", work=name)
