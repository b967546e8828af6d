"""Services: bindings, fallback chains, splits, switches, rollbacks, and why which version would answer."""

from dataclasses import replace
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Path, Query
from starlette.requests import Request
from starlette.responses import Response

from serai.api.access import Routes, caller_of, parts_of
from serai.api.native import registry_wire as wire
from serai.api.native.models import Force, deprecation_headers
from serai.api.native.registry_changes import changed, forced, given, moved, registry_change
from serai.api.wire import Cursor, Limit, Moment, Page, place_of
from serai.auth.policy import Role
from serai.errors import InvalidInput
from serai.registry import bindings, store
from serai.registry.checks import parse_target
from serai.registry.plan import Request as Wanted
from serai.registry.policy import make_plan
from serai.registry.registry import Change
from serai.registry.service import FallbackEntry, Revision, Service, Target, binding_at
from serai.registry.snapshot import RegistrySnapshot
from serai.serving.switch import rollback_targets

routes = Routes("services")

Named = TypeVar("Named", Target, FallbackEntry)

ServiceId = Annotated[str, Path(max_length=128)]
Flag = Annotated[bool, Query()]
Asked = Annotated[str | None, Query(max_length=300)]

_OF_REVISION = {"fallback", "limits", "config", "shadow"}
_OF_BINDING = {"model_id", "model_version", "alias", "split"}


@routes.get("/services", access=Role.VIEWER)
async def list_services(
    request: Request,
    limit: Limit = 50,
    cursor: Cursor = None,
    task: Asked = None,
) -> Page[wire.ServiceOut]:
    """List the services."""
    parts = parts_of(request)
    ids = await parts.database.read(store.find_services, limit=limit + 1, after=place_of(cursor), task=task)
    snapshot = await parts.registry.current()
    return wire.page_of_ids(ids, limit, snapshot.services, lambda one: wire.show_service(snapshot, one))


@routes.post("/services", access=Role.MODERATOR, status_code=201)
async def create_service(request: Request, body: wire.ServiceIn) -> wire.ServiceOut:
    """Create a service, bound to a version, an alias, a split, or (with none of these) to the policy's choice."""
    caller, now = caller_of(request), parts_of(request).clock.now()
    values = given(body)
    content, asked = _split_up(values)
    revision = Revision(service_id=body.id, n=1, **content, reason="created", created_at=now, created_by=caller.user_id)
    by: dict[str, Any] = {
        "created_at": now,
        "created_by": caller.user_id,
        "updated_at": now,
        "updated_by": caller.user_id,
    }
    service = Service(**{"name": body.id, **values}, revision=revision, **by)
    return await _show(request, await registry_change(request, _create, service, asked))


@routes.get("/services/{service_id}", access=Role.VIEWER)
async def get_service(request: Request, service_id: ServiceId) -> wire.ServiceOut:
    """Show a service with the versions to which it could be switched."""
    snapshot = await parts_of(request).registry.current()
    return wire.show_service(snapshot, snapshot.service(service_id))


@routes.patch("/services/{service_id}", access=Role.MODERATOR)
async def update_service(request: Request, service_id: ServiceId, body: wire.ServiceChange) -> wire.ServiceOut:
    """Change a service. Binding, chain, limits and configuration make a new revision."""
    values = changed(body)
    reason = values.pop("reason", "")
    content, asked = _split_up(values)
    return await _show(request, await registry_change(request, _update, service_id, values, content, asked, reason))


@routes.delete("/services/{service_id}", access=Role.ADMIN, status_code=204)
async def delete_service(request: Request, service_id: ServiceId, force: Force = False) -> None:
    """Remove a service; its history stays."""
    await registry_change(request, bindings.delete_service, service_id, force=forced(request, force))


@routes.patch("/services/{service_id}/version", access=Role.MODERATOR)
async def switch_version(request: Request, service_id: ServiceId, body: wire.SwitchIn) -> wire.ServiceOut:
    """Switch all traffic to another version of the bound model: loaded before, the old one drained after."""
    if (body.version is None) == (body.alias is None):
        raise InvalidInput.at("version", "or alias must be given, one of the two")
    snapshot = await parts_of(request).registry.current()
    chosen = body.version or body.alias or ""
    binding = snapshot.service(service_id).binding
    model = body.model_id or (binding.model if binding is not None else "")
    written = await moved(
        request,
        service_id,
        [f"{model}@{chosen}"],
        body.preload,
        bindings.switch_version,
        service_id,
        model=body.model_id,
        version=body.version,
        alias=body.alias,
        reason=body.reason,
    )
    return await _show(request, written)


@routes.post("/services/{service_id}/rollback", access=Role.MODERATOR)
async def rollback(request: Request, service_id: ServiceId, body: wire.RollbackIn | None = None) -> wire.ServiceOut:
    """Go back to the state before, or to a revision; dry_run=1 is the preview."""
    wanted = body or wire.RollbackIn.model_validate({})
    parts = parts_of(request)
    snapshot = await parts.registry.current()
    current = snapshot.service(service_id).revision
    earlier = await parts.database.read(store.revisions, service_id)
    to = rollback_targets(snapshot, current, earlier, to=wanted.to)
    written = await moved(
        request, service_id, to, wanted.preload, bindings.rollback, service_id, to=wanted.to, reason=wanted.reason
    )
    return await _show(request, written)


