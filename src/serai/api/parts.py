"""What the routes work with: filled by `serai.app`, found on the application."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from serai.auth.callers import Callers
from serai.auth.credentials import Passwords
from serai.auth.limits import Limiter
from serai.auth.secrets import SecretStore
from serai.chat.chats import Chats
from serai.chat.embeddings import Embedder
from serai.chat.kept_responses import KeptResponses
from serai.chat.sessions import Sessions
from serai.clock import Clock
from serai.decode.decoder import Decoder
from serai.ids import NewId
from serai.jobs.feed import Feed
from serai.jobs.group import GroupedWrites
from serai.jobs.metrics import JobMetrics
from serai.jobs.runner import Runners
from serai.outbound import Outbound
from serai.registry.registry import Registry
from serai.runtime.runtime import Runtime
from serai.serving.serving import Serving
from serai.settings import Settings
from serai.storage.blobs import Blobs
from serai.storage.cache import Cache
from serai.storage.database import Database
from serai.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    settings: Settings
    clock: Clock
    new_id: NewId
    started: float
    """`clock.monotonic()` at the start."""
    metrics: Metrics
    database: Database
    blobs: Blobs
    cache: Cache
    outbound: Outbound
    decoder: Decoder
    passwords: Passwords
    secrets: SecretStore
    callers: Callers
    limiter: Limiter
    registry: Registry
    runtime: Runtime
    serving: Serving
    chats: Chats
    embedder: Embedder
    sessions: Sessions
    kept_responses: KeptResponses
    runners: Runners
    feed: Feed
    job_metrics: JobMetrics
    writes: GroupedWrites
    """Where small writes of many callers share a commit."""
    webhook_master: bytes
    """Signs webhooks, through a secret of each owner's."""
    stopping: asyncio.Event
    """Set when the server begins to stop: streams end, so that their clients resume later."""
    checks: dict[str, Callable[[], Awaitable[dict[str, Any]]]]
    """What /health asks, by name; a check raises when its part does not work."""
