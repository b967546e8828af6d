"""What is loaded; loading and unloading by hand."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import Field
from starlette.requests import Request

from serai.api.access import Routes, actor_of, is_rehearsal, parts_of
from serai.api.changes import Rehearsed
from serai.api.wire import Page, Wire
from serai.audit import record
from serai.auth.policy import Role
from serai.chat.keep_alive import KeepAlive, keep_alive_of
from serai.serving.residency import InMemory, named
from serai.storage.database import Connection

routes = Routes("models")

Reference = Annotated[str, Path(max_length=300, description="A model, model@version, or a service.")]


class LoadIn(Wire):
    keep_alive: KeepAlive = Field(
        None, description="How long it stays after its last use: seconds, or as 10m; -1: until it is unloaded."
    )
    timeout_s: Annotated[float, Field(ge=1, le=600)] | None = Field(None, description="How long to wait for it.")


class UnloadIn(Wire):
    force: bool = Field(False, description="At once: what runs on it fails. Else what runs may finish.")


class LoadedOut(Wire):
    model: str
    versions: list[str] = Field(description="The versions that have used it; those that differ in adapters share it.")
    services: list[str] = Field(description="The services whose traffic goes to one of the versions.")
    engine: str
    device: str
    state: Literal["loading", "ready", "draining", "unloading"]
    pid: int | None = Field(description="The worker's process.")
    bytes: int
    threads: int
    in_flight: int
    pinned: bool
    last_use: datetime | None
    expires_at: datetime | None = Field(
        description="When it leaves if nobody uses it; null while it is used, and for never."
    )
    facts: dict[str, Any] = Field(description="What the engine says of itself: context length, precision, release.")


class Unloaded(Wire):
    unloaded: list[str]


@routes.get("/ps", access=Role.VIEWER)
async def ps(request: Request) -> Page[LoadedOut]:
    """List what is loaded, on its way in, or on its way out."""
    return Page(items=[show(one) for one in await parts_of(request).serving.loaded()], next_cursor=None)


@routes.post("/models/{reference}/load", access=Role.MODERATOR)
async def load(request: Request, reference: Reference, body: LoadIn | None = None) -> LoadedOut:
    """Load a model before it is asked for; answers when it is ready."""
    parts = parts_of(request)
    wanted = body or LoadIn.model_validate({})
    keep_alive = keep_alive_of(wanted.keep_alive)
    if is_rehearsal(request):
        name = named(await parts.registry.current(), reference).name
        raise Rehearsed.of("models.load", "version", name, after={"keep_alive": keep_alive})
    timeout_s = wanted.timeout_s or parts.settings.load_timeout_s
    found = await parts.serving.preload(reference, keep_alive=keep_alive, timeout_s=timeout_s)
    await _audited(request, "models.load", reference, {"keep_alive": keep_alive})
    known = {one.loaded.unit: one for one in await parts.serving.loaded()}
    return show(known.get(found.unit) or InMemory(loaded=found, versions=found.names, services=()))


@routes.post("/models/{reference}/unload", access=Role.MODERATOR)
async def unload(request: Request, reference: Reference, body: UnloadIn | None = None) -> Unloaded:
    """Unload a model; answers when its memory is free."""
    parts = parts_of(request)
    force = body is not None and body.force
    if is_rehearsal(request):
        name = named(await parts.registry.current(), reference).name
        raise Rehearsed.of("models.unload", "version", name, after={"force": force})
    gone = await parts.serving.unload(reference, force=force)
    await _audited(request, "models.unload", reference, {"force": force})
    return Unloaded(unloaded=[name for one in gone for name in one.names])


@routes.post("/models/{reference}/cooldown/clear", access=Role.MODERATOR, status_code=204)
async def clear_cooldown(request: Request, reference: Reference) -> None:
    """Let a model that failed be tried again at once."""
    parts = parts_of(request)
    name = named(await parts.registry.current(), reference).name
    if is_rehearsal(request):
        raise Rehearsed.of("models.clear_cooldown", "version", name, after=None)
    await parts.serving.clear_cooldown(reference)
    await _audited(request, "models.clear_cooldown", reference, None)


def show(one: InMemory) -> LoadedOut:
    """Return what is in memory in the form of the API."""
    loaded = one.loaded
    return LoadedOut(
        model=loaded.names[0].partition("@")[0],
        versions=list(one.versions),
        services=list(one.services),
        engine=loaded.engine,
        device=loaded.device,
        state=loaded.state.value,
        pid=loaded.pid,
        bytes=loaded.bytes,
        threads=loaded.threads,
        in_flight=loaded.in_flight,
        pinned=loaded.pinned,
        last_use=loaded.last_use,
        expires_at=loaded.expires,
        facts=loaded.facts,
    )


async def _audited(request: Request, action: str, reference: str, after: Mapping[str, Any] | None) -> None:
    """Write what an operator did into the audit log: nothing in the database changed, but what answers may have."""
    parts = parts_of(request)
    actor, now = actor_of(request), parts.clock.now()

    def write(connection: Connection) -> None:
        record(connection, actor, action, "version", reference, at=now, after=after)

    await parts.database.run(write)