@routes.get("/services/{service_id}/history", access=Role.VIEWER)
async def history(
    request: Request, service_id: ServiceId, at: Annotated[Moment | None, Query()] = None
) -> wire.HistoryOut:
    """Tell with which versions the service answered, and when; with `at`, what answered then."""
    parts = parts_of(request)
    lines = await parts.database.read(store.bindings, service_id)
    if not lines:
        (await parts.registry.current()).service(service_id)
    if at is not None:
        line = binding_at(lines, at)
        lines = [line] if line else []
    numbers = {line.revision for line in lines}
    found = await parts.database.read(store.revisions, service_id)
    shown = found if at is None else [revision for revision in found if revision.n in numbers]
    return wire.ServiceHistory(answered=tuple(lines), revisions=tuple(shown))


@routes.post("/services/{service_id}/publish", access=Role.MODERATOR)
async def publish(request: Request, service_id: ServiceId) -> wire.ServiceOut:
    """Publish a service; the versions that it uses cannot be changed while it is."""
    return await _show(request, await registry_change(request, bindings.set_published, service_id, published=True))


@routes.post("/services/{service_id}/unpublish", access=Role.MODERATOR)
async def unpublish(request: Request, service_id: ServiceId) -> wire.ServiceOut:
    """Take a service back from publication."""
    return await _show(request, await registry_change(request, bindings.set_published, service_id, published=False))


@routes.get("/services/{service_id}/explain", access=Role.VIEWER)
async def explain(
    request: Request,
    response: Response,
    service_id: ServiceId,
    model: Asked = None,
    marketplace: Annotated[str | None, Query(max_length=200)] = None,
    require_fast: Flag = False,
    require_high_quality: Flag = False,
    complexity: Annotated[float | None, Query(ge=0, le=1, allow_inf_nan=False)] = None,
    client_key: Annotated[str, Query(max_length=300)] = "",
) -> wire.ExplanationOut:
    """Tell which version would answer such a call, why, and what stands behind it; nothing is run."""
    snapshot = await parts_of(request).registry.current()
    snapshot.service(service_id)
    wanted = Wanted(
        service=service_id,
        model=model,
        marketplace=marketplace,
        require_fast=require_fast,
        require_high_quality=require_high_quality,
        complexity=complexity,
        client_key=client_key or caller_of(request).user_id,  # as calls are split
    )
    plan = make_plan(snapshot, wanted, parts_of(request).serving.situation())
    response.headers.update(deprecation_headers(snapshot, plan.candidate.version))
    decision = plan.decision
    return wire.Explanation(**wire.members(decision), candidates=tuple(step.name for step in plan.steps))


def _split_up(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take out of `values`, and return, what belongs to the revision and what says the binding."""
    content = {name: values.pop(name) for name in _OF_REVISION & set(values)}
    return content, {name: values.pop(name) for name in _OF_BINDING & set(values)}


def _create(change: Change, service: Service, asked: dict[str, Any]) -> bindings.Written:
    revision = service.revision
    named = {"fallback": revision.fallback, "shadow": revision.shadow}
    content = _resolved(change.snapshot, named, asked, bound=None)
    return bindings.create_service(change, replace(service, revision=replace(revision, **content)))


def _update(
    change: Change, service_id: str, fields: dict[str, Any], content: dict[str, Any], asked: dict[str, Any], reason: str
) -> bindings.Written:
    bound = bindings.service_of(change, service_id).binding
    content = _resolved(change.snapshot, content, asked, bound=bound)
    return bindings.update_service(change, service_id, fields, content, reason=reason)


def _resolved(
    snapshot: RegistrySnapshot, content: dict[str, Any], asked: dict[str, Any], *, bound: Target | None
) -> dict[str, Any]:
    """Return `content` with the targets that were asked for, every model by its id, whatever name it was given."""
    resolved = dict(content)
    if asked:
        resolved["targets"] = _targets(snapshot, asked, bound)
    if resolved.get("shadow") is not None:
        resolved["shadow"] = _by_id(snapshot, resolved["shadow"])
    if "fallback" in resolved:
        resolved["fallback"] = tuple(_by_id(snapshot, entry) for entry in resolved["fallback"])
    return resolved


def _targets(snapshot: RegistrySnapshot, asked: dict[str, Any], bound: Target | None) -> tuple[Target, ...]:
    if "split" in asked:
        if len(asked) > 1:
            raise InvalidInput.at("split", "stands for itself: leave model_id, model_version and alias out")
        return tuple(_by_id(snapshot, target) for target in asked["split"])
    number, alias = asked.get("model_version"), asked.get("alias")
    model_id = asked.get("model_id", bound.model if bound else None)
    if number is not None and alias is not None:
        raise InvalidInput.at("alias", "or model_version, not both")
    selector = number or alias
    if model_id is None and (selector or "model_id" not in asked):
        raise InvalidInput.at("model_id", "is missing")
    if model_id is None:
        return ()
    return (parse_target(snapshot, f"{model_id}@{selector}" if selector else model_id),)


def _by_id(snapshot: RegistrySnapshot, named: Named) -> Named:
    entry = snapshot.find_model(named.model) if named.model else None
    return named if entry is None else msgspec.structs.replace(named, model=entry.model.id)


async def _show(request: Request, written: bindings.Written) -> wire.ServiceView:
    snapshot = await parts_of(request).registry.current()
    return wire.show_service(snapshot, written.service, written.warnings)
