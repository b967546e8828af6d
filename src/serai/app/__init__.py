"""The composition root: settings become parts, parts become the ASGI application.

The only package that names every concrete class. Nothing here is started at import; the lifespan
opens what the server needs and closes it in the opposite order.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI

from serai.api.build import build
from serai.app.ground import open_database, registry_rules
from serai.app.opening import open_parts
from serai.clock import Clock, SystemClock
from serai.errors import SeraiError
from serai.ids import NewId, new_id
from serai.jobs.runner import Runner
from serai.settings import Settings
from serai.storage.home import Home
from serai.telemetry.metrics import Metrics

__all__ = ["create_app", "open_database", "open_parts", "registry_rules"]


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
