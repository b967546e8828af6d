"""The ground that everything stands on: database, files, cache, the ways in and out, the registry."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields

import structlog

from serai.auth.first_start import first_start
from serai.auth.secrets import SecretStore
from serai.clock import Clock
from serai.decode.decoder import Decoder
from serai.ids import NewId
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
from serai.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What the further parts are made of; `stack` closes what they open, the last first."""

    settings: Settings
    clock: Clock
    new_id: NewId
    metrics: Metrics
    stack: AsyncExitStack
    home: Home
    database: Database
    blobs: FileBlobs
    cache: Cache
    outbound: Outbound
    decoder: Decoder
    secrets: SecretStore
    secrets_key: str
    registry: Registry


async def open_ground(
    settings: Settings, clock: Clock, new_id: NewId, metrics: Metrics, stack: AsyncExitStack, home: Home | None
) -> Ground:
    """Open it; `stack` closes it. `home`: the server's folder, if the caller holds it locked already."""
    if home is None:
        home = Home.open(settings.home)
        home.lock()
        stack.callback(home.unlock)
    database = await _open_database(settings, metrics, stack)
    cache = _open_cache(settings, clock)
    stack.push_async_callback(cache.close)
    stack.callback(invalidate_on_notices(cache, database))
    outbound, decoder = _open_doors(settings, clock, stack)
    await first_start(database, home, clock, new_id)
    secrets_key = _secrets_key(settings, home)
    given = {name: value.get_secret_value() for name, value in settings.secrets.items()}
    return Ground(
        settings=settings,
        clock=clock,
        new_id=new_id,
        metrics=metrics,
        stack=stack,
        home=home,
        database=database,
        blobs=FileBlobs(settings.blobs_folder, clock=clock, min_free_bytes=settings.min_free_disk_bytes),
        cache=cache,
        outbound=outbound,
        decoder=decoder,
        secrets=SecretStore(secrets_key, given),
        secrets_key=secrets_key,
        registry=await _open_registry(settings, database, clock, stack),
    )


def open_database(settings: Settings) -> Database:
    """Open the database that the settings name; its schema is left as it is."""
    if settings.database_url is not None:
        return open_postgresql(
            settings.database_url, pool_size=settings.database_pool_size, timeout_s=settings.database_timeout_s
        )
    return open_sqlite(settings.sqlite_path, readers=settings.database_pool_size, timeout_s=settings.database_timeout_s)


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


def _open_cache(settings: Settings, clock: Clock) -> Cache:
    if settings.redis_url is not None:
        return RedisCache(settings.redis_url, clock=clock)
    return MemoryCache(clock=clock, max_entries=settings.cache_max_entries)


def _secrets_key(settings: Settings, home: Home) -> str:
    given = settings.secrets_key
    return given.get_secret_value() if given else home.read_or_create_secret("secrets.key")


def registry_rules(settings: Settings) -> RegistryRules:
    """Return the rules of the registry that the settings ask for."""
    return RegistryRules(**{field.name: getattr(settings, field.name) for field in fields(RegistryRules)})
